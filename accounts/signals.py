"""Logins and failed logins, wherever they happen, go into the audit trail."""

from typing import Any

from django.contrib.auth.signals import user_logged_in, user_logged_out, user_login_failed
from django.dispatch import receiver
from django.http import HttpRequest
from django.utils import timezone

from accounts import services
from accounts.models import User


def _address(request: HttpRequest | None) -> str | None:
    return services.address_of(request.META) if request is not None else None


@receiver(user_logged_in)
def logged_in(sender: Any, request: HttpRequest | None, user: User, **_: Any) -> None:
    """Record a login to the console."""
    actor = services.Actor(user=user, address=_address(request))
    services.record(actor, "login", user, account=None, now=timezone.now())


@receiver(user_logged_out)
def logged_out(sender: Any, request: HttpRequest | None, user: User | None, **_: Any) -> None:
    """Record that somebody left the console."""
    if user is not None:
        actor = services.Actor(user=user, address=_address(request))
        services.record(actor, "logout", user, account=None, now=timezone.now())


@receiver(user_login_failed)
def login_failed(sender: Any, credentials: dict[str, Any], request: HttpRequest | None = None, **_: Any) -> None:
    """Record a failed login to the console or the API, under the name that was tried."""
    name = str(credentials.get("username") or "")
    services.record_failed_login(name, address=_address(request), now=timezone.now())
