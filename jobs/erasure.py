"""Go on with the deletion of vaults: what no lock protects goes now, the rest when the last lock has ended (E41, B6).

While points are locked, those that are not expire and a prune frees what only they needed; the vault stays readable.
When none is, one job erases all of it.
"""

import datetime as dt
from collections.abc import Iterator

import structlog
from django.db import IntegrityError, transaction

from accounts.services import SERVICE
from engine.errors import EngineError
from engine.verbs.erase import remove_rest
from jobs import services
from jobs.models import Job
from jobs.states import JobState, Kind
from vaults import deletion, repositories
from vaults.models import Vault, VaultState

log = structlog.get_logger(__name__)
_AGAIN = dt.timedelta(minutes=5)
_STOPPED = (Kind.BACKUP, Kind.COMPACT, Kind.COMPARE, Kind.DRILL, Kind.DISASTER)
_GONE = "vault_missing"


def sweep(*, now: dt.datetime, rows_max: int) -> Iterator[Job]:
    """Start what is next in each vault that is being deleted and yield its jobs; one query while there is none."""
    vaults = Vault.objects.filter(state=VaultState.DELETING).select_related("account", "region")
    for vault in vaults[:rows_max]:
        if job := _go_on(vault, now=now):
            yield job


def _go_on(vault: Vault, *, now: dt.datetime) -> Job | None:
    active = Job.objects.active().filter(vault=vault)
    for job in active.filter(kind__in=_STOPPED).exclude(state=JobState.CANCELING):
        services.request_cancel(job, actor=SERVICE, now=now)
    if active.exists():
        return None
    if vault.points.filter(locked_until__gt=now).exists():
        return _free(vault, now=now)
    if vault.deletable_at and vault.deletable_at > now:
        return None
    last = _last(vault, Kind.ERASE)
    if last and last.error_code == _GONE:
        _remove_rest(vault, now=now)
        return None
    due = last is None or _is_past(last, now) or bool(vault.deletable_at)
    return _start(vault, Kind.ERASE, {}, now=now) if due else None


def _free(vault: Vault, *, now: dt.datetime) -> Job | None:
    """Let the points go that are not locked, then what only they needed."""
    free = vault.points.exclude(locked_until__gt=now).values_list("series", "point_id")
    expired, pruned = _last(vault, Kind.EXPIRE), _last(vault, Kind.PRUNE)
    if free and (expired is None or _is_past(expired, now)):
        wanted = {
            "points": [f"{series}/{point}" for series, point in free],
            "reason": "the vault is being deleted",
            "confirmed": True,
        }
        return _start(vault, Kind.EXPIRE, wanted, now=now)
    stale = pruned is None or (expired is not None and expired.created_at > pruned.created_at)
    if stale or (
        pruned and pruned.state != JobState.COMPLETE and pruned.report.get("waiting") and _is_past(pruned, now)
    ):
        return _start(vault, Kind.PRUNE, {}, now=now)
    return None


def _last(vault: Vault, kind: str) -> Job | None:
    since = vault.delete_requested_at
    return vault.jobs.filter(kind=kind, created_at__gte=since).first() if since else None


def _is_past(job: Job, now: dt.datetime) -> bool:
    return job.ended_at is not None and job.ended_at <= now - _AGAIN


def _start(vault: Vault, kind: str, wanted: dict[str, object], *, now: dt.datetime) -> Job | None:
    queue = vault.region.queue
    try:
        with transaction.atomic():
            return services.create(
                vault.account, now=now, kind=kind, vault=vault, settings=wanted, queue_work=queue, queue_finish=queue
            )
    except IntegrityError:
        return None  # another sweep was first


def _remove_rest(vault: Vault, *, now: dt.datetime) -> None:
    """Finish an erase that ended after vault.json went, before it could tell."""
    try:
        refused = remove_rest(repositories.storage(vault, clock=lambda: now))
    except (EngineError, OSError) as error:
        log.warning("vault.rest_not_removed", vault=str(vault.pk), error=str(error))
        return
    if not refused:
        deletion.conclude(vault, now=now)
