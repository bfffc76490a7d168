"""The walk over a host's files: every entry below the roots in listing order."""

import errno
import os
from collections.abc import Collection, Generator, Iterator, Sequence
from typing import NamedTuple

from engine.beneath import FOLDER, open_beneath, split
from engine.entries import Entry, Kind, Problem
from engine.patterns import Selection, Verdict
from engine.sources.attributes import Attributes
from engine.sources.roots import GONE, device_of, went_away

# Open folders on the way down; above that many the outermost are closed and found again by "..".
_OPEN_FOLDERS = 64
# Asked for once for each of millions of entries: a member of an enumeration takes longer to look up.
_DIRECTORY = Kind.DIRECTORY.value
_SKIP, _LOOK = Verdict.SKIP, Verdict.LOOK


class Folder:
    """A folder being walked: its descriptor (-1 while closed), what it is, and the names still to come."""

    __slots__ = ("device", "fd", "identity", "names", "prefix", "single", "verdict")

    def __init__(self, fd: int, prefix: bytes, *, verdict: Verdict, device: int, name: bytes = b"") -> None:
        """Take over `fd`; `name` walks that one name instead of all."""
        status = os.fstat(fd)
        self.fd = fd
        self.identity = (status.st_dev, status.st_ino)
        self.prefix = prefix
        self.verdict = verdict
        self.device = device
        self.single = bool(name)
        self.names = iter([name] if name else listed(fd))


def listed(folder: int) -> list[bytes]:
    """Return the names in an open folder, sorted."""
    names = os.listdir(folder)
    return sorted(os.fsencode("\0".join(names)).split(b"\0")) if names else []


class WalkOptions(NamedTuple):
    """What a walk leaves out. `selection` is None when there are no patterns.

    `left_out` are devices (st_dev) whose mount points are kept as empty folders, as all are with `one_file_system`.
    """

    selection: Selection | None
    one_file_system: bool
    left_out: frozenset[int] = frozenset()


def problem_of(path: bytes, error: OSError) -> Problem:
    """Return the Problem that a failed call on `path` means."""
    detail = error.strerror or str(error)
    if error.errno == errno.ENOENT:
        return Problem(path, "vanished", detail, lost=False)
    if error.errno in (errno.ELOOP, errno.ENOTDIR, errno.ENXIO):
        return Problem(path, "changed", detail)
    return Problem(path, "unreadable", detail)


class Walk:
    """One pass over disjoint, sorted roots (absolute, without the leading slash; empty = everything).

    `named` are all roots a person named, those inside others too: they are entered although they are mounts. Raises
    SourceUnavailable when a root is gone, or lies on another file system at the end than at the beginning: what was
    walked then may be the empty folder below a mount that went away.
    """

    _stat = staticmethod(os.stat)

    def __init__(
        self, roots: Sequence[bytes], attributes: Attributes, options: WalkOptions, *, named: Collection[bytes]
    ) -> None:
        self._roots = roots
        self._named = frozenset(named)
        self._attributes = attributes
        self._selection = options.selection
        self._one_file_system, self._left_out = options.one_file_system, options.left_out
        self._ordinals: dict[int, int] = {}
        self._stack: list[Folder] = []
        # Folders that are kept only if something inside is: not yielded yet.
        self._pending: list[Entry] = []
        self.excluded = 0

    def run(self) -> Generator[Entry | Problem, None, None]:
        """Yield entries and problems; closing the generator closes its descriptors."""
        devices: dict[bytes, int] = {}
        for root in self._roots:
            try:
                devices[root] = device_of(root)
                yield from self._root(root)
            except OSError as error:
                yield Problem(root, "unreadable", error.strerror or str(error))
        for root, device in devices.items():
            try:
                same = device_of(root) == device
            except OSError as error:
                raise went_away(root, error.strerror or str(error)) from error
            if not same:
                raise went_away(root, "another file system is mounted there now")

    def _root(self, root: bytes) -> Iterator[Entry | Problem]:
        parent, name = split(root)
        verdict = Verdict.KEEP if self._selection is None else self._selection.above_root(root)
        if verdict is Verdict.SKIP:
            return
        # The folders above a root are the administrator's own choice: links up there are followed.
        top = os.open(b"/" + parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        prefix = parent + b"/" if parent else b""
        try:
            device = os.stat(name or b".", dir_fd=top, follow_symlinks=False).st_dev
            self._ordinals.setdefault(device, len(self._ordinals))
            self._stack.append(Folder(os.dup(top), prefix, verdict=verdict, device=device, name=name))
            yield from self._below(top, prefix)
        finally:
            os.close(top)
            for folder in self._stack:
                if folder.fd >= 0:
                    os.close(folder.fd)
            self._stack.clear()
            self._pending.clear()

    def _below(self, top: int, top_prefix: bytes) -> Iterator[Entry | Problem]:
        stat, entry_of, stack = self._stat, self._attributes.entry, self._stack
        ordinals, selection = self._ordinals, self._selection
        last_device, ordinal = -1, 0
        while stack:
            folder = stack[-1]
            prefix, verdict, fd, device = folder.prefix, folder.verdict, folder.fd, folder.device
            for name in folder.names:
                path = prefix + name
                try:
                    status = stat(name, dir_fd=fd, follow_symlinks=False)
                except OSError as error:
                    yield problem_of(path, error)
                    continue
                if status.st_dev != last_device:
                    last_device = status.st_dev
                    ordinal = ordinals.setdefault(last_device, len(ordinals))
                entry = entry_of(path, status, ordinal)
                if selection is not None:
                    is_folder = entry is not None and entry.kind == _DIRECTORY
                    verdict = selection.step(folder.verdict, path, folder=is_folder, root=folder.single)
                    if verdict is _SKIP:
                        self.excluded += 1
                        continue
                    yield from self._leading_to(path, verdict)
                if entry is None:
                    yield Problem(path, "socket", "sockets are not backed up", lost=False)
                    continue
                elsewhere = last_device != device and self._is_left_out(last_device, path)
                if verdict is _LOOK:
                    self._pending.append(entry)
                elif not elsewhere or entry.kind == _DIRECTORY:
                    yield entry
                if elsewhere:
                    yield Problem(path, "other-file-system", "another file system is mounted here", lost=False)
                elif entry.kind == _DIRECTORY:
                    problem = self._descend(folder, name, entry, verdict=verdict, device=last_device)
                    if problem is None:
                        break
                    yield problem
            else:
                self._leave(top, top_prefix)

    def _is_left_out(self, device: int, path: bytes) -> bool:
        """Say whether what is mounted at `path` is left out."""
        return (self._one_file_system or device in self._left_out) and path not in self._named

    def _leading_to(self, path: bytes, verdict: Verdict) -> Iterator[Entry]:
        """Yield the pending folders above a kept `path`; forget those that led nowhere."""
        pending = self._pending
        while pending and not path.startswith(pending[-1].path + b"/"):
            pending.pop()
        if verdict is Verdict.KEEP and pending:
            yield from pending
            pending.clear()

    def _descend(self, outer: Folder, name: bytes, entry: Entry, *, verdict: Verdict, device: int) -> Problem | None:
        """Open the folder and put it on the stack; a Problem when it can't be listed."""
        try:
            folder = self._entered(outer, name, entry, verdict=verdict, device=device)
        except OSError as error:
            if outer.single and error.errno in GONE:
                raise went_away(entry.path, error.strerror or str(error)) from error
            return problem_of(entry.path, error)
        self._stack.append(folder)
        if len(self._stack) > _OPEN_FOLDERS:
            self._shed()
        return None

    def _shed(self) -> None:
        """Close the outermost of the folders that are open."""
        far = self._stack[-_OPEN_FOLDERS - 1]
        if far.fd >= 0:
            os.close(far.fd)
            far.fd = -1

    def _entered(self, outer: Folder, name: bytes, entry: Entry, *, verdict: Verdict, device: int) -> Folder:
        fd = os.open(name, FOLDER, dir_fd=outer.fd)
        try:
            return Folder(fd, entry.path + b"/", verdict=verdict, device=device)
        except OSError:
            os.close(fd)
            raise

    def _leave(self, top: int, top_prefix: bytes) -> None:
        """Close the innermost folder, and open the one around it again when it was closed."""
        done = self._stack.pop()
        try:
            if self._stack and self._stack[-1].fd < 0:
                outer = self._stack[-1]
                around = _around(done.fd, outer)
                outer.fd = open_beneath(top, outer.prefix[len(top_prefix) : -1]) if around is None else around
        finally:
            os.close(done.fd)


def _around(inner: int, outer: Folder) -> int | None:
    """Return a descriptor of `outer` by way of "..", None when the inner folder was moved elsewhere meanwhile."""
    fd = os.open(b"..", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=inner)
    status = os.fstat(fd)
    if (status.st_dev, status.st_ino) == outer.identity:
        return fd
    os.close(fd)
    return None
