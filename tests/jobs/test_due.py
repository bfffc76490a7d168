"""Due plans: in batches, missed moments one by one, and nothing twice."""

import datetime as dt
import threading

import pytest
from django.db import connection

from accounts.services import SERVICE
from jobs import due, presence, services
from jobs.models import Job, JobEvent, Step
from jobs.states import JobState, Trigger
from policies.models import Edition, Plan, Rule
from tests.support.people import T0, make_plan, make_source, online, whole_plan
from vaults.models import Vault, VaultState

pytestmark = pytest.mark.django_db
HOUR, DAY = dt.timedelta(hours=1), dt.timedelta(days=1)


@pytest.fixture
def plan() -> Plan:
    return whole_plan()


def hourly(plan: Plan, *, every: int = 1, cron: str = "", catch_up: bool = False) -> Plan:
    """Let the plan run each hour on the hour since T0."""
    plan.policy.rules.update(unit="hour", every=every, start_time=dt.time(), cron=cron)
    Plan.objects.update(catch_up=catch_up)
    return Plan.objects.get()


def fleet(plan: Plan, count: int) -> list[Plan]:
    """Make more plans of sources on hosts of their own, all due at T0."""
    sources = [make_source(plan.account, plan.vault.region, f"host{number}") for number in range(count)]
    return [make_plan(source, plan.policy, plan.vault) for source in sources]


def settle(now: dt.datetime = T0) -> due.Settled:
    return due.settle(now=now, served=presence.queues(now=now))


def ends(plan: Plan) -> list[tuple[str, str, str]]:
    jobs = Job.objects.filter(plan=plan, scheduled_for__isnull=False).order_by("scheduled_for")
    return [(f"{job.scheduled_for:%d %H:%M}", job.state, job.error_code) for job in jobs]


@pytest.mark.rule("C19")
def test_after_an_outage_each_missed_moment_is_recorded_and_the_newest_one_runs(plan):
    hourly(plan)
    now = T0 + HOUR * 3.5
    online(plan.source.queue, at=now)
    assert settle(now).plans == 1
    assert ends(plan) == [
        ("10 12:00", JobState.MISSED, "service_away"),
        ("10 13:00", JobState.MISSED, "service_away"),
        ("10 14:00", JobState.MISSED, "service_away"),
        ("10 15:00", JobState.QUEUED, ""),
    ]
    plan.refresh_from_db()
    assert (plan.last_run_at, plan.next_run_at) == (T0 + 3 * HOUR, T0 + 4 * HOUR)
    assert "was not running at 2026-03-10 13:00 UTC" in Job.objects.get(scheduled_for=T0 + HOUR).error


@pytest.mark.rule("C19")
@pytest.mark.parametrize(
    ("cron", "outage", "recorded", "before", "told"),
    [
        ("", 60 * DAY, 100, 60 * 24 + 1 - 100, "1,341 earlier moments since 2026-03-10 12:00 UTC"),
        ("* * * * *", 8 * DAY, 100, due.COUNTED_MAX - 100, "at least 9,900 earlier moments"),
    ],
)
def test_a_long_outage_makes_a_bounded_number_of_records_and_the_oldest_tells_how_many_more(
    plan, cron, outage, recorded, before, told
):
    hourly(plan, cron=cron)
    now = T0 + outage
    online(plan.source.queue, at=now)
    settle(now)
    jobs = list(Job.objects.order_by("scheduled_for"))
    assert len(jobs) == recorded
    assert jobs[0].report["missed_before"] == before
    assert told in jobs[0].error
    assert (jobs[-1].scheduled_for, jobs[-1].state) == (now, JobState.QUEUED)
    plan.refresh_from_db()
    assert plan.next_run_at == now + (dt.timedelta(minutes=1) if cron else HOUR)


def test_a_plan_that_catches_up_runs_once_for_all_that_it_missed(plan):
    hourly(plan, every=24, catch_up=True)
    now = T0 + 3 * DAY
    online(plan.source.queue, at=now)
    settle(now)
    assert [end for end in ends(plan) if end[1] != JobState.MISSED] == [("13 00:00", JobState.QUEUED, "")]
    assert {code for _, state, code in ends(plan) if state == JobState.MISSED} == {"not_made_up"}
    assert len(ends(plan)) == 4


@pytest.mark.rule("C19")
def test_a_plan_that_catches_up_waits_for_its_host(plan):
    hourly(plan, every=24, catch_up=True)
    for hours in (0, 5):
        assert settle(T0 + hours * HOUR).left == {plan.pk}
    assert ends(plan) == []
    assert settle(T0 + 13 * HOUR).left == {plan.pk}
    assert ends(plan) == [("10 12:00", JobState.MISSED, "not_made_up")]
    online(plan.source.queue, at=T0 + 14 * HOUR)
    settle(T0 + 14 * HOUR)
    assert ends(plan)[1:] == [("11 00:00", JobState.QUEUED, "")]


@pytest.mark.rule("C54")
def test_two_plans_of_one_host_in_one_batch_are_one_job_and_one_skipped_run(plan):
    other = make_source(plan.account, plan.vault.region, "more of web1", host="web1")
    make_plan(other, plan.policy, plan.vault)
    online(plan.source.queue)
    settle()
    states = dict(Job.objects.values_list("state", "error"))
    assert set(states) == {JobState.QUEUED, JobState.SKIPPED}
    assert str(Job.objects.active().get().pk) in states[JobState.SKIPPED]


def essential(plan: Plan, count: int) -> list[Plan]:
    """Make the plan and others the volumes of one host under essential backup."""
    for number in range(count - 1):
        source = make_source(plan.account, plan.vault.region, f"web1:/{number}", host="web1")
        make_plan(source, plan.policy, plan.vault)
    Plan.objects.update(edition=Edition.ESSENTIAL)
    return list(Plan.objects.all())


@pytest.mark.rule("C23", "C52")
def test_the_volumes_of_a_host_take_turns_in_essential_backup(plan):
    essential(plan, 3)
    now = T0
    for turn in range(3):
        online("host.web1", at=now)
        settled = settle(now)
        assert (len(settled.steps), len(settled.left)) == (1, 2 - turn)
        now += 3 * HOUR
        Job.objects.filter(state=JobState.QUEUED).update(state=JobState.COMPLETE)
    assert Job.objects.filter(state=JobState.COMPLETE, scheduled_for=T0).count() == Job.objects.count() == 3


@pytest.mark.rule("C54")
def test_volumes_whose_turn_never_came_are_told_as_skipped_the_next_day(plan):
    essential(plan, 2)
    online("host.web1")
    settle()
    settle(T0 + 14 * HOUR)
    assert dict(Job.objects.values_list("state", "error_code")) == {
        JobState.QUEUED: "",
        JobState.SKIPPED: "previous_running",
    }


def test_a_vault_in_trouble_lets_its_plans_runs_be_skipped(plan):
    online(plan.source.queue)
    Vault.objects.update(state=VaultState.ERROR)
    settle()
    assert ends(plan) == [("10 12:00", JobState.SKIPPED, "vault_not_ready")]


@pytest.mark.parametrize("count", [1, 20])
def test_a_batch_costs_as_many_queries_however_many_plans_it_has(plan, django_assert_num_queries, count):
    # Up to 20: the rows of more jobs are too many variables for one statement of SQLite.
    fleet(plan, count)
    online(*[f"host.{name}" for name in Plan.objects.values_list("source__host", flat=True)])
    with django_assert_num_queries(18):
        settle()
    assert Job.objects.active().count() == count + 1


def test_every_job_of_a_batch_has_its_first_step_and_its_story(plan):
    fleet(plan, 5)
    queues = [f"host.host{number}" for number in range(4)]
    online(*queues)
    settled = settle()
    assert sorted(step.queue for step in settled.steps) == queues
    assert all(services.first_step(step.job) == step for step in Step.objects.select_related("job"))
    started = Job.objects.active()
    assert {(job.trigger, job.scheduled_for, job.round, job.rule) for job in started} == {
        (Trigger.SCHEDULED, T0, 1, Rule.objects.get())
    }
    assert JobEvent.objects.count() == Job.objects.count() == 6
    assert Job.objects.filter(state=JobState.MISSED, error_code="worker_away").count() == 2


def test_what_the_database_refuses_is_tried_again_plan_by_plan(plan, monkeypatch):
    fleet(plan, 3)
    online(*[f"host.{name}" for name in ("web1", "host0", "host1", "host2")])
    services.request_backup(plan, actor=SERVICE, now=T0)
    seen = due._running
    # As if the backup by hand began right after the batch had looked.
    monkeypatch.setattr(due, "_running", lambda plans: {} if len(plans) > 1 else seen(plans))
    settled = settle()
    assert (settled.plans, len(settled.steps)) == (4, 3)
    assert ends(plan)[-1] == ("10 12:00", JobState.SKIPPED, "previous_running")


def test_a_moment_that_has_its_job_gets_no_second_one_and_the_plan_moves_on(plan):
    online(plan.source.queue)
    settle()
    Job.objects.update(state=JobState.COMPLETE)
    Plan.objects.update(next_run_at=T0)
    settle()
    plan.refresh_from_db()
    assert Job.objects.count() == 1
    assert plan.next_run_at is not None
    assert plan.next_run_at > T0


@pytest.mark.django_db(transaction=True)
def test_two_sweeps_at_once_start_nothing_twice(plan):
    fleet(plan, 40)
    online(*[f"host.{name}" for name in Plan.objects.values_list("source__host", flat=True)])
    ready = threading.Barrier(3)

    def sweep() -> None:
        try:
            ready.wait()
            settle()
        finally:
            connection.close()

    threads = [threading.Thread(target=sweep) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert Job.objects.active().count() == Job.objects.count() == 41
    assert not Plan.objects.due(T0).exists()
