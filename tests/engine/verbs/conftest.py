"""Fixtures of the verbs' tests."""

import pytest

from engine import listing as listings


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut listings into blocks of about 20 entries."""
    monkeypatch.setattr(listings, "BLOCK_ROWS_MIN", 4)
    monkeypatch.setattr(listings, "_END_MASK", 15)
