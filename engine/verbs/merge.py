"""Keep the index small: merge its segments, and forget the rows of packs that were deleted.

A merged segment says which ones it replaces and is stored before any of them is deleted. So a crash, or a second merge
at the same time, leaves rows twice and never none. A running session may need rows of packs that no point needs yet:
all rows are kept, but those of the packs that the caller names as deleted.

Segments belong to classes of size, each FAN times as large as the one before. A class of FAN members is merged into
the next one, so that a row is written again once for each class; segments over half of BYTES_MAX stay as they are.
"""

from collections.abc import Iterator, Set

import msgspec

from engine.index import Segment, join_segments
from engine.progress import Progress
from engine.vault import Vault

FAN = 8
BYTES_MAX = 40 << 20
_SMALLEST_BYTES = 4 << 10
_LEVEL_MAX = 9


class Merged(msgspec.Struct):
    """What a merge did: segments of the bucket before and after, bytes written, keys that could not be deleted."""

    segments_before: int = 0
    segments_after: int = 0
    written: int = 0
    bytes_written: int = 0
    refused: list[str] = []


def merge_index(vault: Vault, progress: Progress, *, drop: Set[str]) -> Merged:
    """Merge what is due; when this returns, no segment that this process could read lists a pack of `drop`.

    `drop` are deleted packs (names, with alias) that no running session may rely on. Damaged segments that nobody has
    replaced stay for rebuild. Memory: a few times BYTES_MAX. Raises FormatError for a segment of a newer program, then
    nothing is changed, and Canceled between two segments.
    """
    vault.index.refresh()
    merge = _Merge(vault, drop)
    merged = Merged(segments_before=len(vault.index.listed))
    live = merge.clean(merged)
    while groups := list(_due(live, drop)):
        for group in groups:
            progress.check()
            live = [segment for segment in live if segment not in group] + merge.join(group, merged)
    vault.index.refresh()
    merged.segments_after = len(vault.index.listed)
    return merged


def listed_packs(vault: Vault) -> set[str]:
    """Return the packs that any readable segment of the bucket lists, also one that others replace.

    While a deleted pack is among them its tombstone must stay.
    """
    vault.index.refresh()
    return {head.name for segment in vault.index.loaded.values() for head in segment.heads}


class _Merge:
    """Writes merged segments and deletes what they replace."""

    def __init__(self, vault: Vault, drop: Set[str]) -> None:
        self._storage, self._index, self._drop = vault.storage, vault.index, drop

    def clean(self, merged: Merged) -> list[Segment]:
        """Delete the segments that others replace; return those in force that may be merged.

        The replaced ones of a replaced one go first: alone they would be in force again.
        """
        loaded, listed = self._index.loaded, self._index.listed
        replaces = {name: {old for old in s.replaces if old in listed} for name, s in loaded.items()}
        replaced = set().union(*replaces.values()) if replaces else set()
        left, refused = set(replaced), set[str]()
        while left and not refused:
            ready = [name for name in left if not replaces.get(name, set()) & left]
            refused = self._delete(ready, merged)
            left -= set(ready) - refused
        return [s for name, s in loaded.items() if name not in replaced and not replaces[name] & left]

    def join(self, group: list[Segment], merged: Merged) -> list[Segment]:
        """Store what takes the place of a group, then delete the group; return the new segment, if there is any."""
        names = [segment.name for segment in group]
        plain = join_segments(group, without=self._drop, replaces=names)
        new: list[Segment] = []
        if any(head.name not in self._drop for segment in group for head in segment.heads):
            merged.bytes_written += self._index.add(plain, level=min(_class(len(plain)) + 1, _LEVEL_MAX))
            merged.written += 1
            new = self._index.segments[-1:]
        refused = self._delete(names, merged)
        # What replaces a segment that is still there must stay as well.
        return [] if refused else new

    def _delete(self, names: list[str], merged: Merged) -> set[str]:
        keys = {self._index.listed[name]: name for name in names}
        refused = [refusal.key for refusal in self._storage.delete(list(keys))]
        merged.refused += refused
        return {keys[key] for key in refused}


def _due(live: list[Segment], drop: Set[str]) -> Iterator[list[Segment]]:
    """Yield groups to merge, each at most BYTES_MAX in all: what lists dropped packs, and classes that are full."""
    classes: dict[int, list[Segment]] = {}
    stale = {s.name: s for s in live if not s.heads or any(head.name in drop for head in s.heads)}
    for segment in live:
        if segment.size <= BYTES_MAX // 2:
            classes.setdefault(_class(segment.size), []).append(segment)
    due = stale | {s.name: s for members in classes.values() if len(members) >= FAN for s in members}

    def worthwhile(group: list[Segment]) -> bool:
        return len(group) > 1 or any(segment.name in stale for segment in group)

    group: list[Segment] = []
    size = 0
    for segment in sorted(due.values(), key=lambda segment: segment.size):
        if group and size + segment.size > BYTES_MAX:
            if worthwhile(group):
                yield group
            group, size = [], 0
        group.append(segment)
        size += segment.size
    if worthwhile(group):
        yield group


def _class(size: int) -> int:
    """Return the class of a size in bytes."""
    number = 0
    while size >= _SMALLEST_BYTES * FAN:
        size //= FAN
        number += 1
    return number
