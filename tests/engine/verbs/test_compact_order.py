"""Compactions beside backups, prunes, expiry and each other, in many orders of their storage calls, with kills.

After each order every visible point is whole, and everything that a backup reported as done is there.
"""

import random
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest

from engine.verbs import backup
from tests.support.compaction import compacted, end_point, noise, sparse_vault
from tests.support.interleaving import Actor, as_stored, back_up, interleave, lost
from tests.support.runs import backed_up
from tests.support.vaults import Bench, pruned, write_files

pytestmark = pytest.mark.slow


class Start(NamedTuple):
    """A vault with a sparse pack, a point that ends, and folders that hold alive, dead and new content."""

    bench: Bench
    home: Path
    folders: list[Path]
    doomed: str


@pytest.fixture
def start(tmp_path: Path) -> Start:
    bench, home = Bench(), tmp_path / "home"
    doomed = backed_up(
        bench, write_files(tmp_path / "doomed", {"f1": noise(1), "f3": noise(3, 20_000)}), series="doomed"
    )
    sparse_vault(bench, home)
    alive, dead = noise(3, 20_000), noise(1, 20_000)
    folders = [write_files(tmp_path / f"new{n}", {"a": alive, "b": dead, "own": noise(50 + n)}) for n in range(2)]
    return Start(bench, home, folders, doomed.point)


def pruned_twice(bench: Bench, *, lease_s: int) -> None:
    for _ in range(2):
        pruned(bench, lease_s=lease_s)


def play(start: Start, seed: int) -> str:
    """Run one order; return what was lost."""
    rng = random.Random(seed)
    bench = start.bench.twin()
    backups = [
        Actor(f"backup{n}", bench, partial(back_up, start.folders[n], f"s{n}")) for n in range(rng.choice((0, 1, 2)))
    ]
    if rng.random() < 0.5:
        backups.append(Actor("next", bench, lambda own: backed_up(own, start.home)))
    actors = list(backups)
    for n in range(rng.choice((1, 2))):
        lease_s = rng.choice((0, 0, 7200))
        actors.append(Actor(f"prune{n}", bench, partial(pruned_twice, lease_s=lease_s)))
    for n in range(rng.choice((1, 1, 2))):
        actors.append(Actor(f"compact{n}", bench, compacted))
    if rng.random() < 0.5:
        actors.append(Actor("expire", bench, lambda own: end_point(own, "doomed", start.doomed)))
    interleave(actors, rng, kill_share=rng.choice((0.0, 0.001, 0.01)))
    truth = {f"s{n}": as_stored(folder) for n, folder in enumerate(start.folders)}
    truth |= {"doomed": as_stored(start.home.parent / "doomed"), "home": as_stored(start.home)}
    promised = [actor.result.point for actor in backups if isinstance(actor.result, backup.Outcome)]
    found = lost(bench, truth, promised)
    for lease_s in (7200, 0, 0):  # what was begun is brought to its end, and loses nothing either
        found = found or lost(bench, truth, promised)
        if not found:
            pruned(bench, lease_s=lease_s)
            compacted(bench)
    return found or lost(bench, truth, promised)


@pytest.mark.invariant(1, 2, 3, 4, 5, 6, 7)
@pytest.mark.parametrize("part", range(4))
def test_no_order_of_the_calls_loses_anything(start: Start, part: int):
    for seed in range(part * 1000, part * 1000 + 30):
        assert play(start, seed) == "", f"seed {seed}"
