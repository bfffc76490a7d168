"""Measure the walk of a tree without changes: `python -m bench.walk`. Rewrites its part of the page.

Processor time counts, as files per second of one core: of the walk alone, which looks at every entry of the tree, and
of the whole command that backs the tree up once more and finds nothing new. The start of the command is told apart.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from bench import tree
from bench.charts import bars
from bench.machine import measured
from bench.page import PAGE, write_section
from bench.peers import Took, ours
from engine.sources.files import files_source

WALK, BACKUP = "the walk alone", "a backup without changes, whole process"
GOAL = 100_000


def walk(source: Path) -> tuple[int, float, float]:
    """Walk to the end; return entries, seconds, and seconds of processor time."""
    begin_s, begin_cpu_s = time.perf_counter(), time.process_time()
    count = sum(1 for _ in files_source([str(source)], host="host").walk())
    return count, time.perf_counter() - begin_s, time.process_time() - begin_cpu_s


def measure(scratch: Path, source: Path, runs: int) -> dict[str, tuple[float, float, float]]:
    """Return entries, seconds and processor seconds of each, as medians."""
    own, vault, empty = ours(), scratch / "own.vault", scratch / "empty"
    empty.mkdir()
    own.create(vault)
    for folder in (source, empty):
        own.run(own.backup(vault, folder), vault)
    time.sleep(2.1)  # what changed within two seconds of a scan is read again
    own.run(own.backup(vault, source), vault)
    walks = [walk(source) for _ in range(runs)]
    backups = [own.run(own.backup(vault, source), vault) for _ in range(runs)]
    starts = [own.run(own.backup(vault, empty), vault) for _ in range(runs)]
    count = walks[0][0]
    return {
        WALK: (count, statistics.median(one[1] for one in walks), statistics.median(one[2] for one in walks)),
        BACKUP: _medians(count, backups),
        "the same of an empty folder": _medians(1, starts),
    }


def _medians(count: int, took: list[Took]) -> tuple[float, float, float]:
    return count, statistics.median(one.seconds for one in took), statistics.median(one.cpu_s for one in took)


def section(figures: dict[str, tuple[float, float, float]], options: argparse.Namespace) -> str:
    """Return the section of the page; draw its chart."""
    lines = ["| what | entries | time | processor time | entries per core and second | goal |", "|---" * 6 + "|"]
    for name, (count, seconds, cpu_s) in figures.items():
        rate = f"{count / cpu_s:,.0f}" if count > 1 else "-"
        goal = f"{GOAL:,}" if name == WALK else ""
        lines.append(f"| {name} | {count:,.0f} | {seconds:.2f} s | {cpu_s:.2f} s | {rate} | {goal} |")
    rates = {name: count / cpu_s for name, (count, _, cpu_s) in figures.items() if count > 1}
    return "\n".join(
        [
            "## The walk",
            "",
            f"Made by `python -m bench.walk`: a tree of {options.files:,} real files that has not changed, warm cache;",
            f"medians of {options.runs} runs.",
            "",
            f"- {measured()}",
            "",
            *lines,
            "",
            bars(options.output, "walk", [("entries per core and second", "", rates)], ours=list(rates)),
        ]
    )


def main() -> None:
    """Build the tree, measure, write the section."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=50_000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--output", type=Path, default=PAGE)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        source = Path(name, "tree")
        tree.build(source, files=options.files)
        tree.warm(source)
        text = section(measure(Path(name), source, options.runs), options)
    write_section("walk", text, page=options.output)
    print(text)


if __name__ == "__main__":
    main()
