"""The ledger of verifications: the newest date of everything survives; what cannot be read says nothing."""

import datetime as dt

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import ledger as ledgers
from engine.ids import digest_name, new_ulid
from engine.keys import Keys
from engine.ledger import PREFIX, Ledger, Reading, point_states
from engine.moves import Move, Moves, commit_move
from engine.session import Session
from engine.storage import Memory
from engine.vault import PointName
from engine.verbs.inspect import unverified_points
from tests.support.vaults import START, Bench

DAY = dt.timedelta(days=1)
KEYS = Keys.create()


@pytest.fixture
def storage() -> Memory:
    return Memory()


def day(number: float) -> dt.datetime:
    return START + number * DAY


def notes(storage: Memory) -> list[str]:
    return [stored.key for stored in storage.scan(PREFIX)]


def test_the_newest_reading_counts_and_the_first_sight(storage: Memory):
    for number in (3, 1, 2):
        Ledger(storage, KEYS).note(Reading(day(number), read=["a"], seen=["b"], points=["home/1"]))
    loaded = Ledger.load(storage, KEYS)
    assert (loaded.read_at, loaded.seen_at) == ({"a": day(3)}, {"b": day(1)})
    assert loaded.structured == {"home/1": day(3)}
    assert (loaded.since("a"), loaded.since("b"), loaded.since("c")) == (day(3), day(1), None)


def test_a_note_is_signed_and_named_by_its_month_and_payload(storage: Memory):
    Ledger(storage, KEYS).note(Reading(START, read=["a"]))
    (key,) = notes(storage)
    payload = KEYS.verify(key, storage.get(key))
    assert key == f"verify/2031-05/{digest_name(payload)}"


def test_an_empty_reading_is_not_stored(storage: Memory):
    Ledger(storage, KEYS).note(Reading(START))
    assert notes(storage) == []


@pytest.mark.invariant(9, 11)
@pytest.mark.parametrize("data", [b"", b"{}\n" + b"0" * 64, b"\xff\xfe"])
def test_a_forged_note_says_nothing_and_is_dropped(storage: Memory, data: bytes):
    storage.put(f"{PREFIX}2031-05/{'0' * 64}", data)
    loaded = Ledger.load(storage, KEYS)
    assert (loaded.read_at, len(loaded.unreadable)) == ({}, 1)
    loaded.tidy(objects=[], points=[])
    assert notes(storage) == []


def test_a_signed_note_moved_to_another_key_is_forged(storage: Memory):
    Ledger(storage, KEYS).note(Reading(START, read=["a"]))
    storage.put(f"{PREFIX}2031-06/x", storage.get(notes(storage)[0]))
    assert Ledger.load(storage, KEYS).unreadable == [f"{PREFIX}2031-06/x"]


def test_a_date_in_the_future_is_no_date(storage: Memory):
    """A clock that jumped must not keep objects from being read for years."""
    Ledger(storage, KEYS).note(Reading(day(400), read=["a"]))
    Ledger(storage, KEYS).note(Reading(day(2), read=["a"]))
    loaded = Ledger.load(storage, KEYS, now=day(3))
    assert loaded.read_at == {"a": day(2)}
    loaded.tidy(objects=["a"], points=[])
    assert Ledger.load(storage, KEYS).read_at == {"a": day(2)}


def test_notes_hold_a_bounded_number_of_names(storage: Memory, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ledgers, "NAMES_MAX", 10)
    names = [f"{number:03}" for number in range(95)]
    Ledger(storage, KEYS).note(Reading(START, read=names[:50], seen=names[50:]))
    assert len(notes(storage)) == 10
    loaded = Ledger.load(storage, KEYS)
    assert sorted(loaded.read_at) + sorted(loaded.seen_at) == names


def test_full_notes_stay_below_two_megabytes(storage: Memory):
    names = [digest_name(str(number).encode()) for number in range(ledgers.NAMES_MAX)]
    Ledger(storage, KEYS).note(Reading(START, read=names))
    (stored,) = storage.scan(PREFIX)
    assert stored.size < 2 << 20


def test_many_small_notes_are_merged_and_stale_ones_dropped(storage: Memory):
    for number in range(ledgers.NOTES_MAX + 5):
        Ledger(storage, KEYS).note(Reading(day(number), read=["always", f"once{number}"], points=[f"home/{number}"]))
    before = Ledger.load(storage, KEYS)
    before.tidy(objects=before.read_at.keys(), points=before.structured.keys())
    assert len(notes(storage)) == 1
    after = Ledger.load(storage, KEYS)
    assert (after.read_at, after.structured) == (before.read_at, before.structured)
    after.tidy(objects=["once3"], points=[])
    assert len(notes(storage)) == 1
    after.tidy(objects=[], points=[])
    assert notes(storage) == []


READINGS = st.lists(
    st.tuples(st.integers(0, 5), st.sets(st.integers(0, 9)), st.sets(st.integers(0, 9)), st.booleans()), max_size=25
)


@settings(deadline=None)
@given(readings=READINGS, crash=st.booleans())
def test_no_newest_date_is_ever_lost_whatever_is_merged(
    readings: list[tuple[int, set[int], set[int], bool]], crash: bool
):
    """A merge may die after it stored and before it deleted; two may run at once on what each had loaded."""
    storage = Memory()
    expected: dict[str, dt.datetime] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ledgers, "NAMES_MAX", 8)
        patch.setattr(ledgers, "NOTES_MAX", 2)
        for number, read, seen, tidies in readings:
            names = [str(name) for name in sorted(read)]
            other = Ledger.load(storage, KEYS)
            mine = Ledger.load(storage, KEYS)
            mine.note(Reading(day(number), read=names, seen=[str(name) for name in sorted(seen)]))
            expected |= {name: max(day(number), expected.get(name, day(number))) for name in names}
            if tidies and crash:
                patch.setattr(storage, "delete", lambda keys: [])
            if tidies:
                mine.tidy(objects=[str(name) for name in range(10)], points=[])
                other.tidy(objects=[str(name) for name in range(10)], points=[])
            patch.setattr(storage, "delete", Memory.delete.__get__(storage))
            assert Ledger.load(storage, KEYS).read_at == expected


def test_coverage_counts_bytes_read_in_time_and_tells_who_waits_longest(storage: Memory):
    Ledger(storage, KEYS).note(Reading(day(0), read=["old"], seen=["new"]))
    Ledger(storage, KEYS).note(Reading(day(25), read=["fresh"], seen=["newer"]))
    loaded = Ledger.load(storage, KEYS)
    sizes = {"old": 10, "new": 20, "fresh": 30, "newer": 40, "stranger": 100}
    found = loaded.coverage(sizes, day(31))
    assert (found.objects, found.bytes, found.objects_read, found.bytes_read) == (5, 200, 1, 30)
    assert (found.share, found.oldest) == (0.15, day(0))
    assert loaded.coverage(sizes, day(30)).bytes_read == 40
    assert loaded.coverage(sizes, day(31), days=5).bytes_read == 0
    assert loaded.coverage({}, day(31)).share == 1.0
    assert loaded.coverage({"stranger": 1}, day(31)).oldest is None


def test_a_point_that_was_moved_has_to_be_verified_anew():
    bench = Bench()
    vault = bench.open()
    Ledger(bench.storage, vault.keys).note(Reading(START, points=["home/a", "home/b"]))
    names = [PointName("home", "a"), PointName("home", "b"), PointName("home", "c")]
    assert unverified_points(vault, Ledger.load(bench.storage, vault.keys), names) == names[2:]
    session = Session.open(bench.storage, vault.keys, name=new_ulid(START), verb="compact", now=START)
    commit_move(session, bench.storage, vault.keys, Move("run", session.name, ["home/b"], {}), now=START)
    vault = bench.open()
    assert unverified_points(vault, Ledger.load(bench.storage, vault.keys), names) == names[1:]
    states = point_states(Moves(bench.storage, vault.keys), ["home/a", "home/b"])
    Ledger(bench.storage, vault.keys).note(Reading(START, points=list(states.values())))
    assert unverified_points(vault, Ledger.load(bench.storage, vault.keys), names) == names[2:]
