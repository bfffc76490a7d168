"""A step's lease lives as long as its worker works, also through a call that takes longer than a lease."""

import time

import pytest
from django.utils import timezone

from accounts.services import SERVICE
from jobs import progress, services, steps
from jobs.models import Step
from jobs.progress import StepProgress
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


def test_the_keeper_leaves_a_step_alone_that_another_worker_took(step: Step) -> None:
    taken = timezone.now()
    Step.objects.filter(pk=step.pk).update(attempt=2, lease_until=taken)
    with StepProgress(step, clock=timezone.now).lease_kept():
        time.sleep(0.8)
    step.refresh_from_db()
    assert step.lease_until == taken
