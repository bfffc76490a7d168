"""Fixtures of the engine's tests."""

from pathlib import Path

import pytest

from tests.support.vaults import Bench


@pytest.fixture
def bench() -> Bench:
    """A fresh vault in memory, without a cache."""
    return Bench()


@pytest.fixture
def cached_bench(tmp_path: Path) -> Bench:
    """A fresh vault in memory whose index is kept in a folder."""
    return Bench(cache=tmp_path / "cache")
