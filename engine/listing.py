"""The listing of a point: blocks of sorted entries in columns (vault-format, section 5).

A block is four column groups, each a chunk of its own in a meta pack, all of one block in one slot. Little-endian;
`shuffled` means that the first bytes of all values come first, then the second, and so on (it compresses better).

names     rows u32 | kind u8 per row | paths, joined by a zero byte
statics   mode u16, uid u32, gid u32, shuffled | msgpack {users, groups, targets, xattrs, rdevs}, rows as keys
volatile  size i64, mtime i64, ctime i64, inode u64, device u32, links u32, shuffled; a time is kept modulo 2^64 and
          lies between -2^61 (1896) and 2^64 - 2^61 (2481), for file systems that go beyond 2262
extents   count u32 per row | ids, 16 bytes each (zero = hole) | length u64 each, shuffled

A block ends after a path whose keyed checksum ends in twelve zero bits, once it has BLOCK_ROWS_MIN rows, or at
BLOCK_ROWS_MAX rows; so an inserted folder shifts nothing behind it.
"""

import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import msgspec
import numpy as np

from engine.entries import TIME_MIN_NS, Block, Entry, Extent, Kind
from engine.errors import IntegrityError

BLOCK_ROWS_MIN, BLOCK_ROWS_MAX = 1024, 16384
PIECE_BYTES = 4 << 20
FULL_ID_BYTES = 32
_END_MASK = 0xFFF
HOLE = bytes(16)
STATIC = ("<u2", "<u4", "<u4")
VOLATILE = ("<i8", "<i8", "<i8", "<u8", "<u4", "<u4")


class Extra(msgspec.Struct, omit_defaults=True):
    """The attributes that few rows have; keys are row numbers, but uid and gid for users and groups."""

    users: dict[int, str] = {}
    groups: dict[int, str] = {}
    targets: dict[int, bytes] = {}
    xattrs: dict[int, dict[bytes, bytes]] = {}
    rdevs: dict[int, int] = {}


class Splitter:
    """Decides where blocks end. `seed` only makes vaults differ: the row limits bound what chosen names could do."""

    def __init__(self, seed: int) -> None:
        self._seed = seed & 0xFFFFFFFF
        self._rows = 0

    def ends(self, path: bytes) -> bool:
        """Count one more row and say whether the block ends after it."""
        self._rows += 1
        rows = self._rows
        if rows >= BLOCK_ROWS_MAX or (rows >= BLOCK_ROWS_MIN and not zlib.crc32(path, self._seed) & _END_MASK):
            self._rows = 0
            return True
        return False

    def restart(self) -> None:
        """Begin a new block with the next row."""
        self._rows = 0


def pieces(group: bytes) -> list[bytes]:
    """Return what a group is stored as: runs of PIECE_BYTES."""
    return [group[at : at + PIECE_BYTES] for at in range(0, len(group), PIECE_BYTES)]


def piece_ids(block: Block) -> list[list[bytes]]:
    """Return the full chunk ids of each of a block's groups."""
    return [[g[at : at + FULL_ID_BYTES] for at in range(0, len(g), FULL_ID_BYTES)] for g in block.groups]


def names_group(rows: list[Entry]) -> bytes:
    """Encode kinds and paths."""
    kinds = bytes([row.kind for row in rows])
    return len(rows).to_bytes(4, "little") + kinds + b"\0".join([row.path for row in rows])


def volatile_group(rows: list[Entry]) -> bytes:
    """Encode what an unchanged file has unchanged."""
    table = [(r.size, r.mtime_ns, r.ctime_ns, r.inode, r.device, r.links) for r in rows]
    columns = zip(*table, strict=True)
    return b"".join(_shuffle(column, kind) for column, kind in zip(columns, VOLATILE, strict=True))


def statics_group(rows: list[Entry]) -> bytes:
    """Encode modes, owners, link targets, xattrs, device numbers."""
    table = [(r.mode, r.uid, r.gid) for r in rows]
    columns = zip(*table, strict=True)
    extra = Extra(
        users={r.uid: r.user for r in rows if r.user},
        groups={r.gid: r.group for r in rows if r.group},
        targets={i: r.target for i, r in enumerate(rows) if r.target},
        xattrs={i: r.xattrs for i, r in enumerate(rows) if r.xattrs},
        rdevs={i: r.rdev for i, r in enumerate(rows) if r.rdev},
    )
    numbers = b"".join(_shuffle(column, kind) for column, kind in zip(columns, STATIC, strict=True))
    return numbers + msgspec.msgpack.encode(extra)


def extents_group(rows: list[Entry]) -> bytes:
    """Encode the extents."""
    counts = _shuffle([len(row.extents) for row in rows], "<u4")
    extents = [extent for row in rows for extent in row.extents]
    ids = b"".join([extent.id or HOLE for extent in extents])
    return counts + ids + _shuffle([extent.length for extent in extents], "<u8")


def decode(groups: list[bytes]) -> list[Entry]:
    """Return the entries of a block from its four groups. Raises IntegrityError."""
    try:
        return _decode(*groups)
    except (ValueError, IndexError, TypeError, OverflowError, msgspec.MsgspecError) as error:
        raise IntegrityError(f"a listing block cannot be read: {error}") from error


def _decode(names: bytes, statics: bytes, volatile: bytes, extents: bytes) -> list[Entry]:
    rows = int.from_bytes(names[:4], "little")
    kinds, paths = names[4 : 4 + rows], names[4 + rows :].split(b"\0")
    if len(paths) != rows or len(kinds) != rows:
        raise IntegrityError("a listing block has a wrong number of names")
    numbers, at = _columns(statics, STATIC, rows)
    extra = msgspec.msgpack.decode(statics[at:], type=Extra)
    changing, at = _columns(volatile, VOLATILE, rows)
    if at != len(volatile):
        raise IntegrityError("a listing block has a wrong length")
    users, groups = extra.users, extra.groups
    none: dict[bytes, bytes] = {}
    runs = _runs(extents, rows)
    entries = []
    for row, (path, kind, mode, uid, gid, rest, run) in enumerate(
        zip(paths, kinds, *numbers, zip(*changing, strict=True), runs, strict=True)
    ):
        size, mtime_ns, ctime_ns, inode, device, links = rest
        entries.append(
            Entry(
                path, kind, mode, uid, gid, users.get(uid, ""), groups.get(gid, ""), size, mtime_ns, ctime_ns, inode,
                device, links, extra.rdevs.get(row, 0), extra.targets.get(row, b""), extra.xattrs.get(row, none), run,
            )
        )  # fmt: skip
    return entries


def _runs(data: bytes, rows: int) -> list[list[Extent]]:
    (counts,), at = _columns(data, ("<u4",), rows)
    total = sum(counts)
    if len(data) != at + 24 * total:
        raise IntegrityError("a listing block has a wrong number of extents")
    ids = data[at : at + 16 * total]
    (lengths,), _ = _columns(data[at + 16 * total :], ("<u8",), total)
    pieces = [ids[i : i + 16] for i in range(0, len(ids), 16)]
    extents = [Extent(b"" if piece == HOLE else piece, n) for piece, n in zip(pieces, lengths, strict=True)]
    ends = np.cumsum(counts).tolist()
    return [extents[end - count : end] for end, count in zip(ends, counts, strict=True)]


def chunk_ids(extents: bytes, rows: int) -> bytes:
    """Return the short ids of all chunks of an extents group, joined, without its holes. Raises IntegrityError."""
    total, odd = divmod(len(extents) - 4 * rows, 24)
    if total < 0 or odd or sum(_columns(extents, ("<u4",), rows)[0][0]) != total:
        raise IntegrityError("a listing block has a wrong number of extents")
    ids = np.frombuffer(extents, np.uint8, 16 * total, 4 * rows).reshape(-1, 16)
    return ids[ids.any(axis=1)].tobytes()


def column_of(values: Iterable[int], kind: str) -> np.ndarray:
    """Return numbers as a column; times beyond its range are kept modulo 2^64."""
    rows = values if isinstance(values, list) else list(values)
    try:
        return np.array(rows, dtype=kind)
    except OverflowError:
        if kind != "<i8":
            raise
        return np.array([value & 0xFFFF_FFFF_FFFF_FFFF for value in rows], dtype="<u8")


def shuffled(column: np.ndarray) -> bytes:
    """Return a column as it is stored: the first bytes of all values, then the second, and so on."""
    return column.view(np.uint8).reshape(-1, column.itemsize).T.tobytes()


def unshuffled(data: bytes, kinds: tuple[str, ...], rows: int) -> tuple[list[np.ndarray], int]:
    """Return the columns at the start of a group, as stored, and where they end. Raises ValueError."""
    columns, at = [], 0
    for kind in kinds:
        width = np.dtype(kind).itemsize
        flat = np.frombuffer(data, np.uint8, rows * width, at).reshape(width, rows)
        columns.append(flat.T.copy().view(kind).reshape(-1))
        at += rows * width
    return columns, at


def _shuffle(values: Iterable[int], kind: str) -> bytes:
    return shuffled(column_of(values, kind))


def _columns(data: bytes, kinds: tuple[str, ...], rows: int) -> tuple[list[list[int]], int]:
    arrays, at = unshuffled(data, kinds, rows)
    columns = [array.tolist() for array in arrays]
    for number, kind in enumerate(kinds):
        if kind == "<i8" and rows and min(columns[number]) < TIME_MIN_NS:
            columns[number] = [value + (1 << 64) if value < TIME_MIN_NS else value for value in columns[number]]
    return columns, at


class BlockBuilder:
    """Turns entries in listing order into blocks; stores each group that is new.

    `store(chunk_id, bytes)` is called once per new group; `ident(bytes)` gives its full id; `end_slot()` after a block.
    """

    def __init__(self, seed: int, ident: Callable[[bytes], bytes], store: Callable[[bytes, bytes], Any]) -> None:
        self._splitter = Splitter(seed)
        self._ident, self._store = ident, store
        self._rows: list[Entry] = []

    def add(self, entries: list[Entry]) -> Iterator[tuple[Block, list[Entry]]]:
        """Take entries; yield each block that they end (packs not set yet) and its rows."""
        ends = self._splitter.ends
        for entry in entries:
            self._rows.append(entry)
            if ends(entry.path):
                yield self._end()

    def flush(self) -> tuple[Block, list[Entry]] | None:
        """End the current block, if any."""
        self._splitter.restart()
        return self._end() if self._rows else None

    def _end(self) -> tuple[Block, list[Entry]]:
        rows, self._rows = self._rows, []
        encoded = [names_group(rows), statics_group(rows), volatile_group(rows), extents_group(rows)]
        newest = max(max(row.mtime_ns, row.ctime_ns) for row in rows)
        files = [row.size for row in rows if row.kind == Kind.FILE]
        return self.block(rows[0].path, encoded, newest, (len(files), sum(files))), rows

    def block(self, first: bytes, groups: list[bytes], newest_ns: int, files: tuple[int, int]) -> Block:
        """Store groups that are new; return the block of them. `files` is how many files it lists, and their bytes."""
        rows = int.from_bytes(groups[0][:4], "little")
        return Block(first, rows, [self._keep(data) for data in groups], [], newest_ns, *files)

    def _keep(self, data: bytes) -> bytes:
        idents = []
        for piece in pieces(data):
            idents.append(self._ident(piece))
            self._store(idents[-1], piece)
        return b"".join(idents)
