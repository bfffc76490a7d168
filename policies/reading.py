"""Source rows -> the engine's view of them. The only place that opens a source's credentials."""

from typing import Any

from django.core.exceptions import ValidationError
from rest_framework import serializers

from accounts import secrets
from accounts.refusals import Refused
from engine.sources.kinds import AnySource
from engine.targets.kinds import AnyTarget
from policies.kinds import TYPES
from policies.kinds.port import Reading
from policies.models import Source


class DestinationUnfit(Refused):
    """A destination can't take a point of another kind."""

    code = "destination_unfit"


def check_settings(kind: str, values: dict[str, Any]) -> dict[str, Any]:
    """Return a kind's settings, complete. Raises ValidationError naming what to change."""
    return _checked("settings", TYPES[kind].settings, values)


def check_credentials(kind: str, values: dict[str, Any]) -> dict[str, str]:
    """Return a kind's credentials, complete. Raises ValidationError naming what to change."""
    return _checked("credentials", TYPES[kind].credentials, values)


def _checked(field: str, shape: type[serializers.Serializer[Any]], values: dict[str, Any]) -> dict[str, Any]:
    wanted = shape(data=values)
    if unknown := sorted(set(values) - set(wanted.fields)):
        raise ValidationError({field: f"Unknown {field}: {', '.join(unknown)}."})
    if not wanted.is_valid():
        raise ValidationError({field: list(_texts(wanted.errors))})
    return dict(wanted.validated_data)


def _texts(errors: Any, name: str = "") -> Any:
    """Yield the texts of nested errors, each with the field that it is about."""
    if isinstance(errors, dict):
        for key, inner in errors.items():
            yield from _texts(inner, f"{name}.{key}" if name else str(key))
    else:
        yield from (f"{name}: {error}" for error in errors)


def seal_credentials(source: Source, values: dict[str, Any]) -> None:
    """Put checked credentials, encrypted, into the source's row (not saved yet)."""
    kept = {name: value for name, value in check_credentials(source.kind, values).items() if value}
    source.credentials = secrets.seal(kept, context=_context(source))


def _context(source: Source) -> str:
    return f"source:{source.pk}"


def reading(source: Source) -> Reading:
    """Return a source as its kind sees it. Raises SecretUnreadable."""
    return Reading(source.host, source.settings, secrets.unseal(source.credentials, context=_context(source)))


def engine_source(source: Source) -> AnySource:
    """Return the engine's view of a source."""
    return TYPES[source.kind].source(reading(source))


def engine_target(destination: Source, *, kind: str, to: str) -> AnyTarget:
    """Return where a point of `kind` goes at the destination. Raises DestinationUnfit.

    A host takes every kind: databases and tables become the files that the point holds.
    """
    check_takes(destination, kind=kind)
    return TYPES[destination.kind].target(reading(destination), to)


def check_takes(destination: Source, *, kind: str) -> None:
    """Raise DestinationUnfit unless the destination can take a point of `kind`."""
    if destination.kind not in ("files", kind) and kind not in TYPES[destination.kind].takes:
        raise DestinationUnfit(
            f"{destination} is a {destination.get_kind_display().lower()} and can't take a point of kind {kind}. "
            "Choose a destination of the same kind, or a host, which takes the point as files."
        )
