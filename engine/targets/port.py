"""The Target port: where a restore writes."""

from typing import Protocol

import msgspec

from engine.entries import Entry, Kind, Problem


class Writer(Protocol):
    """One file being written aside. `write` is positional, in any order; gaps stay holes.

    A target that is `in_order` gets each file front to back, holes as zeros. `commit` sets size and attributes and
    renames it into place; `abort` removes it. Exactly one of them ends it.
    """

    def write(self, data: memoryview, offset: int) -> None: ...

    def commit(self) -> list[Problem]: ...

    def abort(self) -> None: ...


class Target(Protocol):
    """A place to restore into. Picklable. Never follows a link, never leaves its root (engine invariant 15).

    `in_order`: its files are streams, written front to back, by one worker each. `one_by_one`: also the files among
    themselves are written in listing order, by one worker, because later ones rely on earlier ones.
    Single entries that can't be written are Problems; a target that can't go on raises TargetError and its kinds.
    """

    @property
    def in_order(self) -> bool: ...

    @property
    def one_by_one(self) -> bool: ...

    def chain(self, path: bytes) -> bytes:
        """Return what the files that rely on each other have in common: one that fails takes the later ones along."""
        ...

    def where(self) -> str:
        """Return the place for people; never a secret."""
        ...

    def check(self) -> None:
        """Raise TargetMissing (C27), TargetDenied, TargetNotEmpty and the like before anything is written."""
        ...

    def existing(self, path: bytes) -> int | None:
        """Return the Kind of what stands at `path` now, None when nothing does. Raises UnsafePath."""
        ...

    def make(self, entry: Entry) -> list[Problem]:
        """Create a directory (attributes come later), symlink, fifo or device; missing parents too."""
        ...

    def create(self, entry: Entry) -> Writer:
        """Begin a file. Raises UnsafePath, or OSError for this file alone."""
        ...

    def write_small(self, entry: Entry, data: bytes | memoryview) -> list[Problem]:
        """Write a whole file at once, as create, write and commit would: the fast path for the many small files."""
        ...

    def link(self, entry: Entry, first: bytes) -> list[Problem]:
        """Make `entry` a hard link of the already restored `first`."""
        ...

    def finish(self, entry: Entry) -> list[Problem]:
        """Set a directory's attributes, after everything inside it was written."""
        ...

    def flush(self) -> None:
        """Make all that was written durable: once, at the end of a restore. Raises OSError."""
        ...


class BaseTarget(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """What targets that are no file systems answer alike: streams in order, no folders, links and devices."""

    @property
    def in_order(self) -> bool:
        return True

    @property
    def one_by_one(self) -> bool:
        return False

    def chain(self, path: bytes) -> bytes:
        return b""

    def existing(self, path: bytes) -> int | None:
        return None

    def create(self, entry: Entry) -> Writer:
        raise NotImplementedError  # each target has its own

    def write_small(self, entry: Entry, data: bytes | memoryview) -> list[Problem]:
        writer = self.create(entry)
        try:
            writer.write(memoryview(data), 0)
        except BaseException:
            writer.abort()
            raise
        return writer.commit()

    def make(self, entry: Entry) -> list[Problem]:
        if entry.kind == Kind.DIRECTORY:
            return []
        return [Problem(entry.path, "write-failed", "a link, fifo or device has no place in this target")]

    def link(self, entry: Entry, first: bytes) -> list[Problem]:
        return [Problem(entry.path, "write-failed", "a hard link has no place in this target")]

    def finish(self, entry: Entry) -> list[Problem]:
        return []

    def flush(self) -> None: ...
