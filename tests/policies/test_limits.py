"""How fast backups may run, by time of day."""

import datetime as dt

import pytest
from django.core.exceptions import ValidationError

from accounts.services import SERVICE
from policies import limits, services
from policies.limits import Limits, Window
from policies.models import Policy
from tests.support.people import T0, make_account, whole_plan

pytestmark = pytest.mark.django_db

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


def test_times_of_day_are_in_the_plans_zone():
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


def test_a_policys_limits_are_its_plans_and_its_jobs():
    plan = whole_plan()
    plan.policy.limits = {"bytes_per_s": 4_000_000, "windows": [{"start": "22:00", "end": "06:00"}]}
    services.save_policy(plan.policy, actor=SERVICE, now=T0)
    plan.time_zone = "Asia/Tokyo"
    found = limits.of(plan)
    assert (found.bytes_per_s, found.windows, found.zone) == (4_000_000, (NIGHT,), "Asia/Tokyo")
    assert limits.load(limits.kept(found)) == found


def test_no_limits_are_kept_as_nothing():
    assert limits.kept(limits.of(whole_plan())) == {}


@pytest.mark.parametrize(
    ("values", "field", "message"),
    [
        ({"bytes_per_s": 999}, "limits.bytes_per_s", "at least 1000"),
        ({"bytes_per_s": 1500}, "limits", "too few for 2 steps"),
        ({"bytes_per_s": 10_000, "parallel_max": 11}, "limits", "too few for 11 steps"),
        ({"parallel_max": 65}, "limits.parallel_max", "less than or equal to 64"),
        ({"cpu_percent": 9}, "limits.cpu_percent", "greater than or equal to 10"),
        ({"windows": [{"start": "08:00", "end": "08:00"}]}, "limits.windows.0", "another time"),
        ({"windows": [{"start": "25:00", "end": "08:00"}]}, "limits.windows.0.start", "wrong format"),
        ({"windows": [{"start": "01:00", "end": "02:00"}] * 25}, "limits.windows", "at most 24"),
        ({"speed": 1}, "limits", "Unknown limits: speed"),
    ],
)
def test_bad_limits_are_refused_with_what_to_do(values, field, message):
    with pytest.raises(ValidationError, match=message) as caught:
        services.save_policy(Policy(account=make_account(), name="p", limits=values), actor=SERVICE, now=T0)
    assert [*caught.value.message_dict] == [field]
    assert not Policy.objects.exists()
