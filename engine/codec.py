"""Compress and encrypt: one slot of a pack, or one sealed record (vault-format, section 3).

Sealed record, format 1. Integers big-endian.

offset  bytes  field
0       4      magic b"BSRC"
4       1      version, 1
5       1      purpose: 1 index segment, 2 recovery-point root, 3 staged work, 4 system export
6       2      zero
8       4      data-key epoch
12      32     salt, random
44      16     key commitment
60      n      AES-256-GCM of the zstd frame, nonce 0, associated data = header and context
"""

import enum
import os
import struct

import zstandard
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from engine.errors import FormatError, IntegrityError
from engine.keys import Keys

LEVEL = 3
TAG_BYTES = 16
RECORD_BYTES_MAX = 1 << 30
_RAW_WHEN_OVER = 0.97
_RECORD = struct.Struct(">4sBBHI32s16s")
_MAGIC = b"BSRC"
_NONCE = bytes(12)


class Purpose(enum.IntEnum):
    """What a sealed record is; bound into its key."""

    SEGMENT = 1
    ROOT = 2
    STAGED = 3
    SYSTEM = 4


class Compressor:
    """zstd for slots; keeps its context between calls. One per thread."""

    def __init__(self, level: int = LEVEL) -> None:
        self._zstd = zstandard.ZstdCompressor(level=level, write_content_size=True)
        self._unzstd = zstandard.ZstdDecompressor()

    def pack(self, data: bytes | bytearray | memoryview) -> tuple[bool, bytes | bytearray | memoryview]:
        """Return (compressed?, bytes): raw when zstd saves under 3 %."""
        squeezed = self._zstd.compress(data)
        if len(squeezed) > len(data) * _RAW_WHEN_OVER:
            return False, data
        return True, squeezed

    def unpack(self, data: bytes, *, compressed: bool, bytes_max: int) -> bytes:
        """Return the plain bytes. Raises IntegrityError; never allocates more than `bytes_max`."""
        if not compressed:
            return data
        try:
            size = zstandard.frame_content_size(data)
            if not 0 <= size <= bytes_max:
                raise IntegrityError(f"a compressed piece claims {size} bytes, at most {bytes_max} are possible")
            return self._unzstd.decompress(data, max_output_size=bytes_max)
        except zstandard.ZstdError as error:
            raise IntegrityError(f"a compressed piece cannot be read: {error}") from error


def seal(keys: Keys, purpose: Purpose, payload: bytes, *, context: bytes) -> bytes:
    """Return the payload as a sealed record that opens only with the same purpose and context."""
    salt = os.urandom(32)
    key, commit = keys.record_key(keys.epoch, salt, f"record {purpose}")
    header = _RECORD.pack(_MAGIC, 1, purpose, 0, keys.epoch, salt, commit)
    squeezed = zstandard.ZstdCompressor(level=LEVEL).compress(payload)
    return header + AESGCM(key).encrypt(_NONCE, squeezed, header + context)


def unseal(keys: Keys, purpose: Purpose, data: bytes | memoryview, *, context: bytes) -> bytes:
    """Return the payload. Raises IntegrityError, FormatError; parses nothing before it is authentic."""
    if len(data) < _RECORD.size + TAG_BYTES:
        raise IntegrityError("a sealed record is cut short")
    header = bytes(data[: _RECORD.size])
    magic, version, found, zero, epoch, salt, commit = _RECORD.unpack(header)
    if magic != _MAGIC or found != purpose or zero:
        raise IntegrityError("a sealed record has a wrong header")
    if version != 1:
        raise FormatError(f"a sealed record has format {version}, this program knows 1")
    key, expected = keys.record_key(epoch, salt, f"record {purpose}")
    if commit != expected:
        raise IntegrityError("a sealed record was made with another key")
    try:
        squeezed = AESGCM(key).decrypt(_NONCE, bytes(data[_RECORD.size :]), header + context)
    except InvalidTag:
        raise IntegrityError("a sealed record fails its authentication") from None
    return Compressor().unpack(squeezed, compressed=True, bytes_max=RECORD_BYTES_MAX)
