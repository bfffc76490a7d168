"""Measure buckets of many objects: `python -m bench.bucket`. Rewrites its part of docs/benchmarks.md.

A million keys are served on loopback by a double that generates its listing: no server at hand takes a million objects
in a reasonable time on a small machine. The first point is filled without fetching them, by a source that knows what
they hold; listing, sorting, comparing and the run without changes are the real ones. What fetching and restoring cost
is measured on MinIO (BENCH_S3_ENDPOINT, BENCH_S3_ACCESS_KEY, BENCH_S3_SECRET_KEY) with fewer objects.
Each run is a process of its own, whose peak memory is measured.
"""

import argparse
import datetime as dt
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
from minio import Minio

from bench.page import write_section
from bench.scale import clock, opener
from engine.entries import Entry, Kind, Problem
from engine.ids import new_ulid
from engine.keyproviders.keyring import Keyring
from engine.progress import Silent
from engine.runner import run
from engine.sources.bucket import BucketSource
from engine.storage import Directory
from engine.storage.location import Location
from engine.targets.bucket import BucketTarget
from engine.vault import Vault
from engine.verbs import backup, restore
from tests.support.bucket_double import BucketDouble, Held, serving

FOLDERS = 500
BODY_BYTES = 4096
_THREADS = 16


class Generated(BucketDouble):
    """So many keys in FOLDERS folders; each object holds its key."""

    def __init__(self, keys: int) -> None:
        super().__init__()
        self.order = sorted(f"{number % FOLDERS:03}/event {number:08}.json" for number in range(keys))

    def look(self, key: str) -> Held | None:
        return Held(key.encode())


class Filling(BucketSource, frozen=True, tag="bucket", kw_only=True):
    """Knows what a generated bucket holds without asking."""

    def expect(self, entries: Sequence[Entry]) -> None: ...

    def read_small(self, entry: Entry, limit: int) -> tuple[Entry, bytes] | Problem | None:
        return entry, entry.path


def back_up(folder: Path, source: BucketSource, *, workers: int) -> Any:
    job = backup.BackupJob(session=new_ulid(clock()), series="bucket", source=source, started_at=clock())
    return run(opener(folder), backup, job, workers=workers, progress=Silent(), clock=clock)


def put_back(folder: Path, target: BucketTarget, *, workers: int) -> Any:
    own = opener(folder)
    name = own.vault.find("latest")
    job = restore.RestoreJob(
        session=new_ulid(clock()), series=name.series, point=name.point, target=target, started_at=clock()
    )
    return run(own, restore, job, workers=workers, progress=Silent(), clock=clock)


def walk(source: BucketSource) -> dict[str, Any]:
    count = sum(1 for _ in source.walk())
    return {"state": f"{count:,} keys", "requests": source.requests()}


def act(name: str, folder: Path, at: Location, workers: int) -> Any:
    """Do one thing here and return its outcome."""
    acts: dict[str, Callable[[], Any]] = {
        "walk": lambda: walk(BucketSource(location=at)),
        "fill": lambda: back_up(folder, Filling(location=at), workers=1),
        "backup": lambda: back_up(folder, BucketSource(location=at, prefix="from/"), workers=workers),
        "unchanged": lambda: back_up(folder, BucketSource(location=at), workers=workers),
        "unchanged again": lambda: back_up(folder, BucketSource(location=at, prefix="from/"), workers=workers),
        "restore": lambda: put_back(folder, BucketTarget(location=at, prefix="to/"), workers=workers),
    }
    return acts[name]()


def told_by(name: str, folder: Path, at: Location, *, workers: int = 1) -> dict[str, Any]:
    """Do one thing in a process of its own; return its time, its peak memory and its outcome."""
    command = [sys.executable, "-m", "bench.bucket", "--act", name, "--folder", str(folder), "--workers", str(workers)]
    done = subprocess.run(command, input=msgspec.json.encode(at), stdout=subprocess.PIPE, check=True)
    told: dict[str, Any] = json.loads(done.stdout)
    print(f"{name:16} {told['seconds']:8.2f} s", flush=True)
    return told


def new_vault(folder: Path) -> None:
    ring = Keyring.generate()
    ring.save(folder / "key")
    Vault.create(Directory(str(folder / "vault"), create=True), providers=[ring], now=clock())


def measure_listing(folder: Path, keys: int) -> list[tuple[str, dict[str, Any]]]:
    """Measure a generated bucket; its server is a process of its own."""
    new_vault(folder)
    command = [sys.executable, "-m", "bench.bucket", "--act", "serve", "--keys", str(keys)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        at = Location(url="s3://generated", endpoint=server.stdout.readline().strip())
        told = [
            (f"list {keys:,} keys and sort them", told_by("walk", folder, at)),
            ("first point, contents not fetched", told_by("fill", folder, at)),
            ("backup without changes", told_by("unchanged", folder, at)),
        ]
        server.communicate()
    return told


def measure_objects(folder: Path, objects: int) -> list[tuple[str, dict[str, Any]]]:
    """Measure a real server with objects of BODY_BYTES, if one is named."""
    endpoint = os.environ.get("BENCH_S3_ENDPOINT")
    if not endpoint:
        return []
    new_vault(folder)
    access, secret = os.environ["BENCH_S3_ACCESS_KEY"], os.environ["BENCH_S3_SECRET_KEY"]
    at = Location(url=f"s3://bench-{uuid.uuid4().hex[:12]}", endpoint=endpoint, access_key=access, secret_key=secret)
    scheme, _, host = endpoint.partition("://")
    Minio(host, access_key=access, secret_key=secret, secure=scheme == "https").make_bucket(at.bucket)
    target = BucketTarget(location=at, prefix="from/")

    def put(number: int) -> None:
        body = os.urandom(BODY_BYTES // 2) + bytes(BODY_BYTES // 2)
        target.write_small(Entry(b"%03d/%07d" % (number % FOLDERS, number), Kind.FILE, size=len(body)), body)

    with ThreadPoolExecutor(_THREADS) as executor:
        list(executor.map(put, range(objects)))
    time.sleep(2.1)  # what changed within two seconds of a scan is read again
    return [
        (f"first backup of {objects:,} objects of {BODY_BYTES} bytes", told_by("backup", folder, at, workers=2)),
        ("backup without changes", told_by("unchanged again", folder, at, workers=2)),
        ("restore into the bucket under another prefix", told_by("restore", folder, at, workers=2)),
    ]


def rows(told: list[tuple[str, dict[str, Any]]]) -> list[str]:
    """Return the lines of a table."""
    lines = ["| what | time | peak memory | requests | outcome |", "|---|---|---|---|---|"]
    for name, one in told:
        asked = ", ".join(f"{count:,} {verb}" for verb, count in sorted(one["outcome"].get("requests", {}).items()))
        peak = f"{one['peak_bytes'] / 2**20:.0f} MiB"
        lines.append(f"| {name} | {one['seconds']:.1f} s | {peak} | {asked or '-'} | {one['outcome']['state']} |")
    return lines


def section(listing: list[tuple[str, dict[str, Any]]], objects: list[tuple[str, dict[str, Any]]], keys: int) -> str:
    """Return the section of the page."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    lines = [
        "## Buckets of many objects",
        "",
        f"Made by `python -m bench.bucket`. {keys:,} keys in {FOLDERS} folders, served on loopback by a double that",
        "generates its listing and takes one of the cores; the first point was filled without fetching their contents.",
        "Each run is a process of its own; peak memory is that of its largest process.",
        f"Measured on {dt.datetime.now(dt.UTC):%Y-%m-%d}, {cores} cores, {platform.machine()}, "
        f"Python {platform.python_version()}, load {os.getloadavg()[0]:.1f} at the end.",
        "",
        *rows(listing),
    ]
    if objects:
        lines += ["", "On MinIO on the same machine, two workers:", "", *rows(objects)]
    return "\n".join(lines)


def do(name: str, options: argparse.Namespace) -> None:
    """Do one act here and tell its time, peak memory and outcome as JSON."""
    at = msgspec.json.decode(sys.stdin.buffer.read(), type=Location)
    begin_s = time.perf_counter()
    outcome = act(name, options.folder, at, options.workers)
    seconds = time.perf_counter() - begin_s
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) * 1024
    sys.stdout.write(json.dumps({"seconds": seconds, "peak_bytes": peak, "outcome": msgspec.to_builtins(outcome)}))


def main() -> None:
    """Measure and write the section, or do one act."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keys", type=int, default=1_000_000)
    parser.add_argument("--objects", type=int, default=20_000)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--act")
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    if options.act == "serve":
        with serving(Generated(options.keys)) as endpoint:
            print(endpoint, flush=True)
            sys.stdin.read()
        return
    if options.act:
        do(options.act, options)
        return
    with tempfile.TemporaryDirectory(prefix="bench-") as one, tempfile.TemporaryDirectory(prefix="bench-") as two:
        listing = measure_listing(Path(one), options.keys)
        objects = measure_objects(Path(two), options.objects)
    quiet = [told for name, told in listing + objects if name == "backup without changes"]
    if any(told["outcome"]["stats"]["entries_read"] or "GET" in told["outcome"]["requests"] for told in quiet):
        raise SystemExit(f"something was read again though nothing had changed: {quiet}")
    text = section(listing, objects, options.keys)
    write_section("bucket", text)
    print(text)


if __name__ == "__main__":
    main()
