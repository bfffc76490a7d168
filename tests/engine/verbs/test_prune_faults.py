"""Every storage call of a prune fails once in every way: no point is harmed, and later prunes end what was begun."""

import copy
import datetime as dt
import random
from pathlib import Path

import pytest

from engine.errors import EngineError
from engine.ids import new_ulid
from engine.storage.faulty import Mode
from tests.engine.verbs.test_faults import FLAVOURS, assert_whole, broken_runs, points
from tests.engine.verbs.test_prune import expire, needed, packs
from tests.support.runs import backed_up
from tests.support.vaults import Bench, contents, pruned, write_files

pytestmark = pytest.mark.slow

NOISE = random.Random(5)


@pytest.fixture
def start(tmp_path: Path) -> Bench:
    """A vault with a kept point, garbage, tombstones, a run whose session has ended meanwhile, and a dead session."""
    bench = Bench()
    home = tmp_path / "home"
    gone = []
    for _ in range(3):
        write_files(home, {"big": NOISE.randbytes(1000), "small": NOISE.randbytes(20)})
        gone.append(backed_up(bench, home).point)
    backed_up(bench, write_files(tmp_path / "kept", {"file": NOISE.randbytes(500)}), series="kept")
    expire(bench, gone[0])
    pruned(bench)
    expire(bench, gone[1])
    reader = bench.open().open_session(new_ulid(bench.clock()), verb="restore", now=bench.clock())
    assert pruned(bench).waiting == [reader.name]
    reader.close("done", bench.clock())
    expire(bench, gone[2])
    bench.open().open_session(new_ulid(bench.clock()), verb="backup", now=bench.clock())
    bench.clock.time += dt.timedelta(hours=5)
    return bench


@pytest.mark.invariant(1, 4, 20)
@pytest.mark.parametrize("flavour", FLAVOURS)
def test_a_prune_survives_every_fault(start: Bench, flavour: str):
    truth = {name.point: contents(start.open(), name) for name in start.open().points()}
    truth[""], kept = {}, points(start)
    runs = refused = 0
    for run in broken_runs(start, pruned, FLAVOURS[flavour]):
        runs += 1
        clock = copy.copy(run.below.clock)
        run.below.clock = run.above.clock = clock
        try:
            outcome = pruned(run.above)
            # Wrong bytes of a root or a listing are what a prune must refuse to work with.
            assert outcome.state != "failed" or run.mode is Mode.WRONG
            refused += outcome.state == "failed"
        except EngineError:
            assert not FLAVOURS[flavour].is_survived or run.mode is Mode.WRONG
        assert_whole(run.below, truth)
        run.faulty.settle()
        assert_whole(run.below, truth)
        assert points(run.below) == kept
        for _ in range(2):
            pruned(run.below)
        assert_whole(run.below, truth)
        assert packs(run.below) == needed(run.below)
    assert runs > 100
    assert refused < 20
