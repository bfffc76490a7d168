"""Restore a sample of a point into a scratch folder and compare what came out with the listing: plan -> work -> finish.

The restore is the real one: the same code writes the files and sets their attributes. Then each is read back from the
disk: every extent's id is derived anew from the bytes that are there, holes have to be zero, and size, kind, mode,
time, link target, extended attributes and (for root) owner have to be those of the listing. Hard links are restored as
files of their own. A unit's files are on the disk together, so that the folder never holds more than `bytes_max`; a
larger file is read and checked as a stream, without being written.
"""

import datetime as dt
import random
from collections.abc import Callable, Iterable, Iterator

import msgspec

from engine.browse import Browser
from engine.entries import Entry, Kind, Problem
from engine.errors import IntegrityError, PointMissing, Superseded
from engine.progress import Progress
from engine.session import Session
from engine.targets.files import FilesTarget
from engine.vault import PointName, Vault
from engine.verbs.comparison import DEVICES, DIFFERENCES_KEPT, Compared, Comparison
from engine.verbs.refill import Refill

UNIT_BYTES = 64 << 20
UNIT_ENTRIES = 2_000


class DrillJob(msgspec.Struct, frozen=True, kw_only=True):
    """Which point to restore on trial: `percent` of its entries, chosen by `seed`; the same seed chooses the same.

    `folder` is an empty folder of the host that works, for one unit at a time; whoever made it removes it.
    """

    session: str
    series: str
    point: str
    started_at: dt.datetime
    percent: int = 100
    seed: int = 0
    bytes_max: int = 4 << 30
    folder: bytes = b""

    def __post_init__(self) -> None:
        if not 1 <= self.percent <= 100:
            raise ValueError(f"{self.percent} percent can't be restored: give 1 to 100")


class Unit(msgspec.Struct):
    """Entries to restore together; `streamed` is a file that is too large for the folder."""

    number: int
    entries: list[Entry] = []
    streamed: Entry | None = None

    @property
    def needs_work(self) -> bool:
        """Say whether a worker has anything to do."""
        return bool(self.entries) or self.streamed is not None


class Result(Compared, kw_only=True):
    """A unit done. `notes` are attributes that this host can't set; `left_out` devices that only root can make."""

    number: int
    streamed: int = 0
    left_out: int = 0
    notes: list[Problem] = []


class Outcome(Compared, kw_only=True):
    """How a drill ended: complete when everything came out as it went in, else failed."""

    state: str
    series: str
    point: str
    percent: int
    seed: int
    streamed: int = 0
    left_out: int = 0
    notes: list[Problem] = []


def plan(vault: Vault, job: DrillJob, progress: Progress, *, now: dt.datetime) -> Iterator[Unit]:
    """Choose the sample and yield units. Opens the session before the point is read. Raises PointMissing."""
    name = PointName(job.series, job.point)
    vault.open_session(job.session, verb="drill", now=now, points=[name])
    if not vault.is_visible(name):
        raise PointMissing(f"recovery point {name.point} is not there, or it was expired a moment ago")
    browser = Browser.open(vault, name)
    progress.phase("restore")
    unit, used = Unit(0), 0
    for entry in _sample(browser.entries(), job):
        size = _stored(entry)
        alone = size > job.bytes_max
        if unit.entries and (
            alone or used + size > min(UNIT_BYTES, job.bytes_max) or len(unit.entries) >= UNIT_ENTRIES
        ):
            progress.check()
            yield unit
            unit, used = Unit(unit.number + 1), 0
        if alone:
            yield Unit(unit.number, streamed=entry)
            unit = Unit(unit.number + 1)
            continue
        unit.entries.append(entry)
        used += size
    yield unit


def work(vault: Vault, job: DrillJob, unit: Unit, progress: Progress) -> Result:
    """Restore the unit's entries into the job's folder and compare them. Safe to run twice, each in an empty folder."""
    result = Result(number=unit.number)
    if not unit.needs_work:
        return result
    vault.join_session(job.session)
    name = PointName(job.series, job.point)
    if unit.streamed is not None:
        _stream(vault, name, unit.streamed, result, progress)
        return result
    target = FilesTarget(root=job.folder)
    target.check()
    trial = _Trial(vault, job, target, result)
    folders = [entry for entry in unit.entries if entry.kind == Kind.DIRECTORY]
    others = [entry for entry in unit.entries if entry.kind not in (Kind.FILE, Kind.DIRECTORY)]
    for entry in folders + others:
        trial.make(entry)
    refill = Refill(vault, vault.root(name), target, progress)
    written = refill.write([entry for entry in unit.entries if entry.kind == Kind.FILE])
    trial.take(refill.problems)
    result.files, result.bytes = len(written), refill.bytes
    with trial:
        for entry in written:
            progress.check()
            trial.compare(entry)
        for entry in others:
            trial.compare(entry)
        # A folder's attributes come last, as in a restore: they may forbid to look inside.
        for entry in reversed(folders):
            trial.take(target.finish(entry))
            trial.compare(entry)
    return result


def finish(
    vault: Vault, job: DrillJob, results: Iterable[Result], progress: Progress, *, clock: Callable[[], dt.datetime]
) -> Outcome:
    """Sum up, and close the session."""
    outcome = Outcome(state="complete", series=job.series, point=job.point, percent=job.percent, seed=job.seed)
    session = Session(vault.storage, vault.keys, job.session)
    try:
        for result in results:
            outcome.add(result)
            outcome.streamed += result.streamed
            outcome.left_out += result.left_out
            outcome.notes = (outcome.notes + result.notes)[:DIFFERENCES_KEPT]
            progress.check()
    except Superseded:
        raise
    except BaseException:
        session.close("aborted", clock())
        raise
    session.close("done", clock())
    outcome.state = "failed" if outcome.differences_total else "complete"
    return outcome


def _sample(entries: Iterator[Entry], job: DrillJob) -> Iterator[Entry]:
    """Yield each entry with the job's chance; of a point that has files, never none."""
    if job.percent == 100:
        yield from entries
        return
    chance = random.Random(job.seed)  # noqa: S311  # a sample that anybody can draw again, not a secret
    spare: Entry | None = None
    seen = chosen = 0
    for entry in entries:
        if chance.random() * 100 < job.percent:
            chosen += entry.kind == Kind.FILE
            yield entry
        elif entry.kind == Kind.FILE:
            seen += 1
            if chance.random() * seen < 1:
                spare = entry
    if not chosen and spare is not None:
        yield spare


def _stored(entry: Entry) -> int:
    """Return how many bytes of a disk the entry needs."""
    return sum(extent.length for extent in entry.extents if extent.id)


def _stream(vault: Vault, name: PointName, entry: Entry, result: Result, progress: Progress) -> None:
    """Read a file out of the vault, which derives every chunk's id anew, and compare its length."""
    length = 0
    try:
        for part in Browser.open(vault, name).read(entry):
            length += len(part)
            progress.check()
    except IntegrityError as error:
        result.differ(entry.path, f"damaged: {error}")
        return
    if length != entry.size:
        result.differ(entry.path, f"it has {length} bytes instead of {entry.size}")
    result.entries, result.files, result.bytes, result.streamed = 1, 1, length, 1


class _Trial(Comparison):
    """Makes and compares the entries of one unit. A context for the open folder."""

    def __init__(self, vault: Vault, job: DrillJob, target: FilesTarget, result: Result) -> None:
        super().__init__(vault.keys.chunk_id, job.folder, result.differ, is_ours=True)
        self._target, self._result = target, result
        self._lost: set[bytes] = set()

    def make(self, entry: Entry) -> None:
        """Make a folder, link, fifo or device."""
        if entry.kind in DEVICES and not self.is_root:
            self._lost.add(entry.path)
            self._result.left_out += 1
            return
        self.take(self._target.make(entry))

    def take(self, problems: list[Problem]) -> None:
        """Take what the restore reports: a loss is a difference, what this host can't do is a note."""
        for problem in problems:
            if problem.lost:
                self._lost.add(problem.path)
                self._result.differ(problem.path, f"{problem.reason}: {problem.detail}")
            else:
                self.noted.add(problem.path)
                self._result.notes.append(problem)

    def compare(self, entry: Entry) -> None:
        """Compare what stands in the folder with the listing, unless the restore lost it."""
        if entry.path not in self._lost:
            self._result.entries += 1
            super().compare(entry)
