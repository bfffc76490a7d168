"""A linearizable store in memory: the engine's test double, with versions, object lock and a log of every call."""

import datetime as dt
import hashlib
import itertools
import threading
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from engine.errors import Forbidden, NotFound
from engine.storage.keys import beyond_end, check_key, check_prefix, check_range
from engine.storage.passing import Whole
from engine.storage.port import Broken, Bytes, Claims, Refusal, Stored, StoredVersion


class Call(NamedTuple):
    """One call that took effect or failed, at its place in the single order of all calls."""

    seq: int
    verb: str
    key: str
    detail: str
    outcome: str


class Version:
    """One version of an object; `data` is None for a delete marker."""

    __slots__ = ("data", "locked_until", "version_id")
    _made = itertools.count(1)

    def __init__(self, data: bytes | None, locked_until: dt.datetime | None = None) -> None:
        self.data = data
        self.locked_until = locked_until
        self.version_id = f"v{next(self._made)}"


class Memory(Whole):
    """Keep objects in a dictionary behind one lock, so that every call has one moment of effect.

    `clock` switches compliance object lock on (and versions with it): it alone decides when a lock has ended.
    With `write_once` a key that is ever put with other bytes than before raises AssertionError, also after a
    delete; session beats, marks of expiry and `staging/` are free (engine invariant 3). One process only; not
    picklable.
    """

    def __init__(
        self,
        *,
        versioned: bool = False,
        clock: Callable[[], dt.datetime] | None = None,
        write_once: bool = True,
        page_size: int = 1000,
    ) -> None:
        self.versioned = versioned or clock is not None
        self.write_once = write_once
        self.log: list[Call] = []
        self._clock = clock
        self._page_size = page_size
        self._objects: dict[str, list[Version]] = {}
        self._keys: list[str] = []
        self._digests: dict[str, bytes] = {}
        self._mutex = threading.RLock()

    def put(self, key: str, data: Bytes, *, locked_until: dt.datetime | None = None, sha256: str = "") -> None:
        """Store the object; a versioned store keeps the earlier versions under it."""
        check_key(key)
        body = bytes(data)
        with self._mutex:
            if locked_until is not None and self._clock is None:
                self._note("put", key, f"{len(body)}", "Forbidden")
                raise Forbidden(f"cannot lock {key}: object lock is off in this store")
            self._assert_written_once(key, body)
            version = Version(body, locked_until)
            if self.versioned:
                self._objects.setdefault(key, []).append(version)
            else:
                self._objects[key] = [version]
            self._index(key)
            self._note("put", key, f"{len(body)}", "ok")

    def get(self, key: str, *, offset: int = 0, length: int | None = None) -> bytes:
        """Return the range of the newest version."""
        check_key(key)
        check_range(offset, length)
        with self._mutex:
            data = self._newest(key, "get").data or b""
            end = len(data) if length is None else offset + length
            if max(offset, end) > len(data):
                self._note("get", key, f"{offset}+{length}", "ShortRead")
                raise beyond_end(key, len(data), max(offset, end))
            self._note("get", key, f"{offset}+{end - offset}", "ok")
            return data[offset:end]

    def scan(self, prefix: str, *, after: str = "") -> Iterator[Stored]:
        """Yield the visible objects; each page shows one moment, pages show later ones."""
        check_prefix(prefix)
        return self._pages(prefix, after)

    def delete(self, keys: Sequence[str]) -> list[Refusal]:
        """Remove every version and delete marker of each key, but for locked versions."""
        for key in keys:
            check_key(key)
        refusals = []
        with self._mutex:
            for key in keys:
                kept = [v for v in self._objects.get(key, ()) if self._is_locked(v)]
                if kept:
                    self._objects[key] = kept
                    end = max(v.locked_until for v in kept if v.locked_until)
                    refusals.append(Refusal(key, f"locked until {end.isoformat()}", locked=True))
                elif self._objects.pop(key, None):
                    del self._keys[bisect_left(self._keys, key)]
                self._note("delete", key, "", "locked" if kept else "ok")
        return refusals

    def extend_lock(self, key: str, *, until: dt.datetime) -> None:
        """Lengthen the newest version's lock."""
        check_key(key)
        with self._mutex:
            version = self._newest(key, "extend_lock")
            if self._clock is None:
                self._note("extend_lock", key, until.isoformat(), "Forbidden")
                raise Forbidden(f"cannot lock {key}: object lock is off in this store")
            version.locked_until = max(until, version.locked_until or until)
            self._note("extend_lock", key, until.isoformat(), "ok")

    def locked_until(self, key: str) -> dt.datetime | None:
        """Return the newest version's lock."""
        check_key(key)
        with self._mutex:
            end = self._newest(key, "locked_until").locked_until
            self._note("locked_until", key, "", "ok")
            return end

    def history(self) -> "MemoryHistory | None":
        """Return the view of versions, None without any."""
        return MemoryHistory(self) if self.versioned else None

    def describe(self) -> Claims:
        """Return what this store can do; its clock is that of its locks."""
        return Claims(self.versioned, self._clock is not None, self._clock() if self._clock else None)

    def attack_lock(self, key: str, *, earlier: dt.datetime) -> Broken:
        """Try to break the lock of the newest version; leaves a second version with other bytes under the key."""
        with self._mutex:
            locked = self._newest(key, "attack_lock")
            shortened = self.shorten(key, until=earlier)
            self._objects[key].append(Version(b"overwritten"))
            overwritten = locked not in self._objects[key]
            self.remove_versions(key, [locked.version_id])
            deleted = locked not in self._objects.get(key, ())
            return Broken(shortened, False, deleted, overwritten)

    def shorten(self, key: str, *, until: dt.datetime) -> bool:
        """Do what a client that asks for a shorter retention does; say whether it worked."""
        with self._mutex:
            version = self._newest(key, "shorten")
            if self._is_locked(version):
                return False
            version.locked_until = until
            return True

    def remove_versions(self, key: str, version_ids: Sequence[str]) -> list[Refusal]:
        """Remove these versions and markers, but for locked ones."""
        with self._mutex:
            doomed = [v for v in self._objects.get(key, ()) if v.version_id in version_ids]
            kept = [v for v in self._objects.get(key, ()) if v not in doomed or self._is_locked(v)]
            if kept:
                self._objects[key] = kept
            elif self._objects.pop(key, None):
                del self._keys[bisect_left(self._keys, key)]
            refused = any(self._is_locked(v) for v in doomed)
            self._note("delete_versions", key, "", "locked" if refused else "ok")
            return [Refusal(key, "locked", locked=True)] if refused else []

    def hide(self, key: str) -> None:
        """Do what a foreign client's plain DELETE does: a marker where versions are kept, else the object goes."""
        with self._mutex:
            if self.versioned:
                self._objects.setdefault(key, []).append(Version(None))
                self._index(key)
            else:
                self.delete([key])

    def versions(self, key: str) -> list[Version]:
        """Return the versions and delete markers under a key, oldest first."""
        with self._mutex:
            return list(self._objects.get(key, ()))

    def overwrite(self, key: str, data: bytes) -> None:
        """Replace the newest version's bytes in place, as a damaged disk would; past locks and `write_once`."""
        with self._mutex:
            self._newest(key, "overwrite").data = data

    def _pages(self, prefix: str, after: str) -> Iterator[Stored]:
        start = max(prefix, after)
        strictly = after >= prefix and bool(after)
        while True:
            with self._mutex:
                page, start, more = self._page(prefix, start, strictly)
                self._note("scan", prefix, after, f"{len(page)}")
            yield from page
            if not more:
                return
            after, strictly = start, True

    def _page(self, prefix: str, start: str, strictly: bool) -> tuple[list[Stored], str, bool]:
        at = bisect_left(self._keys, start)
        if strictly and at < len(self._keys) and self._keys[at] == start:
            at += 1
        page: list[Stored] = []
        for key in self._keys[at : at + self._page_size]:
            if not key.startswith(prefix):
                return page, key, False
            start = key
            data = self._objects[key][-1].data
            if data is not None:
                page.append(Stored(key, len(data)))
        return page, start, at + self._page_size < len(self._keys)

    def _index(self, key: str) -> None:
        at = bisect_left(self._keys, key)
        if at == len(self._keys) or self._keys[at] != key:
            self._keys.insert(at, key)

    def _newest(self, key: str, verb: str) -> Version:
        versions = self._objects.get(key)
        if not versions or versions[-1].data is None:
            self._note(verb, key, "", "NotFound")
            raise NotFound(f"no object {key}")
        return versions[-1]

    def _is_locked(self, version: Version) -> bool:
        return self._clock is not None and version.locked_until is not None and self._clock() < version.locked_until

    def _assert_written_once(self, key: str, body: bytes) -> None:
        if (
            not self.write_once
            or key.endswith(("/beat", "/expired"))
            or key.startswith("canary/")
            or "/staging/" in f"/{key}"
        ):
            return
        digest = hashlib.sha256(body).digest()
        assert self._digests.setdefault(key, digest) == digest, f"{key} was written twice with different bytes"

    def _note(self, verb: str, key: str, detail: str, outcome: str) -> None:
        self.log.append(Call(len(self.log) + 1, verb, key, detail, outcome))


class MemoryHistory:
    """The versions of a Memory."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory

    def versions(self, prefix: str, *, after: str = "") -> Iterator[StoredVersion]:
        """Yield the versions, newest first within a key, as they are when this is called."""
        check_prefix(prefix)
        found = []
        with self._memory._mutex:
            for key in self._memory._keys:
                if key.startswith(prefix) and key > after:
                    for at, version in enumerate(reversed(self._memory._objects[key])):
                        size = len(version.data or b"")
                        found.append(StoredVersion(key, version.version_id, size, at == 0, version.data is None))
        return iter(found)

    def get_version(self, key: str, version_id: str) -> bytes:
        """Return the bytes of one version."""
        data = self._find(key, version_id).data
        if data is None:
            raise NotFound(f"{key} {version_id} is a delete marker")
        return data

    def version_locked_until(self, key: str, version_id: str) -> dt.datetime | None:
        """Return one version's lock."""
        return self._find(key, version_id).locked_until

    def delete_versions(self, key: str, version_ids: Sequence[str]) -> list[Refusal]:
        """Remove these versions and markers, but for locked ones."""
        check_key(key)
        return self._memory.remove_versions(key, version_ids)

    def _find(self, key: str, version_id: str) -> Version:
        check_key(key)
        found = [v for v in self._memory.versions(key) if v.version_id == version_id]
        if not found:
            raise NotFound(f"no version {version_id} of {key}")
        return found[0]
