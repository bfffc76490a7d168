"""Other file systems under the roots of a source (rule B28)."""

import os
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

_MOUNTINFO = "/proc/self/mountinfo"
_NETWORK = (
    *("nfs", "cifs", "smb", "fuse", "gluster", "ceph", "lustre", "gpfs", "beegfs", "afs", "9p", "virtiofs", "davfs"),
    *("cpfs", "orangefs", "ocfs2", "gfs2", "ncpfs", "coda"),
)
# File systems on disks of the host, where people's data lies; images that are only read are not among them.
_ON_DISK = (
    "ext2",
    "ext3",
    "ext4",
    "xfs",
    "btrfs",
    "zfs",
    "f2fs",
    "jfs",
    "reiserfs",
    "bcachefs",
    "vfat",
    "exfat",
    "ntfs3",
    "fuseblk",
)
_LOCAL = ("fuseblk", "fusectl")  # NTFS and exFAT disks; the kernel's own
_OCTAL = re.compile(rb"\\([0-7]{3})")


class Mount(NamedTuple):
    """One mounted file system: `path` absolute with its leading slash; `fs_type` empty where the system hides it.

    `inside` is which folder of the file system is mounted: another one than "/" for a bind mount, or a subvolume.
    """

    path: bytes
    fs_type: str
    device: int
    inside: bytes = b"/"


def is_network(fs_type: str) -> bool:
    """Say whether a file system of this type lies elsewhere: a NAS, a bucket, another host (C49)."""
    return fs_type.startswith(_NETWORK) and fs_type not in _LOCAL


def parse_mountinfo(text: bytes) -> Iterator[Mount]:
    """Yield the mounts that the text of /proc/self/mountinfo tells, in its order (see proc(5))."""
    for line in text.splitlines():
        fields = line.split(b" ")
        try:
            dash = fields.index(b"-", 6)
            major, minor = fields[2].split(b":")
        except ValueError:
            continue
        inside, path = (_OCTAL.sub(lambda match: bytes([int(match[1], 8)]), field) for field in fields[3:5])
        yield Mount(path, os.fsdecode(fields[dash + 1]), os.makedev(int(major), int(minor)), inside)


def volumes(mounts: Iterable[Mount]) -> list[bytes]:
    """Return where a host's own volumes are mounted, sorted, each volume once; the root is always among them (C23).

    A volume that is mounted at several places is the shortest of them; a part of one that is mounted once more is none.
    """
    found: dict[tuple[int, bytes], bytes] = {}
    for mount in mounts:
        whole = mount.inside == b"/" or mount.fs_type == "btrfs"
        if mount.fs_type in _ON_DISK and whole:
            known = found.setdefault((mount.device, mount.inside), mount.path)
            found[mount.device, mount.inside] = min(known, mount.path, key=lambda path: (len(path), path))
    return sorted({b"/", *found.values()})


def own_volumes() -> list[bytes]:
    """Return the volumes of this host; the root alone where the system does not tell."""
    try:
        with open(_MOUNTINFO, "rb") as file:
            return volumes(parse_mountinfo(file.read()))
    except OSError:
        return [b"/"]


def is_mounted(path: bytes) -> bool:
    """Say whether a file system is mounted at `path` itself; an automounter that waits for its first use is none."""
    real = os.path.realpath(path)
    try:
        with open(_MOUNTINFO, "rb") as file:
            types = [mount.fs_type for mount in parse_mountinfo(file.read()) if mount.path == real]
    except OSError:
        return os.path.ismount(real)
    return bool(types) and types[-1] != "autofs"


def _by_device(root: bytes) -> Iterator[Mount]:
    """Find mount points by their device number: the slow way, for systems without mountinfo."""
    try:
        device = os.lstat(root).st_dev
    except OSError:
        return
    todo = [(root, device)]
    while todo:
        folder, device = todo.pop()
        try:
            with os.scandir(folder) as found:
                inside = [entry.path for entry in found if entry.is_dir(follow_symlinks=False)]
        except OSError:
            continue
        for path in inside:
            try:
                below = os.lstat(path).st_dev
            except OSError:
                continue
            if below != device:
                yield Mount(path, "", below)
            todo.append((path, below))


def mounts_inside(roots: Iterable[bytes | str | os.PathLike[str]]) -> list[Mount]:
    """Return the file systems mounted strictly inside `roots`, sorted by path, each mount point once (B28).

    A backup reads them unless it keeps to one file system: a mounted bucket then costs requests, a network share
    time. The uppermost of several mounts on one point is the one that counts.
    """
    wanted = [os.path.realpath(os.fsencode(root)) for root in roots]
    try:
        with open(_MOUNTINFO, "rb") as file:
            mounts = list(parse_mountinfo(file.read()))
    except OSError:
        mounts = [mount for root in wanted for mount in _by_device(root)]
    inside = {
        mount.path: mount
        for mount in mounts
        if any(mount.path != root and mount.path.startswith(root.rstrip(b"/") + b"/") for root in wanted)
    }
    return [inside[path] for path in sorted(inside)]
