"""Where every chunk lies (vault-format, section 4): immutable sorted segments and their local cache.

Segment, format 1: a sealed record under `index/<level>/<sha256>` of these bytes, little-endian.

offset  bytes      field
0       4          magic b"BSIX"
4       4          version, 1
8       4          p, number of packs
12      4          n, number of chunks
16      4          r, number of segments that this one replaces
20      4          zero
24      32 r       their names (SHA-256)
...     80 p       packs: name 32, alias u32, kind u32, epoch u32, size u32, salt 32
...     38 n       columns, sorted by id: id high u64, id low u64, pack u32, slot offset u32, slot length u32,
                   offset in slot u32, length u32, slot number u16 (top bit: not compressed)

The local cache holds the same bytes behind a keyed checksum, mapped into memory. It may vanish or rot at any
time: a file that fails its checksum is fetched again.
"""

import contextlib
import mmap
import os
import secrets
import struct
from collections.abc import Iterable, Iterator, Sequence, Set
from pathlib import Path
from typing import NamedTuple

import numpy as np
from blake3 import blake3

from engine.codec import Purpose, seal, unseal
from engine.errors import FormatError, IntegrityError, MissingObject, NotFound
from engine.ids import SEGMENTS, digest_name
from engine.keys import ID_BYTES, Keys
from engine.pack import Head, Sealed
from engine.storage.port import Storage

ROWS_MAX = 1 << 20
_CONTEXT = b"index"
_HEAD = struct.Struct("<4sIIIII")
_MAGIC = b"BSIX"
_CHECK_BYTES = 32
_LISTS_MAX = 8
_PACK = np.dtype(
    [("name", "V32"), ("alias", "<u4"), ("kind", "<u4"), ("epoch", "<u4"), ("size", "<u4"), ("salt", "V32")]
)
_COLUMNS = (
    ("high", "<u8"), ("low", "<u8"), ("pack", "<u4"), ("at", "<u4"), ("stored", "<u4"), ("offset", "<u4"),
    ("length", "<u4"), ("slot", "<u2"),
)  # fmt: skip
_ROW_BYTES = sum(np.dtype(kind).itemsize for _, kind in _COLUMNS)
_SAME = ("high", "low", "pack", "slot", "offset")
_RAW = 0x8000


class Place(NamedTuple):
    """Where one chunk lies: `slot_at` and `slot_stored` in the pack, `offset` and `length` in the plain slot, bytes."""

    head: Head
    slot: int
    raw: bool
    slot_at: int
    slot_stored: int
    offset: int
    length: int


class Found(NamedTuple):
    """The answer to a batch: for each id the segment (-1 = unknown) and the row in it."""

    segment: np.ndarray
    row: np.ndarray


class Segment:
    """One segment over a buffer that stays as it is (bytes or a memory map)."""

    def __init__(self, name: str, data: memoryview) -> None:
        self.name = name
        if len(data) < _HEAD.size:
            raise IntegrityError(f"index segment {name} is cut short")
        magic, version, packs, rows, replaces, _ = _HEAD.unpack(data[: _HEAD.size])
        if magic != _MAGIC:
            raise IntegrityError(f"index segment {name} has a wrong header")
        if version != 1:
            raise FormatError(f"index segment {name} has format {version}, this program knows 1")
        at = _HEAD.size + 32 * replaces
        if len(data) != at + _PACK.itemsize * packs + _ROW_BYTES * rows:
            raise IntegrityError(f"index segment {name} has a wrong length")
        self.size = len(data)
        self.replaces = [bytes(data[_HEAD.size + 32 * i :][:32]).hex() for i in range(replaces)]
        self.packs = np.frombuffer(data, _PACK, packs, at)
        at += _PACK.itemsize * packs
        self.rows = rows
        self.columns: dict[str, np.ndarray] = {}
        for column, kind in _COLUMNS:
            self.columns[column] = np.frombuffer(data, kind, rows, at)
            at += self.columns[column].nbytes
        if rows and int(self.columns["pack"].max()) >= packs:
            raise IntegrityError(f"index segment {name} has a row whose pack it does not list")
        self.heads = [self._head(i) for i in range(packs)]
        self.usable = np.ones(packs, bool)

    def _head(self, number: int) -> Head:
        pack = self.packs[number]
        name = pack["name"].tobytes().hex() + (f".{pack['alias']}" if pack["alias"] else "")
        return Head(name, int(pack["kind"]), int(pack["size"]), int(pack["epoch"]), pack["salt"].tobytes())

    def forbid(self, names: set[str]) -> None:
        """Answer no more with chunks of these packs."""
        self.usable = np.array([head.name not in names for head in self.heads], bool)

    def places(self, rows: np.ndarray) -> Iterator[Place]:
        """Yield the places in these rows."""
        pack, slot, at, stored, offset, length = (
            self.columns[name][rows] for name in ("pack", "slot", "at", "stored", "offset", "length")
        )
        heads = map(self.heads.__getitem__, pack.tolist())
        numbers, raw = (slot & ~np.uint16(_RAW)).tolist(), (slot >= _RAW).tolist()
        return map(Place, heads, numbers, raw, at.tolist(), stored.tolist(), offset.tolist(), length.tolist())

    def search(self, high: np.ndarray, low: np.ndarray, usable: np.ndarray) -> np.ndarray:
        """Return for each id the row of a usable pack, -1 where there is none."""
        answer = np.full(len(high), -1, np.int64)
        if not self.rows:
            return answer
        rows = np.searchsorted(self.columns["high"], high)
        open_ = np.arange(len(high))
        # Equal ids stand side by side, one per pack that holds the chunk: step over those that may not be used.
        while len(open_):
            inside = rows < self.rows
            open_, rows = open_[inside], rows[inside]
            same = self.columns["high"][rows] == high[open_]
            open_, rows = open_[same], rows[same]
            good = (self.columns["low"][rows] == low[open_]) & usable[self.columns["pack"][rows]]
            answer[open_[good]] = rows[good]
            open_, rows = open_[~good], rows[~good] + 1
        return answer


def encode_segment(sealed: Iterable[Sealed], *, replaces: Sequence[str] = ()) -> list[bytes]:
    """Return the segments (plain) that list the chunks of these packs, each at most ROWS_MAX rows.

    `replaces` names segments that are no longer asked; without packs, one segment that says only this.
    """
    packs = list(sealed)
    groups: list[list[Sealed]] = [[]]
    rows = 0
    for pack in packs:
        if rows and rows + len(pack.table.ids) > ROWS_MAX:
            groups.append([])
            rows = 0
        groups[-1].append(pack)
        rows += len(pack.table.ids)
    return [_encode(group, replaces) for group in groups if group or replaces]


def _encode(packs: list[Sealed], replaces: Sequence[str]) -> bytes:
    if not packs:
        return _HEAD.pack(_MAGIC, 1, 0, 0, len(replaces), 0) + b"".join(bytes.fromhex(name) for name in replaces)
    heads = np.zeros(len(packs), _PACK)
    for number, (head, _) in enumerate(packs):
        digest, _, alias = head.name.partition(".")
        heads[number] = (bytes.fromhex(digest), int(alias or 0), head.kind, head.epoch, head.size, head.salt)
    tables = [pack.table for pack in packs]
    ids = np.concatenate([np.ascontiguousarray(t.ids[:, :ID_BYTES]) for t in tables])
    wide = ids.view(">u8").reshape(-1, 2)
    columns = {
        "high": wide[:, 0], "low": wide[:, 1],
        "pack": np.repeat(np.arange(len(packs)), [len(t.ids) for t in tables]),
        "at": np.concatenate([t.at[t.slot] for t in tables]),
        "stored": np.concatenate([t.stored[t.slot] for t in tables]),
        "offset": np.concatenate([t.offset for t in tables]), "length": np.concatenate([t.length for t in tables]),
        "slot": np.concatenate([t.slot | np.where(t.raw[t.slot], _RAW, 0) for t in tables]),
    }  # fmt: skip
    order = np.lexsort((columns["low"], columns["high"]))
    body = b"".join(columns[name][order].astype(kind).tobytes() for name, kind in _COLUMNS)
    head_bytes = _HEAD.pack(_MAGIC, 1, len(packs), len(ids), len(replaces), 0)
    return head_bytes + b"".join(bytes.fromhex(name) for name in replaces) + heads.tobytes() + body


def join_segments(segments: Sequence[Segment], *, without: Set[str], replaces: Sequence[str] = ()) -> bytes:
    """Return one segment (plain) with the rows of all these, but for those of the packs `without` (names).

    A row that several of them have is there once. Memory: about three times the answer.
    """
    numbers: dict[str, int] = {}
    heads: list[np.void] = []
    parts = []
    for segment in segments:
        places = np.full(len(segment.heads), -1, np.int64)
        for old, head in enumerate(segment.heads):
            if head.name in without:
                continue
            if head.name not in numbers:
                numbers[head.name] = len(heads)
                heads.append(segment.packs[old])
            places[old] = numbers[head.name]
        parts.append(places[segment.columns["pack"]])
    pack = np.concatenate(parts)
    kept = pack >= 0

    def column(name: str) -> np.ndarray:
        whole = pack if name == "pack" else np.concatenate([segment.columns[name] for segment in segments])
        return whole[kept]

    keys = [column(name) for name in _SAME]
    order = np.lexsort(keys[::-1])
    if len(order):
        new = np.logical_or.reduce([key[order][1:] != key[order][:-1] for key in keys])
        order = order[np.concatenate([[True], new])]
    body = b"".join(column(name)[order].astype(kind).tobytes() for name, kind in _COLUMNS)
    head_bytes = _HEAD.pack(_MAGIC, 1, len(heads), len(order), len(replaces), 0)
    names = b"".join(bytes.fromhex(name) for name in replaces)
    return head_bytes + names + np.array(heads, _PACK).tobytes() + body


def wide_ids(ids: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Return 16-byte ids as (high, low) arrays of u64."""
    pairs = np.frombuffer(b"".join(ids), ">u8").reshape(-1, 2).astype(np.uint64)
    return pairs[:, 0], pairs[:, 1]


class Index:
    """All segments of a vault as this process knows them. Not for several threads.

    `cache` is a private folder (0700) shared by the processes of this host; None keeps segments in memory. A name that
    is forbidden (condemned or deleted by a prune) is never answered.

    `listed` is what the last refresh saw, name -> key.

    A damaged segment is skipped and remembered in `damaged`, key -> what is wrong: its chunks are stored again by
    backups and found through pack footers by readers, until rebuild lists them anew.
    """

    def __init__(self, storage: Storage, keys: Keys, cache: Path | None) -> None:
        self._storage, self._keys, self._cache = storage, keys, cache
        self._segments: dict[str, Segment] = {}
        self._order: list[Segment] = []
        self.listed: dict[str, str] = {}
        self.damaged: dict[str, IntegrityError] = {}
        self._forbidden: set[str] = set()
        if cache is not None:
            with contextlib.suppress(OSError):  # without a folder there is no cache, which only costs time
                cache.mkdir(parents=True, exist_ok=True, mode=0o700)

    @property
    def segments(self) -> list[Segment]:
        """Return the segments in force."""
        return self._order

    @property
    def loaded(self) -> dict[str, Segment]:
        """Return every readable segment of the bucket by name, also those that others replace."""
        return self._segments

    def forbid(self, names: set[str]) -> None:
        """Never answer with these packs, now and after later refreshes."""
        self._forbidden = set(names)
        for segment in self._order:
            segment.forbid(self._forbidden)

    def refresh(self) -> None:
        """LIST the index and load what is new; damaged segments are tried again. Raises FormatError.

        Lists again while a merge is at work: what vanished, and what replaces others, tells of segments that were
        stored before, which a LIST that began earlier need not show.
        """
        before = set(self._segments)
        self.listed = self._list()
        if self.listed.keys() == before:
            return
        damaged: dict[str, IntegrityError] = {}
        for _ in range(_LISTS_MAX):
            damaged, steady = self._load_new()
            if steady and before <= self.listed.keys():
                break
            before, self.listed = set(self.listed), self._list()
        self._settle(damaged)

    def add(self, plain: bytes, *, level: int = 0) -> int:
        """Store a segment in the bucket and use it here at once; return its stored size in bytes."""
        data = seal(self._keys, Purpose.SEGMENT, plain, context=_CONTEXT)
        name = digest_name(data)
        key = f"{SEGMENTS}{level}/{name}"
        self._storage.put(key, data)
        self.listed[name] = key
        self._keep(name, plain)
        self._adopt(Segment(name, self._cached(name) or memoryview(plain)))
        return len(data)

    def find(self, ids: Sequence[bytes], *, within: set[str] | None = None) -> Found:
        """Look up a batch of 16-byte ids; `within` limits the answer to these packs (names)."""
        segment = np.full(len(ids), -1, np.int64)
        row = np.full(len(ids), -1, np.int64)
        if not len(ids):
            return Found(segment, row)
        high, low = wide_ids(ids)
        open_ = np.arange(len(ids))
        # Most ids stand in the largest segments: what is found there is not looked for in the many small ones.
        for number in sorted(range(len(self._order)), key=lambda one: -self._order[one].rows):
            candidate = self._order[number]
            usable = candidate.usable
            if within is not None:
                usable = usable & np.array([head.name in within for head in candidate.heads], bool)
            rows = candidate.search(high[open_], low[open_], usable)
            hit = rows >= 0
            segment[open_[hit]], row[open_[hit]] = number, rows[hit]
            open_ = open_[~hit]
            if not len(open_):
                break
        return Found(segment, row)

    def known(self, ids: Sequence[bytes]) -> np.ndarray:
        """Say for each id whether a usable pack holds the chunk."""
        return self.find(ids).segment >= 0

    def packs_of(self, ids: Sequence[bytes]) -> set[Head]:
        """Return the packs that hold these chunks. Raises MissingObject when one is unknown."""
        found = self.find(ids)
        if (found.segment < 0).any():
            missing = ids[int(np.argmax(found.segment < 0))]
            raise MissingObject(f"chunk {missing.hex()} is in no pack of the index")
        heads: set[Head] = set()
        for number in np.unique(found.segment):
            segment = self._order[int(number)]
            rows = found.row[found.segment == number]
            heads.update(segment.heads[int(i)] for i in np.unique(segment.columns["pack"][rows]))
        return heads

    def places(self, ids: Sequence[bytes], *, within: set[str] | None = None) -> list[Place | None]:
        """Return where each chunk lies, None where it is unknown."""
        found = self.find(ids, within=within)
        answer: list[Place | None] = [None] * len(ids)
        for number in np.unique(found.segment[found.segment >= 0]):
            asked = np.flatnonzero(found.segment == number)
            for i, place in zip(asked.tolist(), self._order[number].places(found.row[asked]), strict=True):
                answer[i] = place
        return answer

    def adopt(self, segments: Iterable[Segment]) -> None:
        """Use segments that are stored nowhere."""
        for segment in segments:
            self._adopt(segment)

    def _adopt(self, segment: Segment) -> None:
        segment.forbid(self._forbidden)
        self._segments[segment.name] = segment
        self._order.append(segment)

    def _list(self) -> dict[str, str]:
        return {stored.key.rpartition("/")[2]: stored.key for stored in self._storage.scan(SEGMENTS)}

    def _load_new(self) -> tuple[dict[str, IntegrityError], bool]:
        """Load what is listed; return the damaged ones, and whether no merge can have been at work."""
        damaged: dict[str, IntegrityError] = {}
        steady = True
        for name, key in self.listed.items():
            if name in self._segments:
                continue
            try:
                self._adopt(self._load(key, name))
                steady = steady and not self._segments[name].replaces
            except NotFound:
                steady = False
            except IntegrityError as error:
                damaged[key] = error
        return damaged, steady

    def _settle(self, damaged: dict[str, IntegrityError]) -> None:
        replaced = {name for segment in self._segments.values() for name in segment.replaces}
        self._segments = {n: s for n, s in self._segments.items() if n in self.listed}
        self._order = [s for n, s in self._segments.items() if n not in replaced]
        self.damaged = {key: error for key, error in damaged.items() if key.rpartition("/")[2] not in replaced}
        self._forget()

    def _forget(self) -> None:
        """Remove the copies of segments that the bucket no longer has; who mapped one reads on."""
        if self._cache is None:
            return
        with contextlib.suppress(OSError):
            for path in self._cache.iterdir():
                if len(path.name) == 2 * _CHECK_BYTES and path.name not in self.listed:
                    path.unlink(missing_ok=True)

    def _load(self, key: str, name: str) -> Segment:
        cached = self._cached(name)
        if cached is not None:
            return Segment(name, cached)
        data = self._storage.get(key)
        if digest_name(data) != name:
            raise IntegrityError(f"{key} is damaged: its bytes do not match its name")
        plain = unseal(self._keys, Purpose.SEGMENT, data, context=_CONTEXT)
        self._keep(name, plain)
        return Segment(name, self._cached(name) or memoryview(plain))

    def _check(self, plain: bytes | memoryview) -> bytes:
        return blake3(plain, key=self._keys.cache_key).digest()

    def _cached(self, name: str) -> memoryview | None:
        if self._cache is None:
            return None
        try:
            with (self._cache / name).open("rb") as file:
                data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        except (OSError, ValueError):
            return None
        plain = data[_CHECK_BYTES:]
        return plain if bytes(data[:_CHECK_BYTES]) == self._check(plain) else None

    def _keep(self, name: str, plain: bytes) -> None:
        """Write the cache file aside and rename it; a full or read-only disk only costs the cache."""
        if self._cache is None:
            return
        aside = self._cache / f".{name}.{secrets.token_hex(4)}"
        try:
            aside.write_bytes(self._check(plain) + plain)
            os.replace(aside, self._cache / name)
        except OSError:
            with contextlib.suppress(OSError):
                aside.unlink(missing_ok=True)


def load_segment(storage: Storage, keys: Keys, key: str) -> Segment:
    """Read one segment from the bucket, past every cache. Raises NotFound, IntegrityError."""
    data = storage.get(key)
    name = key.rpartition("/")[2]
    if digest_name(data) != name:
        raise IntegrityError(f"{key} is damaged: its bytes do not match its name")
    return Segment(name, memoryview(unseal(keys, Purpose.SEGMENT, data, context=_CONTEXT)))
