"""What PostgreSQL's programs write, each with the proof that all of it came."""

import hashlib
import tarfile
from typing import Protocol

from engine.connections.pgdump import Archive, ArchiveBroken
from engine.connections.postgres import source_error
from engine.connections.process import Output, quoted
from engine.connections.tarstream import TarBroken, TarStream
from engine.errors import SourceIncomplete
from engine.storage.throttle import Budget

_LEAST_BYTES_PER_S = 1000
_TAIL_BYTES = 512


class Proof(Protocol):
    """Follows a stream from its front; `close` raises unless the end is its true one."""

    def feed(self, data: memoryview) -> None: ...

    def close(self) -> None: ...


class EndsWith:
    """Proves a text by the words near its end."""

    def __init__(self, marker: bytes) -> None:
        self._marker = marker
        self._tail = b""

    def feed(self, data: memoryview) -> None:
        self._tail = (self._tail + bytes(data[-_TAIL_BYTES:]))[-_TAIL_BYTES:]

    def close(self) -> None:
        if self._marker not in self._tail:
            raise SourceIncomplete(f"the sign of completeness {self._marker.decode()!r} is missing at its end")


class BaseBackup:
    """Proves a base backup: a whole tar archive whose last member is a manifest that fits its own checksum."""

    def __init__(self) -> None:
        self._tar = TarStream(self)
        self._names: set[str] = set()
        self._in_manifest = False
        self._digest = hashlib.sha256()
        self._tail = b""

    def feed(self, data: memoryview) -> None:
        self._tar.feed(data)

    def begin(self, member: tarfile.TarInfo) -> None:
        self._in_manifest = member.name == "backup_manifest"
        if member.name in ("backup_label", "backup_manifest"):
            self._names.add(member.name)

    def data(self, data: memoryview) -> None:
        if self._in_manifest:
            self._tail += data
            self._digest.update(self._tail[:-_TAIL_BYTES])
            self._tail = self._tail[-_TAIL_BYTES:]

    def end(self) -> None:
        self._in_manifest = False

    def close(self) -> None:
        self._tar.close()
        if len(self._names) < 2:
            raise SourceIncomplete("the base backup has no label or no manifest")
        text, _, checksum = self._tail.rpartition(b'"Manifest-Checksum": "')
        self._digest.update(text)
        if checksum[:64].decode("ascii", "replace") != self._digest.hexdigest():
            raise SourceIncomplete("the manifest of the base backup does not fit its own checksum")


class Checked:
    """A program's output on its way into a vault (Producer port), followed by a proof, within a rate."""

    def __init__(self, output: Output, proof: Proof, *, bytes_per_s: int = 0) -> None:
        self._output, self._proof = output, proof
        self._budget = Budget(max(bytes_per_s, _LEAST_BYTES_PER_S)) if bytes_per_s else None

    def readinto(self, view: memoryview) -> int:
        """Fill the view. Raises SourceIncomplete, or what the program's words mean, once it is clear."""
        if self._budget:
            view = view[: self._budget.slice_bytes]
        count = self._output.readinto(view)
        if self._budget:
            self._budget.take(count)
        try:
            self._proof.feed(view[:count])
        except (ArchiveBroken, TarBroken) as error:
            raise SourceIncomplete(f"{self._output.name}: {error}") from error
        return count

    def prove(self) -> None:
        """Raise unless all was read, the program ended with 0 and the proof holds."""
        if not self._output.ended:
            raise SourceIncomplete(f"the output of {self._output.name} was not read to its end")
        if code := self._output.code():
            raise source_error(self._output.name, quoted(self._output.errors) or f"nothing, and ended with code {code}")
        try:
            self._proof.close()
        except (ArchiveBroken, TarBroken, SourceIncomplete) as error:
            said = quoted(self._output.errors)
            raise SourceIncomplete(f"{self._output.name}: {error.args[0]} {said}".rstrip()) from error

    def close(self) -> None:
        self._output.close()


def archive() -> Proof:
    """Return the proof of a dump in pg_dump's custom format."""
    return Archive()
