"""Measure the index of a vault with many chunks: `python -m bench.index`. Rewrites its part of the page.

Segments with random ids are stored through the index itself; a process of its own then loads them, first from the
vault, then from its cache, and looks up batches of ids of which half are known.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from bench.acts import do, new_vault, opener, told_by
from bench.charts import bars
from bench.machine import anonymous_bytes, measured, resident_bytes
from bench.page import PAGE, write_section
from engine.index import ROWS_MAX, encode_segment
from engine.pack import Head, Sealed, Table

PACK_CHUNKS, SLOT_CHUNKS, CHUNK_BYTES = 2_000, 16, 16_384
BATCH, BATCHES = 10_000, 60
GOALS = ("150 MiB, 500,000 lookups/s", "-")


def ids_of(segment: int, rows: int) -> np.ndarray:
    """Return the ids that a segment was filled with."""
    return np.random.default_rng(segment).integers(0, 256, (rows, 32), dtype=np.uint8)


def sealed_packs(segment: int, rows: int) -> list[Sealed]:
    """Return the packs that one segment lists."""
    ids = ids_of(segment, rows)
    packs = []
    for at in range(0, rows, PACK_CHUNKS):
        own = ids[at : at + PACK_CHUNKS]
        number = np.arange(len(own), dtype=np.uint32)
        slots = np.arange(-(-len(own) // SLOT_CHUNKS), dtype=np.uint32)
        stored = np.full(len(slots), SLOT_CHUNKS * CHUNK_BYTES // 2, np.uint32)
        table = Table(
            own, number // SLOT_CHUNKS, number % SLOT_CHUNKS * CHUNK_BYTES, np.full(len(own), CHUNK_BYTES, np.uint32),
            np.zeros(len(slots), bool), 128 + slots * stored, stored,
        )  # fmt: skip
        packs.append(Sealed(Head(own[0].tobytes().hex(), 0, 32 << 20, 1, own[1].tobytes()), table))
    return packs


def sizes(chunks: int) -> list[int]:
    """Return how many rows each segment has."""
    return [min(ROWS_MAX, chunks - at) for at in range(0, chunks, ROWS_MAX)]


def fill(folder: Path, chunks: int) -> dict[str, int]:
    """Store an index of so many chunks."""
    index = opener(folder, cache="filling").vault.index
    stored = sum(
        index.add(plain)
        for number, rows in enumerate(sizes(chunks))
        for plain in encode_segment(sealed_packs(number, rows))
    )
    return {"stored_bytes": stored}


def look(folder: Path, chunks: int) -> dict[str, float]:
    """Load the index and look up batches of ids."""
    vault = opener(folder).vault
    before = anonymous_bytes()
    begin_s = time.perf_counter()
    index = vault.index
    load_s = time.perf_counter() - begin_s
    parts = sizes(chunks)
    rng = np.random.default_rng(99)
    batches = []
    for number in range(BATCHES):
        known = ids_of(number % len(parts), parts[number % len(parts)])[:, :16]
        chosen = known[rng.integers(0, len(known), BATCH)]
        chosen[::2] = rng.integers(0, 256, (len(chosen[::2]), 16), dtype=np.uint8)
        batches.append([row.tobytes() for row in chosen])
        del known, chosen
    begin_s, begin_cpu_s, found = time.perf_counter(), time.process_time(), 0
    for batch in batches:
        found += int(index.known(batch).sum())
    looked_s, cpu_s = time.perf_counter() - begin_s, time.process_time() - begin_cpu_s
    if found != BATCH * BATCHES // 2:
        raise SystemExit(f"{found} ids were known, and half of {BATCH * BATCHES} are")
    return {
        "load_s": load_s, "lookups_s": BATCH * BATCHES / looked_s, "lookups_cpu_s": BATCH * BATCHES / cpu_s,
        "own_bytes": anonymous_bytes() - before,
    }  # fmt: skip


def resident(folder: Path) -> dict[str, int]:
    """Load the index from its cache, look something up in every part of it, and tell the memory."""
    vault = opener(folder).vault
    before, own_before = resident_bytes(), anonymous_bytes()
    index = vault.index
    rng = np.random.default_rng(7)
    for _ in range(BATCHES):
        index.known([row.tobytes() for row in rng.integers(0, 256, (BATCH, 16), dtype=np.uint8)])
    return {"resident_bytes": resident_bytes() - before, "own_bytes": anonymous_bytes() - own_before}


def measure(folder: Path, chunks: int) -> dict[str, Any]:
    """Fill an index, load and ask it in fresh processes; return the figures."""
    folder.mkdir()
    new_vault(folder)
    filled = told_by("bench.index", "fill", folder, chunks=chunks)["outcome"]
    cold = told_by("bench.index", "look", folder, chunks=chunks)["outcome"]
    warm = told_by("bench.index", "look", folder, chunks=chunks)["outcome"]
    memory = told_by("bench.index", "resident", folder, chunks=chunks)["outcome"]
    return {**warm, **filled, **memory, "cold_s": cold["load_s"]}


def section(measured_by_count: dict[int, dict[str, Any]], page: Path) -> str:
    """Return the section of the page; draw its chart."""
    head = ("chunks", "stored", "loaded from the vault", "from the cache", "memory", "of it not droppable",
            "lookups/s", "per second of processor", "goal")  # fmt: skip
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for (count, one), goal in zip(measured_by_count.items(), GOALS, strict=False):
        cells = (
            f"{count:,}", f"{one['stored_bytes'] / 2**20:.0f} MiB", f"{one['cold_s']:.2f} s", f"{one['load_s']:.2f} s",
            f"{one['resident_bytes'] / 2**20:.0f} MiB", f"{one['own_bytes'] / 2**20:.0f} MiB",
            f"{one['lookups_s']:,.0f}", f"{one['lookups_cpu_s']:,.0f}", goal,
        )  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    panels = [
        ("lookups", "/s", {f"{count:,} chunks": one["lookups_s"] for count, one in measured_by_count.items()}),
        (
            "memory", "MiB",
            {f"{count:,} chunks": one["resident_bytes"] / 2**20 for count, one in measured_by_count.items()},
        ),
    ]  # fmt: skip
    return "\n".join(
        [
            "## The index",
            "",
            f"Made by `python -m bench.index`: random ids, looked up in batches of {BATCH:,}, half of them known.",
            "Memory is what loading and asking adds to the process; most of it are pages of cache files mapped into",
            "it, which all processes of a host share and the system may drop.",
            "",
            f"- {measured()}",
            "",
            *lines,
            "",
            bars(page, "index", panels, ours=[f"{count:,} chunks" for count in measured_by_count]),
        ]
    )


def main() -> None:
    """Measure each size and write the section, or do one act."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chunks", type=int, nargs="*", default=[1_000_000, 10_000_000])
    parser.add_argument("--output", type=Path, default=PAGE)
    parser.add_argument("--act", choices=["fill", "look", "resident"])
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    if options.act:
        count = options.chunks[0]
        acts = {
            "fill": lambda: fill(options.folder, count),
            "look": lambda: look(options.folder, count),
            "resident": lambda: resident(options.folder),
        }
        do(acts[options.act])
        return
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        figures = {count: measure(Path(name, str(count)), count) for count in options.chunks}
    text = section(figures, options.output)
    write_section("index", text, page=options.output)
    print(text)


if __name__ == "__main__":
    main()
