"""Verification jobs: prove by reading that a vault holds what its points need."""

import datetime as dt
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from engine.ids import new_ulid
from engine.progress import Progress
from engine.vault import Vault
from engine.verbs import verify
from engine.verbs.verify import Outcome, Result, Unit, VerifyJob
from jobs.executors.port import Clock, Executor, found
from jobs.models import Job
from vaults import condition

DAMAGED = "vault_damaged"


def _prepare(job: Job, now: dt.datetime) -> VerifyJob:
    return VerifyJob(
        session=new_ulid(now),
        level=job.settings["level"],
        days=int(job.settings.get("days", 0)),
        started_at=job.started_at or now,
    )


def _plan(vault: Vault, order: VerifyJob, progress: Progress, clock: Clock) -> Iterator[Unit]:
    return verify.plan(vault, order, progress, now=clock())


def _finish(vault: Vault, order: VerifyJob, results: Iterable[Result], progress: Progress, clock: Clock) -> Outcome:
    return verify.finish(vault, order, results, progress, clock=clock)


def _conclude(job: Job, vault: Vault, outcome: Outcome, now: dt.datetime) -> dict[str, Any]:
    """A vault with findings fails the job: whoever relies on it must be told."""
    if outcome.coverage is not None:
        coverage = outcome.coverage
        condition.note_coverage(job.vault, total=coverage.bytes, read=coverage.bytes_read, now=now)
    fields: dict[str, Any] = {
        "state": outcome.state,
        "problems_count": len(outcome.findings),
        "report": {
            "level": outcome.level,
            "objects": outcome.objects,
            "bytes": outcome.bytes,
            "blocks": outcome.blocks,
            "lost": outcome.lost,
            "damaged_packs": len(outcome.damaged),
            "healed_packs": len(outcome.healed),
            "census": msgspec.to_builtins(outcome.census),
            "problems": found(outcome.findings),
        },
    }
    if outcome.findings:
        fields["error_code"] = DAMAGED
        fields["error"] = (
            f"{len(outcome.findings)} damaged or missing objects; they affect {len(outcome.lost)} recovery points. "
            "The report lists them. Keep the vault as it is, and take a new backup of the sources soon."
        )
    return fields


EXECUTOR = Executor(
    order=VerifyJob,
    unit=Unit,
    result=Result,
    prepare=_prepare,
    plan=_plan,
    work=verify.work,
    finish=_finish,
    conclude=_conclude,
    session=lambda order: order.session,
)
