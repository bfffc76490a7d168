"""Restore jobs: a recovery point, or a part of it, onto a host."""

import datetime as dt
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from engine.ids import new_ulid
from engine.progress import Progress
from engine.vault import Vault
from engine.verbs import restore
from engine.verbs.restore import OVERWRITE, Outcome, RestoreJob, Result, Unit
from jobs import meters, passwords
from jobs.executors.port import Clock, Executor, point_of, shown
from jobs.models import Job
from policies.reading import engine_target

_MADE = "password"  # the reason by which a target tells a new one


def _prepare(job: Job, now: dt.datetime) -> RestoreJob:
    point = point_of(job)
    assert job.source is not None
    wanted = job.settings
    patterns = tuple(wanted["patterns"])
    return RestoreJob(
        session=new_ulid(now),
        series=point.series,
        point=point.point_id,
        target=engine_target(
            job.source, kind=point.source_kind, to=wanted["to"], overwrite=wanted["same_name"] == OVERWRITE
        ),
        started_at=job.started_at or now,
        include=patterns if wanted["mode"] == "include" else (),
        exclude=patterns if wanted["mode"] == "exclude" else (),
        same_name=wanted["same_name"],
    )


def _plan(vault: Vault, order: RestoreJob, progress: Progress, clock: Clock) -> Iterator[Unit]:
    return restore.plan(vault, order, progress, now=clock())


def _finish(vault: Vault, order: RestoreJob, results: Iterable[Result], progress: Progress, clock: Clock) -> Outcome:
    return restore.finish(vault, order, results, progress, clock=clock)


def _conclude(job: Job, vault: Vault, outcome: Outcome, now: dt.datetime) -> dict[str, Any]:
    """Keep new passwords sealed, apart from the report, until somebody is shown them once (D5)."""
    made = [problem.detail for problem in outcome.problems if problem.reason == _MADE]
    problems = [
        msgspec.structs.replace(problem, detail=passwords.TOLD) if problem.reason == _MADE else problem
        for problem in outcome.problems
    ]
    return {
        "state": outcome.state,
        "problems_count": outcome.problems_total,
        "statistics": {
            "bytes_processed": outcome.bytes,
            "files_done": outcome.files,
            "entries_done": outcome.entries,
            "skipped": {"exists": outcome.skipped} if outcome.skipped else {},
        },
        "passwords": passwords.sealed(job, made),
        "report": {
            "entries": outcome.entries,
            "files": outcome.files,
            "bytes": outcome.bytes,
            "network": meters.network_of(job),
            "skipped": outcome.skipped,
            "problems": shown(problems),
        },
    }


EXECUTOR = Executor(
    order=RestoreJob,
    unit=Unit,
    result=Result,
    prepare=_prepare,
    plan=_plan,
    work=restore.work,
    finish=_finish,
    conclude=_conclude,
    session=lambda order: order.session,
)
