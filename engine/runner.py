"""Run a verb on this machine: plan -> work -> finish on a pool of processes (architecture, section 3).

The parent plans and finishes; workers work. One unit is too little for a pool: it is done in the parent, so that
a run without changes starts no process. Results reach `finish` in unit order, and no more than LOOK_AHEAD units a
worker are under way or waiting for their turn, which bounds the memory.

Canceling goes one way: the parent's Progress raises Canceled from `check`, a shared byte tells the workers, and what
is left of them after GRACE_S is killed. A worker whose parent is gone ends by itself: its pipe ends.
"""

import contextlib
import datetime as dt
import importlib
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from itertools import chain
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Protocol, TypeVar, cast, get_type_hints

import msgspec

from engine import allocation
from engine.errors import Canceled, EngineError, StorageError
from engine.keyproviders.port import KeyProvider
from engine.keyproviders.spec import KeySpec, open_provider
from engine.progress import Progress
from engine.storage.location import Location, open_storage
from engine.storage.port import Storage
from engine.vault import Vault

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from multiprocessing.context import ForkContext, SpawnContext
    from multiprocessing.process import BaseProcess

BEAT_S = 60.0
GRACE_S = 10.0
POLL_S = 0.02
WAIT_S = 0.2
LOOK_AHEAD = 3
COUNTERS = 3

Job = TypeVar("Job", contravariant=True)
Unit = TypeVar("Unit")
Result = TypeVar("Result")
Outcome = TypeVar("Outcome", covariant=True)


class Verb(Protocol[Job, Unit, Result, Outcome]):
    """A module of engine.verbs. Units and results are msgspec structs, named by the annotations of `work`."""

    @property
    def __name__(self) -> str: ...

    def plan(self, vault: Vault, job: Job, progress: Progress, *, now: dt.datetime) -> Iterator[Unit]: ...

    def work(self, vault: Vault, job: Job, unit: Unit, progress: Progress) -> Result: ...

    def finish(
        self,
        vault: Vault,
        job: Job,
        results: Iterable[Result],
        progress: Progress,
        *,
        clock: Callable[[], dt.datetime],
    ) -> Outcome: ...


class VaultOpener(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """All that another process needs to open the vault. Holds secrets: it goes through pipes, never into a file.

    `cache` is a folder of this host, empty for none. `other` is the vault that this one is a replica of. `clock`, a
    module's function, lets a folder forget locks that have ended.
    """

    location: Location
    key: KeySpec
    cache: str = ""
    other: Location | None = None
    clock: Callable[[], dt.datetime] | None = None

    def open(self) -> Vault:
        """Open the vault. Raises what Vault.open raises."""
        vault = Vault.open(self.storage(), provider=self.provider(), cache=Path(self.cache) if self.cache else None)
        vault.other = open_storage(self.other) if self.other else None
        return vault

    def storage(self) -> Storage:
        """Return the store; nothing is contacted yet."""
        return open_storage(self.location, clock=self.clock)

    def provider(self) -> KeyProvider:
        """Return the key, with connections of its own, which no fork shares. Raises BadKeyFile, KeyRefused."""
        return open_provider(self.key)

    @cached_property
    def vault(self) -> Vault:
        """Return the vault, opened once for this process."""
        return self.open()

    def __repr__(self) -> str:
        return f"VaultOpener({self.location!r})"


def usable_cores() -> int:
    """Return how many cores this process may use."""
    with contextlib.suppress(AttributeError):  # macOS has no affinity
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class WorkerDied(EngineError):
    """A worker process ended without a word; nothing was committed."""

    advice = "If the system ran out of memory, run it again with fewer workers: what was stored is used"


def run(
    opener: VaultOpener,
    verb: Verb[Job, Unit, Result, Outcome],
    job: Job,
    *,
    workers: int,
    progress: Progress,
    clock: Callable[[], dt.datetime],
) -> Outcome:
    """Run a verb to its end and return its outcome; no process outlives the call.

    With one worker everything happens here. Raises what the verb raises, here or in a worker, Canceled when
    `progress.check` does, WorkerDied, and ValueError for fewer than one worker.
    """
    if workers < 1:
        raise ValueError(f"{workers} workers can't do anything: give at least 1")
    allocation.keep_freed()
    vault = opener.vault
    watch = _Watch(progress, lambda now: _beat(vault, job, now), clock)
    units = _begun(verb.plan(vault, job, watch, now=clock()), lambda: _abort(vault, job, clock()))
    if workers == 1:
        results = (verb.work(vault, job, unit, watch) for unit in units)
        return verb.finish(vault, job, results, watch, clock=clock)

    def inline(unit: Unit) -> Result:
        return verb.work(vault, job, unit, watch)

    with _Spread(inline, lambda: _Pool(opener, verb.__name__, job, workers), watch, workers * LOOK_AHEAD) as spread:
        return verb.finish(vault, job, spread.results(units), watch, clock=clock)


def _begun(units: Iterator[Unit], abort: Callable[[], None]) -> Iterator[Unit]:
    """Let a plan run to its first unit: `finish` may rely on the session that it opens there."""
    try:
        first = next(units, None)
    except BaseException:
        abort()
        raise
    return iter(()) if first is None else chain([first], units)


def _abort(vault: Vault, job: object, now: dt.datetime) -> None:
    """Close the session of a job whose plan failed before `finish` could take care of it."""
    if name := getattr(job, "session", ""):
        for session in vault.sessions(name):
            session.close("aborted", now)


def _beat(vault: Vault, job: object, now: dt.datetime) -> None:
    """Show that the job's session lives; a beat that fails is made good by the next one."""
    if name := getattr(job, "session", ""):
        with contextlib.suppress(StorageError):
            for session in vault.sessions(name):
                session.beat(now)


class _Watch:
    """The parent's Progress: passes on what it is told, beats, and looks after the pool while it runs."""

    def __init__(self, inner: Progress, beat: Callable[[dt.datetime], None], clock: Callable[[], dt.datetime]) -> None:
        self._inner, self._beat, self._clock = inner, beat, clock
        self.phase, self.total, self.add = inner.phase, inner.total, inner.add
        self.pool: _Pool | None = None
        self._polled_s = 0.0
        self._beaten_s = time.monotonic()

    def check(self) -> None:
        self._inner.check()
        now_s = time.monotonic()
        if now_s - self._beaten_s >= BEAT_S:
            self._beaten_s = now_s
            self._beat(self._clock())
        if self.pool is not None and now_s - self._polled_s >= POLL_S:
            self._polled_s = now_s
            self.pool.receive(0)
            self.report()

    def report(self) -> None:
        """Pass on what the workers have counted since the last time."""
        if self.pool is not None:
            entries, read, stored = self.pool.counted()
            if entries or read or stored:
                self._inner.add(entries=entries, bytes=read, bytes_stored=stored)


class _Slot(Generic[Unit, Result]):
    """The place of one unit in the order of results."""

    def __init__(self) -> None:
        self.result: Result | None = None


class _Spread(Generic[Unit, Result]):
    """Spreads units over a pool, which starts with the second unit that needs work, and keeps their order."""

    def __init__(
        self, inline: Callable[[Unit], Result], start: Callable[[], "_Pool"], watch: _Watch, window: int
    ) -> None:
        self._inline, self._start, self._watch, self._window = inline, start, watch, window
        self._waiting: deque[_Slot[Unit, Result]] = deque()
        self._held: tuple[Unit, _Slot[Unit, Result]] | None = None

    def __enter__(self) -> "_Spread[Unit, Result]":
        return self

    def __exit__(self, kind: object, *exc: object) -> None:
        pool, self._watch.pool = self._watch.pool, None
        if pool is not None:
            pool.stop(orderly=kind is None)

    def results(self, units: Iterable[Unit]) -> Iterator[Result]:
        """Yield the results in the order of their units."""
        for unit in units:
            slot: _Slot[Unit, Result] = _Slot()
            self._waiting.append(slot)
            if not getattr(unit, "needs_work", True):
                slot.result = self._inline(unit)
            elif self._watch.pool is None and self._held is None:
                self._held = unit, slot
            else:
                self._send(unit, slot)
            if len(self._waiting) >= self._window:
                self._release()
            yield from self._ready(self._window - 1)
        if self._watch.pool is None and self._held is not None:
            unit, slot = self._held
            slot.result, self._held = self._inline(unit), None
        yield from self._ready(0)
        self._watch.report()

    def _ready(self, leave: int) -> Iterator[Result]:
        """Yield what is done at the head of the line, waiting while more than `leave` are in it."""
        while self._waiting:
            result = self._waiting[0].result
            if result is not None:
                self._waiting.popleft()
                yield result
            elif len(self._waiting) > leave:
                self._wait()
            else:
                return

    def _release(self) -> None:
        """Hand on the unit that was held back to see whether it stays alone."""
        if self._held is not None:
            (unit, slot), self._held = self._held, None
            self._hand(unit, slot)

    def _send(self, unit: Unit, slot: _Slot[Unit, Result]) -> None:
        self._release()
        self._hand(unit, slot)

    def _hand(self, unit: Unit, slot: _Slot[Unit, Result]) -> None:
        if self._watch.pool is None:
            self._watch.pool = self._start()
        while not self._watch.pool.give(unit, slot):
            self._wait()

    def _wait(self) -> None:
        assert self._watch.pool is not None
        self._watch.pool.receive(WAIT_S)
        self._watch.report()
        self._watch.check()


class _Pool:
    """Processes that work: `give` them units, `receive` fills the slots. Forks while no thread runs, else spawns.

    What parent and workers share needs no lock that a killed worker could keep: each worker counts in a row of its own.
    """

    def __init__(self, opener: VaultOpener, verb: str, job: object, count: int) -> None:
        # Loading this takes as long as a whole small backup: only a pool pays for it.
        import multiprocessing

        can_fork = sys.platform == "linux" and threading.active_count() == 1
        context: ForkContext | SpawnContext
        context = multiprocessing.get_context("fork") if can_fork else multiprocessing.get_context("spawn")
        self._counters = context.RawArray("q", COUNTERS * count)
        self._stop = context.RawValue("b", 0)
        self._seen = [0] * COUNTERS
        self._slots: dict[int, _Slot[Any, Any]] = {}
        self._given = 0
        self._workers: list[_Worker] = []
        self._decode = _codec_of(importlib.import_module(verb)).result
        try:
            for number in range(count):
                mine, theirs = context.Pipe()
                inherited = [mine, *(worker.pipe for worker in self._workers)] if can_fork else []
                task = _Task(opener, verb, job, self._counters, self._stop, number)
                process = context.Process(target=_worker, args=(theirs, inherited, task), name=f"worker-{number}")
                process.start()
                theirs.close()
                self._workers.append(_Worker(process, mine))
        except BaseException:
            self.stop(orderly=False)
            raise

    def give(self, unit: object, slot: _Slot[Any, Any]) -> bool:
        """Hand a unit to the worker with the least to do; say False when all have enough."""
        worker = min(self._workers, key=lambda one: one.load)
        if worker.load >= LOOK_AHEAD:
            return False
        self._slots[self._given] = slot
        try:
            worker.pipe.send((self._given, msgspec.msgpack.encode(unit)))
        except OSError:
            raise worker.died() from None
        self._given += 1
        worker.load += 1
        return True

    def receive(self, timeout_s: float) -> None:
        """Take the results that have come; wait for the first. Raises what a worker raised, WorkerDied."""
        from multiprocessing.connection import wait  # loaded with the pool

        by_pipe = {worker.pipe: worker for worker in self._workers}
        for ready in wait(list(by_pipe), timeout_s):
            worker = by_pipe[cast("Connection[Any, Any]", ready)]
            try:
                number, data, error = worker.pipe.recv()
            except (EOFError, OSError):
                raise worker.died() from None
            if error is not None:
                raise error
            worker.load -= 1
            self._slots.pop(number).result = self._decode(data)

    def counted(self) -> list[int]:
        """Return what the workers counted since the last call: entries, bytes, bytes stored."""
        sums = [sum(self._counters[number::COUNTERS]) for number in range(COUNTERS)]
        new = [now - before for now, before in zip(sums, self._seen, strict=True)]
        self._seen = sums
        return new

    def stop(self, *, orderly: bool) -> None:
        """End every worker; what does not end within GRACE_S is killed."""
        if not orderly:
            self._stop.value = 1
        for worker in self._workers:
            with contextlib.suppress(OSError):
                worker.pipe.send(None)
        deadline_s = time.monotonic() + GRACE_S
        for worker in self._workers:
            worker.process.join(max(deadline_s - time.monotonic(), 0))
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
            worker.pipe.close()


class _Worker:
    """One process as the parent sees it; `load` counts the units it has."""

    def __init__(self, process: "BaseProcess", pipe: "Connection[Any, Any]") -> None:
        self.process, self.pipe, self.load = process, pipe, 0

    def died(self) -> WorkerDied:
        self.process.join(GRACE_S)
        code = self.process.exitcode
        how = f"was killed by signal {-code}" if code is not None and code < 0 else f"ended with code {code}"
        return WorkerDied(f"a worker process {how}")


class _Task(NamedTuple):
    """What a worker is started with."""

    opener: VaultOpener
    verb: str
    job: object
    counters: Any  # ctypes array and byte in shared memory: their classes are made at run time
    stop: Any
    number: int


class _Counting:
    """A worker's Progress: counters in shared memory, the order to stop from there."""

    def __init__(self, task: _Task) -> None:
        self._counters, self._stop, self._at = task.counters, task.stop, task.number * COUNTERS

    def phase(self, name: str) -> None: ...

    def total(self, *, entries: int = 0, bytes: int = 0) -> None: ...

    def add(self, *, entries: int = 0, bytes: int = 0, bytes_stored: int = 0) -> None:
        for number, count in enumerate((entries, bytes, bytes_stored)):
            self._counters[self._at + number] += count

    def check(self) -> None:
        if self._stop.value:
            raise Canceled("canceled")


class _Codec(NamedTuple):
    """How the units and results of one verb travel; several times faster than pickle."""

    unit: Callable[[bytes], Any]
    result: Callable[[bytes], Any]


def _codec_of(verb: Any) -> _Codec:
    hints = get_type_hints(verb.work)
    return _Codec(msgspec.msgpack.Decoder(hints["unit"]).decode, msgspec.msgpack.Decoder(hints["return"]).decode)


def _worker(pipe: "Connection[Any, Any]", inherited: "list[Connection[Any, Any]]", task: _Task) -> None:
    """Be a worker until the parent says or is gone.

    Two threads move bytes, so that neither side ever waits for the other to read while it should work.
    """
    # The terminal and the service manager signal the whole group; only the parent may decide what that means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    for other in inherited:
        other.close()
    inbox: SimpleQueue[tuple[int, bytes] | None] = SimpleQueue()
    outbox: SimpleQueue[object] = SimpleQueue()
    threading.Thread(target=_receive, args=(pipe, inbox), daemon=True).start()
    threading.Thread(target=_answer, args=(pipe, outbox), daemon=True).start()
    allocation.keep_freed()
    progress = _Counting(task)
    vault: Vault | None = None
    verb = importlib.import_module(task.verb)
    decode = _codec_of(verb).unit
    while (message := inbox.get()) is not None:
        number, data = message
        try:
            progress.check()
            vault = vault or task.opener.open()
            result = verb.work(vault, task.job, decode(data), progress)
            outbox.put((number, msgspec.msgpack.encode(result), None))
        except BaseException as error:  # all of them: the parent decides
            outbox.put((number, b"", _portable(error)))


def _receive(pipe: "Connection[Any, Any]", inbox: "SimpleQueue[tuple[int, bytes] | None]") -> None:
    try:
        while (message := pipe.recv()) is not None:
            inbox.put(message)
        inbox.put(None)
    except (EOFError, OSError):
        os._exit(1)  # the parent is gone: nobody waits for what this process does


def _answer(pipe: "Connection[Any, Any]", outbox: "SimpleQueue[object]") -> None:
    with contextlib.suppress(OSError):  # the parent stopped listening: it is ending
        while True:
            pipe.send(outbox.get())


def _portable(error: BaseException) -> BaseException:
    """Return the error in a form that arrives: with its type, and for surprises with the place it happened at."""
    if not isinstance(error, EngineError):
        error.add_note("".join(traceback.format_exception(error)))
    error.__cause__ = error.__context__ = None
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301 -- our own object
        return error
    except Exception:  # whatever its constructor demands
        return EngineError(f"{type(error).__name__}: {error}")
