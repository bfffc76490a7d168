"""Sort more rows than memory holds: sorted runs in temporary files, merged while they are read."""

import heapq
import tempfile
import threading
from collections.abc import Iterable, Iterator
from typing import IO, NamedTuple

import msgspec

from engine.errors import Canceled

RUN_ROWS = 100_000  # about 40 MB as Python holds them
_FAN = 64  # so many files are open at once
_BATCH = 512


class Row(NamedTuple):
    """One object as the sorter keeps it: the first item orders. `archived` names its class when it can't be read."""

    sort_key: bytes
    size: int
    mtime_ns: int
    inode: int
    archived: str = ""


class Sorter:
    """Takes rows in any order, from any thread; `merged` gives them back by their key.

    Memory: one run of `run_rows`, and while merging a batch per run. The temporary files have no names: they are gone
    with the process, whatever ends it. Close it.
    """

    def __init__(self, *, run_rows: int = RUN_ROWS) -> None:
        self._run_rows = run_rows
        self._rows: list[Row] = []
        self._runs: list[IO[bytes]] = []
        self._mutex = threading.Lock()
        self._stopped = False
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(list[Row])

    def __enter__(self) -> "Sorter":
        return self

    def __exit__(self, *exc: object) -> None:
        while self._runs:
            self._runs.pop().close()

    def add(self, rows: Iterable[Row]) -> None:
        """Take some rows. Raises OSError when the temporary folder is full, Canceled after `stop`."""
        with self._mutex:
            if self._stopped:
                raise Canceled("the listing was stopped")
            self._rows += rows
            if len(self._rows) >= self._run_rows:
                self._spill()

    def stop(self) -> None:
        """Take no more: who still adds from another thread ends."""
        with self._mutex:
            self._stopped = True

    def merged(self) -> Iterator[Row]:
        """Yield all rows in order; add no more."""
        self._rows.sort()
        yield from heapq.merge(*(self._read(run) for run in self._runs), self._rows)

    def _spill(self) -> None:
        self._rows.sort()
        rows, self._rows = self._rows, []
        self._runs.append(self._write(rows))
        if len(self._runs) >= _FAN:
            merged = self._write(heapq.merge(*(self._read(run) for run in self._runs)))
            while self._runs:
                self._runs.pop().close()
            self._runs.append(merged)

    def _write(self, rows: Iterable[Row]) -> IO[bytes]:
        file = tempfile.TemporaryFile()  # noqa: SIM115  # closed with this object
        batch: list[Row] = []
        for row in rows:
            batch.append(row)
            if len(batch) == _BATCH:
                self._append(file, batch)
                batch.clear()
        self._append(file, batch)
        file.flush()
        return file

    def _append(self, file: IO[bytes], batch: list[Row]) -> None:
        encoded = self._encoder.encode(batch)
        file.write(len(encoded).to_bytes(4, "big"))
        file.write(encoded)

    def _read(self, file: IO[bytes]) -> Iterator[Row]:
        file.seek(0)
        while head := file.read(4):
            yield from self._decoder.decode(file.read(int.from_bytes(head, "big")))
