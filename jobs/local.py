"""Do a job's steps in this process, without a broker and without workers: for the demo, a shell, and tests."""

from collections.abc import Callable

from django.db.models import Q

from jobs import doorbell, executors, freezing, steps
from jobs.executors.port import Clock
from jobs.models import Job, Step
from jobs.states import ACTIVE, StepState


def do(job: Job, *, clock: Clock, watch: Callable[[Job], None] | None = None) -> Job:
    """Claim and run the job's steps, one after the other, until it ends or only waits; return the job as it is then.

    `watch` sees the job after every step.
    """
    with doorbell.muted():
        while (step := _next(job, clock)) is not None:
            try:
                claimed = steps.claim(step.pk, worker=executors.worker_name(), now=clock())
            except steps.NotClaimable:
                break
            executors.run(claimed, clock=clock)
            if watch is not None:
                job.refresh_from_db()
                watch(job)
        job.refresh_from_db()
        freezing.settle(job, clock=clock)
    job.refresh_from_db()
    return job


def _next(job: Job, clock: Clock) -> Step | None:
    waiting = Q(not_before=None) | Q(not_before__lte=clock())
    return Step.objects.filter(waiting, job=job, job__state__in=ACTIVE, state=StepState.QUEUED).order_by("pk").first()
