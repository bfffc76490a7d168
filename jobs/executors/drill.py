"""Restore drills: a sample of a source's newest point into a scratch folder of the worker, compared and removed."""

import datetime as dt
import os
import secrets
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec
from django.conf import settings

from engine.ids import new_ulid
from engine.progress import Progress
from engine.vault import Vault
from engine.verbs import drill
from engine.verbs.drill import DrillJob, Outcome, Result, Unit
from jobs import scratch
from jobs.executors.port import PROBLEMS_SHOWN, Clock, Executor, point_of
from jobs.models import Job

FAILED = "drill_failed"
NOTES_SHOWN = 100
SEED_BITS = 32


def _prepare(job: Job, now: dt.datetime) -> DrillJob:
    point = point_of(job)
    return DrillJob(
        session=new_ulid(now),
        series=point.series,
        point=point.point_id,
        started_at=job.started_at or now,
        percent=job.settings["percent"],
        seed=secrets.randbits(SEED_BITS),
        bytes_max=settings.DRILL_BYTES_MAX,
    )


def _plan(vault: Vault, order: DrillJob, progress: Progress, clock: Clock) -> Iterator[Unit]:
    return drill.plan(vault, order, progress, now=clock())


def _work(vault: Vault, order: DrillJob, unit: Unit, progress: Progress) -> Result:
    with scratch.folder("drill") as path:
        return drill.work(vault, msgspec.structs.replace(order, folder=os.fsencode(path)), unit, progress)


def _finish(vault: Vault, order: DrillJob, results: Iterable[Result], progress: Progress, clock: Clock) -> Outcome:
    return drill.finish(vault, order, results, progress, clock=clock)


def _conclude(job: Job, vault: Vault, outcome: Outcome, now: dt.datetime) -> dict[str, Any]:
    """Keep what was found and how long it took. A difference fails the job: a restore would not give back the data."""
    seconds = (now - (job.started_at or now)).total_seconds()
    shown = [
        {"path": _path(one.path), "reason": "differs", "detail": one.what, "lost": True} for one in outcome.differences
    ]
    notes = [
        {"path": _path(one.path), "reason": one.reason, "detail": one.detail, "lost": False} for one in outcome.notes
    ]
    fields: dict[str, Any] = {
        "state": outcome.state,
        "problems_count": outcome.differences_total,
        "report": {
            "percent": outcome.percent,
            "seed": str(outcome.seed),  # a name, not a figure
            "entries": outcome.entries,
            "files": outcome.files,
            "bytes": outcome.bytes,
            "streamed": outcome.streamed,
            "left_out": outcome.left_out,
            "differences": outcome.differences_total,
            "seconds": round(seconds, 3),
            "bytes_per_s": round(outcome.bytes / seconds, 3) if seconds else 0,
            "problems": shown[:PROBLEMS_SHOWN] + notes[:NOTES_SHOWN],
        },
    }
    if outcome.differences_total:
        fields["error_code"] = FAILED
        fields["error"] = (
            "Something came out of the vault otherwise than it went in. "
            f"Differences: {outcome.differences_total}; the first: {shown[0]['path']}: {shown[0]['detail']}. "
            "The report lists them. Verify the vault at level content, and take a new backup of the source now."
        )
    return fields


def _path(path: bytes) -> str:
    return "/" + path.decode("utf-8", "backslashreplace")


EXECUTOR = Executor(
    order=DrillJob,
    unit=Unit,
    result=Result,
    prepare=_prepare,
    plan=_plan,
    work=_work,
    finish=_finish,
    conclude=_conclude,
    session=lambda order: order.session,
)
