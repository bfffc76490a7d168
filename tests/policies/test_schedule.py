"""When a plan runs next, on ordinary days and on the odd ones."""

import datetime as dt
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.schedule import DRAWN_START_MINUTES, Schedule, check_cron, next_after, spread

BERLIN, NEW_YORK = "Europe/Berlin", "America/New_York"


def utc(text: str) -> dt.datetime:
    return dt.datetime.fromisoformat(text).replace(tzinfo=dt.UTC)


def run(schedule: Schedule, after: str, count: int) -> list[str]:
    moments, moment = [], utc(after)
    for _ in range(count):
        moment = next_after(schedule, moment)
        assert moment.utcoffset() == dt.timedelta(0)
        moments.append(moment.strftime("%Y-%m-%d %H:%M"))
    return moments


@pytest.mark.rule("B4")
@pytest.mark.parametrize(
    ("schedule", "after", "expected"),
    [
        # the five period units
        (Schedule("UTC", unit="hour", every=6), "2026-01-01 05:00", ["2026-01-01 06:00", "2026-01-01 12:00"]),
        (Schedule("UTC", start=dt.time(1, 30)), "2026-01-01 01:30", ["2026-01-02 01:30", "2026-01-03 01:30"]),
        (Schedule("UTC", every=2), "2026-01-01 00:00", ["2026-01-02 00:00", "2026-01-04 00:00"]),
        (
            Schedule("UTC", unit="week", starts_on=dt.date(2026, 1, 5)),
            "2026-01-06 00:00",
            ["2026-01-12 00:00", "2026-01-19 00:00"],
        ),
        (
            Schedule("UTC", unit="month", starts_on=dt.date(2026, 1, 31)),
            "2026-02-01 00:00",
            ["2026-02-28 00:00", "2026-03-31 00:00", "2026-04-30 00:00"],
        ),
        (
            Schedule("UTC", unit="year", starts_on=dt.date(2024, 2, 29)),
            "2024-03-01 00:00",
            ["2025-02-28 00:00", "2026-02-28 00:00", "2027-02-28 00:00", "2028-02-29 00:00"],
        ),
        # before the start, and far behind it
        (Schedule("UTC", starts_on=dt.date(2030, 1, 1)), "2026-01-01 00:00", ["2030-01-01 00:00"]),
        (Schedule("UTC", unit="month", every=3), "2099-12-31 00:00", ["2100-01-01 00:00", "2100-04-01 00:00"]),
        # the hour that the clock jumps over: right after the jump, once
        (
            Schedule(BERLIN, start=dt.time(2, 30)),
            "2026-03-28 12:00",
            ["2026-03-29 01:00", "2026-03-30 00:30"],
        ),
        # the hour that comes twice: at its first coming, once
        (
            Schedule(BERLIN, start=dt.time(2, 30)),
            "2026-10-24 12:00",
            ["2026-10-25 00:30", "2026-10-26 01:30"],
        ),
        (
            Schedule(NEW_YORK, start=dt.time(16, 4)),
            "2026-03-07 12:00",
            ["2026-03-07 21:04", "2026-03-08 20:04", "2026-03-09 20:04"],
        ),
        # hours are elapsed time
        (
            Schedule(BERLIN, unit="hour", every=1, starts_on=dt.date(2026, 3, 29)),
            "2026-03-28 23:30",
            ["2026-03-29 00:00", "2026-03-29 01:00", "2026-03-29 02:00"],
        ),
        # cron
        (Schedule("UTC", cron="0 2 * * 1-5"), "2026-01-02 03:00", ["2026-01-05 02:00", "2026-01-06 02:00"]),
        (Schedule(BERLIN, cron="30 2 * * *"), "2026-03-28 12:00", ["2026-03-29 01:00", "2026-03-30 00:30"]),
        (Schedule(BERLIN, cron="30 2 * * *"), "2026-10-24 12:00", ["2026-10-25 00:30", "2026-10-26 01:30"]),
        (Schedule("UTC", cron="0 0 L * *"), "2028-02-01 00:00", ["2028-02-29 00:00", "2028-03-31 00:00"]),
    ],
)
def test_the_next_moments(schedule, after, expected):
    assert run(schedule, after, len(expected)) == expected


@pytest.mark.parametrize("text", ["", "* * * *", "61 * * * *", "0 0 31 2 *", "0 2 * * * *", "@daily"])
def test_what_is_no_cron_expression_is_refused(text):
    with pytest.raises(ValueError, match="cron expression"):
        check_cron(text)


@given(
    after=st.datetimes(dt.datetime(2024, 1, 2), dt.datetime(2060, 1, 1)),  # noqa: DTZ001  # made aware below
    zone=st.sampled_from(["UTC", BERLIN, NEW_YORK, "Australia/Lord_Howe", "Asia/Kathmandu"]),
    unit=st.sampled_from(["hour", "day", "week", "month", "year"]),
    every=st.integers(1, 40),
    start=st.times().map(lambda time: time.replace(second=0, microsecond=0)),
)
def test_moments_always_move_on_and_none_is_left_out(after, zone, unit, every, start):
    schedule = Schedule(zone, unit=unit, every=every, start=start)
    moment = after.replace(tzinfo=dt.UTC)
    first = next_after(schedule, moment)
    assert first > moment
    assert next_after(schedule, first - dt.timedelta(seconds=1)) == first
    assert next_after(schedule, first) > first


@pytest.mark.rule("C8")
def test_drawn_starts_overload_no_minute():
    dice = random.Random(1)
    drawn = Counter(dice.randrange(DRAWN_START_MINUTES) for _ in range(1000))
    assert max(drawn.values()) <= 12
    assert max(drawn) < 360


def test_a_grid_of_moments_keeps_its_period_and_differs_by_name():
    after = dt.datetime(2026, 3, 10, 12, 0, tzinfo=dt.UTC)
    first = spread("a", 3600, after=after)
    assert after < first <= after + dt.timedelta(hours=1)
    assert spread("a", 3600, after=first) == first + dt.timedelta(hours=1)
    assert len({spread(str(number), 3600, after=after) for number in range(100)}) > 90
