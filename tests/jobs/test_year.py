"""A year of many plans ends with exactly the jobs and the points that a plain model of it predicts."""

import datetime as dt
import heapq
from typing import Any

import pytest

from accounts.services import SERVICE
from jobs import due, steps
from jobs.models import Job
from jobs.states import JobState
from policies import rescheduling, retention, services
from policies.models import Plan, Policy, Rule
from tests.support.people import make_account, make_point, make_region, make_source, make_vault
from tests.support.year import BEGIN, STARTS_ON, TICK, Model, PlanSpec, RuleSpec, World, make_world, month_noon
from vaults.models import RecoveryPoint

pytestmark = pytest.mark.django_db


def rule_of(spec: RuleSpec) -> Rule:
    if spec.cron:
        return Rule(cron=spec.cron_text, retention_days=spec.days)
    return Rule(
        unit=spec.unit, every=spec.every, start_time=spec.time, weekdays=list(spec.weekdays), starts_on=STARTS_ON,
        window_minutes=spec.window_minutes, retention_days=spec.days,
    )  # fmt: skip


class Service:
    """The product living through a world's year: its sweeps, people's changes, and backups that only take time."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._running: list[tuple[dt.datetime, str, int]] = []
        account, region = make_account(), make_region()
        vault = make_vault(account, region)
        self.vault, self.plans = vault, {}
        for spec in world.plans:
            source = make_source(account, region, f"source {spec.number}", host=f"host{spec.host}")
            policy = Policy(
                account=account, name=f"policy {spec.number}", time_zone=spec.zone, retention_days=1,
                keep_last=spec.keep_last, keep_at_least_one=spec.keep_one,
            )  # fmt: skip
            services.save_policy(policy, rules=[rule_of(one) for one in spec.rules], actor=SERVICE, now=BEGIN)
            plan = Plan(
                pk=spec.key, source=source, policy=policy, vault=vault, catch_up=spec.catch_up,
                start_not_before=spec.not_before,
            )  # fmt: skip
            self.plans[spec.number] = services.create_plan(plan, actor=SERVICE, now=BEGIN)

    def run(self) -> None:
        changes = self.world.changes()
        month, looked = 1, BEGIN
        while True:
            first = Plan.objects.filter(next_run_at__isnull=False).order_by("next_run_at").first()
            times = [month_noon(month), *(end for end, *_ in self._running[:1]), *(at for at, *_ in changes[:1])]
            if first is not None and first.next_run_at is not None:
                times.append(self.world.tick(max(first.next_run_at, looked + TICK / 2)))
            now = min(times)
            if now >= self.world.end:
                return
            while self._running and self._running[0][0] <= now:
                self._end(*heapq.heappop(self._running))
            while changes and changes[0][0] <= now:
                self._change(*changes.pop(0))
            if now == month_noon(month):
                self._expire(now)
                month += 1
            if (now - BEGIN) % TICK == dt.timedelta() and self.world.beats(now):
                self._sweep(now)
                looked = now

    def _change(self, now: dt.datetime, spec: PlanSpec, what: str) -> None:
        plan = Plan.objects.select_related("account", "source", "vault", "policy").get(pk=spec.key)
        if what == "pause":
            services.pause(plan, actor=SERVICE, now=now)
        elif what == "resume":
            services.resume(plan, actor=SERVICE, now=now)
        elif spec.edited:
            rules = [rule_of(one) for one in spec.edited[1]]
            services.save_policy(plan.policy, rules=rules, actor=SERVICE, now=now)
            while rescheduling.go_on():
                pass

    def _sweep(self, now: dt.datetime) -> None:
        """Let two beats tick at the same moment."""
        served = {
            f"host.host{host}" for host in {plan.host for plan in self.world.plans} if self.world.serves(host, now)
        }
        for _ in range(2):
            for step in due.settle(now=now, served=served).steps:
                job = step.job
                Job.objects.filter(pk=job.pk).update(state=JobState.RUNNING)
                spec = next(one for one in self.world.plans if one.key == job.plan_id)
                assert job.scheduled_for is not None
                heapq.heappush(
                    self._running, (now + self.world.takes(spec, job.scheduled_for), str(job.pk), spec.number)
                )

    def _end(self, now: dt.datetime, key: str, number: int) -> None:
        spec, job = self.world.plans[number], Job.objects.get(pk=key)
        assert job.scheduled_for is not None
        if self.world.fails(spec, job.scheduled_for):
            steps.end_job(job.pk, state=JobState.FAILED, now=now, error="made up", error_code="made_up")
            return
        rule = str(job.rule_id or "")
        make_point(self.vault, self.plans[number].source, at=now, rule=rule, retention_days=1)
        steps.end_job(job.pk, state=JobState.COMPLETE, now=now)

    def _expire(self, now: dt.datetime) -> None:
        rules = retention.vault_rules(self.vault, now=now)
        for series, own in rules.items():
            judged = retention.preview(self.vault, series, own, now=now)
            RecoveryPoint.objects.filter(pk__in=[one.row.pk for one in judged if not one.verdict.keep]).delete()

    def ends(self) -> dict[tuple[int, dt.datetime], str]:
        numbers = {spec.key: spec.number for spec in self.world.plans}
        rows = Job.objects.exclude(state=JobState.RUNNING).values_list("plan", "scheduled_for", "state")
        return {(numbers[plan], at): state for plan, at, state in rows if at}

    def points(self) -> dict[int, list[dt.datetime]]:
        found: dict[int, list[dt.datetime]] = {}
        for number, plan in self.plans.items():
            rows = RecoveryPoint.objects.filter(series=plan.source.series).order_by("completed_at")
            if here := list(rows.values_list("completed_at", flat=True)):
                found[number] = here
        return found


def told(found: dict[Any, Any], expected: dict[Any, Any], world: World) -> str:
    """Return the first differences, each with its plan."""
    keys = [key for key in sorted({*found, *expected}, key=str) if found.get(key) != expected.get(key)]
    lines = []
    for key in keys[:6]:
        plan = world.plans[key[0] if isinstance(key, tuple) else key]
        lines.append(f"{key}: {found.get(key)}, expected {expected.get(key)}: {plan}")
    return f"{len(keys)} differences\n" + "\n".join(lines)


def live(seed: int, *, plans: int, days: int) -> None:
    world = make_world(seed, plans=plans, days=days)
    model = Model(world).run()
    service = Service(world)
    service.run()
    ends = service.ends()
    assert ends == model.ends, told(ends, model.ends, world)
    points = service.points()
    expected = {number: [one.completed_at for one in here] for number, here in model.points.items() if here}
    assert points == expected, told(points, expected, world)
    assert {*ends.values()} == {"complete", "failed", "missed", "skipped"}


@pytest.mark.parametrize("seed", [1, 2])
def test_three_months_of_twenty_plans_end_as_predicted(seed):
    live(seed, plans=20, days=100)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_year_of_two_hundred_plans_ends_as_predicted():
    live(7, plans=200, days=365)
