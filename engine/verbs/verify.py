"""Prove by reading that a vault holds what its points need (vault-format, section 9): plan -> work -> finish.

Levels and what each reads:

inventory   roots and commits of the points; LIST of everything; every pack that a point needs is there in its size
structure   inventory, and all listings, the index, the notes of sessions and prunes; no data pack
footers     structure, and both ends of every pack that a point needs, compared with the index
scrub       inventory, and every byte of every object that is named by its SHA-256, whether a point needs it or not;
            needs no key beyond what inventory needs: `scrub_units` and `inspect.scrub` do it with the bucket alone
content     footers, and every byte of every pack that a point needs: its name, every slot, every chunk's full id

A verification only reads, but for its session, which makes a prune wait, and for what it leaves behind (verbs.record):
notes of what was read, and of packs that are damaged. Scrub and content can be spread over many runs: each reads what
waits longest.
"""

import datetime as dt
from collections.abc import Callable, Iterable, Iterator
from typing import Literal, TypeVar, get_args

import msgspec

from engine.errors import PointMissing, Superseded
from engine.ids import FOLDERS, SEGMENTS, pack_key
from engine.keysets import KEYS
from engine.ledger import PREFIX as LEDGER
from engine.ledger import Coverage, Ledger
from engine.locks import PREFIX as LOCKS
from engine.moves import PREFIX as MOVES
from engine.pack import HEADER_BYTES
from engine.point import PREFIX as POINTS
from engine.point import PackRef, Root, point_key
from engine.progress import Progress
from engine.session import DAMAGED_PREFIX, PRUNE_PREFIX, Session
from engine.session import PREFIX as SESSIONS
from engine.storage.port import Storage, Stored
from engine.vault import INFO_KEY, PointName, Vault
from engine.verbs.findings import Affected, Finding, block_key, pack_name
from engine.verbs.hold import PREFIX as HOLDS
from engine.verbs.inspect import (
    Blocks,
    Packs,
    check_control,
    check_segment,
    last_part,
    open_unbound,
    read_points,
    scrub,
    sha_name,
    where_damaged,
)
from engine.verbs.record import Found, record
from engine.verbs.timeguard import PREFIX as EXPIRY
from engine.verbs.turns import DAYS, choose

T = TypeVar("T")
Level = Literal["inventory", "structure", "footers", "scrub", "content"]
LISTINGS: tuple[Level, ...] = ("structure", "footers", "content")
WHOLE: tuple[Level, ...] = ("scrub", "content")
UNIT_BYTES = 256 << 20
UNIT_OBJECTS = 2_000
UNIT_BLOCKS = 64
_ENDS_BYTES = (64 << 10) + HEADER_BYTES
_KNOWN = (
    INFO_KEY, KEYS, POINTS, SESSIONS, PRUNE_PREFIX, SEGMENTS, *(f"{folder}/" for folder in FOLDERS),
    DAMAGED_PREFIX, MOVES, EXPIRY, HOLDS, LOCKS, LEDGER, "staging/", "system/", "canary/",
)  # fmt: skip
_CONTROLS = (SESSIONS, PRUNE_PREFIX, DAMAGED_PREFIX, MOVES, EXPIRY, HOLDS, LOCKS)


class VerifyJob(msgspec.Struct, frozen=True, kw_only=True):
    """What to verify. `session` is a fresh ULID for every run; `points` are ids, none means all visible points.

    Scrub and content read what waits longest: with `days` as much as a daily run must read so that every byte is read
    within so many days, with `bytes_max` until so much is read; 0 means all.
    """

    session: str
    level: Level
    started_at: dt.datetime
    points: tuple[str, ...] = ()
    days: int = 0
    bytes_max: int = 0


class Census(msgspec.Struct):
    """What the LIST showed. Counts of objects that are no damage: `unreferenced` packs (a prune's work),
    `unfinished` points (a backup that runs or died, an expiry half done), `unknown` objects (not ours).
    """

    points: int = 0
    packs: int = 0
    unreferenced: int = 0
    unreferenced_bytes: int = 0
    unfinished: int = 0
    unknown: int = 0


class Unit(msgspec.Struct):
    """A piece of work: blocks of one point, or packs, or other objects. What plan itself found travels along.

    `rooted` are the points, as `<series>/<point>`, whose roots are whole and whose blocks are in the run's units.
    """

    number: int
    series: str = ""
    point: str = ""
    blocks: list[int] = []
    packs: list[PackRef] = []
    objects: list[tuple[str, int]] = []
    found: list[Finding] = []
    census: Census | None = None
    rooted: list[str] = []

    @property
    def needs_work(self) -> bool:
        """Say whether a worker has anything to do."""
        return bool(self.blocks or self.packs or self.objects)


class Result(msgspec.Struct):
    """A unit done. `whole` are names of objects of which every byte was read and is right.

    `unchecked` blocks belonged to a point that expired meanwhile; other points may have them, too.
    """

    number: int
    found: list[Finding]
    objects: int = 0
    bytes: int = 0
    blocks: int = 0
    census: Census | None = None
    whole: list[str] = []
    rooted: list[str] = []
    unchecked: int = 0


class Outcome(msgspec.Struct):
    """How a verification ended: `state` is complete when nothing is wrong, failed when anything is.

    Damage is never partial_complete: nothing was left out, and whoever relies on the vault must be told. `objects` and
    `bytes` count what was read, listing blocks apart; `lost` are the visible points that some finding affects.
    `damaged` are all packs noted as damaged now, `healed` those whose note went, because they are whole again.
    `coverage` says what of the vault was read in the last days; None when only some points were verified.
    """

    state: str
    level: Level
    findings: list[Finding]
    objects: int
    bytes: int
    blocks: int
    lost: list[str]
    census: Census
    damaged: list[str] = []
    healed: list[str] = []
    coverage: Coverage | None = None


def plan(vault: Vault, job: VerifyJob, progress: Progress, *, now: dt.datetime) -> Iterator[Unit]:
    """Read all roots, yield their listings' blocks as units, then LIST the bucket and yield its objects.

    Opens the session. Raises PointMissing for an unknown point, FormatError for what a newer program wrote.
    """
    if job.level not in get_args(Level):
        raise ValueError(f"there is no level {job.level!r}: use one of {', '.join(get_args(Level))}")
    if min(job.days, job.bytes_max) < 0 or (max(job.days, job.bytes_max) and job.level not in WHOLE):
        raise ValueError("days and bytes_max spread what the levels scrub and content read: leave them at 0")
    planner = _Planner(vault, job, progress)
    planner.open_session(now)
    progress.phase("read")
    yield from planner.points()
    yield from planner.objects()


def work(vault: Vault, job: VerifyJob, unit: Unit, progress: Progress) -> Result:
    """Check what the unit names. Only reads, so it is safe to run twice; uses one core, and memory for one pack."""
    result = Result(unit.number, list(unit.found), census=unit.census, rooted=unit.rooted)
    if unit.blocks:
        _check_blocks(vault, unit, result, progress)
    packs = Packs(vault) if unit.packs else None
    for pack in unit.packs:
        assert packs is not None
        whole = job.level == "content"
        found = packs.check_content(pack) if whole else packs.check_footer(pack)
        if whole and not any(pack_name(finding.object) for finding in found):
            result.whole.append(pack.name)
        result.found += found
        _count(result, pack.size if whole else min(pack.size, _ENDS_BYTES), progress)
    for key, size in unit.objects:
        finding = _check_object(vault, job.level, key, size)
        if finding is not None:
            result.found.append(finding)
        elif job.level == "scrub":
            result.whole.append(last_part(key))
        _count(result, size, progress)
    return result


def finish(
    vault: Vault, job: VerifyJob, results: Iterable[Result], progress: Progress, *, clock: Callable[[], dt.datetime]
) -> Outcome:
    """Gather the findings, tell what they affect, note what was read and what is damaged, close the session.

    Safe to run twice.
    """
    session = Session(vault.storage, vault.keys, job.session)
    try:
        outcome = Outcome("complete", job.level, [], 0, 0, 0, [], Census())
        whole: list[str] = []
        rooted: list[str] = []
        unchecked = 0
        for result in results:
            whole += result.whole
            rooted += result.rooted
            unchecked += result.unchecked
            outcome.findings += result.found
            outcome.objects += result.objects
            outcome.bytes += result.bytes
            outcome.blocks += result.blocks
            outcome.census = result.census or outcome.census
            progress.check()
        if outcome.findings:
            _conclude(vault, job, outcome, progress)
        found = Found(job.started_at, whole, [] if unchecked else rooted, outcome.findings, is_all=not job.points)
        recorded = record(vault, found, clock(), notes_sight=job.level in WHOLE, days=job.days or DAYS)
        outcome.damaged, outcome.healed, outcome.coverage = recorded
    except Superseded:
        raise
    except BaseException:
        session.close("aborted", clock())
        raise
    session.close("done", clock())
    return outcome


def scrub_units(storage: Storage, *, number: int = 0) -> Iterator[Unit]:
    """Yield units of every object that is named by its SHA-256; needs no key and opens no session."""
    yield from _cut_objects((s for s in storage.scan("") if sha_name(s.key)), number)


class _Planner:
    """What plan knows so far. Memory: one line per pack, and a digest per distinct listing block."""

    def __init__(self, vault: Vault, job: VerifyJob, progress: Progress) -> None:
        self._vault, self._job, self._progress = vault, job, progress
        self._found: list[Finding] = []
        self._census = Census()
        self._packs: dict[str, PackRef] = {}
        self._cut: set[str] = set()
        self._seen: set[bytes] = set()
        self._rooted: list[str] = []
        self._number = 0
        self._all = not job.points

    def open_session(self, now: dt.datetime) -> None:
        """Open the session, and list the notes that are to be checked."""
        open_unbound(self._vault, self._job.session, verb="verify", now=now)
        self._controls = [s for prefix in _CONTROLS for s in self._vault.storage.scan(prefix)]
        if self._job.level in (
            "inventory",
            "scrub",
        ):  # the other levels read all notes: what points need rests on these
            moves = (check_control(self._vault, s.key) for s in self._controls if s.key.startswith(MOVES))
            self._found += [finding for finding in moves if finding is not None]

    def points(self) -> Iterator[Unit]:
        """Read every point's root; yield its blocks that no earlier point had."""
        for name, root in read_points(self._vault, self._names(), self._progress):
            self._census.points += 1
            if isinstance(root, Finding):
                self._found.append(root)
                continue
            self._packs.update((pack.name, pack) for pack in root.needed)
            if self._job.level in LISTINGS:
                self._rooted.append(f"{name.series}/{name.point}")
                yield from self._blocks(name, root)

    def objects(self) -> Iterator[Unit]:
        """LIST the bucket after the roots, so that all a root needs must be in it; yield what is to be read."""
        scrubbed: list[Stored] = []
        segments: list[Stored] = []
        whole: set[str] = set()
        for stored in self._vault.storage.scan(""):
            self._progress.check()
            self._census.unknown += not stored.key.startswith(_KNOWN)
            if pack := pack_name(stored.key):
                self._list_pack(pack, stored, whole)
            if stored.key.startswith(SEGMENTS):
                segments.append(stored)
            if self._job.level == "scrub" and sha_name(stored.key) and self._wanted(stored.key):
                scrubbed.append(stored)
        self._census.packs = len(self._packs)
        for name in self._packs.keys() - whole - self._cut:
            self._note_pack(name, "missing", "it is not in the bucket")
        good = [pack for name, pack in self._packs.items() if name in whole]
        yield self._unit(found=self._found, census=self._census, rooted=self._rooted)
        yield from self._reads(good, scrubbed, segments)

    def _reads(self, packs: list[PackRef], scrubbed: list[Stored], segments: list[Stored]) -> Iterator[Unit]:
        level = self._job.level
        if level == "inventory":
            return
        objects = scrubbed if level == "scrub" else segments + self._controls
        packs = packs if level in ("footers", "content") else []
        whole = level == "content"
        if self._job.days or self._job.bytes_max:
            objects, packs = self._longest_waiting(objects, packs)
        size = sum(s.size for s in objects) + sum(p.size if whole else min(p.size, _ENDS_BYTES) for p in packs)
        self._progress.total(entries=len(objects) + len(packs), bytes=size)
        for unit in _cut_objects(objects, self._number):
            self._number += 1
            yield unit
        for group in _groups(sorted(packs, key=lambda p: p.name), lambda p: p.size if whole else _ENDS_BYTES):
            yield self._unit(packs=group)

    def _longest_waiting(self, objects: list[Stored], packs: list[PackRef]) -> tuple[list[Stored], list[PackRef]]:
        """Leave out what other runs are to read. At level content only packs are read in full."""
        job = self._job
        ledger = Ledger.load(self._vault.storage, self._vault.keys, now=job.started_at)
        if job.level == "content":
            sizes = {pack.name: pack.size for pack in packs}
        else:
            sizes = {last_part(stored.key): stored.size for stored in objects}
        turn = choose(sizes, ledger, job.started_at, days=job.days, bytes_max=job.bytes_max, seed=job.session)
        if job.level == "content":
            return objects, [pack for pack in packs if pack.name in turn]
        return [stored for stored in objects if last_part(stored.key) in turn], packs

    def _names(self) -> list[PointName]:
        if not self._all:
            return [self._vault.find(point) for point in self._job.points]
        parts: dict[PointName, set[str]] = {}
        for stored in self._vault.storage.scan(POINTS):
            path = stored.key.split("/")
            if len(path) == 4:
                parts.setdefault(PointName(path[1], path[2]), set()).add(path[3])
            else:
                self._census.unknown += 1
        return [name for name, found in parts.items() if self._is_visible(name, found)]

    def _is_visible(self, name: PointName, found: set[str]) -> bool:
        if found == {"commit"}:
            key = point_key(*name, "root")
            self._found.append(Finding(object=key, damage="point", detail="there is a commit but no root"))
            return False
        if "expired" in found and (forged := check_control(self._vault, point_key(*name, "expired"))):
            self._found.append(forged)
        visible = {"root", "commit"} <= found and not ("expired" in found and self._vault.is_expired(name))
        self._census.unfinished += not visible
        return visible

    def _blocks(self, name: PointName, root: Root) -> Iterator[Unit]:
        todo = []
        for number in range(len(root.body.blocks)):
            key = block_key(root, number)
            if key not in self._seen:
                self._seen.add(key)
                todo.append(number)
        for at in range(0, len(todo), UNIT_BLOCKS):
            yield self._unit(series=name.series, point=name.point, blocks=todo[at : at + UNIT_BLOCKS])

    def _list_pack(self, name: str, stored: Stored, whole: set[str]) -> None:
        pack = self._packs.get(name)
        if pack is None or pack_key(pack.kind, pack.name) != stored.key:
            self._census.unreferenced += self._all
            self._census.unreferenced_bytes += stored.size * self._all
        elif pack.size == stored.size:
            whole.add(name)
        else:
            self._cut.add(name)
            self._note_pack(name, "size", f"it has {stored.size} bytes instead of {pack.size}")

    def _note_pack(self, name: str, damage: str, detail: str) -> None:
        pack = self._packs[name]
        self._found.append(Finding(object=pack_key(pack.kind, pack.name), damage=damage, detail=detail))

    def _wanted(self, key: str) -> bool:
        return self._all or not pack_name(key) or pack_name(key) in self._packs

    def _unit(self, **fields: object) -> Unit:
        unit = msgspec.convert({"number": self._number}, Unit)
        for field, value in fields.items():
            setattr(unit, field, value)
        self._number += 1
        return unit


def _check_blocks(vault: Vault, unit: Unit, result: Result, progress: Progress) -> None:
    name = PointName(unit.series, unit.point)
    try:
        blocks = Blocks(vault, name, vault.root(name))
    except PointMissing:  # expired since it was planned
        result.unchecked = len(unit.blocks)
        return
    for number in unit.blocks:
        result.found += blocks.check(number)
        result.blocks += 1
        progress.check()


def _check_object(vault: Vault, level: Level, key: str, size: int) -> Finding | None:
    if level == "scrub":
        finding = scrub(vault.storage, key)
        return where_damaged(vault, finding, size) if finding is not None else None
    return check_segment(vault, key) if key.startswith(SEGMENTS) else check_control(vault, key)


def _count(result: Result, size: int, progress: Progress) -> None:
    result.objects += 1
    result.bytes += size
    progress.add(entries=1, bytes=size)
    progress.check()


def _conclude(vault: Vault, job: VerifyJob, outcome: Outcome, progress: Progress) -> None:
    """Join what several checks said of one object, drop what was merged or expired away, and tell what is affected."""
    replaced = {name for segment in vault.index.segments for name in segment.replaces}
    joined: dict[tuple[str, bytes], Finding] = {}
    for finding in outcome.findings:
        if finding.object.startswith(SEGMENTS) and sha_name(finding.object) in replaced:
            continue  # rebuild has listed its chunks anew
        which = (finding.object, b"".join(finding.blocks) + finding.damage.encode() * bool(finding.blocks))
        joined[which] = max(joined.get(which, finding), finding, key=_says)
    packs = Packs(vault)
    for finding in joined.values():
        if pack_name(finding.object) and not finding.chunks and finding.damage != "damaged":
            finding.chunks = packs.lost_chunks(pack_name(finding.object))
    names = vault.points()
    Affected(vault, list(joined.values()), listings=job.level in LISTINGS).look(names, progress)
    visible = {f"{name.series}/{name.point}" for name in names}
    outcome.findings = [f for f in joined.values() if f.points or not _was_for_a_point(f)]
    for finding in outcome.findings:
        finding.chunks, finding.blocks = [], []
    outcome.lost = sorted(
        {p for f in outcome.findings if f.damage not in ("index", "contradiction") for p in f.points} & visible
    )
    outcome.state = "failed" if outcome.findings else "complete"


def _says(finding: Finding) -> tuple[bool, int]:
    """Return how much a finding says of its object: that it is not all there, or else how much of it is lost."""
    return finding.damage in ("missing", "size"), len(finding.chunks)


def _was_for_a_point(finding: Finding) -> bool:
    """Say whether the finding matters only as long as some visible point needs the object."""
    return bool(finding.blocks) or finding.damage in ("missing", "size")


def _cut_objects(objects: Iterable[Stored], number: int) -> Iterator[Unit]:
    for offset, group in enumerate(_groups(objects, lambda stored: stored.size)):
        yield Unit(number + offset, objects=[(stored.key, stored.size) for stored in group])


def _groups(things: Iterable[T], size: Callable[[T], int]) -> Iterator[list[T]]:
    """Yield runs of about UNIT_BYTES, at most UNIT_OBJECTS things."""
    group: list[T] = []
    total = 0
    for thing in things:
        if group and (total + size(thing) > UNIT_BYTES or len(group) >= UNIT_OBJECTS):
            yield group
            group, total = [], 0
        group.append(thing)
        total += size(thing)
    if group:
        yield group
