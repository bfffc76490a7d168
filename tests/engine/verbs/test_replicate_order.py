"""Replications beside backups, expiry and prunes of both ends, in random orders of all their storage calls, with kills.

After each order every point that the replica shows is whole, and what a replication reported as brought is there.
Each step of the protocol that is taken away makes some order lose data. Engine invariants 21 and 22.
"""

import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from engine.session import Session
from engine.verbs import prune, resolve, sweep
from tests.engine.verbs.test_interleaving import DOOMED, GARBAGE, expire, prune_twice
from tests.support.interleaving import Actor, as_stored, back_up, interleave, lost
from tests.support.replication import Replica, replicated
from tests.support.runs import backed_up
from tests.support.vaults import Bench, pruned, write_files

pytestmark = pytest.mark.slow


class Start(NamedTuple):
    """A source and a replica that has most of it; `doomed` points may expire at either end."""

    target: Replica
    folders: list[Path]
    doomed: dict[str, str]


@pytest.fixture
def start(tmp_path: Path) -> Start:
    source = Bench()
    content = {"old": GARBAGE, "doomed": DOOMED, "kept": b"kept" * 50}
    points = {
        name: backed_up(source, write_files(tmp_path / name, {"file": data}), series=name).point
        for name, data in content.items()
    }
    target = Replica(source)
    replicated(target)
    folders = [write_files(tmp_path / f"new{n}", {"a": GARBAGE, "b": DOOMED, "own": b"%d" % n * 70}) for n in range(2)]
    backed_up(source, folders[1], series="s1")
    for bench in (source, target):
        pruned(bench)
    return Start(target, folders, {name: points[name] for name in ("old", "doomed")})


def replicate_twice(target: Bench) -> list[str]:
    assert isinstance(target, Replica)
    return [point for _ in range(2) for point in replicated(target).points]


def play(start: Start, seed: int) -> str:
    """Run one order; return what was lost."""
    rng = random.Random(seed)
    target = start.target.pair()
    source = target.source
    actors = [Actor(f"replicate{n}", target, replicate_twice) for n in range(rng.choice((1, 2)))]
    replications = list(actors)
    if rng.random() < 0.5:
        actors.append(Actor("backup", source, partial(back_up, start.folders[0], "s0")))
    for series in start.doomed:
        for bench, share in ((source, 0.5), (target, 0.7)):
            if rng.random() < share:
                end = partial(expire_one, series, start.doomed[series])
                actors.append(Actor(f"expire {series}", bench, end))
    for bench in (source, target, target):
        if rng.random() < 0.7:
            actors.append(Actor("prune", bench, partial(prune_twice, rng.choice((0, 0, 7200)))))
    interleave(actors, rng, kill_share=0.01 if rng.random() < 0.5 else 0.0)
    truth = {f"s{n}": as_stored(folder) for n, folder in enumerate(start.folders)}
    truth |= {name: as_stored(start.folders[0].parent / name) for name in ("old", "doomed", "kept")}
    brought = {shown for actor in replications if isinstance(actor.result, list) for shown in actor.result}
    promised = [shown.partition("/")[2] for shown in brought if shown.partition("/")[0] not in start.doomed]
    found = lost(target, truth, promised)
    for lease_s in (7200, 0, 0):  # what was begun is brought to its end, and loses nothing either
        if not found:
            pruned(target, lease_s=lease_s)
            found = lost(target, truth, promised)
    return found or later(target, truth, promised)


def later(target: Replica, truth: dict[str, dict[bytes, bytes]], promised: list[str]) -> str:
    """Say what is lost when replication goes on, and whether anything that the source shows does not come."""
    outcome = replicated(target)
    if found := lost(target, truth, promised):
        return found
    here, gone = set(target.open().points()), {name for name in target.source.open().points() if name.series in truth}
    missing = {name for name in gone - here if name.series not in ("old", "doomed")}
    return f"{missing} never come: {outcome.problems}" if missing else ""


def expire_one(series: str, point: str, bench: Bench) -> None:
    expire(bench, series, point)


@pytest.mark.invariant(21, 22)
@pytest.mark.parametrize("part", range(4))
def test_no_order_of_the_calls_leaves_a_point_at_the_replica_that_is_not_whole(start: Start, part: int):
    for seed in range(part * 1000, part * 1000 + 40):
        assert play(start, seed) == "", f"seed {seed}"


@pytest.fixture
def unsparing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let prunes of the replica condemn what only the source needs: then the sessions alone keep points whole."""
    monkeypatch.setattr(prune, "_spared", lambda vault: set())


@pytest.mark.invariant(21)
@pytest.mark.usefixtures("unsparing")
def test_the_sessions_alone_keep_every_point_whole(start: Start):
    for seed in range(80):
        assert "misses" not in play(start, seed), f"seed {seed}"


SESSIONS: dict[str, tuple[Any, str, Callable[..., Any]]] = {
    "a replication does not look at what is condemned": (Session, "_read_forbidden", lambda self, **options: None),
    "a replication does not look for a fence": (Session, "check", lambda self, now: None),
    "a prune waits for nobody": (sweep, "_pass_barrier", lambda *args, **options: None),
}
# An order that lost data when it was last looked for is played first; the search begins when it does no more.
LOSING = {
    "a replication does not look at what is condemned": 108,
    "a replication does not look for a fence": 6,
    "a prune waits for nobody": 9,
    "a prune spares nothing that the source has": 325,
    "a prune takes what is brought in for a dead backup": 272,
}


@pytest.mark.invariant(21)
@pytest.mark.usefixtures("unsparing")
@pytest.mark.parametrize("name", SESSIONS)
def test_without_a_step_of_the_sessions_some_order_loses_data(start: Start, monkeypatch: pytest.MonkeyPatch, name: str):
    monkeypatch.setattr(*SESSIONS[name])
    assert any("misses" in play(start, seed) for seed in (LOSING[name], *range(1000)))


BROKEN: dict[str, tuple[Any, str, Callable[..., Any]]] = {
    "a prune spares nothing that the source has": (prune, "_spared", lambda vault: set()),
    "a prune takes what is brought in for a dead backup": (resolve, "bringing", lambda storage: {}),
}


@pytest.mark.invariant(21)
@pytest.mark.parametrize("name", BROKEN)
def test_without_a_step_of_the_replication_some_order_loses_data(
    start: Start, monkeypatch: pytest.MonkeyPatch, name: str
):
    monkeypatch.setattr(*BROKEN[name])
    assert any(play(start, seed) for seed in (LOSING[name], *range(240, 1240)))
