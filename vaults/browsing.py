"""Look into a recovery point without restoring it (B22): one folder's page, or one file's bytes.

A listing is sorted like a depth-first walk, so a folder's page costs one search per child: subtrees are leapt over.
"""

import base64
import bisect
import datetime as dt
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

from engine.entries import Entry, Kind
from engine.errors import PointMissing
from engine.fetch import Fetcher
from engine.point import Root
from engine.vault import PointName, read_block
from vaults import repositories
from vaults.models import RecoveryPoint

BLOCKS_KEPT = 8
HOLE_BYTES = 1 << 20


class Listing:
    """A point's entries, searched by path; reads a block at a time and keeps the last few."""

    def __init__(self, root: Root, fetcher: Fetcher) -> None:
        self.fetcher = fetcher
        self._blocks = root.body.blocks
        self._firsts = [_key(block.first) for block in self._blocks]
        self._read: OrderedDict[int, list[Entry]] = OrderedDict()

    def at_or_after(self, key: bytes) -> Entry | None:
        """Return the first entry whose sort key is not smaller than `key`. Raises IntegrityError."""
        number = max(bisect.bisect_right(self._firsts, key) - 1, 0)
        while number < len(self._blocks):
            rows = self._rows(number)
            place = bisect.bisect_left(rows, key, key=lambda entry: entry.sort_key)
            if place < len(rows):
                return rows[place]
            number += 1
        return None

    def _rows(self, number: int) -> list[Entry]:
        rows = self._read.pop(number, None) or read_block(self.fetcher, self._blocks[number])
        self._read[number] = rows
        if len(self._read) > BLOCKS_KEPT:
            self._read.popitem(last=False)
        return rows

    def children(self, folder: bytes, *, after: bytes) -> Iterator[Entry]:
        """Yield what lies directly in `folder` behind the child named `after`, in order.

        A folder above the roots has no entry of its own: it is shown as a directory without attributes.
        """
        inside = _key(folder) + b"\0" if folder else b""
        place = inside + after + b"\1" if after else inside
        while (entry := self.at_or_after(place)) and entry.sort_key.startswith(inside):
            name, below, _ = entry.sort_key[len(inside) :].partition(b"\0")
            path = folder + b"/" + name if folder else name
            yield Entry(path, Kind.DIRECTORY) if below else entry
            place = inside + name + b"\1"

    def find(self, path: bytes) -> Entry | None:
        """Return the entry at exactly this path."""
        entry = self.at_or_after(_key(path))
        return entry if entry is not None and entry.path == path else None


def _key(path: bytes) -> bytes:
    return path.replace(b"/", b"\0")


def _listing(point: RecoveryPoint) -> Listing:
    vault = repositories.open_vault(point.vault)
    root = vault.root(PointName(point.series, point.point_id))
    return Listing(root, vault.fetcher(root))


def folder(point: RecoveryPoint, path: bytes, *, after: bytes, limit: int) -> dict[str, Any]:
    """Return a page of a folder's entries. Raises PointMissing when there is no such folder."""
    listing = _listing(point)
    entries = []
    for entry in listing.children(path, after=after):
        entries.append(entry)
        if len(entries) > limit:
            break
    if not entries and path:
        found = listing.find(path)
        if found is None or found.kind != Kind.DIRECTORY:
            raise PointMissing(f"There is no folder {_text(path)!r} in this recovery point.")
    more = len(entries) > limit
    shown = entries[:limit]
    last = shown[-1].path.rpartition(b"/")[2] if shown else b""
    return {
        "path": "/" + _text(path),
        "next": base64.urlsafe_b64encode(last).decode() if more else None,
        "entries": [_shown(entry) for entry in shown],
    }


def _text(path: bytes) -> str:
    return path.decode("utf-8", "replace")


def _shown(entry: Entry) -> dict[str, Any]:
    return {
        "name": _text(entry.path.rpartition(b"/")[2]),
        "path": "/" + _text(entry.path),
        "path_base64": base64.urlsafe_b64encode(entry.path).decode(),
        "kind": Kind(entry.kind).name.lower(),
        "size": entry.size,
        "mode": f"{entry.mode & 0o7777:04o}",
        "owner": entry.user or str(entry.uid),
        "group": entry.group or str(entry.gid),
        "modified_at": dt.datetime.fromtimestamp(entry.mtime_ns // 10**9, dt.UTC),
        "target": _text(entry.target),
    }


def file(point: RecoveryPoint, path: bytes) -> tuple[Entry, Iterator[bytes]]:
    """Return a file's entry and its bytes in parts. Raises PointMissing when there is no such file."""
    listing = _listing(point)
    entry = listing.find(path)
    if entry is None or entry.kind != Kind.FILE:
        raise PointMissing(f"There is no file {_text(path)!r} in this recovery point.")
    return entry, _parts(listing.fetcher, entry)


def _parts(fetcher: Fetcher, entry: Entry) -> Iterator[bytes]:
    for extent in entry.extents:
        if extent.id:
            yield from fetcher.chunks([extent.id])
            continue
        for start in range(0, extent.length, HOLE_BYTES):
            yield bytes(min(HOLE_BYTES, extent.length - start))
