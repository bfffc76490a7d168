"""Vaults with locks to test with: one clock for the vault and for its store's locks, and audits of it."""

import datetime as dt

from engine.ids import new_ulid
from engine.locks import LockPolicy, enable
from engine.progress import Silent
from engine.storage import Memory, Storage
from engine.verbs import audit, uncover
from tests.support.vaults import START, Bench, travelled


class LockingBench(Bench):
    """A vault in a store in memory that keeps compliance locks by the bench's own clock."""

    def __init__(self) -> None:
        self._hand: Bench | None = None
        self.memory = Memory(clock=lambda: self._hand.clock.time if self._hand else START)
        super().__init__(self.memory)
        self._hand = self

    def pass_days(self, days: float) -> None:
        """Let time go by."""
        self.clock.time += dt.timedelta(days=days)


def locked(bench: Bench, days: int = 30) -> LockPolicy:
    """Lock a bench's vault."""
    return enable(bench.open(), days=days, now=bench.clock())


def audited(bench: Bench) -> audit.Outcome:
    """Audit a bench's vault as a fresh process would."""
    found = tuple(uncover.entrance(bench.storage, bench.ring))
    job = audit.AuditJob(session=new_ulid(bench.clock()), started_at=bench.clock(), entrance=found)
    planner, worker, silent = bench.open(), bench.open(), Silent()
    results = (
        travelled(audit.work(worker, job, travelled(unit), silent))
        for unit in audit.plan(planner, job, silent, now=bench.clock())
    )
    return travelled(audit.finish(planner, job, results, silent, clock=bench.clock))


def through(bench: Bench, storage: Storage) -> Bench:
    """Return the same bench as it looks through another storage."""
    other = object.__new__(Bench)
    other.__dict__.update(bench.__dict__, storage=storage)
    return other
