"""Limits of what may be stored: how much it is, who may say so, and the refusal of backups beyond.

Stored is what a vault's packs held when it was metered last, and what points have added since.
"""

import datetime as dt

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
    """Return how many bytes count for a quota now. Two queries."""
    whole = Q(vault=quota.vault_id) if quota.vault_id else Q(vault__account=quota.account_id)
    readings = VaultReading.objects.filter(whole, read_at__isnull=False).exclude(vault__state=VaultState.DELETED)
    since = Q(vault__reading=None) | Q(vault__reading__read_at=None) | Q(created_at__gt=F("vault__reading__read_at"))
    added = RecoveryPoint.objects.filter(whole & since).aggregate(total=Sum("bytes_stored", default=0))["total"]
    return int(readings.aggregate(total=Sum("bytes_stored", default=0))["total"]) + int(added)


def check(vault: Vault) -> None:
    """See that a backup into the vault may begin. Raises QuotaExceeded. One query where there is no hard limit."""
    mine = Quota.objects.filter(Q(vault=vault.pk) | Q(account=vault.account_id, vault=None), bytes_hard__isnull=False)
    for quota in mine.select_related("vault", "account"):
        assert quota.bytes_hard is not None
        if (used := stored(quota)) >= quota.bytes_hard:
            whose = f"the vault {quota.vault}" if quota.vault else f"the account {quota.account}"
            raise QuotaExceeded(
                f"{human(used)} are stored of {human(quota.bytes_hard)} that {whose} may store. Delete points that "
                "nobody needs, let a prune run, or have the quota raised.",
                bytes_stored=used,
                bytes_hard=quota.bytes_hard,
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
