"""Maintenance of vaults: what comes due again and again, and what a person asks for.

Each vault has one Duty per recurring kind, due on a grid of moments that is shifted by a hash of the vault's id, so
that a thousand vaults don't start at once. A job that fails is done again at the next moment.
"""

import datetime as dt
from collections.abc import Iterator
from typing import Any

from django.conf import settings
from django.core.exceptions import ValidationError
from django.db import IntegrityError, models, transaction

from accounts.refusals import Refused
from accounts.services import Actor, record
from jobs import services
from jobs.models import Duty, Job
from jobs.states import CONTINUOUS, RECURRING, JobState, Kind, Trigger
from policies import moments, schedule
from policies.models import Plan, Source
from policies.services import end_keep_one
from vaults import replication
from vaults.models import RecoveryPoint, ReplicationLink, Vault, VaultState, VaultType

SOON = dt.timedelta(seconds=60)
EVERY_S_MIN, EVERY_S_MAX = 60, 366 * 24 * 3600
# What a vault that is not ready may still do: find out what is wrong with it, and mend it.
_CAREFUL = (Kind.VERIFY, Kind.AUDIT, Kind.REBUILD, Kind.DISASTER)


def _recurring(kind: str) -> dict[str, Any]:
    """Return the settings of a job that nobody asked for."""
    return {"level": "scrub", "days": settings.SCRUB_DAYS} if kind == Kind.VERIFY else {}


class MaintenanceBusy(Refused):
    """A vault does one job of each kind of maintenance at a time."""

    code = "maintenance_busy"


class NoPoint(Refused):
    """There is nothing to restore yet."""

    code = "no_point"


def every_s(vault: Vault, kind: str) -> int:
    """Return after how many seconds the vault needs `kind` again, 0 for never."""
    return int(vault.maintenance.get(kind, settings.MAINTENANCE_EVERY_S[kind]))


def next_due(vault: Vault, kind: str, *, after: dt.datetime) -> dt.datetime | None:
    """Return the first moment of the vault's own grid later than `after`, None for never."""
    period = every_s(vault, kind)
    return schedule.spread(f"{vault.pk}/{kind}", period, after=after) if period else None


def complete_duties(vaults: Any, *, now: dt.datetime) -> None:
    """Give each of these vaults the duties that it lacks. Safe to call twice, and at once."""
    rows = [
        Duty(vault=vault, kind=kind, due_at=next_due(vault, kind, after=now))
        for vault in vaults
        for kind in (*RECURRING, *(CONTINUOUS if vault.type == VaultType.REPLICATION_TARGET else ()))
    ]
    Duty.objects.bulk_create(rows, ignore_conflicts=True, batch_size=500)


def sweep(*, now: dt.datetime, rows_max: int) -> Iterator[Job]:
    """Start what is due and yield its jobs: a few queries while nothing is, however many vaults there are."""
    complete_duties(Vault.objects.present().filter(duties=None)[:rows_max], now=now)
    if vaults := end_keep_one(now=now):
        hasten(vaults, Kind.EXPIRE, now=now)
    for duty in Duty.objects.due(now).select_related("vault__account", "vault__region")[:rows_max]:
        if job := request_due(duty, now=now):
            yield job
    plans = Plan.objects.drill_due(now).select_related("account", "source", "policy", "vault__region")
    for plan in plans[:rows_max]:
        if job := request_due_drill(plan, now=now):
            yield job


def request_due(duty: Duty, *, now: dt.datetime) -> Job | None:
    """Turn a duty's moment into a job and move the duty on. None when another sweep was first, or one still runs.

    The one that runs does for this moment too; but an expiry may go by rules that changed, so another follows soon.
    """
    following = next_due(duty.vault, duty.kind, after=now)
    mine = Duty.objects.filter(pk=duty.pk, due_at=duty.due_at)
    if not _is_needed(duty):
        mine.update(due_at=following)
        return None
    try:
        with transaction.atomic():
            if not mine.update(due_at=following):
                return None
            job = _create(duty.vault, duty.kind, _recurring(duty.kind), now=now, trigger=Trigger.SCHEDULED)
            Duty.objects.filter(pk=duty.pk).update(last_job=job)
            return job
    except IntegrityError:
        mine.update(due_at=now + SOON if duty.kind == Kind.EXPIRE else following)
        return None


def _is_needed(duty: Duty) -> bool:
    """Say whether there is anything to do: locks to audit, a vault to follow; and a replica is not compacted."""
    if duty.kind == Kind.AUDIT:
        return duty.vault.immutable_since is not None
    if duty.kind in (Kind.REPLICATE, Kind.COMPACT):
        return is_followed(duty.vault) == (duty.kind == Kind.REPLICATE)
    return True


def is_followed(vault: Vault) -> bool:
    """Say whether the vault is a replica into which replication goes on."""
    return ReplicationLink.objects.active().filter(target=vault).exists()


def follow(vault: Vault, *, now: dt.datetime) -> None:
    """Let the vault's replica follow at once: a point was committed, or went."""
    hasten(ReplicationLink.objects.active().filter(source=vault).values("target"), Kind.REPLICATE, now=now)


def request_due_drill(plan: Plan, *, now: dt.datetime) -> Job | None:
    """Restore the plan's newest point on trial and move the plan on. None when there is no point, or one still runs."""
    following = moments.next_drill_at(plan, plan.policy, after=now)
    mine = Plan.objects.filter(pk=plan.pk, next_drill_at=plan.next_drill_at)
    try:
        with transaction.atomic():
            if not mine.update(next_drill_at=following):
                return None
            return _create_drill(plan.source, plan.vault, percent=plan.policy.drill_percent, now=now, plan=plan)
    except IntegrityError:
        mine.update(next_drill_at=following)
        return None


def request_drill(source: Source, vault: Vault, *, percent: int, actor: Actor, now: dt.datetime) -> Job:
    """Restore the source's newest point in the vault on trial, by hand. Raises NoPoint, MaintenanceBusy."""
    try:
        with transaction.atomic():
            job = _create_drill(source, vault, percent=percent, now=now, requested_by=actor.user)
            if job is None:
                raise NoPoint(f"{source} has no recovery point in {vault} yet.")
            record(actor, "job.drill", job, account=vault.account, now=now, percent=percent)
            return job
    except IntegrityError as error:
        raise MaintenanceBusy(f"A trial restore of {source} from {vault} runs already. Wait for it to end.") from error


def _create_drill(source: Source, vault: Vault, *, percent: int, now: dt.datetime, **values: Any) -> Job | None:
    point = RecoveryPoint.objects.in_series(vault, source.series).first()
    if point is None:
        return None
    trigger = Trigger.SCHEDULED if "plan" in values else Trigger.MANUAL
    return _create(
        vault, Kind.DRILL, {"percent": percent}, now=now, source=source, point=point, trigger=trigger, **values
    )


def request(vault: Vault, kind: str, wanted: dict[str, Any], *, actor: Actor, now: dt.datetime) -> Job:
    """Start maintenance by hand; `wanted` becomes the job's settings. Raises MaintenanceBusy, VaultUnfit."""
    if vault.state != VaultState.READY and kind not in _CAREFUL:
        raise services.VaultUnfit(f"{vault} is in state {vault.state}. Verify it first.", code="vault_not_ready")
    try:
        with transaction.atomic():
            job = _create(vault, kind, wanted, now=now, requested_by=actor.user)
            if not wanted.get("dry_run"):
                Duty.objects.filter(vault=vault, kind=kind).update(last_job=job)
            record(actor, f"job.{kind}", job, account=vault.account, now=now, **wanted)
            return job
    except IntegrityError as error:
        busy = Job.objects.active().filter(vault=vault, kind=kind).first()
        if busy is None:
            raise
        raise MaintenanceBusy(
            f"{vault} has a job of this kind already ({busy.get_kind_display().lower()}). "
            "Wait for it to end, or cancel it.",
            job=str(busy.pk),
        ) from error


def _create(vault: Vault, kind: str, wanted: dict[str, Any], *, now: dt.datetime, **values: Any) -> Job:
    queue = vault.region.queue
    if kind == Kind.REPLICATE:
        values["limits"] = replication.limits_into(vault)
    return services.create(
        vault.account, now=now, kind=kind, vault=vault, settings=wanted, queue_work=queue, queue_finish=queue, **values
    )


def wait_for(vault: Vault, kind: str, sessions: list[str], *, now: dt.datetime) -> None:
    """Note the sessions that a job's work waits for: while there are some, the duty is due again within minutes."""
    changes: dict[str, Any] = {"waiting": sessions}
    if sessions:
        changes["due_at"] = now + dt.timedelta(seconds=settings.MAINTENANCE_AGAIN_S)
    Duty.objects.filter(vault=vault, kind=kind).update(**changes)


def forget_old(*, now: dt.datetime, rows_max: int) -> int:
    """Delete the rows of routine maintenance that ended well long ago, all but the last of each duty; return how many.

    An installation with a thousand vaults makes a million of them a month. What failed stays.
    """
    before = now - dt.timedelta(days=settings.ROUTINE_KEPT_DAYS)
    routine = Job.objects.filter(state=JobState.COMPLETE, trigger=Trigger.SCHEDULED, plan=None, ended_at__lt=before)
    last = Duty.objects.filter(last_job=models.OuterRef("pk"))
    old = routine.filter(~models.Exists(last), kind__in=(*RECURRING, *CONTINUOUS), cleaned=True).order_by("ended_at")
    return Job.objects.filter(pk__in=list(old.values_list("pk", flat=True)[:rows_max])).delete()[1].get("jobs.Job", 0)


def hasten(vaults: Any, kind: str, *, now: dt.datetime) -> None:
    """Make `kind` due at once in these vaults."""
    Duty.objects.filter(vault__in=vaults, kind=kind, due_at__gt=now).update(due_at=now)


@transaction.atomic
def set_intervals(vault: Vault, wanted: dict[str, int | None], *, actor: Actor, now: dt.datetime) -> Vault:
    """Give the vault its own intervals in seconds by kind; None follows the installation. Raises ValidationError."""
    for kind, seconds in wanted.items():
        if kind not in RECURRING:
            raise ValidationError({kind: f"Must be one of {', '.join(RECURRING)}."})
        if seconds is not None and seconds != 0 and not EVERY_S_MIN <= seconds <= EVERY_S_MAX:
            raise ValidationError({kind: f"Give {EVERY_S_MIN} to {EVERY_S_MAX} seconds, 0 for never, or nothing."})
    own = vault.maintenance | wanted
    vault.maintenance = {kind: seconds for kind, seconds in own.items() if seconds is not None}
    vault.save(update_fields=["maintenance"])
    complete_duties([vault], now=now)
    for kind in wanted:
        Duty.objects.filter(vault=vault, kind=kind).update(due_at=next_due(vault, kind, after=now))
    record(actor, "vault.maintenance", vault, account=vault.account, now=now, **wanted)
    return vault
