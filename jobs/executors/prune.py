"""Prune jobs: delete the packs that no point needs any more."""

import datetime as dt
from collections.abc import Iterable, Iterator
from typing import Any

from engine.ids import new_ulid
from engine.progress import Progress
from engine.vault import Vault
from engine.verbs import prune
from engine.verbs.prune import Outcome, PruneJob, Result, Unit
from jobs import maintenance, steps
from jobs.executors import staging
from jobs.executors.port import Clock, Executor, found
from jobs.models import Job

INCONSISTENT = "vault_inconsistent"


def _prepare(job: Job, now: dt.datetime) -> PruneJob:
    return PruneJob(run=new_ulid(now), started_at=job.started_at or now, dry_run=bool(job.settings.get("dry_run")))


def _plan(vault: Vault, order: PruneJob, progress: Progress, clock: Clock) -> Iterator[Unit]:
    return prune.plan(vault, order, progress, now=clock())


def _finish(vault: Vault, order: PruneJob, results: Iterable[Result], progress: Progress, clock: Clock) -> Outcome:
    return prune.finish(vault, order, results, progress, clock=clock)


def _conclude(job: Job, vault: Vault, outcome: Outcome, now: dt.datetime) -> dict[str, Any]:
    """Keep what the prune waits for: the sweep starts the next one soon."""
    dry_run = bool(job.settings.get("dry_run"))
    if not dry_run:
        maintenance.wait_for(job.vault, job.kind, outcome.waiting, now=now)
        # Left by workers that were killed after they had lost their step, and their job had ended.
        steps.clean_again(staging.job_ids(vault))
    fields: dict[str, Any] = {
        "state": outcome.state,
        "problems_count": len(outcome.findings),
        "report": {
            "dry_run": dry_run,
            "packs": outcome.packs,
            "bytes": outcome.bytes,
            "packs_unneeded": outcome.packs_unneeded,
            "bytes_unneeded": outcome.bytes_unneeded,
            "packs_condemned": outcome.packs_condemned,
            "packs_deleted": outcome.packs_deleted,
            "bytes_freed": outcome.bytes_freed,
            "rescued": outcome.rescued,
            "packs_waiting": outcome.packs_waiting,
            "locked": outcome.locked,
            "locked_until": outcome.locked_until.isoformat() if outcome.locked_until else None,
            "waiting": outcome.waiting,
            "fenced": outcome.fenced,
            "stuck": outcome.stuck,
            "refused": outcome.refused,
            "segments_merged": outcome.segments_merged,
            "problems": found(outcome.findings),
        },
    }
    if outcome.findings:
        fields["error_code"] = INCONSISTENT
        fields["error"] = (
            f"Nothing was deleted: {len(outcome.findings)} objects that points need are damaged or missing. "
            "Verify the vault; it prunes again once it is whole, or once the points that are lost are deleted."
        )
    return fields


EXECUTOR = Executor(
    order=PruneJob,
    unit=Unit,
    result=Result,
    prepare=_prepare,
    plan=_plan,
    work=prune.work,
    finish=_finish,
    conclude=_conclude,
    session=lambda order: "",
)
