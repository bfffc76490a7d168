"""The recovery key of a vault: split, and its possession proven. Never stored, never logged."""

import datetime as dt

from django.db import transaction

from accounts.refusals import Refused
from accounts.services import Actor, record
from engine.errors import BadKeyFile, WrongKey
from engine.keyproviders import shares as slip39
from engine.keyproviders.keyring import RecoveryKey
from vaults import repositories
from vaults.models import Vault


class RecoveryKeyWrong(Refused):
    """What was typed is no recovery key, or not this vault's."""

    code = "recovery_key_wrong"


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
