"""What can be seen of a job while it runs: how far it has come, how fast it goes, when it may end; what it counted."""

import datetime as dt
from typing import Any, NamedTuple

from jobs import pace
from jobs.models import Job
from jobs.states import ENDED_WELL, JobState, Kind, Stage

# Of a job that has not ended, no more than this: the end writes the point, and may take its time.
SHARE_MAX = 0.99
BY_SPEED, BY_LAST_RUN = "speed", "last_run"
# What a job counts, in the order in which people read it. `bytes_logical` is the size of what it is about.
STATISTICS = (
    "bytes_logical",
    "bytes_processed",
    "bytes_new",
    "bytes_stored",
    "files_total",
    "files_done",
    "files_new",
    "files_changed",
    "files_unchanged",
    "files_deleted",
    "entries_total",
    "entries_done",
)


class Course(NamedTuple):
    """A moment of a job. `share` is of 1; None where nothing is known yet. `basis` says what `left_s` is made of:
    the present speed, or how long the last run of the same kind took.
    """

    stage: str
    phase: str
    share: float | None
    bytes_per_s: float | None
    entries_per_s: float | None
    elapsed_s: float | None
    left_s: float | None
    basis: str


def usual_s(job: Job) -> float | None:
    """Return how long the last run of the same thing took, None without one. One query."""
    alike = Job.objects.filter(kind=job.kind, vault=job.vault_id, source=job.source_id, state__in=ENDED_WELL)
    last = alike.filter(created_at__lt=job.created_at, started_at__isnull=False).values_list("started_at", "ended_at")
    began, ended = last.first() or (None, None)
    return (ended - began).total_seconds() if began and ended else None


def look(job: Job, *, now: dt.datetime) -> Course:
    """Return where the job is at `now`. At most one query."""
    under_way = job.started_at is not None and not job.ended
    return course(job, now=now, usual_s=usual_s(job) if under_way else None)


def course(job: Job, *, now: dt.datetime, usual_s: float | None = None) -> Course:
    """Return where the job is at `now`; `usual_s` is what the last run took."""
    elapsed_s = ((job.ended_at or now) - job.started_at).total_seconds() if job.started_at else None
    if job.ended or elapsed_s is None or job.state == JobState.CANCELING:
        share = 1.0 if job.state in ENDED_WELL else _share(job)
        return Course(job.stage, job.phase, share, None, None, elapsed_s, None, "")
    speed = pace.speed(job.samples, now=now)
    entries_per_s, bytes_per_s = speed or (None, None)
    left_s, basis = _left(job, speed), BY_SPEED
    share = _share(job)
    if left_s is None:
        left_s, basis = _left_of_usual(job, elapsed_s, usual_s), BY_LAST_RUN
        if share is None and usual_s:
            share = min(elapsed_s / usual_s, SHARE_MAX)
    return Course(
        job.stage,
        job.phase,
        None if share is None else min(share, SHARE_MAX),
        bytes_per_s,
        entries_per_s,
        elapsed_s,
        left_s,
        basis if left_s is not None else "",
    )


def statistics(job: Job) -> dict[str, Any]:
    """Return what the job counted, by STATISTICS, None for what is not known (yet), and `skipped` by reason."""
    so_far = {
        "bytes_processed": job.bytes_done,
        "bytes_stored": job.bytes_stored,
        "entries_done": job.entries_done,
        "entries_total": job.entries_total or None,
    }
    known = so_far | job.statistics if job.started_at else {}
    return {**{name: known.get(name) for name in STATISTICS}, "skipped": known.get("skipped", {})}


def _totals_known(job: Job) -> bool:
    """Say whether the totals are more than a guess: a backup's grow until its walk has ended."""
    return job.planned or job.kind != Kind.BACKUP


def _share(job: Job) -> float | None:
    if not _totals_known(job):
        return None
    shares = (
        pace.share(job.bytes_done, job.bytes_total),
        pace.share(job.entries_done, job.entries_total),
        pace.share(job.units_done, job.units_total) if job.planned else None,
    )
    return next((share for share in shares if share is not None), None)


def _left(job: Job, speed: tuple[float, float] | None) -> float | None:
    if speed is None or not _totals_known(job):
        return None
    amounts = (job.entries_total - job.entries_done, job.bytes_total - job.bytes_done)
    return pace.left_s(list(zip(amounts, speed, strict=True)))


def _left_of_usual(job: Job, elapsed_s: float, usual_s: float | None) -> float | None:
    if not usual_s or usual_s <= elapsed_s or job.stage == Stage.FINISH:
        return None
    return usual_s - elapsed_s
