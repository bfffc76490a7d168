"""Compare restoring a big file with merely fetching its objects: `python -m bench.rawget`. Rewrites its part of the
page.

The vault lies on a MinIO on this machine. Fetching means: as many processes as there are cores GET every pack whole
and throw it away; a restore fetches, decrypts, decompresses, hashes, writes and syncs. Without MinIO (--folder-only)
the packs lie in a folder, and fetching is reading them.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from multiprocessing.queues import SimpleQueue
from multiprocessing.synchronize import Barrier
from pathlib import Path

from bench.charts import bars
from bench.generated import random_file
from bench.machine import cores, measured
from bench.page import PAGE, write_section
from engine.storage.location import Location, open_storage
from tests import services
from tests.scenarios.installation import fresh_bucket

ROOT = Path(__file__).resolve().parent.parent
GET, RESTORE = "GET of every pack", "restore of the file"
GOAL = 0.5


def fetch(place: Location, keys: list[str], begin: Barrier, ends: "SimpleQueue[float]") -> None:
    """GET these objects, throw them away, and tell when that was done."""
    storage = open_storage(place)
    begin.wait()
    for key in keys:
        storage.get(key)
    ends.put(time.monotonic())


def raw_get(place: Location) -> float:
    """Fetch every pack with a process per core; return the seconds, without those of starting them."""
    keys = [one.key for one in open_storage(place).scan("packs/")]
    spawn, count = multiprocessing.get_context("spawn"), cores()
    begin, ends = spawn.Barrier(count + 1), spawn.SimpleQueue()
    processes = [spawn.Process(target=fetch, args=(place, keys[n::count], begin, ends)) for n in range(count)]
    for process in processes:
        process.start()
    begin.wait()
    begin_s = time.monotonic()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        raise SystemExit("a GET failed")
    return float(max(ends.get() for _ in processes)) - begin_s


@contextlib.contextmanager
def store(folder: Path, *, on_minio: bool) -> Iterator[tuple[Location, dict[str, str]]]:
    """Have a place for a vault inside the block, with what its commands need in their environment."""
    if not on_minio:
        yield Location.parse(str(folder / "vault")), {}
        return
    state = folder / "services"
    try:
        service = services.s3("minio", services.start("minio", state))
        with fresh_bucket(service) as bucket:
            place = Location.parse(
                f"s3://{bucket}/vault", endpoint=service.url,
                access_key=service.access_key, secret_key=service.secret_key,
            )  # fmt: skip
            yield (
                place,
                {
                    "BACKUPSITE_S3_ENDPOINT": service.url,
                    "AWS_ACCESS_KEY_ID": service.access_key,
                    "AWS_SECRET_ACCESS_KEY": service.secret_key,
                },
            )
    finally:
        services.stop(["minio"], state)


def measure(folder: Path, options: argparse.Namespace) -> dict[str, list[float]]:
    """Back the file up, then fetch and restore it in turns; return the seconds of each."""
    data = folder / "data"
    data.mkdir()
    random_file(data / "big", options.mib << 20)
    figures: dict[str, list[float]] = {GET: [], RESTORE: []}
    with store(folder, on_minio=not options.folder_only) as (place, more):
        environment = {
            **os.environ, **more,
            "BACKUPSITE_KEY_FILE": str(folder / "key"), "BACKUPSITE_CACHE_DIR": str(folder / "cache"),
        }  # fmt: skip

        def engine(*arguments: str) -> float:
            command = [sys.executable, "-m", "engine", arguments[0], place.url, *arguments[1:], "--json"]
            done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
            return float(json.loads(done.stdout).get("duration_s", 0))

        engine("init")
        engine("backup", str(data))
        for _ in range(options.runs):
            os.sync()
            figures[GET].append(raw_get(place))
            target = folder / "restored"
            target.mkdir()
            figures[RESTORE].append(engine("restore", "latest", "--to", str(target)))
            restored = target / str(data).lstrip("/") / "big"
            subprocess.run(["cmp", str(data / "big"), str(restored)], check=True, capture_output=True)
            shutil.rmtree(target)
    return figures


def section(figures: dict[str, list[float]], options: argparse.Namespace) -> str:
    """Return the section of the page; draw its chart."""
    rates = {name: options.mib * 1.048576 / statistics.median(own) for name, own in figures.items()}
    place = "a folder" if options.folder_only else "a MinIO on this machine, which takes its part of the cores"
    lines = ["| what | time | rate | of GET | goal |", "|---|---|---|---|---|"]
    for name, own in figures.items():
        share, goal = f"{rates[name] / rates[GET]:.2f}", f"at least {GOAL}" if name == RESTORE else ""
        lines.append(f"| {name} | {statistics.median(own):.2f} s | {rates[name]:,.0f} MB/s | {share} | {goal} |")
    return "\n".join(
        [
            "## Restoring beside fetching",
            "",
            f"Made by `python -m bench.rawget`: a file of {options.mib:,} MiB of random bytes, restored from {place},",
            f"by {cores()} processes, hashed, written and synced; beside it the same number of processes that GET",
            f"every pack and throw it away. Medians of {options.runs} runs; each restore is compared byte by byte.",
            "",
            f"- {measured()}",
            "",
            *lines,
            "",
            bars(options.output, "rawget", [("rate", "MB/s", rates)], ours=[RESTORE]),
        ]
    )


def main() -> None:
    """Measure and write the section."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--folder-only", action="store_true")
    parser.add_argument("--output", type=Path, default=PAGE)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        text = section(measure(Path(name), options), options)
    write_section("rawget", text, page=options.output)
    print(text)


if __name__ == "__main__":
    main()
