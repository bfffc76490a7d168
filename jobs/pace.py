"""How fast a job goes, how far it has come, and when it may end: arithmetic on its row."""

import datetime as dt
from collections.abc import Sequence
from typing import Any

WINDOW_S = 30.0
SAMPLE_EVERY_S = 1.5
# A job that told nothing for so long has no speed that could be named.
STALE_S = 60.0

Sample = Sequence[float]


def sampled(samples: Sequence[Sample], *, entries: int, bytes: int, now: dt.datetime) -> list[Any]:
    """Return the samples with one more, without those that the window no longer needs; nothing if it is too early."""
    at = now.timestamp()
    if samples and at - samples[-1][0] < SAMPLE_EVERY_S:
        return []
    begin = max((number for number, one in enumerate(samples) if one[0] <= at - WINDOW_S), default=0)
    return [*samples[begin:], [round(at, 1), entries, bytes]]


def speed(samples: Sequence[Sample], *, now: dt.datetime) -> tuple[float, float] | None:
    """Return entries and bytes per second over about the last WINDOW_S; None while nothing is known."""
    if len(samples) < 2 or now.timestamp() - samples[-1][0] > STALE_S:
        return None
    (begin, entries, count), (end, entries_now, count_now) = samples[0], samples[-1]
    taken_s = end - begin
    if taken_s <= 0:
        return None
    # What was taken back by an attempt that failed is no speed.
    return max(entries_now - entries, 0) / taken_s, max(count_now - count, 0) / taken_s


def share(done: int, total: int) -> float | None:
    """Return done of total, at most 1; None without a total."""
    return min(done / total, 1.0) if total else None


def left_s(left: Sequence[tuple[int, float]]) -> float | None:
    """Return the seconds for amounts that are left, each with its speed; the slowest decides. None while unknown."""
    return max((amount / per_s for amount, per_s in left if amount > 0 and per_s > 0), default=None)
