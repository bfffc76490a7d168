"""Whose the stored bytes are: what only one series needs, fair parts of what several need, what deleting frees.

The unit is the pack, which is what a prune can delete; what is dead inside a needed pack counts as needed, until a
compaction rewrites it. The names and sizes of a point's packs stand in the clear at the head of its root, so a look
costs one LIST and one short read per point, and no key is used but for what compaction moved.

Memory: a line per pack that points need and one per distinct set of series that need the same packs.
"""

from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby, islice
from typing import NamedTuple

import numpy as np

from engine.errors import IntegrityError, NotFound
from engine.moves import Moves
from engine.point import PREFIX as POINTS
from engine.point import PackRef, point_key, root_packs, table_end
from engine.progress import Progress
from engine.vault import PointName, Vault
from engine.verbs.findings import Finding

_READERS = 8
_AT_ONCE = _READERS * 16
HEAD_BYTES = 64 << 10
_NOBODY = 0


class Part(NamedTuple):
    """One owner's bytes: needed by it alone, needed by others too, and its fair part of the latter."""

    unique: int
    shared: int
    fair: int

    @property
    def charged(self) -> int:
        """Return what it has to answer for; of all owners together exactly what is needed."""
        return self.unique + self.fair


class Apportioning:
    """Divides things with a size among owners that come one after the other.

    Things are numbered. Those that the same owners need form a class; an owner that comes moves what it needs into
    classes of its own, each a child of the class before. So there is no list of owners per thing.
    """

    def __init__(self) -> None:
        self._classes = np.zeros(1024, np.uint32)
        self._parents = [_NOBODY]
        self._owners = [-1]
        self._counts = [0]
        self._names: list[str] = []

    def add(self, owner: str, things: Iterable[int]) -> None:
        """Say what the next owner needs. Each owner is named once; a thing may be named several times."""
        numbers = np.unique(np.fromiter(things, np.int64))
        number = len(self._names)
        self._names.append(owner)
        if not len(numbers):
            return
        self._reach(int(numbers[-1]))
        before, inverse = np.unique(self._classes[numbers], return_inverse=True)
        first = len(self._parents)
        for parent in before.tolist():
            self._parents.append(parent)
            self._owners.append(number)
            self._counts.append(self._counts[parent] + 1)
        self._classes[numbers] = first + inverse.reshape(-1).astype(np.uint32)

    def parts(self, sizes: np.ndarray) -> dict[str, Part]:
        """Return each owner's part; `sizes` by number of thing, in bytes. They add up exactly to what is needed.

        Of a class of n owners each gets an nth, rounded down; the rest, less than n bytes, goes to the last of them.
        """
        self._reach(len(sizes) - 1)
        totals = np.zeros(len(self._parents), np.int64)
        np.add.at(totals, self._classes[: len(sizes)], sizes.astype(np.int64))
        unique, shared, fair = ([0] * len(self._names) for _ in range(3))
        whole, each = totals.tolist(), [0] * len(totals)
        for number in range(len(self._parents) - 1, _NOBODY, -1):
            owner, parent, count = self._owners[number], self._parents[number], self._counts[number]
            own = int(totals[number])
            if count == 1:
                unique[owner] += own
                shared[owner] += whole[number] - own
                fair[owner] += each[number]
                continue
            share, rest = divmod(own, count)
            each[number] += share
            fair[owner] += each[number] + rest
            shared[owner] += whole[number]
            each[parent] += each[number]
            whole[parent] += whole[number]
        return {name: Part(*numbers) for name, *numbers in zip(self._names, unique, shared, fair, strict=True)}

    def _reach(self, number: int) -> None:
        if number >= len(self._classes):
            grown = np.zeros(max(number + 1, 2 * len(self._classes)), np.uint32)
            grown[: len(self._classes)] = self._classes
            self._classes = grown


class Shares(NamedTuple):
    """Whose a vault's bytes are. `series`: the part of each series that has points.

    `bytes_needed` is what all points need, `bytes_stored` what lies there in packs; the rest waits for a prune.
    `unreadable` are roots of which nobody can say what they need.
    """

    series: dict[str, Part]
    bytes_needed: int
    bytes_stored: int
    points: int
    unreadable: list[Finding]


class Freed(NamedTuple):
    """What deleting points would free at the next prune: packs that no other point needs, and their bytes."""

    packs: int
    bytes: int
    points: int


def apportion(vault: Vault, progress: Progress) -> Shares:
    """Divide what the vault holds among the series of its visible points. Only reads; raises what the store raises."""
    names = _visible(vault)
    progress.total(entries=len(names))
    numbers: dict[str, int] = {}
    sizes: list[int] = []
    unreadable: list[Finding] = []
    shared = Apportioning()
    for series, points in groupby(_packs_of(vault, names, progress), key=lambda found: found[0].series):
        needed: set[int] = set()
        for _, packs in points:
            if isinstance(packs, Finding):
                unreadable.append(packs)
                continue
            for pack in packs:
                number = numbers.setdefault(pack.name, len(sizes))
                if number == len(sizes):
                    sizes.append(pack.size)
                needed.add(number)
        shared.add(series, needed)
    stored = sum(one.size for one in vault.stored_packs())
    parts = shared.parts(np.array(sizes, np.int64))
    return Shares(parts, sum(sizes), stored, len(names), unreadable)


def freed_by(vault: Vault, points: Collection[PointName], progress: Progress, *, points_max: int) -> Freed | None:
    """Say what deleting these points would free; None when the vault has more than `points_max` points.

    A root that cannot be read counts as needing nothing here: while there is one, a prune deletes nothing.
    """
    names = _visible(vault)
    if len(names) > points_max:
        return None
    going = names.keys() & set(points)
    freed: dict[str, int] = {}
    for _, packs in _packs_of(vault, {name: names[name] for name in names if name in going}, progress):
        if not isinstance(packs, Finding):
            freed.update((pack.name, pack.size) for pack in packs)
    for _, packs in _packs_of(vault, {name: names[name] for name in names if name not in going}, progress):
        if not freed:
            break
        if not isinstance(packs, Finding):
            for pack in packs:
                freed.pop(pack.name, None)
    return Freed(len(freed), sum(freed.values()), len(going))


def _visible(vault: Vault) -> dict[PointName, int]:
    """LIST the points that are visible, in the order of series, each with the size of its root in bytes."""
    parts: dict[PointName, dict[str, int]] = {}
    for stored in vault.storage.scan(POINTS):
        path = stored.key.split("/")
        if len(path) == 4:
            parts.setdefault(PointName(path[1], path[2]), {})[path[3]] = stored.size
    return {
        name: found["root"]
        for name, found in parts.items()
        if {"root", "commit"} <= found.keys() and not ("expired" in found and vault.is_expired(name))
    }


def _packs_of(
    vault: Vault, names: dict[PointName, int], progress: Progress
) -> Iterator[tuple[PointName, list[PackRef] | Finding]]:
    """Yield each point with what it needs now, or with what is wrong with its root; without those that just went."""
    moves = Moves(vault.storage, vault.keys)  # read after the LIST: a move never names a point that came later
    todo = iter(names)
    with ThreadPoolExecutor(_READERS, "roots") as readers:
        while part := list(islice(todo, _AT_ONCE)):
            progress.check()
            progress.add(entries=len(part))
            for name, packs in zip(part, readers.map(lambda name: _read(vault, name, names[name]), part), strict=True):
                if isinstance(packs, Finding):
                    yield name, packs
                elif packs is not None:
                    yield name, moves.needed(f"{name.series}/{name.point}", packs)


def _read(vault: Vault, name: PointName, size: int) -> list[PackRef] | Finding | None:
    """Read the head of a root of `size` bytes; a second time when its packs are very many."""
    key = point_key(*name, "root")
    try:
        head = vault.storage.get(key, length=min(size, HEAD_BYTES))
        if (end := min(table_end(head), size)) > len(head):
            head = vault.storage.get(key, length=end)
        return root_packs(key, head)[0]
    except NotFound:
        return None
    except IntegrityError as error:
        return Finding(object=key, damage="point", detail=str(error))
