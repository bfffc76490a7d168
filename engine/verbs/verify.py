"""Prove by reading that a vault holds what its points need (vault-format, section 9): plan -> work -> finish.

Levels and what each reads:

inventory   roots and commits of the points; LIST of everything; every pack that a point needs is there in its size
structure   inventory, and all listings, the index, the notes of sessions and prunes; no data pack
footers     structure, and both ends of every pack that a point needs, compared with the index
scrub       inventory, and every byte of every object that is named by its SHA-256, whether a point needs it or not;
            needs no key beyond what inventory needs: `scrub_units` and `inspect.scrub` do it with the bucket alone
content     footers, and every byte of every pack that a point needs: its name, every slot, every chunk's full id

A verification only reads, but for its session, which makes a prune wait.
"""

import datetime as dt
from collections.abc import Callable, Iterable, Iterator
from typing import Literal, TypeVar, get_args

import msgspec

from engine.errors import PointMissing, Superseded
from engine.index import PREFIX as SEGMENTS
from engine.pack import FOLDERS, HEADER_BYTES, pack_key
from engine.point import PREFIX as POINTS
from engine.point import PackRef, Root
from engine.progress import Progress
from engine.session import PREFIX as SESSIONS
from engine.session import PRUNE_PREFIX, Session
from engine.storage.port import Storage, Stored
from engine.vault import INFO_KEY, KEYS, PointName, Vault
from engine.verbs.findings import Affected, Finding, block_key, pack_name
from engine.verbs.inspect import Blocks, Packs, check_control, check_point, check_segment, open_unbound, scrub, sha_name

T = TypeVar("T")
Level = Literal["inventory", "structure", "footers", "scrub", "content"]
UNIT_BYTES = 256 << 20
UNIT_OBJECTS = 2_000
UNIT_BLOCKS = 64
_ENDS_BYTES = (64 << 10) + HEADER_BYTES
_KNOWN = (
    INFO_KEY, KEYS, POINTS, SESSIONS, PRUNE_PREFIX, SEGMENTS, *(f"{folder}/" for folder in FOLDERS),
    "moves/", "locks/", "verify/", "staging/", "system/", "canary/",
)  # fmt: skip


class VerifyJob(msgspec.Struct, frozen=True, kw_only=True):
    """What to verify. `session` is a fresh ULID for every run; `points` are ids, none means all visible points."""

    session: str
    level: Level
    started_at: dt.datetime
    points: tuple[str, ...] = ()


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
    """A piece of work: blocks of one point, or packs, or other objects. What plan itself found travels along."""

    number: int
    series: str = ""
    point: str = ""
    blocks: list[int] = []
    packs: list[PackRef] = []
    objects: list[tuple[str, int]] = []
    found: list[Finding] = []
    census: Census | None = None

    @property
    def needs_work(self) -> bool:
        """Say whether a worker has anything to do."""
        return bool(self.blocks or self.packs or self.objects)


class Result(msgspec.Struct):
    """A unit done."""

    number: int
    found: list[Finding]
    objects: int = 0
    bytes: int = 0
    blocks: int = 0
    census: Census | None = None


class Outcome(msgspec.Struct):
    """How a verification ended: `state` is complete when nothing is wrong, failed when anything is.

    Damage is never partial_complete: nothing was left out, and whoever relies on the vault must be told. `objects` and
    `bytes` count what was read, listing blocks apart; `lost` are the visible points that some finding affects.
    """

    state: str
    level: Level
    findings: list[Finding]
    objects: int
    bytes: int
    blocks: int
    lost: list[str]
    census: Census


def plan(vault: Vault, job: VerifyJob, progress: Progress, *, now: dt.datetime) -> Iterator[Unit]:
    """Read all roots, yield their listings' blocks as units, then LIST the bucket and yield its objects.

    Opens the session. Raises PointMissing for an unknown point, FormatError for what a newer program wrote.
    """
    if job.level not in get_args(Level):
        raise ValueError(f"there is no level {job.level!r}: use one of {', '.join(get_args(Level))}")
    planner = _Planner(vault, job, progress)
    planner.open_session(now)
    progress.phase("read")
    yield from planner.points()
    yield from planner.objects()


def work(vault: Vault, job: VerifyJob, unit: Unit, progress: Progress) -> Result:
    """Check what the unit names. Only reads, so it is safe to run twice; uses one core, and memory for one pack."""
    result = Result(unit.number, list(unit.found), census=unit.census)
    if unit.blocks:
        _check_blocks(vault, unit, result, progress)
    packs = Packs(vault) if unit.packs else None
    for pack in unit.packs:
        assert packs is not None
        whole = job.level == "content"
        result.found += packs.check_content(pack) if whole else packs.check_footer(pack)
        _count(result, pack.size if whole else min(pack.size, _ENDS_BYTES), progress)
    for key, size in unit.objects:
        finding = _check_object(vault, job.level, key)
        if finding is not None:
            result.found.append(finding)
        _count(result, size, progress)
    return result


def finish(
    vault: Vault, job: VerifyJob, results: Iterable[Result], progress: Progress, *, clock: Callable[[], dt.datetime]
) -> Outcome:
    """Gather the findings, tell what they affect, close the session. Safe to run twice."""
    session = Session(vault.storage, vault.keys, job.session)
    try:
        outcome = Outcome("complete", job.level, [], 0, 0, 0, [], Census())
        for result in results:
            outcome.findings += result.found
            outcome.objects += result.objects
            outcome.bytes += result.bytes
            outcome.blocks += result.blocks
            outcome.census = result.census or outcome.census
            progress.check()
        if outcome.findings:
            _conclude(vault, job, outcome, progress)
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
        self._number = 0
        self._all = not job.points

    def open_session(self, now: dt.datetime) -> None:
        """Open the session, and list the notes that are to be checked."""
        open_unbound(self._vault, self._job.session, verb="verify", now=now)
        self._controls = [s for prefix in (SESSIONS, PRUNE_PREFIX) for s in self._vault.storage.scan(prefix)]

    def points(self) -> Iterator[Unit]:
        """Read every point's root; yield its blocks that no earlier point had."""
        for name in self._names():
            self._progress.check()
            try:
                finding = check_point(self._vault, name)
                root = None if finding else self._vault.root(name)
            except PointMissing:
                continue  # expired since the LIST
            self._census.points += 1
            if finding is not None:
                self._found.append(finding)
            if root is not None:
                self._packs.update((pack.name, pack) for pack in root.needed)
                if self._job.level in ("structure", "footers", "content"):
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
        yield self._unit(found=self._found, census=self._census)
        yield from self._reads(good, scrubbed, segments)

    def _reads(self, packs: list[PackRef], scrubbed: list[Stored], segments: list[Stored]) -> Iterator[Unit]:
        level = self._job.level
        if level == "inventory":
            return
        objects = scrubbed if level == "scrub" else segments + self._controls
        packs = packs if level in ("footers", "content") else []
        whole = level == "content"
        size = sum(s.size for s in objects) + sum(p.size if whole else min(p.size, _ENDS_BYTES) for p in packs)
        self._progress.total(entries=len(objects) + len(packs), bytes=size)
        for unit in _cut_objects(objects, self._number):
            self._number += 1
            yield unit
        for group in _groups(sorted(packs, key=lambda p: p.name), lambda p: p.size if whole else _ENDS_BYTES):
            yield self._unit(packs=group)

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
        for name, found in parts.items():
            if found == {"commit"}:
                key = f"{POINTS}{name.series}/{name.point}/root"
                self._found.append(Finding(object=key, damage="point", detail="there is a commit but no root"))
            self._census.unfinished += found != {"commit"} and found != {"root", "commit"}
        return [name for name, found in parts.items() if found == {"root", "commit"}]

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
    except PointMissing:
        return  # expired since it was planned
    for number in unit.blocks:
        result.found += blocks.check(number)
        result.blocks += 1
        progress.check()


def _check_object(vault: Vault, level: Level, key: str) -> Finding | None:
    if level == "scrub":
        return scrub(vault.storage, key)
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
        first = joined.setdefault(which, finding)
        if first is not finding and len(finding.chunks) > len(first.chunks):
            joined[which] = finding
    files = job.level in ("structure", "footers", "content")
    if files:
        packs = Packs(vault)
        for finding in joined.values():
            if pack_name(finding.object) and not finding.chunks and finding.damage != "damaged":
                finding.chunks = packs.lost_chunks(pack_name(finding.object))
    names = vault.points()
    Affected(vault, list(joined.values()), files=files).look(names, progress)
    visible = {f"{name.series}/{name.point}" for name in names}
    outcome.findings = [f for f in joined.values() if f.points or not _was_for_a_point(f)]
    for finding in outcome.findings:
        finding.chunks, finding.blocks = [], []
    outcome.lost = sorted(
        {p for f in outcome.findings if f.damage not in ("index", "contradiction") for p in f.points} & visible
    )
    outcome.state = "failed" if outcome.findings else "complete"


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
