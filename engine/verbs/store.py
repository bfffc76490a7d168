"""Read the entries of one unit and store what the vault does not hold: the work of a backup."""

from typing import NamedTuple

from engine import halt
from engine.chunker import Chunker
from engine.entries import Entry, Extent, Kind, Problem
from engine.index import encode_segment
from engine.keys import ID_BYTES
from engine.pack import DATA, PackWriter
from engine.progress import Progress
from engine.sources.port import Reader, Source, Span
from engine.storage.throttle import SLICE_BYTES, unpaced
from engine.vault import Vault

_BATCH_FILES = 512
_BATCH_BYTES = 8 << 20
_GROUP_BYTES = 64 << 20
_READ_BYTES = 4 << 20
_TRIES = 2


class _Small(NamedTuple):
    """A small file that was read and waits for its batch."""

    entry: Entry
    data: bytes
    ident: bytes

    def likeness(self) -> tuple[bytes, bytes, int]:
        """Return what files that resemble each other have alike: their kind, their name, about their size."""
        name = self.entry.path.rpartition(b"/")[2]
        return name.rpartition(b".")[2], name, len(self.data)


class Store:
    """Stores the content of entries, one unit long. Close it to make everything durable and listed in the index.

    `bytes_read`, `bytes_new` and `bytes_stored` count. Safe to run twice: what the first run stored is found again.
    """

    def __init__(self, vault: Vault, source: Source, profile: str, progress: Progress) -> None:
        self._vault, self._source, self._progress = vault, source, progress
        self._chunker = Chunker(profile, vault.keys.chunker_seed)
        self._executor = halt.threads(1, "pack")
        self._writer = PackWriter(vault.keys, DATA, vault.storage.put, executor=self._executor)
        self._own: set[bytes] = set()
        self._batch: list[_Small] = []
        self._batch_bytes = 0
        self._new: list[_Small] = []
        self._new_bytes = 0
        self.problems: list[Problem] = []
        self.bytes_read = self.bytes_new = self.bytes_stored = 0

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *exc: object) -> None:
        self._executor.shutdown()

    def read(self, entry: Entry) -> Entry | None:
        """Return the entry as read, None when it became a problem. Extents of small files come with their batch."""
        if entry.kind != Kind.FILE:
            filled = self._source.fill(entry)
            return self._reported(filled) if isinstance(filled, Problem) else filled
        if entry.size < self._chunker.whole_below:
            self._vault.reading(entry.size)
            small = self._source.read_small(entry, self._chunker.whole_below)
            if isinstance(small, Problem):
                return self._reported(small)
            if small is not None:
                return self._gather(*small)
        return self.read_part(entry, 0, None)

    def read_part(self, entry: Entry, offset: int, length: int | None) -> Entry | None:
        """Return a large file, or `length` bytes of it from `offset`, with its extents; `size` is what was read.

        The last part goes on to the end that the file has now.
        """
        if length is not None and offset + length >= entry.size:
            length = None
        for attempt in range(_TRIES):
            opened = self._source.open(entry)
            if isinstance(opened, Problem):
                return self._reported(opened)
            try:
                with opened as reader:
                    row = self._read_open(reader, offset, length)
                    if not reader.changed():
                        return row
            except OSError as error:
                return self._reported(Problem(entry.path, "unreadable", error.strerror or str(error)))
            entry = row if attempt + 1 < _TRIES else entry
        self.problems.append(Problem(row.path, "changed", "it changed while it was read", lost=False))
        return row

    def close(self) -> None:
        """Store all that is pending: packs first, then the segment that lists them."""
        self.flush()
        self._end_group()
        sealed = self._writer.close()
        self.bytes_stored += sum(pack.head.size for pack in sealed)
        for plain in encode_segment(sealed):
            self.bytes_stored += self._vault.index.add(plain)

    def flush(self) -> None:
        """Give the gathered small files their extents; the new ones join their group."""
        self._progress.add(bytes=self._batch_bytes)
        batch, self._batch, self._batch_bytes = self._batch, [], 0
        known = self._vault.index.known([small.ident[:ID_BYTES] for small in batch]).tolist() if batch else []
        for small, held in zip(batch, known, strict=True):
            short = small.ident[:ID_BYTES]
            small.entry.extents = [Extent(short, len(small.data))]
            if not held and short not in self._own:
                self._own.add(short)
                self._new.append(small)
                self._new_bytes += len(small.data)
        if self._new_bytes >= _GROUP_BYTES:
            self._end_group()
        self._progress.check()

    def _end_group(self) -> None:
        """Store the new small files, like beside like: zstd finds in one what it has seen in the other."""
        new, self._new = self._new, []
        self.bytes_new += self._new_bytes
        self._new_bytes = 0
        for small in sorted(new, key=_Small.likeness):
            self._writer.add(small.ident, small.data)

    def _reported(self, problem: Problem) -> Entry | None:
        self.problems.append(problem)
        return None

    def _gather(self, entry: Entry, data: bytes) -> Entry:
        self.bytes_read += len(data)
        entry.size = len(data)
        if data:
            self._batch.append(_Small(entry, data, self._vault.keys.chunk_id(data)))
            self._batch_bytes += len(data)
            if len(self._batch) >= _BATCH_FILES or self._batch_bytes >= _BATCH_BYTES:
                self.flush()
        return entry

    def _add(self, ident: bytes, data: bytes | memoryview) -> None:
        short = ident[:ID_BYTES]
        if short not in self._own:
            self._own.add(short)
            self.bytes_new += len(data)
            self._writer.add(ident, data)

    def _read_open(self, reader: Reader, offset: int, length: int | None) -> Entry:
        entry = reader.entry
        end = entry.size if length is None else min(entry.size, offset + length)
        extents: list[Extent] = []
        for span in reader.spans(offset, end):
            if span.hole:
                extents.append(Extent(b"", span.length))
            else:
                self._read_span(reader, span, extents)
        entry.extents = extents
        entry.size = sum(extent.length for extent in extents)
        return entry

    def _read_span(self, reader: Reader, span: Span, extents: list[Extent]) -> None:
        at, end = span.offset, span.offset + span.length

        def read(view: memoryview) -> int:
            nonlocal at
            count = self._readinto(reader, view[: min(len(view), end - at, _READ_BYTES)], at) if at < end else 0
            at += count
            self.bytes_read += count
            self._progress.add(bytes=count)
            self._progress.check()  # a window of a slow stream takes long
            return count

        for chunks in self._chunker.windows(read):
            idents = [self._vault.keys.chunk_id(chunk) for chunk in chunks]
            known = self._vault.index.known([ident[:ID_BYTES] for ident in idents]).tolist()
            for ident, chunk, held in zip(idents, chunks, known, strict=True):
                extents.append(Extent(ident[:ID_BYTES], len(chunk)))
                if not held:
                    self._add(ident, chunk)
            self._progress.check()

    def _readinto(self, reader: Reader, view: memoryview, at: int) -> int:
        """Read what the source has, in slices where a pace is kept."""
        if self._vault.reading is unpaced:
            return reader.readinto(view, at)
        done = 0
        while done < len(view):
            part = view[done : done + SLICE_BYTES]
            self._vault.reading(len(part))
            count = reader.readinto(part, at + done)
            self._progress.check()
            if not count:
                break
            done += count
        return done
