"""A source that is too large to hold: made entry by entry, backed up in a process of its own.

`python -m tests.support.large <folder> <files> <sparse bytes>` backs it up twice into a vault in `folder` and writes,
as JSON, by how many bytes the peak memory grew beyond that of a small backup, and what the points hold.
"""

import json
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

from engine.entries import Entry, Kind, Problem
from engine.sources.port import BaseSource, Identity, Span
from engine.storage import Directory
from engine.verbs import backup
from tests.support.runs import backup_job, run_backup
from tests.support.vaults import Bench

ONE_FOLDER = 200_000
_DATA = b"the end of a sparse file"
_SECOND = 1_000_000_000


class SparseReader:
    """A file that is one hole but for its last bytes."""

    def __init__(self, entry: Entry) -> None:
        self.entry = entry

    def __enter__(self) -> "SparseReader":
        return self

    def __exit__(self, *exc: object) -> None: ...

    def readinto(self, view: memoryview, offset: int) -> int:
        data = _DATA[len(_DATA) - (self.entry.size - offset) :][: len(view)]
        view[: len(data)] = data
        return len(data)

    def spans(self, start: int, end: int) -> list[Span]:
        data = self.entry.size - len(_DATA)
        hole, rest = min(end, data) - start, end - max(start, data)
        spans = [Span(start, hole, hole=True)] if hole > 0 else []
        return [*spans, Span(max(start, data), rest, hole=False)] if rest > 0 else spans

    def changed(self) -> bool:
        return False


class Generated(BaseSource, frozen=True):
    """`files` empty files, of which ONE_FOLDER stand in one folder, and a sparse one of `sparse_bytes`."""

    files: int
    sparse_bytes: int

    def identity(self) -> Identity:
        return Identity("files", "host", ["/"])

    def check(self) -> None: ...

    def walk(self) -> Iterator[Entry | Problem]:
        for number in range(self.files):
            folder = max(number - ONE_FOLDER, -1) // 1000 + 1
            if number == 0 or (number >= ONE_FOLDER and (number - ONE_FOLDER) % 1000 == 0):
                yield Entry(b"folder%05d" % folder, Kind.DIRECTORY, 0o755, mtime_ns=_SECOND, inode=number)
            path = b"folder%05d/some file with a usual name %08d.txt" % (folder, number)
            yield Entry(path, Kind.FILE, 0o644, 1000, 1000, mtime_ns=_SECOND, ctime_ns=number, inode=number)
        if self.sparse_bytes:
            yield Entry(b"sparse", Kind.FILE, 0o644, size=self.sparse_bytes, mtime_ns=_SECOND)

    def fill(self, entry: Entry) -> Entry | Problem:
        return entry

    def open(self, entry: Entry) -> SparseReader | Problem:
        return SparseReader(entry)

    def read_small(self, entry: Entry, limit: int) -> tuple[Entry, bytes] | Problem | None:
        return entry, b""


def peak_bytes() -> int:
    """Return the most memory that this process ever had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def run(bench: Bench, source: Generated) -> backup.Outcome:
    """Back up once, through the port alone."""
    return run_backup(bench, backup_job(bench, source))  # type: ignore[arg-type] # the verb is written for any source


def main() -> None:
    folder, files, sparse_bytes = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    folder.mkdir()
    bench = Bench(Directory(folder))
    run(bench, Generated(files=2_000, sparse_bytes=3 << 20))
    before = peak_bytes()
    first = run(bench, Generated(files=files, sparse_bytes=sparse_bytes))
    second = run(bench, Generated(files=files, sparse_bytes=sparse_bytes))
    found = {
        "grown_bytes": peak_bytes() - before,
        "entries": second.stats.entries,
        "bytes": second.stats.bytes,
        "bytes_read": first.stats.bytes_read,
        "entries_read_again": second.stats.entries_read,
    }
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main()
