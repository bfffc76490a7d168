"""Whether the roots of a source are still what they were: an unmounted share looks like an empty folder."""

import errno
import os
import stat
from collections.abc import Sequence

from engine.errors import SourceMissing, SourceUnavailable
from engine.sources.mounts import is_mounted

# What a root answers whose server or mount went away.
GONE = {
    errno.ENOENT,
    errno.ENOTDIR,
    errno.ESTALE,
    errno.ENOTCONN,
    errno.EIO,
    errno.ENODEV,
    errno.ENXIO,
    errno.ETIMEDOUT,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
}


def went_away(root: bytes, why: str) -> SourceUnavailable:
    """Return the error that ends a backup whose root is no longer the one it began with."""
    return SourceUnavailable(f"{os.fsdecode(b'/' + root)!r} went away while it was read: {why}")


def device_of(root: bytes) -> int:
    """Return the number of the file system on which a root lies. Raises SourceUnavailable when it went away."""
    try:
        return os.lstat(b"/" + root).st_dev
    except OSError as error:
        if error.errno in GONE:
            raise went_away(root, error.strerror or str(error)) from error
        raise


def require_mounted(roots: Sequence[bytes], host: str) -> None:
    """Raise SourceMissing unless a file system is mounted at each root itself."""
    for root in roots:
        if not is_mounted(b"/" + root):
            raise SourceMissing(
                f"nothing is mounted at {os.fsdecode(b'/' + root)!r} on {host}: mount it and run it again, or name "
                "the mount point itself as what to back up"
            )


def require_standing(root: bytes, *, must_be_mounted: bool) -> None:
    """Raise SourceUnavailable when a root in which entries were found is gone, empty or unmounted now.

    To be asked when something below it is missing that was listed: else a lost mount would pass for deleted files.
    """
    path = b"/" + root
    device_of(root)
    if must_be_mounted and not is_mounted(path):
        raise went_away(root, "nothing is mounted there any more")
    try:
        if not stat.S_ISDIR(os.lstat(path).st_mode):
            return
        with os.scandir(path) as found:
            empty = next(found, None) is None
    except OSError as error:
        if error.errno in GONE:
            raise went_away(root, error.strerror or str(error)) from error
        return
    if empty:
        raise went_away(root, "it is empty, as a folder is on which nothing is mounted")
