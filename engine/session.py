"""Sessions: anything that relies on a vault's contents while it runs (vault-format, section 6).

The order of the calls in this file is the protocol; it needs no clock, no lock and no conditional PUT.
"""

import contextlib
import datetime as dt

import msgspec

from engine.errors import CommitUnknown, EngineError, IntegrityError, NotFound, SessionFenced
from engine.ids import digest_name
from engine.keys import Keys
from engine.point import Commit, encode_commit, point_key
from engine.storage.port import Storage

PREFIX = "sessions/"
PRUNE_PREFIX = "prune/"
_ENDED = {"closed", "fence"}


class Opened(msgspec.Struct, frozen=True):
    """What `open` says."""

    session: str
    verb: str
    started_at: dt.datetime


class Beat(msgspec.Struct, frozen=True):
    """What `beat` says; the only object that is written again."""

    at: dt.datetime


class Closed(msgspec.Struct, frozen=True):
    """What `closed` says: outcome is committed, done or aborted."""

    outcome: str
    at: dt.datetime


class Names(msgspec.Struct, frozen=True):
    """What `condemned` and `tombstones/<n>` say: names of packs."""

    packs: list[str]


class Session:
    """One session, opened by its coordinator or joined by a worker.

    `forbidden` are the packs that were condemned or deleted when the session opened or was joined: never refer to
    them. Whatever else the index lists may be relied on until the session ends, because a prune waits for it.
    """

    def __init__(self, storage: Storage, keys: Keys, name: str) -> None:
        self._storage, self._keys, self.name = storage, keys, name
        self.forbidden: set[str] = set()
        self._committing = False

    @classmethod
    def open(cls, storage: Storage, keys: Keys, *, name: str, verb: str, now: dt.datetime) -> "Session":
        """Announce the session, then read what is forbidden. Safe to call twice with one name while it runs.

        Raises SessionFenced for one that has ended: no prune waits for it any more, so nothing may rely on it.
        """
        session = cls(storage, keys, name)
        key = session._key("open")
        states = session._states()
        if states & _ENDED:
            raise SessionFenced(f"session {name} is over")
        if "open" not in states:
            storage.put(key, keys.sign(key, msgspec.json.encode(Opened(name, verb, now))))
        session._read_forbidden()
        return session

    @classmethod
    def join(cls, storage: Storage, keys: Keys, name: str, *, forbidden: set[str] | None = None) -> "Session":
        """Enter an open session as one of its workers. Raises SessionFenced when it has ended.

        `forbidden` is what was forbidden when it opened; without it, what is now, which is never less.
        """
        session = cls(storage, keys, name)
        if not session._is_running():
            raise SessionFenced(f"session {name} is over")
        if forbidden is None:
            session._read_forbidden()
        else:
            session.forbidden = set(forbidden)
        return session

    def beat(self, now: dt.datetime) -> None:
        """Show that the session lives."""
        key = self._key("beat")
        self._storage.put(key, self._keys.sign(key, msgspec.json.encode(Beat(now))))

    def commit(self, root: bytes, *, series: str, point: str, now: dt.datetime) -> None:
        """Make a point visible: root, look for a fence or an end, commit, closed. `point` is a fresh id at every call.

        Everything the root needs must be stored before. When this returns the point is durable. Raises SessionFenced
        (it will never be visible), CommitUnknown (it may be), or the storage's error (it will never be visible).
        """
        _put_once(self._storage, point_key(series, point, "root"), root)
        # Also ended is too late: a prune that no longer waits may have listed the roots before this one was there.
        if not self._is_running():
            self.close("aborted", now)
            raise SessionFenced(f"session {self.name} was taken for dead, or ended, while it ran")
        commit = Commit(point, series, self.name, digest_name(root), now)
        self._committing = True
        try:
            _put_once(self._storage, point_key(series, point, "commit"), encode_commit(self._keys, commit))
        except EngineError as error:
            raise CommitUnknown(f"the commit of {point} was sent, but no answer came: {error}") from error
        self._committing = False
        self.close("committed", now)

    def close(self, outcome: str, now: dt.datetime) -> None:
        """End the session. Never raises: an unclosed session only makes a prune wait until its beat is old.

        A session whose commit may have arrived is left open: `aborted` would say that it never can.
        """
        if self._committing:
            return
        key = self._key("closed")
        with contextlib.suppress(EngineError):
            states = self._states()
            if "open" in states and "closed" not in states:
                self._storage.put(key, self._keys.sign(key, msgspec.json.encode(Closed(outcome, now))))

    def _states(self) -> set[str]:
        return {stored.key.rpartition("/")[2] for stored in self._storage.scan(self._key(""))}

    def _is_running(self) -> bool:
        states = self._states()
        return "open" in states and not states & _ENDED

    def _read_forbidden(self) -> None:
        for stored in self._storage.scan(PRUNE_PREFIX):
            if stored.key.endswith("/done"):
                continue
            try:
                payload = self._keys.verify(stored.key, self._storage.get(stored.key))
                self.forbidden.update(msgspec.json.decode(payload, type=Names).packs)
            except NotFound:
                continue  # the prune ended between LIST and GET: what it deleted stands in its tombstones
            except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                raise IntegrityError(f"{stored.key} cannot be read: {error}") from error

    def _key(self, part: str) -> str:
        return f"{PREFIX}{self.name}/{part}"


def _put_once(storage: Storage, key: str, data: bytes) -> None:
    """Store; after an error read back, because the answer may have been lost after the effect."""
    try:
        storage.put(key, data)
    except EngineError as error:
        try:
            if storage.get(key) == data:
                return
        except EngineError:
            pass  # the first error tells more
        raise error
