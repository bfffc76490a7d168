"""What of a vault was read, and when: signed notes of verifications, and what they add up to (vault-format, Ledger).

`verify/<yyyy-mm>/<sha256>` is a control object; the digest is that of its payload. The ledger is a convenience: a note
that is lost, damaged or forged says nothing, and what it told is read again. Objects go by the last part of their keys.
"""

import datetime as dt
from collections.abc import Collection, Iterable, Iterator, Mapping

import msgspec

from engine.errors import IntegrityError, NotFound
from engine.ids import Moment, digest_name
from engine.keys import Keys
from engine.moves import Moves
from engine.session import put_once, read_note
from engine.storage.port import Storage

PREFIX = "verify/"
NAMES_MAX = 20_000  # in one note: below 2 MB
NOTES_MAX = 32  # small notes, before they are merged
_AHEAD = dt.timedelta(days=1)  # a date further ahead than clocks differ is no date


class Reading(msgspec.Struct, frozen=True, omit_defaults=True):
    """What one verification found whole; `at` is when it began.

    `read`: objects of which every byte was read. `seen`: objects seen for the first time and not read yet. `points`:
    points whose structure was verified, as `point_states` spells them.
    """

    at: Moment
    read: list[str] = []
    seen: list[str] = []
    points: list[str] = []

    @property
    def names(self) -> int:
        """Return how many names it holds."""
        return len(self.read) + len(self.seen) + len(self.points)


class Note(msgspec.Struct, frozen=True):
    """One object of the ledger."""

    readings: list[Reading]

    @property
    def names(self) -> int:
        """Return how many names it holds."""
        return sum(reading.names for reading in self.readings)


class Coverage(msgspec.Struct, frozen=True):
    """How much of some objects was read within `days`. `oldest` is since when the longest unread one waits.

    `oldest` is None when all were read in time, or nobody knows since when the rest is there.
    """

    days: int
    objects: int
    bytes: int
    objects_read: int
    bytes_read: int
    oldest: dt.datetime | None

    @property
    def share(self) -> float:
        """Return the share of the bytes that was read, 1.0 of nothing."""
        return self.bytes_read / self.bytes if self.bytes else 1.0


class Ledger:
    """All readings of a vault as one LIST showed them, each name with its date.

    `read_at` and `structured` hold the newest date, `seen_at` the oldest. Memory: one line per name.
    """

    def __init__(self, storage: Storage, keys: Keys) -> None:
        self._storage, self._keys = storage, keys
        self._notes: dict[str, Note] = {}
        self.read_at: dict[str, dt.datetime] = {}
        self.seen_at: dict[str, dt.datetime] = {}
        self.structured: dict[str, dt.datetime] = {}
        self.unreadable: list[str] = []

    @classmethod
    def load(cls, storage: Storage, keys: Keys, *, now: dt.datetime | None = None) -> "Ledger":
        """Read all notes. What claims to be read more than a day after `now` counts for nothing."""
        ledger = cls(storage, keys)
        for stored in storage.scan(PREFIX):
            try:
                note = read_note(storage, keys, stored.key, Note)
            except NotFound:
                continue  # merged since the LIST
            except IntegrityError:
                ledger.unreadable.append(stored.key)
                continue
            if now is not None:
                note = Note([reading for reading in note.readings if reading.at <= now + _AHEAD])
            ledger._take(stored.key, note)
        return ledger

    def since(self, name: str) -> dt.datetime | None:
        """Return when an object was read last, or else seen first; None when it was never seen."""
        return self.read_at.get(name) or self.seen_at.get(name)

    def note(self, reading: Reading) -> None:
        """Store a reading, in as many notes as it needs; one that says nothing is not stored."""
        for note in _packed([reading]):
            self._store(note)

    def tidy(self, *, objects: Collection[str], points: Collection[str]) -> None:
        """Drop the notes that say nothing newer than others, and merge the small ones when they are many.

        `objects` and `points` are those there are, by LISTs that began after this ledger was loaded; the dates of
        others are dropped. What is merged is stored before what it came from is deleted: a crash leaves dates twice.
        """
        dropped, small = [key for key in self.unreadable if self._is_unreadable(key)], []
        claimed: set[tuple[str, str]] = set()
        for key, note in self._notes.items():
            rest = Note([self._current(reading, objects, points, claimed) for reading in note.readings])
            if not rest.names:
                dropped.append(key)
            elif rest.names <= NAMES_MAX // 2:
                small.append((key, rest))
        if len(small) > NOTES_MAX:
            merged = {self._store(note) for note in _packed([r for _, note in small for r in note.readings])}
            dropped += [key for key, _ in small if key not in merged]
        if dropped:
            self._storage.delete(dropped)
        for key in dropped:
            self._notes.pop(key, None)

    def coverage(self, objects: Mapping[str, int], now: dt.datetime, *, days: int = 30) -> Coverage:
        """Tell how much of `objects` (name -> bytes) was read within the last `days`."""
        start = now - dt.timedelta(days=days)
        fresh = {name for name in objects if start <= self.read_at.get(name, start - _AHEAD) <= now + _AHEAD}
        waiting = [since for name in objects if name not in fresh and (since := self.since(name))]
        return Coverage(
            days=days,
            objects=len(objects),
            bytes=sum(objects.values()),
            objects_read=len(fresh),
            bytes_read=sum(objects[name] for name in fresh),
            oldest=min(waiting, default=None),
        )

    def _is_unreadable(self, key: str) -> bool:
        """Read a note once more: what was only changed on its way must not be deleted."""
        try:
            read_note(self._storage, self._keys, key, Note)
        except IntegrityError:
            return True
        except NotFound:
            pass
        return False

    def _take(self, key: str, note: Note) -> None:
        self._notes[key] = note
        for reading in note.readings:
            for dates, names in ((self.read_at, reading.read), (self.structured, reading.points)):
                for name in names:
                    dates[name] = max(reading.at, dates.get(name, reading.at))
            for name in reading.seen:
                self.seen_at[name] = min(reading.at, self.seen_at.get(name, reading.at))

    def _store(self, note: Note) -> str:
        payload = msgspec.json.encode(note)
        newest = max(reading.at for reading in note.readings)
        key = f"{PREFIX}{newest:%Y-%m}/{digest_name(payload)}"
        put_once(self._storage, key, self._keys.sign(key, payload))
        self._take(key, note)
        return key

    def _current(
        self, reading: Reading, objects: Collection[str], points: Collection[str], claimed: set[tuple[str, str]]
    ) -> Reading:
        """Return what of a reading no other one says better; the same date counts where it is met first."""

        def kept(what: str, names: list[str], dates: dict[str, dt.datetime], alive: Collection[str]) -> list[str]:
            mine = [n for n in names if n in alive and dates[n] == reading.at and (what, n) not in claimed]
            claimed.update((what, name) for name in mine)
            return mine

        unread = [name for name in reading.seen if name not in self.read_at]
        return Reading(
            reading.at,
            read=kept("read", reading.read, self.read_at, objects),
            seen=kept("seen", unread, self.seen_at, objects),
            points=kept("points", reading.points, self.structured, points),
        )


def point_states(moves: Moves, points: Iterable[str]) -> dict[str, str]:
    """Return how the ledger spells each point (`<series>/<point>`): with the runs that moved it, `+<run>` each.

    So a point that a compaction moved has to be verified anew.
    """
    runs: dict[str, list[str]] = {}
    for move in moves.committed:
        for point in move.points:
            runs.setdefault(point, []).append(move.run)
    return {point: "+".join([point, *sorted(runs.get(point, ()))]) for point in points}


def _packed(readings: Iterable[Reading]) -> Iterator[Note]:
    """Yield notes of at most NAMES_MAX names; readings of one moment are joined."""
    joined: dict[dt.datetime, list[tuple[str, str]]] = {}
    for reading in readings:
        names = joined.setdefault(reading.at, [])
        for what, some in (("read", reading.read), ("seen", reading.seen), ("points", reading.points)):
            names += [(what, name) for name in some]
    note: list[Reading] = []
    room = NAMES_MAX
    for at, names in sorted(joined.items()):
        while names:
            part, names = names[:room], names[room:]
            lists = {what: sorted(name for kind, name in part if kind == what) for what in ("read", "seen", "points")}
            note.append(Reading(at, **lists))
            room -= len(part)
            if not room:
                yield Note(note)
                note, room = [], NAMES_MAX
    if note:
        yield Note(note)
