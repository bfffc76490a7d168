"""Locks of an immutable vault (vault-format, section 7): how long, of what, and how a point gets them.

Every object has a lock of its own, in compliance mode where the store has that; never a default of the bucket. Ends are
rounded up to the end of a generation of ten days, so that a pack which many points need is locked anew at most once in
ten days. What was locked stands in the ledger, `locks/<generation>/<sha256>`: a note of packs that are locked until
that generation's end. The policy stands in `locks/policy/<ulid>`, and is locked itself. All are control objects.

In a store without object lock the same calls keep the same promises as long as only this program touches the store:
`LockPolicy.level` says which of the two it is.
"""

import datetime as dt
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, Protocol, TypeVar

import msgspec

from engine.errors import Forbidden, IntegrityError, LockCannotLoosen, LockFailed, LockUnsupported, NotFound
from engine.ids import Moment, digest_name, new_ulid, pack_key
from engine.keys import Keys
from engine.keysets import needed as key_sets_in_force
from engine.point import PackRef
from engine.session import put_note, put_once, read_note
from engine.storage.port import Storage, history_of
from engine.storage.probe import APPLICATION_LEVEL, IMMUTABLE, Attackable, probe

PREFIX = "locks/"
POLICIES = "locks/policy/"
GENERATION_DAYS = 10
LOCK_DAYS_MAX = 36_490  # with the rest of its generation a lock ends within the hundred years that S3 allows
SKEW_MAX_S = 3600.0
CHECKED_SHARE = 0.01
_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_GENERATION = dt.timedelta(days=GENERATION_DAYS)
_DIGITS = 5  # of a generation's number: with more there is no date
_THREADS = 8
_NOTE_PACKS = 100_000
A = TypeVar("A")
T = TypeVar("T")
_BASE = ("vault.json", POLICIES)


class Locking(Protocol):
    """What holds the objects to lock: a vault."""

    storage: Storage
    keys: Keys


class LockPolicy(msgspec.Struct, frozen=True):
    """How long a vault's points are locked at least, counted from their end; `immutable` when the store keeps locks."""

    days: int
    since: Moment
    immutable: bool = False

    @property
    def level(self) -> str:
        """Return the only name that may be used for it."""
        return IMMUTABLE if self.immutable else APPLICATION_LEVEL


class Locked(msgspec.Struct, frozen=True):
    """What a note of the ledger says: these packs are locked until its generation ends."""

    packs: list[str]


class Extended(NamedTuple):
    """What locking some packs took: how many were locked anew, skipped by the ledger, and looked at afterwards."""

    locked: int
    skipped: int
    checked: int


def generation_of(moment: dt.datetime) -> int:
    """Return the number of the generation that contains a moment."""
    return (moment - _EPOCH) // _GENERATION


def generation_end(number: int) -> dt.datetime:
    """Return when a generation ends, which is when the next begins."""
    return _EPOCH + (number + 1) * _GENERATION


def lock_until(policy: LockPolicy, ended_at: dt.datetime, retention_days: int = 0) -> dt.datetime:
    """Return until when a point that ended then has to be locked: the end of a generation."""
    days = min(max(policy.days, retention_days), LOCK_DAYS_MAX)
    return generation_end(generation_of(ended_at + dt.timedelta(days=days)))


def read_policy(storage: Storage, keys: Keys) -> LockPolicy | None:
    """Return the strictest policy that is authentic, None when the vault has none.

    Where the store keeps versions all of them are asked, so that a delete marker or a newer forgery hides nothing: a
    policy is locked, and its version can't go. Elsewhere one that was deleted is missed only by an audit.
    """
    return max(_policies(storage, keys), key=lambda policy: (policy.days, policy.immutable), default=None)


def enable(vault: Locking, *, days: int, now: dt.datetime) -> LockPolicy:
    """Lock the vault for at least `days`, or lengthen its lock; return the policy in force. It can't be undone.

    Locks the policy, the keys and vault.json at once; run an audit next, which locks the points that are there. Asked
    again for what is in force it changes nothing. Raises ValueError, LockUnsupported, LockCannotLoosen.
    """
    if not 1 <= days <= LOCK_DAYS_MAX:
        raise ValueError(f"a lock of {days} days is not possible: give 1 to {LOCK_DAYS_MAX}")
    present = read_policy(vault.storage, vault.keys)
    if present is not None and days < present.days:
        raise LockCannotLoosen(f"the vault is locked for {present.days} days, which is more than {days}")
    policy = LockPolicy(days, now, immutable=_is_proven(vault.storage, now))
    if present is not None and (present.days, present.immutable) == (days, policy.immutable):
        policy = present
    key = f"{POLICIES}{new_ulid(now)}"
    until = lock_until(policy, now)
    try:
        if policy is not present:
            put_once(vault.storage, key, vault.keys.sign(key, msgspec.json.encode(policy)), locked_until=until)
        extend_base(vault, until=until)
    except Forbidden as error:
        raise LockUnsupported(f"the store does not lock: {error}") from error
    return policy


def extend_point(vault: Locking, packs: Iterable[PackRef], *, until: dt.datetime, now: dt.datetime) -> Extended:
    """Lock all that a point needs until then, before its root is put. On any error the point must not be committed.

    Raises LockUnsupported when the store's clock is not ours: a wrong clock could lock for ever.
    """
    check_clock(vault.storage, now)
    extended = extend(vault, packs, until=until)
    extend_base(vault, until=until)
    return extended


def extend(vault: Locking, packs: Iterable[PackRef], *, until: dt.datetime) -> Extended:
    """Lock packs at least until then; those of which the ledger says that they are, are left alone.

    Never shortens. A random hundredth is looked at afterwards, and all when one of them is not locked as long as it
    should be. Raises LockFailed, or the storage's error; then some are locked and some are not.
    """
    wanted = {pack.name: pack_key(pack.kind, pack.name) for pack in packs}
    known = Ledger.load(vault.storage, vault.keys, since=until)
    todo = {name: key for name, key in wanted.items() if not known.covers(name, until)}
    _lock_all(vault.storage, todo.values(), until)
    sample = _sample(list(wanted.values()))
    if short_of(vault.storage, sample, until):
        sample = list(wanted.values())
        _lock_all(vault.storage, short_of(vault.storage, sample, until), until)
        if short := short_of(vault.storage, sample, until):
            raise LockFailed(f"{short[0]} and {len(short) - 1} others cannot be locked until {until.isoformat()}")
    note_locked(vault, dict.fromkeys(todo, until))
    return Extended(len(todo), len(wanted) - len(todo), len(sample))


def extend_base(vault: Locking, *, until: dt.datetime) -> None:
    """Lock vault.json, the keys and the policies at least until then, and look whether they are.

    A key set that a rotation replaced is left to end its lock: only then can it be deleted.
    """
    keys = base_keys(vault)
    _lock_all(vault.storage, keys, until)
    if short := short_of(vault.storage, keys, until):
        raise LockFailed(f"{short[0]} cannot be locked until {until.isoformat()}")


def base_keys(vault: Locking) -> list[str]:
    """Return what every point needs: vault.json, the policies, the key sets in force."""
    keys = [stored.key for prefix in _BASE for stored in vault.storage.scan(prefix)]
    return keys + key_sets_in_force(vault.storage, vault.keys)


def short_of(storage: Storage, keys: Sequence[str], until: dt.datetime) -> list[str]:
    """Return those of the objects whose lock ends earlier."""
    ends = in_threads(storage.locked_until, keys)
    return [key for key, end in zip(keys, ends, strict=True) if end is None or end < until]


def note_locked(vault: Locking, ends: Mapping[str, dt.datetime]) -> list[str]:
    """Note in the ledger which packs are locked until when; return the keys of the notes."""
    written = []
    by_generation: dict[int, list[str]] = {}
    for name, end in ends.items():
        by_generation.setdefault(generation_of(end) - 1, []).append(name)
    for number, names in by_generation.items():
        names.sort()
        for at in range(0, len(names), _NOTE_PACKS):
            note = Locked(names[at : at + _NOTE_PACKS])
            key = f"{PREFIX}{number}/{digest_name(msgspec.json.encode(note))}"
            put_note(vault.storage, vault.keys, key, note)
            written.append(key)
    return written


class Ledger:
    """Until when packs are locked, as far as the notes say: at least that long, perhaps longer.

    A note can't be forged, and a pack that is named stays locked; what a note can't tell is whether somebody hid the
    pack, which audits find. `notes` are the readable ones of each generation, `ended` those of generations that are
    over.
    """

    def __init__(self) -> None:
        self.until: dict[str, dt.datetime] = {}
        self.notes: dict[int, dict[str, list[str]]] = {}
        self.ended: list[str] = []

    @classmethod
    def load(cls, storage: Storage, keys: Keys, *, since: dt.datetime) -> "Ledger":
        """Read the notes of generations that end at `since` or later; a damaged note says nothing."""
        ledger = cls()
        wanted: list[tuple[int, str]] = []
        for stored in storage.scan(PREFIX):
            number = stored.key.split("/")[1]
            if not number.isdecimal() or len(number) > _DIGITS:
                continue
            if generation_end(int(number)) < since:
                ledger.ended.append(stored.key)
            else:
                wanted.append((int(number), stored.key))
        found = in_threads(lambda one: _names(storage, keys, one[1]), wanted)
        for (generation, key), names in zip(wanted, found, strict=True):
            if names is not None:
                ledger._add(generation, key, names)
        return ledger

    def _add(self, number: int, key: str, names: list[str]) -> None:
        self.notes.setdefault(number, {})[key] = names
        end = generation_end(number)
        for name in names:
            self.until[name] = max(end, self.until.get(name, end))

    def merge(self, vault: Locking) -> None:
        """Put one note in the place of many that were loaded; a crash leaves too many."""
        for number, notes in self.notes.items():
            if len(notes) > 1:
                ends = {name: generation_end(number) for names in notes.values() for name in names}
                written = note_locked(vault, ends)
                vault.storage.delete([key for key in notes if key not in written])

    def covers(self, name: str, until: dt.datetime) -> bool:
        """Say whether a pack is known to be locked at least until then."""
        end = self.until.get(name)
        return end is not None and end >= until


def check_clock(storage: Storage, now: dt.datetime) -> None:
    """Raise LockUnsupported when the store has a clock and it is more than an hour away from ours."""
    bare = bare_storage(storage)
    if not isinstance(bare, Attackable):
        return
    theirs = bare.describe().server_time
    if theirs is not None and abs((theirs - now).total_seconds()) > SKEW_MAX_S:
        raise LockUnsupported(
            f"the store's clock says {theirs.isoformat()} and ours {now.isoformat()}: set them right before locking"
        )


def bare_storage(storage: Storage) -> Storage:
    """Return the store without its wrappers, as a probe has to see it."""
    while (inner := getattr(storage, "inner", None)) is not None:
        storage = inner
    return storage


def in_threads(call: Callable[[A], T], things: Sequence[A]) -> list[T]:
    """Return the answers for all things, in order; the first error is raised when the calls that run have ended."""
    if not things:
        return []
    with ThreadPoolExecutor(min(_THREADS, len(things))) as threads:
        return list(threads.map(call, things))


def _lock_all(storage: Storage, keys: Iterable[str], until: dt.datetime) -> None:
    in_threads(lambda key: storage.extend_lock(key, until=until), list(keys))


def _sample(keys: list[str]) -> list[str]:
    """Return a random hundredth, at least one."""
    count = min(len(keys), max(1, round(len(keys) * CHECKED_SHARE)))
    return secrets.SystemRandom().sample(keys, count)


def _policies(storage: Storage, keys: Keys) -> Iterator[LockPolicy]:
    for key, data in _policy_objects(storage):
        try:
            policy = msgspec.json.decode(keys.verify(key, data), type=LockPolicy)
        except (IntegrityError, msgspec.MsgspecError, UnicodeDecodeError):
            continue
        if 1 <= policy.days <= LOCK_DAYS_MAX:
            yield policy


def _policy_objects(storage: Storage) -> Iterator[tuple[str, bytes]]:
    try:
        yield from _policy_versions(storage)
    except Forbidden:
        # Whoever may not see versions sees what is on top: enough unless somebody hid it, which audits find.
        for stored in storage.scan(POLICIES):
            yield stored.key, storage.get(stored.key)


def _policy_versions(storage: Storage) -> list[tuple[str, bytes]]:
    history = history_of(storage)
    if history is None:
        return [(stored.key, storage.get(stored.key)) for stored in storage.scan(POLICIES)]
    found = [version for version in history.versions(POLICIES) if not version.marker]
    return [(version.key, history.get_version(version.key, version.version_id)) for version in found]


def _is_proven(storage: Storage, now: dt.datetime) -> bool:
    """Try the store's lock out; say False for a store that has none of its own. Raises LockUnsupported."""
    bare = bare_storage(storage)
    if not isinstance(bare, Attackable):
        return False
    check_clock(storage, now)
    found = probe(bare, now=now, name=f"enable-{new_ulid(now)}")
    if found.retention != IMMUTABLE:
        raise LockUnsupported("; ".join(found.problems) or "object lock is off in this bucket")
    return True


def _names(storage: Storage, keys: Keys, key: str) -> list[str] | None:
    try:
        return read_note(storage, keys, key, Locked).packs
    except (NotFound, IntegrityError):
        return None
