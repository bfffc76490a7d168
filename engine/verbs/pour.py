"""Write files front to back, for targets that take streams: programs, buckets, tables (the work of a restore)."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from itertools import groupby
from typing import NamedTuple

from engine import halt
from engine.codec import Compressor
from engine.entries import Entry, Extent, Problem
from engine.errors import IntegrityError, UnsafePath
from engine.fetch import Fetcher, cut_chunk, nowhere, open_slot, read_range
from engine.index import Place
from engine.keys import Keys
from engine.pack import Cipher
from engine.progress import Progress
from engine.storage.port import Storage
from engine.targets.port import Target, Writer

_BATCH_BYTES = 16 << 20
_BATCH_EXTENTS = 4_000
_GAP_BYTES = 512 << 10
_READERS = 4
_WRITERS = 8
_HOLE_BYTES = 1 << 20
_ALIVE_S = 2.0
_EARLIER = "an earlier part of the restore failed, on which it relies"


class _Piece(NamedTuple):
    """One extent of one file; `last` when the file ends with it. An empty file is one piece without an extent."""

    file: int
    extent: Extent | None
    last: bool


class _Sink:
    """One file on its way into the target."""

    def __init__(self, entry: Entry) -> None:
        self.entry = entry
        self.writer: Writer | None = None
        self.at = 0
        self.failed = False


class Pour:
    """Writes files of one point in listing order, each from its front to its end, reading ahead in the vault.

    Memory: two batches. A file with damage is aborted and reported; where files rely on each other, what follows it is
    not written. TargetError passes: the target as a whole can't go on.
    """

    def __init__(self, storage: Storage, keys: Keys, fetcher: Fetcher, target: Target, progress: Progress) -> None:
        self._storage, self._keys, self._fetcher = storage, keys, fetcher
        self._target, self._progress = target, progress
        self._zstd = Compressor()
        self._sinks: list[_Sink] = []
        self._done: list[Entry] = []
        self._broken: set[bytes] = set()
        self.problems: list[Problem] = []
        self.damaged: set[str] = set()
        self.bytes = 0

    def write(self, files: Sequence[Entry]) -> list[Entry]:
        """Write all of these files; return those that are there now."""
        self._sinks = [_Sink(entry) for entry in files]
        self._done = []
        try:
            with halt.threads(_READERS, "read") as readers, halt.threads(_WRITERS, "write") as writers:
                for batch, places, reads in self._read_ahead(readers, _batches(_pieces(files))):
                    self._pour(batch, self._chunks(batch, places, reads), writers)
                    self._progress.check()
        finally:
            for sink in self._sinks:
                self._abort(sink)
        return self._done

    def _read_ahead(
        self, readers: ThreadPoolExecutor, batches: Iterable[list[_Piece]]
    ) -> Iterator[tuple[list[_Piece], dict[bytes, Place], dict[bytes, "Future[bytes]"]]]:
        held = None
        for batch in batches:
            places = self._places(batch)
            following = batch, places, self._reads(readers, places)
            if held is not None:
                yield held
            held = following
        if held is not None:
            yield held

    def _places(self, batch: list[_Piece]) -> dict[bytes, Place]:
        """Return where the batch's chunks lie; what is nowhere is left out, and missed when its file comes to it."""
        ids = list(dict.fromkeys(piece.extent.id for piece in batch if piece.extent is not None and piece.extent.id))
        found = zip(ids, self._fetcher.look(ids), strict=True)
        return {ident: place for ident, place in found if place is not None}

    def _reads(self, readers: ThreadPoolExecutor, places: dict[bytes, Place]) -> dict[bytes, "Future[bytes]"]:
        """Start to read the runs of packs that hold these chunks; return for each chunk the run that holds it."""
        order = sorted(places, key=lambda ident: (places[ident].head.name, places[ident].slot_at))
        reads: dict[bytes, Future[bytes]] = {}
        for _, group in groupby(order, key=lambda ident: places[ident].head.name):
            run: list[bytes] = []
            end = 0
            for ident in group:
                place = places[ident]
                if run and place.slot_at > end + _GAP_BYTES:
                    self._read_run(readers, places, run, end, reads)
                    run = []
                end = max(end, place.slot_at + place.slot_stored) if run else place.slot_at + place.slot_stored
                run.append(ident)
            self._read_run(readers, places, run, end, reads)
        return reads

    def _read_run(
        self,
        readers: ThreadPoolExecutor,
        places: dict[bytes, Place],
        run: list[bytes],
        end: int,
        reads: dict[bytes, "Future[bytes]"],
    ) -> None:
        first = places[run[0]]
        future = readers.submit(_read, self._storage, first, end - first.slot_at)
        reads.update(dict.fromkeys(run, future))

    def _chunks(
        self, batch: list[_Piece], places: dict[bytes, Place], reads: dict[bytes, "Future[bytes]"]
    ) -> dict[bytes, bytes | str]:
        """Return the batch's chunks, checked; a text instead of one says what is wrong with it."""
        starts: dict[int, int] = {}
        for ident, future in reads.items():
            starts[id(future)] = min(starts.get(id(future), places[ident].slot_at), places[ident].slot_at)
        found: dict[bytes, bytes | str] = {}
        slot, slot_of = b"", ("", -1)
        for ident, future in reads.items():
            place = places[ident]
            try:
                if slot_of != (place.head.name, place.slot_at):
                    slot_of = ("", -1)
                    at = place.slot_at - starts[id(future)]
                    cipher = Cipher(self._keys, place.head.kind, place.head.epoch, place.head.salt)
                    stored = memoryview(future.result())[at : at + place.slot_stored]
                    slot = open_slot(self._zstd, cipher, place, stored)
                    slot_of = place.head.name, place.slot_at
                found[ident] = cut_chunk(self._keys, slot, ident, place)
            except IntegrityError as error:
                self.damaged.add(place.head.key)
                found[ident] = str(error)
        return found

    def _pour(self, batch: list[_Piece], chunks: dict[bytes, bytes | str], writers: ThreadPoolExecutor) -> None:
        """Write a batch: files that lie wholly inside it at once, side by side where the target allows it."""
        aside: list[tuple[_Sink, Future[list[Problem]]]] = []
        for number, group in groupby(batch, key=lambda piece: piece.file):
            sink, pieces = self._sinks[number], list(group)
            if sink.failed:
                continue
            if self._target.chain(sink.entry.path) in self._broken:
                self._fail(sink, "write-failed", _EARLIER)
                continue
            wrong = _wrong(sink.entry, pieces, chunks)
            if wrong:
                self._fail(sink, "damaged", wrong)
                self._break(sink)
            elif pieces[-1].last and sink.writer is None and self._fits_whole(sink.entry):
                data = b"".join(_data(pieces, chunks))
                aside.append((sink, writers.submit(self._target.write_small, sink.entry, data)))
            else:
                self._write(sink, pieces, chunks)
        for sink, future in aside:
            self._settle(sink, future.result)

    def _fits_whole(self, entry: Entry) -> bool:
        """Say whether the file may be put together in memory: holes, which a batch takes for nothing, count here."""
        return not self._target.one_by_one and entry.size <= _BATCH_BYTES

    def _write(self, sink: _Sink, pieces: list[_Piece], chunks: dict[bytes, bytes | str]) -> None:
        try:
            if sink.writer is None:
                sink.writer = self._target.create(sink.entry)
            for data in _data(pieces, chunks):
                sink.writer.write(memoryview(data), sink.at)
                sink.at += len(data)
                self._progress.check()
        except UnsafePath as error:
            self._fail(sink, "unsafe-path", str(error))
        except OSError as error:
            self._fail(sink, "write-failed", error.strerror or str(error))
        else:
            if pieces[-1].last:
                writer, sink.writer = sink.writer, None
                self._settle(sink, partial(self._end, writer) if self._target.one_by_one else writer.commit)
        if sink.failed:
            self._break(sink)

    def _end(self, writer: Writer) -> list[Problem]:
        """Commit, and show meanwhile that the work lives: a program may build indexes for hours behind its last byte.

        A cancel ends the program.
        """
        with halt.threads(1, "end") as executor:
            future = executor.submit(writer.commit)
            try:
                while wait([future], timeout=_ALIVE_S).not_done:
                    self._progress.check()
            except BaseException:
                writer.abort()
                raise
        return future.result()

    def _settle(self, sink: _Sink, ending: Callable[[], list[Problem]]) -> None:
        entry = sink.entry
        try:
            problems = ending()
        except UnsafePath as error:
            problems = [Problem(entry.path, "unsafe-path", str(error))]
        except OSError as error:
            problems = [Problem(entry.path, "write-failed", error.strerror or str(error))]
        self.problems += problems
        self._progress.add(entries=1, bytes=entry.size)
        if any(problem.lost for problem in problems):
            sink.failed = True
        else:
            self.bytes += entry.size
            self._done.append(entry)

    def _fail(self, sink: _Sink, reason: str, detail: str) -> None:
        sink.failed = True
        self._abort(sink)
        self.problems.append(Problem(sink.entry.path, reason, detail))
        self._progress.add(entries=1)

    def _break(self, sink: _Sink) -> None:
        if self._target.one_by_one:
            self._broken.add(self._target.chain(sink.entry.path))

    def _abort(self, sink: _Sink) -> None:
        writer, sink.writer = sink.writer, None
        if writer is not None:
            writer.abort()


def _pieces(files: Sequence[Entry]) -> Iterator[_Piece]:
    for number, entry in enumerate(files):
        if not entry.extents:
            yield _Piece(number, None, last=True)
        for at, extent in enumerate(entry.extents, 1):
            yield _Piece(number, extent, last=at == len(entry.extents))


def _batches(pieces: Iterable[_Piece]) -> Iterator[list[_Piece]]:
    """Cut the pieces into runs that fit into memory; holes take none."""
    batch: list[_Piece] = []
    size = 0
    for piece in pieces:
        batch.append(piece)
        size += piece.extent.length if piece.extent is not None and piece.extent.id else 0
        if size >= _BATCH_BYTES or len(batch) >= _BATCH_EXTENTS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _wrong(entry: Entry, pieces: list[_Piece], chunks: dict[bytes, bytes | str]) -> str:
    """Return what is wrong with a file's pieces, nothing when all is well."""
    if entry.size != sum(extent.length for extent in entry.extents):
        return "its listing contradicts itself"
    for extent in (piece.extent for piece in pieces if piece.extent is not None and piece.extent.id):
        chunk = chunks.get(extent.id, nowhere(extent.id))
        if isinstance(chunk, str):
            return chunk
        if len(chunk) != extent.length:
            return "its listing contradicts itself"
    return ""


def _data(pieces: list[_Piece], chunks: dict[bytes, bytes | str]) -> Iterator[bytes]:
    """Yield the content of pieces that nothing is wrong with."""
    for extent in (piece.extent for piece in pieces if piece.extent is not None):
        if extent.id:
            chunk = chunks[extent.id]
            assert isinstance(chunk, bytes)
            yield chunk
        else:
            zeros = bytes(min(extent.length, _HOLE_BYTES))
            for at in range(0, extent.length, _HOLE_BYTES):
                yield zeros[: extent.length - at]


def _read(storage: Storage, first: Place, length: int) -> bytes:
    return read_range(storage, first.head, first.slot_at, length)
