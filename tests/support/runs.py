"""Runs of backup and restore on a bench, with what a test wants to be different about them."""

import datetime as dt
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from engine.entries import Block, Entry, Extent, Problem
from engine.ids import new_ulid
from engine.keys import ID_BYTES
from engine.listing import BlockBuilder
from engine.pack import DATA, META, PackWriter
from engine.point import Body, PackRef, Stats, encode_root
from engine.progress import Progress, Silent
from engine.session import Session
from engine.sources.files import files_source
from engine.sources.kinds import AnySource
from engine.targets.files import files_target
from engine.targets.port import Target
from engine.vault import PointName, Vault
from engine.verbs import backup, restore
from engine.verbs.cutter import Result
from tests.support.vaults import Bench, entries, travelled


class Stopping(Silent):
    """Progress that orders to stop at its `at`-th check (0 = never), and counts the checks."""

    def __init__(self, at: int = 0) -> None:
        super().__init__()
        self.at, self.checks = at, 0

    def check(self) -> None:
        self.checks += 1
        if self.checks == self.at:
            self.cancel()
        super().check()


def backup_job(bench: Bench, source: AnySource, *, series: str = "home", deep: bool = False) -> backup.BackupJob:
    """Return an order for one more point, with a fresh session."""
    return backup.BackupJob(
        session=new_ulid(bench.clock()), series=series, source=source, started_at=bench.clock(), deep=deep
    )


def run_backup(
    bench: Bench,
    job: backup.BackupJob,
    *,
    progress: Progress | None = None,
    now: dt.datetime | None = None,
    between: Callable[[], None] = lambda: None,
) -> backup.Outcome:
    """Do a backup with a vault of its own for plan, work and finish; `between` happens after each unit's plan."""
    silent = progress or Silent()
    planner, worker, finisher = bench.open(), bench.open(), bench.open()

    def results() -> Iterator[Result]:
        for unit in backup.plan(planner, job, silent, now=now or bench.clock()):
            between()
            yield travelled(backup.work(worker, job, travelled(unit), silent))

    return backup.finish(finisher, job, results(), silent, clock=bench.clock)


def backed_up(bench: Bench, *folders: Path, series: str = "home", **options: Any) -> backup.Outcome:
    """Back up folders; `options` are those of `files_source`."""
    source = files_source([str(folder) for folder in folders], host="host", **options)
    return run_backup(bench, backup_job(bench, source, series=series))


def restored(
    bench: Bench,
    target: Path | Target,
    *,
    point: str = "latest",
    progress: Progress | None = None,
    **options: Any,
) -> restore.Outcome:
    """Restore into `target`, a folder that must be there, or a target; `options` are those of RestoreJob."""
    planner, worker, silent = bench.open(), bench.open(), progress or Silent()
    name = planner.find(point)
    job = restore.RestoreJob(
        session=new_ulid(bench.clock()), series=name.series, point=name.point, started_at=bench.clock(),
        target=files_target(target) if isinstance(target, Path) else target,  # type: ignore[arg-type] # a test's own
        **options,
    )  # fmt: skip
    results = (
        travelled(restore.work(worker, job, travelled(unit), silent))
        for unit in restore.plan(planner, job, silent, now=bench.clock())
    )
    return restore.finish(bench.open(), job, results, silent, clock=bench.clock)


def landed(target: Path, folder: Path) -> Path:
    """Return where a backed-up folder stands below a target."""
    return target / folder.relative_to("/")


def listing(vault: Vault, point: str) -> list[Entry]:
    """Return a point's whole listing."""
    return list(entries(vault, vault.find(point)))


def inside(path: Path) -> bytes:
    """Return a path as entries spell it."""
    return os.fsencode(path).strip(b"/")


def reasons(problems: list[Problem]) -> dict[bytes, str]:
    """Return the last name of each problem's path -> its reason."""
    return {os.path.basename(problem.path): problem.reason for problem in problems}


def forged_point(bench: Bench, rows: list[tuple[Entry, bytes]]) -> PointName:
    """Commit a point with exactly these entries, in this order, as somebody who has the keys could.

    Each entry comes with the content that it gets as its only extent, when it is not empty.
    """
    vault = bench.open()
    session = vault.open_session(new_ulid(bench.clock()), verb="backup", now=bench.clock())
    data = PackWriter(vault.keys, DATA, vault.storage.put)
    meta = PackWriter(vault.keys, META, vault.storage.put)
    builder = BlockBuilder(vault.keys.chunker_seed, vault.keys.chunk_id, meta.add)
    blocks: list[Block] = []
    for entry, content in rows:
        if content:
            ident = vault.keys.chunk_id(content)
            data.add(ident, content)
            entry.extents = [Extent(ident[:ID_BYTES], len(content))]
        blocks += [block for block, _ in builder.add([entry])]
    ended = builder.flush()
    if ended is not None:
        blocks.append(ended[0])
    packs = [PackRef(sealed.head.name, sealed.head.kind, sealed.head.size) for sealed in data.close() + meta.close()]
    for block in blocks:
        block.packs = list(range(len(packs)))
    return commit_point(bench, vault, session, blocks, packs)


def commit_point(bench: Bench, vault: Vault, session: Session, blocks: list[Block], packs: list[PackRef]) -> PointName:
    """Write the root and commit of a point with this listing."""
    now = bench.clock()
    body = Body(
        vault_id=vault.keys.vault_id, series="home", point=new_ulid(now), session=session.name, kind="files",
        host="host", roots=["/"], started_at=now, ended_at=now, scan_ns=0, profile="general", engine="0",
        stats=Stats(), blocks=blocks,
    )  # fmt: skip
    session.commit(encode_root(vault.keys, body, packs), series="home", point=body.point, now=now)
    return PointName("home", body.point)
