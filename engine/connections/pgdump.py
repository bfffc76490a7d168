"""The custom format of pg_dump as a stream: what a whole archive consists of, and whether all of it came.

An archive is a head, a table of contents, and the data blocks of those entries that have data. A stream has no mark at
its end, but it is whole when each of these blocks came and ended. Known for format 1.12 to 1.16 (PostgreSQL 9.0 to 18);
of a newer one only the head and the last bytes are looked at.
"""

import struct
from collections.abc import Generator

_MAGIC = b"PGDMP"
_CUSTOM = 1
_KNOWN = ((1, 12), (1, 16))
_HAS_DATA, _NO_DATA = 1, 3
_TABLE, _LARGE_OBJECTS = 1, 3
_END = bytes(5)
_SIZE = struct.Struct("<xI").unpack_from  # a sign, which no length has, and the number

Step = Generator[None, None, None]


class ArchiveBroken(ValueError):
    """The bytes are no archive of pg_dump, or not a whole one."""


class Archive:
    """Follows an archive from its first byte to its last; `feed` it all. Holds the table of contents in memory.

    `create` is the statement that makes the dumped database, once `begun`.
    """

    def __init__(self) -> None:
        self._data = b""
        self._at = 0  # may lie behind the end of what came: those bytes are of no interest
        self._last = b""
        self._steps = self._run()
        self._waiting: set[int] = set()
        self._between = self._newer = False
        self.begun = False
        self.database = self.create = ""

    def feed(self, data: bytes | memoryview) -> None:
        """Follow the next bytes. Raises ArchiveBroken."""
        if self._at >= len(self._data):
            self._at -= len(self._data)
            self._data = bytes(data)
        else:
            self._data = self._data[self._at :] + bytes(data)
            self._at = 0
        self._last = (self._last + bytes(data[-len(_END) :]))[-len(_END) :]
        next(self._steps, None)

    def close(self) -> None:
        """Raise ArchiveBroken unless all that the archive promises came."""
        if self._newer:
            if self._last != _END:
                raise ArchiveBroken("the archive does not end as archives do")
        elif not self.begun:
            raise ArchiveBroken("the archive ends before its table of contents does")
        elif not self._between or self._at < len(self._data):
            raise ArchiveBroken("the archive ends in the middle of data")
        elif self._waiting:
            raise ArchiveBroken(f"the archive ends before the data of {len(self._waiting)} of its entries came")

    def _run(self) -> Step:
        head = yield from self._take(10)
        if head[:5] != _MAGIC:
            raise ArchiveBroken("this is no archive of pg_dump")
        version = head[5], head[6]
        if version > _KNOWN[1]:
            self._newer = self.begun = True
        elif head[8:10] != b"\x04\x08" or version < _KNOWN[0]:
            raise ArchiveBroken(f"archives of pg_dump of format {version[0]}.{version[1]} are not known")
        while self._newer:
            self._at = len(self._data)
            yield
        if (yield from self._take(1))[0] != _CUSTOM:
            raise ArchiveBroken("this archive of pg_dump is not in the custom format")
        yield from self._take(1 if version >= (1, 15) else 5)  # the compression
        yield from self._take(7 * 5)  # the time
        for _ in range(3):
            yield from self._text()
        yield from self._contents(version)
        self.begun = True
        yield from self._blocks()

    def _take(self, count: int) -> Generator[None, None, bytes]:
        """Return the next bytes."""
        while len(self._data) - self._at < count:
            yield
        at = self._at
        self._at += count
        return self._data[at : self._at]

    def _number(self) -> Generator[None, None, int]:
        sign, number = struct.unpack("<bI", (yield from self._take(5)))
        return -int(number) if sign else int(number)

    def _text(self) -> Generator[None, None, bytes | None]:
        length = yield from self._number()
        return (yield from self._take(length)) if length >= 0 else None

    def _contents(self, version: tuple[int, int]) -> Step:
        for _ in range((yield from self._number())):
            ident = yield from self._number()
            yield from self._number()
            for _ in range(2):
                yield from self._text()
            tag = yield from self._text()
            what = yield from self._text()
            yield from self._number()
            definition = yield from self._text()
            # dropping, copying, schema, tablespace, since 1.14 the access method
            for _ in range(5 if version >= (1, 14) else 4):
                yield from self._text()
            if version >= (1, 16):
                yield from self._number()
            for _ in range(2):
                yield from self._text()
            while (yield from self._text()) is not None:
                pass  # what it depends on
            if (yield from self._take(9))[0] != _NO_DATA:
                self._waiting.add(ident)
            if what == b"DATABASE":
                self.database, self.create = (one.decode("utf-8", "replace") for one in (tag or b"", definition or b""))

    def _blocks(self) -> Step:
        while True:
            self._between = True
            kind = (yield from self._take(1))[0]
            self._between = False
            ident = yield from self._number()
            if ident not in self._waiting:
                raise ArchiveBroken("the archive has data that its table of contents does not name")
            if kind == _TABLE:
                yield from self._pieces()
            elif kind == _LARGE_OBJECTS:
                while (yield from self._number()):
                    yield from self._pieces()
            else:
                raise ArchiveBroken(f"the archive has a block of the unknown kind {kind}")
            self._waiting.discard(ident)

    def _pieces(self) -> Step:
        """Go behind the end of a run of pieces. This loop turns once for each row of a table."""
        while True:
            data, at, end = self._data, self._at, len(self._data) - 5
            while at <= end:
                (length,) = _SIZE(data, at)
                at += 5
                if not length:
                    self._at = at
                    return
                at += length
            self._at = at
            yield
