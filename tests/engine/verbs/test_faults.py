"""Every storage call of every verb fails once in every way: nothing is lost, and nothing is claimed that is not so.

For each call of a clean run and each fault the run is done again from the same start. Afterwards every visible point
is whole, a new one is visible if and only if success was reported (CommitUnknown says neither), nothing was written
over, and a clean run succeeds. Engine invariants 1, 2 and 3.
"""

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from engine.errors import CommitUnknown, EngineError, Forbidden, StorageError, Unavailable
from engine.ids import pack_key
from engine.storage import Retrying
from engine.storage.faulty import Fault, Faulty, Mode
from tests.support.runs import backed_up, landed, restored
from tests.support.vaults import Bench, contents, on_disk, verified, write_files

pytestmark = pytest.mark.slow

MODES = {
    "put": (Mode.BEFORE, Mode.AFTER, Mode.DELAYED, Mode.SLOW),
    "get": (Mode.BEFORE, Mode.SHORT, Mode.WRONG, Mode.SLOW),
    "scan": (Mode.BEFORE, Mode.AFTER),
    "delete": (Mode.BEFORE, Mode.AFTER, Mode.DELAYED, Mode.SLOW),
    "locked_until": (Mode.BEFORE, Mode.SLOW),
}


class Flavour(NamedTuple):
    """How long a fault lasts, what it raises, and whether calls are repeated."""

    times: int
    error: Callable[[str], StorageError]
    retried: bool

    @property
    def is_survived(self) -> bool:
        return self.retried and self.times == 1


FLAVOURS = {
    "once": Flavour(1, Unavailable, retried=False),
    "from then on, for good": Flavour(0, Forbidden, retried=False),
    "once, with retries": Flavour(1, Unavailable, retried=True),
    "from then on, with retries": Flavour(0, Unavailable, retried=True),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_files(tmp_path / "home", {"a/one": b"1" * 1000, "a/two": b"2" * 2000, "empty": b""})


class Broken(NamedTuple):
    """One run to make: the bench as it is below the fault, and above it."""

    below: Bench
    above: Bench
    faulty: Faulty
    mode: Mode


def broken_runs(start: Bench, act: Callable[[Bench], object], flavour: Flavour) -> Iterator[Broken]:
    """Yield a fresh copy for every call that `act` makes on a whole store and every fault that can hit it."""
    clean = start.twin()
    counting = Faulty(clean.storage)
    clean.storage = counting
    act(clean)
    for at, call in enumerate(counting.calls, 1):
        for mode in MODES[call.verb]:
            below = start.twin()
            fault = Fault(at, mode, times=flavour.times, error=flavour.error)
            faulty = Faulty(below.storage, [fault], sleep=lambda _: None)
            above = copy.copy(below)
            above.storage = Retrying(faulty, attempts=3, sleep=lambda _: None) if flavour.retried else faulty
            yield Broken(below, above, faulty, mode)


def assert_whole(bench: Bench, truth: dict[str, dict[bytes, bytes]]) -> None:
    """Check that each visible point has its packs and the content that it must have (`""` stands for new points)."""
    vault = bench.open()
    present = {stored.key: stored.size for stored in bench.storage.scan("")}
    for name in vault.points():
        for pack in vault.root(name).packs:
            assert present[pack_key(pack.kind, pack.name)] == pack.size
        assert contents(vault, name) == truth.get(name.point, truth[""])


def points(bench: Bench) -> set[str]:
    return {name.point for name in bench.open().points()}


def assert_backups_survive(start: Bench, folder: Path, flavour: Flavour) -> None:
    truth = {name.point: contents(start.open(), name) for name in start.open().points()}
    truth[""] = {bytes(folder)[1:] + b"/" + path: data for path, data in on_disk(folder).items()}
    before = start.objects()
    runs = unknown = 0
    for run in broken_runs(start, lambda bench: backed_up(bench, folder), flavour):
        runs += 1
        try:
            made = {backed_up(run.above, folder).point}
            assert points(run.below) == made | (truth.keys() - {""})
        except CommitUnknown:
            # An answer that was lost after the effect can be looked up, unless nothing answers any more.
            assert run.mode is not Mode.AFTER or flavour.times == 0
            made = None
            unknown += 1
        except EngineError:
            assert not flavour.is_survived or run.mode is Mode.WRONG
            made = set()
        run.faulty.settle()
        if made is not None:
            assert points(run.below) == made | (truth.keys() - {""})
        assert_whole(run.below, truth)
        after = run.below.objects()
        assert {key: after[key] for key in before} == before
        assert backed_up(run.below, folder).state == "complete"
        assert_whole(run.below, truth)
        assert not [call for call in run.faulty.calls if call.verb == "delete"]
    assert runs > 80
    assert unknown < 10


@pytest.mark.invariant(1, 2, 3)
@pytest.mark.parametrize("flavour", FLAVOURS)
def test_a_first_backup_survives_every_fault(bench: Bench, folder: Path, flavour: str):
    assert_backups_survive(bench, folder, FLAVOURS[flavour])


@pytest.mark.invariant(1, 2, 3)
@pytest.mark.parametrize("flavour", FLAVOURS)
def test_an_incremental_backup_survives_every_fault(bench: Bench, folder: Path, flavour: str):
    backed_up(bench, folder)
    write_files(folder, {"a/two": b"changed", "new": b"new"})
    assert_backups_survive(bench, folder, FLAVOURS[flavour])


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_a_restore_writes_nothing_wrong_whatever_fails(bench: Bench, folder: Path, tmp_path: Path, flavour: str):
    backed_up(bench, folder)
    write_files(folder, {"a/two": b"changed"})
    backed_up(bench, folder)
    truth, before = on_disk(folder), bench.objects()
    count = iter(range(100_000))

    def act(bench: Bench) -> Path:
        target = tmp_path / f"target{next(count)}"
        target.mkdir()
        outcome = restored(bench, target)
        found = on_disk(landed(target, folder))
        assert (outcome.state == "complete") == (found == truth)
        return target

    for run in broken_runs(bench, act, FLAVOURS[flavour]):
        try:
            act(run.above)
        except EngineError:
            assert not FLAVOURS[flavour].is_survived or run.mode is Mode.WRONG
        run.faulty.settle()
        latest = max(tmp_path.glob("target*"), key=lambda path: int(path.name[6:]))
        found = on_disk(landed(latest, folder)) if landed(latest, folder).exists() else {}
        assert all(truth[path] == data for path, data in found.items())
        after = run.below.objects()
        assert {key: after[key] for key in before} == before
        noted = {"damaged"} if run.mode is Mode.WRONG and FLAVOURS[flavour].times == 0 else set()
        assert {key.split("/")[0] for key in after.keys() - before.keys()} <= {"sessions"} | noted
        assert restored(run.below, latest, same_name="overwrite").state == "complete"
        assert on_disk(landed(latest, folder)) == truth


@pytest.mark.invariant(9)
@pytest.mark.parametrize("flavour", FLAVOURS)
def test_a_verification_calls_nothing_whole_that_it_could_not_read(bench: Bench, folder: Path, flavour: str):
    backed_up(bench, folder)
    before = bench.objects()
    for run in broken_runs(bench, lambda bench: verified(bench, "content"), FLAVOURS[flavour]):
        try:
            outcome = verified(run.above, "content")
            in_the_read_objects = run.mode is Mode.WRONG and bool(run.faulty.fired)
            assert outcome.state == "complete" or in_the_read_objects
        except EngineError:
            assert not FLAVOURS[flavour].is_survived or run.mode is Mode.WRONG
        run.faulty.settle()
        after = run.below.objects()
        assert {key: after[key] for key in before} == before
        assert {key.split("/")[0] for key in after.keys() - before.keys()} <= {"sessions", "verify", "damaged"}
        again = verified(run.below, "content")
        assert (again.state, again.damaged) == ("complete", [])
