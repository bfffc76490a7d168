"""The folders of a restore target, opened without following links and kept open."""

import errno
import itertools
import os
import secrets
import stat
from collections import OrderedDict

from engine.beneath import FOLDER, PLACE, open_beneath, split
from engine.errors import UnsafePath

_KEPT_OPEN = 64
_DEFAULT_ACL = "system.posix_acl_default"
_PART = b".backupsite-part"


class Folder:
    """An open folder. `inherits`: files made in it get an ACL from its default ACL.

    `gives` is what the first file made in it was like: its file system decides about owner, group and mode.
    """

    __slots__ = ("fd", "gives", "inherits")

    def __init__(self, fd: int, inherits: bool) -> None:
        self.fd, self.inherits = fd, inherits
        self.gives: os.stat_result | None = None

    @property
    def owner(self) -> tuple[int, int] | None:
        """Return the user and group that files made in it have, None when none was looked at."""
        return (self.gives.st_uid, self.gives.st_gid) if self.gives else None


def safe_components(path: bytes) -> list[bytes]:
    """Return the components of an entry's path; UnsafePath when it could lead anywhere but below the root."""
    components = path.split(b"/")
    for name in components:
        if name in (b"", b".", b"..") or b"\0" in name:
            raise UnsafePath(f"the stored path {path!r} would leave the folder restored into: it was left out")
    return components


def _inherits(fd: int) -> bool:
    if not hasattr(os, "listxattr"):
        return False
    try:
        return _DEFAULT_ACL in os.listxattr(f"/proc/self/fd/{fd}")
    except OSError:
        return False


class Tree:
    """Open folders below one root: of more than 64 the least recently used is closed. For one thread.

    A returned Folder is valid until the next call: never keep it. All are closed with this object.
    """

    def __init__(self, root: bytes) -> None:
        self._open: OrderedDict[bytes, Folder] = OrderedDict()
        self._root = -1
        self._root = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._serial = itertools.count()
        self._mark = secrets.token_hex(6).encode()

    def __del__(self) -> None:
        self.forget()
        if self._root >= 0:
            os.close(self._root)

    @property
    def root(self) -> int:
        """Return the root's descriptor, owned by this object."""
        return self._root

    def forget(self) -> None:
        """Close all folders but the root, so that they are looked up afresh."""
        while self._open:
            os.close(self._open.popitem()[1].fd)

    def aside(self) -> bytes:
        """Return a name under which something may be written before it is renamed into place."""
        return b".%s%x%s" % (self._mark, next(self._serial), _PART)

    def remark(self) -> None:
        """Draw other names from `aside`: a process forked from this one has used one of ours."""
        self._mark = secrets.token_hex(6).encode()

    def place(self, path: bytes, *, make: bool) -> tuple[Folder, bytes]:
        """Return (folder, name) of an entry; with `make` its missing folders are created, mode 0755 less the umask.

        Raises UnsafePath when a component is forbidden or a link, FileNotFoundError without `make`,
        NotADirectoryError when a file stands where a folder must.
        """
        parent, name = split(path)
        folder = self._open.get(parent)
        if folder is None:
            safe_components(path)
            folder = self._enter(parent, make=make)
        elif name in (b"", b".", b"..") or b"\0" in name:
            safe_components(path)
        else:
            self._open.move_to_end(parent)
        return folder, name

    def _enter(self, parent: bytes, *, make: bool) -> Folder:
        try:
            fd = open_beneath(self._root, parent, PLACE)
        except FileNotFoundError:
            if not make:
                raise
            fd = self._build(parent)
        except OSError as error:
            raise self._refusal(parent, error) from error
        folder = Folder(fd, _inherits(fd))
        self._open[parent] = folder
        if len(self._open) > _KEPT_OPEN:
            os.close(self._open.popitem(last=False)[1].fd)
        return folder

    def _build(self, path: bytes) -> int:
        """Open a folder component by component, making what is missing."""
        current = os.open(b".", PLACE, dir_fd=self._root)
        for name in path.split(b"/"):
            try:
                try:
                    os.mkdir(name, 0o755, dir_fd=current)
                except FileExistsError:
                    pass
                below = os.open(name, PLACE, dir_fd=current)
            except OSError as error:
                raise self._refusal(path, error) from error
            finally:
                os.close(current)
            current = below
        return current

    def _refusal(self, path: bytes, error: OSError) -> Exception:
        """Return what a failed opening of a folder means: UnsafePath when it goes through a link."""
        if error.errno not in (errno.ELOOP, errno.ENOTDIR, errno.EXDEV):
            return error
        components = path.split(b"/")
        for count in range(1, len(components) + 1):
            part = b"/".join(components[:count])
            above, name = split(part)
            try:
                folder = open_beneath(self._root, above, PLACE)
            except OSError:
                break
            try:
                mode = os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode
            except OSError:
                break
            finally:
                os.close(folder)
            if stat.S_ISLNK(mode):
                return UnsafePath(f"{part!r} is a link in the folder restored into: nothing is written through it")
        return error


def open_folder(folder: Folder, name: bytes) -> int:
    """Open a folder for setting its attributes; never through a link. The caller closes it."""
    return os.open(name, FOLDER, dir_fd=folder.fd)
