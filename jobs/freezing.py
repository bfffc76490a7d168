"""Commands on a host around a backup: one that brings its application to rest, and one that lets it go on.

A backup's planner freezes before it looks at the source; the step that ends the reading thaws. Whatever becomes of the
job, and of its worker, a frozen host is thawed: a sweep sees to the rest. So a thaw may run twice, and its command has
to bear that.
"""

import datetime as dt
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

from django.db.models import Q

from engine.connections import process
from engine.errors import EngineError, ExtraMissing
from jobs import doorbell, steps
from jobs.models import Job
from jobs.states import ACTIVE, JobState, Kind, Stage
from policies import reading
from policies.models import SourceKind

Clock = Callable[[], dt.datetime]
_POLL_S = 0.05
_AGAIN = dt.timedelta(seconds=60)
# A host that could not be thawed for so long is left to its people; every attempt stands in the job's story.
_GIVEN_UP_AFTER = dt.timedelta(days=1)


class FreezeFailed(EngineError):
    """The command that brings the application to rest failed: what it writes meanwhile would be torn."""

    transient = False


def _commands(job: Job) -> dict[str, Any]:
    """Return the settings of the job's source that tell the commands, nothing for other work."""
    if job.kind != Kind.BACKUP or job.source is None or job.source.kind != SourceKind.FILES:
        return {}
    return reading.completed(job.source)


def freeze(job: Job, *, clock: Clock, check: Callable[[], None]) -> None:
    """Bring the application to rest, when the source has a command for it. Raises FreezeFailed, and what `check` does.

    A planner that follows one that died thaws first: nobody knows how far that one came.
    """
    found = _commands(job)
    if not found.get("freeze_command") and not found.get("thaw_command"):
        return
    if job.frozen_at is not None and job.thawed_at is None:
        _run(job, "thaw", clock=clock, check=check)
    now = clock()
    job.frozen_at, job.thawed_at, job.thaw_due_at = now, None, now + dt.timedelta(seconds=found["frozen_s_max"])
    job.save(update_fields=["frozen_at", "thawed_at", "thaw_due_at"])
    if error := _run(job, "freeze", clock=clock, check=check):
        raise FreezeFailed(f"the freeze command failed, so nothing was read: {error}")


def settle(job: Job, *, clock: Clock) -> None:
    """Thaw the host if the job needs it at rest no longer. For the worker that has just done a step of it there."""
    if job.frozen_at is None:
        return
    read = Q(stage=Stage.FINISH) | ~Q(state__in=ACTIVE)
    if Job.objects.filter(read, pk=job.pk, thawed_at=None).exists():
        Job.objects.filter(pk=job.pk, thaw_due_at__gt=clock()).update(thaw_due_at=clock())
        thaw(job.pk, clock=clock)


def thaw(job_id: uuid.UUID, *, clock: Clock) -> None:
    """Run the thaw command of a job whose time for it has come. Another worker that is at it is left alone.

    Of a job that still reads, the longest time at rest is over: it fails, because the application writes again.
    """
    now = clock()
    job = Job.objects.filter(pk=job_id).select_related("source").first()
    mine = Job.objects.filter(pk=job_id, frozen_at__isnull=False, thawed_at=None, thaw_due_at__lte=now)
    limit_s = _commands(job).get("command_s_max", 0) if job else 0
    if job is None or not mine.update(thaw_due_at=now + dt.timedelta(seconds=limit_s) + _AGAIN):
        return
    if not job.ended and job.stage != Stage.FINISH:
        error = "The application was at rest for as long as it may be, and the backup had not read everything."
        steps.end_job(job_id, state=JobState.FAILED, now=now, error=error, error_code="frozen_too_long")
    failed = _run(job, "thaw", clock=clock)
    if not failed:
        Job.objects.filter(pk=job_id, frozen_at=job.frozen_at).update(thawed_at=clock(), thaw_due_at=None)
    elif job.frozen_at is not None and now - job.frozen_at > _GIVEN_UP_AFTER:
        steps.tell(job_id, "The host is left as it is: thaw it by hand.", now=clock(), level="error")
        Job.objects.filter(pk=job_id).update(thaw_due_at=None)


def sweep(*, now: dt.datetime, rows_max: int) -> Iterator[Job]:
    """Ask the hosts whose time at rest is over, or whose job has ended, to thaw; yield the jobs."""
    for job in Job.objects.filter(thaw_due_at__lte=now, thawed_at=None).order_by("thaw_due_at")[:rows_max]:
        doorbell.ask_to_thaw(job)
        yield job


def _run(job: Job, which: str, *, clock: Clock, check: Callable[[], None] = lambda: None) -> str:
    """Run one of the source's commands; return what went wrong, empty for nothing. The story tells it either way."""
    found = _commands(job)
    argv = found.get(f"{which}_command")
    if not argv:
        return ""
    error = _outcome(argv, job, limit_s=found["command_s_max"], check=check)
    text = f"The {which} command failed: {error}" if error else f"The {which} command ended well"
    steps.tell(job.pk, text, now=clock(), level="error" if error else "info")
    return error


def _outcome(argv: list[str], job: Job, *, limit_s: float, check: Callable[[], None]) -> str:
    told = {"BACKUPSITE_JOB": str(job.pk), "BACKUPSITE_SOURCE": str(job.source)}
    with tempfile.TemporaryFile() as said:
        try:
            running = process.start(argv, env=told, errors=said, stdin=subprocess.DEVNULL, stdout=said)
        except ExtraMissing as error:
            return str(error)
        ends_s = time.monotonic() + limit_s
        try:
            while running.poll() is None:
                check()
                if time.monotonic() > ends_s:
                    return f"it did not end within {limit_s:g} seconds"
                time.sleep(_POLL_S)
        finally:
            process.end(running)
        return f"exit code {running.returncode}. {process.quoted(said)}".strip() if running.returncode else ""
