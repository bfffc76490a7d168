"""The engine's Progress port over a step's row: counters in, lease renewed, the order to stop out."""

import datetime as dt
from collections.abc import Callable

from django.conf import settings

from jobs import steps
from jobs.models import Step
from jobs.steps import Counters

BEAT_EVERY = dt.timedelta(seconds=60)


class StepProgress:
    """Progress of one claimed step; writes at most once per STEP_HEARTBEAT_S. Raises Fenced or Canceled in `check`."""

    def __init__(self, step: Step, *, clock: Callable[[], dt.datetime]) -> None:
        self._step = step
        self._clock = clock
        self._every = dt.timedelta(seconds=settings.STEP_HEARTBEAT_S)
        self._next = clock() + self._every
        self._counters = Counters()
        self._phase = ""
        self._expected = (0, 0)
        self._beat: Callable[[dt.datetime], None] | None = None
        self._next_beat = clock()

    def keep_alive(self, beat: Callable[[dt.datetime], None]) -> None:
        """Call `beat` about every BEAT_EVERY from now on: it shows the vault that the engine's session lives."""
        self._beat = beat

    def phase(self, name: str) -> None:
        self._phase = name

    def total(self, *, entries: int = 0, bytes: int = 0) -> None:
        self._expected = (entries, bytes)

    def add(self, *, entries: int = 0, bytes: int = 0, bytes_stored: int = 0) -> None:
        self._counters.entries_done += entries
        self._counters.bytes_done += bytes
        self._counters.bytes_stored += bytes_stored

    def check(self) -> None:
        if self._clock() >= self._next:
            self.flush()

    def flush(self) -> None:
        """Write the counters and renew the lease now. Raises Fenced, Canceled."""
        now = self._clock()
        self._next = now + self._every
        if self._beat and now >= self._next_beat:
            self._next_beat = now + BEAT_EVERY
            self._beat(now)
        steps.heartbeat(self._step, self._counters, phase=self._phase, now=now)
        if any(self._expected):
            steps.estimate(self._step, entries=self._expected[0], bytes=self._expected[1])
