"""Limits of what may be stored: how much it is, who may say so, and the refusal of backups beyond.

Stored is what a vault's packs held when it was metered last, and what points have added since.
"""

import datetime as dt
import uuid
from collections.abc import Collection

from django.core.exceptions import ValidationError
from django.db import transaction
from django.db.models import F, Q, Sum

from accounts.refusals import Refused
from accounts.services import Actor, record
from vaults.models import Quota, RecoveryPoint, Vault, VaultReading, VaultState

UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB")


class QuotaExceeded(Refused):
    """No backup begins where as much is stored as may be."""

    code = "quota_exceeded"


def stored(quota: Quota) -> int:
    """Return how many bytes count for a quota now."""
    return stored_of([quota])[quota.pk]


def stored_of(quotas: Collection[Quota]) -> dict[uuid.UUID, int]:
    """Return how many bytes count for each quota now. Two queries, however many there are."""
    accounts = [quota.account_id for quota in quotas if quota.vault_id is None]
    meant = Q(vault__in=[quota.vault_id for quota in quotas if quota.vault_id]) | Q(vault__account__in=accounts)
    readings = VaultReading.objects.filter(meant, read_at__isnull=False).exclude(vault__state=VaultState.DELETED)
    since = Q(vault__reading=None) | Q(vault__reading__read_at=None) | Q(created_at__gt=F("vault__reading__read_at"))
    points = RecoveryPoint.objects.filter(meant & since).order_by()
    found = [
        *readings.values_list("vault", "vault__account", "bytes_stored"),
        *points.values_list("vault", "vault__account").annotate(total=Sum("bytes_stored")),
    ]
    return {
        quota.pk: sum(
            int(count) for vault, account, count in found if (quota.vault_id or quota.account_id) in (vault, account)
        )
        for quota in quotas
    }


def refusals(vaults: Collection[Vault]) -> dict[uuid.UUID, QuotaExceeded]:
    """Return why no backup begins in which of these vaults. One query where there is no hard limit, else three."""
    meant = Q(vault__in={vault.pk for vault in vaults}) | Q(
        account__in={vault.account_id for vault in vaults}, vault=None
    )
    limits = list(Quota.objects.filter(meant, bytes_hard__isnull=False).select_related("vault", "account"))
    used = stored_of(limits) if limits else {}
    full: dict[uuid.UUID, QuotaExceeded] = {}
    for quota in limits:
        if quota.bytes_hard is None or used[quota.pk] < quota.bytes_hard:
            continue
        refusal = _refusal(quota, used[quota.pk], quota.bytes_hard)
        for vault in vaults:
            if quota.vault_id == vault.pk or (quota.vault_id is None and quota.account_id == vault.account_id):
                full[vault.pk] = refusal
    return full


def check(vault: Vault) -> None:
    """See that a backup into the vault may begin. Raises QuotaExceeded."""
    if refusal := refusals([vault]).get(vault.pk):
        raise refusal


def _refusal(quota: Quota, used: int, limit: int) -> QuotaExceeded:
    whose = f"the vault {quota.vault}" if quota.vault else f"the account {quota.account}"
    return QuotaExceeded(
        f"{human(used)} are stored of {human(limit)} that {whose} may store. Delete points that nobody needs, let a "
        "prune run, or have the quota raised.",
        bytes_stored=used,
        bytes_hard=limit,
        vault=str(quota.vault_id or ""),
    )


@transaction.atomic
def set_quota(quota: Quota, *, actor: Actor, now: dt.datetime) -> Quota:
    """Store the limits of a vault or an account, in the place of those it had. Raises ValidationError."""
    soft, hard = quota.bytes_soft, quota.bytes_hard
    if soft is None and hard is None:
        raise ValidationError({"bytes_hard": "Give a soft limit, a hard one, or both."})
    if soft is not None and hard is not None and soft > hard:
        raise ValidationError({"bytes_soft": "The soft limit comes before the hard one."})
    if quota.vault is not None and quota.vault.account_id != quota.account_id:
        raise ValidationError({"vault": "The vault is of another account."})
    limits = {"bytes_soft": soft, "bytes_hard": hard}
    kept, _ = Quota.objects.update_or_create(
        account=quota.account, vault=quota.vault, defaults=limits, create_defaults=limits | {"created_at": now}
    )
    record(actor, "quota.set", kept, account=kept.account, now=now, **limits)
    return kept


@transaction.atomic
def remove_quota(quota: Quota, *, actor: Actor, now: dt.datetime) -> None:
    """Let the vault or the account store without a limit."""
    record(actor, "quota.remove", quota, account=quota.account, now=now)
    quota.delete()


def human(count: float) -> str:
    """Return a size for a message."""
    for unit in UNITS:
        if count < 1024 or unit == UNITS[-1]:
            return f"{count:,.0f} {unit}" if unit == "bytes" else f"{count:,.1f} {unit}"
        count /= 1024
    raise AssertionError
