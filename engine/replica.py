"""Making a vault the replica of another, and keeping its keys in step (vault-format, Replicas).

A replica has the vault id, the root key and the data keys of its source, wrapped for keys of its own (E2: it opens
when the source's key service is gone), and the recovery keys of the source.
"""

import datetime as dt
from collections.abc import Sequence

import msgspec

from engine.errors import NotFound, VaultExists, VaultMissing
from engine.ids import digest_name
from engine.keyproviders.keyring import RecoveryKey
from engine.keyproviders.port import KeyProvider
from engine.keys import Roll, Wrap
from engine.keysets import GENERATION_MAX, KEYS, Found, in_force, look
from engine.links import LINK_KEY, Link, read_link
from engine.rotation import roll_after, store_key_set
from engine.session import put_note, put_once
from engine.storage.port import Storage
from engine.vault import INFO_KEY, Vault


def link(source: Vault, storage: Storage, *, providers: Sequence[KeyProvider], name: str, now: dt.datetime) -> Vault:
    """Make an empty replica of `source` in `storage`, which `providers` open; `name` tells people where it comes from.

    Crash: before vault.json is written there is no vault. Safe to call again: a replica of the same source is returned
    as it is. Raises VaultExists for any other vault, KeyRefused, and the storage's.
    """
    info = source.storage.get(INFO_KEY)
    present = _get(storage, INFO_KEY)
    if present is None:
        found = [one for one in look(source.storage, source.info.vault_id) if source.keys.learn(one.key_set)]
        current = in_force(source.keys, found)
        carried = _recovery(current.wraps)
        generation = min(max(one.key_set.generation for one in found) + 1, GENERATION_MAX)
        roll = roll_after(current, found, carried)
        data = source.keys.seal(providers, generation=generation, carried=carried, roll=roll)
        put_once(storage, f"{KEYS}{generation}/{digest_name(data)}", data)
        put_note(storage, source.keys, LINK_KEY, Link(name, now))
        put_once(storage, INFO_KEY, info)
    elif present != info or read_link(storage, source.keys) is None:
        raise VaultExists("there is a vault at this place already, and it is no replica of that one")
    return Vault.open(storage, provider=providers[0])


def refresh_keys(target: Vault, provider: KeyProvider, *, now: dt.datetime) -> bool:
    """Bring the replica's keys up to date with its source's; say whether anything was to do.

    New data keys are taken over, and the source's recovery keys as they are now: one that was revoked there opens
    nothing here either. `provider` opens the replica. Raises what a rotation raises.
    """
    theirs = [one for one in look(target.across().storage, target.info.vault_id) if target.keys.learn(one.key_set)]
    if not theirs:
        raise VaultMissing("the source of this replica has no key set that can be read")
    ours = look(target.storage, target.info.vault_id)
    wanted = _recovery(in_force(target.keys, theirs).wraps)
    current = in_force(target.keys, ours)
    held = {epoch.number for one in current.sets for epoch in one.key_set.epochs}
    if held.issuperset(target.keys.epochs) and _digests(_recovery(current.wraps)) == _digests(wanted):
        return False
    kept = [wrap for wrap in current.wraps if wrap.provider != RecoveryKey.name and wrap.key_id != provider.key_id]
    carried = [*kept, *wanted]
    generation = min(max(one.key_set.generation for one in [*ours, *theirs]) + 1, GENERATION_MAX)
    roll = _also(roll_after(current, ours, carried), theirs, carried)
    data = target.keys.seal([provider], generation=generation, carried=carried, roll=roll)
    store_key_set(target, data, ours, [provider], now=now)
    return True


def _also(roll: Roll, theirs: Sequence[Found], carried: Sequence[Wrap]) -> Roll:
    """Return the roll, which also revokes what was seen in the source and does not go on counting."""
    seen = {wrap.digest for one in theirs for wrap in one.key_set.wraps} - _digests(carried)
    replaced = {*roll.replaces, *(one.digest for one in theirs)}
    return msgspec.structs.replace(roll, revoked=sorted({*roll.revoked, *seen}), replaces=sorted(replaced))


def _recovery(wraps: Sequence[Wrap]) -> list[Wrap]:
    return [wrap for wrap in wraps if wrap.provider == RecoveryKey.name]


def _digests(wraps: Sequence[Wrap]) -> set[bytes]:
    return {wrap.digest for wrap in wraps}


def _get(storage: Storage, key: str) -> bytes | None:
    try:
        return storage.get(key)
    except NotFound:
        return None
