"""A person at the console, for tests: addresses of its pages, and its buttons."""

from typing import Any

from django.test import Client
from django.urls import reverse


def page(model: str, what: str, *args: object) -> str:
    """Return the address of a page, e.g. ("jobs_job", "change", pk)."""
    return reverse(f"admin:{model}_{what}", args=args)


def press(console: Client, model: str, button: str, row: object, **fields: object) -> Any:
    """Press a page's button, fill in its dialog, and return where that leads."""
    return console.post(page(model, button, row), {"_form_submitted": "True", **fields}, follow=True)
