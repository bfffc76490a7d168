"""Retrying and the byte budget: what is repeated, and how fast bytes may flow."""

import os
import threading
from pathlib import Path

import pytest

from engine.errors import Forbidden, NotFound, StorageError, StorageFull, Unavailable, Unreachable
from engine.storage import Budget, Directory, Memory, Retrying
from engine.storage.faulty import Fault, Faulty, Mode
from tests.engine.storage.conftest import HandTime


@pytest.fixture
def inner() -> Memory:
    memory = Memory(page_size=2)
    for key in "abcdef":
        memory.put(key, key.encode())
    return memory


@pytest.mark.parametrize("mode", [Mode.BEFORE, Mode.AFTER])
def test_a_transient_error_is_retried_until_it_passes(inner: Memory, mode: Mode) -> None:
    time = HandTime()
    store = Retrying(Faulty(inner, [Fault(1, mode, times=3)]), sleep=time.sleep)
    store.put("new", b"x")
    assert store.get("new") == b"x"
    assert len(time.slept) == 3


@pytest.mark.parametrize("error", [Forbidden, StorageFull, Unreachable, NotFound])
def test_a_permanent_error_is_raised_at_once(inner: Memory, error: type[StorageError]) -> None:
    time = HandTime()
    faulty = Faulty(inner, [Fault(1, Mode.BEFORE, error=error)])
    with pytest.raises(error):
        Retrying(faulty, sleep=time.sleep).get("a")
    assert (faulty.count(), time.slept) == (1, [])


def test_a_read_beyond_the_end_is_not_retried(inner: Memory) -> None:
    faulty = Faulty(inner)
    with pytest.raises(StorageError, match="were asked for"):
        Retrying(faulty).get("a", length=5)
    assert faulty.count() == 1


def test_an_error_that_is_no_storage_error_is_not_retried(inner: Memory) -> None:
    faulty = Faulty(inner)
    with pytest.raises(AssertionError):
        Retrying(faulty).put("a", b"other bytes")
    assert faulty.count() == 1


def test_attempts_are_capped_and_the_last_error_is_raised(inner: Memory) -> None:
    time = HandTime()
    faulty = Faulty(inner, [Fault(1, Mode.BEFORE, times=0)])
    with pytest.raises(Unavailable):
        Retrying(faulty, attempts=5, sleep=time.sleep).get("a")
    assert faulty.count() == 5


def test_the_pauses_grow_are_jittered_and_have_a_longest(inner: Memory) -> None:
    pauses = []
    for _ in range(200):
        time = HandTime()
        with pytest.raises(Unavailable):
            Retrying(
                Faulty(inner, [Fault(1, Mode.BEFORE, times=0)]),
                attempts=8,
                first_s=1,
                longest_s=8,
                total_s=1000,
                sleep=time.sleep,
            ).get("a")
        pauses.append(time.slept)
    longest = [max(column) for column in zip(*pauses, strict=True)]
    assert all(most <= limit for most, limit in zip(longest, [1, 2, 4, 8, 8, 8, 8], strict=True))
    assert longest[3] > 4
    assert len({tuple(slept) for slept in pauses}) > 150


def test_the_time_is_capped(inner: Memory) -> None:
    time = HandTime()
    store = Retrying(
        Faulty(inner, [Fault(1, Mode.BEFORE, times=0)]), attempts=10_000, total_s=60, longest_s=10, sleep=time.sleep
    )
    with pytest.raises(Unavailable):
        store.get("a")
    assert 20 < time.seconds <= 60


def test_a_scan_goes_on_where_it_broke(inner: Memory) -> None:
    class Breaking(Faulty):
        breaks = 2

        def scan(self, prefix: str, *, after: str = ""):
            for number, stored in enumerate(super().scan(prefix, after=after)):
                if number == 2 and self.breaks:
                    self.breaks -= 1
                    raise Unavailable("broken in the middle")
                yield stored

    breaking = Breaking(inner)
    assert [stored.key for stored in Retrying(breaking, sleep=HandTime().sleep).scan("")] == list("abcdef")
    assert breaking.breaks == 0


def busiest_window(moments: list[tuple[float, int]], window_s: float = 10.0) -> int:
    """Return the most bytes that any window of that length saw, both ends included."""
    most = total = first = 0
    for moment, count in moments:
        total += count
        while moments[first][0] < moment - window_s:
            total -= moments[first][1]
            first += 1
        most = max(most, total)
    return most


@pytest.mark.rule("C10")
@pytest.mark.parametrize("limit", [50_000, 1_000_000, 10_000_000])
def test_no_ten_seconds_see_more_than_the_limit(limit: int, tmp_path: Path) -> None:
    time = HandTime()
    budget = Budget(limit, clock=time.clock, sleep=time.sleep)
    moments: list[tuple[float, int]] = []

    def pace(count: int) -> None:
        while count:
            part = min(count, budget.slice_bytes)
            budget.take(part)
            moments.append((time.seconds, part))
            count -= part

    store = Directory(tmp_path, pace=pace)
    body = os.urandom(limit * 4)
    for number in range(3):
        store.put(f"{number}", body)
        time.sleep(7.0 * number)
        store.get(f"{number}")
    assert busiest_window(moments) <= limit * 10
    assert busiest_window(moments) >= limit * 10 * 0.97
    assert sum(count for _, count in moments) == len(body) * 6


@pytest.mark.rule("C10")
def test_threads_share_one_budget() -> None:
    time = HandTime()
    budget = Budget(1_000_000, clock=time.clock, sleep=lambda seconds: None)
    threads = [threading.Thread(target=budget.take, args=(2_000_000,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    time.seconds = 0.0
    waits: list[float] = []
    budget._sleep = waits.append
    budget.take(1)
    assert waits[0] == pytest.approx(8.22, rel=0.01)  # a part of the limit is kept back for who was late


@pytest.mark.rule("C10")
def test_who_is_woken_late_or_held_up_for_a_moment_catches_up_and_keeps_to_the_limit() -> None:
    time = HandTime()
    budget = Budget(10_000_000, clock=time.clock, sleep=lambda seconds: time.sleep(seconds + 0.02))
    moments: list[tuple[float, int]] = []
    while time.seconds < 60:
        budget.take(budget.slice_bytes)
        moments.append((time.seconds, budget.slice_bytes))
        if len(moments) % 500 == 0:
            time.sleep(0.1)
    assert busiest_window(moments) <= 100_000_000
    assert sum(count for _, count in moments) >= 60 * 10_000_000 * 0.95


def test_a_limit_too_low_to_work_is_refused() -> None:
    with pytest.raises(ValueError, match="too low"):
        Budget(999)
