"""The files target: a folder of this host."""

import ctypes
import errno
import os
import stat
import sys
import threading
from functools import cached_property

from engine.entries import Entry, Kind, Problem
from engine.errors import TargetError, TargetMissing, UnsafePath
from engine.targets.attributes import Attributes
from engine.targets.port import BaseTarget
from engine.targets.tree import Folder, Tree, open_folder

_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_PRIVATE_FILE = 0o600
# The mode of a file that is written in its place and not whole yet: what a crash leaves so is nothing to keep.
_UNFINISHED = stat.S_ISVTX
_PRIVATE_FOLDER = 0o700
_DIRECTORY_THERE = (errno.EISDIR, errno.ENOTEMPTY, errno.EEXIST)


def _failed(path: bytes, error: OSError) -> Problem:
    detail = error.strerror or str(error)
    if error.errno in _DIRECTORY_THERE:
        return Problem(path, "exists", "a folder stands in its place: move it away and restore again")
    if error.errno == errno.ENOTDIR:
        return Problem(path, "exists", "a file stands where one of its folders must go: move it away")
    return Problem(path, "write-failed", detail)


def _unlink(folder: int, name: bytes) -> None:
    try:
        os.unlink(name, dir_fd=folder)
    except OSError:
        pass  # best effort: the caller is reporting a worse failure, or it is gone already


class FilesTarget(BaseTarget, frozen=True, tag="files", kw_only=True, dict=True):
    """A folder to restore into. `root` is absolute; links in it are followed, links below it never.

    `restore_owner`: None = when running as root, True = always, False = never. An owner is the one of the
    same name when this host knows the name, else the one of the same number.

    A small file is written in its place, with mode 01000 until it is whole: what a crash leaves so is written anew by
    the next restore. A large one, one with xattrs, and one that replaces another is written beside its place under
    `.<random>.backupsite-part`, with mode 0600, and renamed when complete: a crash leaves such parts, which may be
    deleted. Nothing is synced before `flush`.
    """

    root: bytes
    restore_owner: bool | None = None

    @cached_property
    def _local(self) -> threading.local:
        return threading.local()

    @property
    def _tree(self) -> Tree:
        """The folders this thread has open."""
        try:
            return self._local.tree  # type: ignore[no-any-return] # set below
        except AttributeError:
            self._local.tree = Tree(self.root)
            return self._tree

    @cached_property
    def _attributes(self) -> Attributes:
        return Attributes(self.restore_owner)

    @property
    def in_order(self) -> bool:
        """Say no: files are written aside, in any order."""
        return False

    def where(self) -> str:
        """Return the folder."""
        return self.root.decode("utf-8", "backslashreplace")

    def check(self) -> None:
        """Raise TargetMissing when the root is not a folder (C27), TargetError when it can't be written."""
        shown = os.fsdecode(self.root)
        try:
            status = os.stat(self.root)
        except OSError as error:
            raise TargetMissing(f"{shown!r} cannot be restored into: {error.strerror}") from error
        if not stat.S_ISDIR(status.st_mode):
            raise TargetMissing(f"{shown!r} is not a folder")
        if not os.access(self.root, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids):
            raise TargetError(f"{shown!r} is not writable: give this user the right to write there, or choose another")

    def existing(self, path: bytes) -> int | None:
        """Return the Kind of what stands at `path`, a socket as a fifo; None for nothing. Raises UnsafePath.

        What a crash left of a file in its place is nothing.
        """
        try:
            folder, name = self._tree.place(path, make=False)
            mode = os.stat(name, dir_fd=folder.fd, follow_symlinks=False).st_mode
        except (FileNotFoundError, NotADirectoryError):
            return None
        if mode == stat.S_IFREG | _UNFINISHED:
            return None
        kinds = {
            stat.S_IFREG: Kind.FILE,
            stat.S_IFDIR: Kind.DIRECTORY,
            stat.S_IFLNK: Kind.SYMLINK,
            stat.S_IFCHR: Kind.CHARACTER_DEVICE,
            stat.S_IFBLK: Kind.BLOCK_DEVICE,
        }
        return kinds.get(stat.S_IFMT(mode), Kind.FIFO)

    def make(self, entry: Entry) -> list[Problem]:
        """Create a folder (0700 until `finish`; one that exists is kept), or replace a link, fifo or device."""
        try:
            folder, name = self._tree.place(entry.path, make=True)
            if entry.kind == Kind.DIRECTORY:
                return self._make_folder(folder, name, entry)
            aside = self._tree.aside()
            self._make_special(folder, aside, entry)
            try:
                problems = self._attributes.apply_aside(folder.fd, aside, entry)
                os.rename(aside, name, src_dir_fd=folder.fd, dst_dir_fd=folder.fd)
            except OSError:
                _unlink(folder.fd, aside)
                raise
            return problems
        except UnsafePath as error:
            return [Problem(entry.path, "unsafe-path", str(error))]
        except OSError as error:
            return [_failed(entry.path, error)]

    def _make_folder(self, folder: Folder, name: bytes, entry: Entry) -> list[Problem]:
        try:
            os.mkdir(name, _PRIVATE_FOLDER, dir_fd=folder.fd)
        except FileExistsError:
            mode = os.stat(name, dir_fd=folder.fd, follow_symlinks=False).st_mode
            if stat.S_ISLNK(mode):
                return [Problem(entry.path, "unsafe-path", "a link stands where this folder must go")]
            if not stat.S_ISDIR(mode):
                return [Problem(entry.path, "exists", "a file stands where this folder must go: move it away")]
        return []

    def _make_special(self, folder: Folder, aside: bytes, entry: Entry) -> None:
        if entry.kind == Kind.SYMLINK:
            os.symlink(entry.target, aside, dir_fd=folder.fd)
        elif entry.kind == Kind.FIFO:
            os.mkfifo(aside, _PRIVATE_FILE, dir_fd=folder.fd)
        elif entry.kind in (Kind.CHARACTER_DEVICE, Kind.BLOCK_DEVICE):
            form = stat.S_IFCHR if entry.kind == Kind.CHARACTER_DEVICE else stat.S_IFBLK
            os.mknod(aside, form | _PRIVATE_FILE, entry.rdev, dir_fd=folder.fd)
        else:
            raise OSError(errno.EINVAL, f"a thing of kind {entry.kind} can't be made this way")

    def _open_aside(self, path: bytes) -> tuple[Folder, bytes, bytes, int]:
        """Return (folder, name, aside name, descriptor) of a new private file beside `path`."""
        tree = self._tree
        folder, name = tree.place(path, make=True)
        aside = tree.aside()
        try:
            return folder, name, aside, os.open(aside, _NEW, _PRIVATE_FILE, dir_fd=folder.fd)
        except FileExistsError:
            tree.remark()
        except FileNotFoundError:
            tree.forget()  # the folder kept open was deleted meanwhile
        folder, name = tree.place(path, make=True)
        aside = tree.aside()
        return folder, name, aside, os.open(aside, _NEW, _PRIVATE_FILE, dir_fd=folder.fd)

    def _open_in_place(self, path: bytes) -> tuple[Folder, bytes, bytes, int]:
        """Return (folder, name, name, descriptor) of a new unfinished file, one aside where that can't be."""
        folder, name = self._tree.place(path, make=True)
        try:
            fd = os.open(name, _NEW, _UNFINISHED, dir_fd=folder.fd)
        except (FileExistsError, FileNotFoundError):
            return self._open_aside(path)
        if folder.gives is None:
            folder.gives = os.fstat(fd)
        if stat.S_IMODE(folder.gives.st_mode) == _UNFINISHED:
            return folder, name, name, fd
        os.close(fd)  # a file system that keeps no modes could not tell after a crash
        _unlink(folder.fd, name)
        return self._open_aside(path)

    def create(self, entry: Entry) -> "FileWriter":
        """Begin a file aside, at its full size. Raises UnsafePath, or OSError for this file alone."""
        folder, name, aside, fd = self._open_aside(entry.path)
        try:
            try:
                standing = os.stat(name, dir_fd=folder.fd, follow_symlinks=False).st_mode
            except FileNotFoundError:
                standing = 0
            if stat.S_ISDIR(standing):
                raise IsADirectoryError(errno.EISDIR, "a folder stands in its place", os.fsdecode(entry.path))
            os.ftruncate(fd, entry.size)
        except BaseException:
            os.close(fd)
            _unlink(folder.fd, aside)
            raise
        return FileWriter(self._tree, self._attributes, entry, aside=aside, fd=fd)

    def write_small(self, entry: Entry, data: bytes | memoryview) -> list[Problem]:
        """Write a whole file at once, exactly `data`: create, write and commit in the fewest calls."""
        path = entry.path
        try:
            # User xattrs can't be set on a file that its owner may not write.
            folder, name, written, fd = self._open_aside(path) if entry.xattrs else self._open_in_place(path)
        except UnsafePath as error:
            return [Problem(path, "unsafe-path", str(error))]
        except OSError as error:
            return [_failed(path, error)]
        try:
            done = os.write(fd, data) if data else 0
            while done < len(data):
                done += os.write(fd, memoryview(data)[done:])
            problems = self._attributes.apply(fd, entry, inherits=folder.inherits, owner=folder.owner)
            if written is not name:
                os.rename(written, name, src_dir_fd=folder.fd, dst_dir_fd=folder.fd)
        except OSError as error:
            _unlink(folder.fd, written)
            return [_failed(path, error)]
        except BaseException:
            _unlink(folder.fd, written)
            raise
        finally:
            os.close(fd)
        return problems

    def link(self, entry: Entry, first: bytes) -> list[Problem]:
        """Make `entry` a hard link of the restored `first`, which must be a file of the same kind in this target."""
        try:
            made = self._tree.place(entry.path, make=True)
            folder = Folder(os.dup(made[0].fd), made[0].inherits)  # the next look-up may close it
        except UnsafePath as error:
            return [Problem(entry.path, "unsafe-path", str(error))]
        except OSError as error:
            return [_failed(entry.path, error)]
        try:
            aside = self._tree.aside()
            source, first_name = self._tree.place(first, make=False)
            if self.existing(first) != entry.kind:
                return [Problem(entry.path, "write-failed", f"{first!r}, of which it is a link, was not restored")]
            os.link(first_name, aside, src_dir_fd=source.fd, dst_dir_fd=folder.fd, follow_symlinks=False)
            try:
                os.rename(aside, made[1], src_dir_fd=folder.fd, dst_dir_fd=folder.fd)
            finally:
                _unlink(folder.fd, aside)  # renaming one link of a file over another does nothing
            return []
        except UnsafePath as error:
            return [Problem(entry.path, "unsafe-path", str(error))]
        except OSError as error:
            return [_failed(entry.path, error)]
        finally:
            os.close(folder.fd)

    def finish(self, entry: Entry) -> list[Problem]:
        """Set a folder's attributes, after everything inside it was written."""
        try:
            folder, name = self._tree.place(entry.path, make=False)
            fd = open_folder(folder, name)
        except UnsafePath as error:
            return [Problem(entry.path, "unsafe-path", str(error))]
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENOTDIR):
                return [Problem(entry.path, "unsafe-path", "something else stands in the folder's place")]
            return [_failed(entry.path, error)]
        try:
            return self._attributes.apply(fd, entry, inherits=True)
        finally:
            os.close(fd)

    def flush(self) -> None:
        """Make everything written so far durable. Raises OSError when the disk could not."""
        if sys.platform != "linux":
            os.sync()
            return
        if ctypes.CDLL(None, use_errno=True).syncfs(self._tree.root) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), os.fsdecode(self.root))


class FileWriter:
    """One file being written aside (the Writer port). Owns the descriptor."""

    def __init__(self, tree: Tree, attributes: Attributes, entry: Entry, *, aside: bytes, fd: int) -> None:
        self._tree = tree
        self._attributes = attributes
        self._entry = entry
        self._aside = aside
        self._fd = fd

    def write(self, data: memoryview | bytes, offset: int) -> None:
        """Write all of `data` at `offset`. Raises OSError."""
        view = memoryview(data)
        while view:
            done = os.pwrite(self._fd, view, offset)
            view = view[done:]
            offset += done

    def commit(self) -> list[Problem]:
        """Set size and attributes and rename into place; a failure removes what was written and is a Problem."""
        entry = self._entry
        try:
            folder, name = self._tree.place(entry.path, make=False)
            try:
                os.ftruncate(self._fd, entry.size)
                problems = self._attributes.apply(self._fd, entry, inherits=folder.inherits)
                os.rename(self._aside, name, src_dir_fd=folder.fd, dst_dir_fd=folder.fd)
            except OSError:
                _unlink(folder.fd, self._aside)
                raise
        except UnsafePath as error:
            return [Problem(entry.path, "unsafe-path", str(error))]
        except OSError as error:
            return [_failed(entry.path, error)]
        finally:
            os.close(self._fd)
        return problems

    def abort(self) -> None:
        """Remove what was written aside."""
        os.close(self._fd)
        try:
            folder, _ = self._tree.place(self._entry.path, make=False)
        except (OSError, UnsafePath):
            return  # the folder is gone, and the part with it
        _unlink(folder.fd, self._aside)


def files_target(root: str | bytes | os.PathLike[str], *, restore_owner: bool | None = None) -> FilesTarget:
    """Make a FilesTarget of a path as people give it; a relative one starts at the working directory."""
    return FilesTarget(root=os.path.abspath(os.fsencode(root)), restore_owner=restore_owner)
