"""The Target port: where a restore writes."""

from typing import Protocol

from engine.entries import Entry, Problem


class Writer(Protocol):
    """One file being written aside. `write` is positional, in any order; gaps stay holes.

    `commit` sets size and attributes and renames it into place; `abort` removes it. Exactly one of them ends it.
    """

    def write(self, data: memoryview, offset: int) -> None: ...

    def commit(self) -> list[Problem]: ...

    def abort(self) -> None: ...


class Target(Protocol):
    """A place to restore into. Picklable. Never follows a link, never leaves its root (engine invariant 15)."""

    def check(self) -> None:
        """Raise TargetMissing before anything is written (C27)."""
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
