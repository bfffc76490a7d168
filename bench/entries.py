"""Measure points of very many entries: `python -m bench.entries`. Rewrites its part of the page.

A generated source yields small files that share a thousand contents: what is measured is what each entry costs, not
its bytes. A point is made of them, made again without changes, listed to its end; and one file of a smaller point is
restored, with every read of the vault counted.
"""

import argparse
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.acts import clock, do, new_vault, opener, told_by
from bench.charts import bars
from bench.machine import cores, measured
from bench.page import PAGE, write_section
from engine.browse import Browser
from engine.entries import Entry, Kind, Problem
from engine.ids import new_ulid
from engine.progress import Silent
from engine.runner import run
from engine.sources.port import BaseSource, Identity, Reader
from engine.storage import Directory
from engine.targets.files import FilesTarget
from engine.vault import Vault
from engine.verbs import backup, restore

CONTENTS, CONTENT_BYTES, IN_A_FOLDER = 1_000, 300, 1_000
SECOND = 1_000_000_000
GOAL_BYTES = 512 << 20


class Many(BaseSource, frozen=True):
    """`files` small files, a thousand in each folder, with a thousand contents in all."""

    files: int

    def identity(self) -> Identity:
        return Identity("files", "host", ["/"])

    def check(self) -> None: ...

    def walk(self) -> Iterator[Entry | Problem]:
        for number in range(self.files):
            folder = b"folder%05d" % (number // IN_A_FOLDER)
            if number % IN_A_FOLDER == 0:
                yield Entry(folder, Kind.DIRECTORY, 0o755, mtime_ns=SECOND, inode=1 << 32 | number)
            path = b"%s/file %08d.txt" % (folder, number)
            times = SECOND * (1_000_000 + number * 7919 % 1_000_003)
            yield Entry(
                path, Kind.FILE, 0o644, size=CONTENT_BYTES, mtime_ns=times, ctime_ns=times + number, inode=number
            )

    def open(self, entry: Entry) -> Reader | Problem:
        return Problem(entry.path, "large", "only small files are made here")

    def read_small(self, entry: Entry, limit: int) -> tuple[Entry, bytes] | Problem | None:
        return entry, (b"content %06d " % (entry.inode % CONTENTS) * CONTENT_BYTES)[:CONTENT_BYTES]


class Counting(Directory):
    """A folder that counts what is read of it, by the first part of the key."""

    def __init__(self, root: str) -> None:
        super().__init__(root)
        self.reads: Counter[str] = Counter()

    def get(self, key: str, *, offset: int = 0, length: int | None = None) -> bytes:
        self.reads[key.partition("/")[0]] += 1
        return super().get(key, offset=offset, length=length)


def back_up(folder: Path, *, entries: int, workers: int) -> Any:
    """Make a point; return how it ended."""
    source = Many(files=entries)
    job = backup.BackupJob(session=new_ulid(clock()), series="many", source=source, started_at=clock())  # type: ignore[arg-type] # the verb is written for any source
    return run(opener(folder), backup, job, workers=workers, progress=Silent(), clock=clock)


def listing(folder: Path) -> dict[str, Any]:
    """Read the listing of the newest point to its end."""
    vault = opener(folder).vault
    browser = Browser.open(vault, vault.find("latest"))
    count = sum(1 for _ in browser.entries())
    stored = sum(one.size for one in vault.storage.scan("meta/"))
    points = len(vault.points())
    root = sum(one.size for one in vault.storage.scan("points/") if one.key.endswith("root"))
    return {"state": "complete", "entries": count, "meta_bytes": stored, "root_bytes": root // points}


def one_file(folder: Path, entries: int) -> dict[str, Any]:
    """Restore one file out of a point, in a fresh process; return what was read of the vault and what time it took.

    Opening the vault, its keys and its index is what every command does first: it is told apart.
    """
    spec = opener(folder)
    storage = Counting(str(folder / "vault"))
    begin_s = time.perf_counter()
    vault = Vault.open(storage, provider=spec.provider(), cache=Path(spec.cache))
    assert vault.index.segments
    opened_s, opened = time.perf_counter() - begin_s, storage.reads.copy()
    number = entries * 2 // 3
    path = b"folder%05d/file %08d.txt" % (number // IN_A_FOLDER, number)
    target = folder / f"restored-{new_ulid(clock())}"
    target.mkdir()
    name = vault.find("latest")
    job = restore.RestoreJob(
        session=new_ulid(clock()), series=name.series, point=name.point, started_at=clock(),
        target=FilesTarget(root=bytes(target)), include=(f"/{path.decode()}",),
    )  # fmt: skip
    storage.reads.clear()
    begin_s, begin_cpu_s = time.perf_counter(), time.process_time()
    units = restore.plan(vault, job, Silent(), now=clock())
    results = [restore.work(vault, job, unit, Silent()) for unit in units]
    outcome = restore.finish(vault, job, results, Silent(), clock=clock)
    seconds, cpu_s = time.perf_counter() - begin_s, time.process_time() - begin_cpu_s
    written = (target / path.decode()).read_bytes()
    if outcome.files != 1 or written != (b"content %06d " % (number % CONTENTS) * CONTENT_BYTES)[:CONTENT_BYTES]:
        raise SystemExit(f"the wrong file was restored: {outcome}")
    return {
        "state": outcome.state, "opened_s": opened_s, "opened": dict(opened), "reads": dict(storage.reads),
        "one_s": seconds, "one_cpu_s": cpu_s,
    }  # fmt: skip


def rows(told: list[tuple[str, int, dict[str, Any]]]) -> list[str]:
    """Return the lines of the table."""
    head = ("what", "time", "per core and second", "in the one process that plans", "peak of a process", "goal")
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for name, count, one in told:
        goal = "under 512 MiB and packs in flight" if "point" in name else ""
        cells = f"{one['seconds']:.1f} s | {count / one['cpu_s']:,.0f} entries | {one['own_cpu_s']:.1f} s"
        lines.append(f"| {name} | {cells} | {one['peak_bytes'] / 2**20:.0f} MiB | {goal} |")
    return lines


def section(told: list[tuple[str, int, dict[str, Any]]], one: dict[str, Any], options: argparse.Namespace) -> str:
    """Return the section of the page; draw its chart."""
    last = told[-1][2]["outcome"]
    names = [name for name, _, _ in told]
    opening = sum(count for what, count in one["opened"].items() if what != "index")
    reads = ", ".join(f"{count} of {what}/" for what, count in sorted(one["reads"].items()))
    return "\n".join(
        [
            "## Very many entries",
            "",
            f"Made by `python -m bench.entries`: a generated source of {options.entries:,} small files, "
            f"{options.workers} workers.",
            "",
            f"- {measured()}",
            f"- The listing: {last['meta_bytes'] / options.entries:.1f} bytes per entry in the vault, of which the"
            f" point without changes shares all; its root has {last['root_bytes'] / 2**20:.2f} MiB.",
            "",
            *rows(told),
            "",
            f"One file out of a point of {options.one:,} entries, restored by the verb itself into a folder:",
            "",
            "| what | figure | goal |",
            "|---|---|---|",
            f"| objects read, besides those of opening the vault ({opening}) and its index | "
            f"{sum(one['reads'].values())}: {reads} | 3: root, listing, content |",
            f"| own time (processor) | {one['one_cpu_s'] * 1000:.0f} ms | under 100 ms |",
            f"| all its time, with the reads and the sync of what was written | {one['one_s'] * 1000:.0f} ms | |",
            f"| opening the vault before it | {one['opened_s'] * 1000:.0f} ms | |",
            "",
            bars(
                options.output,
                "entries",
                [
                    ("entries per core and second", "", {name: count / one["cpu_s"] for name, count, one in told}),
                    ("peak memory", "MiB", {name: one["peak_bytes"] / 2**20 for name, _, one in told}),
                ],
                ours=names,
            ),
        ]
    )


def act(options: argparse.Namespace) -> Any:
    """Do one act and return its outcome."""
    if options.act in ("first", "unchanged"):
        return back_up(options.folder, entries=options.entries, workers=options.workers)
    return listing(options.folder) if options.act == "list" else one_file(options.folder, options.entries)


def measure(folder: Path, options: argparse.Namespace) -> list[tuple[str, int, dict[str, Any]]]:
    """Make the points and list one; return each act with what it told."""
    new_vault(folder)
    count = options.entries
    told = []
    for name, what in (
        ("first point", "first"),
        ("point without changes", "unchanged"),
        ("list it to its end", "list"),
    ):
        one = told_by("bench.entries", what, folder, entries=count, workers=options.workers)
        if one["outcome"]["state"] != "complete":
            raise SystemExit(f"{name}: {one['outcome']}")
        told.append((name, count, one))
    if told[-1][2]["outcome"]["entries"] < count or told[1][2]["outcome"]["stats"]["entries_read"] > count // 100:
        raise SystemExit(f"the points are not what was walked: {told}")
    return told


def main() -> None:
    """Measure and write the section, or do one act."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--entries", type=int, default=10_000_000)
    parser.add_argument(
        "--one", type=int, default=1_000_000, help="entries of the point that one file is restored from"
    )
    parser.add_argument("--workers", type=int, default=cores())
    parser.add_argument("--output", type=Path, default=PAGE)
    parser.add_argument("--act", choices=["first", "unchanged", "list", "one"])
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    if options.act:
        do(lambda: act(options))
        return
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name, "one")
        folder.mkdir()
        new_vault(folder)
        told_by("bench.entries", "first", folder, entries=options.one, workers=options.workers)
        tries = [told_by("bench.entries", "one", folder, entries=options.one)["outcome"] for _ in range(3)]
        one = sorted(tries, key=lambda told: float(told["one_cpu_s"]))[1]
        folder = Path(name, "many")
        folder.mkdir()
        told = measure(folder, options)
    text = section(told, one, options)
    write_section("entries", text, page=options.output)
    print(text)


if __name__ == "__main__":
    main()
