"""Attributes of files as entries have them."""

import grp
import os
import pwd
import stat

from engine.entries import TIME_MAX_NS, TIME_MIN_NS, Entry, Kind

KINDS = {
    stat.S_IFREG: Kind.FILE.value,
    stat.S_IFDIR: Kind.DIRECTORY.value,
    stat.S_IFLNK: Kind.SYMLINK.value,
    stat.S_IFIFO: Kind.FIFO.value,
    stat.S_IFCHR: Kind.CHARACTER_DEVICE.value,
    stat.S_IFBLK: Kind.BLOCK_DEVICE.value,
}
_FORMAT = 0o170000
_PERMISSIONS = 0o7777
_OFFERED = hasattr(os, "listxattr")  # not on macOS


class Users(dict[int, str]):
    """User names by number, asked once each; empty for a number without a name."""

    def __missing__(self, uid: int) -> str:
        try:
            name = pwd.getpwuid(uid).pw_name
        except (KeyError, OverflowError):
            name = ""
        self[uid] = name
        return name


class Groups(dict[int, str]):
    """Group names by number, asked once each; empty for a number without a name."""

    def __missing__(self, gid: int) -> str:
        try:
            name = grp.getgrgid(gid).gr_name
        except (KeyError, OverflowError):
            name = ""
        self[gid] = name
        return name


class Attributes:
    """Turns stat results into entries."""

    def __init__(self) -> None:
        self.users = Users()
        self.groups = Groups()

    def entry(self, path: bytes, status: os.stat_result, device: int) -> Entry | None:
        """Return the entry of what was stat'ed; None for a socket or another thing that can't be kept."""
        mode = status.st_mode
        kind = KINDS.get(mode & _FORMAT)
        if kind is None:
            return None
        uid = status.st_uid
        gid = status.st_gid
        mtime_ns = status.st_mtime_ns
        if not TIME_MIN_NS <= mtime_ns <= TIME_MAX_NS:
            mtime_ns = min(max(mtime_ns, TIME_MIN_NS), TIME_MAX_NS)
        # Positional, and numbers of devices alone: this line runs once for each of millions of entries.
        return Entry(
            path,
            kind,
            mode & _PERMISSIONS,
            uid,
            gid,
            self.users[uid],
            self.groups[gid],
            status.st_size if kind == 0 else 0,
            mtime_ns,
            status.st_ctime_ns,
            status.st_ino,
            device,
            status.st_nlink,
            status.st_rdev if kind > 3 else 0,
        )


class LooseAttributes(Attributes):
    """The same for mounts whose inode numbers or change times are not to be believed: they are 0 in every entry.

    Without inode numbers nothing tells hard links, so each is a file of its own.
    """

    def __init__(self, *, ignore_inode: bool, ignore_ctime: bool) -> None:
        super().__init__()
        self._ignore_inode, self._ignore_ctime = ignore_inode, ignore_ctime

    def entry(self, path: bytes, status: os.stat_result, device: int) -> Entry | None:
        entry = super().entry(path, status, device)
        if entry is not None:
            if self._ignore_inode:
                entry.inode, entry.links = 0, 1
            if self._ignore_ctime:
                entry.ctime_ns = 0
        return entry


def extended(place: int | bytes) -> dict[bytes, bytes]:
    """Return the extended attributes (ACLs among them) of a descriptor, or of a path without following a link.

    Empty where the system or the file system has none. Attributes that may not be read are left out.
    """
    if not _OFFERED:
        return {}
    follow = isinstance(place, int)
    try:
        names = os.listxattr(place, follow_symlinks=follow)
    except OSError:
        return {}
    found = {}
    for name in names:
        try:
            found[os.fsencode(name)] = os.getxattr(place, name, follow_symlinks=follow)
        except OSError:
            continue
    return found
