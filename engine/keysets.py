"""The key sets that a vault holds: all of them count together (vault-format, section Key sets).

Rotations need no lock: each writes a set with all data keys that it read, and deletes only sets that it read. So the
set that was written last is never deleted by another, and no data key is ever in fewer than one of them.
"""

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec

from engine.errors import EngineError, FormatError, IntegrityError, NotFound, RevokedKey, Unavailable, WrongKey
from engine.ids import digest_name
from engine.keyproviders.port import KeyProvider
from engine.keys import FORMAT, Keys, KeySet, Roll, Wrap, wraps_for
from engine.storage.port import Storage

KEYS = "keys/"
GENERATION_MAX = 999_999_999
_KEY = re.compile(r"keys/[0-9]{1,9}/[0-9a-f]{64}")
_ATTEMPTS = 10


class _Peek(msgspec.Struct):
    """As much of a key set as every format has."""

    format: int = 0


class Found(NamedTuple):
    """A whole key set and where it stands."""

    key: str
    key_set: KeySet

    @property
    def digest(self) -> bytes:
        """Return the SHA-256 of its bytes."""
        return bytes.fromhex(self.key.rpartition("/")[2])


class Looked(NamedTuple):
    """Key sets of this vault, the newest first, and what is wrong with objects that are none."""

    found: list[Found]
    problems: list[EngineError]


class InForce(NamedTuple):
    """What counts of all key sets: the wraps that open the vault, the sets that say so, what was said of the others."""

    wraps: list[Wrap]
    sets: list[Found]
    revoked: frozenset[bytes]
    replaced: frozenset[bytes]


def look(storage: Storage, vault_id: str) -> Looked:
    """Return the vault's key sets. Raises FormatError for one that a newer program made."""
    for _ in range(_ATTEMPTS):
        try:
            return _look(storage, vault_id)
        except NotFound:
            # A rotation deleted it between LIST and GET: what it wrote instead was there before, and is listed now.
            continue
    raise Unavailable("the vault's key sets change faster than they can be read")


def _look(storage: Storage, vault_id: str) -> Looked:
    looked = Looked([], [])
    listed = [stored.key for stored in storage.scan(KEYS) if _KEY.fullmatch(stored.key)]
    for key in sorted(listed, key=lambda key: (int(key.split("/")[1]), key), reverse=True):
        data = storage.get(key)
        if digest_name(data) != key.rpartition("/")[2]:
            looked.problems.append(IntegrityError(f"{key} is damaged"))
            continue
        try:
            known = msgspec.json.decode(data, type=_Peek).format
            if known != FORMAT:
                raise FormatError(f"{key} has format {known}, this program knows {FORMAT}")
            key_set = msgspec.json.decode(data, type=KeySet)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            looked.problems.append(IntegrityError(f"{key} cannot be read: {error}"))
            continue
        # Another vault's was left by an init that did not finish.
        if key_set.vault_id.hex() == vault_id and key_set.generation == int(key.split("/")[1]):
            looked.found.append(Found(key, key_set))
    return looked


def open_keys(storage: Storage, vault_id: str, provider: KeyProvider, *, check: Callable[[Keys], object]) -> Keys:
    """Open the vault's keys, with the data keys of all its key sets.

    `check` raises IntegrityError for keys of another vault. Raises RevokedKey, WrongKey, IntegrityError, FormatError,
    and what the provider raises.
    """
    looked = look(storage, vault_id)
    problems: list[EngineError] = []
    for wrap in _candidates(looked.found, provider):
        try:
            keys = Keys.unwrap([one.key_set for one in looked.found], wrap, provider)
            check(keys)
        except (WrongKey, IntegrityError) as error:
            problems.append(error)
            continue
        if wrap.digest not in in_force(keys, looked.found).revoked:
            keys.look_again = lambda: [one.key_set for one in look(storage, vault_id).found]
            return keys
        problems.append(RevokedKey(f"the {wrap.provider} key {wrap.key_id} was revoked: it opens this vault no more"))
    for kind in (RevokedKey, IntegrityError):
        for problem in problems:
            if isinstance(problem, kind):
                raise problem
    if looked.found:
        damaged = "".join(f"; {one.args[0]}" for one in looked.problems)
        raise WrongKey(f"the {provider.name} key does not open this vault{damaged}")
    raise [IntegrityError("the vault's keys are gone"), *looked.problems][-1]


def in_force(keys: Keys, found: Sequence[Found]) -> InForce:
    """Return what counts of all key sets.

    What nobody with the root made counts only in a vault whose first set has no roll yet.
    """
    rolls = {one.key: roll for one in found if (roll := _roll(keys, one.key_set)) is not None}
    revoked = frozenset(digest for roll in rolls.values() for digest in roll.revoked)
    replaced = frozenset(digest for roll in rolls.values() for digest in roll.replaces)
    sets = [one for one in found if (one.key in rolls or not rolls) and one.digest not in replaced]
    wraps = {wrap.digest: wrap for one in sets for wrap in one.key_set.wraps if wrap.digest not in revoked}
    return InForce(list(wraps.values()), sets, revoked, replaced)


def needed(storage: Storage, keys: Keys) -> list[str]:
    """Return the keys of the sets that the vault needs: a lock is for these, not for what a rotation replaced."""
    found = look(storage, keys.vault_id.hex()).found
    return [one.key for one in in_force(keys, found).sets]


def _candidates(found: Sequence[Found], provider: KeyProvider) -> list[Wrap]:
    """Return each wrap that the provider may open once, those of the newest set first."""
    wraps = {wrap.digest: wrap for one in found for wrap in wraps_for(one.key_set, provider)}
    return list(wraps.values())


def _roll(keys: Keys, key_set: KeySet) -> Roll | None:
    try:
        return keys.roll(key_set)
    except IntegrityError:
        return None
