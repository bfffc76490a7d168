"""Several verbs at once on one store, in an order that a seed decides: every storage call is a place to change turns.

The verbs are the real ones. An actor that is killed is never given a turn again, and nothing of it takes effect any
more, as after kill -9. What it does in threads of its own belongs to the turn it has.
"""

import copy
import datetime as dt
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from greenlet import getcurrent, greenlet

from engine.errors import EngineError
from engine.storage import Memory
from engine.storage.passing import Whole
from engine.storage.port import Bytes, Refusal, Stored
from engine.verbs import backup
from tests.support.replication import Replica
from tests.support.runs import backed_up
from tests.support.vaults import Bench, Clock, contents, on_disk


class Killed(BaseException):
    """The actor's process is gone: unwind without touching anything."""


class Actor:
    """One process: `act` gets a bench on the shared store. `result` or `error` tell how it ended, if it did.

    Its clock is wrong by `clock_days`.
    """

    def __init__(self, name: str, bench: Bench, act: Callable[[Bench], object], *, clock_days: int = 0) -> None:
        self.name = name
        self.result: object = None
        self.error: EngineError | None = None
        self.calls = 0
        self.is_dead = False
        self._bench = copy.copy(bench)
        assert isinstance(bench.storage, Memory)
        self._bench.storage = _Turns(bench.storage, self)
        self._bench.clock = Clock(bench.clock.time + dt.timedelta(days=clock_days))
        if isinstance(self._bench, Replica):  # a replica's actors take turns at both ends
            source = copy.copy(self._bench.source)
            assert isinstance(source.storage, Memory)
            source.storage = _Turns(source.storage, self)
            self._bench.source = source
        self._act = act
        self.greenlet = greenlet(self._run)

    @property
    def is_over(self) -> bool:
        """Say whether it ended or was killed."""
        return self.greenlet.dead or self.is_dead

    def kill(self) -> None:
        """Stop it for good, now."""
        self.is_dead = True
        if self.greenlet:
            self.greenlet.throw(Killed)

    def pause(self) -> None:
        """Give the turn away before a call takes effect."""
        if self.is_dead:
            raise Killed
        self.calls += 1
        if getcurrent() is self.greenlet:
            self.greenlet.parent.switch()
        if self.is_dead:
            raise Killed

    def _run(self) -> None:
        try:
            self.result = self._act(self._bench)
        except EngineError as error:
            self.error = error
        except Killed:
            pass


class _Turns(Whole):
    """A store whose every call waits for its actor's turn."""

    def __init__(self, inner: Memory, actor: Actor) -> None:
        self._inner, self._actor = inner, actor

    def put(self, key: str, data: Bytes, *, locked_until: dt.datetime | None = None, sha256: str = "") -> None:
        self._actor.pause()
        self._inner.put(key, data, locked_until=locked_until, sha256=sha256)

    def get(self, key: str, *, offset: int = 0, length: int | None = None) -> bytes:
        self._actor.pause()
        return self._inner.get(key, offset=offset, length=length)

    def scan(self, prefix: str, *, after: str = "") -> Iterator[Stored]:
        self._actor.pause()
        return iter(list(self._inner.scan(prefix, after=after)))

    def delete(self, keys: Sequence[str]) -> list[Refusal]:
        refusals: list[Refusal] = []
        for key in keys:  # a batch is no single moment
            self._actor.pause()
            refusals += self._inner.delete([key])
        return refusals

    def extend_lock(self, key: str, *, until: dt.datetime) -> None:
        self._actor.pause()
        self._inner.extend_lock(key, until=until)

    def locked_until(self, key: str) -> dt.datetime | None:
        self._actor.pause()
        return self._inner.locked_until(key)


def interleave(actors: Sequence[Actor], rng: random.Random, *, kill_share: float = 0.0) -> None:
    """Give turns until all are over. Runs of turns differ in length, so that now one and now another falls behind."""
    current, change_share = rng.choice(actors), rng.choice((0.02, 0.05, 0.1, 0.3))
    while running := [actor for actor in actors if not actor.is_over]:
        if current.is_over or rng.random() < change_share:
            current = rng.choice(running)
        if kill_share and rng.random() < kill_share:
            current.kill()
            continue
        current.greenlet.switch()


def back_up(folder: Path, series: str, bench: Bench) -> backup.Outcome:
    """Back up a folder: what an actor does."""
    return backed_up(bench, folder, series=series)


def as_stored(folder: Path) -> dict[bytes, bytes]:
    """Return what a folder holds, by the paths of a point."""
    return {bytes(folder)[1:] + b"/" + path: data for path, data in on_disk(folder).items()}


def lost(bench: Bench, truth: dict[str, dict[bytes, bytes]], promised: list[str]) -> str:
    """Say what is lost, empty when all is well. `truth` by series; `promised` are points reported as done."""
    vault = bench.open()
    names = vault.points()
    missing = set(promised) - {name.point for name in names}
    if missing:
        return f"{missing} were reported as done and are not there"
    present = {stored.key.rpartition("/")[2]: stored.size for stored in bench.storage.scan("")}
    for name in names:
        for pack in vault.root(name).needed:
            if present.get(pack.name) != pack.size:
                return f"{name} misses {pack.name}"
        if contents(vault, name) != truth[name.series]:
            return f"{name} has other content"
    return ""
