"""What the sources of wide-column services share: which tables, the walk, rows as streams, what changed meanwhile."""

import errno
from collections.abc import Iterator
from contextlib import closing, contextmanager
from fnmatch import fnmatchcase
from functools import cached_property

import msgspec

from engine.connections.tables import (
    FINISH,
    FORMAT,
    ROWS,
    SCHEMA,
    Denied,
    Described,
    Fault,
    Gone,
    Pace,
    Page,
    Place,
    Service,
    Silent,
    Tally,
    document,
    fingerprint,
    path_of,
    place_of,
)
from engine.entries import Entry, Kind, Problem
from engine.errors import SourceDenied, SourceError, SourceIncomplete, SourceMissing, SourceUnavailable
from engine.perprocess import PerProcess
from engine.sources.port import BaseSource, Reader, Span
from engine.sources.stream import StreamReader, stream_entry
from engine.storage.throttle import Budget, unpaced
from engine.storage.throttle import Pace as BytePace


class TablesSource(BaseSource, frozen=True, kw_only=True):
    """Tables whose names match one of `tables` and none of `exclude` (`*`, `?`, `[…]`); no names mean all of them.

    Rows are consistent one by one, not among each other: the service has no snapshots. `reads_per_s` bounds the read
    capacity units a second of each worker, `bytes_per_s` the bytes.
    """

    tables: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    reads_per_s: float = 0
    bytes_per_s: int = 0

    def connect(self) -> Service:
        """Return the service; its kind says how."""
        raise NotImplementedError

    @property
    def _service(self) -> Service:
        return self._connected()

    @cached_property
    def _connected(self) -> PerProcess[Service]:
        return PerProcess(_told()(self.connect))

    def options(self) -> dict[str, list[str]]:
        return {"tables": list(self.tables), "exclude": list(self.exclude)}

    def check(self) -> None:
        """List the tables: raises SourceDenied, SourceUnavailable, and SourceMissing for a named one that is none."""
        with _told():
            there = set(self._service.tables())
        missing = [name for name in self.tables if not set(name) & set("*?[") and name not in there]
        if missing:
            raise SourceMissing(
                f"there is no table {missing[0]!r}: there are {', '.join(sorted(there)[:10]) or 'none'}"
            )

    def _chosen(self, table: str) -> bool:
        def among(patterns: tuple[str, ...]) -> bool:
            return any(fnmatchcase(table, pattern) for pattern in patterns)

        return (among(self.tables) or not self.tables) and not among(self.exclude)

    def walk(self) -> Iterator[Entry | Problem]:
        """Yield three kinds of files a table, with the fingerprint of its schema as their inode."""
        with _told():
            names = sorted(filter(self._chosen, self._service.tables()), key=lambda name: path_of(name, ""))
        for table in names:
            with _told():
                try:
                    described = self._service.describe(table)
                    ranges = self._service.ranges(table, described.schema)
                except Gone:
                    continue  # dropped since the list was made, as if it had never been in it
            for what in described.unread:
                yield Problem(path_of(table, SCHEMA), "attributes", f"not kept: {what}", lost=False)
            yield _small(table, SCHEMA, described)
            for part in ranges:
                entry = stream_entry(path_of(table, ROWS, part.name))
                entry.inode = _mark(described)
                yield entry
            yield _small(table, FINISH, described)

    def read_small(self, entry: Entry, limit: int) -> tuple[Entry, bytes] | Problem | None:
        """Describe the table anew; rows are for `open`."""
        place = _place(entry)
        if place.kind == ROWS:
            return None
        found = self._described(place.table, entry)
        if isinstance(found, Problem):
            return found
        data = _content(place.table, place.kind, found)
        if len(data) > limit:
            return None
        return _small(place.table, place.kind, found), data

    def open(self, entry: Entry) -> Reader | Problem:
        """Begin to read a range of rows, or describe the table."""
        place = _place(entry)
        found = self._described(place.table, entry)
        if isinstance(found, Problem):
            return found
        if place.kind != ROWS:
            return _TextReader(_small(place.table, place.kind, found), _content(place.table, place.kind, found))
        pages = self._paced(self._service.pages(place.table, found.schema, place.part))
        pace = Budget(self.bytes_per_s).take if self.bytes_per_s else unpaced
        rows = _Rows(pages, pace)
        mark = entry.inode
        return StreamReader(msgspec.structs.replace(entry), rows, lambda: self._prove(place, entry, rows, mark))

    def _paced(self, pages: Iterator[Page]) -> Iterator[Page]:
        pace = Pace(self.reads_per_s)
        for page in pages:
            pace.take(page.units)
            yield page

    def _prove(self, place: Place, entry: Entry, rows: "_Rows", mark: int) -> bool:
        """Raise unless all was read; say whether the table is another one than the walk saw."""
        if not rows.ended:
            raise SourceIncomplete(f"the rows of {place.table} were not read to their end")
        found = self._described(place.table, entry)
        return isinstance(found, Problem) or _mark(found) != mark

    def _described(self, table: str, entry: Entry) -> Described | Problem:
        with _told():
            try:
                return self._service.describe(table)
            except Gone:
                return Problem(entry.path, "vanished", "the table was dropped")


class _Rows:
    """The lines of a range and, at last, what they add up to (a Producer)."""

    def __init__(self, pages: Iterator[Page], pace: BytePace) -> None:
        self._pages, self._pace = pages, pace
        self._left = memoryview(b"")
        self._tally = Tally()
        self._told_end = False
        self.ended = False

    def readinto(self, view: memoryview) -> int:
        """Give what is left of a page, or of the next one."""
        if not self._left and not self._fill():
            return 0
        count = min(len(self._left), len(view))
        view[:count] = self._left[:count]
        self._left = self._left[count:]
        self._pace(count)
        return count

    def _fill(self) -> bool:
        """Fetch the next rows, or at their end what they add up to; say whether there is anything."""
        while not self._told_end:
            page = self._next()
            if page is None:
                self._told_end = True
                self._left = memoryview(self._tally.line + b"\n")
                return True
            if page.lines:
                self._tally.add(page.lines)
                self._left = memoryview(b"\n".join([*page.lines, b""]))
                return True
        self.ended = True
        return False

    def _next(self) -> Page | None:
        with _told():
            try:
                return next(self._pages, None)
            except Gone as error:
                # Of this one file: the others of the source are read on.
                raise OSError(errno.ENOENT, "the table was dropped while it was read") from error

    def close(self) -> None:
        with closing(self._pages):  # type: ignore[type-var]  # a generator
            self._left = memoryview(b"")


class _TextReader:
    """One small file, held in memory (the Reader port)."""

    def __init__(self, entry: Entry, data: bytes) -> None:
        self.entry, self._data = entry, data

    def __enter__(self) -> "_TextReader":
        return self

    def __exit__(self, *exc: object) -> None: ...

    def readinto(self, view: memoryview, offset: int) -> int:
        part = self._data[offset : offset + len(view)]
        view[: len(part)] = part
        return len(part)

    def spans(self, start: int, end: int) -> list[Span]:
        end = min(end, len(self._data))
        return [Span(start, end - start, hole=False)] if start < end else []

    def changed(self) -> bool:
        return False


def _place(entry: Entry) -> Place:
    place = place_of(entry.path)
    assert place is not None, "entries come from the walk"
    return place


def _content(table: str, kind: str, described: Described) -> bytes:
    """Return a table's description, or what of it waits for the rows."""
    schema = described.schema
    if kind == SCHEMA:
        return document(schema)
    return document({"service": schema["service"], "format": FORMAT, "table": table, "after": schema["after"]})


def _mark(described: Described) -> int:
    return fingerprint(document(described.schema), described.identity.encode())


def _small(table: str, kind: str, described: Described) -> Entry:
    size = len(_content(table, kind, described))
    mtime_ns, mark = described.created_ns, _mark(described)
    return Entry(path_of(table, kind), Kind.FILE, 0o600, size=size, mtime_ns=mtime_ns, inode=mark)


@contextmanager
def _told() -> Iterator[None]:
    """Tell a service's faults as a source's; Gone is for the caller to understand."""
    try:
        yield
    except Gone:
        raise
    except Denied as error:
        raise SourceDenied(str(error)) from error
    except Silent as error:
        raise SourceUnavailable(str(error)) from error
    except Fault as error:
        raise SourceError(str(error)) from error
