"""Which versions stay: a table of cases, properties, and two years of nightly backups beside a model of its own."""

import calendar
import datetime as dt
import os
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.retention import Rules, Verdict, Version, judge

ROOT = Path(__file__).parents[2]
NOW = dt.datetime(2031, 5, 15, 12, tzinfo=dt.UTC)
COUNTS = ("last", "daily", "weekly", "monthly", "yearly")


def at(text: str) -> dt.datetime:
    """Return a moment of 2031 (or of the year that is given) in UTC."""
    return dt.datetime.fromisoformat(text if text[:2] == "20" else f"2031-{text}").replace(tzinfo=dt.UTC)


def version(text: str, **fields) -> Version:
    """Return a version whose id is the moment of its completion."""
    return Version(point=text, completed_at=at(text), **fields)


def kept(versions: Sequence[Version], rules: Rules, now: dt.datetime = NOW) -> list[str]:
    return [verdict.point for verdict in judge(versions, rules, now) if verdict.keep]


def one(versions: Sequence[Version], rules: Rules, point: str, now: dt.datetime = NOW) -> Verdict:
    [found] = [verdict for verdict in judge(versions, rules, now) if verdict.point == point]
    return found


DAYS = [version(f"05-{day:02}T02:00") for day in range(1, 16)]


@pytest.mark.parametrize(
    ("rules", "stay"),
    [
        pytest.param(Rules(days=3), ["05-13T02:00", "05-14T02:00", "05-15T02:00"], id="days"),
        pytest.param(Rules(days=0, last=2), ["05-14T02:00", "05-15T02:00"], id="last"),
        pytest.param(Rules(days=1, last=3), ["05-13T02:00", "05-14T02:00", "05-15T02:00"], id="days and last"),
        pytest.param(Rules(days=0, daily=2), ["05-14T02:00", "05-15T02:00"], id="daily"),
        # 2031-05-01 is a Thursday; the weeks begin on the 5th and on the 12th.
        pytest.param(Rules(days=0, weekly=9), ["05-01T02:00", "05-05T02:00", "05-12T02:00"], id="weekly"),
        pytest.param(Rules(days=0, weekly=1), ["05-12T02:00"], id="one week"),
        pytest.param(Rules(days=0, monthly=1), ["05-01T02:00"], id="monthly"),
        pytest.param(Rules(days=0, yearly=1), ["05-01T02:00"], id="yearly"),
        pytest.param(Rules(days=0, at_least_one=True), ["05-15T02:00"], id="at least one"),
    ],
)
def test_each_rule_keeps_what_it_says(rules: Rules, stay: list[str]):
    assert kept(DAYS, rules) == stay


@pytest.mark.rule("C9")
def test_the_latest_version_outlives_its_thirty_days():
    old = [version("01-01T02:00", retention_days=30), version("01-02T02:00", retention_days=30)]
    assert kept(old, Rules(at_least_one=True)) == ["01-02T02:00"]
    assert kept(old, Rules()) == []


@pytest.mark.rule("C16")
def test_keep_at_least_one_holds_without_an_end():
    only = version("2031-01-01T02:00", retention_days=30)
    verdict = one([only], Rules(at_least_one=True), only.point, now=at("2099-01-01T00:00"))
    assert (verdict.keep, verdict.reasons, verdict.expires_at) == (True, ["the newest"], None)


@pytest.mark.rule("C30")
def test_a_paused_source_loses_its_versions_after_thirty_days_but_for_the_last_completed_one():
    versions = [version("03-01T02:00", retention_days=30), version("03-02T02:00", retention_days=30)]
    versions.append(version("03-03T02:00", retention_days=30, complete=False))
    assert kept(versions, Rules(at_least_one=True), at("03-20T00:00")) == [v.point for v in versions]
    assert kept(versions, Rules(at_least_one=True), at("06-01T00:00")) == ["03-02T02:00", "03-03T02:00"]


@pytest.mark.rule("C33")
def test_keep_at_least_one_counts_from_the_next_look_on():
    gone = version("01-01T02:00", retention_days=30)
    assert kept([gone], Rules()) == []
    assert kept([gone], Rules(at_least_one=True)) == [gone.point]


@pytest.mark.rule("C35")
def test_without_keep_at_least_one_an_expired_last_version_goes_at_the_next_look():
    gone = version("01-01T02:00", retention_days=30)
    verdict = one([gone], Rules(), gone.point)
    assert verdict.text == "goes: 30 days since completion were over on 2031-01-31 02:00 UTC"
    assert verdict.expires_at == at("01-31T02:00")


@pytest.mark.rule("C36")
def test_without_keep_at_least_one_nothing_may_be_left():
    assert kept(DAYS, Rules(days=1), at("07-01T00:00")) == []


def test_days_are_over_to_the_second_and_count_from_completion():
    point = version("05-01T02:00")
    assert one([point], Rules(days=7), point.point, now=at("05-08T01:59:59")).keep
    assert not one([point], Rules(days=7), point.point, now=at("05-08T02:00:00")).keep


def test_a_kept_version_tells_when_time_lets_go_of_it():
    point = version("05-14T02:00", locked_until=at("06-01T00:00"))
    verdict = one([point], Rules(days=7), point.point)
    assert verdict.reasons == [
        "locked until 2031-06-01 00:00 UTC", "7 days since completion are over on 2031-05-21 02:00 UTC",
    ]  # fmt: skip
    assert verdict.expires_at == at("06-01T00:00")


@pytest.mark.parametrize(
    ("fields", "rules", "reason"),
    [
        ({"held": True}, Rules(days=1), "held"),
        ({"locked_until": NOW + dt.timedelta(seconds=1)}, Rules(days=1), "locked until 2031-05-15 12:00 UTC"),
        ({}, Rules(), "stays until somebody deletes it"),
        ({"retention_days": 10**9}, Rules(), "stays until somebody deletes it"),
        ({}, Rules(days=0, last=1), "number 1 of the last 1"),
        ({}, Rules(days=0, monthly=1), "first of month 2031-01"),
        ({}, Rules(days=0, weekly=1), "first of week 2031-W01"),
        ({}, Rules(days=0, yearly=1), "first of year 2031"),
        ({}, Rules(days=0, daily=1), "first of day 2031-01-01"),
        ({}, Rules(days=1, at_least_one=True), "the newest"),
    ],
)
def test_a_reason_is_told(fields: dict[str, Any], rules: Rules, reason: str):
    verdict = judge([version("01-01T02:00", **fields)], rules, NOW)[0]
    assert verdict.keep
    assert verdict.reasons == [reason]
    assert verdict.text == f"kept: {reason}"


def test_a_lock_that_is_over_keeps_nothing():
    assert kept([version("01-01T02:00", locked_until=NOW)], Rules(days=1)) == []


def test_zero_days_leave_it_to_the_other_rules():
    versions = [version("05-14T02:00", retention_days=30), version("05-15T02:00", retention_days=30)]
    assert kept(versions, Rules(days=0, last=1)) == ["05-15T02:00"]
    assert one(versions, Rules(days=0, last=1), "05-14T02:00").reasons == ["no rule keeps it"]


def test_a_version_from_the_future_stays_until_the_clocks_agree():
    early = version("05-20T00:00")
    assert one([early], Rules(days=0, at_least_one=True), early.point).reasons == [
        "by its time it was completed in the future", "the newest",
    ]  # fmt: skip
    assert kept([early, version("05-21T00:00")], Rules(days=0, last=1)) == ["05-20T00:00", "05-21T00:00"]


def test_the_first_complete_version_stands_for_its_period_else_the_first():
    part = [version("05-15T01:00", complete=False), version("05-15T02:00"), version("05-15T03:00")]
    assert kept(part, Rules(days=0, daily=1)) == ["05-15T02:00"]
    assert kept(part[:1], Rules(days=0, daily=1)) == ["05-15T01:00"]


def test_periods_without_a_version_use_nothing_up():
    versions = [version("2020-01-01T00:00"), version("2025-06-01T00:00"), version("2031-05-01T00:00")]
    assert len(kept(versions, Rules(days=0, monthly=3))) == 3


@pytest.mark.parametrize(
    ("zone", "moments", "stay"),
    [
        # Midnight in Berlin is 22:00 UTC in summer, 23:00 in winter.
        ("Europe/Berlin", ["05-14T21:59", "05-14T22:00", "05-15T21:59"], ["05-14T21:59", "05-14T22:00"]),
        ("Europe/Berlin", ["01-14T22:59", "01-14T23:00"], ["01-14T22:59", "01-14T23:00"]),
        # The day that clocks are put back has 25 hours, the day that they are put forward 23.
        ("Europe/Berlin", ["10-25T22:00", "10-26T22:59"], ["10-25T22:00"]),
        ("Europe/Berlin", ["10-25T22:00", "10-26T23:00"], ["10-25T22:00", "10-26T23:00"]),
        ("Europe/Berlin", ["03-29T23:00", "03-30T21:59"], ["03-29T23:00"]),
        ("Europe/Berlin", ["03-29T23:00", "03-30T22:00"], ["03-29T23:00", "03-30T22:00"]),
        # Here clocks are put back at midnight, to 23:00 of the day that was over already.
        ("America/Havana", ["2025-11-02T04:30", "2025-11-02T05:30"], ["2025-11-02T04:30"]),
        ("Pacific/Kiritimati", ["05-14T09:59", "05-14T10:00"], ["05-14T09:59", "05-14T10:00"]),
    ],
)
def test_days_are_those_of_the_time_zone(zone: str, moments: list[str], stay: list[str]):
    assert kept([version(moment) for moment in moments], Rules(days=0, daily=9, zone=zone), at("12-01T00:00")) == stay


def test_a_day_that_came_back_after_midnight_is_not_the_newest():
    """Here clocks were put back a minute after midnight: the day before went on for another hour."""
    versions = [version("2010-11-07T02:30:30"), version("2010-11-07T03:00:00")]
    rules = Rules(days=0, daily=1, zone="America/St_Johns")
    assert kept(versions, rules) == ["2010-11-07T02:30:30"]
    assert one(versions, rules, "2010-11-07T02:30:30").reasons == ["first of day 2010-11-07"]


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("2026-12-31T00:00", "2027-01-03T23:59", True),  # week 53 of 2026 ends on Sunday, January 3
        ("2027-01-03T23:59", "2027-01-04T00:00", False),
        ("2024-12-29T23:59", "2024-12-30T00:00", False),  # Monday, December 30 begins week 1 of 2025
        ("2024-12-30T00:00", "2025-01-05T23:59", True),
    ],
)
def test_weeks_are_those_of_iso(first: str, second: str, same: bool):
    versions = [version(first), version(second)]
    assert len(kept(versions, Rules(days=0, weekly=9))) == (1 if same else 2)


def test_a_leap_day_is_a_day_of_february_and_of_its_own():
    versions = [version(f"2028-{moment}T02:00") for moment in ("02-28", "02-29", "03-01")]
    assert len(kept(versions, Rules(days=0, daily=9), at("2028-03-02T00:00"))) == 3
    assert kept(versions, Rules(days=0, monthly=9), at("2028-03-02T00:00")) == ["2028-02-28T02:00", "2028-03-01T02:00"]
    assert kept(versions[:1], Rules(days=2), at("2028-03-01T01:00")) == ["2028-02-28T02:00"]
    assert kept(versions[:1], Rules(days=2), at("2028-03-01T02:00")) == []


@pytest.mark.parametrize(
    ("rules", "says"),
    [
        (Rules(days=-1), "days is -1: give 0 or more"),
        (Rules(last=-1), "last is -1"),
        (Rules(days=400_000), "at most 364,635"),
        (Rules(days=0), "keep nothing"),
        (Rules(zone="Europe/Atlantis"), "no time zone 'Europe/Atlantis'"),
        (Rules(zone="../../etc/passwd"), "no time zone"),
        (Rules(zone=""), "no time zone"),
    ],
)
def test_wrong_rules_are_refused(rules: Rules, says: str):
    with pytest.raises(ValueError, match=says):
        judge([], rules, NOW)


WITHOUT_TABLE = """
import datetime as dt, sys
sys.modules["tzdata"] = None
from engine.retention import Rules, Version, judge
now = dt.datetime(2031, 5, 15, tzinfo=dt.UTC)
print(judge([Version(point="p", completed_at=now)], Rules(days=0, daily=1), now)[0].text)
try:
    judge([], Rules(daily=1, zone="Europe/Berlin"), now)
except ValueError as error:
    print(error)
"""


def test_utc_needs_no_table_of_time_zones():
    """A small container has none, unless the package tzdata is there."""
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TABLE], env={**os.environ, "PYTHONTZPATH": ""}, cwd=ROOT,
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert done.stdout.splitlines() == [
        "kept: first of day 2031-05-15",
        "this machine knows no time zone 'Europe/Berlin': give one such as Europe/Paris, or UTC",
    ]


ZONES = st.sampled_from(["UTC", "Europe/Berlin", "America/Havana", "Pacific/Apia", "Asia/Kathmandu"])
MOMENTS = st.integers(0, 8 * 365 * 24 * 60).map(lambda minutes: at("2026-01-01T00:00") + dt.timedelta(minutes=minutes))
RULES = st.builds(
    Rules, days=st.none() | st.integers(1, 800), **dict.fromkeys(COUNTS, st.integers(0, 5)),
    at_least_one=st.booleans(), zone=ZONES,
)  # fmt: skip


@st.composite
def many_versions(draw: st.DrawFn) -> list[Version]:
    moments = draw(st.lists(MOMENTS, max_size=30))
    return [
        Version(
            point=f"{number:03}", completed_at=moment, retention_days=draw(st.sampled_from([0, 1, 30, 365])),
            complete=draw(st.booleans()), held=draw(st.integers(0, 9)) == 0,
            locked_until=draw(st.none() | MOMENTS),
        )
        for number, moment in enumerate(moments)
    ]  # fmt: skip


@given(many_versions(), RULES, MOMENTS, st.sampled_from([*COUNTS, "at_least_one"]), st.integers(1, 5))
@settings(max_examples=150, deadline=None)
def test_one_more_rule_never_makes_a_kept_version_go(versions, rules, now, name, more):
    wider = {name: True} if name == "at_least_one" else {name: getattr(rules, name) + more}
    fields = {field: getattr(rules, field) for field in rules.__struct_fields__}
    assert set(kept(versions, rules, now)) <= set(kept(versions, Rules(**fields | wider), now))


@given(many_versions(), RULES, MOMENTS)
@settings(max_examples=100, deadline=None)
def test_at_least_one_leaves_the_newest_and_the_newest_complete_one(versions, rules, now):
    fields = {field: getattr(rules, field) for field in rules.__struct_fields__} | {"at_least_one": True}
    stay = set(kept(versions, Rules(**fields), now))
    for some in (versions, [version for version in versions if version.complete]):
        if some:
            assert max(some, key=lambda version: (version.completed_at, version.point)).point in stay


@given(many_versions(), RULES, MOMENTS, st.randoms())
@settings(max_examples=100, deadline=None)
def test_the_order_of_the_versions_says_nothing(versions, rules, now, chance):
    mixed = list(versions)
    chance.shuffle(mixed)
    assert judge(mixed, rules, now) == judge(versions, rules, now)


@given(many_versions(), RULES, MOMENTS)
@settings(max_examples=100, deadline=None)
def test_held_and_locked_versions_stay_and_each_verdict_has_a_reason(versions, rules, now):
    verdicts = {verdict.point: verdict for verdict in judge(versions, rules, now)}
    assert verdicts.keys() == {version.point for version in versions}
    for v in versions:
        verdict = verdicts[v.point]
        assert verdict.reasons
        assert verdict.keep or not (v.held or (v.locked_until is not None and v.locked_until > now))
        assert verdict.keep or (verdict.expires_at is not None and verdict.expires_at <= now)


def modelled(days: set[dt.date], today: dt.date, *, daily: int, weekly: int, monthly: int, yearly: int) -> set[dt.date]:
    """Return the nights that a grandfather-father-son plan keeps, found by walking the calendar back from today."""
    stay: set[dt.date] = set()
    if not days:
        return stay
    wanted = {"day": daily, "week": weekly, "month": monthly, "year": yearly}
    day = today
    while any(wanted.values()) and day >= dt.date(min(days).year, 1, 1):
        nights = {
            "day": [day],
            "week": [day + dt.timedelta(n) for n in range(7)] if day.weekday() == 0 else [],
            "month": [day + dt.timedelta(n) for n in range(calendar.monthrange(day.year, day.month)[1])]
            if day.day == 1
            else [],
            "year": [day + dt.timedelta(n) for n in range(366 if calendar.isleap(day.year) else 365)]
            if (day.month, day.day) == (1, 1)
            else [],
        }
        for period, span in nights.items():
            found = [night for night in span if night in days]
            if found and wanted[period]:
                stay.add(found[0])
                wanted[period] -= 1
        day -= dt.timedelta(1)
    return stay


def test_two_years_of_nightly_backups_leave_what_the_calendar_says():
    rules = Rules(days=0, daily=7, weekly=5, monthly=12, yearly=3, zone="Europe/Berlin")
    chance = random.Random(5)
    ever: set[dt.date] = set()
    held: dict[dt.date, Version] = {}
    start = dt.date(2027, 12, 20)  # over a leap day, two ends of years and eight changes of clocks
    for number in range(731):
        today = start + dt.timedelta(number)
        if chance.random() > 0.1:  # the host is off on some nights
            night = dt.datetime.combine(today, dt.time(0, 30), tzinfo=dt.UTC)
            held[today] = Version(point=f"{today}", completed_at=night)
            ever.add(today)
        now = dt.datetime.combine(today, dt.time(12), tzinfo=dt.UTC)
        stay = {verdict.point for verdict in judge(list(held.values()), rules, now) if verdict.keep}
        held = {day: version for day, version in held.items() if version.point in stay}
        # What earlier looks let go was never needed again: the model sees every night there ever was.
        if number % 3 == 0:
            assert set(held) == modelled(ever, today, daily=7, weekly=5, monthly=12, yearly=3)
    assert 20 < len(held) < 28


def test_a_hundred_thousand_versions_are_judged_in_seconds():
    versions = [
        Version(point=f"{number:06}", completed_at=NOW - dt.timedelta(minutes=17 * number)) for number in range(100_000)
    ]
    began_s = time.process_time()
    rules = Rules(days=30, last=5, daily=10, weekly=4, monthly=12, yearly=3, at_least_one=True, zone="Europe/Berlin")
    assert len(judge(versions, rules, NOW)) == 100_000
    assert time.process_time() - began_s < 20
