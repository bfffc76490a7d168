"""A share of an SMB server as a source, read without an agent on it: Windows, Samba, a NAS."""

import errno
import threading
from collections import deque
from collections.abc import Generator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import msgspec

from engine.connections.smb import (
    PORT,
    SOURCE,
    TIMEOUT_S,
    Address,
    Facts,
    Shares,
    kept_attributes,
    to_ns,
    to_smb,
)
from engine.entries import TIME_MAX_NS, TIME_MIN_NS, Entry, Kind, Problem
from engine.errors import SourceError, SourceMissing
from engine.patterns import Selection
from engine.sources.port import BaseSource, Identity, Span
from engine.sources.prefetch import Prefetch
from engine.sources.smb_walk import SmbWalk
from engine.storage.throttle import Budget

if TYPE_CHECKING:
    from engine.connections.smb_messages import Handle
    from engine.connections.smb_share import Share

PARTS_ABOVE = 256 << 20  # larger files are read in parts by several workers (engine.chunker.PART_BYTES)
FILE_MODE, FOLDER_MODE = 0o600, 0o700
WALKERS_MAX = 64
_SMALL_BYTES = 128 << 10
_ON_THEIR_WAY = 4


class SmbSource(BaseSource, frozen=True, tag="smb", kw_only=True, dict=True):
    """Folders and files below `path` of one share. Paths of entries start at the share's top.

    `walkers` connections list ahead of the walk, and read small files ahead. With `security` owner, group and access
    list are kept with each entry. `include` and `exclude` are patterns (engine.patterns) on paths in the share.
    `encrypt` refuses a server that doesn't; without it messages are signed. `bytes_per_s` is a limit per worker.
    """

    server: str
    share: str
    user: str
    password: str
    domain: str = ""
    port: int = PORT
    path: str = ""
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    walkers: int = 4
    security: bool = False
    encrypt: bool = True
    bytes_per_s: int = 0
    timeout_s: float = TIMEOUT_S

    def __repr__(self) -> str:
        return f"SmbSource({self._address.shown!r}, path={self.path!r})"

    @cached_property
    def _address(self) -> Address:
        return Address(
            *(self.server, self.share, self.user, self.password, self.domain, self.port),
            encrypt=self.encrypt,
            timeout_s=self.timeout_s,
        )

    @cached_property
    def _shares(self) -> Shares:
        return Shares(self._address, SOURCE)

    @cached_property
    def _root(self) -> bytes:
        return self.path.replace("\\", "/").strip("/").encode("utf-8", "surrogatepass")

    @cached_property
    def _local(self) -> threading.local:
        return threading.local()

    @cached_property
    def _budget(self) -> Budget | None:
        return Budget(self.bytes_per_s) if self.bytes_per_s else None

    @cached_property
    def _small(self) -> "_SmallFiles":
        return _SmallFiles(self._shares, self._budget, security=self.security)

    @property
    def _prefetch(self) -> "Prefetch[tuple[Entry, bytes] | Problem | None]":
        """Return what this thread reads ahead."""
        try:
            return self._local.prefetch  # type: ignore[no-any-return] # set below
        except AttributeError:
            self._local.prefetch = Prefetch(self._small.read, threads=self.walkers)
            return self._prefetch

    def identity(self) -> Identity:
        """Return the share's address."""
        path = f"/{self._root.decode('utf-8', 'replace')}" if self._root else ""
        return Identity("smb", self.server, [self._address.shown + path])

    def options(self) -> dict[str, list[str]]:
        return {"include": list(self.include), "exclude": list(self.exclude)}

    def check(self) -> None:
        """Raise SourceMissing for a share or folder that is not there, SourceDenied, BadPattern, SourceError."""
        if not 1 <= self.walkers <= WALKERS_MAX:
            raise SourceError(f"{self.walkers} connections can't walk: give 1 to {WALKERS_MAX}")
        if any(name in (b".", b"..") for name in self._root.split(b"/")):
            raise SourceError(f"{self.path!r} is no folder of a share: give it without '.' and '..'")
        Selection(self.include, self.exclude)
        with self._shares.borrowed() as share:
            try:
                facts = share.facts(to_smb(self._root))
            except OSError as error:
                raise SourceMissing(
                    f"{self.path!r} of {self._address.shown} can't be reached: {error.strerror}"
                ) from error
        if not facts.is_folder:
            raise SourceMissing(f"{self.path!r} of {self._address.shown} is not a folder")

    def walk(self) -> Generator[Entry | Problem, None, None]:
        """Yield every entry in listing order, from the listings of folders alone."""
        selection = Selection(self.include, self.exclude) if self.include or self.exclude else None
        return SmbWalk(self._shares, self._root, selection, entry_of=entry_of).run(self.walkers)

    def expect(self, entries: Sequence[Entry]) -> None:
        """Begin to read the small files ahead, over connections of their own."""
        self._prefetch.expect(entry for entry in entries if entry.kind == Kind.FILE and entry.size <= _SMALL_BYTES)

    def fill(self, entry: Entry) -> Entry | Problem:
        """Return a folder again with fresh times and attributes."""
        try:
            with self._shares.borrowed() as share:
                handle = share.open(to_smb(entry.path), folder=True)
                try:
                    descriptor = share.security(handle) if self.security else b""
                finally:
                    share.close_handle(handle)
        except OSError as error:
            return smb_problem(entry.path, error)
        return _fresh(entry, handle.facts, descriptor)

    def read_small(self, entry: Entry, limit: int) -> tuple[Entry, bytes] | Problem | None:
        """Return a whole file, read ahead or now in one round trip."""
        future = self._prefetch.take(entry)
        if future is not None:
            found = future.result()
            if not isinstance(found, tuple) or len(found[1]) <= limit:
                return found
        return self._small.read(entry) if entry.size <= limit else None

    def open(self, entry: Entry) -> "SmbReader | Problem":
        """Open a file. Parts of a large one are only ever read of the version that was listed."""
        self._prefetch.take(entry)
        share = self._shares.take()
        try:
            handle = share.open(to_smb(entry.path))
            fresh = _fresh(entry, handle.facts, share.security(handle) if self.security else b"")
        except OSError as error:
            self._shares.give(share)
            return smb_problem(entry.path, error)
        reader = SmbReader(self._shares, share, handle, fresh, budget=self._budget)
        listed, now = (entry.size, entry.mtime_ns, entry.ctime_ns), (fresh.size, fresh.mtime_ns, fresh.ctime_ns)
        if entry.size > PARTS_ABOVE and listed != now:
            reader.__exit__(None, None, None)
            return Problem(
                entry.path, "changed", "it changed after it was listed: parts of two versions are never joined"
            )
        return reader


class _SmallFiles:
    """Reads small files in one round trip each, on any thread. Knows nothing of the source: that would be a circle."""

    def __init__(self, shares: Shares, budget: Budget | None, *, security: bool) -> None:
        self._shares, self._budget, self._security = shares, budget, security

    def read(self, entry: Entry) -> tuple[Entry, bytes] | Problem | None:
        """Return a whole file; None when it is too large for that, or changing."""
        try:
            with self._shares.borrowed() as share:
                if entry.size > share.piece:
                    return None
                whole = share.read_whole(to_smb(entry.path), entry.size, security=self._security)
        except OSError as error:
            return smb_problem(entry.path, error)
        if whole is None:
            return None
        facts, data, descriptor = whole
        if self._budget is not None:
            self._budget.take(len(data))
        return _fresh(entry, facts, descriptor), data


class SmbReader:
    """One open file (the Reader port), the next pieces on their way while one is used. Has a connection of its own."""

    def __init__(
        self, shares: Shares, share: "Share", handle: "Handle", entry: Entry, *, budget: Budget | None
    ) -> None:
        self.entry = entry
        self._shares, self._share, self._handle, self._budget = shares, share, handle, budget
        self._asked: deque[tuple[int, Any]] = deque()
        self._piece = b""
        self._at = self._next = 0
        self._end = entry.size

    def __enter__(self) -> "SmbReader":
        return self

    def __exit__(self, *exc: object) -> None:
        if not self._share.is_alive:
            self._share.close()
            return
        self._restart(0)
        self._share.close_handle(self._handle)
        self._shares.give(self._share)

    def spans(self, start: int, end: int) -> list[Span]:
        """Return one span: holes are read as zeros, which take no room in a vault."""
        self._end = min(end, self.entry.size)
        return [Span(start, self._end - start, hole=False)] if self._end > start else []

    def readinto(self, view: memoryview, offset: int) -> int:
        """Read from `offset` until the view is full or the file ends. Raises OSError, SourceUnavailable."""
        if offset != self._at:
            self._restart(offset)
        done = 0
        while done < len(view):
            if not self._piece and not self._receive():
                break
            count = min(len(self._piece), len(view) - done)
            view[done : done + count] = self._piece[:count]
            self._piece = self._piece[count:]
            done += count
        self._at += done
        return done

    def _receive(self) -> bool:
        """Wait for the next piece and ask for more behind it; say False at the end."""
        end = max(self._end, self._at + 1)
        while len(self._asked) < _ON_THEIR_WAY and self._next < end:
            length = min(self._share.piece, end - self._next)
            self._asked.append((length, self._share.begin_read(self._handle, self._next, length)))
            self._next += length
        if not self._asked:
            return False
        length, request = self._asked.popleft()
        self._piece = self._share.end_read(request)
        if self._budget is not None:
            self._budget.take(len(self._piece))
        if len(self._piece) < length:
            self._end = 0  # the file ends here now
            self._drop()
        return bool(self._piece)

    def _restart(self, offset: int) -> None:
        self._drop()
        self._piece = b""
        self._at = self._next = offset

    def _drop(self) -> None:
        """Wait for what is on its way: an answer must not be taken for that of a later request."""
        while self._asked:
            try:
                self._share.end_read(self._asked.popleft()[1])
            except OSError:
                continue  # it concerns bytes that nobody wants any more

    def changed(self) -> bool:
        """Say whether size or times differ from those at opening. Raises OSError, SourceUnavailable."""
        now, then = self._share.facts_now(self._handle), self._handle.facts
        return (now.size, now.modified, now.changed) != (then.size, then.modified, then.changed)


def entry_of(path: bytes, facts: Facts) -> Entry:
    """Return the entry of a file or folder. A share tells no owner and mode that mean something elsewhere."""
    entry = Entry(path, Kind.DIRECTORY if facts.is_folder else Kind.FILE, inode=facts.ident)
    return _fresh(entry, facts, b"", attributes=False)


def _fresh(entry: Entry, facts: Facts, descriptor: bytes, *, attributes: bool = True) -> Entry:
    is_folder = entry.kind == Kind.DIRECTORY
    return msgspec.structs.replace(
        entry,
        mode=FOLDER_MODE if is_folder else FILE_MODE,
        size=0 if is_folder else facts.size,
        mtime_ns=min(max(to_ns(facts.modified), TIME_MIN_NS), TIME_MAX_NS),
        ctime_ns=min(max(to_ns(facts.changed), TIME_MIN_NS), TIME_MAX_NS),
        xattrs=kept_attributes(facts, descriptor) if attributes else {},
        extents=[],
    )


def smb_problem(path: bytes, error: OSError) -> Problem:
    """Return the Problem that a failed call on `path` means."""
    detail = error.strerror or str(error)
    if error.errno == errno.ENOENT:
        return Problem(path, "vanished", detail, lost=False)
    if error.errno in (errno.ELOOP, errno.ENOTDIR, errno.EISDIR):
        return Problem(path, "changed", "something else stands at this path than when it was listed")
    return Problem(path, "unreadable", detail)
