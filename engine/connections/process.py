"""Programs whose output is backed up, or whose input is restored to: started without a shell, watched to their end.

A program that waits for ever is ended: nothing read or written for `idle_s` counts as a source that went away. Its
standard error is kept in a file, of which errors quote the end.
"""

import contextlib
import os
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import IO, Any

from engine import halt
from engine.errors import ExtraMissing, SourceIncomplete, SourceUnavailable, TargetFailed, TargetUnavailable

IDLE_S = 600
_GRACE_S = 5.0
_SLICE_S = 20.0  # a program that drips must not keep its reader from showing that it lives
_TAIL_BYTES = 64 << 10
_QUOTED = 600


def start(
    argv: Sequence[str], *, env: Mapping[str, str] | None = None, errors: IO[bytes], **pipes: Any
) -> "subprocess.Popen[bytes]":
    """Start a program in a session of its own, with `env` on top of a minimal environment. Raises ExtraMissing.

    Secrets belong into `env`: everybody on the host can read a command line.
    """
    inherited = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}
    try:
        return subprocess.Popen(
            list(argv), stderr=errors, env=inherited | dict(env or {}), start_new_session=True, bufsize=0, **pipes
        )
    except FileNotFoundError as error:
        raise ExtraMissing(
            f"the program {argv[0]!r} is not there: install it on this host, or correct its path"
        ) from error
    except OSError as error:
        raise ExtraMissing(f"the program {argv[0]!r} can't be started: {error.strerror}") from error


def end(process: "subprocess.Popen[bytes]") -> None:
    """End a program and all that it started; it has a few seconds to tidy up."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is not None:
            break
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE_S)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)  # what a program left behind


def quoted(errors: IO[bytes]) -> str:
    """Return the end of what a program wrote to its standard error, on one line, for people."""
    size = errors.seek(0, os.SEEK_END)
    errors.seek(max(size - _TAIL_BYTES, 0))
    text = " ".join(errors.read().decode("utf-8", "replace").split())
    return text if len(text) <= _QUOTED else f"… {text[-_QUOTED:]}"


@contextlib.contextmanager
def _closing_on_error(file: IO[bytes]) -> Iterator[None]:
    try:
        yield
    except BaseException:
        file.close()
        raise


def _until(happened: Callable[[float], object], timeout_s: float) -> bool:
    """Say whether `happened(seconds)`, asked again and again, came true in time; an order to stop ends the wait."""
    end_s = time.monotonic() + timeout_s
    while True:
        halt.check()
        left_s = max(end_s - time.monotonic(), 0)
        if happened(min(left_s, halt.STEP_S)):
            return True
        if left_s <= 0:
            return False


def _ended(process: "subprocess.Popen[bytes]", timeout_s: float) -> bool:
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout_s)
    return process.returncode is not None


class Output:
    """A program's standard output, read once from the front. `tail` is the end of what was read."""

    def __init__(self, argv: Sequence[str], *, env: Mapping[str, str] | None = None, idle_s: float = IDLE_S) -> None:
        self.name = os.path.basename(argv[0])
        self._idle_s = idle_s
        self.errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  # closed with this object
        with _closing_on_error(self.errors):
            self._process = start(argv, env=env, errors=self.errors, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        self.at = 0
        self.tail = b""
        self.ended = False

    def readinto(self, view: memoryview) -> int:
        """Fill the view, or as much of it as comes before the end or within a while; 0 at the end.

        Raises SourceUnavailable.
        """
        output = self._process.stdout
        assert output is not None
        done = 0
        short_at_s = time.monotonic() + _SLICE_S
        while done < len(view) and not self.ended and not (done and time.monotonic() > short_at_s):
            if not _until(lambda step_s: select.select([output], [], [], step_s)[0], self._idle_s):
                raise SourceUnavailable(f"{self.name} has written nothing for {self._idle_s:g} s")
            count = os.readv(output.fileno(), [view[done:]])
            self.ended = count == 0
            done += count
        self.at += done
        self.tail = (self.tail + bytes(view[max(done - _TAIL_BYTES, 0) : done]))[-_TAIL_BYTES:]
        return done

    def code(self) -> int:
        """Wait for the program's end and return its exit code (minus the signal that killed it)."""
        if not _until(lambda left_s: _ended(self._process, left_s), self._idle_s):
            raise SourceUnavailable(f"{self.name} closed its output and did not end within {self._idle_s:g} s")
        code: int = self._process.wait()
        return code

    def prove(self, *, marker: bytes = b"") -> None:
        """Raise SourceIncomplete unless all was read, the program ended with 0 and `marker` stands near the end."""
        if not self.ended:
            raise SourceIncomplete(f"the output of {self.name} was not read to its end")
        if code := self.code():
            how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
            raise SourceIncomplete(f"{self.name} {how}: {quoted(self.errors) or 'it said nothing'}")
        if marker and marker not in self.tail:
            raise SourceIncomplete(
                f"{self.name} ended without the sign of completeness {marker.decode('utf-8', 'replace')!r} "
                f"near the end of its output {quoted(self.errors)}".rstrip()
            )

    def close(self) -> None:
        """End the program if it still runs."""
        end(self._process)
        if self._process.stdout is not None:
            self._process.stdout.close()
        self.errors.close()


class Input:
    """A program's standard input, written once from the front. Its output goes where its errors go."""

    def __init__(self, argv: Sequence[str], *, env: Mapping[str, str] | None = None, idle_s: float = IDLE_S) -> None:
        self.name = os.path.basename(argv[0])
        self._idle_s = idle_s
        self.errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  # closed with this object
        with _closing_on_error(self.errors):
            self._process = start(argv, env=env, errors=self.errors, stdin=subprocess.PIPE, stdout=self.errors)
        assert self._process.stdin is not None
        os.set_blocking(self._process.stdin.fileno(), False)
        self.at = 0

    def write(self, data: bytes | memoryview) -> None:
        """Write all of it. Raises TargetFailed when the program ended before, TargetUnavailable when it hangs."""
        taker = self._process.stdin
        assert taker is not None
        view = memoryview(data)
        deadline_s = time.monotonic() + self._idle_s
        while view:
            left_s = max(deadline_s - time.monotonic(), 0)
            if not _until(lambda step_s: select.select([], [taker], [], step_s)[1], left_s):
                raise TargetUnavailable(f"{self.name} has taken nothing for {self._idle_s:g} s")
            try:
                count = os.write(taker.fileno(), view)
            except BlockingIOError:
                continue
            except BrokenPipeError:
                raise TargetFailed(f"{self.name} stopped reading: {self._said()}") from None
            view = view[count:]
            self.at += count
            deadline_s = time.monotonic() + self._idle_s

    def prove(self) -> None:
        """Close the input and wait; raise TargetFailed unless the program ends with 0."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        if not _until(lambda left_s: _ended(self._process, left_s), self._idle_s):
            raise TargetUnavailable(f"{self.name} did not end within {self._idle_s:g} s")
        if code := self._process.wait():
            raise TargetFailed(f"{self.name} ended with code {code}: {self._said()}")

    def _said(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_GRACE_S)
        return quoted(self.errors) or "it said nothing"

    def close(self) -> None:
        """End the program if it still runs."""
        end(self._process)
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()
        self.errors.close()
