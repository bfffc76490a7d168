"""Rotating a vault's keys: new key sets for the same data (vault-format, section Key sets)."""

import contextlib
import datetime as dt
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from engine.errors import IntegrityError, KeyRefused, LastKey, NotFound, WrongKey
from engine.ids import digest_name
from engine.keyproviders.keyring import RecoveryKey
from engine.keyproviders.port import KeyProvider
from engine.keys import Keys, KeySet, Roll, Wrap
from engine.keysets import GENERATION_MAX, KEYS, Found, InForce, in_force, look
from engine.session import put_once
from engine.storage.port import Storage
from engine.vault import Vault


class Holder(msgspec.Struct, frozen=True):
    """Who can open the vault: `keyring`, `recovery`, `transit` or `pkcs11`, and the id of its key."""

    provider: str
    key_id: str


class Remaining(msgspec.Struct, frozen=True):
    """A replaced key set that the store keeps, and until when; whoever copied it can use its old keys by hand."""

    key: str
    reason: str
    until: dt.datetime | None


class State(msgspec.Struct, frozen=True):
    """Which keys open the vault, the numbers of its data keys, and the key sets that say so."""

    holders: list[Holder]
    epochs: list[int]
    sets: list[str]


class Rotated(msgspec.Struct, frozen=True):
    """What a rotation did. `state` is what counts now, with what others rotated meanwhile."""

    generation: int
    key_set: str
    state: State
    revoked: list[Holder]
    removed: list[str]
    remaining: list[Remaining]


class Stored(NamedTuple):
    """A key set that was put in the place of others."""

    generation: int
    key: str
    removed: list[str]
    remaining: list[Remaining]


def state(vault: Vault) -> State:
    """Return which keys are in force."""
    found = look(vault.storage, vault.info.vault_id)
    return _state(vault.keys, found)


def opens(storage: Storage, provider: KeyProvider) -> bool:
    """Say whether this key opens the vault; nothing is changed. Raises VaultMissing, IntegrityError, StorageError."""
    try:
        Vault.open(storage, provider=provider)
    except WrongKey:
        return False
    return True


def prove(storage: Storage, text: str) -> bool:
    """Say whether what a person typed is a recovery key of this vault; nothing is changed, nor is the key kept.

    Raises BadKeyFile when it is mistyped, VaultMissing, IntegrityError, StorageError.
    """
    return opens(storage, RecoveryKey.parse(text))


def replace_recovery_key(vault: Vault, provider: KeyProvider, *, now: dt.datetime) -> tuple[RecoveryKey, Rotated]:
    """Return a new recovery key in the place of all others. Whoever loses the answer calls it again.

    Raises LastKey when `provider` is a recovery key itself: the answer could be lost, and the vault with it.
    """
    if provider.name == RecoveryKey.name:
        raise LastKey("the recovery key can't be replaced with only itself at hand")
    new = RecoveryKey.generate()
    old = [holder.key_id for holder in state(vault).holders if holder.provider == RecoveryKey.name]
    return new, rotate(vault, provider, now=now, add=[new], revoke=old)


def rotate(
    vault: Vault,
    provider: KeyProvider,
    *,
    now: dt.datetime,
    add: Sequence[KeyProvider] = (),
    revoke: Sequence[str] = (),
    new_data_key: bool = False,
) -> Rotated:
    """Write a key set that `provider`, `add` and every other key but those to `revoke` open; delete the ones before.

    No data is rewritten. `provider` is a key at hand that stays, wrapped anew; `revoke` are key ids. With
    `new_data_key` whoever opens the vault from now on writes with another data key; what was written stays readable.
    Crash: the vault opens as before or as after, whichever set was stored; the next rotation deletes what is left.
    Raises LastKey, KeyRefused (a key does not open what it wrapped, no such key id), KeyUnavailable, FormatError for a
    vault that this program must not write, and the storage's.
    """
    vault.know("write")
    storage, holding = vault.storage, [provider, *add]
    # Only what was read here, and holds genuine data keys, is replaced: those are all in the new set.
    before = [one for one in look(storage, vault.info.vault_id) if vault.keys.learn(one.key_set)]
    data, revoked = _plan(vault.keys, before, holding, revoke, new_data_key=new_data_key)
    stored = store_key_set(vault, data, before, holding, now=now)
    after = [one for one in look(storage, vault.info.vault_id) if vault.keys.learn(one.key_set)]
    return Rotated(stored.generation, stored.key, _state(vault.keys, after), revoked, stored.removed, stored.remaining)


def store_key_set(
    vault: Vault, data: bytes, before: Sequence[Found], holding: Sequence[KeyProvider], *, now: dt.datetime
) -> Stored:
    """Put a key set in the place of those before, which go once it is proven to open with every key at hand."""
    key_set = msgspec.json.decode(data, type=KeySet)
    key = f"{KEYS}{key_set.generation}/{digest_name(data)}"
    put_once(vault.storage, key, data, locked_until=_locked_until(vault.storage, before, now))
    _prove(vault, key, data, holding)
    removed, remaining = _remove(vault.storage, [one.key for one in before])
    return Stored(key_set.generation, key, removed, remaining)


def _plan(
    keys: Keys, before: Sequence[Found], holding: Sequence[KeyProvider], revoke: Sequence[str], *, new_data_key: bool
) -> tuple[bytes, list[Holder]]:
    """Return the new key set, and whom it revokes. Nothing is stored yet."""
    current = in_force(keys, before)
    own = {(one.name, one.key_id) for one in holding}
    for key_id in revoke:
        if key_id in {name for _, name in own}:
            raise LastKey(f"the key {key_id} can't be revoked while it is the one at hand")
        if key_id not in {wrap.key_id for wrap in current.wraps}:
            raise KeyRefused(f"no key {key_id} opens this vault: list those that do with keys")
    carried = [wrap for wrap in current.wraps if wrap.key_id not in revoke and (wrap.provider, wrap.key_id) not in own]
    # Two sets may have one generation: their names differ, and all of them count.
    generation = min(max((one.key_set.generation for one in before), default=0) + 1, GENERATION_MAX)
    roll = roll_after(current, before, carried)
    data = (keys.renewed() if new_data_key else keys).seal(holding, generation=generation, carried=carried, roll=roll)
    gone = {Holder(wrap.provider, wrap.key_id): None for wrap in current.wraps if wrap.key_id in revoke}
    return data, list(gone)


def roll_after(current: InForce, before: Sequence[Found], carried: Sequence[Wrap]) -> Roll:
    """Return what a key set says of those before it, of whose wraps only the `carried` go on counting."""
    kept = {wrap.digest for wrap in carried}
    seen = {wrap.digest for one in before for wrap in one.key_set.wraps}
    replaced = current.replaced | {one.digest for one in before}
    return Roll([], sorted((current.revoked | seen) - kept), sorted(replaced))


def _locked_until(storage: Storage, before: Sequence[Found], now: dt.datetime) -> dt.datetime | None:
    """Return the longest lock of the sets before: what replaces them is kept no shorter."""
    ends = [now]
    for one in before:
        with contextlib.suppress(NotFound):  # another rotation has replaced it, and locked its own
            ends.append(storage.locked_until(one.key) or now)
    return max(ends) if max(ends) > now else None


def _prove(vault: Vault, key: str, data: bytes, holding: Sequence[KeyProvider]) -> None:
    """Find the new set as a reader does, and open it with every key at hand. Raises IntegrityError.

    When another rotation has replaced it already, what is there instead has to open with every key at hand.
    """
    found = look(vault.storage, vault.info.vault_id)
    own = next((one for one in found if one.key == key), None)
    if own is None and bytes.fromhex(digest_name(data)) in in_force(vault.keys, found).replaced:
        for provider in holding:
            Vault.open(vault.storage, provider=provider)
        return
    if own is None or own.key_set != msgspec.json.decode(data, type=KeySet):
        raise IntegrityError(f"{key} did not come back as it was written; the key sets before it are all kept")
    for provider in holding:
        if not vault.keys.is_same(Keys.open(own.key_set, provider)):
            raise IntegrityError(f"{key} does not hold all data keys; the key sets before it are all kept")


def _remove(storage: Storage, names: Sequence[str]) -> tuple[list[str], list[Remaining]]:
    """Delete the replaced sets; return which are gone, and which the store keeps: a rotation after the lock helps."""
    refused = {refusal.key: refusal for refusal in storage.delete(names)}
    remaining = [
        Remaining(key, refusal.reason, storage.locked_until(key) if refusal.locked else None)
        for key, refusal in refused.items()
    ]
    return [key for key in names if key not in refused], remaining


def _state(keys: Keys, found: Sequence[Found]) -> State:
    current = in_force(keys, found)
    holders = {Holder(wrap.provider, wrap.key_id): None for wrap in current.wraps}
    return State(list(holders), keys.epochs, [one.key for one in current.sets])
