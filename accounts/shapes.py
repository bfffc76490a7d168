"""Values in a shape, checked below the views: who calls a service has no form and no request."""

from collections.abc import Iterator
from typing import Any

from django.core.exceptions import ValidationError
from rest_framework import serializers

Shape = type[serializers.Serializer[Any]]


def checked(part: str, shape: Shape, values: dict[str, Any]) -> dict[str, Any]:
    """Return values in a shape, complete. Raises ValidationError with what to change, by "<part>.<field>"."""
    wanted = shape(data=values)
    if unknown := sorted(set(values) - set(wanted.fields)):
        raise ValidationError({part: f"Unknown {part}: {', '.join(unknown)}."})
    if not wanted.is_valid():
        raise ValidationError(dict(_texts(wanted.errors, part)))
    return dict(wanted.validated_data)


def _texts(errors: Any, name: str) -> Iterator[tuple[str, list[str]]]:
    """Yield the texts of nested errors with the path of the field that they are about."""
    if isinstance(errors, dict):
        for key, inner in errors.items():
            yield from _texts(inner, name if key == "non_field_errors" else f"{name}.{key}")
    elif errors and isinstance(errors[0], dict):  # one for each entry of a list
        for number, inner in enumerate(errors):
            yield from _texts(inner, f"{name}.{number}")
    elif errors:
        yield name, [str(error) for error in errors]
