"""Raise and resolve alerts, inside the transaction of what they tell. Who hears of them is decided later, elsewhere.

An alert costs a job three queries at most, and an error in here never keeps a job from ending.
"""

import datetime as dt
import uuid
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import wraps
from typing import Any

import structlog
from django.db import IntegrityError, transaction
from django.db.models import F

from jobs import doorbell
from jobs.alert_models import Alert, AlertState, AlertType, Severity, Watch
from jobs.models import Job
from jobs.states import ENDED_WELL, JobState, Kind
from policies import editions

log = structlog.get_logger(__name__)

TITLE_CHARS_MAX = 255
BACKUP_TYPES = (
    AlertType.BACKUP_FAILED,
    AlertType.BACKUP_MISSED,
    AlertType.BACKUP_SKIPPED,
    AlertType.BACKUP_PARTIAL,
    AlertType.BACKUP_OVERDUE,
)
# What each end of a backup is called; a success ends all of them, but a partial one.
_OF_BACKUP = {
    JobState.FAILED: (AlertType.BACKUP_FAILED, Severity.CRITICAL, "failed"),
    JobState.MISSED: (AlertType.BACKUP_MISSED, Severity.CRITICAL, "was missed"),
    JobState.SKIPPED: (AlertType.BACKUP_SKIPPED, Severity.WARNING, "was skipped"),
    JobState.PARTIAL_COMPLETE: (AlertType.BACKUP_PARTIAL, Severity.WARNING, "is partially complete"),
}
_OF_KIND = {
    Kind.RESTORE: (AlertType.RESTORE_FAILED, Severity.WARNING),
    Kind.DRILL: (AlertType.DRILL_FAILED, Severity.CRITICAL),
    Kind.REPLICATE: (AlertType.REPLICATION_FAILED, Severity.WARNING),
}
# What a job's error code says about the vault rather than about the job.
_OF_CODE = {
    "vault_damaged": (AlertType.VAULT_DAMAGED, "{vault} is damaged"),
    "locks_broken": (AlertType.LOCKS_BROKEN, "Locks of {vault} are not what they should be"),
}
# Damage that one level of a verification finds need not show at those before it.
_LEVELS = ("", "inventory", "structure", "footers", "scrub", "content")


@dataclass(frozen=True, slots=True)
class Trouble:
    """What an alert says. `key` names the trouble inside its account: type and thing, e.g. quota/vault:<id>.

    `about`: any of source_id, vault_id, plan_id, job_id. `title` is one line, `text` says what to do.
    """

    type: AlertType
    key: str
    severity: Severity
    title: str
    text: str = ""
    about: dict[str, uuid.UUID | None] = field(default_factory=dict)
    detail: dict[str, Any] = field(default_factory=dict)


@transaction.atomic
def raise_(account_id: uuid.UUID, trouble: Trouble, *, now: dt.datetime) -> Alert:
    """Open an alert, or count the trouble's open one up. Call it inside the transaction of what it tells.

    Delivered when it is new, and again when it became more severe; a less severe sign is only shown. Safe to call at
    once by two: a constraint lets one of them open it.
    """
    mine = Alert.objects.open().filter(account_id=account_id, key=trouble.key)
    if not _count_up(mine, trouble, now):
        try:
            with transaction.atomic():
                alert = Alert.objects.create(
                    account_id=account_id, type=trouble.type, key=trouble.key, first_at=now, **_told(trouble, now)
                )
        except IntegrityError:
            _count_up(mine, trouble, now)
        else:
            doorbell.ring_alert(alert)
            return alert
    alert = mine.get()
    if alert.routed < alert.change:
        doorbell.ring_alert(alert)
    return alert


def _told(trouble: Trouble, now: dt.datetime) -> dict[str, Any]:
    return {
        "severity": trouble.severity,
        "title": trouble.title[:TITLE_CHARS_MAX],
        "text": trouble.text,
        "detail": trouble.detail,
        "last_at": now,
        **trouble.about,
    }


def _count_up(mine: Any, trouble: Trouble, now: dt.datetime) -> bool:
    changes = _told(trouble, now)
    worse = {"change": F("change") + 1, "acknowledged_at": None, "acknowledged_by": "", "count": F("count") + 1}
    if mine.filter(severity__lt=trouble.severity).update(**changes, **worse):
        return True
    return bool(mine.update(**changes, count=F("count") + 1))


def resolve(account_id: uuid.UUID, keys: Collection[str], *, now: dt.datetime) -> int:
    """End the open alerts of these troubles, because they are over; return how many there were."""
    return _resolve(Alert.objects.open().filter(account_id=account_id, key__in=keys), now)


@transaction.atomic
def _resolve(alerts: Any, now: dt.datetime) -> int:
    ended = 0
    for alert in alerts:
        changed = Alert.objects.open().filter(pk=alert.pk)
        if changed.update(state=AlertState.RESOLVED, resolved_at=now, change=F("change") + 1):
            ended += 1
            doorbell.ring_alert(alert)
    return ended


def key_of(type_: AlertType, **about: uuid.UUID | None) -> str:
    """Return the key of a trouble of a type and the things it is about, e.g. backup_failed/plan:<id>."""
    return "/".join([type_.value, *(f"{name}:{pk}" for name, pk in sorted(about.items()) if pk)])


def _never_in_the_way(hook: Callable[..., None]) -> Callable[..., None]:
    """Let a job go on when its alert can't be raised, in a savepoint of its own; the log tells."""

    @wraps(hook)
    def call(*args: Any, **options: Any) -> None:
        try:
            with transaction.atomic():
                hook(*args, **options)
        except Exception:
            log.exception("alert.lost", hook=hook.__name__, args=[str(one) for one in args])

    return call


@_never_in_the_way
def job_ended(job_id: uuid.UUID, *, now: dt.datetime) -> None:
    """Raise what a job's end tells, and resolve what is over with it. Called in the transaction of the end (C21).

    A job that a person canceled tells nothing.
    """
    job = Job.objects.select_related("source", "vault", "plan").get(pk=job_id)
    if job.kind == Kind.BACKUP:
        _backup_ended(job, now)
    elif job.state in (JobState.FAILED, JobState.PARTIAL_COMPLETE):
        raise_(job.account_id, _trouble(job), now=now)
    elif job.state == JobState.COMPLETE:
        _over(job, now)


def _backup_ended(job: Job, now: dt.datetime) -> None:
    about = {"plan": job.plan_id} if job.plan_id else {"source": job.source_id, "vault": job.vault_id}
    if job.state in ENDED_WELL:
        over = [one for one in BACKUP_TYPES if one != AlertType.BACKUP_PARTIAL or job.state == JobState.COMPLETE]
        is_large = job.plan and editions.long_run_warning(job.plan, bytes_total=job.bytes_total)
        large = [] if is_large else [_large_key(job)]
        resolve(job.account_id, [*(key_of(one, **about) for one in over), *large], now=now)
        if job.plan_id:
            Watch.objects.filter(plan_id=job.plan_id).update(since=now)
    if job.state not in _OF_BACKUP:
        return
    type_, severity, verb = _OF_BACKUP[JobState(job.state)]
    text = job.error
    if job.state == JobState.PARTIAL_COMPLETE:
        text = f"{job.problems_count:,} entries could not be read. The job lists them with the reasons."
    raise_(
        job.account_id,
        Trouble(
            type=type_,
            key=key_of(type_, **about),
            severity=severity,
            title=f"The backup of {job.source or 'a source that is gone'} to {job.vault} {verb}",
            text=text,
            about=_about(job),
            detail={"job_state": job.state, "error_code": job.error_code},
        ),
        now=now,
    )


def _large_key(job: Job) -> str:
    return key_of(AlertType.BACKUP_LARGE, source=job.source_id, vault=job.vault_id)


def _about(job: Job) -> dict[str, uuid.UUID | None]:
    return {"source_id": job.source_id, "vault_id": job.vault_id, "plan_id": job.plan_id, "job_id": job.pk}


def _kind_key(job: Job) -> str:
    """Return the key of a job that failed as such: of its kind in its vault, and of its source where it has one."""
    type_ = _OF_KIND.get(Kind(job.kind), (AlertType.MAINTENANCE_FAILED, Severity.WARNING))[0]
    return f"{key_of(type_, source=job.source_id, vault=job.vault_id)}/{job.kind}"


def _trouble(job: Job) -> Trouble:
    detail = {"job_state": job.state, "error_code": job.error_code, "level": job.settings.get("level", "")}
    if job.state == JobState.FAILED and job.error_code in _OF_CODE:
        type_, title = _OF_CODE[job.error_code]
        return Trouble(
            type=type_,
            key=key_of(type_, vault=job.vault_id),
            severity=Severity.CRITICAL,
            title=title.format(vault=job.vault),
            text=job.error,
            about=_about(job),
            detail=detail,
        )
    type_, severity = _OF_KIND.get(Kind(job.kind), (AlertType.MAINTENANCE_FAILED, Severity.WARNING))
    failed = job.state == JobState.FAILED
    where = f"{job.source} in {job.vault}" if job.source else str(job.vault)
    return Trouble(
        type=type_,
        key=_kind_key(job),
        severity=severity if failed else Severity.INFO,
        title=f"{job.get_kind_display()} of {where} {'failed' if failed else 'is partially complete'}",
        text=job.error or f"{job.problems_count:,} problems. The job lists them with the reasons.",
        about=_about(job),
        detail=detail,
    )


def _over(job: Job, now: dt.datetime) -> None:
    """Resolve what the job's success ends. Damage is over when a verification at least as deep finds none left."""
    keys = [_kind_key(job)]
    if job.kind == Kind.AUDIT:
        keys.append(key_of(AlertType.LOCKS_BROKEN, vault=job.vault_id))
    resolve(job.account_id, keys, now=now)
    if job.kind == Kind.VERIFY and not job.report.get("damaged_packs"):
        found = Alert.objects.open().filter(
            account_id=job.account_id, key=key_of(AlertType.VAULT_DAMAGED, vault=job.vault_id)
        )
        depth = _LEVELS.index(job.settings.get("level", ""))
        _resolve([one for one in found if _LEVELS.index(one.detail.get("level", "")) <= depth], now)


@_never_in_the_way
def estimated(job_id: uuid.UUID, *, bytes_total: int, now: dt.datetime) -> None:
    """Warn once of a backup so large that it may take longer than a day (C53). Resolved when its source is smaller."""
    job = Job.objects.select_related("source", "vault", "plan").get(pk=job_id)
    key = _large_key(job)
    warning = editions.long_run_warning(job.plan, bytes_total=bytes_total) if job.plan else ""
    if not warning or Alert.objects.open().filter(account_id=job.account_id, key=key, job=job).exists():
        return
    raise_(
        job.account_id,
        Trouble(
            type=AlertType.BACKUP_LARGE,
            key=key,
            severity=Severity.WARNING,
            title=f"The backup of {job.source} may take longer than a day",
            text=f"It has to go through {bytes_total / (1 << 40):.1f} TiB. {warning}",
            about=_about(job),
            detail={"bytes_total": bytes_total},
        ),
        now=now,
    )
