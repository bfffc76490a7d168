"""Lock audit jobs: prove that what is locked stays locked, and undo what was done behind the vault's back."""

import datetime as dt
from collections.abc import Iterable, Iterator
from typing import Any

from engine.ids import new_ulid
from engine.progress import Progress
from engine.vault import Vault
from engine.verbs import audit
from engine.verbs.audit import AuditJob, Outcome, Result, Unit
from engine.verbs.uncover import entrance
from jobs.executors.port import PROBLEMS_SHOWN, Clock, Executor
from jobs.models import Job
from vaults import repositories, services


def _prepare(job: Job, now: dt.datetime) -> AuditJob:
    """Bring back what the vault can't be opened without, and order the audit."""
    uncovered = entrance(repositories.storage(job.vault), repositories.provider(job.vault))
    return AuditJob(session=new_ulid(now), started_at=job.started_at or now, entrance=tuple(uncovered))


def _plan(vault: Vault, order: AuditJob, progress: Progress, clock: Clock) -> Iterator[Unit]:
    return audit.plan(vault, order, progress, now=clock())


def _finish(vault: Vault, order: AuditJob, results: Iterable[Result], progress: Progress, clock: Clock) -> Outcome:
    return audit.finish(vault, order, results, progress, clock=clock)


def _conclude(job: Job, vault: Vault, outcome: Outcome, now: dt.datetime) -> dict[str, Any]:
    """A vault whose locks are not what they should be fails the job: somebody must look at it."""
    broken = [one for one in outcome.findings if not one.repaired]
    if gave_way := [one.detail for one in outcome.findings if one.kind == "canary"]:
        services.lock_gave_way(job.vault, problems=gave_way, now=now)
    fields: dict[str, Any] = {
        "state": outcome.state,
        "problems_count": len(outcome.findings),
        "report": {
            "days": outcome.days,
            "level": outcome.level,
            "is_proven": outcome.is_proven,
            "points": outcome.points,
            "objects": outcome.objects,
            "lengthened": outcome.lengthened,
            "furthest": outcome.furthest.isoformat() if outcome.furthest else None,
            "problems": [
                {
                    "path": one.object,
                    "reason": one.kind,
                    "detail": f"{one.detail}{' (repaired)' if one.repaired else ''}",
                    "lost": not one.repaired,
                }
                for one in outcome.findings[:PROBLEMS_SHOWN]
            ],
        },
    }
    if broken:
        fields["error_code"] = "locks_broken"
        fields["error"] = (
            f"{len(broken)} objects are not protected as they should be. The report lists them. "
            "Find out who has the store's credentials, and whether the store still refuses to delete locked objects."
        )
    return fields


EXECUTOR = Executor(
    order=AuditJob,
    unit=Unit,
    result=Result,
    prepare=_prepare,
    plan=_plan,
    work=audit.work,
    finish=_finish,
    conclude=_conclude,
    session=lambda order: order.session,
)
