"""A damaged pack is named with what it touches, stored again by the next backup that still has the data, and healed."""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.damage import damaged_packs, note_damaged
from engine.errors import EngineError
from engine.ledger import Ledger
from engine.pack import META
from engine.session import DAMAGED_PREFIX, Session
from engine.storage import Memory
from engine.storage.faulty import Mode
from engine.verbs import verify
from tests.engine.verbs.test_faults import FLAVOURS, broken_runs
from tests.support.compaction import compacted
from tests.support.runs import restored
from tests.support.vaults import START, Bench, contents, flip, on_disk, pruned, rebuilt, replace, verified, write_files

LEVELS = ("inventory", "structure", "footers", "scrub", "content")
FILES = {"a/one": os.urandom(90_000), "a/two": b"two", "b/three": b"three", "empty": b""}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_files(tmp_path / "home", FILES)


@pytest.fixture
def filled(bench: Bench, folder: Path) -> Bench:
    """A vault with two points; the second has one file more, and packs of its own for it and its listing."""
    bench.back_up(folder)
    write_files(folder, {"b/four": b"four"})
    bench.back_up(folder)
    return bench


def rot(bench: Bench, key: str) -> None:
    flip(bench, key, 300)


def cut(bench: Bench, key: str) -> None:
    replace(bench, key, bench.storage.get(key)[:200])


def lose(bench: Bench, key: str) -> None:
    bench.storage.delete([key])


def first_data_pack(bench: Bench) -> str:
    """Return the key of the pack that holds the files of the first backup."""
    return max(bench.storage.scan("packs/"), key=lambda stored: stored.size).key


def newest_listing(bench: Bench) -> str:
    """Return the key of the pack that holds the listing of the newest point."""
    vault = bench.open()
    first, second = (vault.root(name).packs for name in vault.points())
    pack = next(pack for pack in second if pack.kind == META and pack not in first)
    return f"meta/{pack.name[:2]}/{pack.name}"


def name_of(key: str) -> str:
    return key.rpartition("/")[2]


@pytest.mark.invariant(29)
@pytest.mark.parametrize("harm", [rot, cut, lose])
@pytest.mark.parametrize("level", ["scrub", "content"])
def test_a_damaged_pack_is_stored_again_by_the_next_backup_without_a_deep_one(
    filled: Bench, folder: Path, harm: Callable[[Bench, str], None], level: verify.Level
):
    key = first_data_pack(filled)
    old = [f"{name.series}/{name.point}" for name in filled.open().points()]
    harm(filled, key)

    outcome = verified(filled, level)
    finding = next(f for f in outcome.findings if f.object == key)
    assert outcome.damaged == [name_of(key)]
    assert finding.points == old
    assert {path.rpartition(b"/home/")[2] for path in finding.paths} == {b"a/one", b"a/two", b"b/three"}

    made = filled.back_up(folder)
    assert made.state == "complete"
    assert made.stats.bytes_read >= sum(len(data) for data in FILES.values())
    vault = filled.open()
    assert contents(vault, vault.find(made.point), below=folder) == on_disk(folder)
    assert name_of(key) not in {pack.name for pack in vault.root(vault.find(made.point)).needed}

    outcome = verified(filled, "content")
    assert outcome.lost == old
    assert [f.object for f in outcome.findings] == [key]
    assert verified(filled, "content", points=(made.point,)).state == "complete"
    assert filled.back_up(folder).stats.bytes_new == 0


@pytest.mark.invariant(29)
@pytest.mark.parametrize("harm", [rot, cut, lose])
def test_after_a_backup_that_still_had_the_data_a_compaction_makes_the_old_points_whole(
    filled: Bench, folder: Path, harm: Callable[[Bench, str], None]
):
    before = {name: contents(filled.open(), name) for name in filled.open().points()}
    key = first_data_pack(filled)
    harm(filled, key)
    verified(filled, "scrub")
    filled.back_up(folder)
    assert compacted(filled).state == "complete"
    vault = filled.open()
    assert {name: contents(vault, name) for name in before} == before
    pruned(filled)
    pruned(filled)
    outcome = verified(filled, "content")
    assert (outcome.state, outcome.findings, outcome.damaged) == ("complete", [], [])
    assert key not in {stored.key for stored in filled.storage.scan("packs/")}


@pytest.mark.parametrize("harm", [rot, cut, lose])
@pytest.mark.parametrize("level", ["structure", "scrub", "content"])
def test_a_damaged_listing_is_written_again_by_the_next_backup(
    filled: Bench, folder: Path, harm: Callable[[Bench, str], None], level: verify.Level
):
    key = newest_listing(filled)
    first, second = filled.open().points()
    harm(filled, key)

    outcome = verified(filled, level)
    finding = next(f for f in outcome.findings if f.object == key)
    assert outcome.damaged == [name_of(key)]
    assert finding.points == outcome.lost == [f"{second.series}/{second.point}"]
    assert sum(f.files for f in outcome.findings) == 5

    made = filled.back_up(folder)
    vault = filled.open()
    assert contents(vault, vault.find(made.point), below=folder) == on_disk(folder)
    assert made.stats.bytes_new == 0  # the files themselves were never damaged
    assert verified(filled, "content").lost == outcome.lost


@pytest.mark.parametrize("level", LEVELS)
def test_every_level_notes_a_pack_that_is_gone(filled: Bench, level: verify.Level):
    key = first_data_pack(filled)
    lose(filled, key)
    assert verified(filled, level).damaged == [name_of(key)]
    assert verified(filled, level).damaged == [name_of(key)]


def test_a_pack_that_no_point_needs_is_noted_too_because_a_backup_could_use_it(filled: Bench, folder: Path):
    filled.storage.delete([stored.key for stored in filled.storage.scan("points/")])
    key = first_data_pack(filled)
    rot(filled, key)
    assert verified(filled, "scrub").damaged == [name_of(key)]
    made = filled.back_up(folder)
    vault = filled.open()
    assert contents(vault, vault.find(made.point), below=folder) == on_disk(folder)


@pytest.mark.parametrize("level", ["scrub", "content"])
def test_the_note_goes_when_the_pack_is_read_whole_again(filled: Bench, folder: Path, level: verify.Level):
    key = first_data_pack(filled)
    whole = filled.storage.get(key)
    lose(filled, key)
    verified(filled, "inventory")
    filled.storage.put(key, whole)
    assert verified(filled, "structure").damaged == [name_of(key)]  # it is there: nobody has read it yet
    outcome = verified(filled, level)
    assert (outcome.state, outcome.damaged, outcome.healed) == ("complete", [], [name_of(key)])
    assert filled.back_up(folder).stats.bytes_new == 0


def test_a_pack_that_rots_twice_is_noted_twice(filled: Bench):
    key = first_data_pack(filled)
    for _ in range(2):
        rot(filled, key)
        assert verified(filled, "scrub").damaged == [name_of(key)]
        rot(filled, key)
        assert verified(filled, "scrub").damaged == []


@pytest.mark.parametrize("harm", [rot, cut, lose])
def test_a_restore_that_meets_a_damaged_pack_notes_it(
    filled: Bench, tmp_path: Path, harm: Callable[[Bench, str], None]
):
    key = first_data_pack(filled)
    harm(filled, key)
    (tmp_path / "target").mkdir()
    assert restored(filled, tmp_path / "target").state == "partial_complete"
    assert damaged_packs(filled.storage) == {name_of(key)}


def test_a_forged_note_of_damage_stops_no_backup_and_is_found(filled: Bench, folder: Path):
    key = first_data_pack(filled)
    filled.storage.put(DAMAGED_PREFIX + name_of(key), b"forged")
    assert filled.back_up(folder).state == "complete"
    assert [f.damage for f in verified(filled, "structure").findings] == ["control"]
    assert verified(filled, "content").healed == [name_of(key)]
    assert verified(filled, "structure").findings == []


def test_a_damaged_pack_is_forbidden_to_sessions_that_open_later(filled: Bench):
    keys = filled.open().keys
    note_damaged(filled.storage, keys, ["a" * 64])
    session = Session.open(filled.storage, keys, name="s", verb="backup", now=START)
    assert session.forbidden == {"a" * 64}


def test_a_prune_drops_the_notes_of_packs_that_are_gone_and_that_nobody_needs(filled: Bench):
    there = name_of(first_data_pack(filled))
    assert note_damaged(filled.storage, filled.open().keys, [there, "idle"]) == sorted([there, "idle"])
    assert note_damaged(filled.storage, filled.open().keys, ["idle"]) == []
    pruned(filled)
    assert damaged_packs(filled.storage) == {there}


def test_what_is_read_wrong_once_is_no_damage(filled: Bench, monkeypatch: pytest.MonkeyPatch):
    key = first_data_pack(filled)
    answers = [b"wrong"]
    get = Memory.get

    def unsteady(self: Memory, name: str, *, offset: int = 0, length: int | None = None) -> bytes:
        return answers.pop() if name == key and answers else get(self, name, offset=offset, length=length)

    monkeypatch.setattr(Memory, "get", unsteady)
    outcome = verified(filled, "scrub")
    assert (answers, outcome.state, outcome.damaged) == ([], "complete", [])


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_no_fault_makes_a_verification_call_a_damaged_pack_whole_or_forget_it(bench: Bench, folder: Path, flavour: str):
    bench.back_up(folder)
    key = first_data_pack(bench)
    verified(bench, "scrub")
    first = Ledger.load(bench.storage, bench.open().keys).read_at[name_of(key)]
    rot(bench, key)
    for run in broken_runs(bench, lambda bench: verified(bench, "scrub"), FLAVOURS[flavour]):
        with contextlib.suppress(EngineError):
            outcome = verified(run.above, "scrub")
            assert key in [finding.object for finding in outcome.findings] or run.mode is Mode.WRONG
        run.faulty.settle()
        again = verified(run.below, "scrub")
        assert ([finding.object for finding in again.findings], again.damaged) == ([key], [name_of(key)])
        ledger = Ledger.load(run.below.storage, run.below.open().keys)
        assert ledger.unreadable == []
        is_lost = name_of(key) not in ledger.read_at
        assert ledger.read_at.get(name_of(key), first) == first
        assert not is_lost or (run.mode is Mode.WRONG and FLAVOURS[flavour].times == 0)  # it looked damaged twice
        assert len([name for name in ledger.read_at if name != name_of(key)]) >= 3


def test_a_rebuild_goes_on_around_damaged_packs(filled: Bench, folder: Path):
    lose(filled, first_data_pack(filled))
    verified(filled, "inventory")
    made = filled.back_up(folder)
    assert [row.point for row in rebuilt(filled).rows][-1] == made.point
    vault = filled.open()
    assert contents(vault, vault.find(made.point), below=folder) == on_disk(folder)
