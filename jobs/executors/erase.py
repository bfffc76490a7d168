"""The last job of a vault: delete all of it, or say until when a lock keeps it."""

import datetime as dt
from collections.abc import Iterable, Iterator
from typing import Any

from engine.progress import Progress
from engine.vault import Vault
from engine.verbs import erase
from engine.verbs.erase import EraseJob, Outcome, Result, Unit
from jobs.executors.port import PROBLEMS_SHOWN, Clock, Executor
from jobs.models import Job
from vaults import deletion


def _prepare(job: Job, now: dt.datetime) -> EraseJob:
    return EraseJob(vault_id=job.vault.stored_id, started_at=now)


def _plan(vault: Vault, order: EraseJob, progress: Progress, clock: Clock) -> Iterator[Unit]:
    return erase.plan(vault, order, progress, now=clock())


def _finish(vault: Vault, order: EraseJob, results: Iterable[Result], progress: Progress, clock: Clock) -> Outcome:
    return erase.finish(vault, order, results, progress, clock=clock)


def _conclude(job: Job, vault: Vault, outcome: Outcome, now: dt.datetime) -> dict[str, Any]:
    if outcome.state == "complete":
        deletion.conclude(job.vault, now=now)
    else:
        deletion.postpone(job.vault, until=outcome.locked_until)
    return {
        "state": outcome.state,
        "problems_count": len(outcome.refused),
        "report": {
            "objects_deleted": outcome.objects_deleted,
            "bytes_freed": outcome.bytes_freed,
            "locked_until": outcome.locked_until.isoformat() if outcome.locked_until else None,
            "waiting": outcome.waiting,
            "fenced": outcome.fenced,
            "problems": [
                {"path": line, "reason": "kept", "detail": "", "lost": False}
                for line in outcome.refused[:PROBLEMS_SHOWN]
            ],
        },
    }


EXECUTOR = Executor(
    order=EraseJob,
    unit=Unit,
    result=Result,
    prepare=_prepare,
    plan=_plan,
    work=erase.work,
    finish=_finish,
    conclude=_conclude,
    session=lambda order: "",
)
