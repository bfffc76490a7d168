"""Source rows -> the engine's view of them. The only place that opens a source's credentials."""

from typing import Any

from django.core.exceptions import ValidationError
from rest_framework import serializers
from rest_framework.fields import empty

from accounts import secrets
from accounts.refusals import Refused
from accounts.shapes import Shape, checked
from engine.sources.kinds import AnySource
from engine.targets.kinds import AnyTarget
from policies import addresses
from policies.kinds import TYPES
from policies.kinds.port import Reading
from policies.models import Source
from vaults.models import Vault, VaultType


class DestinationUnfit(Refused):
    """A destination can't take a point of another kind."""

    code = "destination_unfit"


def check_settings(kind: str, values: dict[str, Any]) -> dict[str, Any]:
    """Return a kind's settings, complete. Raises ValidationError with what to change, by "settings.<field>"."""
    return checked("settings", TYPES[kind].settings, values)


def check_credentials(kind: str, values: dict[str, Any]) -> dict[str, str]:
    """Return a kind's credentials, complete. Raises ValidationError with what to change, by "credentials.<field>"."""
    return checked("credentials", TYPES[kind].credentials, values)


def seal_credentials(source: Source, values: dict[str, Any]) -> None:
    """Put checked credentials, encrypted, into the source's row (not saved yet)."""
    kept = {name: value for name, value in check_credentials(source.kind, values).items() if value}
    source.credentials = secrets.seal(kept, context=_context(source))


def stored_credentials(source: Source) -> dict[str, str]:
    """Return what is stored; nothing when no configured key opens it: it has to be typed again then."""
    try:
        return secrets.unseal(source.credentials, context=_context(source))
    except secrets.SecretUnreadable:
        return {}


def secret_texts(source: Source) -> list[str]:
    """Return every secret of the source that a message could repeat, the longest first. Raises SecretUnreadable."""
    texts = set()
    for value in secrets.unseal(source.credentials, context=_context(source)).values():
        lines = [line.strip() for line in str(value).splitlines()]
        texts |= {str(value), *lines, *(line.partition("=")[2] for line in lines)}
    return sorted(filter(None, texts), key=len, reverse=True)


def _context(source: Source) -> str:
    return f"source:{source.pk}"


def reading(source: Source) -> Reading:
    """Return a source as its kind sees it. Raises SecretUnreadable.

    What a kind learned to take since the row was stored has its default.
    """
    kind = TYPES[source.kind]
    return Reading(
        source.host,
        completed(source),
        _defaults(kind.credentials) | secrets.unseal(source.credentials, context=_context(source)),
    )


def completed(source: Source) -> dict[str, Any]:
    """Return a source's settings, with the defaults of what its row does not tell."""
    found: dict[str, Any] = _defaults(TYPES[source.kind].settings) | source.settings
    return found


def _defaults(shape: Shape) -> dict[str, Any]:
    fields = {name: field for name, field in shape().fields.items() if field.default is not empty}
    return {name: field.default() if callable(field.default) else field.default for name, field in fields.items()}


def engine_source(source: Source) -> AnySource:
    """Return the engine's view of a source. Raises SecretUnreadable, AddressRefused, SourceUnavailable."""
    kind, found = TYPES[source.kind], reading(source)
    addresses.check(kind.endpoints(found.settings))
    return kind.source(found)


def engine_target(destination: Source, *, kind: str, to: str, overwrite: bool = False) -> AnyTarget:
    """Return where a point of `kind` goes at the destination. Raises what engine_source raises, and DestinationUnfit.

    A host takes every kind: databases and tables become the files that the point holds. With `overwrite`, what is there
    and can't be kept beside the point's is replaced: databases, rows of tables.
    """
    check_takes(destination, kind=kind)
    own, found = TYPES[destination.kind], reading(destination)
    addresses.check(own.endpoints(found.settings))
    return own.target(found._replace(overwrite=overwrite), to)


def takes(destination: Source, *, kind: str) -> bool:
    """Say whether the destination can take a point of `kind`."""
    return destination.kind in ("files", kind) or kind in TYPES[destination.kind].takes


def check_replica(vault: Vault, *, kind: str) -> None:
    """Raise DestinationUnfit when points of that kind are not restored from a replication target, and this is one."""
    if vault.type == VaultType.REPLICATION_TARGET and not TYPES[kind].from_replica:
        raise DestinationUnfit(
            f"Points of kind {kind} are not restored from a replication target. Restore from the vault it follows.",
            code="not_from_replica",
        )


def check_place(destination: Source, *, kind: str, to: str) -> None:
    """Raise ValidationError for a text that is no place at the destination for a point of `kind`."""
    try:
        TYPES[destination.kind].check_to(to)
    except serializers.ValidationError as error:
        raise ValidationError([str(text) for text in error.detail]) from error
    if not to and destination.kind == "files" != kind:
        raise ValidationError(f"Name a folder: a point of kind {kind} has no original path on a host.")


def check_takes(destination: Source, *, kind: str) -> None:
    """Raise DestinationUnfit unless the destination can take a point of `kind`."""
    if not takes(destination, kind=kind):
        raise DestinationUnfit(
            f"{destination} is a {destination.get_kind_display()} and can't take a point of kind {kind}. "
            "Choose a destination of the same kind, or a host, which takes the point as files."
        )
