"""Opening paths below a folder without ever following a link: the wall behind invariant 15."""

import ctypes
import errno
import os
import sys

FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# A handle that only stands for the place: it also opens folders that may be searched but not read.
PLACE = getattr(os, "O_PATH", 0) | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

_OPENAT2 = 437
_RESOLVE_NO_MAGICLINKS = 0x02
_RESOLVE_NO_SYMLINKS = 0x04
_RESOLVE_BENEATH = 0x08
# The kernel's PATH_MAX is 4096 with the closing NUL; longer paths are opened piece by piece.
_PATH_MAX = 4000
_NOT_OFFERED = {errno.ENOSYS, errno.EPERM, errno.EINVAL, errno.E2BIG, errno.EAGAIN}


class _OpenHow(ctypes.Structure):
    _fields_ = [("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64)]


_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def _openat2(folder: int, path: bytes, flags: int) -> int | None:
    """Return a descriptor, or None when this kernel (or its sandbox) does not offer the call."""
    if _libc is None:
        return None
    how = _OpenHow(flags, 0, _RESOLVE_BENEATH | _RESOLVE_NO_SYMLINKS | _RESOLVE_NO_MAGICLINKS)
    fd = int(_libc.syscall(_OPENAT2, folder, path, ctypes.byref(how), ctypes.sizeof(how)))
    if fd >= 0:
        return fd
    number = ctypes.get_errno()
    if number in _NOT_OFFERED:
        return None
    raise OSError(number, os.strerror(number), path)


def _by_component(folder: int, path: bytes, flags: int) -> int:
    components = path.split(b"/")
    current = folder
    try:
        for name in components[:-1]:
            below = os.open(name, PLACE, dir_fd=current)
            if current != folder:
                os.close(current)
            current = below
        return os.open(components[-1], flags, dir_fd=current)
    finally:
        if current != folder:
            os.close(current)


def open_beneath(folder: int, path: bytes, flags: int = FOLDER) -> int:
    """Open `path`, relative to the descriptor `folder`, of any length; an empty path opens the folder again.

    The caller closes the result. `path` has no empty, "." or ".." component (the caller's promise). Raises
    OSError: ELOOP or ENOTDIR when any component is a link.
    """
    if not path:
        return os.open(b".", flags, dir_fd=folder)
    flags |= os.O_NOFOLLOW | os.O_CLOEXEC
    if len(path) < _PATH_MAX:
        fd = _openat2(folder, path, flags)
        if fd is not None:
            return fd
    return _by_component(folder, path, flags)


def split(path: bytes) -> tuple[bytes, bytes]:
    """Return (parent, name); the parent is empty at the top."""
    parent, _, name = path.rpartition(b"/")
    return parent, name
