"""Jobs keep to their limits: the rate over any ten seconds, the steps at once, the share of a core."""

import datetime as dt
from bisect import bisect_left

import pytest

from accounts.services import SERVICE
from engine.storage.throttle import SLICE_BYTES, Budget
from engine.verbs.cutter import UNIT_BYTES
from jobs import services, steps
from jobs.models import Job, Step
from jobs.speed import UNIT_BYTES_PACED, Share, Speed, unit_bytes
from jobs.steps import NotClaimable
from tests.support.people import T0, whole_plan
from vaults.limits import Limits, Window

LOW, HIGH = Limits(bytes_per_s=10_000_000, parallel_max=1), Limits(bytes_per_s=30_000_000, parallel_max=2)


class Time:
    """A clock that sleeping moves on."""

    def __init__(self) -> None:
        self.s = 0.0

    def __call__(self) -> float:
        return self.s

    def sleep(self, seconds: float) -> None:
        self.s += seconds

    def now(self) -> dt.datetime:
        return T0 + dt.timedelta(seconds=self.s)


def flow(limits: Limits, *, until_s: float, idle_s: tuple[float, float] = (0, 0)) -> list[tuple[float, int]]:
    """Return what one step takes in slices, with the moments, resting in between once."""
    time = Time()
    speed = Speed(limits, clock=time.now, budget=Budget(0, clock=time, sleep=time.sleep))
    taken = []
    while time.s < until_s:
        if idle_s[0] < time.s < idle_s[1]:
            time.s = idle_s[1]
        speed.take(SLICE_BYTES)
        taken.append((time.s, SLICE_BYTES))
    return taken


def most_in_10_s(taken: list[tuple[float, int]]) -> int:
    taken = sorted(taken)
    moments = [moment for moment, _ in taken]
    return max(
        sum(count for _, count in taken[number : bisect_left(moments, moment + 10)])
        for number, moment in enumerate(moments)
    )


@pytest.mark.rule("C10")
def test_low_priority_never_takes_more_than_10_mb_a_second_over_any_ten_seconds():
    for idle in ((0, 0), (20, 35)):
        taken = flow(LOW, until_s=60, idle_s=idle)
        assert 0.95 * 100_000_000 < most_in_10_s(taken) <= 100_000_000


@pytest.mark.rule("C15")
def test_two_steps_of_high_priority_take_30_mb_a_second_together():
    taken = flow(HIGH, until_s=40) + flow(HIGH, until_s=40, idle_s=(7, 11))
    assert 0.95 * 300_000_000 < most_in_10_s(taken) <= 300_000_000


def test_the_limit_follows_the_time_of_day_while_a_step_runs():
    at_noon = Window((T0 + dt.timedelta(seconds=20)).time(), (T0 + dt.timedelta(seconds=40)).time(), 2_000_000)
    taken = flow(Limits(bytes_per_s=8_000_000, parallel_max=1, windows=(at_noon,)), until_s=60)
    rates = [sum(count for moment, count in taken if start <= moment < start + 10) / 10 for start in (5, 25, 45)]
    assert rates == pytest.approx([8_000_000, 2_000_000, 8_000_000], rel=0.04)


@pytest.mark.parametrize("percent", [10, 50, 100])
def test_a_share_of_a_core_is_kept_to(percent):
    time, used = Time(), 0.0

    def cpu() -> float:
        return used

    share = Share(percent, used=cpu, wall=time, sleep=time.sleep)
    while time.s < 100:
        used += 0.3
        time.s += 0.3
        share.rest()
    assert used / time.s == pytest.approx(percent / 100, rel=0.05)


@pytest.fixture
def limited() -> Job:
    plan = whole_plan()
    plan.policy.limits = {"parallel_max": 2}
    return services.request_backup(plan, actor=SERVICE, now=T0)


def claimed(step: Step) -> Step:
    return steps.claim(step.pk, worker="w", now=T0)


@pytest.mark.django_db
class TestStepsAtOnce:
    @pytest.mark.rule("C10", "C15")
    def test_no_more_steps_run_at_once_than_the_limit_says_and_each_end_calls_the_next(self, limited):
        planner = claimed(services.first_step(limited))
        units = [steps.add_work(planner, number=number, now=T0) for number in range(4)]
        first = claimed(units[0])
        with pytest.raises(NotClaimable):
            claimed(units[1])
        assert steps.end_plan(planner, units_total=4, units_done=0, now=T0) == units[1:3]
        second = claimed(units[1])
        with pytest.raises(NotClaimable):
            claimed(units[2])
        assert steps.end_work(first, now=T0) == [units[2]]
        third = claimed(units[2])
        assert steps.end_work(second, now=T0) == [units[3]]
        fourth = claimed(units[3])
        assert steps.end_work(third, now=T0) == []
        [finish] = steps.end_work(fourth, now=T0)
        assert claimed(finish).stage == "finish"

    def test_a_step_that_was_lost_may_be_claimed_anew_although_it_counts(self, limited):
        planner = claimed(services.first_step(limited))
        unit, other = (steps.add_work(planner, number=number, now=T0) for number in range(2))
        steps.end_plan(planner, units_total=2, units_done=0, now=T0)
        claimed(unit)
        claimed(other)
        later = T0 + dt.timedelta(hours=1)
        assert steps.claim(unit.pk, worker="w2", now=later).attempt == 2

    @pytest.mark.rule("C37")
    def test_what_is_changed_later_holds_for_the_next_job(self, limited):
        limited.plan.policy.limits = {"parallel_max": 5}
        limited.plan.policy.save()
        limited.refresh_from_db()
        assert limited.limits["parallel_max"] == 2


@pytest.mark.parametrize(
    ("limits", "size"),
    [
        (Limits(), UNIT_BYTES),
        (LOW, UNIT_BYTES_PACED),
        (HIGH, UNIT_BYTES_PACED),
        (Limits(bytes_per_s=400_000, parallel_max=1), 400_000 * 300),
        (Limits(bytes_per_s=1000, parallel_max=1), UNIT_BYTES),
        (Limits(windows=(Window(dt.time(3), dt.time(4), 1_000_000),)), UNIT_BYTES_PACED),
    ],
)
def test_steps_of_a_limited_job_are_long_enough_to_send_while_they_read_and_end_within_minutes(limits, size):
    assert unit_bytes(limits, now=T0) == size
