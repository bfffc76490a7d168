"""The fault injector: any storage, failing at chosen calls in chosen ways. For tests of every verb."""

import datetime as dt
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple, TypeVar

from engine.errors import ShortRead, StorageError, Unavailable
from engine.storage.passing import Whole
from engine.storage.port import Bytes, History, Refusal, Storage, Stored, StoredVersion, history_of

T = TypeVar("T")


class Mode(Enum):
    """How a call fails."""

    BEFORE = "error before the effect"
    AFTER = "error after the effect"
    DELAYED = "error now, effect later: a request that the network kept and delivered"
    SHORT = "a read that ends early"
    WRONG = "a read with one bit flipped"
    SLOW = "a right answer that comes late"


_APPLIES = {
    Mode.DELAYED: frozenset({"put", "delete", "extend_lock", "delete_versions"}),
    Mode.SHORT: frozenset({"get", "get_version"}),
    Mode.WRONG: frozenset({"get", "get_version"}),
}


@dataclass(frozen=True)
class Fault:
    """Fail the `at`-th call (from 1) among those of `verb` (any, if empty) with a key under `prefix`.

    `times` calls from there fail, 0 means all of them. `error` makes the error: Unavailable is the transient
    flavour, Forbidden or StorageFull are permanent ones. A delayed effect comes before the `later`-th call that
    follows, or with `settle`. A mode that has no meaning for a call's verb (a short put) leaves the call alone.
    """

    at: int
    mode: Mode
    verb: str = ""
    prefix: str = ""
    times: int = 1
    error: Callable[[str], StorageError] = Unavailable
    later: int = 3
    seconds: float = 0.0

    def matches(self, verb: str, keys: Sequence[str]) -> bool:
        """Say whether a call counts for this fault."""
        return self.verb in ("", verb) and (not self.prefix or any(key.startswith(self.prefix) for key in keys))


class Seen(NamedTuple):
    """One call that reached the injector; a scan's key is its prefix."""

    verb: str
    key: str


class Faulty(Whole):
    """Wrap a storage and fail by plan; an empty plan only counts, so that a test can loop over every call.

    `calls` holds every call in order, `fired` each fault that changed one. Threads may share an instance (the order
    of calls is then theirs); processes may not, and it does not pickle.
    """

    def __init__(
        self, inner: Storage, plan: Sequence[Fault] = (), *, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self.inner = inner
        self.plan = tuple(plan)
        self.calls: list[Seen] = []
        self.fired: list[Fault] = []
        self._sleep = sleep
        self._counts = [0] * len(self.plan)
        self._late: list[tuple[int, Callable[[], object]]] = []
        self._mutex = threading.Lock()

    def put(self, key: str, data: Bytes, *, locked_until: dt.datetime | None = None, sha256: str = "") -> None:
        """Store the object, unless the plan says otherwise."""
        kept = bytes(data)
        self._run("put", [key], lambda: self.inner.put(key, kept, locked_until=locked_until, sha256=sha256))

    def get(self, key: str, *, offset: int = 0, length: int | None = None) -> bytes:
        """Return the range, unless the plan says otherwise."""
        return self._run("get", [key], lambda: self.inner.get(key, offset=offset, length=length), damage=_flip)

    def scan(self, prefix: str, *, after: str = "") -> Iterator[Stored]:
        """Yield the objects; counts as one call when it begins, and an error after the effect comes at its end."""
        fault = self._enter("scan", [prefix])
        if fault is not None and fault.mode is Mode.BEFORE:
            raise fault.error(f"injected before scan of {prefix}")
        yield from self.inner.scan(prefix, after=after)
        if fault is not None and fault.mode is Mode.AFTER:
            raise fault.error(f"injected at the end of the scan of {prefix}")

    def delete(self, keys: Sequence[str]) -> list[Refusal]:
        """Delete the keys, unless the plan says otherwise."""
        kept = list(keys)
        return self._run("delete", kept, lambda: self.inner.delete(kept))

    def extend_lock(self, key: str, *, until: dt.datetime) -> None:
        """Lengthen the lock, unless the plan says otherwise."""
        self._run("extend_lock", [key], lambda: self.inner.extend_lock(key, until=until))

    def locked_until(self, key: str) -> dt.datetime | None:
        """Return the lock's end, unless the plan says otherwise."""
        return self._run("locked_until", [key], lambda: self.inner.locked_until(key))

    def history(self) -> "FaultyHistory | None":
        """Return the view of versions, which fails by the same plan."""
        history = history_of(self.inner)
        return FaultyHistory(history, self) if history else None

    def settle(self) -> None:
        """Let every delayed effect happen now."""
        with self._mutex:
            late, self._late = self._late, []
        for _, effect in late:
            effect()

    def count(self, verb: str = "", prefix: str = "") -> int:
        """Return how many calls there were of a verb (any, if empty) under a prefix."""
        return sum(1 for seen in self.calls if verb in ("", seen.verb) and seen.key.startswith(prefix))

    def _run(
        self, verb: str, keys: Sequence[str], effect: Callable[[], T], *, damage: Callable[[T], T] | None = None
    ) -> T:
        fault = self._enter(verb, keys)
        if fault is None:
            return effect()
        if fault.mode is Mode.BEFORE:
            raise fault.error(f"injected before {verb} of {keys}")
        if fault.mode is Mode.SHORT:
            raise ShortRead(f"injected into {verb} of {keys}")
        if fault.mode is Mode.DELAYED:
            with self._mutex:
                self._late.append((len(self.calls) + fault.later, effect))
            raise fault.error(f"injected into {verb} of {keys}, which takes effect later")
        answer = effect()
        if fault.mode is Mode.AFTER:
            raise fault.error(f"injected after {verb} of {keys}")
        return damage(answer) if fault.mode is Mode.WRONG and damage is not None else answer

    def _enter(self, verb: str, keys: Sequence[str]) -> Fault | None:
        """Count the call, let due delayed effects happen, and return the fault that hits it."""
        with self._mutex:
            self.calls.append(Seen(verb, keys[0] if keys else ""))
            now = len(self.calls)
            due = [effect for at, effect in self._late if at <= now]
            self._late = [(at, effect) for at, effect in self._late if at > now]
            fault = self._hit(verb, keys)
        for effect in due:
            effect()
        if fault is not None and fault.mode is Mode.SLOW:
            self._sleep(fault.seconds)
        return fault

    def _hit(self, verb: str, keys: Sequence[str]) -> Fault | None:
        hit = None
        for number, fault in enumerate(self.plan):
            if not fault.matches(verb, keys):
                continue
            self._counts[number] += 1
            past = self._counts[number] - fault.at
            due = past >= 0 and (fault.times == 0 or past < fault.times)
            if due and hit is None and verb in _APPLIES.get(fault.mode, (verb,)):
                hit = fault
                self.fired.append(fault)
        return hit


class FaultyHistory:
    """The versions of a store that fails by plan: `versions`, `get_version` and the rest are verbs of their own."""

    def __init__(self, inner: History, faulty: Faulty) -> None:
        self._inner, self._run = inner, faulty._run

    def versions(self, prefix: str, *, after: str = "") -> Iterator[StoredVersion]:
        """Yield the versions, unless the plan says otherwise."""
        return iter(self._run("versions", [prefix], lambda: list(self._inner.versions(prefix, after=after))))

    def get_version(self, key: str, version_id: str) -> bytes:
        """Return the bytes of one version, unless the plan says otherwise."""
        return self._run("get_version", [key], lambda: self._inner.get_version(key, version_id), damage=_flip)

    def version_locked_until(self, key: str, version_id: str) -> dt.datetime | None:
        """Return one version's lock, unless the plan says otherwise."""
        return self._run("locked_until", [key], lambda: self._inner.version_locked_until(key, version_id))

    def delete_versions(self, key: str, version_ids: Sequence[str]) -> list[Refusal]:
        """Delete these versions, unless the plan says otherwise."""
        return self._run("delete_versions", [key], lambda: self._inner.delete_versions(key, version_ids))


def _flip(data: bytes) -> bytes:
    if not data:
        return data
    damaged = bytearray(data)
    damaged[len(data) // 2] ^= 1
    return bytes(damaged)
