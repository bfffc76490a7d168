"""The Source port: how a backup sees what it protects."""

import datetime as dt
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import msgspec

from engine.entries import TIME_MAX_NS, Entry, Problem

STREAM_BYTES = 1 << 62  # the size of an open stream: nobody knows where it ends before it did
STREAM_NS = TIME_MAX_NS  # the mtime of a walked stream: never like the one before, so it is always read again


class Identity(NamedTuple):
    """Where entries come from, kept in the recovery point. `roots` are the paths a person named, as given."""

    kind: str
    host: str
    roots: list[str]


class Span(NamedTuple):
    """A run of a file: data to read, or a hole."""

    offset: int
    length: int
    hole: bool


class Reader(Protocol):
    """One open file. Close it (context manager) before opening many more.

    `entry` has the attributes as of opening (fstat), xattrs included. `readinto` reads from `offset` and returns
    the count, 0 at the end. `spans` lists data and holes in order, without gaps, cut to [start, end).
    `changed` compares the attributes with those at opening: call it after the last read.

    A stream (a dump, a program's output) is walked with size 0 and STREAM_NS, and opened with STREAM_BYTES; it is read
    once, from the front; the point keeps the time at which the run began as its mtime. Its `changed` raises
    SourceIncomplete or SourceUnavailable unless the end was a proven one: no point comes about. `__exit__` ends what
    produces it.
    """

    @property
    def entry(self) -> Entry: ...

    def __enter__(self) -> "Reader": ...

    def __exit__(self, *exc: object) -> None: ...

    def readinto(self, view: memoryview, offset: int) -> int: ...

    def spans(self, start: int, end: int) -> list[Span]: ...

    def changed(self) -> bool: ...


class Source(Protocol):
    """Something to protect. Picklable: workers get their own copy.

    Single entries that can't be read are Problems, never exceptions; only a source that can't be
    read at all raises: SourceMissing, SourceDenied, SourceUnavailable (transient), SourceIncomplete, ExtraMissing.
    """

    def identity(self) -> Identity: ...

    def check(self) -> None:
        """Raise SourceMissing, SourceDenied and the like before any work when it can't be read."""
        ...

    def mounts(self) -> list[str]:
        """Return the other file systems inside it, for people (B28)."""
        ...

    def options(self) -> dict[str, list[str]]:
        """Return what the point keeps of how it was read, for people: patterns, prefixes; never a secret."""
        ...

    def excluded(self) -> int:
        """Return how many entries the last walk left out by patterns, a folder as one; 0 where nobody counts."""
        ...

    def requests(self) -> dict[str, int]:
        """Return what this process has asked of a metered source since the last call, by verb (A2)."""
        ...

    def expect(self, entries: Sequence[Entry]) -> None:
        """Hear which entries will be read next, in this order: a slow source may fetch them ahead, within bounds."""
        ...

    def follows(self, started_at: dt.datetime | None) -> None:
        """Hear, before the walk, when the run began whose complete point is the newest of the series (None: none is).

        A source that gathers what it keeps may let go of what was there by then: a point holds it.
        """
        ...

    def walk(self) -> Iterator[Entry | Problem | None]:
        """Yield every entry in listing order (Entry.sort_key), without target, xattrs and extents.

        None means: nothing yet, but it goes on. A source that looks at much before it can tell the first entry yields
        it about every second, so that the backup is seen to live and can be canceled. Closing the walk ends the look.
        """
        ...

    def fill(self, entry: Entry) -> Entry | Problem:
        """Return a non-file entry again with fresh attributes, target and xattrs."""
        ...

    def open(self, entry: Entry) -> Reader | Problem:
        """Open a file entry for reading; a Problem (vanished, unreadable, changed) when it can't be."""
        ...

    def read_small(self, entry: Entry, limit: int) -> tuple[Entry, bytes] | Problem | None:
        """Return a whole file of at most `limit` bytes at once, with its fresh entry, as `open` would.

        The fast path for the many small files. None when the file is larger, has holes or was changing: use `open`.
        """
        ...


class BaseSource(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """What most sources answer alike: no mounts, no metered requests, streams or objects but no links and devices."""

    def mounts(self) -> list[str]:
        return []

    def options(self) -> dict[str, list[str]]:
        return {}

    def excluded(self) -> int:
        return 0

    def requests(self) -> dict[str, int]:
        return {}

    def follows(self, started_at: dt.datetime | None) -> None: ...

    def expect(self, entries: Sequence[Entry]) -> None: ...

    def fill(self, entry: Entry) -> Entry | Problem:
        return entry

    def read_small(self, entry: Entry, limit: int) -> tuple[Entry, bytes] | Problem | None:
        return None
