"""A step is done by one worker at a time, and nothing is lost or done twice in the books."""

import datetime as dt

import pytest
from django.conf import settings

from accounts.services import SERVICE
from engine.errors import Canceled
from jobs import services, steps
from jobs.models import Job, Step
from jobs.states import ATTEMPTS_MAX, JobState, Stage, StepState
from jobs.steps import Counters, Fenced, NotClaimable
from tests.support.people import T0, whole_plan

pytestmark = pytest.mark.django_db


def later(seconds: float) -> dt.datetime:
    return T0 + dt.timedelta(seconds=seconds)


LEASE_OVER = T0 + dt.timedelta(seconds=settings.STEP_LEASE_S + 1)


@pytest.fixture
def job() -> Job:
    return services.request_backup(whole_plan(), actor=SERVICE, now=T0)


@pytest.fixture
def planner(job: Job) -> Step:
    return services.first_step(job)


def claim(step: Step, worker: str = "w1", now: dt.datetime = T0) -> Step:
    return steps.claim(step.pk, worker=worker, now=now)


def planned(job: Job, units: int) -> list[Step]:
    """Claim and end the planner; return the claimed steps of its units."""
    mine = claim(services.first_step(job))
    made = [steps.add_work(mine, number=number, now=T0) for number in range(units)]
    steps.end_plan(mine, units_total=units, units_done=0, now=T0)
    return [claim(step) for step in made]


def test_a_claimed_step_runs_its_job_and_has_a_lease(job, planner):
    step = claim(planner)
    job.refresh_from_db()
    assert (step.state, step.attempt, step.worker) == (StepState.RUNNING, 1, "w1")
    assert step.lease_until == later(settings.STEP_LEASE_S)
    assert (job.state, job.started_at) == (JobState.RUNNING, T0)


def test_a_second_delivery_of_the_same_message_finds_nothing_to_claim(planner):
    claim(planner)
    with pytest.raises(NotClaimable):
        claim(planner, "w2", later(1))


def test_a_message_for_a_step_that_does_not_exist_is_ignored():
    with pytest.raises(NotClaimable):
        steps.claim(12345, worker="w", now=T0)


def test_a_refused_claim_leaves_the_job_as_it_was(job, planner):
    Step.objects.update(not_before=later(60))
    with pytest.raises(NotClaimable):
        claim(planner)
    job.refresh_from_db()
    assert (job.state, job.started_at) == (JobState.QUEUED, None)


def test_a_step_of_an_ended_job_cannot_be_claimed(job, planner):
    services.request_cancel(job, actor=SERVICE, now=T0)
    with pytest.raises(NotClaimable):
        claim(planner)


def test_the_step_of_a_dead_worker_is_claimed_anew_after_its_lease(job):
    (step,) = planned(job, 1)
    again = claim(step, "w2", LEASE_OVER)
    assert (again.attempt, again.worker, again.round) == (2, "w2", 1)


def test_a_late_worker_is_fenced_from_every_write(job):
    (late,) = planned(job, 1)
    claim(late, "w2", LEASE_OVER)
    for write in (
        lambda: steps.heartbeat(late, Counters(1, 1, 1), phase="process", now=LEASE_OVER),
        lambda: steps.renew(late, now=LEASE_OVER),
        lambda: steps.end_work(late, now=LEASE_OVER),
        lambda: steps.fail(late, error="x", code="x", transient=False, now=LEASE_OVER),
        lambda: steps.cancel(late, now=LEASE_OVER),
    ):
        with pytest.raises(Fenced):
            write()
    job.refresh_from_db()
    assert (job.state, job.units_done, job.bytes_done) == (JobState.RUNNING, 0, 0)


def test_a_planner_claimed_anew_begins_a_new_round_and_the_old_rounds_steps_are_canceled(job, planner):
    first = claim(planner)
    old = steps.add_work(first, number=0, now=T0)
    running = claim(old)
    again = claim(planner, "w2", LEASE_OVER)
    old.refresh_from_db()
    assert (again.round, old.state) == (2, StepState.CANCELED)
    with pytest.raises(Fenced):
        steps.end_work(running, now=LEASE_OVER)
    with pytest.raises(Fenced):
        steps.add_work(first, number=1, now=LEASE_OVER)
    with pytest.raises(NotClaimable):
        claim(old, "w3", LEASE_OVER)
    steps.add_work(again, number=0, now=LEASE_OVER)


def test_a_heartbeat_renews_the_lease_and_counts_once(job, planner):
    step = claim(planner)
    steps.heartbeat(step, Counters(2, 20, 10), phase="scan", now=later(10))
    steps.heartbeat(step, Counters(3, 30, 15), phase="", now=later(20))
    job.refresh_from_db()
    step.refresh_from_db()
    assert step.lease_until == later(20 + settings.STEP_LEASE_S)
    assert (job.entries_done, job.bytes_done, job.bytes_stored, job.phase) == (3, 30, 15, "scan")


def test_what_a_dead_attempt_counted_is_taken_back(job):
    (step,) = planned(job, 1)
    steps.heartbeat(step, Counters(5, 50, 25), phase="process", now=T0)
    claim(step, "w2", LEASE_OVER)
    job.refresh_from_db()
    assert (job.entries_done, job.bytes_done, job.bytes_stored) == (0, 0, 0)


def test_the_last_unit_begins_the_last_stage_exactly_once(job):
    one, two = planned(job, 2)
    assert steps.end_work(one, now=T0) == []
    [finish] = steps.end_work(two, now=T0)
    assert finish is not None
    assert (finish.stage, finish.queue) == (Stage.FINISH, job.queue_finish)
    assert job.steps.filter(stage=Stage.FINISH).count() == 1


def test_units_that_end_before_the_planner_wait_for_it(job, planner):
    mine = claim(planner)
    unit = claim(steps.add_work(mine, number=0, now=T0))
    assert steps.end_work(unit, now=T0) == []
    [finish] = steps.end_plan(mine, units_total=2, units_done=1, now=T0)
    assert finish is not None
    assert finish.stage == Stage.FINISH


def test_a_job_without_work_goes_from_plan_to_finish(job, planner):
    [finish] = steps.end_plan(claim(planner), units_total=0, units_done=0, now=T0)
    assert finish is not None
    steps.end_finish(claim(finish), state=JobState.COMPLETE, now=later(5))
    job.refresh_from_db()
    assert (job.state, job.ended_at) == (JobState.COMPLETE, later(5))


def test_a_transient_error_gives_the_step_back_to_wait(job):
    (step,) = planned(job, 1)
    steps.fail(step, error="slow down", code="unavailable", transient=True, now=T0)
    step.refresh_from_db()
    job.refresh_from_db()
    assert (step.state, job.state) == (StepState.QUEUED, JobState.RUNNING)
    with pytest.raises(NotClaimable):
        claim(step)
    assert claim(step, now=later(60)).attempt == 2


def test_a_transient_error_at_the_last_attempt_fails_the_job(job):
    (step,) = planned(job, 1)
    now = T0
    for _ in range(ATTEMPTS_MAX - 1):
        steps.fail(step, error="slow down", code="unavailable", transient=True, now=now)
        now += dt.timedelta(hours=1)
        step = claim(step, now=now)
    steps.fail(step, error="slow down", code="unavailable", transient=True, now=now)
    job.refresh_from_db()
    assert (job.state, job.error, job.error_code) == (JobState.FAILED, "slow down", "unavailable")


def test_a_permanent_error_fails_the_job_and_cancels_its_other_steps(job):
    one, two = planned(job, 2)
    steps.fail(one, error="/srv/data does not exist", code="source_missing", transient=False, now=T0)
    job.refresh_from_db()
    two.refresh_from_db()
    assert (job.state, job.error, two.state) == (JobState.FAILED, "/srv/data does not exist", StepState.CANCELED)
    with pytest.raises(Fenced):
        steps.heartbeat(two, Counters(), phase="", now=T0)


@pytest.mark.rule("C43")
def test_canceling_ends_waiting_steps_at_once_and_running_ones_at_their_next_check(job, planner):
    mine = claim(planner)
    waiting = steps.add_work(mine, number=0, now=T0)
    services.request_cancel(job, actor=SERVICE, now=T0)
    waiting.refresh_from_db()
    job.refresh_from_db()
    assert (waiting.state, job.state) == (StepState.CANCELED, JobState.CANCELING)
    with pytest.raises(Canceled, match="canceled by a person"):
        steps.heartbeat(mine, Counters(), phase="", now=later(1))
    steps.cancel(mine, now=later(2))
    job.refresh_from_db()
    assert (job.state, job.ended_at) == (JobState.CANCELED, later(2))


@pytest.mark.rule("C43")
def test_a_job_that_only_waits_is_canceled_at_once(job):
    services.request_cancel(job, actor=SERVICE, now=T0)
    services.request_cancel(job, actor=SERVICE, now=T0)
    job.refresh_from_db()
    assert job.state == JobState.CANCELED


def test_canceling_an_ended_job_is_refused(job, planner):
    [finish] = steps.end_plan(claim(planner), units_total=0, units_done=0, now=T0)
    steps.end_finish(claim(finish), state=JobState.COMPLETE, now=T0)
    with pytest.raises(services.JobEnded):
        services.request_cancel(job, actor=SERVICE, now=T0)


def test_a_cancel_that_comes_after_the_commit_point_is_too_late(job, planner):
    [finish] = steps.end_plan(claim(planner), units_total=0, units_done=0, now=T0)
    mine = claim(finish)
    services.request_cancel(job, actor=SERVICE, now=T0)
    steps.end_finish(mine, state=JobState.COMPLETE, now=T0)
    job.refresh_from_db()
    assert job.state == JobState.COMPLETE


def test_no_last_stage_begins_for_a_job_that_is_being_canceled(job):
    (step,) = planned(job, 1)
    services.request_cancel(job, actor=SERVICE, now=T0)
    assert steps.end_work(step, now=T0) == []
    job.refresh_from_db()
    assert job.state == JobState.CANCELED


def test_a_worker_that_dies_too_often_fails_the_job_with_a_clear_text(job):
    (step,) = planned(job, 1)
    now = T0
    for _ in range(ATTEMPTS_MAX - 1):
        now += dt.timedelta(hours=1)
        assert steps.give_up(step, now=now)
        step = claim(step, now=now)
    assert not steps.give_up(step, now=now + dt.timedelta(hours=1))
    job.refresh_from_db()
    assert job.state == JobState.FAILED
    assert "stopped without a word" in job.error


def test_the_dead_worker_of_a_canceled_job_does_not_keep_it_open(job):
    (step,) = planned(job, 1)
    services.request_cancel(job, actor=SERVICE, now=T0)
    assert not steps.give_up(step, now=LEASE_OVER)
    job.refresh_from_db()
    assert job.state == JobState.CANCELED
