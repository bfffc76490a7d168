"""Compare backup programs on one big file, random and text-like: `python -m bench.big`. Rewrites its part of the page.

The text is also compressed by zstd 3 alone on all cores, which is what a backup of it can't do without.
"""

import argparse
import shutil
import statistics
import subprocess
import tempfile
from pathlib import Path

from bench import tree
from bench.charts import bars
from bench.generated import random_file, text_file
from bench.machine import measured
from bench.page import PAGE, write_section
from bench.peers import NAMES, Peer, available, ours

RANDOM, TEXT, ALONE = "random", "text", "zstd -3 -T0"
BACKUP = {RANDOM: "first backup, random file", TEXT: "first backup, text"}
RESTORE, STORED = "restore, random file", "stored, text"
GOALS = {
    BACKUP[RANDOM]: "at least 900 MB/s, 2 x the fastest",
    BACKUP[TEXT]: "within 10 % of zstd 3 alone",
    RESTORE: "2 x the fastest",
    STORED: "-",
}
FAST = ("restic-new", "kopia", "rustic")
Figures = dict[str, dict[str, list[float]]]


def measure(peer: Peer, folders: dict[str, Path], scratch: Path, *, run: int) -> dict[str, float]:
    """Back up each file into a fresh repository and restore it; return what that cost."""
    figures: dict[str, float] = {}
    for kind, folder in folders.items():
        repository, target = scratch / f"{peer.name}.vault", scratch / "restored"
        peer.create(repository)
        took = peer.run(peer.backup(repository, folder), repository)
        figures[BACKUP[kind]], figures[f"cpu {BACKUP[kind]}"] = took.seconds, took.cpu_s
        if kind == TEXT:
            figures[STORED] = tree.size(repository) / 2**20
        if kind == RANDOM or run == 0:  # every program proves once that it has the text, each time that it has the rest
            target.mkdir()
            took = peer.run(peer.restore(repository, folder, target), repository)
            restored = peer.restored(folder, target)
            subprocess.run(["cmp", str(folder / "big"), str(restored / "big")], check=True, capture_output=True)
            shutil.rmtree(target)
            if kind == RANDOM:
                figures[RESTORE], figures[f"cpu {RESTORE}"] = took.seconds, took.cpu_s
        peer.remove(repository)
    return figures


def alone(text: Path, scratch: Path) -> dict[str, float]:
    """Compress the text with zstd alone."""
    target = scratch / "alone.zst"
    took = ours().run(["zstd", "-3", "-T0", "-q", "-f", str(text), "-o", str(target)], scratch)
    figures = {BACKUP[TEXT]: took.seconds, f"cpu {BACKUP[TEXT]}": took.cpu_s, STORED: target.stat().st_size / 2**20}
    target.unlink()
    return figures


def shown(case: str, value: float | None, sizes: dict[str, int]) -> str:
    """Return a figure with its unit; wall times with their rate."""
    if value is None:
        return "-"
    if case == STORED:
        return f"{value:.0f} MiB"
    return f"{value:.2f} s" if case.startswith("cpu") else f"{value:.2f} s ({rate(case, value, sizes):.0f} MB/s)"


def rate(case: str, seconds: float, sizes: dict[str, int]) -> float:
    """Return megabytes per second."""
    return sizes[TEXT if case == BACKUP[TEXT] else RANDOM] * 1.048576 / seconds


def table(figures: Figures, sizes: dict[str, int]) -> list[str]:
    """Return the result as a Markdown table of medians."""
    lines = [f"| case | {' | '.join(figures)} | ratio | goal |", "|---" * (len(figures) + 3) + "|"]
    for case in (*GOALS, *(f"cpu {name}" for name in GOALS if name != STORED)):
        medians = {name: statistics.median(own[case]) for name, own in figures.items() if case in own}
        peers = [value for name, value in medians.items() if name not in ("backupsite", ALONE)]
        ratio = f"{min(peers) / medians['backupsite']:.1f} x the fastest" if peers else ""
        if case == STORED:
            ratio = f"{medians['backupsite'] / min(peers):.2f} x the smallest" if peers else ""
        if case == BACKUP[TEXT] and ALONE in medians:
            ratio = f"{medians['backupsite'] / medians[ALONE] * 100 - 100:+.0f} % of zstd alone; {ratio}"
        cells = " | ".join(shown(case, medians.get(name), sizes) for name in figures)
        title = case.replace("cpu ", "processor time: ")
        lines.append(f"| {title} | {cells} | {ratio if case in GOALS else ''} | {GOALS.get(case, '')} |")
    return lines


def section(versions: list[str], figures: Figures, options: argparse.Namespace) -> str:
    """Return the section of the page; draw its chart."""
    panels, sizes = [], {RANDOM: options.mib, TEXT: options.text_mib}
    for case in (BACKUP[RANDOM], BACKUP[TEXT], RESTORE):
        medians = {name: statistics.median(own[case]) for name, own in figures.items() if case in own}
        panels.append((case, "MB/s", {name: rate(case, value, sizes) for name, value in medians.items()}))
    return "\n".join(
        [
            "## Against other programs: one big file",
            "",
            f"Made by `python -m bench.big`: a file of {options.mib:,} MiB of random bytes and one of",
            f"{options.text_mib:,} MiB of words, to a folder on the same disk, encrypted, zstd level 3, warm cache;",
            f"the median of {options.runs} runs. Every restore is compared byte by byte. zstd alone neither",
            "cuts, hashes, encrypts nor syncs.",
            "",
            f"- {measured()}",
            *(f"- {version}" for version in versions),
            "",
            *table(figures, sizes),
            "",
            bars(options.output, "big", panels),
        ]
    )


def main() -> None:
    """Make the files, run every case for every program, write the section."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=2048)
    parser.add_argument("--text-mib", type=int, default=512)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--peers", nargs="*", default=list(FAST), choices=NAMES)
    parser.add_argument("--output", type=Path, default=PAGE)
    options = parser.parse_args()
    peers = available(options.peers)
    figures: Figures = {peer.name: {} for peer in peers}
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        scratch = Path(name)
        folders = {kind: scratch / kind for kind in (RANDOM, TEXT)}
        for kind, make, mib in ((RANDOM, random_file, options.mib), (TEXT, text_file, options.text_mib)):
            folders[kind].mkdir()
            make(folders[kind] / "big", mib << 20)
        for run in range(options.runs):
            told = {peer.name: measure(peer, folders, scratch, run=run) for peer in peers}
            if shutil.which("zstd"):
                told[ALONE] = alone(folders[TEXT] / "big", scratch)
            for program, own in told.items():
                for case, value in own.items():
                    figures.setdefault(program, {}).setdefault(case, []).append(value)
                    print(f"{program:12} {case:30} {value:.2f}", flush=True)
    versions = [f"{peer.name}: {peer.version}" for peer in peers]
    text = section(versions, figures, options)
    write_section("big", text, page=options.output)
    print(text)


if __name__ == "__main__":
    main()
