"""A vault's keys: rotated; the recovery key handed out, split, proven, replaced. Never stored, never logged."""

import datetime as dt

from django.core.exceptions import ValidationError
from django.db import transaction

from accounts.refusals import Refused
from accounts.services import Actor, record
from engine.errors import BadKeyFile, WrongKey
from engine.keyproviders import shares as slip39
from engine.keyproviders.keyring import RecoveryKey
from engine.rotation import Rotated, replace_recovery_key, rotate, state
from vaults import repositories
from vaults.models import Vault, VaultState


class RecoveryKeyWrong(Refused):
    """What was typed is no recovery key, or not this vault's."""

    code = "recovery_key_wrong"


class VaultGone(Refused):
    """There is no vault any more whose keys could change."""

    code = "vault_deleted"


def check_shares(vault: Vault) -> None:
    """See that the split that is asked for makes sense; 0 of 0 hands the key out whole. Raises ValidationError."""
    needed, shares = vault.recovery_threshold, vault.recovery_shares
    if (needed or shares) and not 2 <= needed <= shares <= slip39.MOST:
        raise ValidationError({"recovery_shares": f"Make 2 to {slip39.MOST} shares, and let at least 2 be needed."})


def shares_of(vault: Vault, recovery_key: str) -> list[str]:
    """Return the shares that the vault's recovery key is handed out in; none when it is handed out whole."""
    if not vault.recovery_shares:
        return []
    return slip39.split(RecoveryKey.parse(recovery_key), vault.recovery_threshold, vault.recovery_shares)


def prove(vault: Vault, typed: list[str], *, actor: Actor, now: dt.datetime) -> Vault:
    """Note that somebody holds the recovery key, or enough shares of it. Raises RecoveryKeyWrong."""
    try:
        key = RecoveryKey.parse(typed[0]) if len(typed) == 1 else slip39.join(typed)
        repositories.try_recovery_key(vault, key)
    except BadKeyFile as error:
        raise RecoveryKeyWrong(f"This is not a recovery key: {error}.") from error
    except WrongKey as error:
        raise RecoveryKeyWrong("This recovery key does not open the vault.") from error
    with transaction.atomic():
        vault.recovery_proven_at = now
        vault.save(update_fields=["recovery_proven_at"])
        record(actor, "vault.recovery_proven", vault, account=vault.account, now=now)
    return vault


def replace(vault: Vault, *, threshold: int = 0, shares: int = 0, actor: Actor, now: dt.datetime) -> str:
    """Return a new recovery key in the place of every earlier one; it is unproven, shown once and kept nowhere.

    Whoever loses the answer asks again. Raises ValidationError, VaultGone.
    """
    _check_present(vault)
    vault.recovery_threshold, vault.recovery_shares = threshold, shares
    check_shares(vault)
    opened = repositories.open_vault(vault)
    key, rotated = replace_recovery_key(opened, repositories.provider(vault), now=now)
    with transaction.atomic():
        vault.recovery_proven_at = None
        vault.save(update_fields=["recovery_proven_at", "recovery_threshold", "recovery_shares"])
        record(
            actor, "vault.recovery_key_replaced", vault, account=vault.account, now=now, generation=rotated.generation
        )
    return key.text()


def rotate_keys(vault: Vault, *, actor: Actor, now: dt.datetime) -> Rotated:
    """Wrap the vault's keys anew with the key in force, revoke earlier ones of its provider, begin a new data key.

    No data is rewritten. Raises VaultGone, and what the engine's rotation raises: the vault opens as before then.
    """
    _check_present(vault)
    opened, provider = repositories.open_vault(vault), repositories.provider(vault)
    earlier = [
        holder.key_id
        for holder in state(opened).holders
        if holder.provider == provider.name and holder.key_id != provider.key_id
    ]
    rotated = rotate(opened, provider, now=now, revoke=earlier, new_data_key=True)
    with transaction.atomic():
        record(
            actor, "vault.keys_rotated", vault, account=vault.account, now=now,
            generation=rotated.generation, revoked=earlier,
        )  # fmt: skip
    return rotated


def _check_present(vault: Vault) -> None:
    if vault.state == VaultState.DELETED:
        raise VaultGone(f"{vault} was deleted.")
