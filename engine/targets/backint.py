"""Where an object of a SAP HANA backup goes back to: a pipe that the database reads, or a file."""

import contextlib
import os
import secrets
import stat

from engine.connections.pipe import IDLE_S, OPEN_S, Patience, PipeWriter
from engine.entries import Entry, Problem
from engine.errors import TargetError
from engine.targets.port import BaseTarget


class BackintTarget(BaseTarget, frozen=True, tag="backint", kw_only=True):
    """Writes the one file of a point into `destination`: HANA makes pipes, the agent makes files.

    A file comes about whole or not at all. `wake` belongs to this process (engine.connections.pipe).
    """

    destination: str
    is_pipe: bool = True
    open_s: float = OPEN_S
    idle_s: float = IDLE_S
    wake: int = -1

    def where(self) -> str:
        return self.destination

    def check(self) -> None:
        """Raise TargetError for a place that is no whole path."""
        if not self.destination.startswith("/") or "\0" in self.destination:
            raise TargetError(f"{self.destination!r} is no place to restore to: it must be an absolute path")

    def create(self, entry: Entry) -> "PipeFile | PlainFile":
        """Open the pipe once it has its reader, or begin the file. Raises TargetUnavailable, OSError for a file."""
        if self.is_pipe or _is_pipe(self.destination):
            return PipeFile(PipeWriter(self.destination, Patience(self.open_s, self.idle_s, self.wake)))
        return PlainFile(self.destination)


class PipeFile:
    """A pipe as the file that is restored (the Writer port)."""

    def __init__(self, pipe: PipeWriter) -> None:
        self._pipe = pipe

    def write(self, data: memoryview, offset: int) -> None:
        self._pipe.write(data)

    def commit(self) -> list[Problem]:
        """Close the pipe."""
        self._pipe.close()
        return []

    def abort(self) -> None:
        """Close the pipe: HANA finds its content too short, and hears #ERROR."""
        self._pipe.close()


class PlainFile:
    """A file, written aside and renamed (the Writer port)."""

    def __init__(self, path: str) -> None:
        self._path, self._aside = path, f"{path}.{secrets.token_hex(4)}.part"
        self._fd = os.open(self._aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)

    def write(self, data: memoryview, offset: int) -> None:
        while data:
            count = os.pwrite(self._fd, data, offset)
            data, offset = data[count:], offset + count

    def commit(self) -> list[Problem]:
        """Make the content durable and put it into place."""
        try:
            os.fsync(self._fd)
            os.rename(self._aside, self._path)
        except OSError:
            self.abort()
            raise
        os.close(self._fd)
        return []

    def abort(self) -> None:
        os.close(self._fd)
        with contextlib.suppress(OSError):  # what is left behind tells by its name what it is
            os.unlink(self._aside)


def _is_pipe(path: str) -> bool:
    try:
        return stat.S_ISFIFO(os.stat(path).st_mode)
    except OSError:
        return False
