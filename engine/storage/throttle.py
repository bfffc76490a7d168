"""A shared budget of bytes per second (rule C10)."""

import threading
import time
from collections.abc import Callable

WINDOW_S = 10.0
SLICE_BYTES = 64 * 1024

Pace = Callable[[int], None]


class Budget:
    """Hand out bytes so that no window of ten seconds sees more than `bytes_per_s` on average.

    Storages take a budget's `take` as their `pace` and call it before each `slice_bytes` they send and after each
    they receive: an object is larger than a second's budget, so charging it as a whole would either break the
    limit within a window or waste a third of it. The saving of idle seconds is not kept. Threads share one budget.
    """

    def __init__(
        self,
        bytes_per_s: int,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        if bytes_per_s < 1000:
            raise ValueError(f"a limit of {bytes_per_s} bytes/s is too low: give at least 1000, or none")
        self.slice_bytes = min(SLICE_BYTES, bytes_per_s // 10)
        # A window can begin just before one slice and end just after another: leave room for the one too many.
        self._slice_rate = bytes_per_s - self.slice_bytes / WINDOW_S
        self._clock = clock
        self._sleep = sleep
        self._mutex = threading.Lock()
        self._free_at = clock()

    def take(self, count: int) -> None:
        """Block until `count` bytes may flow."""
        while count > 0:
            part = min(count, self.slice_bytes)
            with self._mutex:
                now = self._clock()
                start = max(now, self._free_at)
                self._free_at = start + part / self._slice_rate
            if start > now:
                self._sleep(start - now)
            count -= part


def unpaced(count: int) -> None:
    """Let any number of bytes flow."""
