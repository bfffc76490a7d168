"""What a person deletes at a vault goes from its replica days later: whoever takes over an account can't empty both.

Expiry needs no such time: a replica's copy goes by the retention that it came with. To keep a copy, hold it.
"""

import datetime as dt
from collections.abc import Iterator

from django.db.models import Exists, OuterRef, QuerySet

from accounts.services import SERVICE
from jobs import maintenance, services
from jobs.models import Job
from jobs.states import Kind
from vaults.models import LinkState, RecoveryPoint, Vault

HELD_BACK = dt.timedelta(days=7)
_AGAIN = dt.timedelta(hours=1)


def begin(points: QuerySet[RecoveryPoint], *, asked_by: str, now: dt.datetime) -> int:
    """Let the replicas' copies of these points go in HELD_BACK, unless somebody holds them; return how many."""
    theirs = points.filter(
        vault=OuterRef("vault__link__source"), series=OuterRef("series"), point_id=OuterRef("point_id")
    )
    copies = RecoveryPoint.objects.filter(
        Exists(theirs), vault__link__state=LinkState.ACTIVE, delete_due_at=None, held_at=None
    )
    return copies.update(delete_due_at=now + HELD_BACK, delete_asked_by=asked_by[:150])


def sweep(*, now: dt.datetime, rows_max: int) -> Iterator[Job]:
    """Delete the copies whose time is over; yield the jobs. What a lock still keeps is tried again."""
    due = RecoveryPoint.objects.filter(delete_due_at__lte=now, held_at=None)
    for vault in Vault.objects.filter(pk__in=due.values("vault")).select_related("account", "region")[:rows_max]:
        rows = list(due.filter(vault=vault)[:rows_max])
        names = [f"{row.series}/{row.point_id}" for row in rows]
        days = f"{HELD_BACK.days} days after it was deleted at its source"
        wanted = {"points": names, "reason": days, "confirmed": True}
        try:
            yield maintenance.request(vault, Kind.EXPIRE, wanted, actor=SERVICE, now=now)
        except (maintenance.MaintenanceBusy, services.VaultUnfit):
            continue  # the next sweep asks again
        RecoveryPoint.objects.filter(pk__in=[row.pk for row in rows]).update(delete_due_at=now + _AGAIN)
