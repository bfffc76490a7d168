"""Restore a point into a folder: plan -> work -> finish (architecture, section 3; vault-format, section 10)."""

import contextlib
import datetime as dt
from collections.abc import Callable, Iterable, Iterator

import msgspec

from engine.browse import Browser
from engine.damage import note_damaged
from engine.entries import Entry, Kind, Problem
from engine.errors import PointMissing, StorageError, Superseded, UnsafePath
from engine.patterns import Selection
from engine.point import PROBLEMS_KEPT
from engine.progress import Progress
from engine.session import Session
from engine.targets.kinds import AnyTarget
from engine.vault import PointName, Vault
from engine.verbs.findings import pack_name
from engine.verbs.inspect import scrub
from engine.verbs.refill import Refill
from engine.verbs.selected import selected

UNIT_BYTES = 64 << 20
UNIT_FILES = 4_000
UNIT_SPARSE = 200  # files with holes are written aside, each open until its last chunk came
SKIP, OVERWRITE = "skip", "overwrite"


class RestoreJob(msgspec.Struct, frozen=True, kw_only=True):
    """What to restore, and where. Patterns as in engine.patterns; a `/a/b` of the point lands at `<target>/a/b`.

    `same_name`: what happens to a file that stands in the place of a restored one (C28): `skip` leaves it,
    `overwrite` replaces it for good. `dry_run` makes nothing: read the plan's units.
    """

    session: str
    series: str
    point: str
    target: AnyTarget
    started_at: dt.datetime
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    same_name: str = SKIP
    dry_run: bool = False

    def __post_init__(self) -> None:
        if self.same_name not in (SKIP, OVERWRITE):
            raise ValueError(f"same_name is {self.same_name!r}: use {SKIP} or {OVERWRITE}")


class After(msgspec.Struct, array_like=True):
    """What waits for the work: a folder's attributes (`first` empty), or a hard link of the path `first`."""

    entry: Entry
    first: bytes = b""


class Unit(msgspec.Struct):
    """A run of the listing. `files` with content, `others` are links, fifos and devices; `skipped` stand already."""

    number: int
    files: list[Entry]
    others: list[Entry]
    after: list[After]
    skipped: list[bytes]
    problems: list[Problem]
    folders: int = 0

    @property
    def needs_work(self) -> bool:
        """Say whether a worker has anything to do."""
        return bool(self.files or self.others)


class Result(msgspec.Struct):
    """A unit done. `linked` are those of its restored files that later entries are hard links of.

    `damaged` are keys of packs that could not be read as they were written.
    """

    number: int
    after: list[After]
    linked: list[bytes]
    problems: list[Problem]
    skipped: int
    folders: int = 0
    entries: int = 0
    files: int = 0
    bytes: int = 0
    damaged: list[str] = []


class Outcome(msgspec.Struct):
    """How a restore ended: complete, or partial_complete when something selected could not be written."""

    state: str
    series: str
    point: str
    entries: int
    files: int
    bytes: int
    skipped: int
    problems: list[Problem]
    problems_total: int


def plan(vault: Vault, job: RestoreJob, progress: Progress, *, now: dt.datetime) -> Iterator[Unit]:
    """Choose what to restore, make the folders, yield units.

    Raises TargetMissing before anything is written (C27), PointMissing. The session opens before the point is read, so
    that a prune waits for it.
    """
    selection = Selection(job.include, job.exclude)
    job.target.check()
    name = PointName(job.series, job.point)
    vault.open_session(job.session, verb="restore", now=now, points=[name])
    if not vault.is_visible(name):
        raise PointMissing(f"recovery point {name.point} is not there, or it was expired a moment ago")
    browser = Browser.open(vault, name)
    progress.phase("restore")
    body = browser.root.body
    progress.total(entries=body.stats.entries, bytes=body.stats.bytes)
    planner = _Planner(job)
    for entry in selected(browser, selection):
        if planner.full:
            progress.check()
            yield planner.cut()
        planner.add(entry)
    yield planner.cut()


def work(vault: Vault, job: RestoreJob, unit: Unit, progress: Progress) -> Result:
    """Write the unit's files and other entries. Safe to run twice; uses one core. One bad file never ends it."""
    result = Result(unit.number, unit.after, [], list(unit.problems), len(unit.skipped), unit.folders)
    result.entries = unit.folders
    if not unit.needs_work:
        return result
    vault.join_session(job.session)
    root = vault.root(PointName(job.series, job.point))
    refill = Refill(vault, root, job.target, progress)
    for entry in unit.others:
        problems = job.target.make(entry)
        result.problems += problems
        result.entries += not any(problem.lost for problem in problems)
    written = refill.write(unit.files)
    result.problems += refill.problems
    result.damaged = sorted(refill.damaged)
    result.files, result.bytes = len(written), refill.bytes
    result.entries += len(written)
    result.linked = [entry.path for entry in written if entry.links > 1]
    progress.add(entries=len(unit.others))
    return result


def finish(
    vault: Vault, job: RestoreJob, results: Iterable[Result], progress: Progress, *, clock: Callable[[], dt.datetime]
) -> Outcome:
    """Make hard links, set folders' attributes from the inside out, make all durable; note damaged packs.

    Safe to run twice.
    """
    ending = _Ending(vault, job, progress)
    session = Session(vault.storage, vault.keys, job.session)
    try:
        for result in results:
            ending.take(result)
            progress.check()
        outcome = ending.outcome()
        with contextlib.suppress(StorageError):  # the files are restored, whoever may not write here
            # Each is read once more, whole: what was only changed on its way is no damage of the vault.
            damaged = [pack_name(key) for key in sorted(ending.damaged) if scrub(vault.storage, key)]
            note_damaged(vault.storage, vault.keys, damaged)
    except Superseded:
        raise
    except BaseException:
        session.close("aborted", clock())
        raise
    session.close("done", clock())
    return outcome


class _Planner:
    """Sorts entries into units; makes folders at once, so that nothing of this run is taken for an old file later."""

    def __init__(self, job: RestoreJob) -> None:
        self._job, self._target = job, job.target
        self._number = 0
        self._fresh: list[bytes] = []
        self._firsts: dict[tuple[int, int], bytes] = {}
        self._start()

    def _start(self) -> None:
        self._unit = Unit(self._number, [], [], [], [], [])
        self._bytes = self._sparse = self._rows = 0
        self._number += 1

    @property
    def full(self) -> bool:
        if self._target.one_by_one:
            return False
        return self._bytes >= UNIT_BYTES or self._rows >= UNIT_FILES or self._sparse >= UNIT_SPARSE

    def cut(self) -> Unit:
        unit = self._unit
        self._start()
        return unit

    def add(self, entry: Entry) -> None:
        self._rows += 1
        try:
            standing = None if self._in_fresh(entry.path) else self._target.existing(entry.path)
        except (UnsafePath, OSError) as error:
            self._unit.problems.append(Problem(entry.path, "unsafe-path", str(error)))
            return
        if entry.kind == Kind.DIRECTORY:
            self._add_folder(entry, standing)
        elif standing is not None and self._job.same_name == SKIP:
            self._unit.skipped.append(entry.path)
        else:
            self._add_other(entry)

    def _in_fresh(self, path: bytes) -> bool:
        """Say whether a folder above `path` was made by this run: then nothing can stand there."""
        fresh = self._fresh
        while fresh:
            if path.startswith(fresh[-1]):
                return True
            fresh.pop()
        return False

    def _add_folder(self, entry: Entry, standing: int | None) -> None:
        if standing == Kind.DIRECTORY and self._job.same_name == SKIP:
            return  # its attributes are somebody's, like a file's content
        if not self._job.dry_run:
            problems = self._target.make(entry)
            self._unit.problems += problems
            if any(problem.lost for problem in problems):
                return
        self._unit.folders += 1
        self._unit.after.append(After(entry))
        if standing is None:
            self._fresh.append(entry.path + b"/")

    def _add_other(self, entry: Entry) -> None:
        if entry.links > 1:
            first = self._firsts.setdefault((entry.device, entry.inode), entry.path)
            if first != entry.path:
                self._unit.after.append(After(entry, first))
                return
        if entry.kind == Kind.FILE:
            self._unit.files.append(entry)
            self._bytes += entry.size
            self._sparse += not all(extent.id for extent in entry.extents)
        else:
            self._unit.others.append(entry)


class _Ending:
    """What is done in listing order after the work: links, then each folder once everything inside it is there."""

    def __init__(self, vault: Vault, job: RestoreJob, progress: Progress) -> None:
        self._vault, self._job, self._progress = vault, job, progress
        self._open: list[Entry] = []
        self._linked: set[bytes] = set()
        self.damaged: set[str] = set()
        self._problems: list[Problem] = []
        self._outcome = Outcome("complete", job.series, job.point, 0, 0, 0, 0, self._problems, 0)

    def take(self, result: Result) -> None:
        outcome = self._outcome
        outcome.entries += result.entries
        outcome.files += result.files
        outcome.bytes += result.bytes
        outcome.skipped += result.skipped
        self._linked.update(result.linked)
        self.damaged.update(result.damaged)
        self._report(result.problems)
        for after in result.after:
            self._leave(after.entry.path)
            if after.first:
                self._link(after)
            else:
                self._open.append(after.entry)

    def outcome(self) -> Outcome:
        self._leave(b"")
        self._progress.phase("flush")
        self._job.target.flush()
        return self._outcome

    def _leave(self, path: bytes) -> None:
        """Set the attributes of the folders that `path` is not inside of."""
        while self._open and not (path and path.startswith(self._open[-1].path + b"/")):
            self._report(self._job.target.finish(self._open.pop()))

    def _link(self, after: After) -> None:
        entry = after.entry
        if after.first in self._linked:
            problems = self._job.target.link(entry, after.first)
        elif entry.kind == Kind.FILE:
            # The first of them was not restored (skipped or damaged): this one gets the content itself.
            root = self._vault.root(PointName(self._job.series, self._job.point))
            refill = Refill(self._vault, root, self._job.target, self._progress)
            self._outcome.bytes += sum(file.size for file in refill.write([entry]))
            problems = refill.problems
            self.damaged |= refill.damaged
            if not problems:
                self._linked.add(entry.path)
        else:
            problems = self._job.target.make(entry)
        self._report(problems)
        if not any(problem.lost for problem in problems):
            self._outcome.entries += 1
            self._outcome.files += entry.kind == Kind.FILE

    def _report(self, problems: list[Problem]) -> None:
        for problem in problems:
            self._outcome.problems_total += 1
            if problem.lost:
                self._outcome.state = "partial_complete"
            if len(self._problems) < PROBLEMS_KEPT:
                self._problems.append(problem)
