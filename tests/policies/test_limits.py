"""How fast backups may run, by time of day."""

import datetime as dt

import pytest
from django.core.exceptions import ValidationError

from accounts.services import SERVICE
from policies import limits, services
from policies.models import Policy
from tests.support.people import T0, make_account, whole_plan
from vaults.limits import Window, kept, load

pytestmark = pytest.mark.django_db

NIGHT = Window(dt.time(22), dt.time(6), 0)


def test_a_policys_limits_are_its_plans_and_its_jobs():
    plan = whole_plan()
    plan.policy.limits = {"bytes_per_s": 4_000_000, "windows": [{"start": "22:00", "end": "06:00"}]}
    services.save_policy(plan.policy, actor=SERVICE, now=T0)
    plan.time_zone = "Asia/Tokyo"
    found = limits.of(plan)
    assert (found.bytes_per_s, found.windows, found.zone) == (4_000_000, (NIGHT,), "Asia/Tokyo")
    assert load(kept(found)) == found


def test_no_limits_are_kept_as_nothing():
    assert kept(limits.of(whole_plan())) == {}


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
