"""The Progress port: counters out, the order to stop in."""

from typing import Protocol

from engine.errors import Canceled


class Progress(Protocol):
    """What a verb tells about its work. Implementations must be cheap: calls come once per batch, not per byte.

    `phase` names what is going on (scan, process, upload, commit, read, write: B11). `total` may be called
    again with a better estimate. `add` counts finished work. `check` raises Canceled when the work must stop;
    it also renews whatever lease stands behind the work, so verbs call it at least every few seconds.
    """

    def phase(self, name: str) -> None: ...

    def total(self, *, entries: int = 0, bytes: int = 0) -> None: ...

    def add(self, *, entries: int = 0, bytes: int = 0, bytes_stored: int = 0) -> None: ...

    def check(self) -> None: ...


class Silent:
    """Progress that nobody watches; `cancel()` stops it (for tests and embedding)."""

    def __init__(self) -> None:
        self.canceled = False

    def phase(self, name: str) -> None: ...

    def total(self, *, entries: int = 0, bytes: int = 0) -> None: ...

    def add(self, *, entries: int = 0, bytes: int = 0, bytes_stored: int = 0) -> None: ...

    def cancel(self) -> None:
        self.canceled = True

    def check(self) -> None:
        if self.canceled:
            raise Canceled("canceled")
