"""Make the catalogue and the index anew from the bucket alone (engine invariants 11, 23): plan -> work -> finish.

The catalogue: one row per visible point, from its root and commit. The index: segments that are missing, damaged, or
that list packs which are gone are made anew from the footers of the packs that visible points need.

No object is ever deleted here. A damaged segment stays where it is, and a new segment says that it is replaced, so
that nobody asks for it again; whoever merges the index removes it. A segment is replaced only while no other session
is open: a session that runs may have its own rows, which no point needs yet, in just that segment (a copy in its
cache may be whole), and would fail at its end without them. A session that opens later cannot: its segments are
written after the LIST that found the damage. Chunks of packs that no visible point needs are forgotten with a
replaced segment; they are stored again when a backup meets them, and a prune removes the packs.

Run twice, the second run finds nothing to do and gives the same rows.
"""

import contextlib
import datetime as dt
from collections.abc import Callable, Iterable, Iterator

import msgspec

from engine.errors import IntegrityError, NotFound, Superseded
from engine.ids import SEGMENTS, pack_key
from engine.index import ROWS_MAX, encode_segment, load_segment
from engine.pack import Sealed
from engine.point import PackRef, Root, Stats, point_key
from engine.progress import Progress
from engine.session import Session, open_sessions
from engine.vault import PointName, Vault
from engine.verbs.findings import Finding, pack_name
from engine.verbs.hold import Holds
from engine.verbs.inspect import footer_of, open_unbound, read_points, sha_name

UNIT_POINTS = 100
UNIT_PACKS = 500


class RebuildJob(msgspec.Struct, frozen=True, kw_only=True):
    """`session` is a fresh ULID for every run; a retried run keeps it."""

    session: str
    started_at: dt.datetime


class Row(msgspec.Struct, frozen=True):
    """One visible point, as the catalogue needs it.

    `bytes_needed` is the size of all `packs` it needs, shared with other points; `bytes` and the rest stand in `stats`.
    `held` says that somebody holds it.
    """

    series: str
    point: str
    session: str
    kind: str
    host: str
    roots: list[str]
    started_at: dt.datetime
    ended_at: dt.datetime
    complete: bool
    deep: bool
    name: str
    retention_days: int
    profile: str
    engine: str
    parent: str
    stats: Stats
    problems_total: int
    packs: int
    bytes_needed: int
    root_sha256: str
    locked_until: dt.datetime | None = None
    held: bool = False
    rule: str = ""
    manual: bool = False


class Broken(msgspec.Struct, frozen=True):
    """An object that could not be read, and why."""

    object: str
    detail: str


class Mend(msgspec.Struct):
    """What is to be replaced when all footers were read: names of segments; `waiting` are sessions that forbid it."""

    damaged: list[str]
    outdated: list[str]
    waiting: list[str]


class Unit(msgspec.Struct):
    """Some points, whose rows the plan made, or some packs, whose footers are to be read."""

    number: int
    rows: list[Row] = []
    packs: list[PackRef] = []
    broken: list[Broken] = []
    mend: Mend | None = None

    @property
    def needs_work(self) -> bool:
        """Say whether a worker has anything to do."""
        return bool(self.packs)


class Result(msgspec.Struct):
    """A unit done: `listed` packs are in the index again."""

    number: int
    rows: list[Row]
    broken: list[Broken]
    listed: int = 0
    segments: int = 0
    mend: Mend | None = None


class Outcome(msgspec.Struct):
    """How a rebuild ended: `state` is complete, or partial_complete when something could not be read or must wait.

    `broken` are roots, commits and packs that cannot be read. `replaced` are segments that nobody asks for any more;
    `waiting` are open sessions: run it again when they have ended.
    """

    state: str
    rows: list[Row]
    broken: list[Broken]
    packs_listed: int
    segments_written: int
    replaced: list[str]
    waiting: list[str]


class _Segments:
    """What the bucket's segments say, read past every cache. Memory: names of packs."""

    def __init__(self, vault: Vault, progress: Progress) -> None:
        self.damaged: set[str] = set()
        self.packs: dict[str, set[str]] = {}
        replaced: set[str] = set()
        for stored in vault.storage.scan(SEGMENTS):
            progress.check()
            name = sha_name(stored.key)
            if not name:
                continue  # not ours, and nothing can say that it is replaced
            try:
                segment = load_segment(vault.storage, vault.keys, stored.key)
            except NotFound:
                continue  # merged away since the LIST
            except IntegrityError:
                self.damaged.add(name)
                continue
            replaced.update(segment.replaces)
            self.packs[name] = {head.name for head in segment.heads}
        self.damaged -= replaced
        self.packs = {name: packs for name, packs in self.packs.items() if name not in replaced}

    def outdated(self, gone: Callable[[str], bool]) -> list[str]:
        """Return the segments that list a pack which is gone."""
        return sorted(name for name, packs in self.packs.items() if any(gone(pack) for pack in packs))

    def covered(self, without: Iterable[str]) -> set[str]:
        """Return the packs that the other segments list."""
        left_out = set(without)
        return {pack for name, packs in self.packs.items() if name not in left_out for pack in packs}


def plan(vault: Vault, job: RebuildJob, progress: Progress, *, now: dt.datetime) -> Iterator[Unit]:
    """Read the index and all roots; yield their rows, then the packs whose footers are to be read.

    Opens the session. The order of the four looks matters: segments, sessions, points, packs. Raises FormatError.
    """
    session = open_unbound(vault, job.session, verb="rebuild", now=now)
    progress.phase("read")
    segments = _Segments(vault, progress)
    waiting = [name for name in open_sessions(vault.storage) if name != job.session]
    needed: dict[str, PackRef] = {}
    number = 0
    for number, (rows, broken) in enumerate(_rows(vault, needed, progress), 1):
        yield Unit(number - 1, rows=rows, broken=broken)
    present = {pack_name(s.key) for s in vault.stored_packs()}
    broken = [
        Broken(pack_key(pack.kind, pack.name), "it is gone") for pack in needed.values() if pack.name not in present
    ]
    outdated = segments.outdated(lambda name: name not in present and name not in session.forbidden)
    covered = segments.covered([] if waiting else outdated)
    todo = sorted((p for p in needed.values() if p.name in present and p.name not in covered), key=lambda p: p.name)
    progress.total(entries=len(todo))
    for at in range(0, len(todo), UNIT_PACKS):
        yield Unit(number, packs=todo[at : at + UNIT_PACKS])
        number += 1
    yield Unit(number, broken=broken, mend=Mend(sorted(segments.damaged), outdated, waiting))


def work(vault: Vault, job: RebuildJob, unit: Unit, progress: Progress) -> Result:
    """Read the footers of the unit's packs and list their chunks in new segments. Run twice, it lists them twice."""
    result = Result(unit.number, unit.rows, list(unit.broken), mend=unit.mend)
    sealed: list[Sealed] = []
    rows = 0
    for pack in unit.packs:
        progress.check()
        try:
            sealed.append(footer_of(vault, pack))
        except IntegrityError as error:
            result.broken.append(Broken(pack_key(pack.kind, pack.name), str(error)))
            continue
        progress.add(entries=1)
        rows += len(sealed[-1].table.ids)
        if rows >= ROWS_MAX // 2:
            _store(vault, sealed, result)
            sealed, rows = [], 0
    _store(vault, sealed, result)
    return result


def finish(
    vault: Vault, job: RebuildJob, results: Iterable[Result], progress: Progress, *, clock: Callable[[], dt.datetime]
) -> Outcome:
    """Gather the rows; when every footer could be read, replace the damaged segments. Close the session."""
    session = Session(vault.storage, vault.keys, job.session)
    outcome = Outcome("complete", [], [], 0, 0, [], [])
    mend = Mend([], [], [])
    try:
        for result in results:
            outcome.rows += result.rows
            outcome.broken += result.broken
            outcome.packs_listed += result.listed
            outcome.segments_written += result.segments
            mend = result.mend or mend
            progress.check()
        _mend(vault, mend, outcome)
    except Superseded:
        raise
    except BaseException:
        session.close("aborted", clock())
        raise
    session.close("done", clock())
    outcome.state = "partial_complete" if outcome.broken or outcome.waiting else "complete"
    return outcome


def _mend(vault: Vault, mend: Mend, outcome: Outcome) -> None:
    """Replace what was made anew. With a broken footer nothing is: the old segment may be all that knows its chunks."""
    replaced = mend.outdated + mend.damaged
    if not replaced or _unread_packs(outcome):
        return
    if mend.waiting:
        outcome.waiting = mend.waiting
        return
    for plain in encode_segment([], replaces=replaced):
        vault.index.add(plain)
        outcome.segments_written += 1
    outcome.replaced = replaced


def _unread_packs(outcome: Outcome) -> bool:
    return any(pack_name(b.object) and b.detail != "it is gone" for b in outcome.broken)


def _store(vault: Vault, sealed: list[Sealed], result: Result) -> None:
    for plain in encode_segment(sealed):
        vault.index.add(plain)
        result.segments += 1
    result.listed += len(sealed)


def _rows(vault: Vault, needed: dict[str, PackRef], progress: Progress) -> Iterator[tuple[list[Row], list[Broken]]]:
    """Yield the rows of all visible points, some at a time; add their packs to `needed`. Raises FormatError."""
    rows: list[Row] = []
    broken: list[Broken] = []
    held = Holds(vault.storage)
    for name, root in read_points(vault, vault.points(), progress):
        if isinstance(root, Finding):
            broken.append(Broken(root.object, root.detail))
        else:
            needed.update((pack.name, pack) for pack in root.needed)
            rows.append(_row(root, held=name in held, locked_until=_locked_until(vault, name, root)))
        if len(rows) + len(broken) >= UNIT_POINTS:
            yield rows, broken
            rows, broken = [], []
    if rows or broken:
        yield rows, broken


def _locked_until(vault: Vault, name: PointName, root: Root) -> dt.datetime | None:
    """Return the end of a point's lock: the vault may have been locked, or its lock lengthened, after the point."""
    ends = [root.body.locked_until]
    if vault.lock_policy is not None:
        with contextlib.suppress(NotFound):
            ends.append(vault.storage.locked_until(point_key(*name, "root")))
    return max((end for end in ends if end is not None), default=None)


def _row(root: Root, *, held: bool, locked_until: dt.datetime | None) -> Row:
    body = root.body
    return Row(
        series=body.series, point=body.point, session=body.session, kind=body.kind, host=body.host, roots=body.roots,
        started_at=body.started_at, ended_at=body.ended_at, complete=body.complete, deep=body.deep,
        name=body.name, retention_days=body.retention_days,
        profile=body.profile, engine=body.engine, parent=body.parent, stats=body.stats,
        problems_total=body.problems_total, packs=len(root.needed),
        bytes_needed=sum(pack.size for pack in root.needed), root_sha256=root.digest.hex(),
        locked_until=locked_until, held=held, rule=body.rule, manual=body.manual,
    )  # fmt: skip
