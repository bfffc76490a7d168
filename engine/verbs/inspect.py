"""The checks of a verification: one object or one block at a time, each returns what is wrong with it."""

import contextlib
import datetime as dt
import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property

import numpy as np

from engine.codec import Compressor
from engine.entries import Block, Entry, Kind, sort_key
from engine.errors import FormatError, IntegrityError, MissingObject, NotFound, PointMissing
from engine.fetch import index_of_packs, open_slot, read_footer
from engine.ids import FOLDERS, SEGMENTS, digest_name, named_digest, pack_key
from engine.index import Index, Place, Segment, load_segment, wide_ids
from engine.keys import ID_BYTES, Keys
from engine.keysets import KEYS
from engine.ledger import Ledger, point_states
from engine.listing import FULL_ID_BYTES
from engine.pack import HEADER_BYTES, META, TRAILER_BYTES, Cipher, Sealed, footer_range, open_footer, open_header
from engine.point import PackRef, Root, decode_commit, point_key
from engine.progress import Progress
from engine.session import Session
from engine.storage.port import Storage
from engine.vault import PointName, Vault
from engine.verbs.findings import Finding, block_key, pack_name

_READERS = 8
_NAMED = (KEYS, SEGMENTS, *(f"{folder}/" for folder in FOLDERS))


def open_unbound(vault: Vault, name: str, *, verb: str, now: dt.datetime) -> Session:
    """Open a session that reads only what is there: the vault's index goes on answering with condemned packs.

    A damaged note of a prune must not stop the verbs that look for damage: `open` is stored before notes are read.
    """
    try:
        return Session.open(vault.storage, vault.keys, name=name, verb=verb, now=now)
    except IntegrityError:
        return Session(vault.storage, vault.keys, name)


def scrub(storage: Storage, key: str) -> Finding | None:
    """Compare the SHA-256 of an object with its name; needs no key (engine invariant 24)."""
    try:
        return _scrubbed(key, storage.get(key))
    except NotFound:
        return Finding(object=key, damage="missing", detail="it is gone")


def _scrubbed(key: str, data: bytes) -> Finding | None:
    if digest_name(data) == sha_name(key):
        return None
    return Finding(object=key, damage="damaged", detail="its bytes do not match its name")


def unverified_points(vault: Vault, ledger: Ledger, names: Sequence[PointName]) -> list[PointName]:
    """Return those points whose structure the ledger does not call verified, as they are after all moves."""
    states = point_states(vault.moves, [f"{name.series}/{name.point}" for name in names])
    return [name for name in names if states[f"{name.series}/{name.point}"] not in ledger.structured]


def where_damaged(vault: Vault, finding: Finding, size: int) -> Finding | None:
    """Look closer at an object that a scrub found damaged: which chunks of a pack are lost, or None when it is whole.

    Reads it once more: what was only changed on its way is no damage of the vault.
    """
    name = pack_name(finding.object)
    kind = int(finding.object.startswith(f"{FOLDERS[META]}/"))
    if not name or finding.damage == "missing" or pack_key(kind, name) != finding.object:
        return finding
    found = Packs(vault).check_content(PackRef(name, kind, size))
    return next((closer for closer in found if closer.object == finding.object), None)


def last_part(key: str) -> str:
    """Return what the ledger knows an object by."""
    return key.rpartition("/")[2]


def sha_name(key: str) -> str:
    """Return the SHA-256 of the bytes that an object is named by, without alias; empty for objects with other names."""
    name = named_digest(key)
    named = key.startswith(_NAMED) and len(name) == 64 and not set(name) - set("0123456789abcdef")
    return name if named else ""


def read_points(
    vault: Vault, names: Sequence[PointName], progress: Progress
) -> Iterator[tuple[PointName, Root | Finding]]:
    """Yield each point that is still there with its root, or with what is wrong; threads read some at once.

    Raises FormatError. Memory: 32 roots.
    """
    with contextlib.suppress(IntegrityError):  # no root can be believed then, and each will say so
        _ = vault.moves  # read once, before the threads ask for it
    for at in range(0, len(names), 4 * _READERS):
        progress.check()
        part = names[at : at + 4 * _READERS]
        with ThreadPoolExecutor(_READERS, "roots") as readers:
            roots = list(readers.map(lambda name: _read_point(vault, name), part))
        # No thread is left while others do what they want with these: a pool may fork now.
        yield from ((name, root) for name, root in zip(part, roots, strict=True) if root is not None)


def _read_point(vault: Vault, name: PointName) -> Root | Finding | None:
    try:
        return vault.root(name)
    except PointMissing:
        return None  # expired since the LIST
    except IntegrityError as error:
        key = point_key(*name, "commit")
        try:
            decode_commit(vault.keys, key, vault.storage.get(key))
            key = point_key(*name, "root")
        except IntegrityError:
            pass  # it is the commit itself
        return Finding(object=key, damage="point", detail=str(error))


def check_control(vault: Vault, key: str) -> Finding | None:
    """Check the MAC of a note."""
    try:
        vault.keys.verify(key, vault.storage.get(key))
    except NotFound:
        return None  # cleaned up since the LIST
    except IntegrityError as error:
        return Finding(object=key, damage="control", detail=str(error))
    return None


def check_segment(vault: Vault, key: str) -> Finding | None:
    """Read a segment past every cache: its name, its seal, its order, its rows. Raises FormatError."""
    try:
        segment = load_segment(vault.storage, vault.keys, key)
    except NotFound:
        return None  # merged away since the LIST
    except IntegrityError as error:
        return Finding(object=key, damage="index", detail=str(error))
    wrong = _contradiction(segment)
    return Finding(object=key, damage="contradiction", detail=wrong) if wrong else None


def _contradiction(segment: Segment) -> str:
    if not segment.rows:
        return ""
    c = {name: column.astype(np.uint64) for name, column in segment.columns.items()}
    high, low = c["high"], c["low"]
    if ((high[1:] < high[:-1]) | ((high[1:] == high[:-1]) & (low[1:] < low[:-1]))).any():
        return "its rows are out of order"
    sizes = np.array([head.size for head in segment.heads], np.uint64)[segment.columns["pack"]]
    if ((c["at"] < HEADER_BYTES) | (c["at"] + c["stored"] > sizes)).any():
        return "a row lies outside its pack"
    return ""


class Blocks:
    """Checks blocks of one point's listing. Keeps what it asked of the index; not for threads."""

    def __init__(self, vault: Vault, name: PointName, root: Root) -> None:
        self._vault, self._name, self._root = vault, name, root
        self._fetcher = vault.fetcher(root)

    def check(self, number: int) -> list[Finding]:
        """Check that the block decodes, is in order, and that the block's own packs hold all it refers to."""
        block = self._root.body.blocks[number]
        try:
            rows = self._fetcher.entries(block)
        except IntegrityError as error:
            finding = self._finding(number, "listing", str(error))
            finding.files = block.files
            return [finding, *self._damaged_packs(block)]
        findings = []
        if wrong := self._disorder(number, rows):
            findings.append(self._finding(number, "listing", wrong))
        packs = [pack for i in block.packs if i < len(self._root.packs) for pack in self._root.needs(i)]
        own = [group[at : at + ID_BYTES] for group in block.groups for at in range(0, len(group), FULL_ID_BYTES)]
        return findings + self._resolve(number, rows, own, packs)

    def _damaged_packs(self, block: Block) -> Iterator[Finding]:
        """Scrub the packs that an unreadable block is in, to name those that are damaged."""
        packs = [pack for i in block.packs if i < len(self._root.packs) for pack in self._root.needs(i)]
        for pack in packs:
            finding = scrub(self._vault.storage, pack_key(pack.kind, pack.name)) if pack.kind == META else None
            if finding is not None:
                yield finding

    def _disorder(self, number: int, rows: list[Entry]) -> str:
        keys = [row.sort_key for row in rows]
        following = self._root.body.blocks[number + 1 : number + 2]
        keys += [sort_key(block.first) for block in following]
        if any(left >= right for left, right in itertools.pairwise(keys)):
            return "its entries are out of order"
        for row in rows:
            if row.kind == Kind.FILE and row.size != sum(extent.length for extent in row.extents):
                return f"the extents of {row.path!r} are not as long as the file"
        return ""

    def _resolve(self, number: int, rows: list[Entry], own: list[bytes], packs: list[PackRef]) -> list[Finding]:
        """Look every chunk up in the index, limited to the block's packs; then those in no segment in the footers."""
        extents = [(row.path, extent) for row in rows for extent in row.extents if extent.id]
        ids = [extent.id for _, extent in extents] + own
        lengths = np.array([extent.length for _, extent in extents] + [-1] * len(own), np.int64)
        within = {pack.name for pack in packs}
        unlisted = _unresolved(self._vault.index, ids, lengths, within)
        if not unlisted.any():
            return []
        lost = _unresolved(self._footers, ids, lengths, within)
        if not lost.any():
            detail = f"{int(unlisted.sum())} chunks of a listing block are in no readable segment"
            return [self._finding(number, "index", detail)]
        detail = f"{int(lost.sum())} chunks are in none of the packs that the root names for the block"
        finding = self._finding(number, "listing", detail)
        finding.count(dict.fromkeys(path for (path, _), gone in zip(extents, lost.tolist(), strict=False) if gone))
        return [finding]

    @cached_property
    def _footers(self) -> Index:
        """Return an index of the point's packs made of their footers alone."""
        storage, keys = self._vault.storage, self._vault.keys
        index = Index(storage, keys, None)
        index.adopt(index_of_packs(storage, keys, self._root.needed))
        return index

    def _finding(self, number: int, damage: str, detail: str) -> Finding:
        key = point_key(*self._name, "root")
        detail = f"block {number} from {self._root.body.blocks[number].first!r}: {detail}"
        return Finding(object=key, damage=damage, detail=detail, blocks=[block_key(self._root, number)])


def _unresolved(index: Index, ids: list[bytes], lengths: np.ndarray, within: set[str]) -> np.ndarray:
    """Return which chunks are in none of the packs `within`, or have another length there (-1: any length will do)."""
    found = index.find(ids, within=within)
    bad = found.segment < 0
    for number in np.unique(found.segment[~bad]).tolist():
        here = np.flatnonzero(found.segment == number)
        listed = index.segments[number].columns["length"][found.row[here]].astype(np.int64)
        bad[here] = (lengths[here] >= 0) & (listed != lengths[here])
    return bad


class Packs:
    """Checks packs against themselves and against the index. Not for threads."""

    def __init__(self, vault: Vault) -> None:
        self._vault = vault
        self._zstd = Compressor()
        self._where: dict[str, list[tuple[Segment, int]]] = {}
        self._counts: dict[str, np.ndarray] = {}
        self._keys = {stored.key.rpartition("/")[2]: stored.key for stored in vault.storage.scan(SEGMENTS)}
        for segment in vault.index.segments:
            self._counts[segment.name] = np.bincount(segment.columns["pack"], minlength=len(segment.heads))
            for number, head in enumerate(segment.heads):
                self._where.setdefault(head.name, []).append((segment, number))

    def check_footer(self, pack: PackRef) -> list[Finding]:
        """Check header, trailer and footer, two small reads. Raises FormatError."""
        try:
            return self._agree(footer_of(self._vault, pack))
        except MissingObject as error:
            return [self._lost(pack, "missing", str(error))]
        except IntegrityError as error:
            return [self._lost(pack, "damaged", str(error))]

    def check_content(self, pack: PackRef) -> list[Finding]:
        """Read the whole pack: its name, its footer, every slot, every chunk's full id. Raises FormatError."""
        key = pack_key(pack.kind, pack.name)
        try:
            data = self._vault.storage.get(key)
        except NotFound:
            return [self._lost(pack, "missing", "it is gone")]
        if len(data) != pack.size:
            return [self._lost(pack, "size", f"it has {len(data)} bytes instead of {pack.size}")]
        digest = _scrubbed(key, data)
        try:
            sealed = parse_pack(self._vault.keys, pack, data)
        except IntegrityError as error:
            return [self._lost(pack, "damaged", str(error))]
        except FormatError as error:
            if digest is None:
                raise
            return [self._lost(pack, "damaged", str(error))]
        bad = list(self._bad_chunks(sealed, memoryview(data)))
        if bad:
            detail = f"{len(bad)} of its {len(sealed.table.ids)} chunks cannot be read"
            return [Finding(object=key, damage="damaged", detail=detail, chunks=bad)]
        if digest is not None:
            digest.detail += "; all its chunks can still be read"
            return [digest]
        return self._agree(sealed)

    def lost_chunks(self, name: str) -> list[bytes]:
        """Return the 16-byte ids of all chunks that the index lists in a pack."""
        ids: dict[bytes, None] = {}
        for segment, number in self._where.get(name, []):
            rows = np.flatnonzero(segment.columns["pack"] == number)
            wide = np.stack([segment.columns["high"][rows], segment.columns["low"][rows]], axis=1).astype(">u8")
            flat = wide.tobytes()
            ids.update(dict.fromkeys(flat[at : at + ID_BYTES] for at in range(0, len(flat), ID_BYTES)))
        return list(ids)

    def _bad_chunks(self, sealed: Sealed, data: memoryview) -> Iterator[bytes]:
        """Decrypt slot by slot and re-derive every id; yield the short ids of what is not right."""
        head, table = sealed
        cipher = Cipher(self._vault.keys, head.kind, head.epoch, head.salt)
        order = np.argsort(table.slot, kind="stable")
        ends = np.searchsorted(table.slot[order], np.arange(len(table.raw) + 1))
        for slot in range(len(table.raw)):
            rows = order[ends[slot] : ends[slot + 1]].tolist()
            at, stored = int(table.at[slot]), int(table.stored[slot])
            place = Place(head, slot, bool(table.raw[slot]), at, stored, 0, 0)
            try:
                plain = memoryview(open_slot(self._zstd, cipher, place, data[at : at + stored]))
            except IntegrityError:
                plain = None
            for row in rows:
                ident = table.ids[row].tobytes()
                offset = int(table.offset[row])
                if plain is None or self._vault.keys.chunk_id(plain[offset : offset + int(table.length[row])]) != ident:
                    yield ident[:ID_BYTES]

    def _agree(self, sealed: Sealed) -> list[Finding]:
        """Compare the footer with every segment that lists the pack."""
        head, table = sealed
        high, low = wide_ids([row.tobytes() for row in table.ids[:, :ID_BYTES]]) if len(table.ids) else (None, None)
        findings = []
        for segment, number in self._where.get(head.name, []):
            same = segment.heads[number] == head and int(self._counts[segment.name][number]) == len(table.ids)
            if same and high is not None and low is not None:
                usable = np.arange(len(segment.heads)) == number
                rows = segment.search(high, low, usable)
                same = bool((rows >= 0).all()) and _equal_rows(segment, rows, sealed)
            if not same:
                detail = f"segment {segment.name} and the footer of {head.key} say different things"
                findings.append(
                    Finding(object=self._keys.get(segment.name, segment.name), damage="contradiction", detail=detail)
                )
        return findings

    def _lost(self, pack: PackRef, damage: str, detail: str) -> Finding:
        chunks = self.lost_chunks(pack.name)
        return Finding(object=pack_key(pack.kind, pack.name), damage=damage, detail=detail, chunks=chunks)


def footer_of(vault: Vault, pack: PackRef) -> Sealed:
    """Return a pack's head and table. Raises IntegrityError, and FormatError only when no damage made it look newer."""
    try:
        return read_footer(vault.storage, vault.keys, pack)
    except FormatError as error:
        if scrub(vault.storage, pack_key(pack.kind, pack.name)) is None:
            raise
        raise IntegrityError(str(error)) from error


def parse_pack(keys: Keys, pack: PackRef, data: bytes) -> Sealed:
    """Return head and table of a whole pack in memory. Raises IntegrityError, FormatError."""
    offset, length = footer_range(pack.name, data[-TRAILER_BYTES:], len(data))
    head = open_header(keys, pack.name, data[:HEADER_BYTES], kind=pack.kind, size=len(data))
    return Sealed(head, open_footer(keys, head, data[offset : offset + length]))


def _equal_rows(segment: Segment, rows: np.ndarray, sealed: Sealed) -> bool:
    table = sealed.table
    expected = {
        "at": table.at[table.slot], "stored": table.stored[table.slot], "offset": table.offset,
        "length": table.length, "slot": table.slot | np.where(table.raw[table.slot], 0x8000, 0),
    }  # fmt: skip
    return all((segment.columns[name][rows].astype(np.uint64) == column).all() for name, column in expected.items())
