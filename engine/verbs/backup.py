"""Back up a source into a vault: plan -> work -> finish (architecture, section 3)."""

import datetime as dt
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate

import msgspec

import engine
from engine.entries import Block, Entry, Kind, Problem
from engine.errors import EngineError, Superseded
from engine.ids import new_ulid
from engine.listing import Splitter
from engine.locks import extend_point, lock_until, read_policy
from engine.point import PROBLEMS_KEPT, Body, Root, Stats, encode_root
from engine.progress import Progress
from engine.session import Session
from engine.sources.kinds import AnySource
from engine.sources.port import STREAM_NS, Source
from engine.vault import PointName, Vault, check_series
from engine.verbs.assemble import Listing
from engine.verbs.changes import Parent, Tally
from engine.verbs.cutter import UNIT_BYTES, Carried, Cutter, Result, Scan, Unit
from engine.verbs.store import Store

_FILE = Kind.FILE.value
PARENTS = 3  # so many of the newest points are kept from expiry: the newest that can be read becomes the parent


class BackupJob(msgspec.Struct, frozen=True, kw_only=True):
    """What to back up, and as what. `session` is a fresh ULID for every run; a retried run keeps it.

    `name` is what people call the source; `retention_days` counts from completion, 0 keeps the point until somebody
    deletes it; `rule` is the policy's rule that asks for it, `manual` says that a person did: all are kept with the
    point. `deep` reads everything again instead of trusting sizes and times; the vault still takes only what it does
    not hold. Small files are read together in units of `unit_bytes`.
    """

    session: str
    series: str
    source: AnySource
    started_at: dt.datetime
    deep: bool = False
    unit_bytes: int = UNIT_BYTES
    name: str = ""
    retention_days: int = 0
    rule: str = ""
    manual: bool = False


class Outcome(msgspec.Struct):
    """How a backup ended: `state` is complete or partial_complete (a point exists, some content is missing).

    `requests` counts what was asked of a metered source, by verb (A2).
    """

    state: str
    series: str
    point: str
    stats: Stats
    problems: list[Problem]
    problems_total: int
    mounts: list[str]
    requests: dict[str, int] = {}


def plan(vault: Vault, job: BackupJob, progress: Progress, *, now: dt.datetime) -> Iterator[Unit]:
    """Walk the source and yield units while the walk goes on. `now` is the clock of the machine that walks.

    Opens the session. Raises SourceMissing before anything is written.
    """
    check_series(job.series)
    job.source.check()
    candidates = vault.points(job.series)[-PARENTS:]
    session = vault.open_session(job.session, verb="backup", now=now, points=candidates)
    progress.phase("scan")
    latest = vault.latest(job.series, among=candidates)  # named by the session: none of them is deleted meanwhile
    root = latest.root if latest else None
    if root:
        progress.total(entries=root.body.stats.entries)  # the best guess there is before the walk ends
    vault.distrust(session, root.needed if root else [])
    tally = Tally(root)
    parent = Parent(vault, root, session.forbidden, tally) if root else None
    job.source.follows(root.body.started_at if root and root.body.complete else None)
    cutter = Cutter(root.body.point if root else "", session.forbidden, unit_bytes=job.unit_bytes)
    for rows, problems in _blocks(job.source, vault.keys.chunker_seed):
        progress.check()
        cutter.problems.extend(problems)
        if not rows:
            continue
        match = parent.match(rows) if parent and not job.deep else None
        changed = {number: rows[number] for number in match.changed} if match and match.changed is not None else None
        if match and cutter.fits((changed or {}).values()):
            tally.matched(match)
            progress.add(entries=match.block.rows - len(changed or ()))
            yield from cutter.carry(match.block, changed)
        else:
            for row, is_kept in zip(rows, _kept(rows, parent, tally, deep=job.deep), strict=True):
                yield from cutter.add(row, todo=not is_kept)
        progress.total(entries=max(cutter.entries, root.body.stats.entries if root else 0), bytes=cutter.bytes_todo)
    progress.total(entries=cutter.entries, bytes=cutter.bytes_todo)
    found = job.source.mounts(), job.source.requests(), tally.total(), job.source.excluded()
    yield cutter.last(Scan(int(now.timestamp() * 1e9), *found))


def work(vault: Vault, job: BackupJob, unit: Unit, progress: Progress) -> Result:
    """Read the unit's changed entries and store what is new. Safe to run twice; uses one core."""
    result = Result(unit.number, unit.parent, unit.rows, unit.carried, unit.problems, unit.part, unit.scan)
    result.forbidden = unit.forbidden
    if not unit.needs_work:
        progress.add(entries=len(unit.rows))
        return result
    progress.phase("process")
    vault.join_session(job.session, forbidden=set(unit.forbidden))
    vault.index.refresh()
    rows: list[Entry | None] = list(unit.rows)
    job.source.expect([unit.rows[number] for number in unit.todo])
    with Store(vault, job.source, vault.info.profile, progress) as store:
        for number in unit.todo:
            row = unit.rows[number]
            rows[number] = store.read_part(row, *unit.part) if unit.part else store.read(row)
        progress.phase("upload")
        store.close()
        result.problems = unit.problems + store.problems
        result.bytes_read, result.bytes_new, result.bytes_stored = store.bytes_read, store.bytes_new, store.bytes_stored
    if not unit.part or unit.part[0] == 0:
        progress.add(entries=len(unit.rows))
    for done in rows:
        if done is not None and done.mtime_ns == STREAM_NS:
            done.mtime_ns = int(job.started_at.timestamp() * 1e9)
    result.requests = job.source.requests()
    result.stored = result.bytes_stored > 0
    result.entries_read = len(unit.todo) if not unit.part or unit.part[0] == 0 else 0
    left = [0, *accumulate(int(row is not None) for row in rows)]
    result.carried = [one.left(rows, left[one.before]) for one in unit.carried]
    result.rows = [row for row in rows if row is not None]
    return result


def finish(
    vault: Vault, job: BackupJob, results: Iterable[Result], progress: Progress, *, clock: Callable[[], dt.datetime]
) -> Outcome:
    """Write listing, root and commit from the results, in unit order. The point is visible when this returns.

    Run twice, it finds what the first run committed. Raises SessionFenced, CommitUnknown; on any error before the
    commit nothing is visible.
    """
    check_series(job.series)
    done = _committed(vault, job)
    if done is not None:
        return done
    session: Session | None = None
    try:
        gathered = _Gathered(vault, job)
        for result in results:
            # Before any look-up, so that no forbidden pack is answered. What a prune condemned since the session
            # opened, its own packs perhaps, may be relied on: that prune waits, and finds them in the root.
            if session is None:
                session = vault.join_session(job.session, forbidden=set(result.forbidden))
            gathered.take(result)
            progress.check()
        gathered.close()
        progress.check()
        progress.phase("commit")
        session = vault.join_session(job.session)
        return gathered.commit(session, clock())
    except Superseded:
        raise
    except BaseException:
        if session is None:
            session = Session(vault.storage, vault.keys, job.session)
        session.close("aborted", clock())
        raise


def _kept(rows: list[Entry], parent: Parent | None, tally: Tally, *, deep: bool) -> list[bool]:
    """Say which rows stay as the parent has them, after putting its version in their place; count all of them."""
    if parent is None:
        tally.new(rows)
    elif not deep:
        return parent.carry(rows)
    else:
        parent.compare(rows)
    return [False] * len(rows)


class _Gathered:
    """Results as they come in, put together to one point."""

    def __init__(self, vault: Vault, job: BackupJob) -> None:
        self._vault, self._job = vault, job
        self._listing: Listing | None = None
        self._parent: Root | None = None
        self._part: Entry | None = None
        self._scan: Scan | None = None
        self._stats = Stats()
        self._problems: list[Problem] = []
        self._problems_total = 0
        self._lost = False
        self._requests: Counter[str] = Counter()

    def take(self, result: Result) -> None:
        if self._listing is None:
            name = PointName(self._job.series, result.parent)
            self._parent = self._vault.root(name) if result.parent else None
            self._listing = Listing(self._vault, self._parent)
        if result.stored:
            self._vault.index.refresh()
        self._count(result)
        if result.part is not None:
            self._take_part(result)
            return
        self._end_part()
        done = 0
        for carried in result.carried:
            self._add(result.rows[done : carried.before])
            done = carried.before + len(carried.changed or ())
            self._carry(carried, result.rows[carried.before : done])
        self._add(result.rows[done:])

    def close(self) -> None:
        """Store the rest of the listing."""
        assert self._listing is not None
        self._end_part()
        self._table = self._listing.close()
        self._stats.bytes_stored += self._listing.bytes_stored

    def commit(self, session: Session, now: dt.datetime) -> Outcome:
        """Write root and commit, once all before is stored."""
        assert self._scan is not None
        blocks, packs = self._table
        state = "partial_complete" if self._lost else "complete"
        body = self._body(blocks, self._scan, now, complete=not self._lost)
        # Asked anew: the vault may have been locked since the session opened.
        policy = read_policy(self._vault.storage, self._vault.keys)
        if policy is not None:
            body.locked_until = lock_until(policy, now, body.retention_days)
            extend_point(self._vault, packs, until=body.locked_until, now=now)
        root = encode_root(self._vault.keys, body, packs)
        session.commit(root, series=body.series, point=body.point, now=now, locked_until=body.locked_until)
        return Outcome(
            *(state, body.series, body.point, self._stats, self._problems, self._problems_total),
            self._scan.mounts,
            dict(self._requests),
        )

    def _body(self, blocks: list[Block], scan: Scan, now: dt.datetime, *, complete: bool) -> Body:
        identity = self._job.source.identity()
        return Body(
            vault_id=self._vault.keys.vault_id, series=self._job.series, point=new_ulid(now), session=self._job.session,
            kind=identity.kind, host=identity.host, roots=identity.roots, started_at=self._job.started_at,
            ended_at=now, scan_ns=scan.scan_ns, profile=self._vault.info.profile, engine=engine.__version__,
            stats=self._stats, blocks=blocks, deep=self._job.deep,
            name=self._job.name, retention_days=self._job.retention_days, complete=complete,
            parent=self._parent.body.point if self._parent else "",
            previous=self._parent.digest if self._parent else b"", problems=self._problems,
            problems_total=self._problems_total, mounts=scan.mounts,
            options=self._job.source.options(), rule=self._job.rule, manual=self._job.manual,
        )  # fmt: skip

    def _count(self, result: Result) -> None:
        stats = self._stats
        stats.entries_read += result.entries_read
        stats.bytes_read += result.bytes_read
        stats.bytes_new += result.bytes_new
        stats.bytes_stored += result.bytes_stored
        self._requests.update(result.requests)
        if result.scan is not None:
            self._scan = result.scan
            for name, count in result.scan.changes.items():
                setattr(stats, name, count)
            if result.scan.excluded:
                stats.skipped["excluded"] = result.scan.excluded
            self._requests.update(result.scan.requests)
        for problem in result.problems:
            self._problems_total += 1
            self._lost |= problem.lost
            stats.skipped[problem.reason] = stats.skipped.get(problem.reason, 0) + 1
            if len(self._problems) < PROBLEMS_KEPT:
                self._problems.append(problem)

    def _take_part(self, result: Result) -> None:
        """Join the parts of a big file; a part that is missing loses the file, once."""
        assert result.part is not None
        first = result.part[0] == 0
        if first:
            self._end_part()
        if not result.rows:
            self._part = None
        elif first:
            self._part = msgspec.structs.replace(result.rows[0], extents=list(result.rows[0].extents))
        elif self._part is not None:
            row = result.rows[0]
            self._part.extents += row.extents
            self._part.size += row.size
            if (row.mtime_ns, row.ctime_ns) != (self._part.mtime_ns, self._part.ctime_ns):
                self._count(
                    Result(0, "", [], [], [Problem(row.path, "changed", "it changed while it was read", lost=False)])
                )
                self._part.mtime_ns, self._part.ctime_ns = row.mtime_ns, row.ctime_ns

    def _end_part(self) -> None:
        part, self._part = self._part, None
        if part is not None:
            self._add([part])

    def _add(self, rows: list[Entry]) -> None:
        assert self._listing is not None
        sizes = [row.size for row in rows if row.kind == _FILE]
        self._stats.entries += len(rows)
        self._stats.files += len(sizes)
        self._stats.bytes += sum(sizes)
        self._listing.add(rows)

    def _carry(self, carried: Carried, rows: list[Entry]) -> None:
        assert self._listing is not None
        fresh = dict(zip(carried.changed or (), rows, strict=True))
        if carried.gone:
            self._add(self._listing.rest(carried.block, carried.gone, fresh))
            return
        block = carried.block
        if carried.changed is None:
            self._listing.carry(block)
        else:
            block = self._listing.replace(block, fresh)
        self._stats.entries += block.rows
        self._stats.files += block.files
        self._stats.bytes += block.bytes


def _blocks(source: Source, seed: int) -> Iterator[tuple[list[Entry], list[Problem]]]:
    """Yield the walk in the runs that a listing's blocks would have; nothing while the source is still looking."""
    splitter = Splitter(seed)
    rows: list[Entry] = []
    problems: list[Problem] = []
    for entry in source.walk():
        if entry is None:
            yield [], []
            continue
        if isinstance(entry, Problem):
            problems.append(entry)
            continue
        rows.append(entry)
        if splitter.ends(entry.path):
            yield rows, problems
            rows, problems = [], []
    if rows or problems:
        yield rows, problems


def _committed(vault: Vault, job: BackupJob) -> Outcome | None:
    """Return the outcome of an earlier run of the same session that did commit."""
    for name in vault.points(job.series, since=job.session):  # none was made before the session began
        try:
            body = vault.root(name).body
        except EngineError:
            continue
        if body.session == job.session:
            state = "complete" if body.complete else "partial_complete"
            return Outcome(state, body.series, body.point, body.stats, body.problems, body.problems_total, body.mounts)
    return None
