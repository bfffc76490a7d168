"""What compaction moved (vault-format, section 6): old packs, what stands in their place, and for which points.

`moves/<run>/move` names packs, their replacements and the points that were marked: every chunk that one of those
points needs from an old pack is in its replacements. It counts once `moves/<run>/commit` is there, too. A point that
is not named goes on needing the old pack. Both are control objects: JSON, newline, MAC.
"""

import datetime as dt
from collections.abc import Iterator, Sequence

import msgspec

from engine.errors import IntegrityError, NotFound
from engine.ids import digest_name, valid_pack
from engine.keys import Keys
from engine.point import PackRef
from engine.session import Session, put_note, put_once, read_note
from engine.storage.port import Storage

PREFIX = "moves/"


class Move(msgspec.Struct, frozen=True):
    """What one compaction moved. `points` as `<series>/<point>`; `packs`: name of an old pack -> its replacements."""

    run: str
    session: str
    points: list[str]
    packs: dict[str, list[PackRef]]

    def __post_init__(self) -> None:
        places = [pack for packs in self.packs.values() for pack in packs]
        if not all(valid_pack(pack.name) and pack.kind in (0, 1) for pack in places):
            raise ValueError("it names a pack that can't be")


class MoveCommit(msgspec.Struct, frozen=True):
    """From now on the move counts; `move_sha256` is the digest of the move as stored."""

    run: str
    move_sha256: str


def move_key(run: str, part: str) -> str:
    """Return the key of a move's `move` or `commit`."""
    return f"{PREFIX}{run}/{part}"


class Moves:
    """All moves of a vault as one LIST showed them. Read them after the session opened.

    Whoever only reads passes `strictly=False`: a damaged or forged move then counts for nothing, instead of raising.
    """

    def __init__(self, storage: Storage, keys: Keys, *, strictly: bool = True) -> None:
        states: dict[str, set[str]] = {}
        for stored in storage.scan(PREFIX):
            parts = stored.key.split("/")
            if len(parts) == 3:
                states.setdefault(parts[1], set()).add(parts[2])
        self.committed: list[Move] = []
        self.prepared: list[Move] = []
        for run, found in states.items():
            if "move" not in found:
                continue
            try:
                move = _read(storage, keys, run, committed="commit" in found)
            except NotFound:
                continue  # its last point expired, and a prune dropped it since the LIST
            except IntegrityError:
                if strictly:
                    raise
                continue
            (self.committed if "commit" in found else self.prepared).append(move)
        self._by_point: dict[str, list[Move]] = {}
        for move in self.committed:
            for point in move.points:
                self._by_point.setdefault(point, []).append(move)

    def of(self, point: str, packs: Sequence[PackRef]) -> dict[int, list[PackRef]]:
        """Return what now stands for which of a point's packs, by number; `point` as `<series>/<point>`."""
        places: dict[str, list[PackRef]] = {}
        for move in self._by_point.get(point, []):
            places = move.packs | places  # moved twice at once: either is right
        moved = {}
        for number, pack in enumerate(packs):
            if pack.name in places:
                moved[number] = list(dict.fromkeys(_follow(pack, places)))
        return moved

    def needed(self, point: str, packs: Sequence[PackRef]) -> list[PackRef]:
        """Return all packs that a point needs now, each once; `packs` are those of its set."""
        moved = self.of(point, packs)
        return list(dict.fromkeys(now for number, pack in enumerate(packs) for now in moved.get(number, [pack])))


def _follow(pack: PackRef, places: dict[str, list[PackRef]], above: frozenset[str] = frozenset()) -> Iterator[PackRef]:
    """Yield what stands for a pack; what was moved may have been moved on.

    Two compactions at once may each have put the other's pack in the place of their own: then both stay.
    """
    if pack.name not in places or pack.name in above:
        yield pack
        return
    for new in places[pack.name]:
        yield from _follow(new, places, above | {pack.name})


def commit_move(session: Session, storage: Storage, keys: Keys, move: Move, *, now: dt.datetime) -> None:
    """Make a move count: move, look for a fence or an end, commit. All packs that it names must be stored before.

    Does not close the session. Raises SessionFenced: then it never counts, and a prune removes it. After a storage's
    error it may count or not; either is a whole vault.
    """
    key = move_key(move.run, "move")
    data = keys.sign(key, msgspec.json.encode(move))
    put_once(storage, key, data)
    session.check(now)
    put_note(storage, keys, move_key(move.run, "commit"), MoveCommit(move.run, digest_name(data)))


def settle_move(storage: Storage, keys: Keys, run: str) -> None:
    """Commit the move that is stored, the same bytes as its writer would. Raises NotFound, IntegrityError."""
    key = move_key(run, "move")
    data = storage.get(key)
    keys.verify(key, data)
    put_note(storage, keys, move_key(run, "commit"), MoveCommit(run, digest_name(data)))


def _read(storage: Storage, keys: Keys, run: str, *, committed: bool) -> Move:
    key = move_key(run, "move")
    if committed:
        commit = read_note(storage, keys, move_key(run, "commit"), MoveCommit)
        if commit.move_sha256 != digest_name(storage.get(key)):
            raise IntegrityError(f"{key} is not the move that was committed")
    return read_note(storage, keys, key, Move)
