"""Turn the results of a backup, in listing order, into blocks and a root: the end of a backup."""

from collections.abc import Collection, Iterable, Mapping
from operator import lt

import msgspec

from engine.columns import Columns
from engine.entries import Block, Entry, sort_key
from engine.fetch import Fetcher
from engine.index import encode_segment
from engine.keys import ID_BYTES
from engine.listing import BlockBuilder
from engine.pack import META, Head, PackWriter
from engine.point import PackRef, Root
from engine.vault import Vault
from engine.verbs.changes import extent_ids, short_ids


class Listing:
    """Builds one point's listing. Feed it in listing order, then `close()`.

    Every chunk of every entry is looked up again: a point that refers to a chunk which no pack of the index holds is
    never written (MissingObject). Memory: the block table, not the entries.
    """

    def __init__(self, vault: Vault, parent: Root | None) -> None:
        self._vault, self._parent = vault, parent
        self._writer = PackWriter(vault.keys, META, vault.storage.put)
        self._builder = BlockBuilder(vault.keys.chunker_seed, vault.keys.chunk_id, self._store)
        self._blocks: list[Block] = []
        self._needs: list[set[PackRef]] = []
        self._carried: set[int] = set()
        self._own: set[bytes] = set()
        self._last = b""
        self._fetcher: Fetcher | None = None
        self.bytes_stored = 0

    def add(self, rows: list[Entry]) -> None:
        """Take the next entries."""
        keys = [self._last, *(sort_key(row.path) for row in rows)]
        if not all(map(lt, keys, keys[1:])):
            wrong = next(row for row, before, key in zip(rows, keys, keys[1:], strict=False) if key <= before)
            raise AssertionError(f"entries out of order at {wrong.path!r}")
        self._last = keys[-1]
        for ended in self._builder.add(rows):
            self._take(ended)

    def carry(self, block: Block) -> None:
        """Take a whole block of the parent unread."""
        assert self._parent is not None
        self._take(self._builder.flush())
        self._carried.add(len(self._blocks))
        self._needs.append({pack for number in block.packs for pack in self._parent.needs(number)})
        # A copy: the parent's root, which others still read, may hold this very object, and close() numbers packs anew.
        self._blocks.append(msgspec.structs.replace(block))

    def replace(self, block: Block, entries: Mapping[int, Entry]) -> Block:
        """Take a block of the parent with some of its rows anew; return the new one. Raises IntegrityError."""
        self._take(self._builder.flush())
        columns = self._columns(block)
        columns.replace(entries)
        new = self._builder.block(block.first, columns.encode(), columns.newest_ns(), columns.files())
        self._writer.end_slot()
        self._blocks.append(new)
        self._needs.append(_refs(self._vault.index.packs_of(columns.chunks()[0])))
        return new

    def rest(self, block: Block, gone: Collection[int], entries: Mapping[int, Entry]) -> list[Entry]:
        """Return a parent's block without the rows that are gone, some others anew. Raises IntegrityError."""
        rows = enumerate(self._columns(block).entries())
        return [entries.get(number, row) for number, row in rows if number not in gone]

    def _columns(self, block: Block) -> Columns:
        assert self._parent is not None
        if self._fetcher is None:
            self._fetcher = self._vault.fetcher(self._parent)
        return Columns(self._fetcher.groups(block))

    def close(self) -> tuple[list[Block], list[PackRef]]:
        """Store the last block and the segment; return the block table and the point's pack set."""
        self._take(self._builder.flush())
        sealed = self._writer.close()
        self.bytes_stored += sum(pack.head.size for pack in sealed)
        for plain in encode_segment(sealed):
            self.bytes_stored += self._vault.index.add(plain)
        needs = [self._complete(number) for number in range(len(self._blocks))]
        packs = sorted({pack for need in needs for pack in need}, key=lambda pack: (pack.kind, pack.name))
        ordinal = {pack: number for number, pack in enumerate(packs)}
        for block, need in zip(self._blocks, needs, strict=True):
            block.packs = sorted(ordinal[pack] for pack in need)
        return self._blocks, packs

    def _take(self, ended: tuple[Block, list[Entry]] | None) -> None:
        if ended is None:
            return
        block, rows = ended
        self._writer.end_slot()
        self._blocks.append(block)
        self._needs.append(_refs(self._vault.index.packs_of(extent_ids(rows))))

    def _complete(self, number: int) -> set[PackRef]:
        """Return all packs of a block, those of its own groups included (a carried block has them already)."""
        if number in self._carried:
            return self._needs[number]
        return self._needs[number] | _refs(self._vault.index.packs_of(list(short_ids(self._blocks[number]))))

    def _store(self, ident: bytes, data: bytes) -> None:
        short = ident[:ID_BYTES]
        if short not in self._own and not self._vault.index.known([short])[0]:
            self._own.add(short)
            self._writer.add(ident, data)


def _refs(heads: Iterable[Head]) -> set[PackRef]:
    return {PackRef(head.name, head.kind, head.size) for head in heads}
