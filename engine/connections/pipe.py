"""Named pipes that another program makes, writes and reads: opened with patience, and never waited for without end.

`wake` is a descriptor that becomes readable when all is to stop (-1 for none): what waits here then raises Canceled.
"""

import contextlib
import errno
import fcntl
import os
import select
import stat
import time
from collections.abc import Callable
from typing import NamedTuple, TypeVar

from engine.errors import Canceled, SourceIncomplete, SourceUnavailable, TargetFailed, TargetUnavailable

OPEN_S = 60.0
IDLE_S = 1800.0
_STEP_S = 0.05
_SLICE_S = 20.0
_PIPE_BYTES = 1 << 20
T = TypeVar("T")


class Patience(NamedTuple):
    """How long to wait for the other side to open the pipe, and for its next byte."""

    open_s: float = OPEN_S
    idle_s: float = IDLE_S
    wake: int = -1


class PipeReader:
    """A named pipe, read once from the front until its writer closes it (the Producer of a stream)."""

    def __init__(self, path: str, patience: Patience) -> None:
        self.path, self._patience = path, patience
        self._deadline_s = time.monotonic() + patience.open_s
        self._fd = _opened(path, os.O_RDONLY, self._deadline_s, patience.wake, SourceUnavailable)
        self._has_writer = False
        self.at = 0
        self.ended = False

    def readinto(self, view: memoryview) -> int:
        """Fill the view, or as much of it as comes before the end or within a while; 0 at the end.

        Raises SourceUnavailable when nobody opens the pipe to write, or nothing comes for too long.
        """
        done = 0
        short_at_s = time.monotonic() + _SLICE_S
        while done < len(view) and not self.ended and not (done and time.monotonic() > short_at_s):
            count = self._read(view[done:])
            self.ended = count == 0
            done += count
        self.at += done
        return done

    def prove(self) -> None:
        """Raise SourceIncomplete unless the writer closed the pipe after it had written something."""
        if not self.ended:
            raise SourceIncomplete(f"{self.path} was not read to its end")
        if not self.at:
            raise SourceIncomplete(f"{self.path} was closed without a single byte in it")

    def close(self) -> None:
        """Close the pipe; a writer that goes on fails."""
        os.close(self._fd)

    def _read(self, view: memoryview) -> int:
        """Return the count of the next bytes, 0 when the writer has closed the pipe."""
        if self._has_writer:
            self._deadline_s = time.monotonic() + self._patience.idle_s
        while True:
            left_s = self._deadline_s - time.monotonic()
            if left_s <= 0:
                raise SourceUnavailable(self._missed())
            # A pipe that nobody has opened yet reads as ended, and poll sleeps on it: look again soon.
            events = _wait(
                self._fd, select.POLLIN, left_s if self._has_writer else min(left_s, _STEP_S), self._patience.wake
            )
            try:
                count = os.readv(self._fd, [view])
            except BlockingIOError:
                if not self._has_writer:
                    self._has_writer = True
                    self._deadline_s = time.monotonic() + self._patience.idle_s
                continue
            except OSError as error:
                raise SourceUnavailable(f"{self.path} can't be read: {error.strerror}") from error
            if count or self._has_writer or events & select.POLLHUP:
                self._has_writer = True
                return count

    def _missed(self) -> str:
        if not self._has_writer:
            return f"nobody has opened {self.path} to write into it within {self._patience.open_s:g} s"
        return f"nothing has come through {self.path} for {self._patience.idle_s:g} s"


class PipeWriter:
    """A named pipe, written once from the front, for a reader that the other program is."""

    def __init__(self, path: str, patience: Patience) -> None:
        self.path, self._patience = path, patience
        deadline_s = time.monotonic() + patience.open_s
        self._fd = _opened(path, os.O_WRONLY, deadline_s, patience.wake, TargetUnavailable)

    def write(self, data: memoryview) -> None:
        """Write all of it. Raises TargetFailed when the reader is gone, TargetUnavailable when it takes nothing."""
        while data:
            if not _wait(self._fd, select.POLLOUT, self._patience.idle_s, self._patience.wake):
                raise TargetUnavailable(f"{self.path} has taken nothing for {self._patience.idle_s:g} s")
            try:
                data = data[os.write(self._fd, data) :]
            except BlockingIOError:
                continue
            except BrokenPipeError:
                raise TargetFailed(f"the reader of {self.path} closed it before it had all") from None

    def close(self) -> None:
        """Close the pipe: its reader sees the end."""
        os.close(self._fd)


def asked(wake: int) -> bool:
    """Say whether all is to stop."""
    return wake >= 0 and bool(_polled([(wake, select.POLLIN)], 0))


def _opened(path: str, flag: int, deadline_s: float, wake: int, error: Callable[[str], Exception]) -> int:
    """Open a pipe that may not be there yet, or (to write) not have its reader yet. Raises `error`, Canceled."""
    while True:
        try:
            fd = os.open(path, flag | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as failed:
            # ENXIO: a pipe that nobody reads.
            if failed.errno not in (errno.ENOENT, errno.ENXIO) or time.monotonic() >= deadline_s:
                reason = "nobody opened it to read" if failed.errno == errno.ENXIO else failed.strerror
                raise error(f"{path} can't be opened: {reason}") from failed
        else:
            if stat.S_ISFIFO(os.fstat(fd).st_mode):
                with contextlib.suppress(AttributeError, OSError):  # a larger pipe only makes it faster
                    fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
                return fd
            os.close(fd)
            raise error(f"{path} is not a pipe")
        if wake >= 0:
            _wait(wake, select.POLLIN, _STEP_S, wake)
        else:
            time.sleep(_STEP_S)


def _wait(fd: int, event: int, timeout_s: float, wake: int) -> int:
    """Return what happened at `fd`, 0 when nothing did in time. Raises Canceled."""
    wanted = [(fd, event)] if wake in (-1, fd) else [(fd, event), (wake, select.POLLIN)]
    happened = _polled(wanted, timeout_s)
    if wake >= 0 and wake in happened:
        raise Canceled("canceled; nothing was committed")
    return happened.get(fd, 0)


def _polled(wanted: list[tuple[int, int]], timeout_s: float) -> dict[int, int]:
    poll = select.poll()
    for fd, event in wanted:
        poll.register(fd, event)
    return dict(poll.poll(max(timeout_s, 0) * 1000))
