"""When a plan runs next, on ordinary days and on the odd ones."""

import datetime as dt
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from policies.schedule import Schedule, check_cron, draw_start, drawn, next_after, spread
from tests.support import naive_schedule

BERLIN, NEW_YORK = "Europe/Berlin", "America/New_York"
LORD_HOWE, KATHMANDU, CAIRO = "Australia/Lord_Howe", "Asia/Kathmandu", "Africa/Cairo"
ZONES = ["UTC", BERLIN, NEW_YORK, LORD_HOWE, KATHMANDU, CAIRO, "America/Havana", "Pacific/Apia", "Pacific/Chatham"]


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
        # half an hour is jumped over, and comes twice
        (Schedule(LORD_HOWE, start=dt.time(2, 15)), "2026-10-03 00:00", ["2026-10-03 15:30", "2026-10-04 15:15"]),
        (Schedule(LORD_HOWE, start=dt.time(1, 45)), "2026-04-03 20:00", ["2026-04-04 14:45", "2026-04-05 15:15"]),
        # where the clock jumps at midnight, the day's run is not the day before's
        (Schedule(CAIRO, start=dt.time(0, 0)), "2026-04-22 23:00", ["2026-04-23 22:00", "2026-04-24 21:00"]),
        # weekdays, and those of every second week counted from the week of the start
        (
            Schedule("UTC", weekdays=(1, 3), start=dt.time(4, 0)),
            "2026-03-10 00:00",
            ["2026-03-11 04:00", "2026-03-16 04:00", "2026-03-18 04:00"],
        ),
        (
            Schedule("UTC", unit="week", every=2, weekdays=(1, 7), starts_on=dt.date(2026, 3, 4)),
            "2026-03-01 00:00",
            ["2026-03-08 00:00", "2026-03-16 00:00", "2026-03-22 00:00", "2026-03-30 00:00"],
        ),
        # cron
        (Schedule("UTC", cron="0 2 * * 1-5"), "2026-01-02 03:00", ["2026-01-05 02:00", "2026-01-06 02:00"]),
        (Schedule(BERLIN, cron="30 2 * * *"), "2026-03-28 12:00", ["2026-03-29 01:00", "2026-03-30 00:30"]),
        (Schedule(BERLIN, cron="30 2 * * *"), "2026-10-24 12:00", ["2026-10-25 00:30", "2026-10-26 01:30"]),
        # a cron expression of fixed hours skips the hour that comes twice the second time; one of all hours knows both
        (Schedule(BERLIN, cron="0,30 1-3 * * *"), "2026-10-25 00:15", ["2026-10-25 00:30", "2026-10-25 02:00"]),
        (Schedule(BERLIN, cron="0,30 1-3 * * *"), "2026-10-25 01:10", ["2026-10-25 02:00", "2026-10-25 02:30"]),
        (Schedule(BERLIN, cron="*/30 * * * *"), "2026-10-25 00:15", ["2026-10-25 00:30", "2026-10-25 01:00"]),
        (Schedule("UTC", cron="0 0 29 2 *"), "2026-02-01 00:00", ["2028-02-29 00:00", "2032-02-29 00:00"]),
        (Schedule("UTC", cron="0 0 L * *"), "2028-02-01 00:00", ["2028-02-29 00:00", "2028-03-31 00:00"]),
    ],
)
def test_the_next_moments(schedule, after, expected):
    assert run(schedule, after, len(expected)) == expected


@pytest.mark.parametrize("text", ["", "* * * *", "61 * * * *", "0 0 31 2 *", "0 2 * * * *", "@daily"])
def test_what_is_no_cron_expression_is_refused(text):
    with pytest.raises(ValueError, match="cron expression"):
        check_cron(text)


quarters = st.builds(dt.time, st.integers(0, 23), st.sampled_from([0, 15, 30, 45]))
days = st.dates(dt.date(2023, 12, 1), dt.date(2026, 3, 1))
weekdays = st.lists(st.integers(1, 7), min_size=1, max_size=6, unique=True).map(tuple)


@st.composite
def schedules(draw):
    unit = draw(st.sampled_from(["hour", "day", "week", "month", "year"]))
    most = {"hour": 50, "day": 20, "week": 6, "month": 4, "year": 2}[unit]
    schedule = Schedule(
        draw(st.sampled_from(ZONES)),
        unit=unit,
        every=draw(st.integers(1, most)),
        starts_on=draw(days),
        start=draw(quarters),
    )
    if unit == "week" or (unit == "day" and schedule.every == 1):
        return replace(schedule, weekdays=draw(st.just(()) | weekdays))
    return schedule


def from_to(schedule: Schedule, begin: dt.datetime, end: dt.datetime) -> list[dt.datetime]:
    found, moment = [], begin - dt.timedelta(microseconds=1)
    while (moment := next_after(schedule, moment)) < end:
        found.append(moment)
    return found


@pytest.mark.rule("B4")
@settings(max_examples=50, deadline=None)
@given(schedule=schedules(), begin=days, length=st.integers(1, 60))
# The weeks around the odd days of most zones.
@example(schedule=Schedule(LORD_HOWE, start=dt.time(2, 15)), begin=dt.date(2025, 9, 20), length=30)
@example(schedule=Schedule(CAIRO, start=dt.time(0, 30)), begin=dt.date(2025, 4, 10), length=30)
@example(schedule=Schedule(CAIRO, start=dt.time(23, 30)), begin=dt.date(2025, 10, 20), length=20)
@example(schedule=Schedule("America/Havana", start=dt.time(0, 30)), begin=dt.date(2025, 10, 20), length=20)
@example(schedule=Schedule("America/Havana", start=dt.time(0, 0)), begin=dt.date(2025, 3, 1), length=20)
@example(schedule=Schedule(BERLIN, unit="year", starts_on=dt.date(2024, 2, 29)), begin=dt.date(2024, 2, 1), length=800)
@example(schedule=Schedule(BERLIN, unit="month", starts_on=dt.date(2024, 1, 31)), begin=dt.date(2024, 1, 1), length=200)
def test_the_runs_are_those_that_a_clock_on_the_wall_and_a_calendar_tell(schedule, begin, length):
    first = dt.datetime.combine(begin, dt.time(), dt.UTC)
    last = first + dt.timedelta(days=length)
    assert from_to(schedule, first, last) == naive_schedule.moments(schedule, first, last)


@settings(max_examples=25, deadline=None)
@given(schedule=schedules(), minutes=st.integers(1, 1440), begin=days, seed=st.text(max_size=5))
@example(schedule=Schedule(BERLIN, start=dt.time(2, 0)), minutes=1440, begin=dt.date(2024, 3, 20), seed="")
@example(schedule=Schedule("UTC", unit="hour"), minutes=600, begin=dt.date(2024, 3, 20), seed="")
@pytest.mark.rule("D14", "D19")
def test_each_window_has_one_run_inside_also_on_odd_days_and_where_windows_overlap(schedule, minutes, begin, seed):
    first = dt.datetime.combine(begin, dt.time(), dt.UTC)
    last = first + dt.timedelta(days=12)
    begins = naive_schedule.moments(schedule, first - dt.timedelta(days=2), last)
    inside = replace(schedule, window_s=minutes * 60, seed=seed)
    expected = sorted({at + dt.timedelta(seconds=drawn(inside, at)) for at in begins})
    assert from_to(inside, first, last) == [moment for moment in expected if first <= moment < last]
    assert all(0 <= drawn(inside, at) < minutes * 60 for at in begins)


@pytest.mark.rule("D14")
def test_runs_are_spread_evenly_over_the_window_and_asking_again_tells_the_same():
    window = Schedule("UTC", start=dt.time(2, 0), window_s=7200, seed="a plan")
    runs = from_to(window, utc("2026-01-01"), utc("2034-01-01"))
    assert runs == from_to(window, utc("2026-01-01"), utc("2034-01-01"))
    tenths = Counter((run - run.replace(hour=2, minute=0, second=0)).seconds * 10 // 7200 for run in runs)
    assert sorted(tenths) == list(range(10))
    # Chi square with 9 degrees of freedom: 27.9 is passed by one of a thousand seeds that are truly even.
    even = len(runs) / 10
    assert sum((count - even) ** 2 / even for count in tenths.values()) < 27.9
    other = replace(window, seed="another plan")
    assert next_after(other, utc("2026-01-01")) != runs[0]


def test_what_never_comes_again_says_so():
    far = Schedule("UTC", unit="year", every=1000, starts_on=dt.date(9000, 1, 1))
    assert next_after(far, utc("2026-01-01")).year == 9000
    with pytest.raises(OverflowError):
        next_after(far, utc("9000-01-01"))


@pytest.mark.rule("C8")
def test_drawn_starts_lie_evenly_between_midnight_and_six_and_overload_no_minute():
    drawn_starts = Counter(draw_start() for _ in range(1000))
    assert max(drawn_starts) < 360
    assert min(drawn_starts) >= 0
    # 2.8 plans a minute on average: 16 in one comes about once in a hundred thousand trials.
    assert max(drawn_starts.values()) < 16
    hours = Counter(start // 60 for start in drawn_starts.elements())
    assert all(100 < hours[hour] < 240 for hour in range(6))


def test_a_grid_of_moments_keeps_its_period_and_differs_by_name():
    after = dt.datetime(2026, 3, 10, 12, 0, tzinfo=dt.UTC)
    first = spread("a", 3600, after=after)
    assert after < first <= after + dt.timedelta(hours=1)
    assert spread("a", 3600, after=first) == first + dt.timedelta(hours=1)
    assert len({spread(str(number), 3600, after=after) for number in range(100)}) > 90
