"""Backup jobs: a plan's source into its vault."""

import datetime as dt
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from engine.ids import new_ulid
from engine.point import Stats
from engine.progress import Progress
from engine.vault import PointName, Vault
from engine.verbs import backup
from engine.verbs.backup import BackupJob, Outcome
from engine.verbs.cutter import Result, Unit
from jobs import maintenance, speed
from jobs.executors.port import Clock, Executor, shown
from jobs.models import Job
from jobs.states import Trigger
from policies.reading import engine_source
from vaults import catalogue
from vaults.limits import load


def _prepare(job: Job, now: dt.datetime) -> BackupJob:
    assert job.source is not None
    return BackupJob(
        session=new_ulid(now),
        series=job.source.series,
        source=engine_source(job.source),
        started_at=job.started_at or now,
        deep=bool(job.settings.get("deep")),
        unit_bytes=speed.unit_bytes(load(job.limits), now=now),
        name=job.source.name,
        retention_days=_retention_days(job),
        rule=str(job.rule_id or ""),
        manual=job.trigger == Trigger.MANUAL,
    )


def _retention_days(job: Job) -> int:
    """Return what the point says of itself: what its rule says now, 0 for ever."""
    if job.plan is None:
        return 0
    days = (job.rule.retention_days if job.rule else None) or job.plan.policy.retention_days
    return days or 0


def _plan(vault: Vault, order: BackupJob, progress: Progress, clock: Clock) -> Iterator[Unit]:
    return backup.plan(vault, order, progress, now=clock())


def _finish(vault: Vault, order: BackupJob, results: Iterable[Result], progress: Progress, clock: Clock) -> Outcome:
    return backup.finish(vault, order, results, progress, clock=clock)


def _conclude(job: Job, vault: Vault, outcome: Outcome, now: dt.datetime) -> dict[str, Any]:
    """Put the committed point into the catalogue."""
    body = vault.root(PointName(outcome.series, outcome.point)).body
    point = catalogue.register(job.vault, body, now=now)
    maintenance.follow(job.vault, now=now)
    return {
        "state": outcome.state,
        "point": point,
        "problems_count": outcome.problems_total,
        "statistics": _statistics(outcome.stats),
        "report": {
            "stats": msgspec.to_builtins(outcome.stats),
            "problems": shown(outcome.problems),
            "mounts": outcome.mounts,
            "requests": outcome.requests,
        },
    }


def _statistics(stats: Stats) -> dict[str, Any]:
    """Return what jobs.course tells: `files_total` were found, `files_done` of them are in the point."""
    return {
        "bytes_logical": stats.bytes,
        "bytes_processed": stats.bytes_read,
        "bytes_new": stats.bytes_new,
        "bytes_stored": stats.bytes_stored,
        "files_total": stats.files_new + stats.files_changed + stats.files_unchanged,
        "files_done": stats.files,
        "files_new": stats.files_new,
        "files_changed": stats.files_changed,
        "files_unchanged": stats.files_unchanged,
        "files_deleted": stats.files_deleted,
        "entries_total": stats.entries_new + stats.entries_changed + stats.entries_unchanged,
        "entries_done": stats.entries,
        "skipped": stats.skipped,
    }


EXECUTOR = Executor(
    order=BackupJob,
    unit=Unit,
    result=Result,
    prepare=_prepare,
    plan=_plan,
    work=backup.work,
    finish=_finish,
    conclude=_conclude,
    session=lambda order: order.session,
)
