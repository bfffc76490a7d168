"""The life of a step, and how the end of one leads to the next stage of its job.

Every change is a conditional update inside a transaction that locks the job's row first and the step's second. A step
that runs is fenced by its attempt: the updates of a worker that lost its lease match no row and change nothing.
"""

import datetime as dt
import uuid
from collections.abc import Collection
from dataclasses import dataclass

from django.conf import settings
from django.db import transaction
from django.db.models import F, Q

from engine.errors import Canceled, Superseded
from jobs import alerts, doorbell, pace
from jobs.models import Job, JobEvent, Step
from jobs.states import ACTIVE, ATTEMPTS_MAX, ENDED, STEP_OPEN, JobState, Stage, StepState, before
from policies.editions import SPEEDS
from vaults.limits import PARALLEL_MAX, load

# No backup is large below this (C53): alerts need not look.
LARGE_BYTES_MIN = min(speed.day_bytes for speed in SPEEDS.values())
BACKOFF_S = (5, 30, 120, 600)


class NotClaimable(Exception):
    """Somebody else has the step, or it no longer waits: this doorbell rang for nothing."""


class Fenced(Superseded):
    """The worker no longer owns the step; whatever it still does counts for nothing."""


@dataclass(slots=True)
class Counters:
    """What a running step has done so far, in all."""

    entries_done: int = 0
    bytes_done: int = 0
    bytes_stored: int = 0


def tell(job_id: uuid.UUID, text: str, *, now: dt.datetime, level: str = "info") -> None:
    """Add a line to the job's story."""
    JobEvent.objects.create(job_id=job_id, happened_at=now, text=text, level=level)


@transaction.atomic
def claim(step_id: int, *, worker: str, now: dt.datetime) -> Step:
    """Take the step for this worker until its lease ends. Raises NotClaimable; safe to call twice.

    A planner claimed anew begins a new round: everything that earlier rounds made counts for nothing.
    """
    found = Step.objects.filter(pk=step_id).values_list("job_id", "job__limits").first()
    if found is None:
        raise NotClaimable(step_id)
    job_id, limits = found
    waiting = Job.objects.filter(pk=job_id, state__in=(JobState.QUEUED, JobState.RUNNING))
    if not waiting.update(state=JobState.RUNNING):
        raise NotClaimable(step_id)
    Job.objects.filter(pk=job_id, started_at=None).update(started_at=now)
    _check_room(step_id, job_id, load(limits).steps_max)
    free = Q(state=StepState.QUEUED) & (Q(not_before=None) | Q(not_before__lte=now))
    free |= Q(state=StepState.RUNNING, lease_until__lt=now)
    claimed = Step.objects.filter(free, pk=step_id, attempt__lt=ATTEMPTS_MAX).update(
        state=StepState.RUNNING,
        attempt=F("attempt") + 1,
        lease_until=now + dt.timedelta(seconds=settings.STEP_LEASE_S),
        worker=worker,
        started_at=now,
        error="",
    )
    if not claimed:
        raise NotClaimable(step_id)
    step = Step.objects.select_related("job").get(pk=step_id)
    _forget_progress(step)
    if step.stage == Stage.PLAN and step.attempt > 1:
        _new_round(step, now=now)
    elif step.round != step.job.round:
        raise NotClaimable(step_id)
    return step


def _check_room(step_id: int, job_id: uuid.UUID, most: int) -> None:
    """Raise NotClaimable while as many of the job's steps run as its limits allow (C10). The job's row is locked."""
    running = Step.objects.filter(job_id=job_id, state=StepState.RUNNING).exclude(pk=step_id)
    if most and running.count() >= most:
        raise NotClaimable(step_id)


def _waiting(job: Job, count: int) -> list[Step]:
    """Return the next steps of a limited job: their doorbells rang while there was no room. None of other jobs."""
    most = load(job.limits).steps_max
    steps = Step.objects.filter(job=job, state=StepState.QUEUED, not_before=None).order_by("round", "number")
    return list(steps[: min(count, most)])


def _forget_progress(step: Step) -> None:
    """Take back what an earlier attempt of this step had counted."""
    if step.entries_done or step.bytes_done or step.bytes_stored:
        _count(step, Counters())


def _new_round(step: Step, *, now: dt.datetime) -> None:
    round_ = step.job.round + 1
    Job.objects.filter(pk=step.job_id).update(
        round=round_,
        stage=Stage.PLAN,
        planned=False,
        units_total=0,
        units_done=0,
        entries_done=0,
        bytes_done=0,
        bytes_stored=0,
        samples=[],
    )
    Step.objects.open().filter(job_id=step.job_id).exclude(pk=step.pk).update(state=StepState.CANCELED, ended_at=now)
    Step.objects.filter(pk=step.pk).update(round=round_)
    tell(step.job_id, f"Planned anew (round {round_}): the earlier planner did not end", now=now, level="warning")
    step.refresh_from_db()
    step.job.refresh_from_db()


def _count(step: Step, counters: Counters) -> None:
    """Write the step's counters and move the job's by the difference."""
    Job.objects.filter(pk=step.job_id).update(
        entries_done=F("entries_done") + counters.entries_done - step.entries_done,
        bytes_done=F("bytes_done") + counters.bytes_done - step.bytes_done,
        bytes_stored=F("bytes_stored") + counters.bytes_stored - step.bytes_stored,
    )
    step.entries_done, step.bytes_done, step.bytes_stored = (
        counters.entries_done,
        counters.bytes_done,
        counters.bytes_stored,
    )
    step.save(update_fields=["entries_done", "bytes_done", "bytes_stored"])


def _owned(step: Step, **changes: object) -> None:
    """Update the step's row if this attempt still owns it. Raises Fenced; roll back then."""
    mine = Step.objects.filter(pk=step.pk, state=StepState.RUNNING, attempt=step.attempt)
    if not mine.update(**changes):
        raise Fenced("another worker took over this step")


@transaction.atomic
def heartbeat(step: Step, counters: Counters, *, phase: str, now: dt.datetime) -> None:
    """Renew the lease and tell the progress. Raises Fenced, and Canceled when a person asked to stop."""
    changes = {"phase": phase} if phase else {}
    if not Job.objects.filter(pk=step.job_id, round=step.round, state__in=ACTIVE).update(round=step.round, **changes):
        raise Fenced("the job ended or was planned anew")
    _owned(step, lease_until=now + dt.timedelta(seconds=settings.STEP_LEASE_S))
    _count(step, counters)
    job = Job.objects.only("state", "entries_done", "bytes_done", "samples").get(pk=step.job_id)
    if taken := pace.sampled(job.samples, entries=job.entries_done, bytes=job.bytes_done, now=now):
        Job.objects.filter(pk=step.job_id).update(samples=taken)
    if job.state == JobState.CANCELING:
        raise Canceled("canceled by a person")


@transaction.atomic
def record(step: Step, counters: Counters) -> None:
    """Note what a step has done that goes no further. Raises Fenced."""
    _owned(step, attempt=step.attempt)
    step.refresh_from_db(fields=["entries_done", "bytes_done", "bytes_stored"])  # a canceled heartbeat was rolled back
    _count(step, counters)


def is_over(step: Step) -> bool:
    """Say whether the step has ended, and will not be tried again."""
    return not Step.objects.open().filter(pk=step.pk).exists()


def is_to_stop(step: Step) -> bool:
    """Say whether a person asked to stop the step's job."""
    return Job.objects.filter(pk=step.job_id, state=JobState.CANCELING).exists()


def renew(step: Step, *, now: dt.datetime) -> None:
    """Renew the lease alone, from beside the work. Raises Fenced."""
    _owned(step, lease_until=now + dt.timedelta(seconds=settings.STEP_LEASE_S))


def estimate(step: Step, *, entries: int, bytes: int, now: dt.datetime) -> None:
    """Note how much the job will have to do in all, as far as its planner knows; warn of very much (C53)."""
    Job.objects.filter(pk=step.job_id, round=step.round).update(entries_total=entries, bytes_total=bytes)
    if bytes > LARGE_BYTES_MIN:
        alerts.estimated(step.job_id, bytes_total=bytes, now=now)


@transaction.atomic
def add_work(planner: Step, *, number: int, now: dt.datetime) -> Step:
    """Create the step of one unit while its planner goes on. Raises Fenced."""
    _lock(planner)
    _owned(planner, lease_until=now + dt.timedelta(seconds=settings.STEP_LEASE_S))
    return Step.objects.create(
        job_id=planner.job_id,
        round=planner.round,
        stage=Stage.WORK,
        number=number,
        queue=planner.job.queue_work,
        created_at=now,
    )


@transaction.atomic
def end_plan(planner: Step, *, units_total: int, units_done: int, now: dt.datetime) -> list[Step]:
    """End the planner; `units_done` it did itself. Return the steps to ring for. Raises Fenced."""
    _lock(planner)
    _owned(planner, state=StepState.COMPLETE, ended_at=now, lease_until=None)
    Job.objects.filter(pk=planner.job_id).update(
        planned=True, stage=Stage.WORK, units_total=units_total, units_done=F("units_done") + units_done
    )
    tell(planner.job_id, f"Planned: {units_total} units", now=now)
    return _next_stage(planner, now=now)


@transaction.atomic
def end_work(step: Step, *, now: dt.datetime) -> list[Step]:
    """End a unit whose result is stored. Return the steps to ring for. Raises Fenced."""
    _lock(step)
    _owned(step, state=StepState.COMPLETE, ended_at=now, lease_until=None)
    Job.objects.filter(pk=step.job_id).update(units_done=F("units_done") + 1)
    return _next_stage(step, now=now)


def _lock(step: Step) -> None:
    """Lock the job's row, as long as it is the step's round that counts. Raises Fenced."""
    if not Job.objects.filter(pk=step.job_id, round=step.round, state__in=ACTIVE).update(round=step.round):
        raise Fenced("the job ended or was planned anew")


def _next_stage(step: Step, *, now: dt.datetime) -> list[Step]:
    """Begin the last stage if this transaction is the one that made the work complete. Return the steps to ring for."""
    job = Job.objects.filter(pk=step.job_id, stage=Stage.WORK, planned=True, units_done=F("units_total"))
    if not job.filter(state=JobState.RUNNING).update(stage=Stage.FINISH):
        ended = settle_cancel(step.job_id, now=now)
        room = PARALLEL_MAX if step.stage == Stage.PLAN else 1  # until now one that ended made room for one
        return [] if ended else _waiting(step.job, room)
    last = Step.objects.create(
        job_id=step.job_id, round=step.round, stage=Stage.FINISH, queue=step.job.queue_finish, created_at=now
    )
    return [last]


@transaction.atomic
def end_finish(step: Step, *, state: str, now: dt.datetime, **outcome: object) -> None:
    """End the job with its outcome (fields of Job). Raises Fenced.

    An order to cancel that came after the engine's commit point is too late: the job did what it was for.
    """
    _lock(step)
    _owned(step, state=StepState.COMPLETE, ended_at=now, lease_until=None)
    end_job(step.job_id, state=state, now=now, **outcome)


def end_job(job_id: uuid.UUID, *, state: str, now: dt.datetime, **outcome: object) -> bool:
    """End the job and whatever of its steps is open. False when it had ended already: nothing changes."""
    with transaction.atomic():
        ended = Job.objects.filter(pk=job_id, state__in=before(state)).update(state=state, ended_at=now, **outcome)
        if not ended:
            return False
        Step.objects.filter(job_id=job_id, state__in=STEP_OPEN).update(state=StepState.CANCELED, ended_at=now)
        frozen = Job.objects.filter(pk=job_id, frozen_at__isnull=False, thawed_at=None)
        if frozen.update(thaw_due_at=now):
            doorbell.ask_to_thaw(frozen.get())
        tell(job_id, f"Ended: {JobState(state).label}", now=now, level="error" if state == JobState.FAILED else "info")
        alerts.job_ended(job_id, now=now)
        return True


def clean_again(job_ids: Collection[uuid.UUID]) -> int:
    """Let the sweep tidy up once more after those of the jobs that have ended; return how many that are."""
    return Job.objects.filter(pk__in=job_ids, state__in=ENDED, cleaned=True).update(cleaned=False)


@transaction.atomic
def fail(step: Step, *, error: str, code: str, transient: bool, now: dt.datetime) -> None:
    """Give the step back for another attempt, or fail its job: permanent errors and the last attempt do. Raises Fenced.

    A step given back is rung by the sweep once its waiting time is over.
    """
    _lock(step)
    if transient and step.attempt < ATTEMPTS_MAX:
        wait = dt.timedelta(seconds=BACKOFF_S[min(step.attempt, len(BACKOFF_S)) - 1])
        _owned(step, state=StepState.QUEUED, lease_until=None, not_before=now + wait, rung_at=None, error=error)
        tell(step.job_id, f"{step} will be tried again: {error}", now=now, level="warning")
        return
    _owned(step, state=StepState.FAILED, lease_until=None, ended_at=now, error=error)
    tell(step.job_id, f"{step} failed: {error}", now=now, level="error")
    end_job(step.job_id, state=JobState.FAILED, now=now, error=error, error_code=code)


@transaction.atomic
def plan_anew(step: Step, *, error: str, now: dt.datetime) -> None:
    """Give the whole job back to its planner: what this round did cannot be finished. Raises Fenced.

    The planner's attempts are capped as any step's; the last one fails the job.
    """
    _lock(step)
    planner = Step.objects.get(job_id=step.job_id, round=step.round, stage=Stage.PLAN)
    if planner.attempt >= ATTEMPTS_MAX:
        fail(step, error=error, code="given_up", transient=False, now=now)
        return
    _owned(step, state=StepState.FAILED, lease_until=None, ended_at=now, error=error)
    wait = dt.timedelta(seconds=BACKOFF_S[min(planner.attempt, len(BACKOFF_S)) - 1])
    Step.objects.filter(pk=planner.pk).update(
        state=StepState.QUEUED, lease_until=None, not_before=now + wait, rung_at=None, ended_at=None, error=error
    )
    tell(step.job_id, f"The job will be planned anew: {error}", now=now, level="warning")


@transaction.atomic
def cancel(step: Step, *, now: dt.datetime) -> None:
    """End a running step whose worker heard the order to stop; the last one ends the job. Raises Fenced."""
    _lock(step)
    _owned(step, state=StepState.CANCELED, lease_until=None, ended_at=now)
    settle_cancel(step.job_id, now=now)


def settle_cancel(job_id: uuid.UUID, *, now: dt.datetime) -> bool:
    """End a job that is being canceled once none of its steps runs. True when this call ended it."""
    if not Job.objects.filter(pk=job_id, state=JobState.CANCELING).exists():
        return False
    if Step.objects.filter(job_id=job_id, state=StepState.RUNNING).exists():
        return False
    return end_job(job_id, state=JobState.CANCELED, now=now)


def give_up(step: Step, *, now: dt.datetime) -> bool:
    """Deal with a running step whose lease ran out. True when it may be claimed anew: ring for it."""
    with transaction.atomic():
        step.job.refresh_from_db()
        if step.job.state == JobState.CANCELING:
            cancel(step, now=now)
            return False
        if step.attempt >= ATTEMPTS_MAX:
            fail(
                step,
                error=f"The worker {step.worker} stopped without a word, {step.attempt} times in all. "
                "Look into its log: it may lack memory.",
                code="worker_lost",
                transient=False,
                now=now,
            )
            return False
    return True
