"""The files source: folders of this host."""

import os
import stat
import threading
from collections.abc import Generator, Iterable, Sequence
from functools import cached_property

from engine.beneath import split
from engine.entries import Entry, Kind, Problem, sort_key
from engine.errors import SourceError, SourceMissing
from engine.patterns import Selection
from engine.sources.attributes import Attributes, LooseAttributes, extended
from engine.sources.mounts import is_network, mounts_inside
from engine.sources.port import BaseSource, Identity
from engine.sources.prefetch import Prefetch
from engine.sources.reading import FileReader, Folders, has_holes, open_file
from engine.sources.roots import GONE, require_mounted, require_standing
from engine.sources.walk import Walk, WalkOptions, problem_of
from engine.sources.walkers import WideWalk

PARTS_ABOVE = 256 << 20  # larger files are read in parts by several workers (engine.chunker.PART_BYTES)
WALKERS_MAX = 64
_AHEAD_BYTES = 128 << 10  # larger files are worth their latency
_REPLACED = "something else stands at this path than when it was listed"


def _shown(name: str | bytes) -> str:
    """Return a name for people; what is not UTF-8 becomes `\\xNN`, because a root can't hold anything else."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _inside(path: bytes, root: bytes) -> bool:
    return not root or path == root or path.startswith(root + b"/")


class FilesSource(BaseSource, frozen=True, tag="files", kw_only=True, dict=True):
    """Files and folders of one host. Make it with `files_source`, which accepts what people type.

    `roots` are absolute paths as bytes (JSON: base64, so that any name survives). Roots inside other roots are
    part of them. A root that is a link is kept as a link. `include` and `exclude` are patterns (engine.patterns).
    With `one_file_system` a mount point inside a root is kept as an empty folder, and reported, unless it is a
    root itself; with `skip_network` so is what lies on another host (C49). Names of users and groups are remembered
    for the life of this object.

    For mounted shares and parallel file systems: `walkers` threads list folders and read small files ahead.
    `ignore_inode` and `ignore_ctime` are for mounts whose numbers lie: what is unchanged is then told by size and time
    of modification alone, and hard links are files of their own. With `must_be_mounted` a root that is no mount point
    is refused.
    """

    roots: tuple[bytes, ...]
    host: str
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    one_file_system: bool = False
    skip_network: bool = False
    walkers: int = 1
    ignore_inode: bool = False
    ignore_ctime: bool = False
    must_be_mounted: bool = False

    @cached_property
    def _attributes(self) -> Attributes:
        if self.ignore_inode or self.ignore_ctime:
            return LooseAttributes(ignore_inode=self.ignore_inode, ignore_ctime=self.ignore_ctime)
        return Attributes()

    @cached_property
    def _named(self) -> tuple[bytes, ...]:
        """All roots as entries spell them: without the leading slash, sorted, each once."""
        return tuple(sorted({os.path.normpath(root).strip(b"/") for root in self.roots}))

    @cached_property
    def _top(self) -> tuple[bytes, ...]:
        """The roots that are not inside another, in listing order."""
        top: list[bytes] = []
        for root in sorted(self._named, key=sort_key):
            if not top or not _inside(root, top[-1]):
                top.append(root)
        return tuple(top)

    @cached_property
    def _uid(self) -> int:
        return os.geteuid()

    @cached_property
    def _local(self) -> threading.local:
        return threading.local()

    @property
    def _folders(self) -> Folders:
        """The folder this thread reads from."""
        try:
            return self._local.folders  # type: ignore[no-any-return] # set below
        except AttributeError:
            self._local.folders = Folders(self._top)
            return self._folders

    @property
    def _prefetch(self) -> Prefetch[tuple[Entry, bytes] | Problem | None]:
        """What this thread reads ahead."""
        try:
            return self._local.prefetch  # type: ignore[no-any-return] # set below
        except AttributeError:
            self._local.prefetch = Prefetch(self._read_whole, threads=self.walkers)
            return self._prefetch

    def identity(self) -> Identity:
        """Return where entries come from; bytes of a root that are not UTF-8 are written as \\xNN."""
        return Identity("files", self.host, [root.decode("utf-8", "backslashreplace") for root in self.roots])

    def mounts(self) -> list[str]:
        """Return the mount points inside the roots (B28)."""
        return [_shown(mount.path) for mount in mounts_inside(self.roots)]

    def options(self) -> dict[str, list[str]]:
        """Return the patterns, and which attributes were not believed."""
        shown = {"include": [_shown(one) for one in self.include], "exclude": [_shown(one) for one in self.exclude]}
        ignored = [name for name, is_on in (("inode", self.ignore_inode), ("ctime", self.ignore_ctime)) if is_on]
        return shown | ({"ignored": ignored} if ignored else {})

    def check(self) -> None:
        """Raise SourceMissing when a root is not there or not mounted, BadPattern, SourceError for hidden roots."""
        if not self.roots:
            raise SourceError("no folder to back up was named: name at least one")
        if not 1 <= self.walkers <= WALKERS_MAX:
            raise SourceError(f"{self.walkers} threads can't walk: give 1 to {WALKERS_MAX}")
        Selection(self.include, self.exclude)
        for root in self._named:
            shown = os.fsdecode(b"/" + root)
            try:
                os.lstat(b"/" + root)
            except FileNotFoundError as error:
                raise SourceMissing(
                    f"{shown!r} does not exist on {self.host}: correct the path, or mount it, and run it again"
                ) from error
            except OSError as error:
                raise SourceMissing(f"{shown!r} cannot be reached on {self.host}: {error.strerror}") from error
            self._check_links_above(root)
        if self.must_be_mounted:
            require_mounted(self._named, self.host)

    def _check_links_above(self, root: bytes) -> None:
        """Refuse a root that another root holds only behind a link: it would be missing from the listing."""
        outer = next((top for top in self._top if root != top and _inside(root, top)), None)
        if outer is None:
            return
        end = len(outer)
        while (end := root.find(b"/", end + 1)) >= 0:
            above = b"/" + root[:end]
            if stat.S_ISLNK(os.lstat(above).st_mode):
                real = os.fsdecode(os.path.realpath(b"/" + root))
                raise SourceError(
                    f"{os.fsdecode(b'/' + root)!r} lies behind the link {os.fsdecode(above)!r} inside another root: "
                    f"name its real place instead, {real!r}"
                )

    def walk(self) -> Generator[Entry | Problem, None, None]:
        """Yield every entry in listing order, attributes from lstat alone."""
        selection = Selection(self.include, self.exclude) if self.include or self.exclude else None
        far = {mount.device for mount in mounts_inside(self.roots) if is_network(mount.fs_type)}
        options = WalkOptions(selection, self.one_file_system, frozenset(far if self.skip_network else ()))
        if self.walkers > 1:
            wide = WideWalk(self._top, self._attributes, options, named=self._named)
            self._walks[:] = [wide]
            return wide.walking(self.walkers)
        walk = Walk(self._top, self._attributes, options, named=self._named)
        self._walks[:] = [walk]
        return walk.run()

    @cached_property
    def _walks(self) -> list[Walk]:
        """The last walk."""
        return []

    def excluded(self) -> int:
        """Return how many entries the last walk left out by patterns."""
        return sum(walk.excluded for walk in self._walks)

    def expect(self, entries: Sequence[Entry]) -> None:
        """Begin to read small files ahead where each costs the latency of a network."""
        if self.walkers > 1:
            self._prefetch.expect(entry for entry in entries if entry.kind == Kind.FILE and entry.size <= _AHEAD_BYTES)

    def fill(self, entry: Entry) -> Entry | Problem:
        """Return a non-file entry again with fresh attributes, target and xattrs."""
        parent, name = split(entry.path)
        try:
            folders = self._folders
            kept = folders.path == parent
            found = self._fill(folders.get(parent), entry, name)
            if kept and isinstance(found, Problem):
                # The folder kept open may have been replaced since: believe only a fresh look.
                folders.forget()
                found = self._fill(folders.get(parent), entry, name)
        except OSError as error:
            return self._problem(entry, error)
        return found

    def _fill(self, folder: int, entry: Entry, name: bytes) -> Entry | Problem:
        try:
            status = os.stat(name, dir_fd=folder, follow_symlinks=False)
            fresh = self._attributes.entry(entry.path, status, entry.device)
            if fresh is None or not self._is_same(fresh, entry):
                return Problem(entry.path, "changed", _REPLACED)
            if fresh.kind == Kind.SYMLINK:
                fresh.target = os.readlink(name, dir_fd=folder)
        except OSError as error:
            return self._problem(entry, error)
        # There is no lgetxattr relative to a descriptor; this path is short however deep the folder is.
        fresh.xattrs = extended(b"/proc/self/fd/%d/%s" % (folder, name))
        return fresh

    def open(self, entry: Entry) -> FileReader | Problem:
        """Open a file for reading if it is still the one that was walked; links on the way are not followed."""
        if self.walkers > 1:
            self._prefetch.take(entry)
        try:
            fd, status = self._open(entry)
        except OSError as error:
            return self._problem(entry, error)
        fresh = self._attributes.entry(entry.path, status, entry.device)
        if fresh is None or not self._is_same(fresh, entry):
            os.close(fd)
            return Problem(entry.path, "changed", _REPLACED)
        fresh.xattrs = extended(fd)
        return FileReader(fd, fresh, status)

    def read_small(self, entry: Entry, limit: int) -> tuple[Entry, bytes] | Problem | None:
        """Return a whole file of at most `limit` bytes with its fresh entry; None when `open` must be used.

        That is: it is larger, has holes, or was changing.
        """
        if self.walkers > 1 and (future := self._prefetch.take(entry)) is not None:
            found = future.result()
            if not isinstance(found, tuple) or len(found[1]) <= limit:
                return found
        return self._read_whole(entry, limit)

    def _read_whole(self, entry: Entry, limit: int = _AHEAD_BYTES) -> tuple[Entry, bytes] | Problem | None:
        try:
            fd, status = self._open(entry)
        except OSError as error:
            return self._problem(entry, error)
        try:
            fresh = self._attributes.entry(entry.path, status, entry.device)
            if fresh is None or not self._is_same(fresh, entry):
                return Problem(entry.path, "changed", _REPLACED)
            size = fresh.size
            if size > limit or (status.st_blocks * 512 < size and has_holes(fd, size)):
                return None
            data = os.read(fd, size + 1)
            if len(data) != size:
                return None
            fresh.xattrs = extended(fd)
            return fresh, data
        except OSError as error:
            return problem_of(entry.path, error)
        finally:
            os.close(fd)

    def _is_same(self, fresh: Entry, entry: Entry) -> bool:
        """Say whether an opened file is the walked one, as far as its parts must not be of two files.

        Without inode numbers size and time must tell; a file that is read in one go may have changed since the walk.
        """
        if fresh.kind != entry.kind or fresh.inode != entry.inode:
            return False
        if not self.ignore_inode or entry.kind != Kind.FILE or entry.size <= PARTS_ABOVE:
            return True
        return (fresh.size, fresh.mtime_ns) == (entry.size, entry.mtime_ns)

    def _is_believed(self, status: os.stat_result, entry: Entry) -> bool:
        if self.ignore_inode:
            return (status.st_size, status.st_mtime_ns) == (entry.size, entry.mtime_ns)
        return status.st_ino == entry.inode

    def _problem(self, entry: Entry, error: OSError) -> Problem:
        """Return what a failed call means. Raises SourceUnavailable when the whole root is gone."""
        if error.errno in GONE:
            root = next((root for root in self._top if _inside(entry.path, root)), b"")
            require_standing(root, must_be_mounted=self.must_be_mounted)
        return problem_of(entry.path, error)

    def _open(self, entry: Entry) -> tuple[int, os.stat_result]:
        """Return (descriptor, status) of what stands at the entry's path; the caller checks that it is the entry."""
        parent, _, name = entry.path.rpartition(b"/")
        folders = self._folders
        own = self._uid in (0, entry.uid)
        if folders.path == parent:
            # The folder kept open may have been replaced since: believe it only when the entry is there.
            try:
                fd = open_file(folders.fd, name, own=own)
            except OSError:
                folders.forget()
            else:
                status = os.fstat(fd)
                if self._is_believed(status, entry):
                    return fd, status
                os.close(fd)
                folders.forget()
        fd = open_file(folders.get(parent), name, own=own)
        return fd, os.fstat(fd)


def files_source(
    roots: Iterable[str | bytes | os.PathLike[str]],
    *,
    host: str,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    one_file_system: bool = False,
) -> FilesSource:
    """Make a FilesSource of paths as people give them; relative ones start at the working directory."""
    return FilesSource(
        roots=tuple(os.path.abspath(os.fsencode(root)) for root in roots),
        host=host,
        include=tuple(include),
        exclude=tuple(exclude),
        one_file_system=one_file_system,
    )
