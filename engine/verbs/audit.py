"""Prove that what is locked stays locked, and undo what somebody did behind the vault's back: plan -> work -> finish.

A daily audit of a vault does five things. What somebody hid under a delete marker or covered with a newer version is
brought back (engine/verbs/uncover.py). A canary is locked and attacked: a lock that gives way is found on an object
that nobody needs. The policy is looked for, because without it new points would not be locked. Each object's real lock
is compared with what the points need, and made longer where it is short. What is over is cleaned away: canaries and
notes of the ledger whose locks have ended.

It never makes a lock shorter, and locks nothing in a vault without a policy. What a store with object lock is proven
to do is called immutable; any other is application-level retention, and has neither canary nor versions.

Call `uncover.entrance` before the vault is opened: it brings back what opening needs.
"""

import datetime as dt
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import NamedTuple

import msgspec

from engine.errors import Forbidden, IntegrityError, NotFound, PointMissing, StorageError, Superseded
from engine.ids import pack_key
from engine.locks import (
    POLICIES,
    Ledger,
    LockPolicy,
    bare_storage,
    base_keys,
    check_clock,
    in_threads,
    lock_until,
    note_locked,
    read_policy,
)
from engine.moves import PREFIX as MOVES
from engine.moves import move_key
from engine.point import Root, point_key
from engine.progress import Progress
from engine.session import PRUNE_PREFIX, Session
from engine.storage.probe import APPLICATION_LEVEL, Attackable, canary
from engine.vault import INFO_KEY, PointName, Vault
from engine.verbs.findings import pack_name
from engine.verbs.inspect import open_unbound
from engine.verbs.uncover import Uncovered, uncover

CANARIES = "canary/"
CANARY_HOURS = 24
UNIT_OBJECTS = 1_000
_BATCH = 64
_CANARY_ATTEMPTS = 3


class AuditJob(msgspec.Struct, frozen=True, kw_only=True):
    """`session` is a fresh ULID for every run; a retried run keeps it. `entrance` is what `uncover.entrance` found."""

    session: str
    started_at: dt.datetime
    entrance: tuple[Uncovered, ...] = ()


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that is not as it should be.

    `kind`: hidden (by a delete marker), covered (by a foreign version), short (its lock ended earlier than was promised
    when a point was made), gone, point (its root or commit is damaged), refused (the store does not lock it), policy
    (missing or forged), forged (a prune's or compaction's note that nobody with the keys wrote), canary (the store's
    lock gives way). `repaired`: it is right again.
    """

    object: str
    kind: str
    detail: str
    repaired: bool = False


class Due(msgspec.Struct, array_like=True, frozen=True):
    """An object and until when it has to be locked; `promised` is what its points were told when they were made."""

    key: str
    until: dt.datetime
    promised: dt.datetime | None = None


class Summary(msgspec.Struct):
    """What the plan saw. `furthest` is the end of the last lock that any point needs."""

    days: int = 0
    level: str = APPLICATION_LEVEL
    points: int = 0
    is_proven: bool = False
    furthest: dt.datetime | None = None


class Unit(msgspec.Struct):
    """Some objects whose locks are to be looked at. What plan itself found travels along."""

    number: int
    due: list[Due] = []
    found: list[Finding] = []
    summary: Summary | None = None

    @property
    def needs_work(self) -> bool:
        """Say whether a worker has anything to do."""
        return bool(self.due)


class Result(msgspec.Struct):
    """A unit done: how many objects' locks were looked at, and how many of those made longer."""

    number: int
    found: list[Finding]
    objects: int = 0
    lengthened: int = 0
    summary: Summary | None = None


class Outcome(msgspec.Struct):
    """How an audit ended: `state` is complete when all was as it should be, partial_complete when all is right again.

    It is failed when something still is not. Locks made longer because the policy asks for more are no finding. `days`
    is 0 in a vault without a policy; `level` says what its locks may be called; `is_proven`, that a canary held.
    """

    state: str
    days: int
    level: str
    is_proven: bool
    points: int
    objects: int
    lengthened: int
    furthest: dt.datetime | None
    findings: list[Finding]


def plan(vault: Vault, job: AuditJob, progress: Progress, *, now: dt.datetime) -> Iterator[Unit]:
    """Bring back what was hidden, try the canary, read all roots; yield the objects that have to be locked.

    Opens the session, so that no prune deletes what comes back. Raises LockUnsupported when the store's clock is off.
    """
    vault.know("write")
    open_unbound(vault, job.session, verb="audit", now=now)
    progress.phase("read")
    found = [_of_uncovered(one) for one in (*job.entrance, *uncover(vault, progress))]
    policy = read_policy(vault.storage, vault.keys)
    summary = Summary()
    if policy is not None:
        check_clock(vault.storage, now)
        summary.is_proven = _try_canary(vault, job, found, now)
        summary.days, summary.level = policy.days, policy.level if summary.is_proven else APPLICATION_LEVEL
    needs = _Needs(policy, now)
    _look_at_points(vault, needs, found, progress)
    summary.points, summary.furthest = needs.points, needs.furthest
    found += _look_at_policies(vault, policy, needs, now)
    for prefix in (PRUNE_PREFIX, MOVES):
        found += _forged(vault, prefix, "forged", "backups are refused as long as it is there")
    yield Unit(0, found=found, summary=summary)
    due = needs.due(vault) if policy is not None else []
    progress.total(entries=len(due))
    for number, at in enumerate(range(0, len(due), UNIT_OBJECTS), 1):
        yield Unit(number, due=due[at : at + UNIT_OBJECTS])


def work(vault: Vault, job: AuditJob, unit: Unit, progress: Progress) -> Result:
    """Compare real locks with what is due, and make short ones longer. Safe to run twice."""
    result = Result(unit.number, list(unit.found), summary=unit.summary)
    for at in range(0, len(unit.due), _BATCH):
        batch = unit.due[at : at + _BATCH]
        locked: dict[str, dt.datetime] = {}
        for due, seen in zip(batch, in_threads(partial(_secure, vault), batch), strict=True):
            result.objects += 1
            result.lengthened += seen.lengthened
            result.found += seen.found
            if seen.lengthened and (name := pack_name(due.key)):
                locked[name] = due.until
        note_locked(vault, locked)
        progress.add(entries=len(batch))
        progress.check()
    return result


def finish(
    vault: Vault, job: AuditJob, results: Iterable[Result], progress: Progress, *, clock: Callable[[], dt.datetime]
) -> Outcome:
    """Gather the findings, clean away what is over, close the session. Safe to run twice."""
    session = Session(vault.storage, vault.keys, job.session)
    outcome = Outcome("complete", 0, APPLICATION_LEVEL, False, 0, 0, 0, None, [])
    try:
        for result in results:
            outcome.findings += result.found
            outcome.objects += result.objects
            outcome.lengthened += result.lengthened
            if result.summary is not None:
                _take(outcome, result.summary)
            progress.check()
        _clean(vault, clock())
    except Superseded:
        raise
    except BaseException:
        session.close("aborted", clock())
        raise
    session.close("done", clock())
    if outcome.findings:
        outcome.state = "partial_complete" if all(one.repaired for one in outcome.findings) else "failed"
    return outcome


class _Needs:
    """Until when each object has to be locked, from the points that need it. Memory: one line per pack."""

    def __init__(self, policy: LockPolicy | None, now: dt.datetime) -> None:
        self._policy, self._now = policy, now
        self._ends: dict[str, tuple[dt.datetime, dt.datetime | None]] = {}
        self._by_point: dict[str, tuple[dt.datetime, dt.datetime | None]] = {}
        self.points = 0
        self.furthest: dt.datetime | None = None
        self.promised: PointName | None = None

    def add(self, name: PointName, root: Root) -> None:
        self.points += 1
        promised = root.body.locked_until
        until = promised
        if self._policy is not None:
            asked = lock_until(self._policy, root.body.ended_at, root.body.retention_days)
            until = asked if promised is None else max(asked, promised)
        if until is None or until <= self._now:
            return
        if promised is not None and promised > self._now:
            self.promised = name
        self.furthest = until if self.furthest is None else max(until, self.furthest)
        self._by_point[f"{name.series}/{name.point}"] = until, promised
        for pack in root.needed:
            self._raise(pack_key(pack.kind, pack.name), until, promised)
        for part in ("root", "commit"):
            self._raise(point_key(*name, part), until, promised)

    def due(self, vault: Vault) -> list[Due]:
        """Return all that has to be locked; keys, vault.json and the policies as long as the furthest point."""
        assert self._policy is not None
        for move in vault.moves.committed:
            for point in move.points:
                if point in self._by_point:
                    for part in ("move", "commit"):
                        self._raise(move_key(move.run, part), self._by_point[point][0], None)
        base = lock_until(self._policy, self._now)
        base = max(base, self.furthest or base)
        keys = base_keys(vault)
        return [Due(key, base) for key in keys] + [Due(key, *ends) for key, ends in sorted(self._ends.items())]

    def _raise(self, key: str, until: dt.datetime, promised: dt.datetime | None) -> None:
        known, told = self._ends.get(key, (until, promised))
        if told is not None and promised is not None:
            promised = max(told, promised)
        self._ends[key] = max(known, until), promised or told


class _Seen(NamedTuple):
    """What looking at one object's lock showed."""

    lengthened: bool
    found: list[Finding]


def _secure(vault: Vault, due: Due) -> _Seen:
    """Make one object's lock as long as it has to be."""
    try:
        before = vault.storage.locked_until(due.key)
        if before is not None and before >= due.until:
            return _Seen(False, [])
        vault.storage.extend_lock(due.key, until=due.until)
        after = vault.storage.locked_until(due.key)
    except NotFound:
        detail = "it is gone, and a point needs it"
        return _Seen(False, [Finding(object=due.key, kind="gone", detail=detail)])
    except Forbidden as error:
        return _Seen(False, [Finding(object=due.key, kind="refused", detail=str(error))])
    if after is None or after < due.until:
        return _Seen(False, [Finding(object=due.key, kind="refused", detail="the store does not keep its lock")])
    if due.promised is not None and (before is None or before < due.promised):
        detail = f"locked until {_shown(before)} instead of {_shown(due.promised)}"
        return _Seen(True, [Finding(object=due.key, kind="short", detail=detail, repaired=True)])
    return _Seen(True, [])


def _look_at_points(vault: Vault, needs: _Needs, found: list[Finding], progress: Progress) -> None:
    for name in vault.points():
        progress.check()
        try:
            needs.add(name, vault.root(name))
        except PointMissing:
            continue  # expired since the LIST
        except IntegrityError as error:
            found.append(Finding(object=point_key(*name, "root"), kind="point", detail=str(error)))


def _look_at_policies(vault: Vault, policy: LockPolicy | None, needs: _Needs, now: dt.datetime) -> list[Finding]:
    """Find forged policies, and a policy that is gone while something of the vault is still locked by it."""
    found = _forged(vault, POLICIES, "policy", "it is forged or damaged, and counts for nothing")
    if policy is None:
        end = vault.storage.locked_until(INFO_KEY)
        if needs.promised is not None or (end is not None and end > now):
            detail = "the vault was locked and has no policy any more: new points are not locked; lock it again"
            found.append(Finding(object=POLICIES, kind="policy", detail=detail))
    return found


def _forged(vault: Vault, prefix: str, kind: str, detail: str) -> list[Finding]:
    found = []
    for stored in vault.storage.scan(prefix):
        try:
            vault.keys.verify(stored.key, vault.storage.get(stored.key))
        except NotFound:
            continue  # deleted since the LIST
        except IntegrityError:
            found.append(Finding(object=stored.key, kind=kind, detail=detail))
    return found


def _try_canary(vault: Vault, job: AuditJob, found: list[Finding], now: dt.datetime) -> bool:
    """Lock an object for a day and attack it; say whether it held. A store without object lock has none."""
    bare = bare_storage(vault.storage)
    if not isinstance(bare, Attackable):
        return False
    for attempt in range(1, _CANARY_ATTEMPTS + 1):
        key = f"{CANARIES}{job.session}-{attempt}"
        try:
            broken = canary(bare, key, until=now + dt.timedelta(hours=CANARY_HOURS))
        except StorageError as error:
            if not error.transient or attempt == _CANARY_ATTEMPTS:
                raise
            continue
        found += [Finding(object=key, kind="canary", detail=sentence) for sentence in broken]
        return not broken
    return False


def _clean(vault: Vault, now: dt.datetime) -> None:
    """Delete canaries and notes of the ledger that are over, merge the others; what is still locked stays."""
    canaries = [stored.key for stored in vault.storage.scan(CANARIES)]
    ledger = Ledger.load(vault.storage, vault.keys, since=now)
    vault.storage.delete(canaries + ledger.ended)
    ledger.merge(vault)


def _take(outcome: Outcome, summary: Summary) -> None:
    outcome.days, outcome.level, outcome.is_proven = summary.days, summary.level, summary.is_proven
    outcome.points, outcome.furthest = summary.points, summary.furthest


def _of_uncovered(one: Uncovered) -> Finding:
    kind = "hidden" if one.hidden else "covered"
    return Finding(object=one.object, kind=kind, detail=one.detail, repaired=one.repaired)


def _shown(moment: dt.datetime | None) -> str:
    return moment.isoformat() if moment else "never"
