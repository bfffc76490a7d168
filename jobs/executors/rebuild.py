"""Rebuild jobs: make a vault's index and its rows in the catalogue anew from the bucket alone."""

import datetime as dt
from collections.abc import Iterable, Iterator
from typing import Any

from engine.ids import new_ulid
from engine.progress import Progress
from engine.vault import Vault
from engine.verbs import rebuild
from engine.verbs.rebuild import Outcome, RebuildJob, Result, Unit
from jobs.executors.port import PROBLEMS_SHOWN, Clock, Executor
from jobs.models import Job
from vaults import catalogue


def _prepare(job: Job, now: dt.datetime) -> RebuildJob:
    return RebuildJob(session=new_ulid(now), started_at=job.started_at or now)


def _plan(vault: Vault, order: RebuildJob, progress: Progress, clock: Clock) -> Iterator[Unit]:
    return rebuild.plan(vault, order, progress, now=clock())


def _finish(vault: Vault, order: RebuildJob, results: Iterable[Result], progress: Progress, clock: Clock) -> Outcome:
    return rebuild.finish(vault, order, results, progress, clock=clock)


def _conclude(job: Job, vault: Vault, outcome: Outcome, now: dt.datetime) -> dict[str, Any]:
    """Make the rows equal to the points; what cannot be read keeps the row it has."""
    rows = catalogue.rebuild(job.vault, now=now)
    return {
        "state": outcome.state,
        "problems_count": len(outcome.broken),
        "report": {
            "points_found": rows.points_found,
            "points_added": rows.points_added,
            "points_gone": rows.points_gone,
            "packs_listed": outcome.packs_listed,
            "segments_written": outcome.segments_written,
            "segments_replaced": len(outcome.replaced),
            "waiting": outcome.waiting,
            "problems": [
                {"path": one.object, "reason": "damaged", "detail": one.detail, "lost": True}
                for one in outcome.broken[:PROBLEMS_SHOWN]
            ],
        },
    }


EXECUTOR = Executor(
    order=RebuildJob,
    unit=Unit,
    result=Result,
    prepare=_prepare,
    plan=_plan,
    work=rebuild.work,
    finish=_finish,
    conclude=_conclude,
    session=lambda order: order.session,
)
