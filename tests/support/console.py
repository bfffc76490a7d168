"""A person at the console, for tests: addresses of its pages, and its buttons."""

from typing import Any

from django.test import Client
from django.urls import reverse


def page(model: str, what: str, *args: object) -> str:
    """Return the address of a page, e.g. ("jobs_job", "change", pk)."""
    return reverse(f"admin:{model}_{what}", args=args)


def rules_of(*rules: dict[str, Any], stored: int = 0) -> dict[str, Any]:
    """Return the fields of a policy's page that tell its rules; the first `stored` of them are there already."""
    fields: dict[str, Any] = {"rules-TOTAL_FORMS": len(rules), "rules-INITIAL_FORMS": stored}
    daily = {
        "type": "backup",
        "every": 1,
        "unit": "day",
        "settings": "{}",
        "window_minutes": 0,
        "starts_on": "2024-01-01",
    }
    for number, rule in enumerate(rules):
        fields |= {f"rules-{number}-{name}": value for name, value in (daily | rule).items()}
    return fields


def press(console: Client, model: str, button: str, row: object, **fields: object) -> Any:
    """Press a page's button, fill in its dialog, and return where that leads."""
    return console.post(page(model, button, row), {"_form_submitted": "True", **fields}, follow=True)
