"""The catalogue and the index come back from the bucket alone (engine invariants 11 and 23)."""

import os
import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest

from engine.errors import EngineError
from engine.fetch import read_footer
from engine.ids import SEGMENTS, new_ulid
from engine.index import encode_segment, load_segment
from engine.locks import lock_until
from engine.session import fence, session_states
from engine.storage.faulty import Mode
from engine.verbs import rebuild
from engine.verbs.hold import hold
from tests.engine.verbs.test_faults import FLAVOURS, assert_whole, broken_runs
from tests.support.compaction import compacted
from tests.support.expiry import expired
from tests.support.locking import LockingBench, audited, locked
from tests.support.vaults import Bench, contents, flip, on_disk, pruned, rebuilt, replace, verified, write_files


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    files = {"a/small.txt": b"small and dull " * 50, "a/other.txt": b"another", "empty": b""}
    files["big"] = os.urandom(1_500_000)
    return write_files(tmp_path / "home", files)


@pytest.fixture
def filled(cached_bench: Bench, folder: Path) -> Bench:
    """A vault with two points of one series and one of another, and a cache."""
    cached_bench.back_up(folder)
    (folder / "later.txt").write_bytes(b"later")
    cached_bench.back_up(folder)
    cached_bench.back_up(folder / "a", series="part")
    return cached_bench


def segments(bench: Bench) -> list[str]:
    return [stored.key for stored in bench.storage.scan(SEGMENTS)]


def rows(bench: Bench) -> set[tuple[object, ...]]:
    """Return all rows that the segments in force hold, read past every cache."""
    loaded = [load_segment(bench.storage, bench.open().keys, key) for key in segments(bench)]
    replaced = {name for segment in loaded for name in segment.replaces}
    return {
        (high, low, place)
        for segment in loaded
        if segment.name not in replaced
        for high, low, place in zip(
            segment.columns["high"], segment.columns["low"], segment.places(np.arange(segment.rows)), strict=True
        )
    }


def forget_cache(bench: Bench) -> None:
    assert bench.cache is not None
    shutil.rmtree(bench.cache, ignore_errors=True)


def assert_all_is_well(bench: Bench, folder: Path) -> None:
    vault = bench.open()
    assert contents(vault, vault.find("latest", series="home"), below=folder) == on_disk(folder)
    outcome = verified(bench, "content")
    assert (outcome.state, outcome.findings) == ("complete", [])


@pytest.mark.invariant(23)
def test_the_catalogue_has_one_row_for_each_point_equal_to_what_its_backup_said(cached_bench: Bench, folder: Path):
    made = [cached_bench.back_up(folder), cached_bench.back_up(folder, series="other")]
    outcome = rebuilt(cached_bench)
    assert outcome.state == "complete"
    assert [(r.series, r.point, r.stats) for r in outcome.rows] == [(o.series, o.point, o.stats) for o in made]
    row = outcome.rows[0]
    assert (row.kind, row.host, row.roots, row.complete, row.problems_total) == (
        "files",
        "host",
        [str(folder)],
        True,
        0,
    )
    packs = {s.key: s.size for prefix in ("packs/", "meta/") for s in cached_bench.storage.scan(prefix)}
    assert 0 < row.bytes_needed <= sum(packs.values())
    assert 0 < row.packs <= len(packs)


@pytest.mark.invariant(23)
def test_rows_come_from_the_bucket_and_the_keys_alone(filled: Bench):
    before = rebuilt(filled).rows
    copied = Bench()
    copied.storage, copied.ring = filled.storage, filled.ring
    assert rebuilt(copied).rows == before
    assert [row.parent for row in before][1] == before[0].point


@pytest.mark.invariant(23)
def test_rebuilding_twice_changes_nothing(filled: Bench):
    filled.storage.delete(segments(filled)[:1])
    flip(filled, segments(filled)[0], 80)
    first = rebuilt(filled)
    index = segments(filled)
    second = rebuilt(filled)
    assert msgspec.structs.replace(second, segments_written=0) == msgspec.structs.replace(
        first, packs_listed=0, segments_written=0, replaced=[]
    )
    assert (second.packs_listed, second.segments_written, second.replaced) == (0, 0, [])
    assert segments(filled) == index


@pytest.mark.invariant(11)
@pytest.mark.parametrize("which", ["all", "first", "last"])
@pytest.mark.parametrize("cache", ["kept", "lost"])
def test_a_deleted_index_is_rebuilt_equal(filled: Bench, folder: Path, which: str, cache: str):
    before = rows(filled)
    keys = segments(filled)
    filled.storage.delete({"all": keys, "first": keys[:1], "last": keys[-1:]}[which])
    if cache == "lost":
        forget_cache(filled)
    outcome = rebuilt(filled)
    assert outcome.state == "complete"
    assert outcome.packs_listed > 0
    assert rows(filled) == before
    assert_all_is_well(filled, folder)


@pytest.mark.invariant(11)
@pytest.mark.parametrize("damage", ["deleted", "flipped", "cut short", "emptied"])
def test_without_an_index_points_are_listed_read_and_followed_by_the_next_backup(
    filled: Bench, folder: Path, damage: str
):
    names = filled.open().points()
    for key in segments(filled):
        data = filled.storage.get(key)
        if damage == "deleted":
            filled.storage.delete([key])
        elif damage == "flipped":
            flip(filled, key, len(data) // 2)
        else:
            replace(filled, key, data[:50] if damage == "cut short" else b"")
    forget_cache(filled)
    assert filled.open().points() == names
    vault = filled.open()
    assert contents(vault, vault.find("latest", series="home"), below=folder) == on_disk(folder)
    (folder / "new").write_bytes(b"after the loss")
    assert filled.back_up(folder).state == "complete"
    assert filled.back_up(folder, deep=True).state == "complete"
    vault = filled.open()
    assert contents(vault, vault.find("latest", series="home"), below=folder) == on_disk(folder)
    rebuilt(filled)
    assert_all_is_well(filled, folder)


def test_a_damaged_segment_stays_where_it_is_and_is_asked_no_more(filled: Bench, folder: Path):
    key = segments(filled)[0]
    flip(filled, key, 90)
    forget_cache(filled)
    assert list(filled.open().index.damaged) == [key]
    outcome = rebuilt(filled)
    assert outcome.replaced == [key.rpartition("/")[2]]
    assert key in segments(filled)
    assert filled.open().index.damaged == {}
    assert_all_is_well(filled, folder)


def test_a_segment_is_not_replaced_while_another_session_may_need_it(filled: Bench, folder: Path):
    flip(filled, segments(filled)[0], 90)
    forget_cache(filled)
    session = filled.open().open_session(new_ulid(filled.clock()), verb="backup", now=filled.clock())
    outcome = rebuilt(filled)
    assert (outcome.state, outcome.waiting, outcome.replaced) == ("partial_complete", [session.name], [])
    assert contents(filled.open(), filled.open().find("latest", series="home"), below=folder) == on_disk(folder)
    session.close("aborted", filled.clock())
    assert rebuilt(filled).state == "complete"
    assert_all_is_well(filled, folder)


def test_a_lost_pack_is_forgotten_so_that_a_deep_backup_stores_its_chunks_again(filled: Bench, folder: Path):
    key = max(filled.storage.scan("packs/"), key=lambda stored: stored.size).key
    filled.storage.delete([key])
    outcome = rebuilt(filled)
    assert outcome.state == "partial_complete"
    assert [broken.object for broken in outcome.broken] == [key]
    made = filled.back_up(folder, deep=True)
    assert made.stats.bytes_new > 1_500_000
    vault = filled.open()
    assert contents(vault, vault.find(made.point), below=folder) == on_disk(folder)
    assert verified(filled, "content", points=(made.point,)).lost == []


def test_a_pack_whose_footer_is_damaged_keeps_the_rows_that_still_know_its_chunks(filled: Bench, folder: Path):
    """One segment lists two packs: one is lost, the other can be read only with the rows of that segment."""
    vault = filled.open()
    packs = {pack for name in vault.points() for pack in vault.root(name).packs}
    merged = encode_segment(
        [read_footer(filled.storage, vault.keys, pack) for pack in packs],
        replaces=[segment.name for segment in vault.index.segments],
    )
    vault.index.add(merged[0])
    before = rows(filled)
    first, second = list(filled.storage.scan("packs/"))[:2]
    flip(filled, first.key, first.size - 1)
    filled.storage.delete([second.key])
    outcome = rebuilt(filled)
    assert {broken.object for broken in outcome.broken} == {first.key, second.key}
    assert (outcome.state, outcome.replaced) == ("partial_complete", [])
    assert rows(filled) >= before


def test_a_damaged_root_is_reported_and_the_other_points_have_their_rows(filled: Bench):
    key = next(s.key for s in filled.storage.scan("points/home/") if s.key.endswith("/root"))
    flip(filled, key, 99)
    outcome = rebuilt(filled)
    assert [broken.object for broken in outcome.broken] == [key]
    assert (outcome.state, len(outcome.rows)) == ("partial_complete", 2)


def test_an_empty_vault_has_an_empty_catalogue(bench: Bench):
    outcome = rebuilt(bench)
    assert (outcome.state, outcome.rows, outcome.segments_written) == ("complete", [], 0)
    assert isinstance(outcome, rebuild.Outcome)


@pytest.mark.invariant(23)
def test_holds_and_locks_are_in_the_catalogue(filled: Bench):
    first, second = filled.open().points("home")
    hold(filled.open(), first, reason="court", now=filled.clock())
    assert [row.held for row in rebuilt(filled).rows if row.series == "home"] == [True, False]
    assert {row.locked_until for row in rebuilt(filled).rows} == {None}


@pytest.mark.invariant(23)
def test_a_lock_that_came_after_a_point_is_told_too(folder: Path):
    bench = LockingBench()
    early = bench.back_up(folder).point
    policy = locked(bench)
    late = bench.back_up(folder).point
    until = lock_until(policy, bench.clock())
    audited(bench)
    told = {row.point: row.locked_until for row in rebuilt(bench).rows}
    assert told == {early: until, late: until}


def test_expired_points_are_not_in_the_catalogue_and_moved_ones_are(filled: Bench, folder: Path):
    first, second = filled.open().points("home")
    expired(filled, points=("/".join(first),), confirmed=True)
    compacted(filled, dead_share=0.01, bytes_max=1 << 30)
    pruned(filled)
    filled.storage.delete(segments(filled))
    outcome = rebuilt(filled)
    assert (outcome.state, [row.point for row in outcome.rows if row.series == "home"]) == ("complete", [second.point])
    assert_all_is_well(filled, folder)


@pytest.mark.slow
@pytest.mark.invariant(11, 23)
@pytest.mark.parametrize("flavour", FLAVOURS)
def test_a_rebuild_survives_a_fault_at_every_call(bench: Bench, folder: Path, flavour: str):
    bench.back_up(folder)
    bench.back_up(folder / "a", series="part")
    truth = {name.point: contents(bench.open(), name) for name in bench.open().points()}
    bench.storage.delete(segments(bench)[:1])
    flip(bench, segments(bench)[0], 90)
    before = bench.objects()
    catalogue = rebuilt(bench.twin()).rows
    for run in broken_runs(bench, rebuilt, FLAVOURS[flavour]):
        try:
            outcome = rebuilt(run.above)
            # What was read wrong is told, and the catalogue lacks nothing else.
            assert outcome.rows == catalogue or (run.mode is Mode.WRONG and outcome.broken)
        except EngineError:
            assert not FLAVOURS[flavour].is_survived or run.mode is Mode.WRONG
        run.faulty.settle()
        after = run.below.objects()
        assert {key: after[key] for key in before} == before
        assert {key.split("/")[0] for key in after.keys() - before.keys()} <= {"sessions", "index"}
        for state in session_states(run.below.storage).items():
            if "closed" not in state[1]:
                fence(run.below.storage, run.below.open().keys, state[0])
        assert rebuilt(run.below).state == "complete"
        assert rebuilt(run.below).rows == catalogue
        assert_whole(run.below, truth | {"": {}})
