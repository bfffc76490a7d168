"""Fetch small objects before they are asked for: each costs the latency of a request, many at once cost it once."""

import os
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

from engine import halt
from engine.entries import Entry

T = TypeVar("T")
BUDGET_BYTES = 64 << 20


class Prefetch(Generic[T]):
    """Runs `fetch` for expected entries on `threads`, in their order, at most `budget_bytes` ahead of `take`.

    For the one thread that reads. Its threads end when all that was expected is taken.
    """

    def __init__(self, fetch: Callable[[Entry], T], *, threads: int, budget_bytes: int = BUDGET_BYTES) -> None:
        self._fetch, self._threads, self._budget = fetch, threads, budget_bytes
        self._pid = 0
        self._executor: ThreadPoolExecutor | None = None
        self._waiting: deque[Entry] = deque()
        self._begun: dict[bytes, tuple[Future[T], int]] = {}
        self._bytes = 0

    def expect(self, entries: Iterable[Entry]) -> None:
        """Begin to fetch these; what was expected before is given up."""
        self.close()
        self._pid = os.getpid()
        self._waiting = deque(entries)
        self._advance()

    def take(self, entry: Entry) -> "Future[T] | None":
        """Return the result that was fetched or is on its way, None when it has to be fetched now."""
        if self._pid != os.getpid():
            self._executor = None  # another process's
            self._forget()
            return None
        future, size = self._begun.pop(entry.path, (None, 0))
        self._bytes -= size
        self._advance()
        return future

    def close(self) -> None:
        """End the threads; what is on its way is thrown away."""
        if self._executor is not None and self._pid == os.getpid():
            self._executor.shutdown(wait=False, cancel_futures=True)
        self._executor = None
        self._forget()

    def _forget(self) -> None:
        self._waiting.clear()
        self._begun.clear()
        self._bytes = 0

    def _advance(self) -> None:
        while self._waiting and (not self._begun or self._has_room(self._waiting[0])):
            entry = self._waiting.popleft()
            if self._executor is None:
                self._executor = halt.threads(self._threads, "fetch")
            self._begun[entry.path] = self._executor.submit(self._fetch, entry), entry.size
            self._bytes += entry.size
        if not self._begun and self._executor is not None:
            self._executor.shutdown(wait=False)  # the last one may still be on its way
            self._executor = None

    def _has_room(self, entry: Entry) -> bool:
        return self._bytes + entry.size <= self._budget and len(self._begun) < 8 * self._threads
