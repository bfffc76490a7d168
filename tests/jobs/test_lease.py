"""A step's lease lives as long as its worker works, also through a call that takes longer than a lease."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from django.utils import timezone

from accounts.services import SERVICE
from engine import halt
from engine.errors import Canceled
from engine.storage.throttle import Budget
from jobs import progress, services, steps
from jobs.models import Step
from jobs.progress import StepProgress
from jobs.states import JobState, Stage
from tests.support.people import whole_plan

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def step(settings) -> Step:
    settings.STEP_LEASE_S = 1
    job = services.request_backup(whole_plan(), actor=SERVICE, now=timezone.now())
    return steps.claim(services.first_step(job).pk, worker="w1", now=timezone.now())


def test_a_long_call_keeps_its_lease(step: Step) -> None:
    with StepProgress(step, clock=timezone.now).lease_kept():
        time.sleep(1.5)
    assert not Step.objects.stalled(timezone.now()).exists()


def test_without_a_keeper_the_lease_runs_out(step: Step) -> None:
    time.sleep(1.2)
    assert Step.objects.stalled(timezone.now()).exists()


def test_a_worker_that_reports_nothing_for_long_loses_its_lease(step: Step, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "SILENT_S_MAX", 0.1)
    with StepProgress(step, clock=timezone.now).lease_kept():
        time.sleep(1.5)
    assert Step.objects.stalled(timezone.now()).exists()


def test_a_worker_whose_bytes_flow_slowly_keeps_its_lease(step: Step, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "SILENT_S_MAX", 0.5)
    watched = StepProgress(step, clock=timezone.now)
    with watched.lease_kept(), halt.heard(watched.halt, flowing=watched.flowing):
        Budget(1000).take(1500)
    assert not Step.objects.stalled(timezone.now()).exists()


def test_the_keeper_leaves_a_step_alone_that_another_worker_took(step: Step) -> None:
    taken = timezone.now()
    Step.objects.filter(pk=step.pk).update(attempt=2, lease_until=taken)
    with StepProgress(step, clock=timezone.now).lease_kept():
        time.sleep(0.8)
    step.refresh_from_db()
    assert step.lease_until == taken


def order_to_stop(step: Step) -> None:
    services.request_cancel(step.job, actor=SERVICE, now=timezone.now())


@pytest.fixture
def quick(settings, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.STEP_CANCEL_CHECK_S = 0.1
    monkeypatch.setattr(progress, "RELEASED_AFTER_S", 0.3)


@pytest.mark.rule("C43")
def test_an_order_to_stop_is_heard_between_two_heartbeats_and_by_other_threads(step: Step, quick: None) -> None:
    watched = StepProgress(step, clock=lambda: step.created_at)  # no heartbeat ever comes due
    with watched.lease_kept():
        watched.check()
        order_to_stop(step)
        time.sleep(0.25)
        with ThreadPoolExecutor(1) as other, pytest.raises(Canceled):
            other.submit(watched.halt).result()
        with pytest.raises(Canceled):
            watched.check()
        watched.halt()  # the work's own thread heard it, and tidies up


@pytest.mark.rule("C43")
def test_a_worker_that_hangs_after_the_order_to_stop_loses_its_step_and_the_job_ends(step: Step, quick: None) -> None:
    with StepProgress(step, clock=timezone.now).lease_kept():
        order_to_stop(step)
        time.sleep(0.9)
        step.job.refresh_from_db()
        assert step.job.state == JobState.CANCELED
    with pytest.raises(steps.Fenced):
        steps.end_plan(step, units_total=1, units_done=0, now=timezone.now())


def test_what_may_be_committing_is_neither_stopped_nor_released(step: Step, quick: None) -> None:
    step.stage = Stage.FINISH
    watched = StepProgress(step, clock=lambda: step.created_at)
    watched.phase("commit")
    with watched.lease_kept():
        order_to_stop(step)
        time.sleep(0.7)
        watched.halt()
    step.job.refresh_from_db()
    assert step.job.state == JobState.CANCELING
