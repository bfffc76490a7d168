"""The Source port: how a backup sees what it protects."""

from collections.abc import Iterator
from typing import NamedTuple, Protocol

from engine.entries import Entry, Problem


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
    read at all raises (SourceMissing).
    """

    def identity(self) -> Identity: ...

    def check(self) -> None:
        """Raise SourceMissing before any work when a named root is not there."""
        ...

    def walk(self) -> Iterator[Entry | Problem]:
        """Yield every entry in listing order (Entry.sort_key), without target, xattrs and extents."""
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
