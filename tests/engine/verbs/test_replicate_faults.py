"""Every storage call of a replication fails once in every way, at either end: each visible point is whole all the same.

Engine invariants 21 and 22.
"""

import copy
from pathlib import Path

import pytest

from engine.errors import EngineError
from engine.storage.faulty import Mode
from engine.vault import PointName
from engine.verbs import replicate
from tests.engine.verbs.test_faults import FLAVOURS, broken_runs
from tests.support.compaction import compacted, end_point, noise
from tests.support.replication import Replica, everything, replicated
from tests.support.runs import backed_up
from tests.support.vaults import Bench, pruned, verified, write_files

pytestmark = pytest.mark.slow

THOROUGH = 10  # one in so many is verified to the last byte at both ends


@pytest.fixture
def start(tmp_path: Path) -> Replica:
    """A replica that has one point, of a source that has two more, one of them compacted, and that lost the first."""
    source = Bench()
    home = write_files(tmp_path / "home", {f"f{n}": noise(n, 20_000) for n in range(6)})
    first = backed_up(source, home)
    target = Replica(source)
    replicated(target)
    for n in range(4):
        (home / f"f{n}").unlink()
    backed_up(source, write_files(home, {"later": noise(50)}))
    end_point(source, first.series, first.point)
    assert compacted(source).packs_moved > 0
    for _ in range(2):
        pruned(source)
    backed_up(source, write_files(home, {"last": noise(51)}))
    return target


Truth = dict[PointName, dict[bytes, bytes]]


def whole(target: Replica, truth: Truth) -> None:
    """Check that what the replica shows is as it was made, and that what its source has lost is still there."""
    found = everything(target)
    assert found.items() <= truth.items()
    assert found.keys() >= truth.keys() - set(target.source.open().points())


def attempt(target: Replica, above: Replica, truth: Truth, *, may_fail: bool) -> None:
    try:
        outcome: replicate.Outcome | None = replicated(above)
    except EngineError:
        assert may_fail
        outcome = None
    whole(target, truth)
    if outcome is not None and outcome.state == "complete":
        assert everything(target) == truth


def recovers(target: Replica, truth: Truth, *, thoroughly: bool) -> None:
    """Check that a later replication, and a prune, end what the broken one began."""
    assert replicated(target).state == "complete"
    assert everything(target) == truth
    pruned(target, lease_s=0)
    whole(target, truth)
    if thoroughly:
        pruned(target, lease_s=0)
        assert verified(target, "content").state == "complete"
        assert verified(target.source, "content").state == "complete"
        assert everything(target) == truth


@pytest.mark.invariant(21, 22)
@pytest.mark.parametrize("flavour", FLAVOURS)
def test_a_replication_survives_every_fault_of_the_replicas_store(start: Replica, flavour: str):
    truth = everything(start) | everything(start.source)
    wanted, runs = FLAVOURS[flavour], 0

    def act(target: Bench) -> object:
        assert isinstance(target, Replica)
        return replicated(target)

    for run in broken_runs(start, act, wanted):
        runs += 1
        below, above = run.below, run.above
        assert isinstance(below, Replica)
        assert isinstance(above, Replica)
        below.source = above.source = start.source.twin()
        below.clock = above.clock = below.source.clock
        attempt(below, above, truth, may_fail=not wanted.is_survived or run.mode is Mode.WRONG)
        run.faulty.settle()
        recovers(below, truth, thoroughly=runs % THOROUGH == 0)
    assert runs > 100


@pytest.mark.invariant(21, 22)
@pytest.mark.parametrize("flavour", FLAVOURS)
def test_a_replication_survives_every_fault_of_the_sources_store(start: Replica, flavour: str):
    truth = everything(start) | everything(start.source)
    wanted, runs = FLAVOURS[flavour], 0

    def act(source: Bench) -> object:
        return replicated(start.pair().beside(source))

    for run in broken_runs(start.source, act, wanted):
        runs += 1
        below = copy.copy(start.twin())
        assert isinstance(below, Replica)
        below.source, below.clock = run.below, run.below.clock
        above = below.beside(run.above)
        attempt(below, above, truth, may_fail=not wanted.is_survived or run.mode is Mode.WRONG)
        run.faulty.settle()
        recovers(below, truth, thoroughly=runs % THOROUGH == 0)
    assert runs > 40
