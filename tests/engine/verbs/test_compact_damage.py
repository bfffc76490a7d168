"""Compaction of a vault in which something is broken: it tells, and loses nothing (vault-format, section 6)."""

from pathlib import Path

import pytest

from engine.damage import note_damaged
from engine.fetch import read_footer
from engine.ids import pack_key
from engine.index import encode_segment
from engine.moves import Moves
from engine.pack import DATA, Sealed
from engine.point import point_key
from engine.session import open_sessions
from tests.support.compaction import (
    assert_whole,
    compacted,
    everything,
    needed,
    noise,
    packs,
    sparse_vault,
)
from tests.support.runs import backed_up
from tests.support.vaults import (
    Bench,
    contents,
    flip,
    on_disk,
    rebuilt,
    replace,
    write_files,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "home"


def test_a_damaged_pack_is_left_alone_and_told(bench: Bench, folder: Path):
    sparse_vault(bench, folder)
    key = max(packs(bench), key=lambda key: len(bench.storage.get(key)))
    for at in range(200, len(bench.storage.get(key)) - 30_000, 500):
        flip(bench, key, at)
    outcome = compacted(bench)
    assert (outcome.state, outcome.packs_moved) == ("partial_complete", 0)
    assert [left.object for left in outcome.left] == [key]
    assert "damaged" in outcome.left[0].detail
    assert Moves(bench.storage, bench.open().keys).committed == []
    assert key in needed(bench)


def test_a_vault_with_a_root_that_cannot_be_read_is_not_compacted(bench: Bench, folder: Path):
    point = sparse_vault(bench, folder)
    backed_up(bench, folder)
    key = point_key(*point, "root")
    flip(bench, key, len(bench.storage.get(key)) - 5)
    before = packs(bench)
    outcome = compacted(bench)
    assert (outcome.state, [finding.object for finding in outcome.findings]) == ("failed", [key])
    assert packs(bench) == before
    assert open_sessions(bench.storage) == []


def test_packs_of_a_listing_that_cannot_be_read_are_left_alone(bench: Bench, folder: Path):
    sparse_vault(bench, folder)
    for key in packs(bench, "meta/") & needed(bench):
        flip(bench, key, 300)
    outcome = compacted(bench)
    assert (outcome.state, outcome.packs_moved) == ("partial_complete", 0)
    assert outcome.choice.doubtful > 0


def test_chunks_that_no_segment_lists_put_their_packs_in_doubt(bench: Bench, folder: Path):
    sparse_vault(bench, folder)
    bench.storage.delete([stored.key for stored in bench.storage.scan("index/")])
    before = everything(bench.open())
    outcome = compacted(bench)
    assert outcome.choice.doubtful > 0
    assert everything(bench.open()) == before
    rebuilt(bench)
    assert compacted(bench).state == "complete"
    assert everything(bench.open()) == before
    assert_whole(bench)


@pytest.mark.parametrize("harm", ["gone", "cut", "damaged"])
def test_a_broken_pack_whose_live_chunks_are_all_elsewhere_is_healed_without_reading_it(
    bench: Bench, folder: Path, harm: str
):
    made = backed_up(bench, write_files(folder, {"a": noise(1, 20_000)}))
    (key,) = packs(bench)
    name = key.rpartition("/")[2]
    if harm == "gone":
        bench.storage.delete([key])
    elif harm == "cut":
        replace(bench, key, bench.storage.get(key)[:-1000])
    else:
        flip(bench, key, 2000)
        note_damaged(bench.storage, bench.open().keys, [name])
    outcome = compacted(bench)
    assert (outcome.state, outcome.choice.lost, outcome.packs_moved) == ("partial_complete", [key], 0)
    backed_up(bench, write_files(folder.parent / "again", {"a": noise(1, 20_000)}), series="again")
    outcome = compacted(bench)
    assert (outcome.state, outcome.choice.chosen) == ("complete", {"broken": 1})
    vault = bench.open()
    assert contents(vault, vault.find(made.point), below=folder) == on_disk(folder)
    assert_whole(bench)


def test_a_broken_pack_is_not_given_up_for_copies_that_are_damaged_too(bench: Bench, folder: Path):
    backed_up(bench, write_files(folder, {"a": noise(1, 20_000)}))
    (key,) = packs(bench)
    bench.storage.delete([key])
    backed_up(bench, write_files(folder.parent / "again", {"a": noise(1, 20_000)}), series="again")
    (copy,) = packs(bench)
    flip(bench, copy, 2000)
    outcome = compacted(bench)
    assert (outcome.state, [left.object for left in outcome.left]) == ("partial_complete", [key])
    assert outcome.packs_moved == 0


def test_an_index_that_says_what_is_not_so_loses_nothing(bench: Bench, folder: Path):
    first = backed_up(bench, write_files(folder, {"a": noise(1, 20_000)}))
    other = backed_up(bench, write_files(folder.parent / "other", {"b": noise(2, 20_000)}), series="other")
    vault = bench.open()
    lost, whole = (
        next(pack for pack in vault.root(vault.find(made.point)).needed if pack.kind == DATA) for made in (first, other)
    )
    table = read_footer(vault.storage, vault.keys, lost).table
    (lie,) = encode_segment([Sealed(read_footer(vault.storage, vault.keys, whole).head, table)])
    vault.index.add(lie)
    bench.storage.delete([pack_key(lost.kind, lost.name)])
    outcome = compacted(bench)
    assert (outcome.state, outcome.packs_moved) == ("partial_complete", 0)
    assert "does not hold all that the index says" in outcome.left[0].detail
    vault = bench.open()
    assert contents(vault, vault.find(other.point), below=folder.parent / "other") == {b"b": noise(2, 20_000)}
