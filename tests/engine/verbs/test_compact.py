"""Compaction frees dead chunks; no point ever notices (vault-format, section 6)."""

from pathlib import Path

import pytest

from engine.session import open_sessions
from tests.support.compaction import (
    compacted,
    everything,
    needed,
    packs,
    sparse_vault,
)
from tests.support.vaults import Bench, contents, on_disk, pruned, verified


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "home"


def assert_whole(bench: Bench) -> None:
    outcome = verified(bench, "content")
    assert (outcome.state, outcome.findings) == ("complete", [])


def test_what_is_alive_moves_and_a_prune_frees_the_rest(bench: Bench, folder: Path):
    point = sparse_vault(bench, folder)
    pruned(bench)
    old = packs(bench)
    before = everything(bench.open())
    outcome = compacted(bench)
    assert (outcome.state, outcome.choice.chosen) == ("complete", {"sparse": 1})
    assert outcome.packs_moved == outcome.packs_written == 1
    assert everything(bench.open()) == before
    assert contents(bench.open(), point, below=folder) == on_disk(folder)
    freed = old - needed(bench)
    assert len(freed) == 1
    assert outcome.bytes_moved == sum(len(bench.storage.get(key)) for key in freed)
    assert_whole(bench)
    result = pruned(bench)
    assert (result.state, result.packs_deleted) == ("complete", 1)
    assert packs(bench).isdisjoint(freed)
    assert packs(bench) | packs(bench, "meta/") == needed(bench)
    assert everything(bench.open()) == before
    assert_whole(bench)
    assert open_sessions(bench.storage) == []
    again = compacted(bench)
    assert (again.packs_moved, again.choice.chosen) == (0, {})
