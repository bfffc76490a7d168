"""Reading one file of a host: the Reader of the files source, and the folders it goes through."""

import errno
import os

from engine.beneath import PLACE, open_beneath, split
from engine.entries import Entry
from engine.sources.port import Span

# O_NONBLOCK: opening a fifo that took a file's place must not hang.
READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | getattr(os, "O_NOCTTY", 0)
_NO_ATIME = getattr(os, "O_NOATIME", 0)
_BLOCK = 512
_SMALLEST_HOLE = 4096


class Folders:
    """The folder last read from, kept open: neighbours in a listing share it. For one thread; closes itself.

    `path` is that folder (None at first), `fd` its descriptor, owned by this object.
    """

    def __init__(self, roots: tuple[bytes, ...]) -> None:
        self._roots = roots
        self.path: bytes | None = None
        self.fd = -1

    def __del__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Close the folder, so that the next use opens it afresh."""
        self.path = None
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def get(self, parent: bytes) -> int:
        """Return a descriptor of the folder `parent`, open until the next call. Links below a root are not followed."""
        if self.path != parent:
            fd = self._open(parent)
            self.forget()
            self.path, self.fd = parent, fd
        return self.fd

    def _open(self, parent: bytes) -> int:
        root = next(
            (root for root in self._roots if not root or parent == root or parent.startswith(root + b"/")), None
        )
        # Outside every root stands only a root itself: the folders above it may be links.
        trusted = parent if root is None else split(root)[0]
        top = os.open(b"/" + trusted, PLACE & ~os.O_NOFOLLOW)
        try:
            return open_beneath(top, parent[len(trusted) :].lstrip(b"/"), PLACE)
        finally:
            os.close(top)


def open_file(folder: int, name: bytes, *, own: bool) -> int:
    """Open for reading without touching the access time where that is allowed (`own`: try it)."""
    if own and _NO_ATIME:
        try:
            return os.open(name, READ | _NO_ATIME, dir_fd=folder)
        except OSError as error:
            if error.errno != errno.EPERM:
                raise
    return os.open(name, READ, dir_fd=folder)


def has_holes(fd: int, size: int) -> bool:
    """Say whether a file that uses fewer blocks than its size has holes: it may be compressed, or stored inline."""
    if size < _SMALLEST_HOLE:
        return False
    try:
        return os.lseek(fd, 0, os.SEEK_HOLE) < size
    except OSError:
        return False


class FileReader:
    """One open file (the Reader port). Owns the descriptor."""

    def __init__(self, fd: int, entry: Entry, status: os.stat_result) -> None:
        self._fd = fd
        self._status = status
        self.entry = entry

    def __enter__(self) -> "FileReader":
        return self

    def __exit__(self, *exc: object) -> None:
        os.close(self._fd)

    def readinto(self, view: memoryview, offset: int) -> int:
        """Read from `offset` into `view`, as much as there is; return the count, 0 at the end. Raises OSError."""
        done = 0
        while done < len(view):
            count = os.preadv(self._fd, [view[done:]], offset + done)
            if not count:
                break
            done += count
        return done

    def spans(self, start: int, end: int) -> list[Span]:
        """Return data and holes in order, without gaps, from `start` to `end` or the end of the file."""
        end = min(end, self.entry.size)
        if start >= end:
            return []
        if self._status.st_blocks * _BLOCK >= self.entry.size:
            return [Span(start, end - start, hole=False)]
        try:
            return self._seek_spans(start, end)
        except OSError:
            return [Span(start, end - start, hole=False)]

    def _seek_spans(self, start: int, end: int) -> list[Span]:
        found: list[Span] = []
        at = start
        while at < end:
            try:
                data = min(os.lseek(self._fd, at, os.SEEK_DATA), end)
            except OSError as error:
                if error.errno != errno.ENXIO:
                    raise
                data = end  # a hole up to the end
            if data > at:
                found.append(Span(at, data - at, hole=True))
            if data >= end:
                break
            hole = min(os.lseek(self._fd, data, os.SEEK_HOLE), end)
            if hole <= data:
                raise OSError(errno.EIO, "the file changed under the search for holes")
            found.append(Span(data, hole - data, hole=False))
            at = hole
        return found

    def changed(self) -> bool:
        """Say whether size or times differ from those at opening."""
        now, then = os.fstat(self._fd), self._status
        return (now.st_size, now.st_mtime_ns, now.st_ctime_ns) != (then.st_size, then.st_mtime_ns, then.st_ctime_ns)
