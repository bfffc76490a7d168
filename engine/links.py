"""What a vault that is the replica of another says of it (vault-format, Replicas).

`replica/link` is there from the beginning, `replica/stopped` from the moment that replication ended for good (E38).
Either way the vault takes no backups of its own (E14). Both are control objects.

`incoming/<series>/<point>/<session>` says which session of this vault brings a point in: its root names the session of
the source's backup, of which this vault knows nothing. It is stored before the root, and its bytes mean nothing.
"""

import datetime as dt
from collections.abc import Iterable

import msgspec

from engine.errors import NotFound
from engine.ids import Moment
from engine.keys import Keys
from engine.session import put_note, put_once, read_note
from engine.storage.port import Storage

PREFIX = "replica/"
INCOMING = "incoming/"
LINK_KEY = f"{PREFIX}link"
STOPPED_KEY = f"{PREFIX}stopped"


class Link(msgspec.Struct, frozen=True):
    """Where the replica comes from, for people: an address without secrets."""

    source: str
    linked_at: Moment


class Stopped(msgspec.Struct, frozen=True):
    """When replication into this vault ended."""

    at: Moment


def read_link(storage: Storage, keys: Keys) -> Link | None:
    """Return what makes the vault a replica, None when it is none. Raises IntegrityError."""
    try:
        return read_note(storage, keys, LINK_KEY, Link)
    except NotFound:
        return None


def stopped_at(storage: Storage, keys: Keys) -> dt.datetime | None:
    """Return when replication into the vault ended, None while it goes on. Raises IntegrityError."""
    try:
        return read_note(storage, keys, STOPPED_KEY, Stopped).at
    except NotFound:
        return None


def is_mirror(storage: Storage, keys: Keys) -> bool:
    """Say whether the vault still follows another: then only what follows from that one may change it."""
    return read_link(storage, keys) is not None and stopped_at(storage, keys) is None


def stop(storage: Storage, keys: Keys, *, now: dt.datetime) -> dt.datetime:
    """End replication into the vault for good (E38); return when it ended. Safe to call twice."""
    ended = stopped_at(storage, keys)
    if ended is None:
        put_note(storage, keys, STOPPED_KEY, Stopped(now))
    return ended or now


def announce(storage: Storage, series: str, point: str, session: str) -> None:
    """Say that a session brings a point in, before its root is put."""
    put_once(storage, f"{INCOMING}{series}/{point}/{session}", b"{}")


def bringing(storage: Storage) -> dict[str, set[str]]:
    """LIST the points that are, or were, brought in: `<series>/<point>` -> sessions."""
    found: dict[str, set[str]] = {}
    for stored in storage.scan(INCOMING):
        parts = stored.key.split("/")
        if len(parts) == 4:
            found.setdefault(f"{parts[1]}/{parts[2]}", set()).add(parts[3])
    return found


def settled(storage: Storage, point: str, sessions: Iterable[str]) -> None:
    """Drop the announcements of a point (`<series>/<point>`) that is committed, or gone."""
    storage.delete([f"{INCOMING}{point}/{session}" for session in sorted(sessions)])
