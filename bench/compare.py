"""Compare backup programs on a tree of small real files: `python -m bench.compare`. Rewrites its part of the page.

Each program makes a repository, backs the tree up, backs it up again unchanged and with 1 % of the files changed,
restores it, and backs up a copy of the tree as another host would have it. In turns, so that what the machine does
beside it hits all alike.
"""

import argparse
import statistics
import subprocess
import tempfile
from pathlib import Path

from bench import tree
from bench.charts import bars
from bench.machine import measured
from bench.page import PAGE, write_section
from bench.peers import NAMES, Peer, Took, available

FIRST, UNCHANGED, CHANGED, RESTORE = "first backup", "unchanged", "1 % changed", "restore"
DURABLE, STORED, SECOND = "restore, until it is on the disk", "stored", "new bytes of a second host"
SAFE = "first backup, until it is on the disk"
TIMED = (FIRST, UNCHANGED, CHANGED, RESTORE)
GOALS = {
    FIRST: "5 x restic and borg, 2 x the fastest",
    SAFE: "2 x the fastest",
    UNCHANGED: "5 x the fastest",
    CHANGED: "4 x the fastest",
    RESTORE: "2 x the fastest",
    DURABLE: "2 x the fastest",
    STORED: "at most 0.85 x restic",
    SECOND: "under 1 %",
}
Figures = dict[str, dict[str, list[float]]]


def measure(peer: Peer, source: Path, second: Path, *, run: int) -> dict[str, float]:
    """Run all cases once in a fresh repository; return what each cost."""
    repository, target = source.parent / f"{peer.name}.vault", source.parent / "restored"
    figures: dict[str, float] = {}

    def note(case: str, took: Took) -> None:
        figures[case], figures[f"cpu {case}"] = took.seconds, took.cpu_s

    peer.create(repository)
    took = peer.run(peer.backup(repository, source), repository)
    note(FIRST, took)
    figures[SAFE] = took.durable_s
    figures[STORED] = tree.size(repository)
    note(UNCHANGED, peer.run(peer.backup(repository, source), repository))
    tree.change(source, share=0.01, seed=run)
    note(CHANGED, peer.run(peer.backup(repository, source), repository))
    target.mkdir()
    took = peer.run(peer.restore(repository, source, target), repository)
    note(RESTORE, took)
    figures[DURABLE] = took.durable_s
    check_restored(source, peer.restored(source, target))
    # Deleted when all is measured: ext4 searches past each inode that was freed in the last minutes.
    target.rename(source.parent / f"restored by {peer.name}, {run}")
    if run == 0:  # these bytes are the same each time
        before = tree.size(repository)
        peer.run(peer.backup(repository, second), repository)
        figures[SECOND] = 100 * (tree.size(repository) - before) / figures[STORED]
    peer.remove(repository)
    return figures


def check_restored(source: Path, restored: Path) -> None:
    """Refuse a fast but wrong restore: every byte is compared."""
    subprocess.run(["diff", "-r", "--no-dereference", str(source), str(restored)], check=True, capture_output=True)


def shown(case: str, value: float) -> str:
    """Return a figure with its unit."""
    if case == STORED:
        return f"{value / 2**20:.0f} MiB"
    return f"{value:.2f} %" if case == SECOND else f"{value:.2f} s"


def verdict(case: str, medians: dict[str, float]) -> str:
    """Return how ours stands against the others."""
    own, others = medians["backupsite"], [value for name, value in medians.items() if name != "backupsite"]
    if case == SECOND or not others:
        return "-"
    if case == STORED:
        restic = next((medians[name] for name in ("restic", "restic-new") if name in medians), None)
        return f"{own / restic:.2f} x restic" if restic else "-"
    told = f"{min(others) / own:.1f} x the fastest"
    old = [medians[name] for name in ("restic", "restic-new", "borg") if name in medians]
    return f"{told}, {min(old) / own:.1f} x restic and borg" if case == FIRST and old else told


def table(names: list[str], figures: Figures) -> list[str]:
    """Return the result as a Markdown table of medians."""
    lines = [f"| case | {' | '.join(names)} | ratio | goal |", "|---" * (len(names) + 3) + "|"]
    for case in GOALS:
        medians = {name: statistics.median(figures[name][case]) for name in names}
        cells = " | ".join(shown(case, value) for value in medians.values())
        lines.append(f"| {case} | {cells} | {verdict(case, medians)} | {GOALS[case]} |")
    for case in TIMED:
        cells = " | ".join(f"{statistics.median(figures[name][f'cpu {case}']):.2f} s" for name in names)
        lines.append(f"| processor time: {case} | {cells} | | |")
    return lines


def section(peers: list[Peer], figures: Figures, *, data: str, runs: int, page: Path) -> str:
    """Return the section of the page; draw its chart."""
    names = [peer.name for peer in peers]
    panels = [
        (case, "s", {name: statistics.median(figures[name][case]) for name in names})
        for case in (FIRST, UNCHANGED, CHANGED, RESTORE)
    ]
    panels.append((STORED, "MiB", {name: statistics.median(figures[name][STORED]) / 2**20 for name in names}))
    panels.append((f"{SECOND}", "%", {name: figures[name][SECOND][0] for name in names}))
    return "\n".join(
        [
            "## Against other programs: a tree of small files",
            "",
            "Made by `python -m bench.compare`: every program backs up and restores the same tree in the same run, to",
            f"a folder on the same disk, encrypted, zstd level 3, warm cache; the median of {runs} runs. Every restore",
            "is compared byte by byte. A second host has a copy of the tree under another path. Not every program",
            "syncs what it writes before it says that it is done: kopia syncs next to nothing of a backup, and borg,",
            "kopia and rustic nothing that they restored (strace). The rows that end on the disk add that.",
            "",
            f"- {measured()}",
            f"- Data: {data}",
            *(f"- {peer.name}: {peer.version}" for peer in peers),
            "",
            *table(names, figures),
            "",
            bars(page, "compare", panels),
        ]
    )


def main() -> None:
    """Build the tree, run every case for every program, write the section."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=50_000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--peers", nargs="*", default=list(NAMES), choices=NAMES)
    parser.add_argument("--output", type=Path, default=PAGE)
    options = parser.parse_args()
    peers = available(options.peers)
    figures: Figures = {peer.name: {} for peer in peers}
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        source, second = Path(name, "tree"), Path(name, "second", "tree")
        count, size = tree.build(source, files=options.files)
        second.parent.mkdir()
        subprocess.run(["cp", "-a", str(source), str(second)], check=True)
        tree.warm(source)
        for run in range(options.runs):
            for peer in peers:
                for case, value in measure(peer, source, second, run=run).items():
                    figures[peer.name].setdefault(case, []).append(value)
                    print(f"{peer.name:12} {case:34} {value:.2f}", flush=True)
    data = f"{count:,} real files, {size / 2**20:.0f} MiB"
    text = section(peers, figures, data=data, runs=options.runs, page=options.output)
    write_section("compare", text, page=options.output)
    print(text)


if __name__ == "__main__":
    main()
