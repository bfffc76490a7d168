"""A storage that lets something else happen between any two calls of whoever uses it."""

import datetime as dt
from collections.abc import Callable, Iterator, Sequence

from engine.storage.passing import Whole
from engine.storage.port import Bytes, Refusal, Storage, Stored


class Hooked(Whole):
    """Call `hook(number)` before every call (from 1) and when a LIST has ended; what the hook does goes past it.

    A LIST shows one moment: a hook in the middle of one changes nothing that it still yields.
    """

    def __init__(self, inner: Storage, hook: Callable[[int], None]) -> None:
        self.inner, self._hook, self.calls, self._inside = inner, hook, 0, False

    def put(self, key: str, data: Bytes, *, locked_until: dt.datetime | None = None, sha256: str = "") -> None:
        self._step()
        self.inner.put(key, data, locked_until=locked_until, sha256=sha256)

    def get(self, key: str, *, offset: int = 0, length: int | None = None) -> bytes:
        self._step()
        return self.inner.get(key, offset=offset, length=length)

    def scan(self, prefix: str, *, after: str = "") -> Iterator[Stored]:
        self._step()
        yield from list(self.inner.scan(prefix, after=after))
        self._step()

    def delete(self, keys: Sequence[str]) -> list[Refusal]:
        self._step()
        return self.inner.delete(keys)

    def extend_lock(self, key: str, *, until: dt.datetime) -> None:
        self._step()
        self.inner.extend_lock(key, until=until)

    def locked_until(self, key: str) -> dt.datetime | None:
        self._step()
        return self.inner.locked_until(key)

    def _step(self) -> None:
        if self._inside:
            return
        self.calls += 1
        self._inside = True
        try:
            self._hook(self.calls)
        finally:
            self._inside = False
