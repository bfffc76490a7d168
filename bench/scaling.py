"""Measure one against two workers: `python -m bench.scaling`. Rewrites its part of the page.

The same text-like files are backed up into fresh vaults by the command line with one and two processes, and by an
installation with PostgreSQL, Redis and one Celery worker that does one and two steps at a time. In turns.
"""

import argparse
import contextlib
import datetime as dt
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from bench.charts import bars
from bench.generated import text_file
from bench.machine import cores, measured
from bench.page import PAGE, write_section
from bench.peers import ours
from tests import services
from tests.scenarios.installation import ENDED, Installation, full_set

FILE_MIB = 16
GOAL = 1.8
# The pace of an installation, not the one that tests use: its sweeps would take a part of the cores that are measured.
USUAL = {
    "BACKUPSITE_STEP_LEASE_S": "90",
    "BACKUPSITE_STEP_HEARTBEAT_S": "2",
    "BACKUPSITE_STEP_RING_AGAIN_S": "300",
    "BACKUPSITE_SWEEP_S": "15",
}
LOOK_EVERY_S = 2.0
LOCAL, CELERY, ALONE = "command line", "Celery", "zstd 3 alone, one process for each half"


def by_command_line(folder: Path, data: Path, *, workers: int, run: int) -> float:
    """Back up with so many processes; return the seconds."""
    peer, vault = ours(), folder / f"local-{workers}-{run}.vault"
    peer.create(vault)
    return peer.run([*peer.backup(vault, data), f"--workers={workers}"], vault).seconds


def by_celery(site: Installation, data: Path, *, workers: int, run: int) -> float:
    """Back up by a worker that does so many steps at a time; return the seconds from the job's start to its end."""
    protected = site.protect(f"text-{workers}-{run}", data)
    with site.working(steps=workers):
        name = site.backup(protected)["id"]
        while (job := site.job(name))["state"] not in ENDED:
            time.sleep(LOOK_EVERY_S)
    if job["state"] != "complete":
        raise SystemExit(f"the backup ended as {job['state']}: {job['error']}")
    began, ended = (dt.datetime.fromisoformat(job[what]) for what in ("started_at", "ended_at"))
    return (ended - began).total_seconds()


def by_zstd(data: Path, *, workers: int) -> float:
    """Compress all files with so many processes of zstd, which share nothing: what these cores can do at best."""
    files = sorted(str(path) for path in data.iterdir())
    begin_s = time.perf_counter()
    command = ["zstd", "-3", "--single-thread", "-q", "-c"]
    running = [
        subprocess.Popen([*command, *files[number::workers]], stdout=subprocess.DEVNULL) for number in range(workers)
    ]
    if any(process.wait() for process in running):
        raise SystemExit("zstd failed")
    return time.perf_counter() - begin_s


@contextlib.contextmanager
def installed(folder: Path) -> Iterator[Installation]:
    """Have an installation with PostgreSQL and Redis, and a region in a folder, inside the block."""
    state, names = folder / "services", ["redis", "postgres"]
    try:
        entries = {name: services.start(name, state) for name in names}
        database, broker = services.postgres(entries["postgres"]), services.redis(entries["redis"]).url
        with full_set(folder, database=database, broker=broker, more=USUAL) as site:
            store = folder / "store"
            store.mkdir()
            site.region("main", store)
            yield site
    finally:
        services.stop(names, state)


def section(figures: dict[str, dict[int, list[float]]], options: argparse.Namespace) -> str:
    """Return the section of the page; draw its chart."""
    lines = ["| by | 1 worker | 2 workers | ratio | goal |", "|---|---|---|---|---|"]
    for name, own in figures.items():
        one, two = (statistics.median(own[workers]) for workers in (1, 2))
        goal = "" if name == ALONE else f"{GOAL} x"
        lines.append(f"| {name} | {one:.2f} s | {two:.2f} s | {one / two:.2f} x | {goal} |")
    labels = {1: "1 worker", 2: "2 workers"}
    panels = [
        (name, "s", {labels[workers]: statistics.median(times) for workers, times in own.items()})
        for name, own in figures.items()
        if name != ALONE
    ]
    return "\n".join(
        [
            "## One worker and two",
            "",
            f"Made by `python -m bench.scaling`: {options.mib:,} MiB of text in files of {FILE_MIB} MiB, each into a",
            f"fresh vault in a folder; the median of {options.runs} runs. The command line's time is that of the",
            "whole process, Celery's that from the job's start to its end, with every step, message and row between.",
            "What zstd alone gains from the second core is the most that these cores give to anybody.",
            "",
            f"- {measured()}",
            "",
            *lines,
            "",
            bars(options.output, "scaling", panels, ours=["2 workers"]),
        ]
    )


def main() -> None:
    """Make the files, measure each way in turns, write the section."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--no-celery", action="store_true", help="without servers: the command line alone")
    parser.add_argument("--output", type=Path, default=PAGE)
    options = parser.parse_args()
    if cores() < 2:
        raise SystemExit("one core can't show what a second worker is worth")
    figures: dict[str, dict[int, list[float]]] = {}
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        data = folder / "data"
        data.mkdir()
        for number in range(max(options.mib // FILE_MIB, 1)):
            text_file(data / f"{number:04}.txt", min(options.mib, FILE_MIB) << 20, seed=number)
        ways: dict[str, Callable[[int, int], float]] = {
            ALONE: lambda workers, run: by_zstd(data, workers=workers),
            LOCAL: lambda workers, run: by_command_line(folder, data, workers=workers, run=run),
        }
        if not options.no_celery:
            site = stack.enter_context(installed(folder))
            ways[CELERY] = lambda workers, run: by_celery(site, data, workers=workers, run=run)
        for run in range(options.runs):
            for name, way in ways.items():
                for workers in (1, 2):
                    seconds = way(workers, run)
                    figures.setdefault(name, {}).setdefault(workers, []).append(seconds)
                    print(f"{name:14} {workers} {seconds:6.2f} s", flush=True)
    text = section(figures, options)
    write_section("scaling", text, page=options.output)
    print(text)


if __name__ == "__main__":
    main()
