"""Find out what a store can do, by doing it: run when a region is set up, and for the daily lock proof."""

import contextlib
import datetime as dt
import time
from collections.abc import Callable, Iterator
from typing import Protocol, cast, runtime_checkable

import msgspec

from engine.errors import NotFound, StorageError
from engine.storage.port import Broken, Claims, Refusal, Storage

IMMUTABLE = "immutable"
APPLICATION_LEVEL = "application-level retention"
SKEW_S = 300.0
_CANARY_BYTES = 4096
_ATTACKS = {
    "shortened": "A lock can be shortened",
    "weakened": "A compliance lock can be turned into one that a privileged user can end",
    "deleted": "A locked object can be deleted by a user with the right to bypass locks",
    "overwritten": "An overwrite destroys a locked object",
}


@runtime_checkable
class Attackable(Protocol):
    """A storage that can describe itself and be attacked with requests the port has no words for."""

    def describe(self) -> Claims:
        """Return what the store says about itself."""
        ...

    def attack_lock(self, key: str, *, earlier: dt.datetime) -> Broken:
        """Try to break the compliance lock on `key` in every way a client can."""
        ...


class Capabilities(msgspec.Struct, kw_only=True):
    """What a store can do. `problems` are sentences for people; the store is fit for a vault if `usable`.

    `clock_skew_s` is the store's clock minus ours, None where the store has none of its own. `left_behind` are keys
    of locked canaries, which nobody can delete before `left_until`.
    """

    readable: bool = False
    writable: bool = False
    lists_after_write: bool = False
    reads_ranges: bool = False
    overwrites: bool = False
    deletes: bool = False
    versioned: bool = False
    object_lock: bool = False
    lock_refused_delete: bool = False
    lock_refused_shortening: bool = False
    lock_survived_overwrite: bool = False
    retention: str = APPLICATION_LEVEL
    clock_skew_s: float | None = None
    put_ms: float = 0.0
    get_ms: float = 0.0
    problems: list[str] = []
    left_behind: list[str] = []
    left_until: dt.datetime | None = None

    @property
    def usable(self) -> bool:
        """Say whether a vault can live here."""
        return all((self.readable, self.writable, self.lists_after_write, self.reads_ranges, self.deletes))


def probe(
    storage: Storage, *, now: dt.datetime, name: str, lock_s: float = 60.0, timer: Callable[[], float] = time.monotonic
) -> Capabilities:
    """Try the store out under `canary/<name>-...` and return what it can do.

    Give a storage without retries, so that problems show; a name that was not used before; and `now` from the
    clock that locks will be counted by. Never raises a StorageError: what fails is a problem. Locks are tried only
    where the store claims them, on objects that end their lock after `lock_s`; those remain and are listed, and
    `clean_up` removes them later. Safe to call twice with two names.
    """
    found = Capabilities(problems=[], left_behind=[])
    key = f"canary/{name}-plain"
    try:
        _try_basics(storage, key, found, timer)
    except StorageError as error:
        found.problems.append(f"The store cannot be used: {error}")
        with contextlib.suppress(StorageError):
            storage.delete([key])
        return found
    if isinstance(storage, Attackable):
        with _noted(found, "The bucket's settings cannot be read"):
            said = storage.describe()
            found.versioned, found.object_lock = said.versioned, said.object_lock
            _try_clock(said.server_time, now, found)
        if found.object_lock:
            with _noted(found, "The object lock cannot be tried"):
                _try_lock(storage, f"canary/{name}-locked", found, now + dt.timedelta(seconds=lock_s))
    locks = (found.lock_refused_delete, found.lock_refused_shortening, found.lock_survived_overwrite)
    found.retention = IMMUTABLE if found.object_lock and all(locks) else APPLICATION_LEVEL
    return found


def canary(storage: Attackable, key: str, *, until: dt.datetime) -> list[str]:
    """Lock a fresh object until then and attack it; return what worked, in sentences: none when the lock holds.

    The object stays below `key` until its lock ends. Raises StorageError when it can't be tried.
    """
    found = Capabilities(problems=[], left_behind=[])
    _try_lock(cast("Storage", storage), key, found, until)
    return found.problems


def clean_up(storage: Storage, found: Capabilities) -> list[Refusal]:
    """Delete what a probe had to leave behind; what is still locked comes back as a refusal."""
    return storage.delete(found.left_behind)


def _try_basics(storage: Storage, key: str, found: Capabilities, timer: Callable[[], float]) -> None:
    data = bytes(index % 251 for index in range(_CANARY_BYTES))
    begin = timer()
    storage.put(key, data)
    found.put_ms = (timer() - begin) * 1000
    found.writable = True
    begin = timer()
    found.readable = _expect(storage.get(key) == data, found, "An object came back with other bytes")
    found.get_ms = (timer() - begin) * 1000
    seen = [stored.size for stored in storage.scan(key)] == [len(data)]
    found.lists_after_write = _expect(seen, found, "A list does not show an object that was just stored")
    with _noted(found, "A part of an object cannot be read"):
        part = storage.get(key, offset=100, length=50) == data[100:150]
        found.reads_ranges = _expect(part, found, "A range of an object came back with other bytes")
    with _noted(found, "An object cannot be overwritten, which sessions need to show that they live"):
        storage.put(key, b"beat")
        newest = storage.get(key) == b"beat"
        found.overwrites = _expect(newest, found, "After an overwrite the earlier bytes came back")
    with _noted(found, "Nothing can be deleted, so space is never freed"):
        refusals = storage.delete([key, f"{key}-absent"])
        for refusal in refusals:
            found.problems.append(f"{refusal.key} cannot be deleted: {refusal.reason}")
        found.deletes = not refusals and _expect(_is_gone(storage, key), found, "A deleted object is still there")


def _try_clock(server_time: dt.datetime | None, now: dt.datetime, found: Capabilities) -> None:
    if server_time is None:
        return
    found.clock_skew_s = (server_time - now).total_seconds()
    if abs(found.clock_skew_s) > SKEW_S:
        way = "ahead of" if found.clock_skew_s > 0 else "behind"
        minutes = abs(found.clock_skew_s) / 60
        found.problems.append(f"The store's clock is {minutes:.0f} minutes {way} ours: locks would end at another time")


def _try_lock(storage: Storage, key: str, found: Capabilities, until: dt.datetime) -> None:
    assert isinstance(storage, Attackable)
    storage.put(key, b"canary", locked_until=until)
    found.left_behind.append(key)
    found.left_until = until
    seen = storage.locked_until(key)
    if not _expect(seen is not None and seen >= until, found, "The store does not show the lock it was given"):
        return
    broken = storage.attack_lock(key, earlier=until - dt.timedelta(seconds=30))
    found.problems += [f"{_ATTACKS[attack]}: not immutable" for attack, done in broken._asdict().items() if done]
    found.lock_refused_shortening = not (broken.shortened or broken.weakened)
    found.lock_survived_overwrite = not broken.overwritten
    refused = [refusal for refusal in storage.delete([key]) if refusal.locked]
    found.lock_refused_delete = not broken.deleted and _expect(bool(refused), found, "A locked object can be deleted")
    if not refused:
        found.left_behind.remove(key)


def _is_gone(storage: Storage, key: str) -> bool:
    try:
        storage.get(key)
    except NotFound:
        return not list(storage.scan(key))
    return False


def _expect(holds: bool, found: Capabilities, otherwise: str) -> bool:
    if not holds:
        found.problems.append(otherwise)
    return holds


@contextlib.contextmanager
def _noted(found: Capabilities, problem: str) -> Iterator[None]:
    """Go on after a failure that does not make the rest of the probe pointless."""
    try:
        yield
    except StorageError as error:
        found.problems.append(f"{problem}: {error}")
