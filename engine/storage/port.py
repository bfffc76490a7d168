"""The Storage port: a flat key/value store of immutable objects (vault-format, section 1)."""

import datetime as dt
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

Bytes = bytes | bytearray | memoryview


class Stored(NamedTuple):
    """One object as a LIST shows it; `size` in bytes."""

    key: str
    size: int


class Refusal(NamedTuple):
    """One key that a batch delete could not remove, and why (`locked` when a WORM lock forbids it)."""

    key: str
    reason: str
    locked: bool


class Claims(NamedTuple):
    """What a store says about itself; `server_time` is its clock, None when it has none of its own."""

    versioned: bool
    object_lock: bool
    server_time: dt.datetime | None


class Broken(NamedTuple):
    """Which attacks on a compliance lock worked."""

    shortened: bool
    weakened: bool
    deleted: bool
    overwritten: bool


class StoredVersion(NamedTuple):
    """One version of an object, or a delete marker over it; `newest` is what a plain GET and LIST go by."""

    key: str
    version_id: str
    size: int
    newest: bool
    marker: bool


class History(Protocol):
    """What stands below the newest versions of a store: an optional part of a storage, for audits."""

    def versions(self, prefix: str, *, after: str = "") -> Iterator[StoredVersion]:
        """Yield every version and delete marker under the prefix and after a key, keys in order, each key's together.

        The newest of a key says so; the others come in any order.
        """
        ...

    def get_version(self, key: str, version_id: str) -> bytes:
        """Return the bytes of one version. Raises NotFound."""
        ...

    def version_locked_until(self, key: str, version_id: str) -> dt.datetime | None:
        """Return the end of one version's lock, None when it has none. Raises NotFound."""
        ...

    def delete_versions(self, key: str, version_ids: Sequence[str]) -> list[Refusal]:
        """Delete these versions or markers of one key; one that is gone is done. Return a refusal if any is left."""
        ...


@runtime_checkable
class Historic(Protocol):
    """A storage that may keep versions."""

    def history(self) -> History | None:
        """Return the view of versions, None where an overwrite leaves nothing below. Raises Forbidden."""
        ...


class Storage(Protocol):
    """Objects under keys of lower-case ASCII, digits, `.`, `-`, `_` and `/`.

    Needs only that a PUT, GET or DELETE of one key is atomic and that a LIST shows every PUT that ended before
    it began. Objects are at most 64 MiB and, but for a session's beat, written once. All methods may be called
    from threads; an instance is not shared between processes. Errors: engine.errors, each with `transient`;
    a put that raises may or may not have taken effect, but never leaves part of an object visible.
    """

    def put(self, key: str, data: Bytes, *, locked_until: dt.datetime | None = None, sha256: str = "") -> None:
        """Store the object durably; an earlier one under the key is replaced. Raises StorageFull, Forbidden.

        `sha256` is the hex digest of `data` for who has it: a store that needs it does not hash again.
        """
        ...

    def get(self, key: str, *, offset: int = 0, length: int | None = None) -> bytes:
        """Return exactly `length` bytes from `offset`, or all from there. Raises NotFound, ShortRead."""
        ...

    def pieces(self, key: str) -> Iterator[Bytes]:
        """Yield the object's bytes in order, a piece at a time, as they come. Raises NotFound, ShortRead."""
        ...

    def relay(self, key: str, source: "Storage", *, size: int, sha256: str) -> None:
        """Store what the source has under the key, while it comes: nobody holds it whole.

        Raises Altered, and stores nothing, when that is not `size` bytes of this SHA-256 (hex); else what the source's
        `pieces` and `put` raise.
        """
        ...

    def scan(self, prefix: str, *, after: str = "") -> Iterator[Stored]:
        """Yield the objects whose key starts with `prefix` and sorts after `after`, in key order, paged."""
        ...

    def delete(self, keys: Sequence[str]) -> list[Refusal]:
        """Delete every version of each key; a missing key is done. Return the keys that are still there."""
        ...

    def extend_lock(self, key: str, *, until: dt.datetime) -> None:
        """Lengthen the object's compliance lock; an earlier `until` than in force changes nothing.

        Raises NotFound, and Forbidden where the store cannot lock.
        """
        ...

    def locked_until(self, key: str) -> dt.datetime | None:
        """Return the end of the object's lock, None when it has none. Raises NotFound."""
        ...


def history_of(storage: Storage) -> History | None:
    """Return a storage's view of versions, None when it keeps none."""
    return storage.history() if isinstance(storage, Historic) else None
