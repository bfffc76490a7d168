"""Look into a point without restoring it: list a folder, find an entry, read a file (B22)."""

import bisect
import operator
from collections import OrderedDict
from collections.abc import Iterator

from engine.entries import Entry, Kind, sort_key
from engine.errors import EngineError, PointMissing
from engine.fetch import Fetcher
from engine.point import Root
from engine.vault import PointName, Vault

_BLOCKS_KEPT = 8
_CHUNKS_AT_ONCE = 64
_HOLE_BYTES = 1 << 20
_KEY = operator.attrgetter("sort_key")


class EntryMissing(EngineError):
    """A point has no such entry, or not of the kind that was asked for."""


class Browser:
    """One point, opened for looking. Reads only the blocks it needs and keeps the last few. Not for threads."""

    def __init__(self, vault: Vault, root: Root) -> None:
        self.root = root
        self._fetcher: Fetcher = vault.fetcher(root)
        self._firsts = [sort_key(block.first) for block in root.body.blocks]
        self._kept: OrderedDict[int, list[Entry]] = OrderedDict()

    @classmethod
    def open(cls, vault: Vault, name: PointName) -> "Browser":
        """Open a visible point. Raises PointMissing, IntegrityError."""
        return cls(vault, vault.root(name))

    def entry(self, path: bytes) -> Entry:
        """Return the entry at `path` (no leading slash). Raises EntryMissing."""
        found = next(self.entries(sort_key(path)), None)
        if found is None or found.path != path:
            raise EntryMissing(f"/{path.decode('utf-8', 'replace')} is not in the recovery point")
        return found

    def entries(self, start: bytes = b"") -> Iterator[Entry]:
        """Yield the entries whose sort key is at least `start`, in listing order."""
        number = max(bisect.bisect_right(self._firsts, start) - 1, 0)
        for block in range(number, len(self._firsts)):
            rows = self._block(block)
            at = bisect.bisect_left(rows, start, key=_KEY) if block == number else 0
            yield from rows[at:] if at else rows

    def folder(self, path: bytes = b"", *, after: bytes = b"") -> Iterator[Entry]:
        """Yield what is directly in a folder, by name, from behind the name `after`; skips subtrees unread.

        Folders above the backed-up paths appear as plain folders. Raises EntryMissing when there is no such folder.
        """
        inside = sort_key(path) + b"\0" if path else b""
        depth = len(inside)
        at = inside + after + b"\x01" if after else inside
        any_found = bool(after)
        while True:
            found = next(self.entries(at), None)
            if found is None or not found.sort_key.startswith(inside):
                break
            any_found = True
            name = found.sort_key[depth:].partition(b"\0")[0]
            child = path + b"/" + name if path else name
            yield found if found.path == child else Entry(child, Kind.DIRECTORY, mode=0o755)
            at = inside + name + b"\x01"
        if not any_found and path and self.entry(path).kind != Kind.DIRECTORY:
            raise EntryMissing(f"/{path.decode('utf-8', 'replace')} is not a folder")

    def read(self, entry: Entry) -> Iterator[bytes]:
        """Yield a file's content in order, each chunk checked. Raises EntryMissing for what is not a file."""
        if entry.kind != Kind.FILE:
            raise EntryMissing(f"/{entry.path.decode('utf-8', 'replace')} is not a file")
        extents = entry.extents
        for at in range(0, len(extents), _CHUNKS_AT_ONCE):
            group = extents[at : at + _CHUNKS_AT_ONCE]
            places = iter(self._fetcher.places([extent.id for extent in group if extent.id]))
            for extent in group:
                if extent.id:
                    yield self._fetcher.chunk(extent.id, next(places))
                else:
                    yield from _zeros(extent.length)

    def _block(self, number: int) -> list[Entry]:
        kept = self._kept.get(number)
        if kept is None:
            kept = self._kept[number] = self._fetcher.entries(self.root.body.blocks[number])
            if len(self._kept) > _BLOCKS_KEPT:
                self._kept.popitem(last=False)
        else:
            self._kept.move_to_end(number)
        return kept


def clean_path(text: str | bytes) -> bytes:
    """Return a path as people type it in the form of entries: no leading or trailing slash."""
    raw = text if isinstance(text, bytes) else text.encode("utf-8", "surrogateescape")
    return raw.strip(b"/")


def open_point(vault: Vault, text: str) -> Browser:
    """Open the point that `text` names (an id, its beginning, `latest`). Raises PointMissing."""
    name = vault.find(text)
    try:
        return Browser.open(vault, name)
    except PointMissing:
        raise PointMissing(f"recovery point {name.point} was expired just now") from None


def _zeros(length: int) -> Iterator[bytes]:
    zeros = bytes(min(length, _HOLE_BYTES))
    for at in range(0, length, _HOLE_BYTES):
        yield zeros[: length - at]
