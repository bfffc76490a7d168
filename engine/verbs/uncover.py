"""Find what somebody hid or covered in a bucket that keeps versions, and bring the right version back.

This program deletes by version id alone and writes a key once, so a delete marker over a version, or a newer version
that is not right, was put there by somebody else. Which version is right can be proven: packs, listings, segments and
key sets are named by their SHA-256, a root by its commit, all other objects carry a MAC or a
seal. A beat is written again and again, staged work and canaries are nobody's loss, and strangers' objects are not
ours: those are not looked at.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

import msgspec

from engine.codec import Purpose, unseal
from engine.errors import FormatError, IntegrityError, NotFound, WrongKey
from engine.ids import FOLDERS, SEGMENTS, digest_name
from engine.keyproviders.port import KeyProvider
from engine.keysets import KEYS, open_keys
from engine.locks import PREFIX as LOCKS
from engine.moves import PREFIX as MOVES
from engine.point import PREFIX as POINTS
from engine.point import decode_commit, decode_root
from engine.progress import Progress
from engine.session import DAMAGED_PREFIX, PRUNE_PREFIX, read_names
from engine.session import PREFIX as SESSIONS
from engine.storage.port import History, Storage, StoredVersion, history_of
from engine.system import PREFIX as EXPORTS
from engine.vault import INFO_KEY, MAGIC, Vault
from engine.verbs.findings import pack_name
from engine.verbs.inspect import sha_name

_BY_DIGEST = (KEYS, SEGMENTS, *(f"{folder}/" for folder in FOLDERS))
_SIGNED = (
    INFO_KEY, POINTS, SESSIONS, PRUNE_PREFIX, MOVES, LOCKS, DAMAGED_PREFIX, "verify/", "expiry/", "holds/",
)  # fmt: skip
_ROOT = "/root"
_COMMIT = "/commit"


class Uncovered(msgspec.Struct, frozen=True):
    """One key over which something foreign stood. `hidden`: a delete marker; `repaired`: the right version is back."""

    object: str
    hidden: bool
    repaired: bool
    detail: str


class _Right(NamedTuple):
    """What the versions of one key are: ids of the right ones and of all else, and the right bytes."""

    right: list[str]
    wrong: list[str]
    data: bytes


class _Info(msgspec.Struct):
    """As much of vault.json as is needed to find the keys."""

    vault_id: str
    magic: str = ""


def entrance(storage: Storage, provider: KeyProvider) -> list[Uncovered]:
    """Bring back what a vault can't be opened without: its keys and vault.json. Do it before Vault.open.

    Quiet when there is nothing to find, or no history to find it in; safe to repeat.
    """
    history = history_of(storage)
    if history is None:
        return []
    found = [
        _bring_back(storage, history, key, versions, lambda key, data: digest_name(data) == sha_name(key))
        for key, versions in _suspicious(history, KEYS)
        if sha_name(key)
    ]
    found += [
        _bring_back(storage, history, key, versions, lambda key, data: _opens(storage, provider, data))
        for key, versions in _suspicious(history, INFO_KEY)
        if key == INFO_KEY
    ]
    return [one for one in found if one is not None]


def uncover(vault: Vault, progress: Progress) -> list[Uncovered]:
    """Look at every key that has more than one version, or a marker; bring the right versions back."""
    history = history_of(vault.storage)
    if history is None:
        return []
    judge = _Judge(vault, history)
    found = [_bring_back(vault.storage, history, *note, judge.is_right) for note in _suspicious(history, PRUNE_PREFIX)]
    judge.read_doomed()
    roots: list[tuple[str, list[StoredVersion]]] = []
    for key, versions in _suspicious(history, ""):
        progress.check()
        if key.startswith(POINTS) and key.endswith(_ROOT):
            roots.append((key, versions))  # judged by their commits, which come first
        elif judge.knows(key) and pack_name(key) not in judge.doomed:
            found.append(_bring_back(vault.storage, history, key, versions, judge.is_right))
    found += [_bring_back(vault.storage, history, *root, judge.is_right) for root in roots]
    return [one for one in found if one is not None]


class _Judge:
    """Says whether bytes are what belongs under a key. `doomed` packs are being pruned: leave them alone."""

    def __init__(self, vault: Vault, history: History) -> None:
        self._keys, self._storage, self._history = vault.keys, vault.storage, history
        self.doomed: set[str] = set()

    def read_doomed(self) -> None:
        for stored in self._storage.scan(PRUNE_PREFIX):
            try:
                self.doomed.update(read_names(self._storage, self._keys, stored.key))
            except (NotFound, IntegrityError):
                continue  # it says something else, or nothing

    @staticmethod
    def knows(key: str) -> bool:
        if key.startswith(_BY_DIGEST):
            return bool(sha_name(key))
        return key.startswith((*_SIGNED, EXPORTS)) and not key.endswith("/beat")

    def is_right(self, key: str, data: bytes) -> bool:
        try:
            if key.startswith(EXPORTS):
                unseal(self._keys, Purpose.SYSTEM, data, context=key.encode())
                return True
            if key.startswith(_BY_DIGEST):
                return digest_name(data) == sha_name(key)
            if key.startswith(POINTS) and key.endswith(_ROOT):
                return self._is_root(key, data)
            self._keys.verify(key, data)
        except (IntegrityError, FormatError):
            return False  # a newer program writes each key once, too: the only version is not asked about
        return True

    def _is_root(self, key: str, data: bytes) -> bool:
        commit_key = key.removesuffix(_ROOT) + _COMMIT
        try:
            commit = decode_commit(self._keys, commit_key, self._storage.get(commit_key))
        except NotFound:
            decode_root(self._keys, key, data)  # not committed yet: its seal says whose it is
            return True
        return commit.root_sha256 == digest_name(data)


def _suspicious(history: History, prefix: str) -> Iterator[tuple[str, list[StoredVersion]]]:
    """Yield the keys with more than one version, or a marker over at least one."""
    for key, group in groupby(history.versions(prefix), lambda version: version.key):
        versions = list(group)
        if len(versions) > 1 and not all(version.marker for version in versions):
            yield key, versions


def _bring_back(
    storage: Storage,
    history: History,
    key: str,
    versions: Sequence[StoredVersion],
    is_right: Callable[[str, bytes], bool],
) -> Uncovered | None:
    """Make a right version the newest one; say nothing when it is, or when the key is being deleted meanwhile.

    What covers it is deleted; where that is locked by whoever put it there, the right bytes are stored once more.
    """
    try:
        newest = next((version for version in versions if version.newest), None)
        if newest and not newest.marker and is_right(key, history.get_version(key, newest.version_id)):
            return None
        found = _sort_out(history, key, versions, is_right)
        hidden = newest is not None and newest.marker
        if not found.right:
            return Uncovered(key, hidden, False, "no version under it is what was written")
        end = max(filter(None, (history.version_locked_until(key, one) for one in found.right)), default=None)
        if history.delete_versions(key, found.wrong):
            storage.put(key, found.data, locked_until=end)
        what = "a delete marker stood over it" if hidden else "a foreign version stood over it"
        if not is_right(key, storage.get(key)):
            return Uncovered(key, hidden, False, f"{what} and cannot be removed")
        return Uncovered(key, hidden, True, what)
    except NotFound:
        return None


def _sort_out(
    history: History, key: str, versions: Sequence[StoredVersion], is_right: Callable[[str, bytes], bool]
) -> _Right:
    found = _Right([], [], b"")
    for version in versions:
        data = b"" if version.marker else history.get_version(key, version.version_id)
        if version.marker or not is_right(key, data):
            found.wrong.append(version.version_id)
        else:
            found.right.append(version.version_id)
            found = found._replace(data=data)
    return found


def _opens(storage: Storage, provider: KeyProvider, data: bytes) -> bool:
    """Say whether bytes are the vault.json that the keys of this place sign."""
    try:
        info = msgspec.json.decode(data.rpartition(b"\n")[0], type=_Info)
        if info.magic != MAGIC:
            return False
        open_keys(storage, info.vault_id, provider, check=lambda keys: keys.verify(INFO_KEY, data))
    except (msgspec.MsgspecError, UnicodeDecodeError, IntegrityError, WrongKey):
        return False
    return True
