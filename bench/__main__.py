"""Compare backup programs on one machine, in one run: `python -m bench`. Writes docs/benchmarks.md."""

import argparse
import datetime as dt
import os
import platform
import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from bench import tree
from bench.page import PAGE, write_section
from bench.peers import Peer, available

CASES = ("first backup", "unchanged", "1 % changed", "restore")
GOALS = {
    "first backup": "5 x restic and borg",
    "unchanged": "5 x the fastest peer",
    "1 % changed": "4 x the fastest peer",
    "restore": "2 x the fastest peer",
    "stored bytes": "at most 0.85 x restic",
}


def timed(peer: Peer, command: list[str], repository: Path, *, cwd: Path | None = None) -> float:
    """Return the wall time of one command in seconds."""
    os.sync()
    begin = time.perf_counter()
    peer.run(command, repository, cwd=cwd)
    return time.perf_counter() - begin


def measure(peer: Peer, source: Path, scratch: Path, *, run: int) -> dict[str, float]:
    """Run all cases once in a fresh repository; return seconds per case, and the stored bytes."""
    repository, target = scratch / f"{peer.name}.vault", scratch / "restored"
    figures: dict[str, float] = {}
    peer.run(peer.init(repository), repository)
    figures["first backup"] = timed(peer, peer.backup(repository, source), repository)
    figures["stored bytes"] = tree.size(repository)
    figures["unchanged"] = timed(peer, peer.backup(repository, source), repository)
    tree.change(source, share=0.01, seed=run)
    figures["1 % changed"] = timed(peer, peer.backup(repository, source), repository)
    target.mkdir()
    figures["restore"] = timed(peer, peer.restore(repository, target), repository, cwd=_cwd(peer, target))
    check_restored(source, target)
    for leftover in (target, *scratch.glob(f"{peer.name}.*")):
        shutil.rmtree(leftover, ignore_errors=True)
        leftover.unlink(missing_ok=True) if leftover.is_file() else None
    return figures


def _cwd(peer: Peer, target: Path) -> Path | None:
    return target if peer.name == "borg" else None  # borg extracts into the folder it runs in


def check_restored(source: Path, target: Path) -> None:
    """Refuse a fast but wrong restore: every byte is compared."""
    restored = target / str(source).lstrip("/")
    subprocess.run(["diff", "-r", "--no-dereference", str(source), str(restored)], check=True, capture_output=True)


def table(peers: list[Peer], figures: dict[str, dict[str, list[float]]]) -> list[str]:
    """Return the result as a Markdown table: medians, and how many times faster than the fastest peer."""
    names = [peer.name for peer in peers]
    lines = [f"| case | {' | '.join(names)} | ratio | goal |", "|---" * (len(names) + 3) + "|"]
    for case in (*CASES, "stored bytes"):
        medians = [statistics.median(figures[name][case]) for name in names]
        if case == "stored bytes":
            shown = [f"{value / 2**20:.0f} MiB" for value in medians]
            ratio = f"{medians[0] / medians[names.index('restic')]:.2f} x restic" if "restic" in names else "-"
        else:
            shown = [f"{value:.2f} s" for value in medians]
            best = min(medians[1:], default=0.0)
            ratio = f"{best / medians[0]:.1f} x faster than the fastest peer" if best else "-"
        lines.append(f"| {case} | {' | '.join(shown)} | {ratio} | {GOALS[case]} |")
    return lines


def report(peers: list[Peer], figures: dict[str, dict[str, list[float]]], *, data: str, runs: int) -> str:
    """Return the page."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    head = [
        "## Against other programs",
        "",
        "Made by `make bench`: every program backs up and restores the same tree in the same run, to a folder on",
        f"the same disk, encrypted, zstd level 3, warm cache; the median of {runs} runs. Every restore is compared",
        "byte by byte.",
        "",
        f"- Measured on {dt.datetime.now(dt.UTC):%Y-%m-%d}, {cores} cores, {platform.machine()}, "
        f"Linux {platform.release()}, Python {platform.python_version()}",
        f"- Data: {data}",
        *(f"- {peer.version}" for peer in peers),
        "",
    ]
    return "\n".join([*head, *table(peers, figures), ""])


def main() -> None:
    """Build the tree, run every case for every program, write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=50_000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--peers", nargs="*", default=["restic", "borg"])
    parser.add_argument("--output", type=Path, default=PAGE)
    options = parser.parse_args()
    peers = available(options.peers)
    figures: dict[str, dict[str, list[float]]] = {peer.name: {} for peer in peers}
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        scratch = Path(name)
        source = scratch / "tree"
        count, size = tree.build(source, files=options.files)
        tree.warm(source)
        for run in range(options.runs):
            for peer in peers:
                for case, value in measure(peer, source, scratch, run=run).items():
                    figures[peer.name].setdefault(case, []).append(value)
                    print(f"{peer.name:12} {case:14} {value:.2f}", flush=True)
    page = report(peers, figures, data=f"{count} real files, {size / 2**20:.0f} MiB", runs=options.runs)
    write_section("compare", page, page=options.output)
    print(page)


if __name__ == "__main__":
    main()
