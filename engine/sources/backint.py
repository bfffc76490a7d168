"""One object of a SAP HANA backup: a pipe that the database writes, or a file, as the Backint agent is given it."""

import os
from collections.abc import Iterator

import msgspec

from engine.connections.pipe import IDLE_S, OPEN_S, Patience, PipeReader
from engine.entries import Entry, Problem
from engine.errors import SourceError, SourceIncomplete, SourceMissing, SourceUnavailable
from engine.sources.port import BaseSource, Identity
from engine.sources.stream import StreamReader, stream_entry


class BackintSource(BaseSource, frozen=True, tag="backint", kw_only=True):
    """The object that HANA calls `name`, a whole path, kept as one file at that path.

    A pipe is read until its writer closes it: nothing in the data tells whether that was the end, so a pipe without a
    byte is no backup, and the rest is what HANA's own catalogue says. `database` is HANA's DB@SID; `level` and
    `backup` are kept for people. `wake` belongs to this process (engine.connections.pipe).
    """

    name: str
    host: str
    database: str
    is_pipe: bool = True
    level: str = ""
    backup: str = ""
    open_s: float = OPEN_S
    idle_s: float = IDLE_S
    wake: int = -1

    def identity(self) -> Identity:
        """Return HANA's name of the object, which `inquire` gives back."""
        return Identity("backint", self.host, [self.name])

    def options(self) -> dict[str, list[str]]:
        kept = {"database": self.database, "level": self.level, "backup": self.backup, "object": self._form}
        return {name: [text] for name, text in kept.items() if text}

    def check(self) -> None:
        """Raise SourceError for a name that can't be the path of an entry. The pipe itself may be made later."""
        entry_path(self.name)

    def walk(self) -> Iterator[Entry | Problem]:
        yield stream_entry(entry_path(self.name))

    def open(self, entry: Entry) -> StreamReader | Problem:
        """Open the object. Nothing of it may be missing from a point, so every error is raised."""
        fresh = msgspec.structs.replace(entry)
        if self.is_pipe:
            pipe = PipeReader(self.name, Patience(self.open_s, self.idle_s, self.wake))
            return StreamReader(fresh, pipe, pipe.prove)
        file = _File(self.name)
        return StreamReader(fresh, file, file.prove)

    @property
    def _form(self) -> str:
        return "pipe" if self.is_pipe else "file"


class _File:
    """A plain file, read from the front (a Producer)."""

    def __init__(self, path: str) -> None:
        self._path = path
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise SourceMissing(f"{path} is not there") from error
        except OSError as error:
            raise SourceUnavailable(f"{path} can't be read: {error.strerror}") from error
        self._at = 0

    def readinto(self, view: memoryview) -> int:
        try:
            count = os.readv(self._fd, [view])
        except OSError as error:
            raise SourceUnavailable(f"{self._path} can't be read: {error.strerror}") from error
        self._at += count
        return count

    def prove(self) -> None:
        """Raise SourceIncomplete unless the file is as long as what was read."""
        size = os.fstat(self._fd).st_size
        if size != self._at:
            raise SourceIncomplete(f"{self._path} changed while it was read: {self._at} of {size} bytes")

    def close(self) -> None:
        os.close(self._fd)


def entry_path(name: str) -> bytes:
    """Return the path of the entry that holds HANA's object `name`; `"/" + path` is the name. Raises SourceError."""
    parts = name.split("/")
    if parts[0] or len(parts) < 2 or any(part in ("", ".", "..") or "\0" in part for part in parts[1:]):
        raise SourceError(f"{name!r} can't be kept: an object's name is an absolute path, without '//', '.' and '..'")
    return name[1:].encode()
