"""One stored object of many slots (vault-format, section 3). Integers big-endian.

offset      bytes  field
0           4      magic b"BSPK"
4           1      version, 1
5           1      kind: 0 data, 1 meta
6           2      zero
8           4      data-key epoch
12          16     vault id
28          32     salt, random: key = HKDF(data key, salt)
60          16     key commitment
76          52     zero
128         ...    slots: AES-256-GCM, nonce = slot number, associated data = SHA-256(header) and slot number
f           n      footer: AES-256-GCM of a zstd frame of columns, nonce of 0xff, same associated data, slot 0xffffffff
            ...    random padding, so that the whole is a multiple of 64 KiB
end - 32    4 x 4  f, n, chunks, slots
end - 16    4      CRC-32 of the 16 bytes before
end - 12    4      zero
end - 8     8      b"BSPKEND1"

Footer columns: ids (32 each), slot u32, offset u32, length u32 per chunk; raw? u8, offset u32, length u32 per slot.
"""

import hashlib
import mmap
import os
import struct
import zlib
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import NamedTuple

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from engine.chunker import CHUNK_BYTES_MAX
from engine.codec import TAG_BYTES, Compressor
from engine.errors import FormatError, IntegrityError
from engine.ids import pack_key
from engine.keys import Keys

DATA, META = 0, 1
TARGET_BYTES = (32 << 20, 4 << 20)
SLOT_BYTES = 2 << 20
SLOT_BYTES_MAX = CHUNK_BYTES_MAX + SLOT_BYTES
ALONE_BYTES = 512 << 10
SLOTS_MAX = 32_000
CHUNKS_MAX = 65_536
HEADER_BYTES = 128
TRAILER_BYTES = 32
STEP_BYTES = 64 << 10
_FOOTER_BYTES_MAX = 4 << 20
_HEADER = struct.Struct(">4sBBHI16s32s16s52x")
_TRAILER = struct.Struct(">IIII")
_END = struct.Struct(">I4x8s")
_MAGIC, _END_MAGIC = b"BSPK", b"BSPKEND1"
_FOOTER_NONCE, _FOOTER_SLOT = b"\xff" * 12, 0xFFFFFFFF


class Head(NamedTuple):
    """What opens a pack: enough to rebuild its header. `name` is `<sha256>` or `<sha256>.<n>`; `size` in bytes."""

    name: str
    kind: int
    size: int
    epoch: int
    salt: bytes

    @property
    def key(self) -> str:
        """Return the object's key."""
        return pack_key(self.kind, self.name)


class Table(NamedTuple):
    """Where each chunk lies. Arrays: ids (n, 32) u8; slot, offset, length (n) u32; raw (m) bool; at, stored (m) u32."""

    ids: np.ndarray
    slot: np.ndarray
    offset: np.ndarray
    length: np.ndarray
    raw: np.ndarray
    at: np.ndarray
    stored: np.ndarray


class Sealed(NamedTuple):
    """A pack that is stored."""

    head: Head
    table: Table


class Cipher:
    """Encrypts and decrypts the slots of one pack."""

    def __init__(self, keys: Keys, kind: int, epoch: int, salt: bytes) -> None:
        key, commit = keys.record_key(epoch, salt, "pack")
        self.header = _HEADER.pack(_MAGIC, 1, kind, 0, epoch, keys.vault_id, salt, commit)
        self._digest = hashlib.sha256(self.header).digest()
        self._aead = AESGCM(key)

    def encrypt_into(self, slot: int, data: bytes | bytearray | memoryview, target: memoryview) -> int:
        """Write the encrypted slot at the start of `target`; return its length."""
        length = len(data) + TAG_BYTES
        nonce = slot.to_bytes(12, "big") if slot != _FOOTER_SLOT else _FOOTER_NONCE
        self._aead.encrypt_into(nonce, data, self._digest + slot.to_bytes(4, "big"), target[:length])
        return length

    def decrypt(self, slot: int, data: bytes | memoryview) -> bytes:
        """Return the slot's content, still compressed. Raises IntegrityError."""
        nonce = slot.to_bytes(12, "big") if slot != _FOOTER_SLOT else _FOOTER_NONCE
        try:
            return self._aead.decrypt(nonce, data, self._digest + slot.to_bytes(4, "big"))
        except (InvalidTag, ValueError):
            raise IntegrityError("a slot of a pack fails its authentication") from None


# Fresh pages cost more than the cipher that fills them, so buffers outlive their writer; anonymous maps are zeroed only
# where they are touched. Private, because a forked process inherits the idle ones: shared, each would write into the
# packs of the others. Appending to and popping from a list is atomic.
_idle: tuple[list[mmap.mmap], list[mmap.mmap]] = ([], [])
_IDLE_MAX = 3


def _take_buffer(kind: int) -> mmap.mmap:
    try:
        return _idle[kind].pop()
    except IndexError:
        length = TARGET_BYTES[kind] + SLOT_BYTES_MAX + _FOOTER_BYTES_MAX
        return mmap.mmap(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def _give_buffer(kind: int, buffer: mmap.mmap) -> None:
    if len(_idle[kind]) < _IDLE_MAX:
        _idle[kind].append(buffer)


class _Open:
    """The pack being filled: its buffer and the rows of its table."""

    def __init__(self, keys: Keys, kind: int, buffer: mmap.mmap) -> None:
        self.salt = os.urandom(32)
        self.epoch = keys.epoch
        self.kind = kind
        self.cipher = Cipher(keys, kind, keys.epoch, self.salt)
        self.buffer = buffer
        self.view = memoryview(buffer)
        self.view[:HEADER_BYTES] = self.cipher.header
        self.used = HEADER_BYTES
        self.chunks: list[tuple[bytes, int, int, int]] = []
        self.slots: list[tuple[bool, int, int]] = []

    def table(self) -> Table:
        ids = np.frombuffer(b"".join(row[0] for row in self.chunks), np.uint8).reshape(-1, 32)
        where = np.array([row[1:] for row in self.chunks], np.uint32).reshape(-1, 3)
        slots = np.array(self.slots, np.uint32).reshape(-1, 3)
        return Table(ids, where[:, 0], where[:, 1], where[:, 2], slots[:, 0] != 0, slots[:, 1], slots[:, 2])

    def close(self, table: Table, zstd: Compressor) -> memoryview:
        """Append footer, padding and trailer; return the whole pack, valid while the buffer is."""
        footer = zstd.pack(_pack_footer(table))
        body = bytes([footer[0]]) + bytes(footer[1])
        at = self.used
        length = self.cipher.encrypt_into(_FOOTER_SLOT, body, self.view[at:])
        end = -(-(at + length + TRAILER_BYTES) // STEP_BYTES) * STEP_BYTES
        self.view[at + length : end - TRAILER_BYTES] = os.urandom(end - TRAILER_BYTES - at - length)
        trailer = _TRAILER.pack(at, length, len(table.ids), len(table.raw))
        self.view[end - TRAILER_BYTES : end] = trailer + _END.pack(zlib.crc32(trailer), _END_MAGIC)
        return self.view[:end]


class PackWriter:
    """Fills packs with chunks and stores them. Not for several threads.

    `put(key, bytes)` stores; with an `executor` it runs there while the next pack is filled, two in flight at most.
    A chunk under SLOT_BYTES shares a slot with its neighbours, a larger one has its own; from ALONE_BYTES on also one
    that follows what zstd could not make smaller, which saves a copy. Nothing that was added may be referred to before
    `close()` returned. Crash: leaves packs that nothing refers to; prune removes them. A
    writer cannot be resumed: the salt lives only here, so no nonce is ever used twice.
    """

    def __init__(
        self, keys: Keys, kind: int, put: Callable[[str, memoryview], None], *, executor: Executor | None = None
    ) -> None:
        self._keys, self._kind, self._put, self._executor = keys, kind, put, executor
        self._zstd = Compressor()
        self._gather = memoryview(bytearray(2 * SLOT_BYTES))
        self._filled = 0
        self._gathered: list[tuple[bytes, int, int]] = []
        self._was_raw = False
        self._pack: _Open | None = None
        self._flying: list[tuple[Future[Head], Table, mmap.mmap]] = []
        self._sealed: list[Sealed] = []

    def add(self, chunk_id: bytes, data: bytes | bytearray | memoryview) -> None:
        """Add one chunk under its full id; `data` is copied or encrypted before this returns."""
        size = len(data)
        if size >= SLOT_BYTES or (self._was_raw and size >= ALONE_BYTES):
            self._store_slot([(chunk_id, 0, size)], data)
            return
        at = self._filled
        self._filled = end = at + size
        self._gather[at:end] = data
        self._gathered.append((chunk_id, at, size))
        if end >= SLOT_BYTES or len(self._gathered) >= CHUNKS_MAX:
            self.end_slot()

    def end_slot(self) -> None:
        """Store what is gathered as a slot of its own, so that the next chunk starts a new one."""
        if self._gathered:
            rows, self._gathered = self._gathered, []
            filled, self._filled = self._filled, 0
            self._store_slot(rows, self._gather[:filled])

    def close(self) -> list[Sealed]:
        """Store everything and return the packs, each durable. Raises what storing raised."""
        self.end_slot()
        self._seal()
        while self._flying:
            self._land()
        sealed, self._sealed = self._sealed, []
        return sealed

    def _store_slot(self, rows: list[tuple[bytes, int, int]], data: bytes | bytearray | memoryview) -> None:
        if self._pack is not None and len(self._pack.chunks) + len(rows) > CHUNKS_MAX:
            self._seal()
        pack = self._pack or self._begin()
        number = len(pack.slots)
        compressed, body = self._zstd.pack(data)
        length = pack.cipher.encrypt_into(number, body, pack.view[pack.used :])
        self._was_raw = not compressed
        pack.slots.append((self._was_raw, pack.used, length))
        pack.chunks.extend((chunk_id, number, offset, size) for chunk_id, offset, size in rows)
        pack.used += length
        if pack.used >= TARGET_BYTES[self._kind] or number + 1 >= SLOTS_MAX:
            self._seal()

    def _begin(self) -> _Open:
        self._pack = _Open(self._keys, self._kind, _take_buffer(self._kind))
        return self._pack

    def _seal(self) -> None:
        pack, self._pack = self._pack, None
        if pack is None:
            return
        table = pack.table()
        whole = pack.close(table, self._zstd)
        if self._executor is None:
            self._sealed.append(Sealed(self._send(pack, whole), table))
            _give_buffer(self._kind, pack.buffer)
            return
        while len(self._flying) >= 2:
            self._land()
        self._flying.append((self._executor.submit(self._send, pack, whole), table, pack.buffer))

    def _send(self, pack: _Open, whole: memoryview) -> Head:
        name = hashlib.sha256(whole).hexdigest()
        head = Head(name, pack.kind, len(whole), pack.epoch, pack.salt)
        self._put(head.key, whole)
        return head

    def _land(self) -> None:
        future, table, buffer = self._flying.pop(0)
        self._sealed.append(Sealed(future.result(), table))
        _give_buffer(self._kind, buffer)


def open_header(keys: Keys, name: str, data: bytes, *, kind: int, size: int) -> Head:
    """Return the head of a pack from its first 128 bytes. Raises IntegrityError, FormatError."""
    if len(data) < HEADER_BYTES:
        raise IntegrityError(f"pack {name} is cut short")
    magic, version, found, _, epoch, vault_id, salt, _ = _HEADER.unpack(data[:HEADER_BYTES])
    if magic != _MAGIC or found != kind or vault_id != keys.vault_id:
        raise IntegrityError(f"pack {name} has a wrong header")
    if version != 1:
        raise FormatError(f"pack {name} has format {version}, this program knows 1")
    if Cipher(keys, kind, epoch, salt).header != data[:HEADER_BYTES]:
        raise IntegrityError(f"pack {name} has a damaged header")
    return Head(name, kind, size, epoch, salt)


def footer_range(name: str, trailer: bytes, size: int) -> tuple[int, int]:
    """Return (offset, length) of the footer from a pack's last 32 bytes. Raises IntegrityError."""
    fields, end = trailer[:16], trailer[16:]
    if len(trailer) != TRAILER_BYTES or end != _END.pack(zlib.crc32(fields), _END_MAGIC):
        raise IntegrityError(f"pack {name} has a damaged end")
    offset, length, _, _ = _TRAILER.unpack(fields)
    if offset < HEADER_BYTES or length > _FOOTER_BYTES_MAX or offset + length > size - TRAILER_BYTES:
        raise IntegrityError(f"pack {name} has a footer outside itself")
    return offset, length


def open_footer(keys: Keys, head: Head, data: bytes) -> Table:
    """Return the table of a pack from its encrypted footer. Raises IntegrityError."""
    body = Cipher(keys, head.kind, head.epoch, head.salt).decrypt(_FOOTER_SLOT, data)
    plain = Compressor().unpack(body[1:], compressed=body[:1] != b"\0", bytes_max=CHUNKS_MAX * 64)
    return _parse_footer(plain, head)


def _pack_footer(table: Table) -> bytes:
    parts = [np.array([len(table.ids), len(table.raw)], ">u4").tobytes(), table.ids.tobytes()]
    parts += [column.astype(">u4").tobytes() for column in (table.slot, table.offset, table.length)]
    parts += [
        table.raw.astype(np.uint8).tobytes(),
        table.at.astype(">u4").tobytes(),
        table.stored.astype(">u4").tobytes(),
    ]
    return b"".join(parts)


def _parse_footer(plain: bytes, head: Head) -> Table:
    chunks, slots = (int(n) for n in np.frombuffer(plain[:8], ">u4")) if len(plain) >= 8 else (0, 0)
    if len(plain) != 8 + 44 * chunks + 9 * slots:
        raise IntegrityError(f"the footer of pack {head.name} has a wrong length")
    at = 8 + 32 * chunks
    ids = np.frombuffer(plain, np.uint8, 32 * chunks, 8).reshape(-1, 32)
    where = np.frombuffer(plain, ">u4", 3 * chunks, at).astype(np.uint32).reshape(3, -1)
    at += 12 * chunks
    raw = np.frombuffer(plain, np.uint8, slots, at) != 0
    ends = np.frombuffer(plain, ">u4", 2 * slots, at + slots).astype(np.uint32).reshape(2, -1)
    table = Table(ids, where[0], where[1], where[2], raw, ends[0], ends[1])
    if chunks and int(table.slot.max()) >= slots:
        raise IntegrityError(f"the footer of pack {head.name} names a slot that is not there")
    return table
