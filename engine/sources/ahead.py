"""Work done ahead of a walk on threads of its own: it hides the latency of network and parallel file systems."""

import heapq
import threading
from collections.abc import Callable, Sequence
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")
HELD = 50_000  # so many listed entries may wait for the walk: about 30 MB of stat results


class Wish(NamedTuple, Generic[T]):
    """Work that the walk will need when it is at `key`: places in the walk's order, each once."""

    key: bytes
    load: Callable[[], "Loaded[T]"]


class Loaded(NamedTuple, Generic[T]):
    """What was loaded, how many entries it holds, and what will be needed behind it."""

    value: T
    cost: int
    following: Sequence["Wish[T]"]


class Ahead(Generic[T]):
    """Loads what a walk needs next, nearest first, on `walkers` threads.

    `take` gives what was asked for: loaded already, awaited, or loaded by the caller when no thread has begun with it.
    No thread begins while more than `held` entries wait, so the memory is bounded; the caller never waits for room.
    Close it: threads end after what they are doing.
    """

    def __init__(self, walkers: int, *, held: int = HELD) -> None:
        self._limit = held
        self._held = 0
        self._closed = False
        self._changed = threading.Condition()
        self._heap: list[bytes] = []
        self._wishes: dict[bytes, Wish[T]] = {}
        self._running: set[bytes] = set()
        self._done: dict[bytes, Loaded[T] | Exception] = {}
        self._threads = [threading.Thread(target=self._run, name="walk", daemon=True) for _ in range(walkers)]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """End the threads and wait for them."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def drain(self) -> None:
        """Forget every wish and everything loaded, and wait until no thread is at work."""
        with self._changed:
            self._heap.clear()
            self._wishes.clear()
            while self._running:
                self._changed.wait()
            self._heap.clear()
            self._wishes.clear()
            self._done.clear()
            self._held = 0

    def take(self, wish: Wish[T]) -> T:
        """Return what `wish` loads. Ask in the order of keys: what lies before is forgotten. Raises what it raised."""
        key = wish.key
        with self._changed:
            self._forget_before(key)
            self._wishes.pop(key, None)
            while key in self._running:
                self._changed.wait()
            outcome = self._done.pop(key, None)
            if isinstance(outcome, Loaded):
                self._held -= outcome.cost
                self._changed.notify_all()
        if outcome is None:
            outcome = wish.load()
            with self._changed:
                self._push(outcome.following)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome.value

    def _push(self, wishes: Sequence[Wish[T]]) -> None:
        for wish in wishes:
            self._wishes[wish.key] = wish
            heapq.heappush(self._heap, wish.key)
        if wishes:
            self._changed.notify_all()

    def _forget_before(self, key: bytes) -> None:
        """Forget what the walk went past without taking it: a pattern left it out."""
        while self._heap and self._heap[0] < key:
            self._wishes.pop(heapq.heappop(self._heap), None)
        if self._held >= self._limit:
            for past in [one for one in self._done if one < key]:
                outcome = self._done.pop(past)
                self._held -= outcome.cost if isinstance(outcome, Loaded) else 0

    def _run(self) -> None:
        while (wish := self._next()) is not None:
            outcome: Loaded[T] | Exception
            try:
                outcome = wish.load()
            except Exception as error:  # it is raised where it is missed
                outcome = error
            with self._changed:
                self._running.discard(wish.key)
                self._done[wish.key] = outcome
                if isinstance(outcome, Loaded):
                    self._held += outcome.cost
                    self._push(outcome.following)
                self._changed.notify_all()

    def _next(self) -> Wish[T] | None:
        """Wait for the nearest wish and for room; None at the end."""
        with self._changed:
            while not self._closed:
                while self._heap and self._heap[0] not in self._wishes:
                    heapq.heappop(self._heap)
                if self._heap and self._held < self._limit:
                    wish = self._wishes.pop(heapq.heappop(self._heap))
                    self._running.add(wish.key)
                    return wish
                self._changed.wait()
        return None
