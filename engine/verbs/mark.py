"""Find out which chunks of which packs the points of a vault still need: what a compaction would free.

A chunk is alive in a pack when a block of some point's listing refers to it and lists the pack. Packs of blocks that
can't be read, or whose chunks the index does not know, are in doubt: nobody can say what of them is alive.

Memory: one byte per row of the index, 16 bytes per distinct listing block, one block at a time.
"""

from collections.abc import Collection

import msgspec
import numpy as np

from engine.entries import Block
from engine.errors import IntegrityError, NotFound
from engine.index import Segment
from engine.keys import ID_BYTES
from engine.listing import chunk_ids, piece_ids
from engine.point import PackRef, Root, decode_root, point_key
from engine.progress import Progress
from engine.vault import PointName, Vault
from engine.verbs.findings import Finding, block_key
from engine.verbs.needs import parts_of_points

_EXTENTS = 3


class Share(msgspec.Struct, frozen=True):
    """How much of a needed pack is alive: plain bytes of its chunks, all and alive."""

    pack: PackRef
    total: int
    live: int

    @property
    def dead_share(self) -> float:
        """Return the dead part, 0 to 1."""
        return 1 - self.live / self.total if self.total else 0.0

    @property
    def live_bytes(self) -> int:
        """Return about how many of the pack's stored bytes are alive."""
        return round(self.pack.size * (1 - self.dead_share))


class Marks:
    """What is alive, for the points that were read.

    `points` are those, as `<series>/<point>`; `packs` are all that they need, by name; `doubtful` are names of packs
    of which nobody can say what is alive; `unreadable` are roots.
    """

    def __init__(self, vault: Vault) -> None:
        self._vault = vault
        self.points: list[str] = []
        self.packs: dict[str, PackRef] = {}
        self.doubtful: set[str] = set()
        self.unreadable: list[Finding] = []
        self._seen: set[bytes] = set()
        self._segments = list(vault.index.segments)
        self._numbers: dict[str, int] = {}
        self._numbered = [
            np.array([self._numbers.setdefault(head.name, len(self._numbers)) for head in segment.heads], np.int64)
            for segment in self._segments
        ]
        self._live = [np.zeros(segment.rows, bool) for segment in self._segments]

    def shares(self) -> dict[str, Share]:
        """Return how much of each needed pack that the index lists is alive, in the order of the index."""
        shares: dict[str, Share] = {}
        for segment, live in zip(self._segments, self._live, strict=True):
            count, column = len(segment.heads), segment.columns
            total = np.bincount(column["pack"], column["length"], count)
            alive = np.bincount(column["pack"][live], column["length"][live], count)
            for head, whole, part in zip(segment.heads, total.tolist(), alive.tolist(), strict=True):
                if head.name in self.packs:  # several segments may list a pack, each all of it
                    seen = shares.get(head.name, Share(self.packs[head.name], 0, 0))
                    shares[head.name] = Share(seen.pack, max(seen.total, int(whole)), max(seen.live, int(part)))
        return shares

    def live_ids(self, names: Collection[str]) -> dict[str, bytes]:
        """Return the short ids of the live chunks of some packs, joined, in ascending order."""
        found: dict[str, set[bytes]] = {name: set() for name in names}
        for segment, live in zip(self._segments, self._live, strict=True):
            wanted = [number for number, head in enumerate(segment.heads) if head.name in names]
            if not wanted:
                continue
            rows = np.flatnonzero(live & np.isin(segment.columns["pack"], wanted))
            packs = segment.columns["pack"][rows]
            for number in wanted:
                found[segment.heads[number].name].update(_ids(segment, rows[packs == number]))
        return {name: b"".join(sorted(ids)) for name, ids in found.items()}

    def add(self, name: PointName, root: Root, progress: Progress) -> None:
        """Mark what one point needs."""
        self.points.append(f"{name.series}/{name.point}")
        self.packs.update((pack.name, pack) for pack in root.needed)
        fetcher = self._vault.fetcher(root)
        for number, block in enumerate(root.body.blocks):
            key = block_key(root, number)
            if key in self._seen:
                continue
            self._seen.add(key)
            progress.check()
            packs = {pack.name for i in block.packs if i < len(root.packs) for pack in root.needs(i)}
            try:
                extents = b"".join(fetcher.chunks(piece_ids(block)[_EXTENTS]))
                ids = b"".join(_own_ids(block)) + chunk_ids(extents, block.rows)
            except (IntegrityError, ValueError):
                self.doubtful |= packs
                continue
            if not self._mark(ids, packs):
                self.doubtful |= packs

    def _mark(self, ids: bytes, packs: set[str]) -> bool:
        """Mark every row of these packs that has one of the ids; say whether each id has one."""
        wide = np.frombuffer(ids, ">u8").reshape(-1, 2).astype(np.uint64)
        wide = wide[np.argsort(wide[:, 0])]  # a search in order is several times as fast
        high, low = np.ascontiguousarray(wide[:, 0]), np.ascontiguousarray(wide[:, 1])
        within = np.zeros(len(self._numbers) + 1, bool)
        within[[self._numbers[name] for name in packs if name in self._numbers]] = True
        known = np.zeros(len(high), bool)
        for segment, numbered, live in zip(self._segments, self._numbered, self._live, strict=True):
            inside = within[numbered]
            if inside.any():
                known |= _mark_rows(segment, live, inside, high, low)
        return bool(known.all())


def mark(vault: Vault, progress: Progress) -> Marks:
    """Read the listings of all points that are visible or may become so. Needs a session; only reads.

    Expired points are left out: what only they need is not worth a copy, and they keep their packs until they are gone.
    Raises FormatError for what a newer program wrote.
    """
    marks = Marks(vault)
    states = parts_of_points(vault.storage)
    names = [name for name, parts in states.items() if "root" in parts]
    progress.total(entries=len(names))
    for name in names:
        progress.check()
        progress.add(entries=1)
        if "expired" in states[name] and vault.is_expired(name):
            continue
        key = point_key(*name, "root")
        try:
            root = decode_root(vault.keys, key, vault.storage.get(key))
        except NotFound:
            continue  # expired since the LIST
        except IntegrityError as error:
            marks.unreadable.append(Finding(object=key, damage="point", detail=str(error)))
            continue
        moved = vault.moves.of(f"{name.series}/{name.point}", root.packs)
        marks.add(name, msgspec.structs.replace(root, moved=moved), progress)
    return marks


def _own_ids(block: Block) -> list[bytes]:
    return [ident[:ID_BYTES] for group in piece_ids(block) for ident in group]


def _ids(segment: Segment, rows: np.ndarray) -> list[bytes]:
    joined = np.stack([segment.columns["high"][rows], segment.columns["low"][rows]], axis=1).astype(">u8").tobytes()
    return [joined[at : at + ID_BYTES] for at in range(0, len(joined), ID_BYTES)]


def _mark_rows(segment: Segment, live: np.ndarray, inside: np.ndarray, high: np.ndarray, low: np.ndarray) -> np.ndarray:
    """Mark in `live` the rows of packs `inside` with these ids; return which of the ids have one."""
    known = np.zeros(len(high), bool)
    open_ = np.arange(len(high))
    rows = np.searchsorted(segment.columns["high"], high)
    while len(open_):
        kept = rows < segment.rows
        open_, rows = open_[kept], rows[kept]
        kept = segment.columns["high"][rows] == high[open_]
        open_, rows = open_[kept], rows[kept]
        hit = (segment.columns["low"][rows] == low[open_]) & inside[segment.columns["pack"][rows]]
        live[rows[hit]] = True
        known[open_[hit]] = True
        rows = rows + 1
    return known
