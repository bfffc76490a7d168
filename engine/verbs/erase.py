"""Delete a whole vault, and nothing that a lock protects (E41, B6): plan -> work -> finish.

As long as one root is locked nothing at all is deleted: its point stays readable, with the keys, moves and segments
that need no lock of their own. When no root is, everything goes whose lock has ended, by version. vault.json and the
keys go last, and only when nothing else is left, so that an erase which a lock or a crash ended is done again later.

vault.json goes before the keys: what has no vault.json is no vault any more, and `remove_rest` removes what a crash
left of it. Points that are not locked among points that are: expire them and prune; an erase does all or nothing.
"""

import datetime as dt
from collections.abc import Callable, Iterable, Iterator
from itertools import islice

import msgspec

from engine.errors import EngineError, NotFound
from engine.keysets import KEYS
from engine.locks import PREFIX as LOCKS
from engine.locks import Ledger, in_threads
from engine.point import PREFIX as POINTS
from engine.progress import Progress
from engine.session import LEASE_S, fence, open_sessions, running
from engine.storage.port import Refusal, Storage, history_of
from engine.vault import INFO_KEY, Vault

UNIT_KEYS = 500
_BATCH = 1000
_LAST = (INFO_KEY, KEYS, LOCKS)
_CONTENTS = (INFO_KEY, POINTS, "packs/", "meta/")


class EraseRefused(EngineError):
    """The order names another vault, or what is there is not the rest of one."""


class EraseJob(msgspec.Struct, frozen=True, kw_only=True):
    """`vault_id` is the id of the vault that is meant: another one is never touched.

    A session is taken for dead when its last sign of life is `lease_s` old.
    """

    vault_id: str
    started_at: dt.datetime
    lease_s: int = LEASE_S
    dry_run: bool = False


class Unit(msgspec.Struct):
    """Objects whose locks are to be looked at: (key, version), version empty where the store keeps none."""

    number: int
    objects: list[tuple[str, str]]

    @property
    def needs_work(self) -> bool:
        """Say whether a worker has anything to do."""
        return bool(self.objects)


class Result(msgspec.Struct):
    """A unit done: the latest end of a lock on a root, and on anything that was looked at."""

    number: int
    root_until: dt.datetime | None = None
    until: dt.datetime | None = None


class Outcome(msgspec.Struct):
    """How an erase ended: complete: nothing is left; partial_complete: something is locked or must wait.

    `locked_until` is when the last lock that is known of ends: then it can be done again. `refused` are objects that
    the store did not delete, `waiting` sessions that run. A dry run deletes nothing and counts what would go.
    """

    state: str
    locked_until: dt.datetime | None = None
    objects_deleted: int = 0
    bytes_freed: int = 0
    refused: list[str] = []
    waiting: list[str] = []
    fenced: list[str] = []


def plan(vault: Vault, job: EraseJob, progress: Progress, *, now: dt.datetime) -> Iterator[Unit]:
    """Yield the objects of points, keys and vault.json, also hidden ones, to look at their locks. Changes nothing.

    Raises EraseRefused for another vault than the one that is meant, FormatError for one of a newer program.
    """
    vault.know("prune")
    if job.vault_id != vault.info.vault_id:
        raise EraseRefused(f"this is the vault {vault.info.vault_id}, and {job.vault_id or 'none'} is to be erased")
    progress.phase("read")
    objects = (one for prefix in (POINTS, *_LAST) for one in _versions(vault.storage, prefix))
    number = 0
    while batch := list(islice(objects, UNIT_KEYS)):
        yield Unit(number, batch)
        number += 1


def work(vault: Vault, job: EraseJob, unit: Unit, progress: Progress) -> Result:
    """Look at the locks of the unit's objects."""
    progress.check()
    result = Result(unit.number)
    history = history_of(vault.storage)
    versions = {f"{key} {version}": (key, version) for key, version in unit.objects}

    def lock(name: str) -> dt.datetime | None:
        key, version = versions[name]
        try:
            return history.version_locked_until(key, version) if history else vault.storage.locked_until(key)
        except NotFound:
            return None

    for (key, _), end in zip(versions.values(), in_threads(lock, list(versions)), strict=True):
        if end is not None:
            result.until = max(end, result.until or end)
        if end is not None and key.startswith(POINTS):
            result.root_until = max(end, result.root_until or end)
    progress.add(entries=len(unit.objects))
    return result


def finish(
    vault: Vault, job: EraseJob, results: Iterable[Result], progress: Progress, *, clock: Callable[[], dt.datetime]
) -> Outcome:
    """Delete what may go, unless a point is locked or a session runs.

    Crash: leaves fewer objects and a vault that still opens, or, in its last call, keys without vault.json.
    """
    done = list(results)
    now = clock()
    outcome = Outcome("partial_complete", locked_until=_locked_until(vault, done, now))
    if any(result.root_until and result.root_until > now for result in done):
        return outcome
    for name in open_sessions(vault.storage):
        if not running(vault.storage, vault.keys, name).is_dead(now, lease_s=job.lease_s):
            outcome.waiting.append(name)
        elif not job.dry_run:
            fence(vault.storage, vault.keys, name)
            outcome.fenced.append(name)
    if outcome.waiting:
        return outcome
    progress.phase("delete")
    refusals = _delete(vault.storage, job, outcome, progress)
    if job.dry_run:
        outcome.state = "partial_complete" if outcome.locked_until else "complete"
        return outcome
    held = [end for refusal in refusals if (end := _end_of_lock(vault.storage, refusal.key))]
    outcome.locked_until = max([*held, *([outcome.locked_until] if outcome.locked_until else [])], default=None)
    if refusals or (outcome.locked_until and outcome.locked_until > now):
        outcome.refused = [f"{refusal.key}: {refusal.reason}" for refusal in refusals]
        return outcome
    return _delete_last(vault.storage, outcome)


def remove_rest(storage: Storage) -> list[Refusal]:
    """Remove what an erase left that ended after vault.json went. Safe to call when nothing is left.

    Raises EraseRefused when vault.json is still there, or was only hidden, or there are points or packs.
    """
    keys = sorted({key for key, _ in _versions(storage, "")})
    if kept := [key for key in keys if key.startswith(_CONTENTS)]:
        raise EraseRefused(f"this is more than the rest of an erased vault: there is {kept[0]}")
    return storage.delete(keys)


def _versions(storage: Storage, prefix: str) -> Iterator[tuple[str, str]]:
    """Yield every object below the prefix as (key, version), also those that a delete marker hides."""
    history = history_of(storage)
    if history is None:
        for stored in storage.scan(prefix):
            yield stored.key, ""
        return
    for version in history.versions(prefix):
        if not version.marker:
            yield version.key, version.version_id


def _locked_until(vault: Vault, results: list[Result], now: dt.datetime) -> dt.datetime | None:
    """Return when the last lock in force ends: of what was looked at, and of packs as the ledger tells."""
    packs = Ledger.load(vault.storage, vault.keys, since=now).until.values()
    ends = [end for end in [*(result.until for result in results), *packs] if end is not None and end > now]
    return max(ends, default=None)


def _end_of_lock(storage: Storage, key: str) -> dt.datetime | None:
    try:
        return storage.locked_until(key)
    except NotFound:
        return None


def _delete(storage: Storage, job: EraseJob, outcome: Outcome, progress: Progress) -> list[Refusal]:
    """Delete all but what goes last, points first, so that none is visible whose packs are gone."""
    refusals: list[Refusal] = []
    for prefix in (POINTS, ""):
        sizes = {stored.key: stored.size for stored in storage.scan(prefix)}
        keys = sorted({key for key, _ in _versions(storage, prefix)} | set(sizes))
        doomed = [key for key in keys if not key.startswith(_LAST) and (prefix or not key.startswith(POINTS))]
        progress.total(entries=len(doomed), bytes=sum(sizes.get(key, 0) for key in doomed))
        for at in range(0, len(doomed), _BATCH):
            progress.check()
            batch = doomed[at : at + _BATCH]
            refused = [] if job.dry_run else storage.delete(batch)
            refusals += refused
            kept = {refusal.key for refusal in refused}
            outcome.objects_deleted += len(batch) - len(kept)
            outcome.bytes_freed += sum(sizes.get(key, 0) for key in batch if key not in kept)
            progress.add(entries=len(batch))
    return refusals


def _delete_last(storage: Storage, outcome: Outcome) -> Outcome:
    """Delete vault.json, then the keys and policies: from the first call on there is no vault."""
    last = sorted({key for prefix in _LAST for key, _ in _versions(storage, prefix)})
    refusals = storage.delete([INFO_KEY]) or storage.delete([key for key in last if key != INFO_KEY])
    outcome.refused = [f"{refusal.key}: {refusal.reason}" for refusal in refusals]
    outcome.objects_deleted += len(last) - len(refusals)
    outcome.state = "partial_complete" if refusals else "complete"
    return outcome
