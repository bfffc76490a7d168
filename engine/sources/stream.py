"""Streams as files: read once from the front, worth nothing without a proven end."""

import contextlib
from collections.abc import Callable
from typing import Protocol

from engine.entries import Entry, Kind
from engine.errors import SourceIncomplete
from engine.sources.port import STREAM_BYTES, STREAM_NS, Span


class Producer(Protocol):
    """What a stream's bytes come from: a program's output, a cursor. `readinto` fills the view; 0 at the end.

    `close` ends what produces it, whether the end was reached or not.
    """

    def readinto(self, view: memoryview) -> int: ...

    def close(self) -> None: ...


class StreamReader:
    """One open stream (the Reader port). `prove` raises unless the end that was reached is the true one.

    `prove` may return True for an end that is complete but saw something change on the way: the stream is then read
    once more, and reported as changed when that happens again.
    """

    def __init__(self, entry: Entry, producer: Producer, prove: Callable[[], bool | None]) -> None:
        self.entry = entry
        self.entry.size = STREAM_BYTES
        self._producer, self._prove = producer, prove
        self._at = 0

    def __enter__(self) -> "StreamReader":
        return self

    def __exit__(self, *exc: object) -> None:
        if exc[0] is None:
            self._producer.close()
        else:
            with contextlib.suppress(Exception):  # the first error is the one to tell
                self._producer.close()

    def readinto(self, view: memoryview, offset: int) -> int:
        """Read on; `offset` must be where the last call ended."""
        if offset != self._at:
            raise SourceIncomplete(f"a stream can't be read at {offset}: it stands at {self._at}")
        count = self._producer.readinto(view)
        self._at += count
        return count

    def spans(self, start: int, end: int) -> list[Span]:
        """Return one span without an end."""
        return [Span(start, end - start, hole=False)]

    def changed(self) -> bool:
        """Raise unless the end is proven; say whether the source changed while it was read."""
        return bool(self._prove())


def stream_entry(path: bytes, *, mode: int = 0o600) -> Entry:
    """Return a stream as a walk yields it: a file of unknown size that every backup reads again."""
    return Entry(path, Kind.FILE, mode, mtime_ns=STREAM_NS)
