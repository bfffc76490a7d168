"""Compare what stands below a folder with entries of a listing: what a drill, and a check of a restore, find."""

import builtins
import errno
import os
import stat
from collections.abc import Callable
from typing import Self

import msgspec

from engine.beneath import PLACE, open_beneath, split
from engine.entries import Entry, Kind
from engine.keys import ID_BYTES
from engine.sources.attributes import KINDS, extended
from engine.targets.attributes import Owners

DEVICES = (Kind.CHARACTER_DEVICE, Kind.BLOCK_DEVICE)
DIFFERENCES_KEPT = 1_000
_STEP = 1 << 20


class Difference(msgspec.Struct, frozen=True):
    """One thing that stands there otherwise than in the point."""

    path: bytes
    what: str


class Compared(msgspec.Struct, kw_only=True):
    """What was compared, and the first of the differences."""

    entries: int = 0
    files: int = 0
    bytes: int = 0
    differences: list[Difference] = []
    differences_total: int = 0

    def differ(self, path: builtins.bytes, what: str) -> None:
        """Count a difference."""
        self.differences_total += 1
        if len(self.differences) < DIFFERENCES_KEPT:
            self.differences.append(Difference(path, what))

    def add(self, part: "Compared") -> None:
        """Count a part of the whole."""
        self.entries += part.entries
        self.files += part.files
        self.bytes += part.bytes
        self.differences_total += part.differences_total
        self.differences = (self.differences + part.differences)[:DIFFERENCES_KEPT]


class Comparison:
    """Reads entries back from the disk and tells `differ(path, what)` of every difference. A context.

    Every extent's id is derived anew with `chunk_id` from the bytes that are there; holes have to be zero; size, kind,
    mode, time, link target, extended attributes and (for root) owner have to be those of the listing, but for the
    attributes of paths that are `noted`. No link below the folder is followed. Where the folder `is_ours`, a mode that
    forbids to read is changed for it. `look` is called between pieces: it may raise.
    """

    def __init__(
        self,
        chunk_id: Callable[[bytes], bytes],
        folder: bytes,
        differ: Callable[[bytes, str], None],
        *,
        is_ours: bool = False,
        look: Callable[[], None] = lambda: None,
    ) -> None:
        self._chunk_id, self._folder, self._differ = chunk_id, folder, differ
        self._is_ours, self._look = is_ours, look
        self.is_root = os.geteuid() == 0
        self._owners = Owners()
        self.noted: set[bytes] = set()
        self._top = -1

    def __enter__(self) -> Self:
        self._top = os.open(self._folder, PLACE & ~os.O_NOFOLLOW)
        return self

    def __exit__(self, *exc: object) -> None:
        os.close(self._top)

    def compare(self, entry: Entry) -> None:
        """Compare what stands in the folder with the listing."""
        parent, name = split(entry.path)
        try:
            place = open_beneath(self._top, parent, PLACE)
            try:
                self._compare(entry, place, name)
            finally:
                os.close(place)
        except FileNotFoundError:
            self._differ(entry.path, "it is missing")
        except OSError as error:
            self._differ(entry.path, f"it can't be read back: {error.strerror}")

    def _compare(self, entry: Entry, place: int, name: bytes) -> None:
        status = os.stat(name, dir_fd=place, follow_symlinks=False)
        if KINDS.get(stat.S_IFMT(status.st_mode)) != entry.kind:
            self._differ(entry.path, "it is a thing of another kind")
            return
        self._compare_attributes(entry, status)
        if entry.kind == Kind.SYMLINK:
            self._same(entry, "link target", os.readlink(name, dir_fd=place), entry.target)
        elif entry.kind in DEVICES:
            self._same(entry, "device number", status.st_rdev, entry.rdev)
        elif entry.kind in (Kind.FILE, Kind.DIRECTORY):
            if self._is_ours and not self.is_root and status.st_mode & 0o400 == 0:
                os.chmod(name, 0o700, dir_fd=place)
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
            fd = os.open(name, flags, dir_fd=place)
            try:
                self._compare_open(entry, fd)
            finally:
                os.close(fd)

    def _compare_attributes(self, entry: Entry, status: os.stat_result) -> None:
        if entry.path in self.noted:
            return
        if entry.kind != Kind.SYMLINK:
            self._same(entry, "mode", stat.S_IMODE(status.st_mode), entry.mode)
        self._same(entry, "time", status.st_mtime_ns, entry.mtime_ns)
        if self.is_root:
            owner = self._owners.uid(entry.user, entry.uid), self._owners.gid(entry.group, entry.gid)
            self._same(entry, "owner", (status.st_uid, status.st_gid), owner)

    def _compare_open(self, entry: Entry, fd: int) -> None:
        if entry.xattrs and entry.path not in self.noted:
            found = extended(fd)
            for name, value in entry.xattrs.items():
                self._same(entry, f"attribute {os.fsdecode(name)}", found.get(name), value)
        if entry.kind == Kind.FILE:
            self._same(entry, "size", os.fstat(fd).st_size, entry.size)
            self._compare_content(entry, fd)

    def _compare_content(self, entry: Entry, fd: int) -> None:
        """Derive the id of every extent from the bytes on the disk; stop at the first that is another."""
        at = 0
        for extent in entry.extents:
            self._look()
            if extent.id:
                same = self._chunk_id(_read(fd, extent.length, at))[:ID_BYTES] == extent.id
            else:
                same = _is_hole(fd, at, extent.length)
            if not same:
                self._differ(entry.path, f"its content differs within the {extent.length} bytes from {at} on")
                return
            at += extent.length

    def _same(self, entry: Entry, what: str, found: object, expected: object) -> None:
        if found != expected:
            self._differ(entry.path, f"its {what} is {found!r} instead of {expected!r}")


def _read(fd: int, length: int, at: int) -> bytes:
    parts = []
    while length > 0:
        part = os.pread(fd, length, at)
        if not part:
            break
        parts.append(part)
        at, length = at + len(part), length - len(part)
    return b"".join(parts)


def _is_hole(fd: int, at: int, length: int) -> bool:
    """Say whether the range holds zeros alone; a hole of any size costs one call where the file system tells."""
    end = at + length
    while at < end:
        try:
            at = min(os.lseek(fd, at, os.SEEK_DATA), end)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return True
            raise
        step = min(_STEP, end - at)
        if any(_read(fd, step, at)):
            return False
        at += step
    return True
