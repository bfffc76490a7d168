"""Denied requests to the console go into the audit trail."""

from collections.abc import Callable

from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponseBase

from accounts.console import note_refusal


class DenialsRecorded:
    """Sees what a view of the console refuses for want of a right; the API's own errors never come here."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self._get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        return self._get_response(request)

    def process_exception(self, request: HttpRequest, exception: Exception) -> None:
        """Record a denial; the answer stays what it was."""
        if isinstance(exception, PermissionDenied) and request.user.is_authenticated:
            note_refusal(request, None, code="permission_denied", reason=str(exception) or "The right is missing.")
