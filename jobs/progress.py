"""The engine's Progress port over a step's row: counters in, lease renewed, the order to stop out."""

import datetime as dt
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from django.conf import settings
from django.db import Error as DatabaseTrouble
from django.db import connection

from engine.errors import Canceled
from jobs import steps
from jobs.models import Step
from jobs.speed import Share
from jobs.states import Kind, Stage
from jobs.steps import Counters
from vaults.limits import load

BEAT_EVERY = dt.timedelta(seconds=60)
# A worker that reported nothing for so long is stuck: its lease is let run out.
SILENT_S_MAX = 900
# From here on a verb is not interrupted: what it commits may have come about already.
COMMIT = "commit"
# A worker that hangs in a call no order reaches (a store that accepts and never answers) loses its step so long after
# the order to stop. What it still does then is as harmless as that of one whose lease ran out; of the work of these
# kinds nothing but copies of data comes late.
RELEASED_AFTER_S = 2.0
RELEASED = (Kind.BACKUP, Kind.RESTORE, Kind.VERIFY, Kind.DRILL, Kind.COMPARE)


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
        self._heard = time.monotonic()
        self._share = Share(load(step.job.limits).cpu_percent)
        self._stop = threading.Event()
        self._mine = threading.get_ident()
        self._told = False
        # Only a backup's end can be left at any moment before its commit.
        self._may_halt = step.stage != Stage.FINISH or step.job.kind == Kind.BACKUP

    def keep_alive(self, beat: Callable[[dt.datetime], None]) -> None:
        """Call `beat` about every BEAT_EVERY from now on: it shows the vault that the engine's session lives."""
        self._beat = beat

    def phase(self, name: str) -> None:
        self._phase = name
        self._may_halt &= name != COMMIT

    def total(self, *, entries: int = 0, bytes: int = 0) -> None:
        self._expected = (entries, bytes)

    @property
    def bytes_expected(self) -> int:
        """Return how much the verb said that there is to do."""
        return self._expected[1]

    @property
    def bytes_done(self) -> int:
        """Return how much the verb said that it has done."""
        return self._counters.bytes_done

    def add(self, *, entries: int = 0, bytes: int = 0, bytes_stored: int = 0) -> None:
        self._counters.entries_done += entries
        self._counters.bytes_done += bytes
        self._counters.bytes_stored += bytes_stored

    def halt(self) -> None:
        """Raise Canceled once a person asked to stop, for waits that `check` does not reach. Called from any thread.

        The work's own thread hears it once: it may have to tidy up.
        """
        if not (self._stop.is_set() and self._may_halt):
            return
        if threading.get_ident() == self._mine:
            if self._told:
                return
            self._told = True
        raise Canceled("canceled by a person")

    def flowing(self) -> None:
        """Note that bytes flow at a limited rate: the worker is not stuck, however long one object takes."""
        self._heard = time.monotonic()

    def check(self) -> None:
        self._heard = time.monotonic()
        self.halt()
        self._share.rest()
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
            steps.estimate(self._step, entries=self._expected[0], bytes=self._expected[1], now=now)

    def leave(self) -> None:
        """Write the counters of a step that ends early. Raises Fenced."""
        steps.record(self._step, self._counters)

    @contextmanager
    def lease_kept(self) -> Iterator[None]:
        """Renew the lease from a thread inside the block: one upload or one retry may take longer than a lease.

        Stops for a step that another worker took over, and for one that reported nothing for SILENT_S_MAX. The thread
        looks for the order to stop, too.
        """
        done = threading.Event()
        keeper = threading.Thread(target=self._keep_lease, args=(done,), name="lease", daemon=True)
        keeper.start()
        try:
            yield
        finally:
            done.set()
            keeper.join()

    def _keep_lease(self, done: threading.Event) -> None:
        renew_s = settings.STEP_LEASE_S / 3
        due_s = time.monotonic() + renew_s
        released_s = 0.0
        try:
            while not done.wait(min(settings.STEP_CANCEL_CHECK_S, renew_s)):
                try:
                    if not self._stop.is_set() and steps.is_to_stop(self._step):
                        self._stop.set()
                        released_s = time.monotonic() + RELEASED_AFTER_S
                    if self._stop.is_set() and self._is_released() and time.monotonic() > released_s:
                        steps.cancel(self._step, now=self._clock())
                        return
                    if time.monotonic() >= due_s:
                        if time.monotonic() - self._heard > SILENT_S_MAX:
                            return
                        steps.renew(self._step, now=self._clock())
                        due_s = time.monotonic() + renew_s
                except steps.Fenced:
                    return  # the work hears it at its next check
                except DatabaseTrouble:
                    connection.close()
        finally:
            connection.close()

    def _is_released(self) -> bool:
        return self._step.stage != Stage.FINISH and self._step.job.kind in RELEASED
