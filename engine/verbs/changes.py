"""Compare a walk with the parent point: what is carried over, what must be read (vault-format, section 5)."""

import bisect
from collections import Counter
from collections.abc import Iterator
from operator import and_
from typing import NamedTuple

import numpy as np

from engine.columns import Columns
from engine.entries import Block, Entry, Kind, sort_key
from engine.errors import IntegrityError
from engine.fetch import Fetcher
from engine.keys import ID_BYTES, Keys
from engine.listing import names_group, piece_ids, pieces, volatile_group
from engine.point import Root
from engine.vault import Vault

RACY_NS = 2_000_000_000
_FILE = Kind.FILE.value


class Match(NamedTuple):
    """A block of the parent that lists what was walked, by name.

    `changed` are the rows that are to be read, None when the block stands as it is; `differs` and `kinds`, of all rows,
    tell what is counted as changed.
    """

    block: Block
    changed: list[int] | None = None
    differs: np.ndarray | None = None
    kinds: np.ndarray | None = None


class Tally:
    """Counts the entries and files that are new, changed, unchanged and deleted since the parent point.

    Changed means that kind, size, times or inode differ, whatever has to be read again besides; a stream always counts
    as changed. Deleted is what the walk did not find any more.
    """

    def __init__(self, root: Root | None) -> None:
        self._before = (root.body.stats.entries, root.body.stats.files) if root else (0, 0)
        self._met = [0, 0]
        self._counts: Counter[str] = Counter()

    def matched(self, match: Match) -> None:
        """Count the rows of a block that stands in the parent, some of them changed perhaps."""
        block, _, differs, kinds = match
        entries = files = 0
        if differs is not None and kinds is not None:
            entries, files = int(differs.sum()), int((differs & (kinds == _FILE)).sum())
        for name, rows, changed in (("entries", block.rows, entries), ("files", block.files, files)):
            self._counts[f"{name}_unchanged"] += rows - changed
            self._counts[f"{name}_changed"] += changed
        self._meet(block.rows, block.files)

    def new(self, rows: list[Entry]) -> None:
        """Count rows that no parent holds."""
        self._counts["entries_new"] += len(rows)
        self._counts["files_new"] += sum(row.kind == Kind.FILE for row in rows)

    def rows(self, rows: list[Entry], olds: list[Entry | None], same: list[bool]) -> None:
        """Count rows, what the parent holds in place of each, and whether that is the same."""
        are_files = [row.kind == _FILE for row in rows]
        were_files = [old is not None and old.kind == _FILE for old in olds]
        unchanged, files_unchanged = sum(same), sum(map(and_, same, are_files))
        met, files_met = len(olds) - olds.count(None), sum(map(and_, are_files, were_files))
        self._counts["entries_new"] += len(rows) - met
        self._counts["entries_changed"] += met - unchanged
        self._counts["entries_unchanged"] += unchanged
        self._counts["files_new"] += sum(are_files) - files_met
        self._counts["files_changed"] += files_met - files_unchanged
        self._counts["files_unchanged"] += files_unchanged
        self._meet(met, files_met)

    def unreadable(self, block: Block) -> None:
        """Count nothing of a damaged block as deleted; what the walk finds of it counts as new."""
        self._meet(block.rows, block.files)

    def total(self) -> dict[str, int]:
        """Return the counts by their names in Stats, once the walk has ended."""
        entries, files = (max(before - met, 0) for before, met in zip(self._before, self._met, strict=True))
        return {**self._counts, "entries_deleted": entries, "files_deleted": files}

    def _meet(self, entries: int, files: int) -> None:
        self._met[0] += entries
        self._met[1] += files


def _same(new: Entry, old: Entry | None) -> bool:
    return (
        old is not None
        and new.mtime_ns == old.mtime_ns
        and new.size == old.size
        and new.ctime_ns == old.ctime_ns
        and new.inode == old.inode
        and new.kind == old.kind
    )


class Parent:
    """The parent point as the comparison sees it; asked in listing order, each block is decoded at most once.

    `tally` counts what was asked for. Unchanged means: kind, size, mtime, ctime and inode are equal, the entry did not
    change within 2 s of the parent's scan, and all its packs may be used in this session.
    """

    def __init__(self, vault: Vault, root: Root, forbidden: set[str], tally: Tally) -> None:
        self._tally = tally
        self._keys: Keys = vault.keys
        self._index = vault.index
        self._fetcher: Fetcher = vault.fetcher(root)
        self._blocks = root.body.blocks
        self._firsts = [sort_key(block.first) for block in self._blocks]
        self._racy_ns = root.body.scan_ns - RACY_NS
        self._lost = {
            number for number in range(len(root.packs)) if any(pack.name in forbidden for pack in root.needs(number))
        }
        self._current = -1
        self._entries: dict[bytes, Entry] = {}

    def match(self, rows: list[Entry]) -> Match | None:
        """Return the parent's block that lists what was walked; None when there is none, or none that can be used."""
        number = bisect.bisect_left(self._firsts, rows[0].sort_key)
        if number == len(self._blocks) or self._blocks[number].first != rows[0].path:
            return None
        block = self._blocks[number]
        if block.rows != len(rows):
            return None
        names, _, volatile, _ = piece_ids(block)
        if self._idents(names_group(rows)) != names:
            return None
        walked = volatile_group(rows)
        is_same = self._idents(walked) == volatile
        if is_same and block.newest_ns < self._racy_ns and self._lost.isdisjoint(block.packs):
            return Match(block)
        return self._changed(block, walked)

    def _changed(self, block: Block, walked: bytes) -> Match | None:
        """Compare a block's columns; None for what only a comparison row by row can tell."""
        try:
            columns = Columns(self._fetcher.groups(block))
        except IntegrityError:
            return None
        differs, is_else = columns.differing(walked)
        if is_else:
            return None
        changed = differs | columns.since(self._racy_ns)
        ids, belongs_to = columns.chunks()
        changed[belongs_to[~self._index.known(ids)]] = True
        return Match(block, np.flatnonzero(changed).tolist(), differs, columns.kinds)

    def _idents(self, group: bytes) -> list[bytes]:
        return [self._keys.chunk_id(piece) for piece in pieces(group)]

    def compare(self, rows: list[Entry]) -> tuple[list[Entry | None], list[bool]]:
        """Return what the parent holds in place of each row, and whether it is the same; count them."""
        olds = [self._find(row) for row in rows]
        same = list(map(_same, rows, olds))
        self._tally.rows(rows, olds, same)
        return olds, same

    def carry(self, rows: list[Entry]) -> list[bool]:
        """Put the parent's version in place of every unchanged row; say for each row whether it was.

        An entry whose chunks the index can't give to this session (condemned, or a damaged index) counts as changed.
        """
        racy_ns = self._racy_ns
        kept = [
            old if is_same and new.mtime_ns < racy_ns and new.ctime_ns < racy_ns else None
            for new, old, is_same in zip(rows, *self.compare(rows), strict=True)
        ]
        ids = extent_ids([old for old in kept if old is not None])
        known = iter(self._index.known(ids).tolist())
        for number, old in enumerate(kept):
            if old is None:
                continue
            held = [next(known) for extent in old.extents if extent.id]
            if all(held):
                new = rows[number]
                old.links, old.device = new.links, new.device
                rows[number] = old
            else:
                kept[number] = None
        return [old is not None for old in kept]

    def _find(self, entry: Entry) -> Entry | None:
        number = bisect.bisect_right(self._firsts, entry.sort_key) - 1
        return self._block(number).get(entry.path) if number >= 0 else None

    def _block(self, number: int) -> dict[bytes, Entry]:
        """Return a block's entries by their paths, in order."""
        if number != self._current:
            self._entries = self._read(number)
            self._current = number
        return self._entries

    def _read(self, number: int) -> dict[bytes, Entry]:
        """Return a block's entries, none when it is damaged or gone: then everything in it is read and stored again."""
        try:
            return {row.path: row for row in self._fetcher.entries(self._blocks[number])}
        except IntegrityError:
            self._tally.unreadable(self._blocks[number])
            return {}


def extent_ids(rows: list[Entry]) -> list[bytes]:
    """Return the 16-byte ids of all chunks of some entries."""
    return [extent.id for row in rows for extent in row.extents if extent.id]


def short_ids(block: Block) -> Iterator[bytes]:
    """Yield the 16-byte ids of a block's own groups."""
    for group in piece_ids(block):
        for ident in group:
            yield ident[:ID_BYTES]
