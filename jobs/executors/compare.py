"""Comparison jobs: what a restore wrote, on its host, with the recovery point that it came from (C29)."""

import datetime as dt
from collections.abc import Iterable, Iterator
from typing import Any

from engine.ids import new_ulid
from engine.progress import Progress
from engine.targets.files import FilesTarget
from engine.vault import Vault
from engine.verbs import compare
from engine.verbs.compare import CompareJob, Outcome, Result, Unit
from jobs.executors.port import PROBLEMS_SHOWN, Clock, Executor, point_of
from jobs.models import Job
from policies.reading import engine_target

DIFFERENT = "restored_differs"


def _prepare(job: Job, now: dt.datetime) -> CompareJob:
    point, wanted = point_of(job), job.settings
    assert job.source is not None
    target = engine_target(job.source, kind=point.source_kind, to=wanted["to"])
    assert isinstance(target, FilesTarget)
    patterns = tuple(wanted["patterns"])
    return CompareJob(
        session=new_ulid(now),
        series=point.series,
        point=point.point_id,
        folder=target.root,
        started_at=job.started_at or now,
        include=patterns if wanted["mode"] == "include" else (),
        exclude=patterns if wanted["mode"] == "exclude" else (),
    )


def _plan(vault: Vault, order: CompareJob, progress: Progress, clock: Clock) -> Iterator[Unit]:
    return compare.plan(vault, order, progress, now=clock())


def _finish(vault: Vault, order: CompareJob, results: Iterable[Result], progress: Progress, clock: Clock) -> Outcome:
    return compare.finish(vault, order, results, progress, clock=clock)


def _conclude(job: Job, vault: Vault, outcome: Outcome, now: dt.datetime) -> dict[str, Any]:
    """A difference fails the job: somebody has to judge it."""
    shown = [
        {
            "path": "/" + one.path.decode("utf-8", "backslashreplace"),
            "reason": "differs",
            "detail": one.what,
            "lost": True,
        }
        for one in outcome.differences[:PROBLEMS_SHOWN]
    ]
    fields: dict[str, Any] = {
        "state": outcome.state,
        "problems_count": outcome.differences_total,
        "statistics": {
            "bytes_processed": outcome.bytes,
            "files_done": outcome.files,
            "entries_done": outcome.entries,
        },
        "report": {
            "restore": job.settings["restore"],
            "entries": outcome.entries,
            "files": outcome.files,
            "bytes": outcome.bytes,
            "differences": outcome.differences_total,
            "left_as_they_were": job.settings.get("skipped", 0),
            "problems": shown,
        },
    }
    if outcome.differences_total:
        fields["error_code"] = DIFFERENT
        fields["error"] = (
            "What stands there is not what the recovery point holds. "
            f"Differences: {outcome.differences_total}; the first: {shown[0]['path']}: {shown[0]['detail']}. "
            "The report lists them. Somebody may have changed files since the restore, and the restore may have left "
            "files of the same name as they were."
        )
    return fields


EXECUTOR = Executor(
    order=CompareJob,
    unit=Unit,
    result=Result,
    prepare=_prepare,
    plan=_plan,
    work=compare.work,
    finish=_finish,
    conclude=_conclude,
    session=lambda order: order.session,
)
