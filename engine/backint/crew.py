"""Many objects at once: processes that share out lanes, each lane a thread that does its objects one after the other.

HANA writes all pipes of a call at the same time, and waits for all: every pipe has a lane of its own, and no lane ever
waits for another one. Processes spread them over the cores. A process ends when the agent is gone, however it went: it
holds one end of a pipe that only the agent keeps open.
"""

import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple

import msgspec

from engine.connections.pipe import asked
from engine.errors import Canceled, EngineError
from engine.runner import VaultOpener

GRACE_S = 20.0
_LOOK_S = 0.5
_LOG = logging.getLogger("engine.backint")


class Done(msgspec.Struct, frozen=True):
    """How one object ended: the line for HANA, whether all went well, and what the log shall say."""

    line: str
    is_well: bool
    note: str = ""


class Lane(NamedTuple):
    """Objects that one thread does in order, by their numbers in the input."""

    numbers: Sequence[int]


# Does the object of this number; the last argument is the descriptor that wakes it to stop.
Act = Callable[[VaultOpener, int, int], Done]


class Waking:
    """Progress that nobody counts, and that ends when the agent says so or is gone."""

    def __init__(self, wake: int) -> None:
        self._wake = wake

    def phase(self, name: str) -> None: ...

    def total(self, *, entries: int = 0, bytes: int = 0) -> None: ...

    def add(self, *, entries: int = 0, bytes: int = 0, bytes_stored: int = 0) -> None: ...

    def check(self) -> None:
        if asked(self._wake):
            raise Canceled("canceled; nothing was committed")


class Crew:
    """The processes of one call. `failed` makes the line of an object whose process died."""

    def __init__(self, opener: VaultOpener, act: Act, failed: Callable[[int, str], Done]) -> None:
        self._opener, self._act, self._failed = opener, act, failed

    def run(self, lanes: Sequence[Lane], *, processes: int, check: Callable[[], None]) -> Iterator[Done]:
        """Start all lanes, top to bottom, and yield how their objects end, each once.

        When `check` raises Canceled all is asked to stop, and the rest of the answers comes. No process outlives the
        iterator.
        """
        count = max(min(processes, len(lanes)), 1)
        team = _Team(self._failed)
        try:
            for number in range(count):
                team.start(self._work, lanes[number::count])
            yield from team.results(check)
        finally:
            team.end()

    def _work(
        self, share: Sequence[Lane], results: "Connection[tuple[int, Done], None]", wake: int, alive: int
    ) -> None:
        """Be one process: a thread for each lane."""
        os.close(alive)
        signal.set_wakeup_fd(-1)
        # The terminal and HANA signal the whole group; only the agent may decide what that means.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        mutex = threading.Lock()

        def do(lane: Lane) -> None:
            opener = msgspec.structs.replace(self._opener)  # an open vault is for one thread
            for number in lane.numbers:
                done = self._do(opener, number, wake)
                with mutex, contextlib.suppress(OSError):
                    results.send((number, done))

        threads = [threading.Thread(target=do, args=(lane,)) for lane in share]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _do(self, opener: VaultOpener, number: int, wake: int) -> Done:
        try:
            return self._act(opener, number, wake)
        except (EngineError, OSError) as error:
            return self._failed(number, str(error))
        except Exception as error:
            _LOG.exception("unexpected")
            return self._failed(number, f"{type(error).__name__}: {error}")


class _Member(NamedTuple):
    """One process, and what it has not answered for yet."""

    process: BaseProcess
    open: set[int]


class _Team:
    """Processes by the pipes of their results. Closing `alive`, which only the agent holds, asks them to stop."""

    def __init__(self, failed: Callable[[int, str], Done]) -> None:
        # Nothing runs threads here when they start: threads all live in the processes.
        self._context = get_context("fork")
        self._failed = failed
        self._wake, self._alive = os.pipe()
        self._members: dict[Connection[Any, Any], _Member] = {}
        self._kill_at_s = 0.0
        # A signal is heard at once: what HANA cuts off after it must not be taken for a pipe's end.
        self._heard, self._signal = os.pipe()
        os.set_blocking(self._signal, False)
        self._before = signal.set_wakeup_fd(self._signal, warn_on_full_buffer=False)

    def start(self, work: Callable[..., None], share: Sequence[Lane]) -> None:
        mine, theirs = self._context.Pipe(duplex=False)
        process = self._context.Process(target=work, args=(share, theirs, self._wake, self._alive), daemon=True)
        process.start()
        theirs.close()
        self._members[mine] = _Member(process, {number for lane in share for number in lane.numbers})

    def results(self, check: Callable[[], None]) -> Iterator[Done]:
        while self._members:
            for ready in wait([self._heard, *self._members], _LOOK_S):
                if isinstance(ready, Connection):
                    yield from self._received(ready)
                else:
                    os.read(self._heard, 100)
            try:
                check()
            except Canceled:
                self._ask_to_stop()
            if self._kill_at_s and time.monotonic() > self._kill_at_s:
                self._kill()

    def end(self) -> None:
        """End what still runs: nobody waits for it any more."""
        self._ask_to_stop()
        signal.set_wakeup_fd(self._before)
        for fd in (self._wake, self._heard, self._signal):
            os.close(fd)
        deadline_s = time.monotonic() + GRACE_S
        for pipe, member in self._members.items():
            member.process.join(max(deadline_s - time.monotonic(), 0))
            pipe.close()
        self._kill()

    def _received(self, pipe: "Connection[Any, Any]") -> Iterator[Done]:
        member = self._members[pipe]
        try:
            number, done = pipe.recv()
        except (EOFError, OSError):
            del self._members[pipe]
            pipe.close()
            member.process.join(GRACE_S)
            for number in sorted(member.open):
                yield self._failed(number, f"its process ended with code {member.process.exitcode}")
            return
        member.open.discard(number)
        yield done

    def _ask_to_stop(self) -> None:
        if self._alive >= 0:
            os.close(self._alive)
            self._alive = -1
            self._kill_at_s = time.monotonic() + GRACE_S

    def _kill(self) -> None:
        for member in self._members.values():
            member.process.kill()
            member.process.join()
