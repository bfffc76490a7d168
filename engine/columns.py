"""A listing block as columns: compared, and a few of its rows replaced, without an Entry for each of the others."""

from collections.abc import Iterable, Mapping
from typing import TypeVar

import msgspec
import numpy as np

from engine.entries import TIME_MIN_NS, Entry, Kind
from engine.errors import IntegrityError
from engine.listing import HOLE, STATIC, VOLATILE, Extra, column_of, decode, shuffled, unshuffled

_ID_BYTES = len(HOLE)
V = TypeVar("V")


class Columns:
    """The four groups of one block, decoded as far as whole columns need it. Raises IntegrityError."""

    def __init__(self, groups: list[bytes]) -> None:
        self._names, statics, volatile, extents = self._groups = groups
        self.rows = int.from_bytes(self._names[:4], "little")
        try:
            self.kinds = np.frombuffer(self._names, np.uint8, self.rows, 4)
            self._statics, at = unshuffled(statics, STATIC, self.rows)
            self._extra = msgspec.msgpack.decode(statics[at:], type=Extra)
            self._volatile, end = unshuffled(volatile, VOLATILE, self.rows)
            self._read_extents(extents)
        except (ValueError, msgspec.MsgspecError) as error:
            raise IntegrityError(f"a listing block cannot be read: {error}") from error
        if end != len(volatile):
            raise IntegrityError("a listing block has a wrong length")

    def _read_extents(self, data: bytes) -> None:
        (self._counts,), at = unshuffled(data, ("<u4",), self.rows)
        total = int(self._counts.sum())
        if len(data) != at + (_ID_BYTES + 8) * total:
            raise IntegrityError("a listing block has a wrong number of extents")
        self._ids = np.frombuffer(data, np.uint8, _ID_BYTES * total, at).reshape(-1, _ID_BYTES)
        (self._lengths,), _ = unshuffled(data[at + self._ids.nbytes :], ("<u8",), total)

    def differing(self, volatile: bytes) -> tuple[np.ndarray, bool]:
        """Say which rows have another size, time or inode in a group of the same rows.

        And whether, in one of the others, the number of links or the device is another.
        """
        walked, _ = unshuffled(volatile, VOLATILE, self.rows)
        size, mtime, ctime, inode, device, links = (old != new for old, new in zip(self._volatile, walked, strict=True))
        differs = size | mtime | ctime | inode
        return differs, bool(((device | links) & ~differs).any())

    def since(self, moment_ns: int) -> np.ndarray:
        """Say which rows were changed at `moment_ns` or later."""
        _, mtime, ctime, *_ = self._volatile
        moment = np.uint64(max(moment_ns - TIME_MIN_NS, 0))
        return (_moments(mtime) >= moment) | (_moments(ctime) >= moment)

    def chunks(self) -> tuple[list[bytes], np.ndarray]:
        """Return the 16-byte ids of all chunks, and the number of the row that each belongs to."""
        are_chunks = self._ids.any(axis=1)
        joined = self._ids[are_chunks].tobytes()
        ids = [joined[at : at + _ID_BYTES] for at in range(0, len(joined), _ID_BYTES)]
        return ids, np.repeat(np.arange(self.rows), self._counts)[are_chunks]

    def entries(self) -> list[Entry]:
        """Return the block's entries as they were read."""
        return decode(self._groups)

    def replace(self, entries: Mapping[int, Entry]) -> None:
        """Put entries of the same paths and kinds in place of rows, by their ascending numbers."""
        numbers, new = list(entries), list(entries.values())
        if not new:
            return
        fresh = zip(*[(e.size, e.mtime_ns, e.ctime_ns, e.inode, e.device, e.links) for e in new], strict=True)
        for column, values, kind in zip(self._volatile, fresh, VOLATILE, strict=True):
            column[numbers] = column_of(values, kind).view(kind)
        owned = zip(*[(e.mode, e.uid, e.gid) for e in new], strict=True)
        for column, values, kind in zip(self._statics, owned, STATIC, strict=True):
            column[numbers] = column_of(values, kind)
        self._replace_extra(entries)
        self._replace_extents(entries)

    def _replace_extra(self, entries: Mapping[int, Entry]) -> None:
        extra, (_, uids, gids) = self._extra, self._statics
        users = extra.users | {e.uid: e.user for e in entries.values() if e.user}
        groups = extra.groups | {e.gid: e.group for e in entries.values() if e.group}
        self._extra = Extra(
            users=_used(users, uids),
            groups=_used(groups, gids),
            targets=_with(extra.targets, {number: e.target for number, e in entries.items()}),
            xattrs=_with(extra.xattrs, {number: e.xattrs for number, e in entries.items()}),
            rdevs=_with(extra.rdevs, {number: e.rdev for number, e in entries.items()}),
        )

    def _replace_extents(self, entries: Mapping[int, Entry]) -> None:
        ends = np.cumsum(self._counts, dtype=np.int64)
        starts = ends - self._counts
        ids, lengths, at = [], [], 0
        for number, entry in entries.items():
            joined = b"".join([extent.id or HOLE for extent in entry.extents])
            ids += [self._ids[at : starts[number]], np.frombuffer(joined, np.uint8).reshape(-1, _ID_BYTES)]
            lengths += [self._lengths[at : starts[number]], column_of([e.length for e in entry.extents], "<u8")]
            at = int(ends[number])
        self._ids = np.concatenate([*ids, self._ids[at:]])
        self._lengths = np.concatenate([*lengths, self._lengths[at:]])
        self._counts[list(entries)] = [len(entry.extents) for entry in entries.values()]

    def encode(self) -> list[bytes]:
        """Return the four groups."""
        return [
            self._names,
            _joined(self._statics) + msgspec.msgpack.encode(self._extra),
            _joined(self._volatile),
            shuffled(self._counts) + self._ids.tobytes() + shuffled(self._lengths),
        ]

    def newest_ns(self) -> int:
        """Return the latest time of modification or change."""
        return int(max(_moments(times).max() for times in self._volatile[1:3])) + TIME_MIN_NS

    def files(self) -> tuple[int, int]:
        """Return how many files there are, and their bytes."""
        are_files = self.kinds == Kind.FILE.value
        return int(are_files.sum()), int(self._volatile[0][are_files].sum())


def _moments(times: np.ndarray) -> np.ndarray:
    """Return stored times, kept modulo 2^64, as distances from the first of them all, which are in order."""
    return times.view("<u8") + np.uint64(-TIME_MIN_NS)


def _joined(columns: Iterable[np.ndarray]) -> bytes:
    return b"".join(shuffled(column) for column in columns)


def _used(names: Mapping[int, str], numbers: np.ndarray) -> dict[int, str]:
    """Return the names that are still somebody's; unchanged ones stay where they stand, so that the bytes do."""
    used = set(np.unique(numbers).tolist())
    return {number: name for number, name in names.items() if number in used}


def _with(old: dict[int, V], new: dict[int, V]) -> dict[int, V]:
    """Return `old` with what rows have now, in the order of rows; empty values are not kept."""
    return {number: value for number, value in sorted((old | new).items()) if value}
