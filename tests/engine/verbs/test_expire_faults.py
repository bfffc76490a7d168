"""Every storage call of an expiry fails in every way: what must stay stays whole, and the next run ends what was begun.

As in test_faults: for each call of a clean run and each fault the run is done again from the same start. Engine
invariants 1, 3 and 13.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.errors import EngineError
from engine.retention import Rules
from engine.storage import Retrying
from engine.storage.faulty import Fault, Faulty, Mode
from engine.verbs.hold import Holds, hold, release
from tests.engine.verbs.test_faults import FLAVOURS, Broken, Flavour, points
from tests.support.expiry import expired, parts, text, visible
from tests.support.runs import backed_up
from tests.support.vaults import Bench, contents, on_disk, verified, write_files

pytestmark = pytest.mark.slow

MODES = {
    "put": (Mode.BEFORE, Mode.AFTER, Mode.DELAYED, Mode.SLOW),
    "get": (Mode.BEFORE, Mode.SHORT, Mode.WRONG, Mode.SLOW),
    "scan": (Mode.BEFORE, Mode.AFTER),
    "delete": (Mode.BEFORE, Mode.AFTER, Mode.DELAYED, Mode.SLOW),
    "locked_until": (Mode.BEFORE, Mode.AFTER),
}
KEEP_TWO = Rules(days=0, last=2)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_files(tmp_path / "home", {"a/one": b"1" * 1000, "a/two": b"2" * 2000})


@pytest.fixture
def truth(bench: Bench, folder: Path) -> dict[str, dict[bytes, bytes]]:
    """Three points, the first of them held by nobody and wanted by no rule; point -> what it must hold."""
    for number in range(3):
        write_files(folder, {"a/two": bytes([number]) * 2000})
        backed_up(bench, folder)
    vault = bench.open()
    return {name.point: contents(vault, name, below=folder) for name in vault.points()}


def broken_runs(start: Bench, flavour: Flavour) -> Iterator[Broken]:
    """Yield a fresh copy for every call of an expiry and every fault that can hit it."""
    counting = Faulty(start.twin().storage)
    expired(start.over(counting), default=KEEP_TWO)
    assert {call.verb for call in counting.calls} == MODES.keys()
    for at, call in enumerate(counting.calls, 1):
        for mode in MODES[call.verb]:
            bare = start.twin()
            fault = Fault(at, mode, times=flavour.times, error=flavour.error)
            faulty = Faulty(bare.storage, [fault], sleep=lambda _: None)
            store = Retrying(faulty, attempts=3, sleep=lambda _: None) if flavour.retried else faulty
            yield Broken(bare, bare.over(store), faulty, mode)


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_an_expiry_survives_every_fault(bench: Bench, folder: Path, truth: dict[str, dict[bytes, bytes]], flavour: str):
    first, *others = sorted(truth)
    runs = survived = 0
    for run in broken_runs(bench, FLAVOURS[flavour]):
        runs += 1
        try:
            outcome = expired(run.above, default=KEEP_TWO)
            survived += 1
            if run.mode is not Mode.WRONG:  # a root that was misread is left for the next run, and told
                assert outcome.state == "complete"
                assert outcome.deleted == [f"home/{first}"]
        except EngineError:
            assert not FLAVOURS[flavour].is_survived or run.mode is Mode.WRONG
        [name] = [one for one in (*bench.open().points("home"),) if one.point == first]
        found = parts(run.below, name)
        assert found in ({"root", "commit"}, {"root", "commit", "expired"}, {"root", "expired"}, {"expired"})
        run.faulty.settle()
        assert points(run.below) - {first} == set(others)
        vault = run.below.open()
        for kept in vault.points():
            assert contents(vault, kept, below=folder) == truth[kept.point]
        # Whatever stopped it, the next run ends it; late effects of the first do no harm.
        last = expired(run.below, default=KEEP_TWO)
        assert last.state == "complete"
        assert parts(run.below, name) == {"expired"}
        assert points(run.below) == set(others)
        assert len(list(run.below.storage.scan("expiry/"))) <= 2
    assert runs > 60
    assert survived > 0


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_nothing_but_the_point_and_the_notes_is_ever_deleted(
    bench: Bench, folder: Path, truth: dict[str, dict[bytes, bytes]], flavour: str
):
    first = min(truth)
    before = bench.objects()
    for run in broken_runs(bench, FLAVOURS[flavour]):
        try:
            expired(run.above, default=KEEP_TWO)
        except EngineError:
            pass
        run.faulty.settle()
        after = run.below.objects()
        gone = before.keys() - after.keys()
        assert gone <= {f"points/home/{first}/commit", f"points/home/{first}/root"}
        assert {key: after[key] for key in before.keys() - gone} == {key: before[key] for key in before.keys() - gone}
        assert {key.split("/")[0] for key in after.keys() - before.keys()} <= {"points", "expiry"}
    assert verified(bench, "content").state == "complete"


@pytest.mark.parametrize("mode", [Mode.BEFORE, Mode.AFTER, Mode.DELAYED, Mode.WRONG])
def test_a_hold_is_only_claimed_when_it_counts(bench: Bench, folder: Path, mode: Mode):
    backed_up(bench, folder)
    name = bench.open().find("latest")
    counting = Faulty(bench.twin().storage)
    clean = bench.over(counting)
    hold(clean.open(), name, reason="", now=bench.clock())
    for at in range(1, len(counting.calls) + 1):
        bare = bench.twin()
        faulty = Faulty(bare.storage, [Fault(at, mode)])
        try:
            hold(bare.over(faulty).open(), name, reason="", now=bare.clock())
            claimed = True
        except EngineError:
            claimed = False
        assert name in Holds(bare.storage) or not claimed
        faulty.settle()
        if claimed:
            assert expired(bare, points=(text(name),)).expired == []
        release(bare.open(), name)
        assert expired(bare, points=(text(name),)).expired == [text(name)]
        assert visible(bare) == set()


def test_a_rewritten_file_of_the_fixture_is_what_the_points_hold(bench: Bench, folder: Path, truth):
    """The comparison above can fail: the points differ from each other, and the last one is what is on disk."""
    assert len({tuple(sorted(held.items())) for held in truth.values()}) == 3
    assert truth[max(truth)] == on_disk(folder)
