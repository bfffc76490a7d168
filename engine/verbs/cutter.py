"""What a backup is cut into: the units that workers take, and the results that they give back."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

import msgspec

from engine.chunker import PART_BYTES
from engine.entries import Block, Entry, Kind, Problem
from engine.sources.port import STREAM_NS

UNIT_BYTES = 64 << 20
UNIT_FILES = 5_000
UNIT_ROWS = 100_000
UNIT_BLOCKS = 2_000


class Carried(msgspec.Struct, array_like=True):
    """A block of the parent that stands before row `before` of a unit: unread, when `changed` is None.

    Else the rows from `before` on stand in the block in place of those numbered `changed`; those numbered `gone` went
    away while they were read.
    """

    before: int
    block: Block
    changed: list[int] | None = None
    gone: list[int] = []

    def left(self, rows: Sequence[Entry | None], before: int) -> "Carried":
        """Return the same with what is left of a unit's `rows`, `before` of them in front of it."""
        if self.changed is None:
            return Carried(before, self.block)
        inside = list(zip(self.changed, rows[self.before : self.before + len(self.changed)], strict=True))
        stand = [number for number, row in inside if row is not None]
        return Carried(before, self.block, stand, [number for number, row in inside if row is None])


class Scan(msgspec.Struct):
    """What the walk as a whole knows; travels with the last unit. `requests` counts what it asked the source for,
    `changes` what is new, changed, unchanged and deleted (Stats), `excluded` what patterns left out.
    """

    scan_ns: int
    mounts: list[str]
    requests: dict[str, int] = {}
    changes: dict[str, int] = {}
    excluded: int = 0


class Unit(msgspec.Struct):
    """A run of the listing. `todo` are the rows to read; `parent` the point that carried blocks are from, or empty.

    With `part` (offset, length) it is a part of one big file. `forbidden` are the packs that were forbidden when the
    session opened; they travel with every unit.
    """

    number: int
    parent: str
    rows: list[Entry]
    todo: list[int]
    carried: list[Carried]
    problems: list[Problem]
    part: tuple[int, int] | None = None
    scan: Scan | None = None
    forbidden: list[str] = []

    @property
    def needs_work(self) -> bool:
        """Say whether a worker has anything to do."""
        return bool(self.todo)


class Result(msgspec.Struct):
    """A unit done: the rows that are left, with extents."""

    number: int
    parent: str
    rows: list[Entry]
    carried: list[Carried]
    problems: list[Problem]
    part: tuple[int, int] | None = None
    scan: Scan | None = None
    stored: bool = False
    entries_read: int = 0
    bytes_read: int = 0
    bytes_new: int = 0
    bytes_stored: int = 0
    forbidden: list[str] = []
    requests: dict[str, int] = {}


class Cutter:
    """Cuts the stream of rows and carried blocks into units. `bytes_todo` of its files are to be read."""

    def __init__(self, parent: str, forbidden: set[str], *, unit_bytes: int) -> None:
        self._unit_bytes = unit_bytes
        self.entries = self.bytes_todo = 0
        self._number = 0
        self._parent = parent
        self._forbidden = sorted(forbidden)
        self.problems: list[Problem] = []
        self._start()

    def _start(self) -> None:
        self._rows: list[Entry] = []
        self._todo: list[int] = []
        self._carried: list[Carried] = []
        self._bytes = 0

    def fits(self, rows: Collection[Entry]) -> bool:
        """Say whether these rows can be read in one unit."""
        return (
            len(rows) <= UNIT_FILES
            and _bytes_of(rows) <= self._unit_bytes
            and all(row.size <= PART_BYTES and row.mtime_ns != STREAM_NS for row in rows if row.kind == Kind.FILE)
        )

    def carry(self, block: Block, changed: Mapping[int, Entry] | None = None) -> Iterator[Unit]:
        """Take a block of the parent: unread, or with those of its rows, by number, that are to be read."""
        rows = changed.values() if changed else ()
        if self._todo and self._bytes + _bytes_of(rows) > self._unit_bytes:
            yield self._cut()
        self.entries += block.rows
        self._carried.append(Carried(len(self._rows), block, None if changed is None else list(changed)))
        for row in rows:
            self._read_later(row)
        if len(self._carried) >= UNIT_BLOCKS or self._is_full():
            yield self._cut()

    def add(self, row: Entry, *, todo: bool) -> Iterator[Unit]:
        self.entries += 1
        if todo and row.mtime_ns == STREAM_NS:
            if self._todo:
                yield self._cut()
            self._rows.append(row)
            self._todo.append(len(self._rows) - 1)
            yield self._cut()  # a unit of its own: streams are read side by side
            return
        if todo and row.kind == Kind.FILE and row.size > PART_BYTES:
            if self._rows or self._carried:
                yield self._cut()
            self.bytes_todo += row.size
            for offset in range(0, row.size, PART_BYTES):
                self._rows, self._todo = [row], [0]
                yield self._cut(part=(offset, PART_BYTES))
            return
        if todo:
            self._read_later(row)
        else:
            self._rows.append(row)
        if self._is_full():
            yield self._cut()

    def _read_later(self, row: Entry) -> None:
        self._todo.append(len(self._rows))
        self._rows.append(row)
        if row.kind == Kind.FILE:
            self._bytes += row.size
            self.bytes_todo += row.size

    def _is_full(self) -> bool:
        return self._bytes >= self._unit_bytes or len(self._todo) >= UNIT_FILES or len(self._rows) >= UNIT_ROWS

    def last(self, scan: Scan) -> Unit:
        return self._cut(scan=scan)

    def _cut(self, *, part: tuple[int, int] | None = None, scan: Scan | None = None) -> Unit:
        rows, todo = self._rows, self._todo
        unit = Unit(self._number, self._parent, rows, todo, self._carried, self.problems, part, scan)
        unit.forbidden = self._forbidden
        self._number += 1
        self.problems = []
        self._start()
        return unit


def _bytes_of(rows: Iterable[Entry]) -> int:
    return sum(row.size for row in rows if row.kind == Kind.FILE)
