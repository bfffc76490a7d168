"""Expiry jobs: let points go whose retention is over, or that a person named, and keep the catalogue in step."""

import datetime as dt
from collections.abc import Iterable, Iterator
from typing import Any

from django.db import transaction

from engine.errors import PointMissing
from engine.ids import new_ulid
from engine.progress import Progress
from engine.retention import Rules
from engine.vault import PointName, Vault
from engine.verbs import expire
from engine.verbs.expire import Decision, ExpireJob, Outcome, Result, Unit
from jobs.executors.port import PROBLEMS_SHOWN, Clock, Executor
from jobs.models import Job
from jobs.states import Kind
from policies import retention
from vaults import catalogue, repositories
from vaults.models import RecoveryPoint
from vaults.models import Vault as VaultRow

BATCH = 500


def _prepare(job: Job, now: dt.datetime) -> ExpireJob:
    """Order what a person named, or what the rules in force say."""
    wanted = job.settings
    fixed: dict[str, Any] = {
        "run": new_ulid(now),
        "started_at": job.started_at or now,
        "confirmed": bool(wanted.get("confirmed")),
        "dry_run": bool(wanted.get("dry_run")),
    }
    if named := _named(job):
        return ExpireJob(points=named, reason=wanted.get("reason", ""), held=_in_use(job.vault), **fixed)
    if _is_named(job):
        return ExpireJob(**fixed)  # what was named is gone already
    rules, held = _rules(job.vault, now)
    return ExpireJob(rules=rules, default=Rules(), held=held, **fixed)


def _is_named(job: Job) -> bool:
    """Say whether the job is about what a person named, and not about rules."""
    return "points" in job.settings or "erase" in job.settings


def _named(job: Job) -> tuple[str, ...]:
    """Return the points that the job is to delete because a person asked."""
    if series := job.settings.get("erase"):
        rows = job.vault.points.filter(series=series, held_at=None)
        if not job.settings.get("manual", True):
            rows = rows.filter(manual=False)  # a cluster's manual points outlive it (D30)
        return tuple(f"{series}/{point}" for series, point in rows.values_list("series", "point_id"))
    return tuple(job.settings.get("points", ()))


def _rules(vault: VaultRow, now: dt.datetime) -> tuple[dict[str, Rules], tuple[str, ...]]:
    """Return the rules by series, and the points that something beside them keeps.

    A verb takes one set of rules for a series. Where policies of several time zones make more of them, what the others
    keep is held.
    """
    rules: dict[str, Rules] = {}
    held = list(_in_use(vault))
    for series, (first, *others) in retention.vault_rules(vault, now=now).items():
        rules[series] = first
        if others:
            judged = retention.preview(vault, series, tuple(others), now=now)
            held += [f"{series}/{one.row.point_id}" for one in judged if one.verdict.keep]
    return rules, tuple(sorted(set(held)))


def _in_use(vault: VaultRow) -> tuple[str, ...]:
    """Return the points that a person holds, that a job which waits is going to read, and that a source still shows."""
    held = vault.points.filter(held_at__isnull=False).values_list("series", "point_id")
    wanted = Job.objects.active().filter(
        vault=vault, kind__in=(Kind.RESTORE, Kind.DRILL, Kind.COMPARE), point__isnull=False
    )
    waiting = wanted.values_list("point__series", "point__point_id")
    source = repositories.followed(vault)  # what a replica's source still shows stays: the lifecycle is the source's
    mirrored = source.points.values_list("series", "point_id") if source else ()
    return tuple(sorted({f"{series}/{point}" for series, point in (*held, *waiting, *mirrored)}))


def _is_current(job: Job, order: ExpireJob, now: dt.datetime) -> bool:
    """Say whether the rules keep no more than they did: keeping at least one holds at once (C33)."""
    if order.points or order.default is None:
        return True
    rules, held = _rules(job.vault, now)
    return order.rules == rules and set(held) <= set(order.held)


def _plan(vault: Vault, order: ExpireJob, progress: Progress, clock: Clock) -> Iterator[Unit]:
    return expire.plan(vault, order, progress, now=clock())


def _finish(vault: Vault, order: ExpireJob, results: Iterable[Result], progress: Progress, clock: Clock) -> Outcome:
    return expire.finish(vault, order, results, progress, clock=clock)


def _conclude(job: Job, vault: Vault, outcome: Outcome, now: dt.datetime) -> dict[str, Any]:
    """Take the rows of points that are gone out of the catalogue, bring those back that are visible again."""
    if not outcome.dry_run:
        _forget(job.vault, {*outcome.expired, *outcome.deleted, *outcome.missing} - set(outcome.shown))
        _show(job.vault, vault, outcome.shown, now)
        if job.started_at and not _is_named(job):
            _forget_unseen(job.vault, outcome.decisions, before=job.started_at)
        _redate(job.vault, [one for one in outcome.decisions if one.keep])
    told = outcome.decisions if outcome.dry_run else [one for one in outcome.decisions if not one.keep]
    return {
        "state": outcome.state,
        "problems_count": len(outcome.refused) + len(outcome.damaged),
        "report": {
            "dry_run": outcome.dry_run,
            "visible": outcome.visible,
            "going": sum(not one.keep for one in outcome.decisions),
            "expired": len(outcome.expired),
            "deleted": len(outcome.deleted),
            "waiting": len(outcome.waiting),
            "objections": outcome.objections,
            "fenced": outcome.fenced,
            "decisions": [
                {
                    "point": f"{one.series}/{one.point}",
                    "completed_at": f"{one.completed_at:%Y-%m-%d %H:%M}" if one.completed_at else "",
                    "keep": one.keep,
                    "text": one.text,
                }
                for one in told[:PROBLEMS_SHOWN]
            ],
            "problems": _problems(outcome),
        },
    }


def _problems(outcome: Outcome) -> list[dict[str, Any]]:
    refused = [{"path": one.point, "reason": "refused", "detail": one.reason, "lost": False} for one in outcome.refused]
    damaged = [
        {"path": one, "reason": "damaged", "detail": "it can't be judged", "lost": True} for one in outcome.damaged
    ]
    return [*refused, *damaged][:PROBLEMS_SHOWN]


def _forget(vault: VaultRow, names: set[str]) -> None:
    by_series: dict[str, list[str]] = {}
    for name in names:
        series, _, point = name.partition("/")
        by_series.setdefault(series, []).append(point)
    with transaction.atomic():
        for series, points in by_series.items():
            for at in range(0, len(points), BATCH):
                vault.points.filter(series=series, point_id__in=points[at : at + BATCH]).delete()


def _forget_unseen(vault: VaultRow, decisions: list[Decision], *, before: dt.datetime) -> None:
    """Take out rows of points that the vault does not show: the command line expires them without telling anybody.

    `before` is when the job began: what was registered since may have been committed after the vault was listed.
    """
    seen = {(one.series, one.point) for one in decisions}
    rows = vault.points.filter(created_at__lt=before).values_list("series", "point_id")
    _forget(vault, {f"{series}/{point}" for series, point in rows if (series, point) not in seen})


def _show(row: VaultRow, vault: Vault, names: Iterable[str], now: dt.datetime) -> None:
    for name in names:
        series, _, point = name.partition("/")
        try:
            catalogue.register(row, vault.root(PointName(series, point)).body, now=now)
        except PointMissing:
            continue  # gone again


def _redate(vault: VaultRow, kept: list[Decision]) -> None:
    """Write down, for display, when each point that stays expires and until when it is locked."""
    told = {(one.series, one.point): one for one in kept if one.state != "damaged"}
    changed = []
    for row in vault.points.only("series", "point_id", "expires_at", "locked_until").iterator():
        one = told.get((row.series, row.point_id))
        if one is None:
            continue
        expires_at = row.expires_at if one.asked else retention.shown_end(one.expires_at, one.completed_at)
        locked_until = one.locked_until or row.locked_until
        if (row.expires_at, row.locked_until) != (expires_at, locked_until):
            row.expires_at, row.locked_until = expires_at, locked_until
            changed.append(row)
    RecoveryPoint.objects.bulk_update(changed, ["expires_at", "locked_until"], batch_size=BATCH)


EXECUTOR = Executor(
    order=ExpireJob,
    unit=Unit,
    result=Result,
    prepare=_prepare,
    plan=_plan,
    work=expire.work,
    finish=_finish,
    conclude=_conclude,
    session=lambda order: "",
    is_current=_is_current,
)
