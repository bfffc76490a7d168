"""A shared budget of bytes per second (rule C10)."""

import math
import threading
import time
from collections.abc import Callable

from engine import halt

WINDOW_S = 10.0
SLICE_BYTES = 64 * 1024
PIECE_BYTES = 1 << 20  # without a limit: an order to stop is heard between two pieces of a large body
# Who is woken late, or sends to a server that dawdles for a moment, may catch up with so much.
_LATE_S = 0.12
# Headers are not handed out, and what lies in the system's buffers may leave together.
_SHARE = 0.985

Pace = Callable[[int], None]


class Budget:
    """Hand out bytes so that no window of ten seconds sees more than `bytes_per_s` on average; 0 is no limit for now.

    Storages take a budget's `take` as their `pace` and call it before each `slice_bytes` they send and after each
    they receive: an object is larger than a second's budget, so charging it as a whole would either break the
    limit within a window or waste a third of it. About a tenth of a second is saved up while nothing flows, no more.
    Threads share one budget.
    """

    def __init__(
        self,
        bytes_per_s: int,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = halt.sleep,
    ) -> None:
        self.slice_bytes, self._slice_rate = _slices(bytes_per_s)
        self._clock = clock
        self._sleep = sleep
        self._mutex = threading.Lock()
        self._free_at = clock()

    def change(self, bytes_per_s: int) -> None:
        """Let another limit count from now on; what was handed out stands."""
        with self._mutex:
            self.slice_bytes, self._slice_rate = _slices(bytes_per_s)

    def take(self, count: int) -> None:
        """Block until `count` bytes may flow."""
        while count > 0:
            halt.check()
            part = min(count, self.slice_bytes)
            with self._mutex:
                now = self._clock()
                start = max(now - _LATE_S, self._free_at)
                self._free_at = start + part / self._slice_rate
            if start > now:
                self._sleep(start - now)
            halt.flowed()
            count -= part


def _slices(bytes_per_s: int) -> tuple[int, float]:
    """Return the bytes of a slice, and at which rate slices are handed out."""
    if not bytes_per_s:
        return SLICE_BYTES, math.inf
    if bytes_per_s < 1000:
        raise ValueError(f"a limit of {bytes_per_s} bytes/s is too low: give at least 1000, or none")
    slice_bytes = min(SLICE_BYTES, bytes_per_s // 10)
    # A window can begin with all that was saved up, just before one slice, and end just after another.
    return slice_bytes, (bytes_per_s * _SHARE * WINDOW_S - slice_bytes) / (WINDOW_S + _LATE_S)


def unpaced(count: int) -> None:
    """Let any number of bytes flow, until the work must stop."""
    halt.check()


def both(one: Pace, other: Pace) -> Pace:
    """Return a pace that keeps to both."""
    if other is unpaced:
        return one

    def take(count: int) -> None:
        one(count)
        other(count)

    return take
