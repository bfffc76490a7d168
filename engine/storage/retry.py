"""Retry what may succeed later: errors whose `transient` is true, and only those."""

import datetime as dt
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import groupby
from typing import Any, TypeVar

import tenacity
from tenacity.stop import stop_base

from engine import halt
from engine.errors import StorageError
from engine.storage.port import Bytes, History, Refusal, Storage, Stored, StoredVersion, history_of

T = TypeVar("T")


def _is_transient(error: BaseException) -> bool:
    return isinstance(error, StorageError) and error.transient


class _SleptFor(stop_base):
    """Stop when the pauses alone, however they were slept, would come to `total_s`."""

    def __init__(self, total_s: float) -> None:
        self._total_s = total_s

    def __call__(self, retry_state: tenacity.RetryCallState) -> bool:
        return retry_state.idle_for + retry_state.upcoming_sleep >= self._total_s


class Retrying:
    """Pass every call on and repeat it while it fails transiently, with exponential backoff and full jitter.

    A put that failed after it took effect is put again with the same bytes; a scan goes on after the last key that
    it yielded. An order to stop ends a pause. Gives up, raising the last error, after `attempts` or when
    `total_s` would be exceeded.
    """

    def __init__(
        self,
        inner: Storage,
        *,
        attempts: int = 8,
        first_s: float = 0.2,
        longest_s: float = 20.0,
        total_s: float = 120.0,
        sleep: Callable[[float], None] = halt.sleep,
    ) -> None:
        self.inner = inner
        self._attempts = attempts
        self._options = (first_s, longest_s, total_s)
        self._sleep = sleep

    def put(self, key: str, data: Bytes, *, locked_until: dt.datetime | None = None, sha256: str = "") -> None:
        """Store the object."""
        self._call(lambda: self.inner.put(key, data, locked_until=locked_until, sha256=sha256))

    def get(self, key: str, *, offset: int = 0, length: int | None = None) -> bytes:
        """Return the range."""
        return self._call(lambda: self.inner.get(key, offset=offset, length=length))

    def pieces(self, key: str) -> Iterator[Bytes]:
        """Yield the bytes; only the first piece is asked for again."""
        first, rest = self._call(partial(_begun, self.inner.pieces, key))
        if first is not None:
            yield first
            yield from rest

    def relay(self, key: str, source: Storage, *, size: int, sha256: str) -> None:
        """Store what the source has, from its beginning in every attempt; failures of both ends count here."""
        plain = source.inner if isinstance(source, Retrying) else source
        self._call(lambda: self.inner.relay(key, plain, size=size, sha256=sha256))

    def scan(self, prefix: str, *, after: str = "") -> Iterator[Stored]:
        """Yield the objects; attempts are counted anew after each one yielded."""
        while True:
            stored, rest = self._call(partial(_begun, self.inner.scan, prefix, after=after))
            if stored is None:
                return
            yield stored
            after = stored.key
            try:
                for stored in rest:
                    yield stored
                    after = stored.key
                return
            except StorageError as error:
                if not error.transient:
                    raise

    def delete(self, keys: Sequence[str]) -> list[Refusal]:
        """Delete the keys."""
        return self._call(lambda: self.inner.delete(keys))

    def extend_lock(self, key: str, *, until: dt.datetime) -> None:
        """Lengthen the lock."""
        self._call(lambda: self.inner.extend_lock(key, until=until))

    def locked_until(self, key: str) -> dt.datetime | None:
        """Return the lock's end."""
        return self._call(lambda: self.inner.locked_until(key))

    def history(self) -> "RetryingHistory | None":
        """Return the view of versions, retried alike."""
        history = self._call(lambda: history_of(self.inner))
        return RetryingHistory(history, self._call) if history else None

    def _call(self, attempt: Callable[[], T]) -> T:
        first_s, longest_s, total_s = self._options
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(_is_transient),
            wait=tenacity.wait_random_exponential(multiplier=first_s, max=longest_s),
            stop=tenacity.stop_after_attempt(self._attempts) | tenacity.stop_before_delay(total_s) | _SleptFor(total_s),
            sleep=self._sleep,
            reraise=True,
        )
        return retrying(attempt)


def _begun(read: Callable[..., Iterator[T]], *what: str, **options: str) -> tuple[T | None, Iterator[T]]:
    """Pull the first of what is read, which is what makes a lazy read talk to the store."""
    found = read(*what, **options)
    return next(found, None), found


class RetryingHistory:
    """Pass every call on and repeat it as `repeat` does; a list begins anew after the last key that came whole."""

    def __init__(self, inner: History, repeat: Callable[[Callable[[], Any]], Any]) -> None:
        self._inner, self._repeat = inner, repeat

    def versions(self, prefix: str, *, after: str = "") -> Iterator[StoredVersion]:
        """Yield the versions."""
        source = _Keys(self._inner, prefix, after)
        while (found := self._repeat(source.following)) is not None:
            yield from found

    def get_version(self, key: str, version_id: str) -> bytes:
        """Return the bytes of one version."""
        data: bytes = self._repeat(lambda: self._inner.get_version(key, version_id))
        return data

    def version_locked_until(self, key: str, version_id: str) -> dt.datetime | None:
        """Return one version's lock."""
        end: dt.datetime | None = self._repeat(lambda: self._inner.version_locked_until(key, version_id))
        return end

    def delete_versions(self, key: str, version_ids: Sequence[str]) -> list[Refusal]:
        """Delete these versions."""
        refusals: list[Refusal] = self._repeat(lambda: self._inner.delete_versions(key, version_ids))
        return refusals


class _Keys:
    """A list of versions that can be gone on with after an error, key by key."""

    def __init__(self, inner: History, prefix: str, after: str) -> None:
        self._inner, self._prefix, self._after = inner, prefix, after
        self._groups: Iterator[tuple[str, Iterator[StoredVersion]]] | None = None

    def following(self) -> list[StoredVersion] | None:
        """Return the versions of the next key, None behind the last."""
        try:
            if self._groups is None:
                self._groups = groupby(self._inner.versions(self._prefix, after=self._after), lambda found: found.key)
            for key, found in self._groups:
                whole = list(found)
                self._after = key
                return whole
            return None
        except StorageError:
            self._groups = None
            raise
