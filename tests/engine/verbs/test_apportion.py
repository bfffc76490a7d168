"""Whose the bytes of a vault are: parts add up to the whole, and what deleting frees is what a prune then frees."""

import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import Canceled
from engine.ids import pack_key
from engine.point import point_key
from engine.progress import Silent
from engine.vault import PointName
from engine.verbs import apportion
from engine.verbs.apportion import Apportioning, Part, freed_by
from tests.support.vaults import Bench, pruned, replace, write_files

NOISE = random.Random(11)
OWNERS = st.lists(st.lists(st.integers(0, 30), max_size=20), max_size=6)


def naive(needs: list[list[int]], sizes: list[int]) -> dict[str, tuple[int, int, float]]:
    """Divide as the words say: a thing's bytes by the number of its owners."""
    owners = [set(things) for things in needs]
    found = {}
    for number, things in enumerate(owners):
        alone = {one for one in things if sum(one in other for other in owners) == 1}
        fair = sum(sizes[one] / sum(one in other for other in owners) for one in things - alone)
        found[str(number)] = (sum(sizes[i] for i in alone), sum(sizes[i] for i in things - alone), fair)
    return found


@given(OWNERS, st.lists(st.integers(0, 10**12), min_size=31, max_size=31))
def test_the_parts_add_up_to_what_is_needed_and_are_as_the_words_say(needs, sizes):
    shared = Apportioning()
    for number, things in enumerate(needs):
        shared.add(str(number), things)
    parts = shared.parts(np.array(sizes))
    assert sum(part.charged for part in parts.values()) == sum(sizes[i] for i in set().union(*needs))
    for owner, (unique, whole, fair) in naive(needs, sizes).items():
        assert (parts[owner].unique, parts[owner].shared) == (unique, whole)
        assert parts[owner].fair == pytest.approx(fair, abs=len(needs) * 31, rel=1e-9)


def test_a_thing_that_comes_late_and_far_is_divided_as_well():
    shared = Apportioning()
    shared.add("a", [5_000_000, 1])
    shared.add("b", [5_000_000])
    sizes = np.zeros(5_000_001, np.int64)
    sizes[[1, 5_000_000]] = (10, 7)
    assert shared.parts(sizes) == {"a": Part(10, 7, 3), "b": Part(0, 7, 4)}


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """Two hosts that share a pack with a large file; each has packs of its own, and both have two points."""
    bench = Bench()
    common = NOISE.randbytes(300_000)
    bench.back_up(write_files(tmp_path / "one", {"common": common}), series="one")
    bench.back_up(write_files(tmp_path / "one", {"own": NOISE.randbytes(100_000)}), series="one")
    bench.back_up(write_files(tmp_path / "two", {"common": common, "own": NOISE.randbytes(50_000)}), series="two")
    bench.back_up(write_files(tmp_path / "two", {"more": NOISE.randbytes(70_000)}), series="two")
    return bench


def points(bench: Bench, series: str) -> list[PointName]:
    return bench.open().points(series)


def sizes_of(bench: Bench) -> dict[str, int]:
    return {one.key: one.size for folder in ("packs/", "meta/") for one in bench.storage.scan(folder)}


def test_of_a_real_vault_the_parts_add_up_to_its_packs(bench):
    found = apportion.apportion(bench.open(), Silent())
    assert found.bytes_stored == found.bytes_needed == sum(sizes_of(bench).values())
    assert sum(part.charged for part in found.series.values()) == found.bytes_needed
    assert (found.points, found.unreadable) == (4, [])
    one, two = found.series["one"], found.series["two"]
    assert one.shared == two.shared >= 300_000  # the pack that holds the common file
    assert one.fair + two.fair == one.shared
    assert one.unique >= 100_000
    assert two.unique >= 120_000


@pytest.mark.parametrize(("series", "last"), [("one", 1), ("two", 1), ("two", 2)])
def test_what_deleting_frees_is_what_the_next_prune_frees(bench, series, last):
    going = points(bench, series)[-last:]
    told = freed_by(bench.open(), going, Silent(), points_max=10)
    assert told is not None
    before = sizes_of(bench)
    for name in going:
        bench.storage.delete([point_key(*name, "commit"), point_key(*name, "root")])
    pruned(bench)
    gone = before.keys() - sizes_of(bench).keys()
    assert (told.packs, told.bytes, told.points) == (len(gone), sum(before[key] for key in gone), last)
    assert told.bytes > 0


def test_what_all_points_of_a_series_free_is_what_only_it_needs(bench):
    found = apportion.apportion(bench.open(), Silent())
    for series, part in found.series.items():
        freed = freed_by(bench.open(), points(bench, series), Silent(), points_max=10)
        assert freed is not None
        assert freed.bytes == part.unique


def test_a_vault_with_more_points_than_may_be_looked_at_is_not_answered(bench):
    assert freed_by(bench.open(), points(bench, "one"), Silent(), points_max=2) is None


def test_a_root_that_cannot_be_read_is_told_and_needs_nothing(bench):
    whole = apportion.apportion(bench.open(), Silent())
    name = points(bench, "one")[-1]
    replace(bench, point_key(*name, "root"), b"nonsense that is no root")
    found = apportion.apportion(bench.open(), Silent())
    assert [one.object for one in found.unreadable] == [point_key(*name, "root")]
    assert found.series["one"].unique < whole.series["one"].unique
    assert found.bytes_needed < found.bytes_stored
    everything = freed_by(bench.open(), points(bench, "two"), Silent(), points_max=10)
    assert everything is not None
    assert everything.bytes == found.series["two"].unique


def test_roots_with_very_many_packs_are_read_whole(bench, monkeypatch):
    whole = apportion.apportion(bench.open(), Silent())
    monkeypatch.setattr(apportion, "HEAD_BYTES", 40)
    assert apportion.apportion(bench.open(), Silent()) == whole


def test_a_look_can_be_stopped(bench):
    progress = Silent()
    progress.cancel()
    with pytest.raises(Canceled):
        apportion.apportion(bench.open(), progress)


def test_packs_that_no_point_needs_wait_for_a_prune(bench):
    name = points(bench, "two")[-1]
    bench.storage.delete([point_key(*name, "commit"), point_key(*name, "root")])
    found = apportion.apportion(bench.open(), Silent())
    needed = {pack_key(p.kind, p.name) for left in bench.open().points() for p in bench.open().root(left).needed}
    assert found.bytes_needed == sum(size for key, size in sizes_of(bench).items() if key in needed)
    assert found.bytes_needed < found.bytes_stored
