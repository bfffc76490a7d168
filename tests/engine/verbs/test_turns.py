"""Every byte is read within its period, whatever grows, shrinks or is lost meanwhile (engine invariant 29)."""

import datetime as dt
import os
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import Forbidden
from engine.ids import digest_name, new_ulid
from engine.keys import Keys
from engine.ledger import PREFIX as LEDGER
from engine.ledger import Ledger, Reading
from engine.progress import Silent
from engine.storage import Memory
from engine.storage.port import Refusal
from engine.verbs import verify
from engine.verbs.turns import choose
from tests.support.vaults import START, Bench, flip, verified, write_files

pytestmark = pytest.mark.slow

DAY = dt.timedelta(days=1)
KEYS = Keys.create()
SIZES = st.lists(st.integers(1, 1000), max_size=6)


class Days:
    """A vault of named sizes, scrubbed once a day with a real ledger."""

    def __init__(self, sizes: list[int]) -> None:
        self.storage = Memory()
        self.sizes: dict[str, int] = {}
        self.day = 0
        self.read: list[set[str]] = []
        self.grow(sizes)

    def grow(self, sizes: list[int]) -> None:
        self.sizes |= {f"{len(self.sizes) + number}-{self.day}": size for number, size in enumerate(sizes)}

    def scrub(self, *, days: int = 0, bytes_max: int = 0) -> None:
        """Do what plan and record do, without reading anything."""
        now = START + self.day * DAY
        ledger = Ledger.load(self.storage, KEYS, now=now)
        turn = choose(self.sizes, ledger, now, days=days, bytes_max=bytes_max, seed=str(self.day))
        unknown = [name for name in self.sizes if name not in turn and ledger.since(name) is None]
        ledger.note(Reading(now, read=sorted(turn), seen=unknown))
        ledger.tidy(objects=self.sizes, points=[])
        self.read.append(turn)
        self.day += 1

    def longest(self) -> int:
        """Return for how many days the longest waiting object was neither seen first nor read."""
        ledger = Ledger.load(self.storage, KEYS)
        now = START + (self.day - 1) * DAY
        return max((now - (ledger.since(name) or START)).days for name in self.sizes)


@pytest.mark.invariant(29)
@settings(max_examples=25, deadline=None)
@given(first=SIZES.filter(bool), grown=st.lists(SIZES, min_size=70, max_size=90))
def test_a_thirtieth_a_day_reads_every_byte_within_thirty_days_while_the_vault_grows(
    first: list[int], grown: list[list[int]]
):
    days = Days(first)
    for sizes in grown:
        days.scrub(bytes_max=-(-sum(days.sizes.values()) // 30))
        assert days.longest() <= 30
        days.grow(sizes)


@pytest.mark.invariant(29)
@settings(max_examples=25, deadline=None)
@given(
    first=SIZES.filter(bool),
    changes=st.lists(st.tuples(SIZES, st.integers(0, 3)), min_size=40, max_size=60),
    period=st.integers(2, 30),
    seed=st.randoms(use_true_random=False),
)
def test_a_period_holds_in_a_vault_that_shrinks_too(
    first: list[int], changes: list[tuple[list[int], int]], period: int, seed: random.Random
):
    days = Days(first)
    for sizes, deleted in changes:
        days.scrub(days=period)
        assert days.longest() < period
        days.grow(sizes)
        for name in seed.sample(sorted(days.sizes), k=min(deleted, len(days.sizes) - 1)):
            del days.sizes[name]


def test_a_day_reads_hardly_more_than_its_share():
    days = Days([10] * 300)
    for _ in range(60):
        days.scrub(days=30)
    assert max(len(turn) for turn in days.read) <= 20
    assert sum(len(turn) for turn in days.read) / 60 < 12


def test_what_was_missed_for_weeks_is_caught_up_at_once():
    days = Days([10] * 30)
    for _ in range(30):
        days.scrub(days=30)
    days.day += 60
    days.scrub(days=30)
    assert len(days.read[-1]) == 30


def test_with_a_ledger_that_is_lost_every_day_other_objects_are_read():
    days = Days([10] * 10)
    for _ in range(40):
        days.storage.delete([stored.key for stored in days.storage.scan(LEDGER)])
        days.scrub(bytes_max=20)
    assert set().union(*days.read) == set(days.sizes)


@pytest.mark.invariant(29)
@pytest.mark.parametrize("seed", range(4))
def test_damage_anywhere_is_found_within_the_period_beside_backups(bench: Bench, tmp_path: Path, seed: int):
    """Seven days, so that every object of a real vault that grows each day is hit by some damage in some run."""
    choice = random.Random(seed)
    folder = write_files(tmp_path / "home", {"first": os.urandom(5000)})
    hurt: dict[str, int] = {}
    found: dict[str, int] = {}
    for day in range(21):
        bench.clock.time = START + (day + 1) * DAY
        write_files(folder, {f"file{day}": os.urandom(5000)})
        bench.back_up(folder)
        outcome = verified(bench, "scrub", days=7)
        for finding in outcome.findings:
            found.setdefault(finding.object, day)
        assert not [key for key, since in hurt.items() if key not in found and day - since >= 7]
        known = [s.key for s in bench.storage.scan("") if s.key.startswith(("packs/", "meta/", "index/", "keys/"))]
        if key := choice.choice([key for key in known if key not in hurt and not key.startswith("keys/")]):
            flip(bench, key, choice.randrange(len(bench.storage.get(key))))
            hurt[key] = day
    assert len(found) >= 14
    assert set(found) <= set(hurt)


def test_a_limited_scrub_reads_what_waits_longest_and_says_how_much_is_covered(bench: Bench, tmp_path: Path):
    bench.back_up(write_files(tmp_path / "home", {"a": os.urandom(200_000), "b": b"b"}))
    names = {digest_name(data): len(data) for key, data in bench.objects().items() if digest_name(data) in key}
    outcomes = [verified(bench, "scrub", bytes_max=1) for _ in names]
    assert [outcome.objects for outcome in outcomes] == [1] * len(names)
    shares = [outcome.coverage.share for outcome in outcomes if outcome.coverage]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert set(Ledger.load(bench.storage, bench.open().keys).read_at) == set(names)


def test_who_may_not_delete_still_verifies_and_notes(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    bench.back_up(write_files(tmp_path / "home", {"a": b"a"}))

    def forbidden(self: Memory, keys: Sequence[str]) -> list[Refusal]:
        raise Forbidden("no deletes")

    monkeypatch.setattr(Memory, "delete", forbidden)
    for _ in range(2):
        assert verified(bench, "scrub").state == "complete"
    assert len(list(bench.storage.scan(LEDGER))) == 2


def test_content_can_be_spread_too(bench: Bench, tmp_path: Path):
    bench.back_up(write_files(tmp_path / "home", {"a": os.urandom(200_000), "b": b"b"}))
    packs = [s for prefix in ("packs/", "meta/") for s in bench.storage.scan(prefix)]
    for _ in packs:
        assert verified(bench, "content", bytes_max=1).state == "complete"
    assert len(Ledger.load(bench.storage, bench.open().keys).read_at) == len(packs)


def test_only_what_was_read_and_is_whole_counts(bench: Bench, tmp_path: Path):
    bench.back_up(write_files(tmp_path / "home", {"a": os.urandom(200_000), "b": b"b"}))
    key = next(stored.key for stored in bench.storage.scan("packs/"))
    flip(bench, key, 200)
    for level in ("inventory", "structure", "footers"):
        verified(bench, level)
    assert Ledger.load(bench.storage, bench.open().keys).read_at == {}
    verified(bench, "scrub")
    verified(bench, "content")
    read_at = Ledger.load(bench.storage, bench.open().keys).read_at
    assert key.rpartition("/")[2] not in read_at
    assert len(read_at) == sum(len(list(bench.storage.scan(p))) for p in ("packs/", "meta/", "index/", "keys/")) - 1


def test_points_whose_listing_is_damaged_or_that_were_not_looked_at_are_not_called_verified(
    bench: Bench, tmp_path: Path
):
    folder = write_files(tmp_path / "home", {"a": b"a"})
    first = bench.back_up(folder).point
    assert verified(bench, "inventory").state == "complete"
    assert Ledger.load(bench.storage, bench.open().keys).structured == {}
    assert verified(bench, "structure").state == "complete"
    assert list(Ledger.load(bench.storage, bench.open().keys).structured) == [f"home/{first}"]
    write_files(folder, {"b": b"b"})
    before = {stored.key for stored in bench.storage.scan("meta/")}
    bench.back_up(folder)
    flip(bench, next(s.key for s in bench.storage.scan("meta/") if s.key not in before), 200)
    assert verified(bench, "structure").state == "failed"
    assert list(Ledger.load(bench.storage, bench.open().keys).structured) == [f"home/{first}"]


def test_blocks_that_expired_before_they_were_checked_make_no_point_verified(bench: Bench, tmp_path: Path):
    """Two points share every block, so that only the first one's are planned."""
    folder = write_files(tmp_path / "home", {"a": b"a"})
    first = bench.back_up(folder).point
    bench.back_up(folder)
    job = verify.VerifyJob(session=new_ulid(bench.clock()), level="structure", started_at=bench.clock())
    vault, worker, silent = bench.open(), bench.open(), Silent()
    units = list(verify.plan(vault, job, silent, now=bench.clock()))
    bench.storage.delete([f"points/home/{first}/{part}" for part in ("commit", "root")])
    results = [verify.work(worker, job, unit, silent) for unit in units]
    assert verify.finish(vault, job, results, silent, clock=bench.clock).blocks == 0
    assert Ledger.load(bench.storage, bench.open().keys).structured == {}


@pytest.mark.parametrize("options", [{"days": 30}, {"bytes_max": 1}])
def test_levels_that_do_not_read_everything_cannot_be_spread(bench: Bench, options: dict[str, int]):
    with pytest.raises(ValueError, match="leave them at 0"):
        verified(bench, "structure", **options)


@pytest.mark.parametrize("options", [{"days": -1}, {"bytes_max": -1}])
def test_negative_limits_are_refused(bench: Bench, options: dict[str, int]):
    with pytest.raises(ValueError, match="0"):
        verified(bench, "scrub", **options)
