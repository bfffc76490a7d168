"""How fast the worker that does a step may go: its part of the job's limits, as they are at each moment."""

import datetime as dt
import time
from collections.abc import Callable

from engine import halt
from engine.storage.throttle import Budget, Pace, unpaced
from engine.verbs.cutter import UNIT_BYTES
from vaults.limits import Limits

UNIT_BYTES_PACED = 256 << 20
_UNIT_S = 300
_TURN_S = 0.2


class Speed:
    """One step's part of its job's rate, which changes with the time of day. Threads share it."""

    def __init__(self, limits: Limits, *, clock: Callable[[], dt.datetime], budget: Budget | None = None) -> None:
        self._limits, self._clock = limits, clock
        self._budget = budget or Budget(0)
        self._look()

    def take(self, count: int) -> None:
        """Block until `count` bytes may flow (a Pace)."""
        while count > 0:
            self._look()  # each time: a second at the rate of before a window would be too much for its first ten
            part = min(count, self._budget.slice_bytes)
            self._budget.take(part)
            count -= part

    def _look(self) -> None:
        self._budget.change(self._limits.share(self._clock()))


def pace(limits: Limits, *, clock: Callable[[], dt.datetime]) -> Pace:
    """Return the pace of one step, for reading or for sending."""
    return Speed(limits, clock=clock).take if limits.is_limited else unpaced


def unit_bytes(limits: Limits, *, now: dt.datetime) -> int:
    """Return how much one step of a backup reads.

    Its first pack is read before anything is sent, and its last one sent after everything is read: of a rate that both
    are held to, steps of few packs use only half. A step that takes longer than minutes has more to lose, though.
    """
    if not limits.is_limited:
        return UNIT_BYTES
    return min(UNIT_BYTES_PACED, max(UNIT_BYTES, limits.share(now) * _UNIT_S or UNIT_BYTES_PACED))


class Share:
    """Keeps this process to a share of one core, by pauses between pieces of work."""

    def __init__(
        self,
        percent: int,
        *,
        used: Callable[[], float] = time.process_time,
        wall: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = halt.sleep,
    ) -> None:
        self._share = percent / 100
        self._used, self._wall, self._sleep = used, wall, sleep
        self._since_used, self._since_wall = used(), wall()

    def rest(self) -> None:
        """Pause for as long as the work since the last pause was over the share."""
        if self._share >= 1:
            return
        spent, passed = self._used() - self._since_used, self._wall() - self._since_wall
        owed = spent / self._share - passed
        if passed + owed < _TURN_S:
            return
        if owed > 0:
            self._sleep(owed)
        self._since_used, self._since_wall = self._used(), self._wall()
