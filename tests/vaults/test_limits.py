"""How fast jobs may run, by time of day."""

import datetime as dt

import pytest

from tests.support.people import T0
from vaults.limits import Limits, Window

NIGHT = Window(dt.time(22), dt.time(6), 0)
NOON = Window(dt.time(12), dt.time(13), 5_000_000)


def at(text: str) -> dt.datetime:
    return dt.datetime.fromisoformat(f"2026-03-10T{text}+00:00")


@pytest.mark.parametrize(
    ("moment", "rate"),
    [
        ("11:59:59", 1_000_000),
        ("12:00", 5_000_000),
        ("12:59:59", 5_000_000),
        ("13:00", 1_000_000),
        ("22:00", 0),
        ("05:59:59", 0),
        ("06:00", 1_000_000),
    ],
)
def test_a_window_takes_its_start_and_not_its_end_and_may_go_over_midnight(moment, rate):
    assert Limits(bytes_per_s=1_000_000, windows=(NIGHT, NOON)).rate(at(moment)) == rate


def test_times_of_day_are_in_their_zone():
    in_tokyo = Limits(windows=(NOON,), zone="Asia/Tokyo")
    assert (in_tokyo.rate(at("03:30")), in_tokyo.rate(at("12:30"))) == (5_000_000, 0)


def test_the_rate_is_divided_among_the_steps_that_may_run_at_once():
    low, high = Limits(bytes_per_s=10_000_000, parallel_max=1), Limits(bytes_per_s=30_000_000, parallel_max=2)
    assert (low.share(T0), low.steps_max) == (10_000_000, 1)
    assert (high.share(T0), high.steps_max) == (15_000_000, 2)


def test_without_a_rate_any_number_of_steps_runs_and_with_one_two():
    assert Limits().steps_max == 0
    assert Limits(windows=(NOON,)).steps_max == 2
    assert Limits(windows=(NIGHT,)).steps_max == 0
