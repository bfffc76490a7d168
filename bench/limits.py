"""Measure how backups keep to their limits: `python -m bench.limits`. Rewrites its part of docs/benchmarks.md.

A whole installation (PostgreSQL, Redis, MinIO, two worker processes) backs up files of random bytes with the limits of
each priority. Every byte on its way to MinIO passes a door that counts them; the rate is that of the worst ten seconds.
"""

import argparse
import contextlib
import datetime as dt
import os
import random
import tempfile
import time
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from bench.page import write_section
from tests import services
from tests.scenarios.installation import ENDED, Installation, fresh_bucket, full_set, until
from tests.scenarios.relay import Door

MB = 1_000_000
PRIORITIES = (("low", 10 * MB, 1), ("high", 30 * MB, 2))
WINDOW_S = 10.0
# The heartbeat of an installation, not the one that tests use.
USUAL = {"BACKUPSITE_STEP_LEASE_S": "90", "BACKUPSITE_STEP_HEARTBEAT_S": "5"}


def worst(passed: list[tuple[float, int]]) -> float:
    """Return the bytes per second of the ten seconds that saw most."""
    moments, sums = [moment for moment, _ in passed], [0]
    for _, count in passed:
        sums.append(sums[-1] + count)
    return max(
        (sums[bisect_left(moments, moment + WINDOW_S)] - sums[number]) / WINDOW_S
        for number, moment in enumerate(moments)
    )


def fill(folder: Path, *, files: int, seed: str) -> int:
    """Write files of random bytes, some small and some of 32 MiB; return their bytes."""
    folder.mkdir()
    rng = random.Random(seed)
    for number in range(files):
        size = rng.choice((20_000, 300_000, 32 << 20))
        (folder / f"{number:04}.bin").write_bytes(rng.randbytes(size))
    return sum(path.stat().st_size for path in folder.iterdir())


@contextlib.contextmanager
def installed(folder: Path) -> Iterator[tuple[Installation, Door]]:
    """Have an installation with a region behind a counting door inside the block."""
    state = folder / "services"
    names = ["redis", "postgres", "minio"]
    try:
        entries = {name: services.start(name, state) for name in names}
        store = services.s3("minio", entries["minio"])
        door = Door(store.endpoint)
        near = replace(store, endpoint=door.endpoint, url=f"http://{door.endpoint}")
        database, broker = services.postgres(entries["postgres"]), services.redis(entries["redis"]).url
        with fresh_bucket(store) as bucket, full_set(folder, database=database, broker=broker, more=USUAL) as site:
            site.region("main", near, bucket)
            with site.working():
                yield site, door
    finally:
        services.stop(names, state)


def measure(site: Installation, door: Door, folder: Path, *, files: int) -> list[tuple[str, ...]]:
    """Back up once with each priority's limits; return the rows of the table."""
    rows: list[tuple[str, ...]] = []
    for name, rate, parallel in PRIORITIES:
        size = fill(folder / name, files=files, seed=name)
        policy = {"limits": {"bytes_per_s": rate, "parallel_max": parallel}}
        protected = site.protect(name, folder / name, policy=policy)
        door.sent.clear()
        job = site.backup(protected)["id"]
        begin, most_steps = time.monotonic(), 0

        def over(job: str = job) -> bool:
            nonlocal most_steps
            most_steps = max(most_steps, len(site.steps(job, state="running")))
            return site.job(job)["state"] in ENDED

        until(over, seconds=600, what=f"the end of the job\n{site.logs()}")
        took = time.monotonic() - begin
        assert site.job(job)["state"] == "complete", site.job(job)
        rows.append(
            (name, f"{rate / MB:g} MB/s, {parallel}", f"{size / MB:.0f} MB", f"{took:.1f} s",
             f"{worst(door.sent) / MB:.2f} MB/s", f"{size / took / MB:.2f} MB/s", str(most_steps))
        )  # fmt: skip
    return rows


def cancel(site: Installation, folder: Path) -> str:
    """Cancel a job in the middle of one big file; return how long it took."""
    folder.mkdir()
    with (folder / "big.bin").open("wb") as file:
        for _ in range(40):
            file.write(os.urandom(16 << 20))
    protected = site.protect("cancel", folder, policy={"limits": {"bytes_per_s": 10 * MB, "parallel_max": 2}})
    job = site.backup(protected)["id"]
    site.watch(job, lambda now: now["bytes_done"] > 20 * MB)
    begin = time.monotonic()
    site.api.post(f"jobs/{job}/cancel/", expect=202)
    until(lambda: site.job(job)["state"] == "canceled", what="the job's end")
    took = time.monotonic() - begin
    assert not site.points(protected)
    return f"{took:.1f} s"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--files", type=int, default=30, help="files of each backup; a third of them have 32 MiB")
    given = options.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-limits-") as name:
        folder = Path(name)
        with installed(folder) as (site, door):
            rows = measure(site, door, folder, files=given.files)
            canceled = cancel(site, folder / "cancel")
    head = ("priority", "limit, steps", "random files", "time", "worst 10 s on the wire", "on average", "steps at once")
    lines = [f"| {' | '.join(row)} |" for row in (head, ("---",) * len(head), *rows)]
    text = "\n".join(
        [
            "## Limits",
            "",
            "A whole installation with two worker processes sends to MinIO through a door that counts bytes. The worst",
            "ten seconds count headers, listings and indexes too.",
            "",
            *lines,
            "",
            f"A job in the middle of a file of 671 MB, held to 10 MB/s, ended {canceled} after its cancel and left no",
            "point.",
            "",
            f"Measured {dt.datetime.now(dt.UTC):%Y-%m-%d}, {os.cpu_count()} cores: `python -m bench.limits`.",
        ]
    )
    write_section("Limits", text)


if __name__ == "__main__":
    main()
