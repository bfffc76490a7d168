"""Compare what a restore wrote into a folder with the recovery point it came from (C29): plan -> work -> finish.

Reads the restored files and the point's listing; the packs of the files' content are not read. Changes nothing.
"""

import datetime as dt
from collections.abc import Callable, Iterable, Iterator

import msgspec

from engine.browse import Browser
from engine.entries import Entry, Kind
from engine.errors import PointMissing, Superseded, TargetMissing
from engine.patterns import Selection
from engine.progress import Progress
from engine.session import Session
from engine.vault import PointName, Vault
from engine.verbs.comparison import Compared, Comparison
from engine.verbs.selected import selected

UNIT_BYTES = 256 << 20
UNIT_ENTRIES = 5_000


class CompareJob(msgspec.Struct, frozen=True, kw_only=True):
    """Which point was restored, which of its entries (patterns as in engine.patterns), and below which folder."""

    session: str
    series: str
    point: str
    folder: bytes
    started_at: dt.datetime
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()


class Unit(msgspec.Struct):
    """Entries to compare."""

    number: int
    entries: list[Entry] = []

    @property
    def needs_work(self) -> bool:
        """Say whether a worker has anything to do."""
        return bool(self.entries)


class Result(Compared, kw_only=True):
    """A unit done."""

    number: int


class Outcome(Compared, kw_only=True):
    """How a comparison ended: complete when everything stands there as in the point, else failed."""

    state: str
    series: str
    point: str


def plan(vault: Vault, job: CompareJob, progress: Progress, *, now: dt.datetime) -> Iterator[Unit]:
    """Choose the entries and yield units. Opens the session before the point is read. Raises PointMissing."""
    name = PointName(job.series, job.point)
    vault.open_session(job.session, verb="compare", now=now, points=[name])
    if not vault.is_visible(name):
        raise PointMissing(f"recovery point {name.point} is not there, or it was expired a moment ago")
    progress.phase("compare")
    unit, size, entries, total = Unit(0), 0, 0, 0
    for entry in selected(Browser.open(vault, name), Selection(job.include, job.exclude)):
        unit.entries.append(entry)
        length = entry.size if entry.kind == Kind.FILE else 0
        size, entries, total = size + length, entries + 1, total + length
        if size >= UNIT_BYTES or len(unit.entries) >= UNIT_ENTRIES:
            progress.total(entries=entries, bytes=total)
            progress.check()
            yield unit
            unit, size = Unit(unit.number + 1), 0
    progress.total(entries=entries, bytes=total)
    yield unit


def work(vault: Vault, job: CompareJob, unit: Unit, progress: Progress) -> Result:
    """Compare the unit's entries. Safe to run twice. Raises TargetMissing when the folder is gone."""
    result = Result(number=unit.number)
    if not unit.needs_work:
        return result
    vault.join_session(job.session)
    progress.phase("compare")
    try:
        comparison = Comparison(vault.keys.chunk_id, job.folder, result.differ, look=progress.check)
        with comparison:
            for entry in unit.entries:
                progress.check()
                comparison.compare(entry)
                is_file = entry.kind == Kind.FILE
                result.entries += 1
                result.files += is_file
                result.bytes += entry.size if is_file else 0
                progress.add(entries=1, bytes=entry.size if is_file else 0)
    except FileNotFoundError as error:
        raise TargetMissing(f"{job.folder.decode('utf-8', 'backslashreplace')!r} is not there any more") from error
    return result


def finish(
    vault: Vault, job: CompareJob, results: Iterable[Result], progress: Progress, *, clock: Callable[[], dt.datetime]
) -> Outcome:
    """Sum up, and close the session."""
    outcome = Outcome(state="complete", series=job.series, point=job.point)
    session = Session(vault.storage, vault.keys, job.session)
    try:
        for result in results:
            outcome.add(result)
            progress.check()
    except Superseded:
        raise
    except BaseException:
        session.close("aborted", clock())
        raise
    session.close("done", clock())
    outcome.state = "failed" if outcome.differences_total else "complete"
    return outcome
