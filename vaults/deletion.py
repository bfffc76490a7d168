"""The end of a vault (E41, Settled 1): asked for once, done as soon as the last lock allows. The lock wins."""

import datetime as dt

from django.db import transaction
from django.db.models import Q

from accounts.refusals import Refused
from accounts.services import SERVICE, Actor, record
from engine.errors import NotFound
from engine.vault import INFO_KEY
from vaults import repositories
from vaults.models import ReplicationLink, Vault, VaultState


class VaultInUse(Refused):
    """Plans still send backups to the vault."""

    code = "vault_in_use"


class VaultLinked(Refused):
    """Replication from or to the vault goes on (E22)."""

    code = "vault_replicated"


class PointsHeld(Refused):
    """Somebody holds points of the vault."""

    code = "point_held"


def request(vault: Vault, *, confirmation: str, actor: Actor, now: dt.datetime) -> Vault:
    """Stop all future work of the vault at once and let it be deleted; `deletable_at` tells when its last lock ends.

    A sweep deletes what no lock protects. Safe to call twice. Raises ConfirmationWrong, VaultInUse, VaultLinked,
    PointsHeld, and what the store raises when it can't tell its locks: nothing has changed then.
    """
    vault.confirm(confirmation)
    if vault.state in (VaultState.DELETING, VaultState.DELETED):
        return vault
    plans = [str(plan) for plan in vault.plans.select_related("source", "policy", "vault")]
    if plans:
        raise VaultInUse(f"{len(plans)} plans use {vault}. Delete them first: {'; '.join(plans)}.", plans=plans)
    if link := ReplicationLink.objects.active().filter(Q(source=vault) | Q(target=vault)).first():
        raise VaultLinked(f"Replication goes on: {link}. Stop it first; the target stays (E22).", link=str(link.pk))
    if held := vault.points.filter(held_at__isnull=False).count():
        raise PointsHeld(f"{held} points of {vault} are held. Release them first.", held=held)
    until = locked_until(vault, now=now)
    with transaction.atomic():
        vault.state = VaultState.DELETING
        vault.delete_requested_at, vault.deletable_at = now, until
        vault.save(update_fields=["state", "delete_requested_at", "deletable_at"])
        detail = {"locked_until": until.isoformat()} if until else {}
        record(actor, "vault.delete", vault, account=vault.account, now=now, **detail)
    return vault


def locked_until(vault: Vault, *, now: dt.datetime) -> dt.datetime | None:
    """Return when the vault's last lock ends, None when none is in force.

    The catalogue tells the points' locks. vault.json is locked at least as long as any of them, and the store tells it.
    """
    ends = list(vault.points.filter(locked_until__gt=now).values_list("locked_until", flat=True))
    try:
        ends.append(repositories.storage(vault).locked_until(INFO_KEY))
    except NotFound:
        pass
    return max((end for end in ends if end is not None and end > now), default=None)


@transaction.atomic
def postpone(vault: Vault, *, until: dt.datetime | None) -> None:
    """Note until when a lock keeps the rest of a vault that is being deleted."""
    Vault.objects.filter(pk=vault.pk, state=VaultState.DELETING).update(deletable_at=until)


@transaction.atomic
def conclude(vault: Vault, *, now: dt.datetime) -> None:
    """Note that nothing of the vault is left: its points leave the catalogue, its secret the row. Safe to repeat."""
    gone = Vault.objects.filter(pk=vault.pk, state=VaultState.DELETING).update(
        state=VaultState.DELETED, deleted_at=now, deletable_at=None, key_credentials=""
    )
    if gone:
        vault.points.all().delete()
        vault.duties.all().delete()
        record(SERVICE, "vault.deleted", vault, account=vault.account, now=now)
