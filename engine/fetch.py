"""Read chunks back: from ids to places, from places to slots, checked against the ids."""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import TypeVar

from engine.codec import Compressor
from engine.entries import Block, Entry
from engine.errors import IntegrityError, MissingObject, NotFound, ShortRead
from engine.ids import pack_key
from engine.index import Index, Place, Segment, encode_segment
from engine.keys import ID_BYTES, Keys
from engine.listing import decode, piece_ids
from engine.pack import (
    HEADER_BYTES,
    SLOT_BYTES_MAX,
    TRAILER_BYTES,
    Cipher,
    Head,
    Sealed,
    footer_range,
    open_footer,
    open_header,
)
from engine.point import PackRef
from engine.storage.port import Storage

SLOTS_KEPT_BYTES = 32 << 20
_TAIL_BYTES = 64 << 10

Plain = TypeVar("Plain", bytes, memoryview)


class Fetcher:
    """Reads single chunks of one point, keeping the last slots: for browsing and listings. Not for threads.

    `within` is the point's pack set: a chunk is never taken from a pack that the point does not hold. Chunks that the
    index does not know (lost or damaged segments) are found through the footers of those packs.
    """

    def __init__(self, storage: Storage, keys: Keys, index: Index, packs: Sequence[PackRef]) -> None:
        self._storage, self._keys, self._index, self._packs = storage, keys, index, packs
        self._within = {pack.name for pack in packs}
        self._rescue: Index | None = None
        self._slots: OrderedDict[tuple[str, int], bytes] = OrderedDict()
        self._kept = 0
        self._zstd = Compressor()

    def places(self, ids: Sequence[bytes]) -> list[Place]:
        """Return where chunks lie, by 16-byte ids. Raises MissingObject naming the first that is nowhere."""
        found = self.look(ids)
        answer = [place for place in found if place is not None]
        if len(answer) != len(found):
            raise MissingObject(nowhere(ids[found.index(None)]))
        return answer

    def look(self, ids: Sequence[bytes]) -> list[Place | None]:
        """Return where chunks lie, by 16-byte ids; None for each that is nowhere."""
        found = self._index.places(ids, within=self._within)
        if None in found:
            rescue = self._from_footers()
            lost = [i for i, place in enumerate(found) if place is None]
            for i, place in zip(lost, rescue.places([ids[i] for i in lost]), strict=True):
                found[i] = place
        return found

    def chunks(self, ids: Sequence[bytes]) -> list[bytes]:
        """Return the chunks with these ids (16 or 32 bytes). Raises IntegrityError, MissingObject."""
        places = self.places([ident[:ID_BYTES] for ident in ids])
        return [self.chunk(ident, place) for ident, place in zip(ids, places, strict=True)]

    def chunk(self, ident: bytes, place: Place) -> bytes:
        """Return one chunk, checked against its id."""
        return cut_chunk(self._keys, self._slot(place), ident, place)

    def groups(self, block: Block) -> list[bytes]:
        """Return the groups of one block of the listing. Raises IntegrityError."""
        idents = piece_ids(block)
        chunks = iter(self.chunks([ident for group in idents for ident in group]))
        return [b"".join(next(chunks) for _ in group) for group in idents]

    def entries(self, block: Block) -> list[Entry]:
        """Return the entries of one block of the listing. Raises IntegrityError."""
        rows = decode(self.groups(block))
        if len(rows) != block.rows or rows[0].path != block.first:
            raise IntegrityError("a listing block is not the one that the root names")
        return rows

    def _slot(self, place: Place) -> bytes:
        which = (place.head.name, place.slot)
        slot = self._slots.get(which)
        if slot is not None:
            self._slots.move_to_end(which)
            return slot
        stored = read_range(self._storage, place.head, place.slot_at, place.slot_stored)
        cipher = Cipher(self._keys, place.head.kind, place.head.epoch, place.head.salt)
        slot = open_slot(self._zstd, cipher, place, stored)
        self._slots[which] = slot
        self._kept += len(slot)
        while self._kept > SLOTS_KEPT_BYTES and len(self._slots) > 1:
            self._kept -= len(self._slots.popitem(last=False)[1])
        return slot

    def _from_footers(self) -> Index:
        if self._rescue is None:
            self._rescue = Index(self._storage, self._keys, None)
            self._rescue.adopt(index_of_packs(self._storage, self._keys, self._packs))
        return self._rescue


def nowhere(ident: bytes) -> str:
    """Return what is told of a chunk that no pack of a point holds."""
    return f"chunk {ident.hex()} is in none of the point's packs"


def open_slot(zstd: Compressor, cipher: Cipher, place: Place, stored: bytes | memoryview) -> bytes:
    """Return a slot's plain bytes. Raises IntegrityError naming the pack."""
    try:
        data = cipher.decrypt(place.slot, stored)
        return zstd.unpack(data, compressed=not place.raw, bytes_max=SLOT_BYTES_MAX)
    except IntegrityError as error:
        raise IntegrityError(f"{place.head.key}: slot {place.slot} is damaged") from error


def cut_chunk(keys: Keys, slot: Plain, ident: bytes, place: Place) -> Plain:
    """Return the chunk inside a plain slot, a view of a view, after re-deriving its id (engine invariant 10)."""
    data = slot[place.offset : place.offset + place.length] if place.length != len(slot) else slot
    if keys.chunk_id(data)[: len(ident)] != ident:
        raise IntegrityError(f"{place.head.key}: a chunk is not what its id says")
    return data


def read_range(storage: Storage, head: Head, offset: int, length: int) -> bytes:
    """Read part of a pack. Raises MissingObject when the pack is gone, IntegrityError when it is cut short."""
    return _read(storage, head.key, head.size, (offset, length))


def read_footer(storage: Storage, keys: Keys, pack: PackRef) -> Sealed:
    """Return a pack's head and table from its own two ends. Raises IntegrityError, MissingObject."""
    key = pack_key(pack.kind, pack.name)
    header = _read(storage, key, pack.size, (0, HEADER_BYTES))
    tail_at = max(pack.size - _TAIL_BYTES, 0)
    tail = _read(storage, key, pack.size, (tail_at, pack.size - tail_at))
    offset, length = footer_range(pack.name, tail[-TRAILER_BYTES:], pack.size)
    inside = offset >= tail_at
    footer = tail[offset - tail_at :][:length] if inside else _read(storage, key, pack.size, (offset, length))
    head = open_header(keys, pack.name, header, kind=pack.kind, size=pack.size)
    return Sealed(head, open_footer(keys, head, footer))


def _read(storage: Storage, key: str, size: int, part: tuple[int, int]) -> bytes:
    """Read (offset, length) of an object of `size` bytes; tell one that is cut short from an answer that is."""
    try:
        return storage.get(key, offset=part[0], length=part[1])
    except NotFound as error:
        raise MissingObject(f"{key} is gone") from error
    except ShortRead as error:
        if any(stored.key == key and stored.size < size for stored in storage.scan(key)):
            raise IntegrityError(f"{key} is cut short") from error
        raise


def index_of_packs(storage: Storage, keys: Keys, packs: Iterable[PackRef]) -> list[Segment]:
    """Rebuild index segments, in memory, from the footers of packs; damaged packs are left out."""
    sealed = []
    for pack in packs:
        try:
            sealed.append(read_footer(storage, keys, pack))
        except IntegrityError:
            continue  # its chunks stay unknown, which is what their reader will report
    return [Segment(f"footers-{i}", memoryview(plain)) for i, plain in enumerate(encode_segment(sealed))]
