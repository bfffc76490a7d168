"""The messages and the sweeps: every one may come twice, late, or not at all."""

import datetime as dt

import pytest
import time_machine
from django.core.management import call_command
from django.utils import timezone
from django_celery_beat.models import PeriodicTask
from kombu.exceptions import OperationalError

from accounts.services import SERVICE
from jobs import beat, doorbell, presence, services, steps, tasks
from jobs.models import BeatLease, Job, Step, Worker
from jobs.states import ATTEMPTS_MAX, JobState, Stage, StepState
from policies.models import Plan
from tests.support.control import Site, make_site
from tests.support.people import T0, online
from vaults.models import RecoveryPoint

pytestmark = pytest.mark.django_db
HOUR = dt.timedelta(hours=1)


@pytest.fixture
def site(tmp_path) -> Site:
    return make_site(tmp_path)


@pytest.fixture
def rung(monkeypatch) -> list[tuple[int, str]]:
    """Collect the messages instead of sending them: (step, queue)."""
    sent: list[tuple[int, str]] = []

    class Broker:
        def send_task(self, name: str, *, args: tuple[int], queue: str, retry: bool) -> None:
            sent.append((args[0], queue))

    monkeypatch.setattr(doorbell, "current_app", Broker())
    monkeypatch.setattr("django.db.transaction.on_commit", lambda call, **_: call())
    return sent


def backup(site: Site) -> Job:
    return services.request_backup(site.plan, actor=SERVICE, now=T0)


def test_a_job_runs_to_its_end_by_following_its_own_doorbells_each_heard_twice(site, rung):
    job = backup(site)
    with time_machine.travel(T0):
        doorbell.ring(services.first_step(job), now=T0)
        for step, queue in rung:  # grows while it is followed
            tasks.run_step(step)
            tasks.run_step(step)
            assert queue in (job.queue_work, job.queue_finish)
    job.refresh_from_db()
    assert job.state == JobState.COMPLETE
    assert RecoveryPoint.objects.count() == 1
    assert set(job.steps.values_list("attempt", flat=True)) == {1}


def test_a_due_plan_starts_once_however_often_the_sweep_runs(site, rung):
    online(site.source.queue)
    with time_machine.travel(T0):
        tasks.sweep_due_plans()
        tasks.sweep_due_plans()
    assert Job.objects.count() == 1
    assert rung == [(services.first_step(Job.objects.get()).pk, "host.acme-web")]


def test_a_skipped_run_rings_for_nobody(site, rung):
    backup(site)
    with time_machine.travel(T0):
        tasks.sweep_due_plans()
    assert Job.objects.filter(state=JobState.SKIPPED).count() == 1
    assert rung == []


def test_a_doorbell_that_was_never_sent_is_rung_by_the_sweep_and_then_left_in_peace(site, rung, settings):
    step = services.first_step(backup(site))
    with time_machine.travel(T0):
        tasks.sweep_steps()
        tasks.sweep_steps()
    assert rung == [(step.pk, step.queue)]
    with time_machine.travel(T0 + dt.timedelta(seconds=settings.STEP_RING_AGAIN_S + 1)):
        tasks.sweep_steps()
    assert len(rung) == 2


def test_a_broker_that_does_not_answer_delays_and_loses_nothing(site, monkeypatch, rung):
    class Away:
        def send_task(self, *args: object, **kwargs: object) -> None:
            raise OperationalError("connection refused")

    step = services.first_step(backup(site))
    with monkeypatch.context() as patch:
        patch.setattr(doorbell, "current_app", Away())
        doorbell.ring(step, now=T0)
    step.refresh_from_db()
    assert step.rung_at is None
    with time_machine.travel(T0):
        tasks.sweep_steps()
    assert len(rung) == 1


def test_the_step_of_a_dead_worker_is_rung_for_once_its_lease_ran_out(site, rung):
    step = services.first_step(backup(site))
    doorbell.ring(step, now=T0)
    steps.claim(step.pk, worker="w1", now=T0)
    with time_machine.travel(T0 + dt.timedelta(seconds=5)):
        tasks.sweep_steps()
    assert len(rung) == 1
    with time_machine.travel(T0 + HOUR):
        tasks.sweep_steps()
        tasks.sweep_steps()
    assert len(rung) == 2


def test_a_step_that_kills_its_workers_is_given_up(site, rung):
    job = backup(site)
    step = services.first_step(job)
    now = T0
    for _ in range(ATTEMPTS_MAX):
        steps.claim(step.pk, worker="w1", now=now)
        now += HOUR
    with time_machine.travel(now):
        tasks.sweep_steps()
    job.refresh_from_db()
    assert (job.state, job.error_code) == (JobState.FAILED, "worker_lost")


def test_a_step_given_back_is_rung_for_when_its_waiting_time_is_over(site, rung):
    step = steps.claim(services.first_step(backup(site)).pk, worker="w1", now=T0)
    steps.fail(step, error="slow down", code="unavailable", transient=True, now=T0)
    with time_machine.travel(T0 + dt.timedelta(seconds=1)):
        tasks.sweep_steps()
    assert rung == []
    with time_machine.travel(T0 + dt.timedelta(seconds=10)):
        tasks.sweep_steps()
        tasks.sweep_steps()
    assert len(rung) == 1


def test_the_sweep_ends_a_canceled_job_whose_workers_are_dead(site, rung):
    job = backup(site)
    steps.claim(services.first_step(job).pk, worker="w1", now=T0)
    services.request_cancel(job, actor=SERVICE, now=T0)
    with time_machine.travel(T0 + HOUR):
        tasks.sweep_steps()
        tasks.sweep_steps()
    job.refresh_from_db()
    assert job.state == JobState.CANCELED


def test_a_fenced_session_plans_the_job_anew(site, rung):
    job = backup(site)
    planner = steps.claim(services.first_step(job).pk, worker="w1", now=T0)
    unit = steps.add_work(planner, number=0, now=T0)
    steps.end_plan(planner, units_total=1, units_done=0, now=T0)
    steps.plan_anew(steps.claim(unit.pk, worker="w1", now=T0), error="taken for dead", now=T0)
    job.refresh_from_db()
    assert (job.state, job.round) == (JobState.RUNNING, 1)
    again = steps.claim(planner.pk, worker="w1", now=T0 + HOUR)
    assert (again.round, again.stage) == (2, Stage.PLAN)
    assert Step.objects.get(pk=unit.pk).state == StepState.FAILED


def test_ended_jobs_are_cleaned_once(site, rung):
    job = backup(site)
    services.request_cancel(job, actor=SERVICE, now=T0)
    tasks.sweep_ended_jobs()
    tasks.sweep_ended_jobs()
    job.refresh_from_db()
    assert job.cleaned


def test_workers_that_died_are_forgotten_after_a_day():
    now = timezone.now()
    presence.seen("killed@web1", ["host.web1"], now=now - dt.timedelta(hours=25))
    presence.seen("quiet@web1", ["host.web1"], now=now - dt.timedelta(hours=23))
    tasks.sweep_ended_jobs()
    assert list(Worker.objects.values_list("name", flat=True)) == ["quiet@web1"]


def test_the_sweeps_are_declared_once_however_often_a_start_does_it(capsys):
    call_command("setup_beat")
    call_command("setup_beat")
    declared = set(PeriodicTask.objects.values_list("task", flat=True))
    sweeps = ("due_plans", "maintenance", "steps", "ended_jobs", "exports", "metering", "alerts")
    assert declared == {f"jobs.sweep_{name}" for name in sweeps}
    assert PeriodicTask.objects.count() == len(sweeps)


class TestBeatLease:
    def test_of_two_beats_one_ticks(self):
        assert beat.hold("a", now=T0)
        assert not beat.hold("b", now=T0 + dt.timedelta(seconds=5))
        assert beat.hold("a", now=T0 + dt.timedelta(seconds=5))

    def test_the_other_takes_over_when_the_first_is_gone(self):
        beat.hold("a", now=T0)
        assert beat.hold("b", now=T0 + dt.timedelta(seconds=beat.LEASE_S))
        assert not beat.hold("a", now=T0 + dt.timedelta(seconds=beat.LEASE_S + 1))
        assert BeatLease.objects.get().holder == "b"


class TestPresence:
    def test_a_queue_is_served_while_its_worker_was_seen_lately(self, settings):
        presence.seen("w1", ["host.a", "region.b"], now=T0)
        assert presence.served("host.a", now=T0)
        assert not presence.served("host.b", now=T0)
        assert not presence.served("host.a", now=T0 + dt.timedelta(seconds=settings.WORKER_SEEN_S + 1))

    def test_a_worker_that_says_good_bye_is_forgotten(self):
        presence.seen("w1", ["host.a"], now=T0)
        presence.gone("w1")
        assert not Worker.objects.exists()


def test_ten_thousand_due_plans_do_not_make_the_sweep_read_them_all(site, django_assert_max_num_queries):
    Plan.objects.update(next_run_at=T0 + HOUR)
    with time_machine.travel(T0), django_assert_max_num_queries(9):
        tasks.sweep_due_plans()
