"""Which packs the points of a vault need: the one question that a prune must never answer wrongly."""

from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from engine.errors import IntegrityError, NotFound
from engine.ids import pack_key
from engine.moves import Moves
from engine.point import PREFIX as POINTS
from engine.point import PackRef, Root, decode_root, point_key
from engine.progress import Progress
from engine.storage.port import Storage
from engine.vault import PointName, Vault
from engine.verbs.findings import Finding

_READERS = 8


class Needs(NamedTuple):
    """What a look at the roots showed: packs by name, the points that have a root, and the roots that can't be read.

    Prepared and expired points count as visible ones do: a writer may commit at any moment, a restore may still read.
    `required` are the names of those packs without which a visible point is not whole. `moves` are the runs of the
    moves that counted.
    """

    packs: dict[str, PackRef]
    required: set[str]
    points: list[PointName]
    unreadable: list[Finding]
    moves: list[str]


class Known(NamedTuple):
    """What an earlier look has seen: points, and moves (runs) that counted then."""

    points: Collection[PointName] = ()
    moves: Collection[str] = ()


UNKNOWN = Known()


def parts_of_points(storage: Storage) -> dict[PointName, set[str]]:
    """LIST the points: name -> which of root, commit and expired stand there."""
    states: dict[PointName, set[str]] = {}
    for stored in storage.scan(POINTS):
        path = stored.key.split("/")
        if len(path) == 4:
            states.setdefault(PointName(path[1], path[2]), set()).add(path[3])
    return states


def look(vault: Vault, progress: Progress, *, known: Known = UNKNOWN) -> Needs:
    """Read every root that is there but those of `known` points, and what moves put in the place of their packs.

    Also needed is what a move names that has not been committed yet, or that an earlier look did not see. Raises what
    the store raises: without all roots there is no answer.
    """
    states = {name: parts for name, parts in parts_of_points(vault.storage).items() if "root" in parts}
    moves = Moves(vault.storage, vault.keys)  # read after the LIST: a move never names a point that came later
    packs: dict[str, PackRef] = {}
    later = [move for move in moves.committed if known.points and move.run not in known.moves]
    for move in moves.prepared + later:
        packs.update((pack.name, pack) for new in move.packs.values() for pack in new)
    needs = Needs(packs, set(), [], [], [move.run for move in moves.committed])
    with ThreadPoolExecutor(_READERS, "roots") as readers:
        todo = [name for name in states if name not in known.points]
        for at in range(0, len(todo), _READERS * 4):
            part = todo[at : at + _READERS * 4]
            for name, root in zip(part, readers.map(lambda name: _read(vault, name), part), strict=True):
                progress.check()
                if isinstance(root, Finding):
                    needs.unreadable.append(root)
                elif root is not None:
                    _add(vault, needs, name, states[name], moves.needed(f"{name.series}/{name.point}", root.packs))
    return needs


def _add(vault: Vault, needs: Needs, name: PointName, parts: set[str], packs: list[PackRef]) -> None:
    needs.points.append(name)
    needs.packs.update((pack.name, pack) for pack in packs)
    if "commit" in parts and not ("expired" in parts and vault.is_expired(name)):
        needs.required.update(pack.name for pack in packs)


def _read(vault: Vault, name: PointName) -> Root | Finding | None:
    """Return a root, what is wrong with it, or None when it was expired since the LIST."""
    key = point_key(*name, "root")
    try:
        return decode_root(vault.keys, key, vault.storage.get(key))
    except NotFound:
        return None
    except IntegrityError as error:
        return Finding(object=key, damage="point", detail=str(error))


def missing_packs(vault: Vault, needs: Needs, present: dict[str, int]) -> list[Finding]:
    """Return the packs that visible points need and the store does not hold at full size; `present`: name -> bytes.

    Looks again for each that the LIST did not show, because the point may have come after it.
    """
    found = []
    for pack in needs.packs.values():
        if pack.name not in needs.required or present.get(pack.name) == pack.size:
            continue
        key = pack_key(pack.kind, pack.name)
        sizes = [stored.size for stored in vault.storage.scan(key) if stored.key == key]
        if sizes != [pack.size]:
            detail = f"it has {sizes[0]} bytes instead of {pack.size}" if sizes else "it is not in the bucket"
            found.append(Finding(object=key, damage="size" if sizes else "missing", detail=detail))
    return found
