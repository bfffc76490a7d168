"""Bytes that pass from one store to another: compared with what they should be before the last of them is let go."""

import hashlib
from collections.abc import Iterator
from typing import Protocol

from engine.errors import Altered
from engine.storage.port import Bytes, Storage


def checked(key: str, pieces: Iterator[Bytes], *, size: int, sha256: str) -> Iterator[Bytes]:
    """Yield the pieces, each once the next has come, and the last once all are `size` bytes of this SHA-256.

    Who stops at the error has never seen them all. Without `sha256` only the size counts. Raises Altered.
    """
    digest = hashlib.sha256() if sha256 else None
    came, held = 0, None
    for piece in pieces:
        if held is not None:
            yield held
        held = piece
        came += len(piece)
        if digest is not None:
            digest.update(piece)
        if came > size:
            break
    if came != size:
        raise Altered(f"{key}: {came} bytes came where {size} belong")
    if digest is not None and digest.hexdigest() != sha256:
        raise Altered(f"{key}: the bytes that came are not those that belong there")
    if held is not None:
        yield held


def whole(key: str, source: Storage, *, size: int, sha256: str) -> bytes:
    """Return the object of another store. Raises Altered when it is not `size` bytes of this SHA-256."""
    return b"".join(checked(key, source.pieces(key), size=size, sha256=sha256))


class Whole(Storage, Protocol):
    """What passes through a store that has each object in one piece anyway: its own `get` and `put`."""

    def pieces(self, key: str) -> Iterator[Bytes]:
        """Yield the object."""
        yield self.get(key)

    def relay(self, key: str, source: Storage, *, size: int, sha256: str) -> None:
        """Store what the source has."""
        self.put(key, whole(key, source, size=size, sha256=sha256), sha256=sha256)
