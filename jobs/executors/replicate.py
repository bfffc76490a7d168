"""Replication jobs: bring what a vault's replica lacks, and heal each end from the other."""

import datetime as dt
from collections.abc import Iterable, Iterator
from typing import Any

from django.db.models import F, Sum

from engine import replica
from engine.ids import new_ulid
from engine.progress import Progress
from engine.vault import PointName, Vault
from engine.verbs import replicate
from engine.verbs.replicate import Outcome, ReplicateJob, Result, Unit
from jobs import maintenance
from jobs.executors.port import Clock, Executor, shown
from jobs.models import Job, Step
from vaults import catalogue, repositories
from vaults.limits import load
from vaults.models import ReplicationLink


def _prepare(job: Job, now: dt.datetime) -> ReplicateJob:
    at_once = 1 if load(job.limits).is_limited else replicate.AT_ONCE
    return ReplicateJob(session=new_ulid(now), started_at=job.started_at or now, at_once=at_once)


def _plan(vault: Vault, order: ReplicateJob, progress: Progress, clock: Clock) -> Iterator[Unit]:
    return replicate.plan(vault, order, progress, now=clock())


def _finish(vault: Vault, order: ReplicateJob, results: Iterable[Result], progress: Progress, clock: Clock) -> Outcome:
    return replicate.finish(vault, order, results, progress, clock=clock)


def _worked(job: Job, result: Result) -> None:
    """Count what was copied, whether its job will end well or not."""
    _count(job, result.bytes)


def _count(job: Job, copied: int) -> None:
    if copied:
        ReplicationLink.objects.filter(target=job.vault).update(bytes_replicated=F("bytes_replicated") + copied)


def _conclude(job: Job, vault: Vault, outcome: Outcome, now: dt.datetime) -> dict[str, Any]:
    """Put the points that came into the catalogue, take over new keys, and tell how far the replica has come."""
    replica.refresh_keys(vault, repositories.provider(job.vault), now=now)  # the newest points may need a new data key
    for shown_name in outcome.points:
        body = vault.root(PointName(*shown_name.split("/"))).body
        catalogue.register(job.vault, body, now=now)
    _note(job, outcome, now)
    if outcome.points_left:
        maintenance.hasten([job.vault_id], job.kind, now=now)
    healed = outcome.healed
    earlier = Step.objects.filter(job=job, round__lt=job.round).aggregate(bytes=Sum("bytes_done", default=0))["bytes"]
    return {
        "state": outcome.state,
        "problems_count": outcome.problems_total + len(healed.left),
        "report": {
            "points": len(outcome.points),
            "points_left": outcome.points_left,
            "packs": outcome.packs,
            "bytes": earlier + outcome.bytes + outcome.bytes_control + healed.bytes,
            "latest_at": outcome.latest_at.isoformat() if outcome.latest_at else None,
            "healed_here": healed.here,
            "healed_at_source": healed.source,
            "not_healed": healed.left,
            "problems": shown(outcome.problems),
        },
    }


def _note(job: Job, outcome: Outcome, now: dt.datetime) -> None:
    link = ReplicationLink.objects.select_related("source").get(target=job.vault)
    here = job.vault.points.values("series", "point_id")
    names = {(row["series"], row["point_id"]) for row in here}
    theirs = link.source.points.values_list("series", "point_id", "completed_at")
    behind = sum((series, point) not in names for series, point, _ in theirs)
    old = sum(completed <= link.created_at and (series, point) in names for series, point, completed in theirs)
    ReplicationLink.objects.filter(pk=link.pk).update(
        points_behind=behind,
        historical_done=min(old, link.historical_total),
        bytes_replicated=F("bytes_replicated") + outcome.bytes_control + outcome.healed.bytes,
        latest_at=outcome.latest_at or link.latest_at,
        checked_at=now,
    )


EXECUTOR = Executor(
    order=ReplicateJob,
    unit=Unit,
    result=Result,
    prepare=_prepare,
    plan=_plan,
    work=replicate.work,
    finish=_finish,
    conclude=_conclude,
    session=lambda order: order.session,
    worked=_worked,
    broken_off=_count,
)
