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
from collections.abc import Callable, Sequence
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import NamedTuple

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

    def run(self, lanes: Sequence[Lane], *, processes: int, check: Callable[[], None]) -> "Results":
        """Start all lanes, top to bottom, and return their results as they come."""
        count = max(min(processes, len(lanes)), 1)
        return Results(self._start([lanes[number::count] for number in range(count)]), self._failed, check)

    def _start(self, shares: list[Sequence[Lane]]) -> "_Started":
        # Nothing here runs threads when a call begins: they all live in the processes.
        context = get_context("fork")
        wake, alive = os.pipe()
        members: dict[Connection[Done, Done], _Member] = {}
        for share in shares:
            mine, theirs = context.Pipe(duplex=False)
            process = context.Process(target=self._work, args=(share, theirs, wake, alive), daemon=True)
            process.start()
            theirs.close()
            members[mine] = _Member(process, {number for lane in share for number in lane.numbers})
        os.close(wake)
        return _Started(members, alive)

    def _work(
        self, share: Sequence[Lane], results: "Connection[tuple[int, Done], None]", wake: int, alive: int
    ) -> None:
        """Be one process: a thread for each lane."""
        os.close(alive)
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


class _Started(NamedTuple):
    """The processes by the pipes of their results; closing `alive` asks them to stop."""

    members: "dict[Connection[Done, Done], _Member]"
    alive: int


class Results:
    """Iterate to get (number, Done) in the order in which objects end; every object is answered for once."""

    def __init__(self, started: _Started, failed: Callable[[int, str], Done], check: Callable[[], None]) -> None:
        self._members, self._alive = started
        self._failed, self._check = failed, check
        self._stop_at_s = 0.0

    def __iter__(self) -> "Results":
        self._ready: list[tuple[int, Done]] = []
        return self

    def __next__(self) -> tuple[int, Done]:
        while not self._ready:
            if not self._members:
                self._ask_to_stop()
                raise StopIteration
            self._look()
        return self._ready.pop(0)

    def _look(self) -> None:
        for ready in wait(list(self._members), _LOOK_S):
            assert isinstance(ready, Connection)
            member = self._members[ready]
            try:
                number, done = ready.recv()
            except (EOFError, OSError):
                self._end(ready, member)
                continue
            member.open.discard(number)
            self._ready.append((number, done))
        try:
            self._check()
        except Canceled:
            self._ask_to_stop()
        if self._stop_at_s and time.monotonic() > self._stop_at_s:
            for member in self._members.values():
                member.process.kill()

    def _end(self, ended: "Connection[Done, Done]", member: _Member) -> None:
        del self._members[ended]
        ended.close()
        member.process.join(GRACE_S)
        for number in sorted(member.open):
            self._ready.append((number, self._failed(number, f"its process ended with code {member.process.exitcode}")))

    def _ask_to_stop(self) -> None:
        if self._alive >= 0:
            os.close(self._alive)
            self._alive = -1
            self._stop_at_s = time.monotonic() + GRACE_S
