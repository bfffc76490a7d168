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
from engine.pack import Cipher, Head
from engine.point import Root
from engine.progress import Progress
from engine.targets.port import Target, Writer
from engine.vault import Vault
from engine.verbs.pour import Pour

WHOLE_BYTES = 4 << 20
_GAP_BYTES = 512 << 10
_RANGE_BYTES = 16 << 20
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
    """A run of one pack, read at once; `uses` sorted by slot."""

    def __init__(self, first: Place) -> None:
        self.head, self.offset, self.length = first.head, first.slot_at, first.slot_stored
        self.uses: list[tuple[_Use, Place]] = []

    def takes(self, place: Place) -> bool:
        """Grow to hold this place, which comes behind all others; say no where another reading is better."""
        length = max(self.length, place.slot_at + place.slot_stored - self.offset)
        near = place.slot_at <= self.offset + self.length + _GAP_BYTES and length <= _RANGE_BYTES
        if near and place.head.name == self.head.name:
            self.length = length
            return True
        return False


class Refill:
    """Restores files from one point. `problems` lists what failed; `bytes` counts what was written.

    `damaged` are the keys of packs that could not be read as they were written.
    """

    def __init__(self, vault: Vault, root: Root, target: Target, progress: Progress) -> None:
        self._storage, self._keys = vault.storage, vault.keys
        self._fetcher: Fetcher = vault.fetcher(root)
        self._target, self._progress = target, progress
        self._zstd = Compressor()
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
                for part, stored in self._read_ahead(executor, self._ranges(uses)):
                    self._fill_range(part, stored, done)
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
            ranges[-1].uses.append((uses[number], place))
        return ranges

    def _read_ahead(
        self, executor: ThreadPoolExecutor, ranges: list[_Range]
    ) -> Iterator[tuple[_Range, "Future[bytes]"]]:
        flying: deque[tuple[_Range, Future[bytes]]] = deque()
        for part in ranges:
            flying.append((part, executor.submit(read_range, self._storage, part.head, part.offset, part.length)))
            if len(flying) > _AHEAD:
                yield flying.popleft()
        while flying:
            yield flying.popleft()

    def _fill_range(self, part: _Range, stored: "Future[bytes]", done: list[Entry]) -> None:
        try:
            data = memoryview(stored.result())
            cipher = Cipher(self._keys, part.head.kind, part.head.epoch, part.head.salt)
        except IntegrityError as error:
            self._broken(part.head, (use for use, _ in part.uses), error)
            return
        for slot_at, group in groupby(part.uses, key=lambda pair: pair[1].slot_at):
            uses = list(group)
            place = uses[0][1]
            at = slot_at - part.offset
            try:
                slot = memoryview(open_slot(self._zstd, cipher, place, data[at : at + place.slot_stored]))
            except IntegrityError as error:
                self._broken(part.head, (use for use, _ in uses), error)
                continue
            for use, place in uses:
                if not use.filling.failed:
                    self._fill(use, slot, place, done)

    def _broken(self, head: Head, uses: Iterable[_Use], error: IntegrityError) -> None:
        self.damaged.add(head.key)
        for use in uses:
            self._fail(use.filling, "damaged", str(error))

    def _fill(self, use: _Use, slot: memoryview, place: Place, done: list[Entry]) -> None:
        filling = use.filling
        try:
            problems = self._write(filling, cut_chunk(self._keys, slot, use.extent.id, place), use.offset)
        except IntegrityError as error:
            self._fail(filling, "damaged", str(error))
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
