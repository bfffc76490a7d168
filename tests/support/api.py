"""Clients for tests of the API."""

from typing import Any

from rest_framework.test import APIClient

from accounts.models import User


def client_of(user: User | None = None) -> APIClient:
    """Return a client logged in as `user`; nobody when None."""
    client = APIClient(raise_request_exception=False)
    if user is not None:
        client.force_authenticate(user)
    return client


def error_code(answer: Any) -> str:
    """Return the code of the first error of an answer."""
    return str(answer.json()["errors"][0]["code"])
