"""What each process has to make for itself, because it does not survive a fork: connections above all."""

import os
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class PerProcess(Generic[T]):
    """Call it for this process's own value, made by `make` at the first call; safe for threads.

    What the parent of a fork made is kept, not closed: closing it here could speak on the parent's connection. When
    `make` raises nothing is kept, and the next call tries again.
    """

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._mutex = threading.Lock()
        self._made: dict[int, T] = {}

    def __call__(self) -> T:
        with self._mutex:
            process = os.getpid()
            if process not in self._made:
                self._made[process] = self._make()
            return self._made[process]

    def made(self) -> T | None:
        """Return this process's value, None when it has not been made."""
        return self._made.get(os.getpid())
