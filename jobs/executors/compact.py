"""Compaction jobs: copy what is alive out of packs that are mostly dead, so that a prune can delete them."""

import datetime as dt
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from engine.ids import new_ulid
from engine.progress import Progress
from engine.vault import Vault
from engine.verbs import compact
from engine.verbs.compact import CompactJob, Outcome, Result, Unit
from jobs.executors.port import Clock, Executor, found
from jobs.models import Job


def _prepare(job: Job, now: dt.datetime) -> CompactJob:
    return CompactJob(
        session=new_ulid(now),
        run=new_ulid(now),
        started_at=job.started_at or now,
        dry_run=bool(job.settings.get("dry_run")),
    )


def _plan(vault: Vault, order: CompactJob, progress: Progress, clock: Clock) -> Iterator[Unit]:
    return compact.plan(vault, order, progress, now=clock())


def _finish(vault: Vault, order: CompactJob, results: Iterable[Result], progress: Progress, clock: Clock) -> Outcome:
    return compact.finish(vault, order, results, progress, clock=clock)


def _conclude(job: Job, vault: Vault, outcome: Outcome, now: dt.datetime) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "state": outcome.state,
        "problems_count": len(outcome.findings) + len(outcome.left),
        "report": {
            "dry_run": bool(job.settings.get("dry_run")),
            "choice": msgspec.to_builtins(outcome.choice),
            "packs_moved": outcome.packs_moved,
            "bytes_moved": outcome.bytes_moved,
            "packs_written": outcome.packs_written,
            "bytes_read": outcome.bytes_read,
            "bytes_written": outcome.bytes_written,
            "segments_merged": outcome.segments_merged,
            "left": msgspec.to_builtins(outcome.left),
            "problems": found(outcome.findings),
        },
    }
    if outcome.findings:
        fields["error_code"] = "vault_inconsistent"
        fields["error"] = (
            f"Nothing was compacted: {len(outcome.findings)} objects that points need cannot be read. "
            "Verify the vault to learn which."
        )
    return fields


EXECUTOR = Executor(
    order=CompactJob,
    unit=Unit,
    result=Result,
    prepare=_prepare,
    plan=_plan,
    work=compact.work,
    finish=_finish,
    conclude=_conclude,
    session=lambda order: order.session,
)
