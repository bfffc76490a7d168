"""Refusal -> HTTP status, in one place. Everything else in the project raises and never names a status."""

from typing import Any

from django.core.exceptions import ValidationError
from django.http import HttpRequest, JsonResponse
from django.http.response import HttpResponseBase
from django.views.defaults import page_not_found
from drf_standardized_errors.handler import ExceptionHandler
from rest_framework import exceptions, serializers, status
from rest_framework.response import Response

from accounts.refusals import Refused
from accounts.views import note_refusal
from engine import errors
from engine.browse import EntryMissing

# The first class that fits decides: the status and the code of the answer.
ENGINE: tuple[tuple[type[errors.EngineError], int, str], ...] = (
    (EntryMissing, status.HTTP_404_NOT_FOUND, "not_found"),
    (errors.PointMissing, status.HTTP_404_NOT_FOUND, "not_found"),
    (errors.IntegrityError, status.HTTP_502_BAD_GATEWAY, "vault_damaged"),
    (errors.FormatError, status.HTTP_502_BAD_GATEWAY, "vault_format"),
    (errors.KeyUnavailable, status.HTTP_503_SERVICE_UNAVAILABLE, "key_service_unavailable"),
    (errors.KeyError_, status.HTTP_502_BAD_GATEWAY, "vault_key"),
    (errors.VaultMissing, status.HTTP_502_BAD_GATEWAY, "vault_missing"),
    (errors.StorageError, status.HTTP_503_SERVICE_UNAVAILABLE, "store_unavailable"),
    (errors.EngineError, status.HTTP_502_BAD_GATEWAY, "vault_unreadable"),
)


ERROR_TYPES = ["validation_error", "client_error", "server_error"]


class Conflict(exceptions.APIException):
    """A refusal on its way out: 409 with the rule's own code."""

    status_code = status.HTTP_409_CONFLICT


class StoreProblem(exceptions.APIException):
    """The vault behind an answer cannot give it."""

    def __init__(self, detail: str, *, code: str, status_code: int) -> None:
        super().__init__(detail, code)
        self.status_code = status_code


class Handler(ExceptionHandler):
    """Turn refusals, the engine's errors and model validation into the API's one error shape."""

    def convert_known_exceptions(self, exc: Exception) -> Exception:
        if isinstance(exc, Refused):
            return Conflict(str(exc), exc.code)
        if isinstance(exc, ValidationError):
            detail = exc.message_dict if hasattr(exc, "error_dict") else exc.messages
            return exceptions.ValidationError(detail)
        if isinstance(exc, errors.EngineError):
            return _engine_problem(exc)
        converted: Exception = super().convert_known_exceptions(exc)
        return converted

    def get_response(self, exc: exceptions.APIException, data: dict[str, Any]) -> Response:
        if isinstance(self.exc, Refused):
            data = data | {"context": self.exc.detail}
            note_refusal(self.context, code=self.exc.code, reason=str(self.exc))
        elif exc.status_code == status.HTTP_403_FORBIDDEN:
            note_refusal(self.context, code="permission_denied", reason=str(exc.detail))
        response: Response = super().get_response(exc, data)
        return response


def not_found(request: HttpRequest, exception: Exception) -> HttpResponseBase:
    """Answer for an address that no view has: to programs in the API's own error shape."""
    if not request.path.startswith("/api/"):
        page: HttpResponseBase = page_not_found(request, exception)
        return page
    line = {"code": "not_found", "detail": "Not found.", "attr": None}
    return JsonResponse({"type": "client_error", "errors": [line]}, status=status.HTTP_404_NOT_FOUND)


def _engine_problem(error: errors.EngineError) -> exceptions.APIException:
    number, code = next((number, code) for kind, number, code in ENGINE if isinstance(error, kind))
    if number == status.HTTP_404_NOT_FOUND:
        return exceptions.NotFound(str(error))
    return StoreProblem(str(error), code=code, status_code=number)


class ErrorLineSerializer(serializers.Serializer[Any]):
    code = serializers.CharField()
    detail = serializers.CharField()
    attr = serializers.CharField(allow_null=True)


class ErrorSerializer(serializers.Serializer[Any]):
    """Every error of the API has this shape; `context` tells more about a refusal, e.g. the job in the way."""

    type = serializers.ChoiceField(choices=ERROR_TYPES)
    # Declared fields leave the class, so they hide no attribute of it.
    errors = ErrorLineSerializer(many=True)  # type: ignore[assignment]  # see above
    context = serializers.DictField(required=False)  # type: ignore[assignment]  # see above
