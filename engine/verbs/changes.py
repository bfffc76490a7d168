"""Compare a walk with the parent point: what is carried over, what must be read (vault-format, section 5)."""

import bisect
from collections import Counter
from collections.abc import Iterator

from engine.entries import Entry, Kind, sort_key
from engine.errors import IntegrityError
from engine.fetch import Fetcher
from engine.keys import ID_BYTES, Keys
from engine.listing import Block, names_group, piece_ids, pieces, volatile_group
from engine.point import Root
from engine.vault import Vault, read_block

RACY_NS = 2_000_000_000


class Tally:
    """Counts the entries and files that are new, changed, unchanged and deleted since the parent point.

    Changed means that kind, size, times or inode differ, whatever has to be read again besides; a stream always counts
    as changed. Deleted is what the walk did not find any more.
    """

    def __init__(self, root: Root | None) -> None:
        self._before = (root.body.stats.entries, root.body.stats.files) if root else (0, 0)
        self._met = [0, 0]
        self._counts: Counter[str] = Counter()

    def same(self, block: Block) -> None:
        """Count a block that stands in the parent as it is."""
        self._counts["entries_unchanged"] += block.rows
        self._counts["files_unchanged"] += block.files
        self._meet(block.rows, block.files)

    def new(self, rows: list[Entry]) -> None:
        """Count rows that no parent holds."""
        self._counts["entries_new"] += len(rows)
        self._counts["files_new"] += sum(row.kind == Kind.FILE for row in rows)

    def row(self, row: Entry, old: Entry | None) -> None:
        """Count a row and what the parent holds in its place."""
        is_file = row.kind == Kind.FILE
        was_file = old is not None and old.kind == Kind.FILE
        word = "new" if old is None else "unchanged" if _same(row, old) else "changed"
        self._counts[f"entries_{word}"] += 1
        if is_file:
            self._counts[f"files_{word if was_file else 'new'}"] += 1
        self._meet(old is not None, is_file and was_file)

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


def _same(new: Entry, old: Entry) -> bool:
    return (
        new.mtime_ns == old.mtime_ns
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

    def same_block(self, rows: list[Entry]) -> Block | None:
        """Return the parent's block when it says exactly what was walked, so that it can be carried over unread."""
        number = bisect.bisect_left(self._firsts, rows[0].sort_key)
        if number == len(self._blocks) or self._blocks[number].first != rows[0].path:
            return None
        block = self._blocks[number]
        if block.rows != len(rows) or block.newest_ns >= self._racy_ns or not self._lost.isdisjoint(block.packs):
            return None
        idents = piece_ids(block)
        for group, encode in ((2, volatile_group), (0, names_group)):
            if [self._keys.chunk_id(piece) for piece in pieces(encode(rows))] != idents[group]:
                return None
        self._tally.same(block)
        return block

    def compare(self, rows: list[Entry]) -> list[Entry | None]:
        """Return what the parent holds in place of each row, and count it."""
        found = [self._find(row) for row in rows]
        for row, old in zip(rows, found, strict=True):
            self._tally.row(row, old)
        return found

    def carry(self, rows: list[Entry]) -> list[bool]:
        """Put the parent's version in place of every unchanged row; say for each row whether it was.

        An entry whose chunks the index can't give to this session (condemned, or a damaged index) counts as changed.
        """
        kept = [
            old if old and self._is_kept(row, old) else None for row, old in zip(rows, self.compare(rows), strict=True)
        ]
        ids = extent_ids([old for old in kept if old is not None])
        known = iter(self._index.known(ids).tolist())
        for number, old in enumerate(kept):
            if old is None:
                continue
            held = [next(known) for extent in old.extents if extent.id]
            if all(held):
                rows[number] = old
            else:
                kept[number] = None
        return [old is not None for old in kept]

    def _find(self, entry: Entry) -> Entry | None:
        number = bisect.bisect_right(self._firsts, entry.sort_key) - 1
        if number < 0:
            return None
        if number != self._current:
            self._entries = self._read(number)
            self._current = number
        return self._entries.get(entry.path)

    def _read(self, number: int) -> dict[bytes, Entry]:
        """Return a block's entries, none when it is damaged or gone: then everything in it is read and stored again."""
        try:
            return {row.path: row for row in read_block(self._fetcher, self._blocks[number])}
        except IntegrityError:
            self._tally.unreadable(self._blocks[number])
            return {}

    def _is_kept(self, new: Entry, old: Entry) -> bool:
        if not (_same(new, old) and new.mtime_ns < self._racy_ns and new.ctime_ns < self._racy_ns):
            return False
        old.links, old.device = new.links, new.device
        return True


def extent_ids(rows: list[Entry]) -> list[bytes]:
    """Return the 16-byte ids of all chunks of some entries."""
    return [extent.id for row in rows for extent in row.extents if extent.id]


def short_ids(block: Block) -> Iterator[bytes]:
    """Yield the 16-byte ids of a block's own groups."""
    for group in piece_ids(block):
        for ident in group:
            yield ident[:ID_BYTES]
