"""Delete the packs that no point needs (vault-format, section 6): plan -> work -> finish.

A prune never waits for hours. When sessions still run that were open when it condemned, it ends and says whom it waits
for; the next prune goes on with every run that can. The plan changes nothing: a dry run is the plan's last unit.

It refuses to run on an inconsistent vault (engine invariant 18): an unreadable root, a pack that a visible point needs
and the store does not hold, a listing that does not decode. A pack counts as garbage only when no session that may
have written it still runs: that spares others from storing its chunks again, and safety does not rest on it.
"""

import contextlib
import datetime as dt
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import msgspec

from engine.damage import clear_damaged, damaged_packs
from engine.errors import IntegrityError, NotFound, PointMissing
from engine.ids import FOLDERS, pack_key
from engine.ledger import Ledger, Reading, point_states
from engine.links import is_mirror
from engine.point import PackRef, point_key
from engine.progress import Progress
from engine.session import LEASE_S, PRUNE_PREFIX, fence, open_sessions, put_note, read_names, read_note, running
from engine.storage import Directory, Retrying
from engine.vault import PointName, Vault
from engine.verbs import sweep
from engine.verbs.findings import Finding, block_key, pack_name
from engine.verbs.inspect import Blocks, unverified_points
from engine.verbs.merge import listed_packs, merge_index
from engine.verbs.needs import Known, look, missing_packs, parts_of_points
from engine.verbs.resolve import Resolved, resolve

UNIT_BLOCKS = 64
PACKS_MAX = 100_000
LOCKS = "locks/"
MARK = 16
_ASKERS = 8
SEEN_PREFIX = f"{PRUNE_PREFIX}seen/"


class PruneJob(msgspec.Struct, frozen=True, kw_only=True):
    """`run` is a fresh ULID for every run. A session is taken for dead when its last sign of life is `lease_s` old.

    At most `packs_max` packs are condemned; the next prune takes the rest.
    """

    run: str
    started_at: dt.datetime
    lease_s: int = LEASE_S
    packs_max: int = PACKS_MAX
    dry_run: bool = False


class Look(msgspec.Struct):
    """What the plan saw. No point needs the `unneeded` packs: `garbage` is to be condemned, `fresh` ones wait
    until the `sessions` that run have ended, `locked` ones until their locks have, the last at `locked_until`.

    `dead` are sessions to fence. `points` are those whose needs were looked at, `moves` those that counted. `checked`
    are points, as the ledger spells them, whose structure this prune checks. `idle_damage` are packs noted as damaged
    that are neither needed nor there any more. `present` are all packs, by the first MARK letters of their names.
    """

    packs: int
    bytes: int
    unneeded: int
    bytes_unneeded: int
    garbage: list[PackRef]
    fresh: int
    sessions: list[str]
    dead: list[str]
    points: list[PointName]
    moves: list[str]
    locked: int
    locked_until: dt.datetime | None = None
    checked: list[str] = []
    idle_damage: list[str] = []
    present: list[str] = []


class Unit(msgspec.Struct):
    """Blocks of a point whose structure no verification has seen yet, or, last, what the plan saw."""

    number: int
    series: str = ""
    point: str = ""
    blocks: list[int] = []
    found: list[Finding] = []
    look: Look | None = None

    @property
    def needs_work(self) -> bool:
        """Say whether a worker has anything to do."""
        return bool(self.blocks)


class Result(msgspec.Struct):
    """A unit done."""

    number: int
    series: str
    point: str
    found: list[Finding]
    look: Look | None = None


class Outcome(msgspec.Struct):
    """How a prune ended: complete; partial_complete when something waits, is locked or was refused; failed: refused.

    `packs_unneeded` and `bytes_unneeded` are what no point needs; `packs_waiting` of them may belong to a running
    session, `locked` ones are kept by the store. `waiting` are sessions, `stuck` runs whose decider was killed.
    `findings` say why the vault is inconsistent: then nothing was condemned or deleted.
    """

    state: str
    run: str
    packs: int = 0
    bytes: int = 0
    packs_unneeded: int = 0
    bytes_unneeded: int = 0
    packs_condemned: int = 0
    packs_deleted: int = 0
    bytes_freed: int = 0
    rescued: int = 0
    packs_waiting: int = 0
    locked: int = 0
    locked_until: dt.datetime | None = None
    refused: list[str] = []
    waiting: list[str] = []
    fenced: list[str] = []
    stuck: list[str] = []
    findings: list[Finding] = []
    resolved: Resolved = msgspec.field(default_factory=Resolved)
    segments_merged: int = 0
    temporary_removed: int = 0


class Seen(msgspec.Struct, frozen=True):
    """All packs that a look found (the first MARK letters of their names), and the sessions that ran before it.

    None of the packs was written by a session that opened later.
    """

    sessions: list[str]
    packs: list[str]


def plan(vault: Vault, job: PruneJob, progress: Progress, *, now: dt.datetime) -> Iterator[Unit]:
    """Check what no verification has checked, then look for what no point needs. Changes nothing.

    Raises FormatError for a vault that only a newer program may prune.
    """
    vault.know("prune")
    progress.phase("read")
    number = 0
    checked: list[str] = []
    for number, unit in enumerate(_unchecked(vault, progress, now, checked), 1):
        unit.number = number - 1
        yield unit
    seen, found = _look(vault, job, progress, now)
    seen.checked = checked
    yield Unit(number, found=found, look=seen)


def work(vault: Vault, job: PruneJob, unit: Unit, progress: Progress) -> Result:
    """Check the blocks of the unit. Only reads."""
    result = Result(unit.number, unit.series, unit.point, list(unit.found), unit.look)
    if not unit.blocks:
        return result
    name = PointName(unit.series, unit.point)
    try:
        blocks = Blocks(vault, name, vault.root(name))
    except PointMissing:
        return result  # expired since it was planned
    for number in unit.blocks:
        result.found += [finding for finding in blocks.check(number) if finding.damage == "listing"]
        progress.check()
    if result.found and not vault.is_visible(name):
        result.found = []
    return result


def finish(
    vault: Vault, job: PruneJob, results: Iterable[Result], progress: Progress, *, clock: Callable[[], dt.datetime]
) -> Outcome:
    """Refuse, or settle what others left, go on with open runs and begin a new one.

    Safe to run twice, and beside others. Raises what the store raises; a later prune goes on with what was begun.
    """
    outcome = Outcome("complete", job.run)
    seen: Look | None = None
    for result in results:
        outcome.findings += result.found
        seen = result.look or seen
        progress.check()
    assert seen is not None
    _tell(seen, outcome)
    if outcome.findings:
        outcome.state = "failed"
        return outcome
    Ledger(vault.storage, vault.keys).note(Reading(job.started_at, points=seen.checked))
    if job.dry_run:
        return outcome
    _settle(vault, seen, outcome, progress)
    now = clock()
    for run in sweep.unfinished(vault):
        _advance(vault, job, run, outcome, progress, now)
    _begin(vault, job, seen, outcome, progress, now)
    _tidy(vault, job, seen, outcome, progress)
    if outcome.waiting or outcome.stuck or outcome.refused or outcome.locked:
        outcome.state = "partial_complete"
    return outcome


def _unchecked(vault: Vault, progress: Progress, now: dt.datetime, checked: list[str]) -> Iterator[Unit]:
    """Yield the blocks of points whose structure no verification has seen, each distinct block once."""
    ledger = Ledger.load(vault.storage, vault.keys, now=now)
    distinct: set[bytes] = set()
    names = unverified_points(vault, ledger, vault.points())
    states = point_states(vault.moves, [f"{name.series}/{name.point}" for name in names])
    for name in names:
        progress.check()
        try:
            root = vault.root(name)
        except (PointMissing, IntegrityError):
            continue  # expired since the LIST, or told by the look at all roots
        checked.append(states[f"{name.series}/{name.point}"])
        todo = []
        for number in range(len(root.body.blocks)):
            key = block_key(root, number)
            if key not in distinct:
                distinct.add(key)
                todo.append(number)
        for at in range(0, len(todo), UNIT_BLOCKS):
            yield Unit(0, series=name.series, point=name.point, blocks=todo[at : at + UNIT_BLOCKS])


def _look(vault: Vault, job: PruneJob, progress: Progress, now: dt.datetime) -> tuple[Look, list[Finding]]:
    """Find what no point needs, and what visible points need and is not there."""
    alive: list[str] = []
    dead: list[str] = []
    # Sessions before packs: what an ended session wrote is in the LIST.
    for name in open_sessions(vault.storage):
        is_dead = running(vault.storage, vault.keys, name).is_dead(now, lease_s=job.lease_s)
        (dead if is_dead else alive).append(name)
    present: dict[str, PackRef] = {}
    for kind, folder in enumerate(FOLDERS):
        for stored in vault.storage.scan(f"{folder}/"):
            progress.check()
            if name := pack_name(stored.key):
                present[name] = PackRef(name, kind, stored.size)
    sizes = {name: pack.size for name, pack in present.items()}
    spared = _spared(vault)  # after the LIST of the packs: what came from the source since is not in that
    needs = look(vault, progress)
    found = missing_packs(vault, needs, sizes)
    if found:  # a point may have been expired and its packs deleted in between
        needs = look(vault, progress)
        found = missing_packs(vault, needs, sizes)
    found += needs.unreadable
    unneeded = [present[name] for name in sorted(present.keys() - needs.packs.keys() - spared)]
    locked = _locked(vault, unneeded, now)
    taken = _in_open_runs(vault) | {pack.name for pack, _ in locked}
    free = [pack for pack in unneeded if pack.name not in taken]
    fresh = _fresh(vault, free, set(alive))
    return Look(
        packs=len(present),
        bytes=sum(sizes.values()),
        unneeded=len(unneeded),
        bytes_unneeded=sum(pack.size for pack in unneeded),
        garbage=[pack for pack in free if pack.name not in fresh][: job.packs_max],
        fresh=len(fresh),
        sessions=alive,
        dead=dead,
        points=needs.points,
        moves=needs.moves,
        locked=len(locked),
        locked_until=max((until for _, until in locked), default=None),
        idle_damage=sorted(damaged_packs(vault.storage) - needs.packs.keys() - present.keys()),
        present=sorted({name[:MARK] for name in present}),
    ), found


def _spared(vault: Vault) -> set[str]:
    """Return the packs that the source of a replica has, none elsewhere: a point that is not here yet may need them.

    A pack that is gone from the source comes back under no point. Raises VaultReadOnly when the source was not named.
    """
    if not is_mirror(vault.storage, vault.keys):
        return set()
    return {pack_name(stored.key) for stored in vault.across().stored_packs()}


def _locked(vault: Vault, packs: list[PackRef], now: dt.datetime) -> list[tuple[PackRef, dt.datetime]]:
    """Return the packs whose lock is in force, with its end; vaults that never were immutable are not asked."""
    if not any(True for _ in vault.storage.scan(LOCKS)):
        return []
    locked = []
    with ThreadPoolExecutor(_ASKERS, "locks") as askers:
        for pack, until in zip(packs, askers.map(lambda pack: _lock_end(vault, pack), packs), strict=True):
            if until is not None and until > now:
                locked.append((pack, until))
    return locked


def _lock_end(vault: Vault, pack: PackRef) -> dt.datetime | None:
    try:
        return vault.storage.locked_until(pack_key(pack.kind, pack.name))
    except NotFound:
        return None


def _in_open_runs(vault: Vault) -> set[str]:
    """Return the packs that a run which can still go on has condemned already."""
    names: set[str] = set()
    for run, parts in sweep.run_parts(vault).items():
        if "condemned" in parts and not sweep.is_stuck(parts):
            with contextlib.suppress(NotFound):
                names.update(read_names(vault.storage, vault.keys, f"{PRUNE_PREFIX}{run}/condemned"))
    return names


def _fresh(vault: Vault, packs: list[PackRef], alive: set[str]) -> set[str]:
    """Return the packs that a running session may have written: no earlier look saw them, or only beside it."""
    if not alive or not packs:
        return set()
    old: set[str] = set()
    for _, seen in _looks(vault):
        if alive.isdisjoint(seen.sessions):
            old.update(seen.packs)
    return {pack.name for pack in packs if pack.name[:MARK] not in old}


def _looks(vault: Vault) -> Iterator[tuple[str, Seen]]:
    """Yield the notes of earlier looks, with their keys."""
    for stored in vault.storage.scan(SEEN_PREFIX):
        with contextlib.suppress(NotFound):
            yield stored.key, read_note(vault.storage, vault.keys, stored.key, Seen)


def _tell(seen: Look, outcome: Outcome) -> None:
    outcome.packs, outcome.bytes = seen.packs, seen.bytes
    outcome.packs_unneeded, outcome.bytes_unneeded = seen.unneeded, seen.bytes_unneeded
    outcome.locked, outcome.locked_until = seen.locked, seen.locked_until
    outcome.packs_waiting = seen.fresh


def _settle(vault: Vault, seen: Look, outcome: Outcome, progress: Progress) -> None:
    """Fence the dead, then settle what they left."""
    progress.phase("settle")
    for name in seen.dead:
        if name in open_sessions(vault.storage):
            fence(vault.storage, vault.keys, name)
            outcome.fenced.append(name)
    outcome.resolved = resolve(vault, progress)


def _begin(vault: Vault, job: PruneJob, seen: Look, outcome: Outcome, progress: Progress, now: dt.datetime) -> None:
    """Begin a run of its own, when there is anything to condemn or to retire."""
    retire = _retirable(vault)
    if not seen.garbage and not retire:
        return
    progress.phase("condemn")
    sweep.condemn(vault, job.run, seen.garbage, Known(seen.points, seen.moves), retire)
    outcome.packs_condemned = len(seen.garbage)
    _advance(vault, job, job.run, outcome, progress, now)


def _advance(vault: Vault, job: PruneJob, run: str, outcome: Outcome, progress: Progress, now: dt.datetime) -> None:
    swept = sweep.advance(vault, run, progress, now=now, lease_s=job.lease_s)
    outcome.packs_deleted += len(swept.deleted)
    outcome.bytes_freed += swept.bytes_freed
    outcome.rescued += swept.rescued
    outcome.refused += [f"{refusal.key}: {refusal.reason}" for refusal in swept.refused]
    outcome.waiting += [name for name in swept.waiting if name not in outcome.waiting]
    outcome.fenced += swept.fenced
    outcome.stuck += [run] if swept.stuck else []


def _retirable(vault: Vault) -> list[str]:
    """Return the notes that may go after one more barrier: tombstones that no segment names, `expired` of points gone.

    A damaged segment may name anything, and be whole in somebody's cache.
    """
    keys = []
    listed = listed_packs(vault)
    for run, parts in sweep.run_parts(vault).items():
        key = f"{PRUNE_PREFIX}{run}/tombstones"
        if vault.index.damaged or parts != {"tombstones", "done"}:
            continue
        if listed.isdisjoint(read_names(vault.storage, vault.keys, key)):
            keys += [key, f"{PRUNE_PREFIX}{run}/done"]
    gone = [name for name, parts in parts_of_points(vault.storage).items() if parts == {"expired"}]
    if gone and is_mirror(vault.storage, vault.keys):  # what the source still shows must not come back
        shown = set(vault.across().points())
        gone = [name for name in gone if name not in shown]
    return keys + [point_key(*name, "expired") for name in gone]


def _tidy(vault: Vault, job: PruneJob, seen: Look, outcome: Outcome, progress: Progress) -> None:
    """Note what is there for the next prune, shrink the index, drop what no longer means anything."""
    progress.phase("merge")
    alive = set(seen.sessions)
    # Beside the new note, the newest one of before the sessions that run: only it tells what they did not write.
    usable = [key for key, look in _looks(vault) if alive and alive.isdisjoint(look.sessions)]
    earlier = sorted({stored.key for stored in vault.storage.scan(SEEN_PREFIX)} - {max(usable, default="")})
    if seen.present:
        put_note(vault.storage, vault.keys, SEEN_PREFIX + job.run, Seen(seen.sessions, seen.present))
    if earlier:
        vault.storage.delete([key for key in earlier if key != SEEN_PREFIX + job.run])
    buried: set[str] = set()
    for run, parts in sweep.run_parts(vault).items():
        if parts == {"tombstones", "done"}:
            buried.update(read_names(vault.storage, vault.keys, f"{PRUNE_PREFIX}{run}/tombstones"))
    merged = merge_index(vault, progress, drop=buried)
    outcome.segments_merged = merged.segments_before - merged.segments_after
    clear_damaged(vault.storage, seen.idle_damage)
    inner = vault.storage.inner if isinstance(vault.storage, Retrying) else vault.storage
    if isinstance(inner, Directory):
        outcome.temporary_removed = inner.sweep_temporary()
