"""Free the space of dead chunks (vault-format, section 6): plan -> work -> finish.

A compaction copies what is alive in packs that are mostly dead into new packs, and says in a move that these stand in
the place of the old ones for the points whose listings it read. It deletes nothing: when the move counts, no point
needs the old packs any more, and the next prune deletes them. A point that is committed meanwhile is not named, and
goes on needing the old packs.

It is a session: what it copied or found is safe from every prune until it ends. Crash: before the move's commit, new
packs that no point needs; after it, everything.
"""

import datetime as dt
from collections.abc import Callable, Iterable, Iterator

import msgspec

from engine.errors import Superseded
from engine.moves import Move, Moves, commit_move
from engine.point import PackRef
from engine.progress import Progress
from engine.session import Session
from engine.vault import Vault
from engine.verbs.candidates import Choice, Chooser, Task
from engine.verbs.findings import Finding
from engine.verbs.mark import mark
from engine.verbs.merge import merge_index
from engine.verbs.repack import Left, Repacker


class CompactJob(msgspec.Struct, frozen=True, kw_only=True):
    """`session` and `run` are fresh ULIDs for every run; a retried run keeps them.

    Packs are rewritten when `dead_share` of their content or more is dead. At most about `bytes_max` are read, 0 means
    a tenth of the vault. A dry run only tells what it would do.
    """

    session: str
    run: str
    started_at: dt.datetime
    dead_share: float = 0.3
    bytes_max: int = 0
    dry_run: bool = False


class Unit(msgspec.Struct):
    """Packs to rewrite together, or, last, what the plan chose and the points whose listings it read."""

    number: int
    tasks: list[Task] = []
    points: list[str] = []
    choice: Choice | None = None
    findings: list[Finding] = []

    @property
    def needs_work(self) -> bool:
        """Say whether a worker has anything to do."""
        return bool(self.tasks)


class Result(msgspec.Struct):
    """A unit done: what stands for each old pack, and the packs that had to be left alone."""

    number: int
    moved: dict[str, list[PackRef]] = {}
    bytes_moved: int = 0
    left: list[Left] = []
    bytes_read: int = 0
    bytes_written: int = 0
    packs_written: int = 0
    points: list[str] = []
    choice: Choice | None = None
    findings: list[Finding] = []


class Outcome(msgspec.Struct):
    """How a compaction ended: complete; partial_complete when packs were left alone that cannot be read; failed when
    `findings` say that roots cannot be read: then nothing was done.

    `packs_moved` old packs of `bytes_moved` are needed no more, but by points of later; a prune deletes them.
    """

    state: str
    run: str
    choice: Choice
    packs_moved: int = 0
    bytes_moved: int = 0
    packs_written: int = 0
    bytes_read: int = 0
    bytes_written: int = 0
    left: list[Left] = []
    findings: list[Finding] = []
    segments_merged: int = 0


def plan(vault: Vault, job: CompactJob, progress: Progress, *, now: dt.datetime) -> Iterator[Unit]:
    """Open the session, read all listings, yield the packs to rewrite, and last the figures.

    The order matters: forbidden packs, moves and index, points, packs. Raises FormatError, and ValueError for a share
    outside 0 to 1.
    """
    if not 0 < job.dead_share <= 1:
        raise ValueError(f"the dead share is {job.dead_share}: use more than 0 and at most 1, such as 0.3")
    session = vault.open_session(job.session, verb="compact", now=now)
    progress.phase("read")
    marks = mark(vault, progress)
    if marks.unreadable:
        yield Unit(0, choice=Choice(), findings=marks.unreadable)
        return
    chooser = Chooser(vault, marks, session.forbidden, now=now)
    number = 0
    for tasks in chooser.choose(dead_share=job.dead_share, bytes_max=job.bytes_max, progress=progress):
        if not job.dry_run:
            yield Unit(number, tasks)
            number += 1
    yield Unit(number, points=marks.points, choice=chooser.choice)


def work(vault: Vault, job: CompactJob, unit: Unit, progress: Progress) -> Result:
    """Copy the live chunks of the unit's packs into new ones, each checked against its full id. Safe to run twice.

    A pack that cannot be read is left alone. Uses one core, and memory for a few packs.
    """
    result = Result(unit.number, points=unit.points, choice=unit.choice, findings=unit.findings)
    if not unit.tasks:
        return result
    progress.phase("process")
    Session.join(vault.storage, vault.keys, job.session, forbidden=set())
    with Repacker(vault, progress, kind=unit.tasks[0].pack.kind) as repacker:
        for task in unit.tasks:
            repacker.take(task)
        progress.phase("upload")
        result.moved = repacker.close()
    result.left = repacker.left
    result.bytes_moved = sum(task.pack.size for task in unit.tasks if task.pack.name in result.moved)
    result.bytes_read, result.bytes_written = repacker.bytes_read, repacker.bytes_written
    result.packs_written = repacker.packs_written
    return result


def finish(
    vault: Vault, job: CompactJob, results: Iterable[Result], progress: Progress, *, clock: Callable[[], dt.datetime]
) -> Outcome:
    """Merge the index, make the move count, close the session. Run twice, it finds what the first run committed.

    Raises SessionFenced: nothing was moved.
    """
    session = Session(vault.storage, vault.keys, job.session)
    outcome = Outcome("complete", job.run, Choice())
    moved: dict[str, list[PackRef]] = {}
    points: list[str] = []
    committing = False
    try:
        for result in results:
            _count(outcome, result)
            moved |= result.moved
            points += result.points
            progress.check()
        if not outcome.findings and not job.dry_run:
            progress.phase("merge")
            merged = merge_index(vault, progress, drop=set())
            outcome.segments_merged = merged.segments_before - merged.segments_after
            if moved:
                progress.phase("commit")
                committing = True
                _commit(vault, session, Move(job.run, job.session, sorted(points), dict(sorted(moved.items()))), clock)
    except Superseded:
        raise
    except BaseException:
        if not committing:  # else the move may count: `aborted` would say that it never can
            session.close("aborted", clock())
        raise
    session.close("done", clock())
    if outcome.left or outcome.choice.lost or outcome.choice.doubtful:
        outcome.state = "partial_complete"
    if outcome.findings:
        outcome.state = "failed"
    return outcome


def _commit(vault: Vault, session: Session, move: Move, clock: Callable[[], dt.datetime]) -> None:
    if all(done.run != move.run for done in Moves(vault.storage, vault.keys).committed):
        commit_move(session, vault.storage, vault.keys, move, now=clock())


def _count(outcome: Outcome, result: Result) -> None:
    outcome.packs_moved += len(result.moved)
    outcome.bytes_moved += result.bytes_moved
    outcome.packs_written += result.packs_written
    outcome.bytes_read += result.bytes_read
    outcome.bytes_written += result.bytes_written
    outcome.left += result.left
    outcome.findings += result.findings
    outcome.choice = result.choice or outcome.choice
