"""Read one version of an object, in pieces; what a failed request on it means."""

import errno
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

from engine import halt
from engine.connections.keypaths import key_of
from engine.entries import Entry, Problem
from engine.errors import NotFound, ShortRead, StorageError
from engine.sources.port import Span

if TYPE_CHECKING:
    from engine.connections.bucket import BucketClient, Head

PIECE_BYTES = 8 << 20  # larger objects are read in ranges of so many bytes
PARTED_BYTES = 256 << 20  # larger ones are read by several workers, part by part (engine.chunker)
_OVERWRITTEN = "it was overwritten while it was read: the next backup reads it"


class ObjectReader:
    """One version of an object (the Reader port), the next piece on its way while one is used. `data` is all of it.

    An object that another version replaces while it is read ends early and is `changed`, so that it is read again; for
    one that is in `overwritten` already, or one that is read in parts, reading fails: bytes of two versions are never
    put together.
    """

    def __init__(
        self, client: "BucketClient", entry: Entry, head: "Head", overwritten: set[bytes], *, data: bytes | None = None
    ) -> None:
        self.entry = entry
        self._client, self._etag, self._data = client, head.etag, data
        self._key = key_of(entry.path)
        self._overwritten = overwritten
        self._changed = False
        self._size = self._end = entry.size
        self._pieces: dict[int, Future[bytes]] = {}
        self._executor: ThreadPoolExecutor | None = None

    def __enter__(self) -> "ObjectReader":
        return self

    def __exit__(self, *exc: object) -> None:
        if self._executor is not None:
            self._executor.shutdown(wait=False, cancel_futures=True)

    def spans(self, start: int, end: int) -> list[Span]:
        """Return one span: objects have no holes."""
        end = self._end = min(end, self._size)
        return [Span(start, end - start, hole=False)] if end > start else []

    def readinto(self, view: memoryview, offset: int) -> int:
        """Read from the piece that holds `offset`. Raises OSError, and what object_problem raises."""
        if offset >= self._size or self._changed:
            return 0
        piece, at = self._data, offset
        if piece is None:
            number, at = divmod(offset, PIECE_BYTES)
            piece = self._piece(number)
        count = max(min(len(view), len(piece) - at), 0)
        view[:count] = memoryview(piece)[at : at + count]
        return count

    def changed(self) -> bool:
        """Say whether the object was overwritten before all of it was read."""
        return self._changed

    def _piece(self, number: int) -> bytes:
        for wanted in (number, number + 1):
            if wanted not in self._pieces and (wanted == number or wanted * PIECE_BYTES < self._end):
                self._executor = self._executor or halt.threads(1, "piece")
                self._pieces[wanted] = self._executor.submit(self._get, wanted)
        for past in [known for known in self._pieces if known < number]:
            del self._pieces[past]
        try:
            return self._pieces[number].result()
        except StorageError as error:
            problem = object_problem(self.entry, error)
            if problem.reason not in ("changed", "vanished"):
                raise OSError(errno.EIO, problem.detail) from error
            if self.entry.path in self._overwritten or self._size > PARTED_BYTES:
                raise OSError(errno.ESTALE, _OVERWRITTEN) from error
        self._overwritten.add(self.entry.path)
        self._changed = True
        return b""

    def _get(self, number: int) -> bytes:
        start = number * PIECE_BYTES
        length = min(PIECE_BYTES, self._size - start)
        _, data = self._client.get(self._key, start=start, length=length, etag=self._etag)
        if len(data) != length:
            raise ShortRead(f"{self._key}: {len(data)} bytes came instead of {length}")
        return data


def object_problem(entry: Entry, error: StorageError) -> Problem:
    """Return what a failed request means for this object alone; raise what concerns the whole bucket.

    Raises SourceMissing, SourceDenied, SourceUnavailable.
    """
    from engine.connections import bucket

    text = str(error.args[0])
    if bucket.is_whole(error):
        with bucket.as_source():
            raise error
    if isinstance(error, NotFound):
        return Problem(entry.path, "vanished", "it was deleted after it was listed", lost=False)
    if isinstance(error, bucket.Archived):
        return Problem(entry.path, "archived", text, lost=False)
    if isinstance(error, bucket.Overwritten):
        return Problem(entry.path, "changed", _OVERWRITTEN)
    return Problem(entry.path, "unreadable", text)
