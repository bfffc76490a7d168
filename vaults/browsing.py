"""Look into a recovery point without restoring it (B22), in the words of the API."""

import base64
import datetime as dt
from collections.abc import Iterator
from itertools import islice
from typing import Any

from engine.browse import Browser
from engine.entries import Entry, Kind
from engine.vault import PointName
from vaults import repositories
from vaults.models import RecoveryPoint


def _open(point: RecoveryPoint) -> Browser:
    return Browser.open(repositories.open_vault(point.vault), PointName(point.series, point.point_id))


def folder(point: RecoveryPoint, path: bytes, *, after: bytes, limit: int) -> dict[str, Any]:
    """Return a page of a folder's entries behind the name `after`. Raises EntryMissing, PointMissing."""
    entries = list(islice(_open(point).folder(path, after=after), limit + 1))
    more, entries = len(entries) > limit, entries[:limit]
    return {
        "path": "/" + _text(path),
        "next": _encoded(entries[-1].path.rpartition(b"/")[2]) if more else None,
        "entries": [_shown(entry) for entry in entries],
    }


def file(point: RecoveryPoint, path: bytes) -> tuple[Entry, Iterator[bytes]]:
    """Return a file's entry and its bytes in parts. Raises EntryMissing, PointMissing.

    The first part is read at once, so that a damaged vault is an error and not a broken answer.
    """
    browser = _open(point)
    entry = browser.entry(path)
    parts = browser.read(entry)
    first = next(parts, b"")
    return entry, _chained(first, parts)


def _chained(first: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    yield first
    yield from rest


def _text(path: bytes) -> str:
    return path.decode("utf-8", "replace")


def _encoded(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode()


def _shown(entry: Entry) -> dict[str, Any]:
    return {
        "name": _text(entry.path.rpartition(b"/")[2]),
        "path": "/" + _text(entry.path),
        "path_base64": _encoded(entry.path),
        "kind": Kind(entry.kind).name.lower(),
        "size": entry.size,
        "mode": f"{entry.mode & 0o7777:04o}",
        "owner": entry.user or str(entry.uid),
        "group": entry.group or str(entry.gid),
        "modified_at": dt.datetime.fromtimestamp(entry.mtime_ns // 10**9, dt.UTC),
        "target": _text(entry.target),
    }
