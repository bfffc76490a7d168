"""docs/limits.md lists the limits of the product as the code holds them."""

import pytest

from tests.support.limits_page import PAGE, page


@pytest.mark.rule("B2")
def test_the_page_is_current():
    is_current = PAGE.read_text() == page()
    assert is_current, "docs/limits.md is out of date: run `make limits`"


@pytest.mark.rule("B2")
@pytest.mark.parametrize(
    ("constant", "value", "row"),
    [
        ("vaults.replication.TARGETS_MAX", 7, "| Replicas of an account in a region | 7 |"),
        ("policies.models.RETENTION_DAYS_MAX", 12_345, "| Retention | 1 to 12,345 days, or without an end |"),
        ("engine.locks.LOCK_DAYS_MAX", 99, "| Lock of an immutable vault | 1 to 99 days |"),
    ],
)
def test_its_figures_are_those_of_the_code(monkeypatch: pytest.MonkeyPatch, constant: str, value: int, row: str):
    assert row not in page().splitlines()
    monkeypatch.setattr(constant, value)
    assert row in page().splitlines()
