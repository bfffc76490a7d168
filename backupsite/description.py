"""The API's description (OpenAPI), where what the views say of themselves is not the whole truth."""

from typing import Any

from drf_standardized_errors.openapi import AutoSchema

# Settings of one kind may fit the shape of another kind, too.
ALIKE = ("SourceSettings", "SourceCredentials")


class Description(AutoSchema):
    """Describes one endpoint. Services decide who may do what, so any of them may answer 401 and 403."""

    def _should_add_http401_error_response(self) -> bool:
        return True

    def _should_add_http403_error_response(self) -> bool:
        return True


def let_shapes_overlap(result: dict[str, Any], **options: Any) -> dict[str, Any]:
    """Say of the shapes that differ by kind that any of them fits, not one alone (a postprocessing hook)."""
    for name, schema in result["components"]["schemas"].items():
        if name.removeprefix("Patched").removesuffix("Request") in ALIKE and "oneOf" in schema:
            schema["anyOf"] = schema.pop("oneOf")
    return result
