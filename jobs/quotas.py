"""Watch over quotas: say once that more is stored than a soft limit allows, and when that is over."""

import datetime as dt
from typing import Any

from django.db import transaction

from accounts.services import SERVICE, record
from jobs import alerts
from jobs.alert_models import AlertType, Severity
from jobs.alerts import Trouble
from vaults import quotas
from vaults.models import Quota


def sweep(*, now: dt.datetime, rows_max: int) -> int:
    """Look at the quotas with a soft limit; return how many changed sides. Safe to call twice, and at once."""
    watched = Quota.objects.filter(bytes_soft__isnull=False).select_related("account", "vault").order_by("pk")
    return sum(_look_at(quota, now=now) for quota in watched[:rows_max])


@transaction.atomic
def _look_at(quota: Quota, *, now: dt.datetime) -> bool:
    used = quotas.stored(quota)
    assert quota.bytes_soft is not None
    over = used > quota.bytes_soft
    if over == (quota.soft_since is not None):
        return False
    mine = Quota.objects.filter(pk=quota.pk, soft_since__isnull=over)
    if not mine.update(soft_since=now if over else None):
        return False  # another sweep was first
    told: dict[str, Any] = {"bytes_stored": used, "bytes_soft": quota.bytes_soft}
    action = "quota.soft_exceeded" if over else "quota.soft_kept"
    record(SERVICE, action, quota, account=quota.account, now=now, **told)
    if over:
        alerts.raise_(quota.account_id, _trouble(quota, used), now=now)
    else:
        alerts.resolve(quota.account_id, [_key(quota)], now=now)
    return True


def _key(quota: Quota) -> str:
    about = {"vault": quota.vault_id} if quota.vault_id else {"account": quota.account_id}
    return alerts.key_of(AlertType.QUOTA, **about)


def _trouble(quota: Quota, used: int) -> Trouble:
    whose = str(quota.vault or quota.account)
    assert quota.bytes_soft is not None
    then = f" At {quotas.human(quota.bytes_hard)} no backup begins any more." if quota.bytes_hard is not None else ""
    return Trouble(
        type=AlertType.QUOTA,
        key=_key(quota),
        severity=Severity.WARNING,
        title=f"{whose} stores {quotas.human(used)}, more than {quotas.human(quota.bytes_soft)}",
        text=f"Delete points that nobody needs, or have the quota raised.{then}",
        about={"vault_id": quota.vault_id},
        detail={"bytes_stored": used, "bytes_soft": quota.bytes_soft, "bytes_hard": quota.bytes_hard},
    )
