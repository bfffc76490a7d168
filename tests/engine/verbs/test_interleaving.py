"""Backups, prunes, expiry and resolver at once, in thousands of orders of their storage calls, with kills and fences.

After each order every committed point is whole, and everything that a backup reported as done is there. Each step of
the protocol that is taken away makes some order lose data: that is what the last test shows. Engine invariants 1-7.
"""

import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from engine.point import Expired, point_key
from engine.session import Session, put_note
from engine.verbs import backup, sweep
from engine.verbs.needs import Needs
from tests.support.interleaving import Actor, as_stored, back_up, interleave, lost
from tests.support.runs import backed_up
from tests.support.vaults import Bench, pruned, write_files

pytestmark = pytest.mark.slow

GARBAGE, DOOMED = random.Random(1).randbytes(3000), random.Random(2).randbytes(3000)


class Start(NamedTuple):
    """A vault with a pack that nothing needs any more, and folders that hold just what is in it."""

    bench: Bench
    folders: list[Path]
    doomed: str


@pytest.fixture
def start(tmp_path: Path) -> Start:
    bench = Bench()
    content = {"old": GARBAGE, "doomed": DOOMED, "kept": b"kept" * 50}
    points = {
        name: backed_up(bench, write_files(tmp_path / name, {"file": data}), series=name).point
        for name, data in content.items()
    }
    expire(bench, "old", points["old"])
    folders = [write_files(tmp_path / f"new{n}", {"a": GARBAGE, "b": DOOMED, "own": b"%d" % n * 70}) for n in range(2)]
    return Start(bench, folders, points["doomed"])


def expire(bench: Bench, series: str, point: str) -> None:
    """Expire a point, in the order that expiry must have."""
    vault = bench.open()
    note = Expired(point, series, "test", bench.clock())
    put_note(bench.storage, vault.keys, point_key(series, point, "expired"), note)
    bench.storage.delete([point_key(series, point, "commit")])
    bench.storage.delete([point_key(series, point, "root")])


def prune_twice(lease_s: int, bench: Bench) -> None:
    for _ in range(2):
        pruned(bench, lease_s=lease_s)


def play(start: Start, seed: int, *, kill_share: float = 0.01) -> str:
    """Run one order; return what was lost."""
    rng = random.Random(seed)
    bench = start.bench.twin()
    clocks = rng.choice(((0,), (0, -3650, 3650)))
    actors = [
        Actor(f"backup{n}", bench, partial(back_up, start.folders[n], f"s{n}"), clock_days=rng.choice(clocks))
        for n in range(rng.choice((1, 2)))
    ]
    backups = list(actors)
    for n in range(rng.choice((1, 2))):
        lease_s = rng.choice((0, 0, 7200))
        actors.append(Actor(f"prune{n}", bench, partial(prune_twice, lease_s), clock_days=rng.choice(clocks)))
    if rng.random() < 0.5:
        actors.append(Actor("expire", bench, lambda own: expire(own, "doomed", start.doomed)))
    interleave(actors, rng, kill_share=kill_share if rng.random() < 0.5 else 0.0)
    truth = {f"s{n}": as_stored(folder) for n, folder in enumerate(start.folders)}
    truth |= {name: as_stored(start.folders[0].parent / name) for name in ("doomed", "kept")}
    promised = [actor.result.point for actor in backups if isinstance(actor.result, backup.Outcome)]
    found = lost(bench, truth, promised)
    if not found:
        for lease_s in (7200, 0, 0, 0):  # what was begun is brought to its end, and loses nothing either
            pruned(bench, lease_s=lease_s)
            found = found or lost(bench, truth, promised)
    return found


@pytest.mark.invariant(1, 2, 3, 4, 5, 6, 7)
@pytest.mark.parametrize("part", range(4))
def test_no_order_of_the_calls_loses_anything(start: Start, part: int):
    for seed in range(part * 1000, part * 1000 + 50):
        assert play(start, seed) == "", f"seed {seed}"


def no_packs(*args: Any, **options: Any) -> Needs:
    return Needs({}, set(), [], [], [])


BROKEN: dict[str, tuple[Any, str, Callable[..., Any]]] = {
    "sessions do not read what is condemned": (Session, "_read_forbidden", lambda self, **options: None),
    "sessions do not look for a fence": (Session, "check", lambda self, now: None),
    "a prune waits for nobody": (sweep, "_pass_barrier", lambda *args, **options: None),
    "a prune passes dead sessions over without a fence": (sweep, "fence", lambda *args: None),
    "a prune does not look again": (sweep, "look", no_packs),
}
# An order that lost data when it was last looked for is played first; the search begins when it does no more.
LOSING = {
    "sessions do not read what is condemned": 33,
    "sessions do not look for a fence": 6,
    "a prune waits for nobody": 129,
    "a prune passes dead sessions over without a fence": 435,
    "a prune does not look again": 48,
}


@pytest.mark.invariant(4)
@pytest.mark.parametrize("name", BROKEN)
def test_without_a_step_of_the_protocol_some_order_loses_data(start: Start, monkeypatch: pytest.MonkeyPatch, name: str):
    monkeypatch.setattr(*BROKEN[name])
    assert any(play(start, seed) for seed in (LOSING[name], *range(2000)))
