"""What a person does to points: hold, release, delete, and delete all of a source's. Locks win over everybody (B6)."""

import datetime as dt
from collections.abc import Iterator
from dataclasses import dataclass

from django.db import transaction
from django.db.models import Max, Q, QuerySet

from accounts.refusals import Refused
from accounts.services import SERVICE, Actor, record
from engine.vault import PointName
from engine.verbs import hold as holds
from jobs import holdback, maintenance, services
from jobs.models import Job
from jobs.states import JobState, Kind, Lane
from policies import services as planning
from policies.kinds import TYPES
from policies.models import Source
from vaults import repositories
from vaults.models import ConfirmationWrong, RecoveryPoint, ReplicationLink, Vault

EXPIRY_REFUSED = "expiry_refused"
_AGAIN = dt.timedelta(minutes=5)
_LOOK_AGAIN = dt.timedelta(days=1)


class PointHeld(Refused):
    """Somebody holds the point."""

    code = "point_held"


class PointLocked(Refused):
    """A lock is in force (B6)."""

    code = "point_locked"


class PointMirrored(Refused):
    """What a replica holds is deleted at its source (E15)."""

    code = "point_mirrored"


class NothingToConfirm(Refused):
    """Only an expiry that a guard refused waits for a confirmation."""

    code = "nothing_to_confirm"


@dataclass(frozen=True, slots=True)
class Erasure:
    """What the deletion of a source's backups meets: points in all, those held, those locked until `ends_at`."""

    points: int
    held: int
    locked: int
    ends_at: dt.datetime | None


def _check_typed(typed: str, expected: str) -> None:
    if typed.strip() != expected:
        raise ConfirmationWrong(f"Type {expected!r} to confirm: this can't be undone.")


def hold(point: RecoveryPoint, *, reason: str, actor: Actor, now: dt.datetime) -> RecoveryPoint:
    """Keep the point whatever the rules say, until it is released. Raises PointMissing when it expired meanwhile.

    The hold lies in the vault too, so that it outlives this database. It ends a deletion that is held back.
    """
    vault = repositories.open_vault(point.vault)
    holds.hold(vault, PointName(point.series, point.point_id), reason=reason, now=now)
    with transaction.atomic():
        point.held_at, point.held_by, point.hold_reason, point.delete_due_at = now, actor.name, reason, None
        point.save(update_fields=["held_at", "held_by", "hold_reason", "delete_due_at"])
        record(actor, "point.hold", point, account=point.vault.account, now=now, reason=reason)
    return point


def release(point: RecoveryPoint, *, actor: Actor, now: dt.datetime) -> RecoveryPoint:
    """Let the rules decide over the point again. Safe to call twice."""
    holds.release(repositories.open_vault(point.vault), PointName(point.series, point.point_id))
    with transaction.atomic():
        point.held_at, point.held_by, point.hold_reason = None, "", ""
        point.save(update_fields=["held_at", "held_by", "hold_reason"])
        record(actor, "point.release", point, account=point.vault.account, now=now)
    return point


def delete_point(point: RecoveryPoint, *, confirmation: str, actor: Actor, now: dt.datetime) -> Job:
    """Start the deletion of one point; `confirmation` is the name of its source, typed.

    Its copy in a replica follows days later. Raises ConfirmationWrong, PointMirrored, PointHeld, PointLocked,
    MaintenanceBusy. The job asks the store's own lock again.
    """
    _check_typed(confirmation, point.source_name or point.series)
    if maintenance.is_followed(point.vault):
        raise PointMirrored(
            f"{point.vault} follows another vault. Delete the point there, and it goes here {holdback.HELD_BACK.days} "
            "days later; or end the replication."
        )
    if point.held_at:
        raise PointHeld(
            f"{point.held_by or 'Somebody'} holds this point: {point.hold_reason or 'no reason was given'}."
        )
    if point.locked_until and point.locked_until > now:
        raise PointLocked(
            f"This point is locked: nobody can delete it before {_moment(point.locked_until)}.",
            locked_until=point.locked_until.isoformat(),
        )
    wanted = {"points": [f"{point.series}/{point.point_id}"], "reason": f"deleted by {actor.name}", "confirmed": True}
    with transaction.atomic():
        holdback.begin(RecoveryPoint.objects.filter(pk=point.pk), asked_by=actor.name, now=now)
        return maintenance.request(point.vault, Kind.EXPIRE, wanted, actor=actor, now=now)


def confirm_expiry(job: Job, *, actor: Actor, now: dt.datetime) -> Job:
    """Run an expiry again that a guard refused, past the guards. Raises NothingToConfirm, MaintenanceBusy."""
    if job.kind != Kind.EXPIRE or job.state != JobState.FAILED or job.error_code != EXPIRY_REFUSED:
        raise NothingToConfirm("Only an expiry that was refused by a guard waits for a confirmation.")
    wanted = job.settings | {"confirmed": True}
    return maintenance.request(job.vault, Kind.EXPIRE, wanted, actor=actor, now=now)


def points_of(source: Source) -> QuerySet[RecoveryPoint]:
    """Return the points that go with the source, in any vault: all of its account but a cluster's manual ones (D30)."""
    found = RecoveryPoint.objects.filter(series=source.series, vault__account=source.account_id)
    return found.filter(manual=False) if TYPES[source.kind].is_cluster else found


def kept_points(source: Source) -> QuerySet[RecoveryPoint]:
    """Return the points that stay when the source goes: a cluster's manual ones, until a person deletes each (D30)."""
    found = RecoveryPoint.objects.filter(series=source.series, vault__account=source.account_id, manual=True)
    return found if TYPES[source.kind].is_cluster else found.none()


def erasure(source: Source, *, now: dt.datetime) -> Erasure:
    """Return what the deletion of all the source's points would meet now."""
    rows = points_of(source)
    locked = rows.filter(locked_until__gt=now)
    return Erasure(
        points=rows.count(),
        held=rows.filter(held_at__isnull=False).count(),
        locked=locked.count(),
        ends_at=locked.aggregate(end=Max("locked_until"))["end"],
    )


def erase(source: Source, *, confirmation: str, actor: Actor, now: dt.datetime) -> Erasure:
    """Cancel the protection of a source: no plan runs any more, and all its points go, for good (C32).

    Of a cluster only the automatic ones go (D29); its manual points, also one that is being made, stay (D30).

    What a lock protects goes when the lock ends, what is held once it is released; the answer tells how much and until
    when, a sweep finishes it and removes the source then (Settled 1). Raises ConfirmationWrong; safe to call twice.
    """
    _check_typed(confirmation, source.name)
    with transaction.atomic():
        found = erasure(source, now=now)
        for plan in source.plans.all():
            planning.delete(plan, actor=actor, now=now)
        holdback.begin(points_of(source), asked_by=actor.name, now=now)
        source.erasing_since = source.erasing_since or now
        source.erase_next_at, source.erase_ends_at = now, found.ends_at
        source.save(update_fields=["erasing_since", "erase_next_at", "erase_ends_at"])
        ends = found.ends_at.isoformat() if found.ends_at else None
        record(actor, "source.erase", source, account=source.account, now=now, points=found.points, locked_until=ends)
        stopped = Job.objects.active().filter(source=source, kind__in=(Kind.BACKUP, Kind.COMPARE, Kind.DRILL))
        for job in stopped.exclude(lane=Lane.MANUAL):
            services.request_cancel(job, actor=actor, now=now)
    return found


def sweep(*, now: dt.datetime, rows_max: int) -> Iterator[Job]:
    """Go on with the deletion of sources' points and yield the jobs that do it; one query while there is none."""
    sources = Source.objects.filter(erase_next_at__lte=now).select_related("account").order_by("erase_next_at")
    for source in sources[:rows_max]:
        yield from _go_on(source, now=now)


def _go_on(source: Source, *, now: dt.datetime) -> Iterator[Job]:
    mine = Source.objects.filter(pk=source.pk, erase_next_at=source.erase_next_at)
    rows = points_of(source)
    if not rows.exists() and not Job.objects.active().filter(source=source).exists():
        _forget(source, now=now)
        return
    locked = Q(locked_until__gt=now)
    held_back = Q(delete_due_at__gt=now) | Q(vault__in=ReplicationLink.objects.active().values("target"))
    free = rows.exclude(locked).exclude(held_back)
    first_end = rows.filter(locked).order_by("locked_until").values_list("locked_until", flat=True).first()
    following = now + _AGAIN if free.exists() or first_end is None else min(first_end, now + _LOOK_AGAIN)
    ends_at = rows.aggregate(end=Max("locked_until", filter=locked))["end"]
    if not mine.update(erase_next_at=following, erase_ends_at=ends_at):
        return  # another sweep is at it
    vaults = Vault.objects.filter(pk__in=free.filter(held_at=None).values("vault")).select_related("account", "region")
    for vault in vaults:
        try:
            wanted = {
                "erase": str(source.pk),
                "manual": not TYPES[source.kind].is_cluster,
                "reason": f"the backups of {source} were deleted",
                "confirmed": True,
            }
            yield maintenance.request(vault, Kind.EXPIRE, wanted, actor=SERVICE, now=now)
        except (maintenance.MaintenanceBusy, services.VaultUnfit):
            continue  # the next sweep asks again


@transaction.atomic
def _forget(source: Source, *, now: dt.datetime) -> None:
    """Remove the source whose last point is gone."""
    record(SERVICE, "source.delete", source, account=source.account, now=now)
    source.delete()


def _moment(moment: dt.datetime) -> str:
    return f"{moment.astimezone(dt.UTC):%Y-%m-%d %H:%M} UTC"
