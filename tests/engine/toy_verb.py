"""A verb that does what a test of the runner needs; loaded by its name in worker processes."""

import datetime as dt
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import msgspec

from engine.errors import Locked
from engine.progress import Progress
from engine.vault import Vault

UNTIL = dt.datetime(2030, 1, 1, tzinfo=dt.UTC)


class ToyJob(msgspec.Struct, frozen=True, kw_only=True):
    """`special` says what happens to the unit of number `at`; `idle` units need no work."""

    units: int
    special: str = ""
    at: int = 0
    idle: tuple[int, ...] = ()
    folder: str = ""
    session: str = ""


class Unit(msgspec.Struct):
    number: int
    idle: bool

    @property
    def needs_work(self) -> bool:
        return not self.idle


class Result(msgspec.Struct):
    number: int
    pid: int
    is_spawned: bool


class Outcome(msgspec.Struct):
    """`ahead_max`: how many units were planned and not yet finished at the worst moment."""

    numbers: list[int]
    pids: list[int]
    spawned: bool
    ahead_max: int


_planned = 0
_ahead_max = 0
_taken = 0


def plan(vault: Vault, job: ToyJob, progress: Progress, *, now: dt.datetime) -> Iterator[Unit]:
    global _planned, _ahead_max, _taken
    _planned = _ahead_max = _taken = 0
    for number in range(job.units):
        _planned += 1
        _ahead_max = max(_ahead_max, _planned - _taken)
        yield Unit(number, number in job.idle)


def work(vault: Vault, job: ToyJob, unit: Unit, progress: Progress) -> Result:
    if job.folder:
        Path(job.folder, str(os.getpid())).touch()
    if unit.number == job.at:
        _special(job.special, progress)
    progress.add(entries=1, bytes=10, bytes_stored=3)
    return Result(unit.number, os.getpid(), "__mp_main__" in sys.modules)


def finish(
    vault: Vault, job: ToyJob, results: Iterable[Result], progress: Progress, *, clock: Callable[[], dt.datetime]
) -> Outcome:
    global _taken
    taken = []
    for result in results:
        _taken += 1
        taken.append(result)
        progress.check()
    spawned = any(result.is_spawned for result in taken)
    return Outcome([result.number for result in taken], [result.pid for result in taken], spawned, _ahead_max)


def _special(what: str, progress: Progress) -> None:
    if what == "slow":
        time.sleep(0.5)
    elif what == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    elif what == "locked":
        raise Locked("locked for the test", until=UNTIL)
    elif what == "surprise":
        raise ZeroDivisionError("nobody expects it")
    elif what == "hang":
        while True:
            progress.check()
            time.sleep(0.01)
    elif what == "stuck":
        time.sleep(3600)
