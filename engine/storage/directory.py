"""A directory as a store: the embedded default, which needs nothing but a file system."""

import contextlib
import datetime as dt
import errno
import fcntl
import os
import secrets
import stat
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from engine.errors import (
    Altered,
    Forbidden,
    IntegrityError,
    Locked,
    NotFound,
    ShortRead,
    StorageError,
    StorageFull,
    Unavailable,
    Unreachable,
)
from engine.storage.keys import beyond_end, check_key, check_prefix, check_range
from engine.storage.passing import checked
from engine.storage.port import Bytes, Refusal, Storage, Stored
from engine.storage.throttle import PIECE_BYTES, SLICE_BYTES, Pace, unpaced

TEMPORARY = ".tmp"
LOCKS = ".locks"
GUARD = ".guard"

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_ATTEMPTS = 100
_WRITE_BYTES = 8 << 20
_GONE = (errno.ENOENT, errno.ENOTDIR)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_DENIED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ELOOP)


class Directory:
    """Keep each object as one file named by its key below `root`.

    A put writes a temporary file under `.tmp`, syncs it, renames it and syncs the folder, so that a crash leaves the
    whole object or none, and at most a temporary file that `sweep_temporary` removes. Links inside the root are never
    followed. Retention is application-level: lock ends are files under `.locks`, and `delete` keeps an object while
    `clock()` is before its end; without a clock it keeps every object that has a lock. `create` makes the root when
    it is missing; otherwise a missing root (a disk that is not mounted) raises Unreachable.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        create: bool = False,
        clock: Callable[[], dt.datetime] | None = None,
        pace: Pace = unpaced,
    ) -> None:
        self.root = Path(root)
        self._create = create
        self._clock = clock
        self._pace = pace
        self._mutex = threading.Lock()
        self._root_fd = -1

    def __del__(self) -> None:
        if getattr(self, "_root_fd", -1) >= 0:
            os.close(self._root_fd)

    def put(self, key: str, data: Bytes, *, locked_until: dt.datetime | None = None, sha256: str = "") -> None:
        """Store the object; other bytes over a locked object raise Locked."""
        check_key(key)
        with _translated(key):
            same = self._has_same(key, data)
            self._check_free(key, same=same)
            if locked_until is not None:
                # The lock goes first: a crash between the two leaves a lock without an object, which harms nothing.
                with self._guarded():
                    self._lengthen(key, locked_until)
            self._keep(key, lambda: [data], same=same)

    def get(self, key: str, *, offset: int = 0, length: int | None = None) -> bytes:
        """Return the range of the file."""
        check_key(key)
        check_range(offset, length)
        with _translated(key):
            fd = self._open_object(key)
            try:
                size = os.fstat(fd).st_size
                end = size if length is None else offset + length
                if max(offset, end) > size:
                    raise beyond_end(key, size, max(offset, end))
                return self._read(fd, key, offset, end - offset)
            finally:
                os.close(fd)

    def pieces(self, key: str) -> Iterator[Bytes]:
        """Yield the file a MiB at a time."""
        check_key(key)
        with _translated(key):
            fd = self._open_object(key)
            try:
                size, at = os.fstat(fd).st_size, 0
                while at < size:
                    piece = self._read(fd, key, at, min(PIECE_BYTES, size - at))
                    at += len(piece)
                    yield piece
            finally:
                os.close(fd)

    def relay(self, key: str, source: Storage, *, size: int, sha256: str) -> None:
        """Write what comes aside, and rename it when it is what it should be."""
        check_key(key)
        with _translated(key):
            same = self._has(key, size, sha256)
            self._check_free(key, same=same)
            self._keep(key, lambda: checked(key, source.pieces(key), size=size, sha256=sha256), same=same)

    def scan(self, prefix: str, *, after: str = "") -> Iterator[Stored]:
        """Yield the objects, reading one folder at a time; a folder's names are held in memory, the tree is not."""
        check_prefix(prefix)
        return self._scan(prefix, after)

    def delete(self, keys: Sequence[str]) -> list[Refusal]:
        """Delete the files and the folders that this empties; durable when it returns."""
        for key in keys:
            check_key(key)
        refusals = []
        with _translated(keys[0] if keys else ""), self._guarded():
            parents: dict[str, None] = {}
            for key in keys:
                refusal = self._refusal(key)
                if refusal is None:
                    self._unlink(key)
                    parents[key.rpartition("/")[0]] = None
                else:
                    refusals.append(refusal)
            for parent in parents:
                self._drop_empty(parent)
        return refusals

    def extend_lock(self, key: str, *, until: dt.datetime) -> None:
        """Lengthen the lock kept beside the object."""
        check_key(key)
        with _translated(key):
            os.close(self._open_object(key))
            with self._guarded():
                self._lengthen(key, until)

    def locked_until(self, key: str) -> dt.datetime | None:
        """Return the lock's end; raises IntegrityError for a lock file that is no moment."""
        check_key(key)
        with _translated(key):
            os.close(self._open_object(key))
            return self._lock_end(key)

    def sweep_temporary(self) -> int:
        """Remove what writers that died left under `.tmp`, and return how many files that were.

        A living writer holds a lock on its file, so this may run at any time, also beside writers.
        """
        swept = 0
        with _translated(TEMPORARY), contextlib.suppress(FileNotFoundError), self._folder(TEMPORARY) as folder:
            for name in os.listdir(folder):
                with contextlib.suppress(FileNotFoundError, BlockingIOError):
                    fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
                    try:
                        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                        os.unlink(name, dir_fd=folder)
                        swept += 1
                    finally:
                        os.close(fd)
        return swept

    def _root(self) -> int:
        with self._mutex:
            if self._root_fd < 0:
                if self._create:
                    self._make_root()
                try:
                    self._root_fd = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                except OSError as error:
                    if error.errno in _GONE:
                        raise Unreachable(f"there is no folder {self.root}") from error
                    raise
            return self._root_fd

    def _make_root(self) -> None:
        """Make the root and the folders above it, each durable in the one above."""
        for folder in (*reversed(self.root.absolute().parents), self.root.absolute()):
            if folder.is_dir():
                continue
            with contextlib.suppress(FileExistsError):
                folder.mkdir()
                above = os.open(folder.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                try:
                    _sync(above)
                finally:
                    os.close(above)

    @contextlib.contextmanager
    def _folder(self, path: str, *, make: bool = False) -> Iterator[int]:
        """Open a folder below the root component by component, without following links."""
        # Not a duplicate: that would share the position of a scan of the root with all others.
        fd = os.open(".", _FOLDER, dir_fd=self._root())
        try:
            for name in path.split("/") if path else ():
                try:
                    inner = os.open(name, _FOLDER, dir_fd=fd)
                except FileNotFoundError:
                    if not make:
                        raise
                    with contextlib.suppress(FileExistsError):
                        os.mkdir(name, dir_fd=fd)
                    # Also when another writer made it: its sync may not have happened yet.
                    _sync(fd)
                    inner = os.open(name, _FOLDER, dir_fd=fd)
                os.close(fd)
                fd = inner
            yield fd
        finally:
            os.close(fd)

    def _check_free(self, key: str, *, same: bool) -> None:
        """Raise Locked when other bytes than those that come are locked under the key."""
        if not same and (end := self._lock_end(key)) is not None and self._in_force(end):
            raise Locked(f"{key} is locked until {end.isoformat()}", until=end)

    def _keep(self, key: str, pieces: Callable[[], Iterable[Bytes]], *, same: bool) -> None:
        if same:
            self._sync_parent(key)
        else:
            self._write(key, pieces)

    def _write(self, path: str, pieces: Callable[[], Iterable[Bytes]]) -> None:
        """Write aside, sync, rename, sync; anew when a delete removed the emptied folder in between."""
        parent, _, name = path.rpartition("/")
        for attempt in range(_ATTEMPTS):
            try:
                with self._folder(TEMPORARY, make=True) as aside, self._written_aside(aside, pieces()) as temporary:
                    while True:
                        try:
                            with self._folder(parent, make=True) as folder:
                                os.rename(temporary, name, src_dir_fd=aside, dst_dir_fd=folder)
                                _sync(folder)
                            return
                        except FileNotFoundError:
                            os.stat(temporary, dir_fd=aside)
            except FileNotFoundError:
                if attempt == _ATTEMPTS - 1:
                    raise
            except (NotADirectoryError, IsADirectoryError) as error:
                refused = Forbidden(f"{path}: another file, folder or link has this name")
                refused.advice = "Let nothing but this program write into the folder"
                raise refused from error

    @contextlib.contextmanager
    def _written_aside(self, aside: int, pieces: Iterable[Bytes]) -> Iterator[str]:
        name = f"{os.getpid()}-{secrets.token_hex(8)}"
        fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=aside)
        try:
            # Not every network file system has locks; there a sweep finds nothing locked, and the put starts anew.
            with contextlib.suppress(OSError):
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            step = _WRITE_BYTES if self._pace is unpaced else SLICE_BYTES
            for piece in pieces:
                with memoryview(piece) as view, view.cast("B") as octets:
                    at = 0
                    while at < len(octets):
                        self._pace(min(step, len(octets) - at))
                        at += os.write(fd, octets[at : at + step])
            _sync(fd)
            yield name
        finally:
            os.close(fd)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name, dir_fd=aside)

    def _open_object(self, path: str) -> int:
        parent, _, name = path.rpartition("/")
        with self._folder(parent) as folder:
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise NotFound(f"no object {path}: not a regular file")
        return fd

    def _read(self, fd: int, key: str, offset: int, length: int) -> bytes:
        parts = []
        step = max(length, 1) if self._pace is unpaced else SLICE_BYTES
        while length:
            self._pace(min(step, length))
            part = os.pread(fd, min(step, length), offset)
            if not part:
                raise ShortRead(f"{key} ended {length} bytes early")
            parts.append(part)
            offset += len(part)
            length -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _has_same(self, key: str, data: Bytes) -> bool:
        """Say whether the object is there with these bytes: a rename over it could hide it from a running scan."""
        try:
            fd = self._open_object(key)
        except (FileNotFoundError, NotADirectoryError, NotFound):
            return False
        try:
            with memoryview(data) as view:
                return os.fstat(fd).st_size == view.nbytes and os.pread(fd, view.nbytes + 1, 0) == data
        finally:
            os.close(fd)

    def _has(self, key: str, size: int, sha256: str) -> bool:
        """Say whether the object is there with bytes of this size and hash."""
        try:
            for _ in checked(key, self.pieces(key), size=size, sha256=sha256):
                pass
        except (NotFound, Altered):
            return False
        return True

    def _sync_parent(self, key: str) -> None:
        """Make an object durable that another writer may have renamed a moment ago."""
        with contextlib.suppress(FileNotFoundError), self._folder(key.rpartition("/")[0]) as folder:
            _sync(folder)

    def _scan(self, prefix: str, after: str) -> Iterator[Stored]:
        base = prefix.rpartition("/")[0]
        pending: list[Iterator[str | Stored]] = [iter([base])]
        with _translated(prefix):
            while pending:
                item = next(pending[-1], None)
                if item is None:
                    pending.pop()
                elif isinstance(item, Stored):
                    yield item
                else:
                    pending.append(iter(self._list(item, prefix, after)))

    def _list(self, path: str, prefix: str, after: str) -> list[str | Stored]:
        """Return a folder's objects and sub-folders in key order, without those that cannot matter."""
        found: list[tuple[str, str | Stored]] = []
        top = f"{path}/" if path else ""
        with (
            contextlib.suppress(FileNotFoundError, NotADirectoryError),
            self._folder(path) as folder,
            os.scandir(folder) as entries,
        ):
            for entry in entries:
                key = top + entry.name
                if entry.name.startswith("."):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    inside = f"{key}/"
                    related = inside.startswith(prefix) or prefix.startswith(inside)
                    if related and (inside > after or after.startswith(inside)):
                        found.append((inside, key))
                elif key.startswith(prefix) and key > after and entry.is_file(follow_symlinks=False):
                    with contextlib.suppress(FileNotFoundError):
                        found.append((key, Stored(key, entry.stat(follow_symlinks=False).st_size)))
        return [item for _, item in sorted(found)]

    def _unlink(self, key: str) -> None:
        parent, _, name = key.rpartition("/")
        for path in (parent, f"{LOCKS}/{parent}" if parent else LOCKS):
            with contextlib.suppress(FileNotFoundError, NotADirectoryError), self._folder(path) as folder:
                os.unlink(name, dir_fd=folder)

    def _drop_empty(self, path: str) -> None:
        """Make deletes in a folder durable and remove the folder, and those above, if they are empty.

        rmdir is atomic: a put either has its file in the folder, or finds the folder gone and makes it anew.
        """
        while True:
            with contextlib.suppress(FileNotFoundError, NotADirectoryError), self._folder(path) as folder:
                _sync(folder)
            if not path:
                return
            path, _, name = path.rpartition("/")
            try:
                with self._folder(path) as folder:
                    os.rmdir(name, dir_fd=folder)
            except FileNotFoundError:
                continue
            except OSError as error:
                if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                    return
                raise

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        """Keep changes of locks and deletes apart, between threads and between processes."""
        fd = os.open(GUARD, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=self._root())
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def _lock_end(self, key: str) -> dt.datetime | None:
        try:
            fd = self._open_object(f"{LOCKS}/{key}")
        except (FileNotFoundError, NotADirectoryError):
            return None
        try:
            return dt.datetime.fromisoformat(os.pread(fd, 64, 0).decode("ascii"))
        except ValueError as error:
            raise IntegrityError(f"the lock of {key} is damaged") from error
        finally:
            os.close(fd)

    def _lengthen(self, key: str, until: dt.datetime) -> None:
        if until.tzinfo is None:
            raise ValueError(f"the end of a lock needs a time zone: {until}")
        end = self._lock_end(key)
        if end is None or end < until:
            moment = until.astimezone(dt.UTC).isoformat().encode()
            self._write(f"{LOCKS}/{key}", lambda: [moment])

    def _in_force(self, end: dt.datetime) -> bool:
        return self._clock is None or self._clock() < end

    def _refusal(self, key: str) -> Refusal | None:
        try:
            end = self._lock_end(key)
        except IntegrityError as error:
            return Refusal(key, str(error), locked=True)
        if end is None or not self._in_force(end):
            return None
        try:
            os.close(self._open_object(key))
        except (FileNotFoundError, NotADirectoryError, NotFound):
            return None
        return Refusal(key, f"locked until {end.isoformat()}", locked=True)


def _sync(fd: int) -> None:
    """Force a file or a folder to the disk; on macOS plain fsync stops at the drive's cache."""
    full = getattr(fcntl, "F_FULLFSYNC", None)
    if full is not None:
        with contextlib.suppress(OSError):
            fcntl.fcntl(fd, full)
            return
    os.fsync(fd)


@contextlib.contextmanager
def _translated(key: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _meaning(error, key) from error


def _meaning(error: OSError, key: str) -> StorageError:
    text = f"{key}: {error.strerror or error}"
    if error.errno in _GONE or error.errno == errno.EISDIR:
        return NotFound(f"no object {key}")
    if error.errno in _FULL:
        return StorageFull(text)
    if error.errno in _DENIED:
        return Forbidden(text)
    return Unavailable(text)
