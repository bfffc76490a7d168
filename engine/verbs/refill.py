"""Write the content of files back, reading each slot of the vault once: the work of a restore."""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import groupby
from typing import NamedTuple

from engine import halt
from engine.codec import Compressor
from engine.entries import Entry, Extent, Problem
from engine.errors import IntegrityError, UnsafePath
from engine.fetch import Fetcher, cut_chunk, nowhere, open_slot, read_range
from engine.index import Place
from engine.pack import Cipher
from engine.point import Root
from engine.progress import Progress
from engine.targets.port import Target, Writer
from engine.vault import Vault
from engine.verbs.pour import Pour

WHOLE_BYTES = 4 << 20
_GAP_BYTES = 512 << 10
_RANGE_BYTES = 16 << 20
_PLAIN_BYTES = 32 << 20
_BIG_BYTES = 256 << 10
_AHEAD = 3


class _Filling:
    """A file on its way: small ones gather in memory, large ones are written aside piece by piece.

    `left` counts the chunks that are still to come.
    """

    __slots__ = ("entry", "failed", "left", "whole", "writer")

    def __init__(self, entry: Entry) -> None:
        self.entry = entry
        self.left = 0
        self.failed = False
        self.whole: bytearray | None = None
        self.writer: Writer | None = None


class _Use(NamedTuple):
    """One place in a file that a chunk goes to."""

    filling: _Filling
    offset: int
    extent: Extent


class _Range:
    """A run of one pack, read at once; `uses` sorted by slot, `plain` the bytes of their chunks."""

    def __init__(self, first: Place) -> None:
        self.head, self.offset, self.length = first.head, first.slot_at, first.slot_stored
        self.uses: list[tuple[_Use, Place]] = []
        self.plain = 0

    def takes(self, place: Place) -> bool:
        """Grow to hold this place, which comes behind all others; say no where another reading is better."""
        length = max(self.length, place.slot_at + place.slot_stored - self.offset)
        near = place.slot_at <= self.offset + self.length + _GAP_BYTES and length <= _RANGE_BYTES
        if near and self.plain + place.length <= _PLAIN_BYTES and place.head.name == self.head.name:
            self.length = length
            return True
        return False

    def add(self, use: _Use, place: Place) -> None:
        """Let the chunk at a place that it takes go to a file."""
        self.uses.append((use, place))
        self.plain += place.length

    @property
    def of_big_chunks(self) -> bool:
        """Say whether opening and hashing happens mostly outside the interpreter's lock."""
        return self.plain >= len(self.uses) * _BIG_BYTES


# A use with its chunk, or with what is wrong with it.
_Opened = tuple[_Use, memoryview | IntegrityError]


class Refill:
    """Restores files from one point. `problems` lists what failed; `bytes` counts what was written.

    `damaged` are the keys of packs that could not be read as they were written.
    """

    def __init__(self, vault: Vault, root: Root, target: Target, progress: Progress) -> None:
        self._storage, self._keys = vault.storage, vault.keys
        self._fetcher: Fetcher = vault.fetcher(root)
        self._target, self._progress = target, progress
        self.problems: list[Problem] = []
        self.damaged: set[str] = set()
        self.bytes = 0
        self._ended = self._ended_bytes = 0

    def write(self, files: list[Entry]) -> list[Entry]:
        """Write all of these files; return those that are there now. Raises transient storage errors only."""
        if self._target.in_order:
            return self._pour(files)
        fillings = [_Filling(entry) for entry in files]
        done: list[Entry] = []
        try:
            uses = self._uses(fillings)
            for filling in fillings:
                if not filling.left and not filling.failed:
                    self._settle(filling, self._write_empty(filling), done)
            with halt.threads(_AHEAD, "read") as executor:
                for opened in self._read_ahead(executor, self._ranges(uses)):
                    for use, chunk in opened:
                        self._fill(use, chunk, done)
                    self._count()
                    self._progress.check()
        finally:
            for filling in fillings:
                if filling.writer is not None:
                    filling.writer.abort()
        self._count()
        return done

    def _pour(self, files: list[Entry]) -> list[Entry]:
        pour = Pour(self._storage, self._keys, self._fetcher, self._target, self._progress)
        try:
            return pour.write(files)
        finally:
            self.problems += pour.problems
            self.damaged |= pour.damaged
            self.bytes += pour.bytes

    def _uses(self, fillings: list[_Filling]) -> list[_Use]:
        """Return all uses of chunks; a file whose listing contradicts itself becomes a problem."""
        uses: list[_Use] = []
        for filling in fillings:
            before, offset = len(uses), 0
            for extent in filling.entry.extents:
                if extent.id:
                    uses.append(_Use(filling, offset, extent))
                offset += extent.length
            filling.left = len(uses) - before
            if offset != filling.entry.size:
                del uses[before:]
                self._fail(filling, "damaged", "its listing contradicts itself")
        return uses

    def _ranges(self, uses: list[_Use]) -> list[_Range]:
        """Return what to read, ordered by pack and offset, neighbours merged; what can't be read is a problem."""
        order: list[tuple[str, int, int, int]] = []
        places = self._fetcher.look([use.extent.id for use in uses])
        for number, (use, place) in enumerate(zip(uses, places, strict=True)):
            if place is None:
                self._fail(use.filling, "damaged", nowhere(use.extent.id))
            elif place.length != use.extent.length:
                self._fail(use.filling, "damaged", "its listing contradicts itself")
            else:
                order.append((place.head.name, place.slot_at, place.offset, number))
        order.sort()
        ranges: list[_Range] = []
        for *_, number in order:
            place = places[number]
            assert place is not None
            if not ranges or not ranges[-1].takes(place):
                ranges.append(_Range(place))
            ranges[-1].add(uses[number], place)
        return ranges

    def _read_ahead(self, executor: ThreadPoolExecutor, ranges: list[_Range]) -> Iterator[Iterable[_Opened]]:
        flying: deque[Future[Iterable[_Opened]]] = deque()
        for part in ranges:
            flying.append(executor.submit(self._read, part))
            if len(flying) > _AHEAD:
                yield flying.popleft().result()
        while flying:
            yield flying.popleft().result()

    def _read(self, part: _Range) -> Iterable[_Opened]:
        """Read a range, in a thread. Big chunks are opened there too, while others are written; small ones when asked
        for: their threads would only wait for each other.
        """
        try:
            data = memoryview(read_range(self._storage, part.head, part.offset, part.length))
            cipher = Cipher(self._keys, part.head.kind, part.head.epoch, part.head.salt)
        except IntegrityError as error:
            self.damaged.add(part.head.key)
            return [(use, error) for use, _ in part.uses]
        opened = self._opened(part, cipher, data)
        return list(opened) if part.of_big_chunks else opened

    def _opened(self, part: _Range, cipher: Cipher, data: memoryview) -> Iterator[_Opened]:
        zstd = Compressor()
        for slot_at, group in groupby(part.uses, key=lambda pair: pair[1].slot_at):
            uses = list(group)
            first = uses[0][1]
            at = slot_at - part.offset
            try:
                slot = memoryview(open_slot(zstd, cipher, first, data[at : at + first.slot_stored]))
            except IntegrityError as error:
                self.damaged.add(part.head.key)
                yield from [(use, error) for use, _ in uses]
                continue
            for use, place in uses:
                try:
                    chunk: memoryview | IntegrityError = cut_chunk(self._keys, slot, use.extent.id, place)
                except IntegrityError as error:
                    chunk = error
                yield use, chunk

    def _fill(self, use: _Use, chunk: memoryview | IntegrityError, done: list[Entry]) -> None:
        filling = use.filling
        if filling.failed:
            return
        if isinstance(chunk, IntegrityError):
            self._fail(filling, "damaged", str(chunk))
            return
        try:
            problems = self._write(filling, chunk, use.offset)
        except UnsafePath as error:
            self._fail(filling, "unsafe-path", str(error))
        except OSError as error:
            self._fail(filling, "write-failed", error.strerror or str(error))
        else:
            if problems is not None:
                self._settle(filling, problems, done)

    def _write(self, filling: _Filling, chunk: memoryview, offset: int) -> list[Problem] | None:
        """Put one chunk in its place; return the file's problems when it was the last."""
        entry = filling.entry
        filling.left -= 1
        if len(chunk) == entry.size:
            return self._target.write_small(entry, chunk)
        if entry.size <= WHOLE_BYTES and (filling.whole or all(extent.id for extent in entry.extents)):
            if filling.whole is None:
                filling.whole = bytearray(entry.size)
            filling.whole[offset : offset + len(chunk)] = chunk
            return self._target.write_small(entry, memoryview(filling.whole)) if not filling.left else None
        if filling.writer is None:
            filling.writer = self._target.create(entry)
        filling.writer.write(chunk, offset)
        if filling.left:
            return None
        writer, filling.writer = filling.writer, None
        return writer.commit()

    def _write_empty(self, filling: _Filling) -> list[Problem]:
        """Write a file without data: empty, or one hole."""
        try:
            if not filling.entry.size:
                return self._target.write_small(filling.entry, b"")
            return self._target.create(filling.entry).commit()
        except UnsafePath as error:
            return [Problem(filling.entry.path, "unsafe-path", str(error))]
        except OSError as error:
            return [Problem(filling.entry.path, "write-failed", error.strerror or str(error))]

    def _settle(self, filling: _Filling, problems: list[Problem], done: list[Entry]) -> None:
        filling.whole = None
        self._ended += 1
        self._ended_bytes += filling.entry.size
        if problems:
            self.problems += problems
            if any(problem.lost for problem in problems):
                return
        self.bytes += filling.entry.size
        done.append(filling.entry)

    def _fail(self, filling: _Filling, reason: str, detail: str) -> None:
        if filling.failed:
            return
        filling.failed = True
        filling.whole = None
        self.problems.append(Problem(filling.entry.path, reason, detail))
        if filling.writer is not None:
            filling.writer.abort()
            filling.writer = None
        self._ended += 1

    def _count(self) -> None:
        """Tell the progress of what ended since the last time."""
        self._progress.add(entries=self._ended, bytes=self._ended_bytes)
        self._ended = self._ended_bytes = 0
