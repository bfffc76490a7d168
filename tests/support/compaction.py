"""Compactions on a bench, vaults that need one, and points that end."""

import random
from pathlib import Path
from typing import Any

from engine.ids import new_ulid
from engine.point import Expired, point_key
from engine.progress import Silent
from engine.session import put_note
from engine.vault import PointName, Vault
from engine.verbs import compact
from tests.support.runs import backed_up
from tests.support.vaults import Bench, contents, travelled, verified, write_files


def assert_whole(bench: Bench) -> None:
    """Verify every byte of the vault: nothing may be wrong."""
    outcome = verified(bench, "content")
    assert (outcome.state, outcome.findings) == ("complete", [])


def compact_job(bench: Bench, **fields: Any) -> compact.CompactJob:
    """Return an order to compact."""
    now = bench.clock()
    return compact.CompactJob(session=new_ulid(now), run=new_ulid(now), started_at=now, **fields)


def run_compact(bench: Bench, job: compact.CompactJob) -> compact.Outcome:
    """Do a compaction with vaults of its own for plan, work and finish; units and results travel as bytes."""
    planner, worker, finisher, silent = bench.open(), bench.open(), bench.open(), Silent()
    results = [
        travelled(compact.work(worker, job, travelled(unit), silent))
        for unit in compact.plan(planner, job, silent, now=bench.clock())
    ]
    return travelled(compact.finish(finisher, job, results, silent, clock=bench.clock))


def compacted(bench: Bench, **fields: Any) -> compact.Outcome:
    """Compact as a fresh process would; `fields` are those of CompactJob."""
    return run_compact(bench, compact_job(bench, **fields))


def end_point(bench: Bench, series: str, point: str) -> None:
    """Expire a point at once, in the order that expiry must have."""
    vault = bench.open()
    put_note(bench.storage, vault.keys, point_key(series, point, "expired"), Expired(point, series, "", bench.clock()))
    bench.storage.delete([point_key(series, point, "commit")])
    bench.storage.delete([point_key(series, point, "root")])


def noise(seed: int, size: int = 3000) -> bytes:
    """Return bytes that don't compress."""
    return random.Random(seed).randbytes(size)


def sparse_vault(bench: Bench, folder: Path, *, files: int = 12, size: int = 20_000) -> PointName:
    """Back up files, remove two thirds, back up again and end the first point; return the second."""
    write_files(folder, {f"f{n}": noise(n, size) for n in range(files)})
    first = backed_up(bench, folder)
    for n in range(files):
        if n % 3:
            (folder / f"f{n}").unlink()
    write_files(folder, {"later": noise(1000, 500)})
    second = backed_up(bench, folder)
    end_point(bench, "home", first.point)
    return PointName("home", second.point)


def everything(vault: Vault) -> dict[PointName, dict[bytes, bytes]]:
    """Return the content of every visible point."""
    return {name: contents(vault, name) for name in vault.points()}


def needed(bench: Bench) -> set[str]:
    """Return the keys of the packs that visible points need."""
    vault = bench.open()
    return {
        f"{('packs', 'meta')[pack.kind]}/{pack.name[:2]}/{pack.name}"
        for name in vault.points()
        for pack in vault.root(name).needed
    }


def packs(bench: Bench, prefix: str = "packs/") -> set[str]:
    """Return the keys of the packs in the bucket."""
    return {stored.key for stored in bench.storage.scan(prefix)}
