"""Sessions: anything that relies on a vault's contents while it runs (vault-format, section 6).

The order of the calls in this file is the protocol; it needs no clock, no lock and no conditional PUT.
"""

import contextlib
import datetime as dt
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import msgspec

from engine.errors import CommitUnknown, EngineError, IntegrityError, NotFound, SessionFenced
from engine.ids import Moment, digest_name
from engine.keys import Keys
from engine.point import Commit, encode_commit, point_key
from engine.storage.port import Storage

PREFIX = "sessions/"
PRUNE_PREFIX = "prune/"
DAMAGED_PREFIX = "damaged/"
LEASE_S = 7200
READERS = ("restore", "verify", "drill", "replicate-out")
T = TypeVar("T")
_ENDED = {"closed", "fence"}
_NAMING = ("condemned", "tombstones")


class Opened(msgspec.Struct, frozen=True, omit_defaults=True):
    """What `open` says. `points`, as `<series>/<point>`, are those it reads: an expiry waits for it with them."""

    session: str
    verb: str
    started_at: Moment
    points: list[str] = []


class Beat(msgspec.Struct, frozen=True):
    """What `beat` says; the only object that is written again."""

    at: Moment


class Closed(msgspec.Struct, frozen=True):
    """What `closed` says: outcome is committed, done or aborted."""

    outcome: str
    at: Moment


class Names(msgspec.Struct, frozen=True):
    """What a prune's `condemned` and `tombstones`, and a note in `damaged/`, say: names of packs."""

    packs: list[str]


class Running(NamedTuple):
    """A session that has neither ended nor been fenced. `opened` is None when its note is damaged or forged.

    `seen_at` is its last sign of life by its own clock, None when there is no readable one.
    """

    name: str
    opened: Opened | None
    seen_at: dt.datetime | None

    def is_dead(self, now: dt.datetime, *, lease_s: int) -> bool:
        """Say whether its last sign of life is older than the lease. Wrong clocks cost a retry, never data."""
        return self.seen_at is None or (now - self.seen_at).total_seconds() > lease_s


class Session:
    """One session, opened by its coordinator or joined by a worker.

    `forbidden` are the packs that were condemned, deleted or damaged when the session opened or was joined: never refer
    to them. Whatever else the index lists may be relied on until the session ends, because a prune waits for it.
    """

    def __init__(self, storage: Storage, keys: Keys, name: str) -> None:
        self._storage, self._keys, self.name = storage, keys, name
        self.forbidden: set[str] = set()
        self._committing = False

    @classmethod
    def open(
        cls, storage: Storage, keys: Keys, *, name: str, verb: str, now: dt.datetime, points: Sequence[str] = ()
    ) -> "Session":
        """Announce the session, then read what is forbidden. Safe to call twice with one name while it runs.

        `points` are those it will read: see that they are visible after this returned, then they stay. Raises
        SessionFenced for one that has ended: no prune waits for it any more, so nothing may rely on it.
        """
        session = cls(storage, keys, name)
        key = session._key("open")
        states = session._states()
        if states & _ENDED:
            raise SessionFenced(f"session {name} is over")
        if "open" not in states:
            storage.put(key, keys.sign(key, msgspec.json.encode(Opened(name, verb, now, list(points)))))
        session._read_forbidden(strictly=verb not in READERS)
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
            session._read_forbidden_as_opened()
        else:
            session.forbidden = set(forbidden)
        return session

    def beat(self, now: dt.datetime) -> None:
        """Show that the session lives."""
        key = self._key("beat")
        self._storage.put(key, self._keys.sign(key, msgspec.json.encode(Beat(now))))

    def commit(
        self, root: bytes, *, series: str, point: str, now: dt.datetime, locked_until: dt.datetime | None = None
    ) -> None:
        """Make a point visible: root, look for a fence or an end, commit, closed. `point` is a fresh id at every call.

        `now` is when the point was complete, as its root says: whoever finishes the commit in this session's place
        writes the same bytes.

        Everything the root needs must be stored before. When this returns the point is durable. Raises SessionFenced
        (it will never be visible), CommitUnknown (it may be), or the storage's error (it will never be visible).
        """
        put_once(self._storage, point_key(series, point, "root"), root, locked_until=locked_until)
        # Also ended is too late: a prune that no longer waits may have listed the roots before this one was there.
        self.check(now)
        commit = Commit(point, series, self.name, digest_name(root), now)
        self._committing = True
        try:
            key = point_key(series, point, "commit")
            put_once(self._storage, key, encode_commit(self._keys, commit), locked_until=locked_until)
        except EngineError as error:
            raise CommitUnknown(f"the commit of {point} was sent, but no answer came: {error}") from error
        self._committing = False
        self.close("committed", now)

    def check(self, now: dt.datetime) -> None:
        """Raise SessionFenced when a prune took the session for dead, or it ended: nothing may rest on it any more."""
        if not self._is_running():
            self.close("aborted", now)
            raise SessionFenced(f"session {self.name} was taken for dead, or ended, while it ran")

    def only_reads(self) -> bool:
        """Say whether nothing is referred to anew in this session, as its announcement tells. Raises IntegrityError."""
        return read_note(self._storage, self._keys, self._key("open"), Opened).verb in READERS

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

    def _read_forbidden(self, *, strictly: bool) -> None:
        # Who only reads refers to nothing anew: a forgery must not stop a restore.
        self.forbidden |= condemned_packs(self._storage, self._keys, strictly=strictly)
        for stored in self._storage.scan(DAMAGED_PREFIX):
            try:
                self.forbidden.update(read_names(self._storage, self._keys, stored.key))
            except NotFound:
                continue  # a verification has found it whole since the LIST
            except IntegrityError:
                # A forged note of damage costs room; refusing to back up would cost more.
                self.forbidden.add(stored.key.removeprefix(DAMAGED_PREFIX))

    def _read_forbidden_as_opened(self) -> None:
        try:
            self._read_forbidden(strictly=True)
        except IntegrityError:
            if not self.only_reads():
                raise
            self._read_forbidden(strictly=False)

    def _key(self, part: str) -> str:
        return f"{PREFIX}{self.name}/{part}"


def read_names(storage: Storage, keys: Keys, key: str) -> list[str]:
    """Return the packs that a prune's note or a note of damage names. Raises NotFound, IntegrityError."""
    return read_note(storage, keys, key, Names).packs


def condemned_packs(storage: Storage, keys: Keys, *, strictly: bool = True) -> set[str]:
    """Return the packs that prunes have condemned or deleted. Raises IntegrityError for a damaged or forged note.

    Not `strictly`, such a note says nothing.
    """
    names: set[str] = set()
    for stored in storage.scan(PRUNE_PREFIX):
        if stored.key.rpartition("/")[2] in _NAMING:
            try:
                names.update(read_names(storage, keys, stored.key))
            except NotFound:
                continue  # the prune ended between LIST and GET: what it deleted stands in its tombstones
            except IntegrityError:
                if strictly:
                    raise
    return names


def read_note(storage: Storage, keys: Keys, key: str, kind: type[T]) -> T:
    """Return what a control object says. Raises NotFound, IntegrityError."""
    payload = keys.verify(key, storage.get(key))
    try:
        return msgspec.json.decode(payload, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise IntegrityError(f"{key} cannot be read: {error}") from error


def put_note(storage: Storage, keys: Keys, key: str, note: msgspec.Struct) -> None:
    """Store a control object; after an error it may be there or not."""
    put_once(storage, key, keys.sign(key, msgspec.json.encode(note)))


def session_states(storage: Storage) -> dict[str, set[str]]:
    """LIST the sessions: name -> which of open, beat, closed, fence stand there."""
    states: dict[str, set[str]] = {}
    for stored in storage.scan(PREFIX):
        parts = stored.key.split("/")
        if len(parts) == 3:
            states.setdefault(parts[1], set()).add(parts[2])
    return states


def open_sessions(storage: Storage) -> list[str]:
    """LIST the sessions that have neither ended nor been fenced."""
    return [name for name, found in session_states(storage).items() if "open" in found and not found & _ENDED]


def running(storage: Storage, keys: Keys, name: str) -> Running:
    """Return what an open session says of itself."""
    opened: Opened | None = None
    seen: list[dt.datetime] = []
    with contextlib.suppress(NotFound, IntegrityError):
        opened = read_note(storage, keys, f"{PREFIX}{name}/open", Opened)
        seen.append(opened.started_at)
    with contextlib.suppress(NotFound, IntegrityError):
        seen.append(read_note(storage, keys, f"{PREFIX}{name}/beat", Beat).at)
    return Running(name, opened, max(seen, default=None))


def fence(storage: Storage, keys: Keys, name: str) -> None:
    """Take a session for dead: it never commits once this returned, unless its root was listed before. Safe to repeat.

    The same bytes whoever fences it, so that two prunes never write different ones.
    """
    key = f"{PREFIX}{name}/fence"
    put_once(storage, key, keys.sign(key, b"{}"))


def put_once(storage: Storage, key: str, data: bytes, *, locked_until: dt.datetime | None = None) -> None:
    """Store; after an error read back, because the answer may have been lost after the effect."""
    try:
        storage.put(key, data, locked_until=locked_until)
    except EngineError as error:
        try:
            if storage.get(key) == data:
                return
        except EngineError:
            pass  # the first error tells more
        raise error
