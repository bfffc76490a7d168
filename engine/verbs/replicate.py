"""Bring the points of a vault into its replica: plan -> work -> finish (vault-format, Replicas).

The vault that the verb runs on is the replica; the one that it follows is reached across (Vault.across). No data is
decrypted: packs, roots and commits are copied as they are; a pack that is not what its name says is refused by the
store that takes it, or here where that store compares nothing (Storage.relay). A point becomes visible at the replica
as a backup's does: everything it needs first, a LIST that shows it whole, root, a look for a fence, commit.

It is a session of both vaults under one name. What another replication brought is found by LIST: an interrupted one
costs the difference of two sets. A replica's prune spares what the source still has (engine.verbs.prune), so that
nothing the next point needs is condemned there.
"""

import contextlib
import datetime as dt
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import wait

import msgspec

from engine import halt
from engine.damage import note_damaged
from engine.entries import Problem
from engine.errors import Altered, NotFound, StorageError, Superseded, VaultReadOnly
from engine.ids import named_digest, pack_key
from engine.links import is_mirror
from engine.point import PackRef
from engine.progress import Progress
from engine.session import Session
from engine.vault import PointName, Vault
from engine.verbs import arrive
from engine.verbs.arrive import Arrival
from engine.verbs.heal import Healed, heal
from engine.verbs.needs import parts_of_points

UNIT_BYTES = 256 << 20  # more packs than pass at once: at its end the last ones wait for each other
AT_ONCE = 6
LIFE_S = 0.5
POINTS_MAX = 1_000
COMMIT_POINTS = 16


class ReplicateJob(msgspec.Struct, frozen=True, kw_only=True):
    """`session` is a fresh ULID for every run; a retried run keeps it. At most `points_max` points are brought, oldest
    first; the next run brings the rest. `only` names some (`<series>/<point>`), none means all. `at_once` packs pass at
    the same time: one of them where the rate is limited, as several would each wait for the others and send nothing.
    Units end after `unit_bytes`.
    """

    session: str
    started_at: dt.datetime
    points_max: int = POINTS_MAX
    only: tuple[str, ...] = ()
    at_once: int = AT_ONCE
    unit_bytes: int = UNIT_BYTES


class Unit(msgspec.Struct):
    """Packs to copy. `complete` are the points of which this unit brings the last pack, or which need none."""

    number: int
    packs: list[PackRef]
    complete: list[Arrival]
    points_left: int = 0

    @property
    def needs_work(self) -> bool:
        """Say whether a worker has anything to do."""
        return bool(self.packs)


class Result(msgspec.Struct):
    """A unit done. `lost` tells of each pack that could not be brought why."""

    number: int
    complete: list[Arrival]
    lost: dict[str, str]
    packs: int = 0
    bytes: int = 0
    points_left: int = 0


class Outcome(msgspec.Struct):
    """How a replication ended: partial_complete when a point could not be brought, which `problems` tells.

    `latest_at` is when the newest point that is now at the replica was committed; `points_left` are for the next run.
    `bytes` are those of packs; those of roots, commits and the index are `bytes_control`.
    """

    state: str
    points: list[str] = []
    packs: int = 0
    bytes: int = 0
    bytes_control: int = 0
    problems: list[Problem] = []
    problems_total: int = 0
    points_left: int = 0
    latest_at: dt.datetime | None = None
    healed: Healed = msgspec.field(default_factory=Healed)


def plan(vault: Vault, job: ReplicateJob, progress: Progress, *, now: dt.datetime) -> Iterator[Unit]:
    """Compare the two vaults and yield what to copy, oldest points first.

    Raises VaultReadOnly when the vault is no replica or replication was stopped for good (E38).
    """
    if not is_mirror(vault.storage, vault.keys):
        raise VaultReadOnly("nothing is replicated into this vault: it is no replica, or replication was stopped")
    source = vault.across()
    progress.phase("scan")
    names = _missing(vault, source, job)
    left = max(len(names) - job.points_max, 0)
    names = names[: job.points_max]
    # Announced at the source before its points are read: none of them, and nothing they need, goes meanwhile.
    source.open_session(job.session, verb="replicate-out", now=now, points=names)
    session = vault.open_session(job.session, verb="replicate-in", now=now, points=names)
    present = arrive.whole_packs(vault)
    visible = set(source.points())
    number, packs, size = 0, list[PackRef](), 0
    ready: list[Arrival] = []
    for name in names:
        progress.check()
        if name not in visible:
            continue  # expired at the source since
        arrival = arrive.look(source, name, forbidden=session.forbidden)
        if arrival is None:
            continue
        for pack in arrival.needed if not arrival.problem else ():
            if present.get(pack.name) == pack.size:
                continue
            present[pack.name] = pack.size
            packs.append(pack)
            size += pack.size
            if size >= job.unit_bytes:
                yield Unit(number, packs, ready)
                number, packs, size, ready = number + 1, [], 0, []
        ready.append(arrival)
    yield Unit(number, packs, ready, left)


def work(vault: Vault, job: ReplicateJob, unit: Unit, progress: Progress) -> Result:
    """Pass on the unit's packs: none is held whole, or stored when it is not what its name says. Safe to run twice."""
    result = Result(unit.number, unit.complete, {}, points_left=unit.points_left)
    if not unit.needs_work:
        return result
    progress.phase("copy")
    progress.total(bytes=sum(pack.size for pack in unit.packs))
    source = vault.across()

    def copy(pack: PackRef) -> str:
        key = pack_key(pack.kind, pack.name)
        try:
            vault.storage.relay(key, source.storage, size=pack.size, sha256=named_digest(pack.name))
        except NotFound:
            return f"{key} is missing at the source"
        except Altered:
            return f"{key} is damaged at the source"
        return ""

    with halt.threads(job.at_once, "copy") as copiers:
        copies = [copiers.submit(copy, pack) for pack in unit.packs]
        try:
            for pack, copied in zip(unit.packs, copies, strict=True):
                while wait([copied], LIFE_S).not_done:  # of a slow line a pack can take minutes
                    progress.check()
                if problem := copied.result():
                    result.lost[pack.name] = problem
                else:
                    result.packs += 1
                    result.bytes += pack.size
                    progress.add(entries=1, bytes=pack.size, bytes_stored=pack.size)
                progress.check()
        finally:
            copiers.shutdown(wait=False, cancel_futures=True)
    return result


def finish(
    vault: Vault, job: ReplicateJob, results: Iterable[Result], progress: Progress, *, clock: Callable[[], dt.datetime]
) -> Outcome:
    """Make the points visible whose packs have come, while others are still on their way. Safe to run twice.

    At any moment each visible point of the replica is whole (engine invariant 21). Then heals what either vault has
    noted as damaged from the other.
    """
    coming = _Coming(vault, job)
    try:
        for result in results:
            coming.take(result, clock())
            progress.check()
        outcome = coming.end(progress, clock())
    except Superseded:
        raise
    except BaseException:
        coming.close("aborted", clock())
        raise
    coming.close("done", clock())
    return outcome


class _Coming:
    """Points on their way in, committed a few at a time: one LIST of the packs serves them all."""

    def __init__(self, vault: Vault, job: ReplicateJob) -> None:
        self._vault, self._source, self._job = vault, vault.across(), job
        self._session: Session | None = None
        self._ready: list[Arrival] = []
        self._lost: dict[str, str] = {}
        self._is_committing = False
        self._outcome = Outcome("complete")

    def take(self, result: Result, now: dt.datetime) -> None:
        outcome = self._outcome
        outcome.packs += result.packs
        outcome.bytes += result.bytes
        outcome.points_left += result.points_left
        self._lost |= result.lost
        self._ready += result.complete
        if len(self._ready) >= COMMIT_POINTS:
            self._commit(now)

    def end(self, progress: Progress, now: dt.datetime) -> Outcome:
        self._commit(now)
        # Also what an earlier run could not read.
        self._outcome.bytes_control += arrive.copy_segments(self._vault, self._source)
        if self._lost:
            with contextlib.suppress(StorageError):  # who may only read the source can't say so there
                note_damaged(self._source.storage, self._source.keys, sorted(self._lost))
        progress.phase("heal")
        self._outcome.healed = heal(self._vault, self._source, progress)
        return self._outcome

    def close(self, outcome: str, now: dt.datetime) -> None:
        """End the session of both vaults; one whose commit may have arrived stays open at the replica."""
        name = self._job.session
        Session(self._source.storage, self._source.keys, name).close(outcome, now)
        if not self._is_committing:
            Session(self._vault.storage, self._vault.keys, name).close(outcome, now)

    def _commit(self, now: dt.datetime) -> None:
        ready, self._ready = self._ready, []
        if not ready:
            return
        outcome = self._outcome
        if self._session is None:
            # The forbidden packs were looked at by the plan, when the session opened: none of these points needs one.
            self._session = self._vault.join_session(self._job.session, forbidden=set())
        standing = set(self._vault.points())  # what an earlier run of this has committed
        todo = [arrival for arrival in ready if arrival.name not in standing]
        outcome.bytes_control += arrive.copy_segments(self._vault, self._source)
        prepared = arrive.prepare(self._vault, self._source, self._session, todo, now=now)
        self._is_committing = True
        arrive.publish(self._vault, prepared)
        self._is_committing = False
        outcome.bytes_control += sum(one.bytes for one in prepared)
        failed = [arrival for arrival in todo if arrival.problem]
        for arrival in failed:
            lost = next((self._lost[pack.name] for pack in arrival.needed if pack.name in self._lost), arrival.problem)
            outcome.problems.append(Problem(arrival.shown.encode(), "damaged", lost))
            outcome.problems_total += 1
            outcome.state = "partial_complete"
        done = [arrival for arrival in ready if arrival not in failed]
        outcome.points += [arrival.shown for arrival in done]
        ends = [arrival.committed_at for arrival in done if arrival.committed_at is not None]
        outcome.latest_at = max([*ends, *filter(None, [outcome.latest_at])], default=None)


def _missing(vault: Vault, source: Vault, job: ReplicateJob) -> list[PointName]:
    """Return the points that the replica lacks, oldest first; what was expired there does not come back."""
    here = {name for name, parts in parts_of_points(vault.storage).items() if {"root", "commit"} <= parts}
    gone = {name for name, parts in parts_of_points(vault.storage).items() if "expired" in parts}
    names = [name for name in source.points() if name not in here | gone]
    if job.only:
        names = [name for name in names if f"{name.series}/{name.point}" in job.only]
    return sorted(names, key=lambda name: name.point)
