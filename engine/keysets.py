"""The key sets that a vault holds: all of them count together (vault-format, section Key sets).

Rotations need no lock: each writes a set with all data keys that it read, and deletes only sets that it read. So the
set that was written last is never deleted by another, and no data key is ever in fewer than one of them.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeVar

import msgspec

from engine.errors import EngineError, FormatError, IntegrityError, NotFound, RevokedKey, Unavailable, WrongKey
from engine.ids import digest_name
from engine.keyproviders.port import KeyProvider
from engine.keys import FORMAT, Keys, KeySet, Roll, Wrap, unwrap_root, wraps_for
from engine.storage.port import Storage

KEYS = "keys/"
GENERATION_MAX = 999_999_999
_KEY = re.compile(r"keys/[0-9]{1,9}/[0-9a-f]{64}")
_ATTEMPTS = 10
T = TypeVar("T")


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


class InForce(NamedTuple):
    """What counts of all key sets: the wraps that open the vault, the sets that say so, what was said of the others."""

    wraps: list[Wrap]
    sets: list[Found]
    revoked: frozenset[bytes]
    replaced: frozenset[bytes]


def look(storage: Storage, vault_id: str) -> list[Found]:
    """Return all key sets of the vault, the newest first. Raises FormatError for one that a newer program made."""
    return _again(lambda: list(_Reading(storage, vault_id)))


def open_keys(storage: Storage, vault_id: str, provider: KeyProvider, *, check: Callable[[Keys], object]) -> Keys:
    """Open the vault's keys, with the data keys of all its key sets.

    `check` raises IntegrityError for keys of another vault. Raises RevokedKey, WrongKey, IntegrityError, FormatError,
    and what the provider raises.
    """
    keys = _again(lambda: _open(_Reading(storage, vault_id), _Opening(provider, check)))
    keys.look_again = lambda: [one.key_set for one in look(storage, vault_id)]
    return keys


def needed(storage: Storage, keys: Keys) -> list[str]:
    """Return the keys of the sets that the vault needs: a lock is for these, not for what a rotation replaced."""

    def read() -> list[str]:
        found: list[Found] = []
        reading = _Reading(storage, keys.vault_id.hex())
        for one in reading:
            found.append(one)
            reading.skipped = in_force(keys, found).replaced
        return [one.key for one in in_force(keys, found).sets]

    return _again(read)


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


class _Reading:
    """The key sets of one vault as they are read, the newest first.

    Those whose SHA-256 is in `skipped` are not read: in a locked vault the replaced ones stay for years.
    """

    def __init__(self, storage: Storage, vault_id: str) -> None:
        self._storage, self._vault_id = storage, vault_id
        self.skipped: frozenset[bytes] = frozenset()
        self.problems: list[EngineError] = []

    def __iter__(self) -> Iterator[Found]:
        listed = [stored.key for stored in self._storage.scan(KEYS) if _KEY.fullmatch(stored.key)]
        for key in sorted(listed, key=lambda key: (int(key.split("/")[1]), key), reverse=True):
            if bytes.fromhex(key.rpartition("/")[2]) in self.skipped:
                continue
            try:
                key_set = _decode(key, self._storage.get(key))
            except IntegrityError as error:
                self.problems.append(error)
                continue
            # Another vault's was left by an init that did not finish.
            if key_set.vault_id.hex() == self._vault_id and key_set.generation == int(key.split("/")[1]):
                yield Found(key, key_set)


class _Opening:
    """One key that tries to open a vault. A key service is asked once for each wrap, however many sets hold it."""

    def __init__(self, provider: KeyProvider, check: Callable[[Keys], object]) -> None:
        self.provider, self._check = provider, check
        self._roots: dict[bytes, bytes | None] = {}
        self.problems: list[EngineError] = []

    def attempt(self, found: Sequence[Found]) -> Keys | None:
        """Return the keys that these sets hold together, None when no wrap in force is opened."""
        self.problems = []
        wraps = {wrap.digest: wrap for one in found for wrap in wraps_for(one.key_set, self.provider)}
        for digest, wrap in wraps.items():
            root = self._root(digest, wrap, found[0].key_set.vault_id)
            if root is None:
                continue
            try:
                keys = Keys.joined([one.key_set for one in found], root)
                self._check(keys)
            except IntegrityError as error:
                self.problems.append(error)
                continue
            if digest not in in_force(keys, found).revoked:
                return keys
            self.problems.insert(0, RevokedKey(f"the {wrap.provider} key {wrap.key_id} was revoked for this vault"))
        return None

    def _root(self, digest: bytes, wrap: Wrap, vault_id: bytes) -> bytes | None:
        if digest not in self._roots:
            try:
                self._roots[digest] = unwrap_root(vault_id, wrap, self.provider)
            except WrongKey:
                self._roots[digest] = None
        return self._roots[digest]


def _open(reading: _Reading, opening: _Opening) -> Keys:
    found: list[Found] = []
    keys: Keys | None = None
    for one in reading:
        found.append(one)
        keys = opening.attempt(found)
        if keys is not None:
            reading.skipped = in_force(keys, found).replaced
    if keys is not None:
        return keys
    if opening.problems:
        raise opening.problems[0]
    if found:
        damaged = "".join(f"; {one.args[0]}" for one in reading.problems)
        raise WrongKey(f"the {opening.provider.name} key does not open this vault{damaged}")
    raise [IntegrityError("the vault's keys are gone"), *reading.problems][-1]


def _again(read: Callable[[], T]) -> T:
    for _ in range(_ATTEMPTS):
        try:
            return read()
        except NotFound:
            # A rotation deleted one between LIST and GET: what it wrote instead was there before, and is listed now.
            continue
    raise Unavailable("the vault's key sets change faster than they can be read")


def _decode(key: str, data: bytes) -> KeySet:
    if digest_name(data) != key.rpartition("/")[2]:
        raise IntegrityError(f"{key} is damaged")
    try:
        known = msgspec.json.decode(data, type=_Peek).format
        if known != FORMAT:
            raise FormatError(f"{key} has format {known}, this program knows {FORMAT}")
        return msgspec.json.decode(data, type=KeySet)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise IntegrityError(f"{key} cannot be read: {error}") from error


def _roll(keys: Keys, key_set: KeySet) -> Roll | None:
    try:
        return keys.roll(key_set)
    except IntegrityError:
        return None
