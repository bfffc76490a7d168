"""Write the content of files back, reading each slot of the vault once: the work of a restore."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
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


class _Use(NamedTuple):
    """One place in a file that a chunk goes to."""

    file: int
    offset: int
    ident: bytes
    place: Place


class _Range(NamedTuple):
    """A run of one pack, read at once; `uses` sorted by slot."""

    head: Head
    offset: int
    length: int
    uses: list[_Use]


class _Filling:
    """A file on its way: small ones gather in memory, large ones are written aside piece by piece."""

    def __init__(self, entry: Entry) -> None:
        self.entry = entry
        self.left = sum(1 for extent in entry.extents if extent.id)
        self.failed = False
        self.whole: bytearray | None = None
        self.writer: Writer | None = None

    @property
    def has_holes(self) -> bool:
        return any(not extent.id for extent in self.entry.extents)


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

    def write(self, files: list[Entry]) -> list[Entry]:
        """Write all of these files; return those that are there now. Raises transient storage errors only."""
        if self._target.in_order:
            return self._pour(files)
        fillings = [_Filling(entry) for entry in files]
        done: list[Entry] = []
        try:
            for filling in fillings:
                if filling.entry.size != sum(extent.length for extent in filling.entry.extents):
                    self._fail(filling, "damaged", "its listing contradicts itself")
                elif not filling.left:
                    self._settle(filling, self._write_empty(filling), done)
            with halt.threads(_AHEAD, "read") as executor:
                for part, stored in self._read_ahead(executor, self._ranges(fillings)):
                    self._fill_range(part, stored, fillings, done)
                    self._progress.check()
        finally:
            for filling in fillings:
                if filling.writer is not None:
                    filling.writer.abort()
        return done

    def _pour(self, files: list[Entry]) -> list[Entry]:
        pour = Pour(self._storage, self._keys, self._fetcher, self._target, self._progress)
        try:
            return pour.write(files)
        finally:
            self.problems += pour.problems
            self.damaged |= pour.damaged
            self.bytes += pour.bytes

    def _ranges(self, fillings: list[_Filling]) -> list[_Range]:
        """Return what to read, ordered by pack and offset, neighbours merged."""
        uses: list[_Use] = []
        wanted: list[tuple[int, int, Extent]] = []
        for number, filling in enumerate(fillings):
            offset = 0
            for extent in filling.entry.extents:
                if extent.id and not filling.failed:
                    wanted.append((number, offset, extent))
                offset += extent.length
        for (number, offset, extent), place in zip(wanted, self._places(wanted, fillings), strict=True):
            if place is not None and place.length != extent.length:
                self._fail(fillings[number], "damaged", "its listing contradicts itself")
            elif place is not None:
                uses.append(_Use(number, offset, extent.id, place))
        uses.sort(key=lambda use: (use.place.head.name, use.place.slot_at, use.place.offset))
        ranges: list[_Range] = []
        for use in uses:
            place = use.place
            end = place.slot_at + place.slot_stored
            last = ranges[-1] if ranges else None
            if (
                last is not None
                and last.head.name == place.head.name
                and place.slot_at <= last.offset + last.length + _GAP_BYTES
                and end - last.offset <= _RANGE_BYTES
            ):
                last.uses.append(use)
                ranges[-1] = last._replace(length=max(last.length, end - last.offset))
            else:
                ranges.append(_Range(place.head, place.slot_at, place.slot_stored, [use]))
        return ranges

    def _places(self, wanted: list[tuple[int, int, Extent]], fillings: list[_Filling]) -> list[Place | None]:
        """Return where the chunks lie; a file with a chunk that is nowhere becomes a problem."""
        found = self._fetcher.look([extent.id for _, _, extent in wanted])
        for (number, _, extent), place in zip(wanted, found, strict=True):
            if place is None:
                self._fail(fillings[number], "damaged", nowhere(extent.id))
        return found

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

    def _fill_range(self, part: _Range, stored: "Future[bytes]", fillings: list[_Filling], done: list[Entry]) -> None:
        try:
            data = memoryview(stored.result())
            cipher = Cipher(self._keys, part.head.kind, part.head.epoch, part.head.salt)
        except IntegrityError as error:
            self.damaged.add(part.head.key)
            for use in part.uses:
                self._fail(fillings[use.file], "damaged", str(error))
            return
        slot, slot_at, broken = b"", -1, ""
        for use in part.uses:
            place = use.place
            if place.slot_at != slot_at:
                slot_at, broken = place.slot_at, ""
                at = place.slot_at - part.offset
                try:
                    slot = open_slot(self._zstd, cipher, place, data[at : at + place.slot_stored])
                except IntegrityError as error:
                    self.damaged.add(part.head.key)
                    broken = str(error)
            self._fill(use, slot, broken, fillings[use.file], done)

    def _fill(self, use: _Use, slot: bytes, broken: str, filling: _Filling, done: list[Entry]) -> None:
        if filling.failed:
            return
        if broken:
            self._fail(filling, "damaged", broken)
            return
        try:
            chunk = cut_chunk(self._keys, slot, use.ident, use.place)
        except IntegrityError as error:
            self._fail(filling, "damaged", str(error))
            return
        try:
            problems = self._write(filling, chunk, use.offset)
        except UnsafePath as error:
            self._fail(filling, "unsafe-path", str(error))
            return
        except OSError as error:
            self._fail(filling, "write-failed", error.strerror or str(error))
            return
        if problems is not None:
            self._settle(filling, problems, done)

    def _write(self, filling: _Filling, chunk: bytes, offset: int) -> list[Problem] | None:
        """Put one chunk in its place; return the file's problems when it was the last."""
        entry = filling.entry
        filling.left -= 1
        if len(chunk) == entry.size:
            return self._target.write_small(entry, chunk)
        if entry.size <= WHOLE_BYTES and not filling.has_holes:
            if filling.whole is None:
                filling.whole = bytearray(entry.size)
            filling.whole[offset : offset + len(chunk)] = chunk
            return self._target.write_small(entry, memoryview(filling.whole)) if not filling.left else None
        if filling.writer is None:
            filling.writer = self._target.create(entry)
        filling.writer.write(memoryview(chunk), offset)
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
        self.problems += problems
        self._progress.add(entries=1, bytes=filling.entry.size)
        if not any(problem.lost for problem in problems):
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
        self._progress.add(entries=1)
