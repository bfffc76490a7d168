"""Measure what grows with a vault, on generated data: `python -m bench.scale`. Rewrites its part of docs/benchmarks.md.

A vault of many points is filled with a million small chunks, half of the points are expired, and a prune frees them
while a backup runs beside it. Each verb runs in a process of its own, whose peak memory is measured.
"""

import argparse
import datetime as dt
import hashlib
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from bench.page import PAGE, write_section
from engine.entries import Entry, Kind, Problem
from engine.ids import new_ulid
from engine.keyproviders.keyring import Keyring
from engine.keyproviders.spec import KeySpec
from engine.progress import Silent
from engine.runner import VaultOpener, run
from engine.session import open_sessions
from engine.sources.port import BaseSource, Identity, Reader
from engine.storage import Directory
from engine.storage.location import Location
from engine.vault import Vault
from engine.verbs import backup, expire, prune

POINTS = 10
CHUNK_BYTES = 300
_SECOND = 1_000_000_000


class Generated(BaseSource, frozen=True):
    """`files` small files whose content, different for each `salt`, is one chunk each."""

    files: int
    salt: int

    def identity(self) -> Identity:
        return Identity("files", "host", ["/"])

    def check(self) -> None: ...

    def walk(self) -> Iterator[Entry | Problem]:
        for number in range(self.files):
            if number % 1000 == 0:
                yield Entry(b"folder%05d" % (number // 1000), Kind.DIRECTORY, 0o755, mtime_ns=_SECOND, inode=number)
            path = b"folder%05d/file %08d" % (number // 1000, number)
            yield Entry(path, Kind.FILE, 0o644, size=CHUNK_BYTES, mtime_ns=_SECOND, ctime_ns=number, inode=number)

    def fill(self, entry: Entry) -> Entry | Problem:
        return entry

    def open(self, entry: Entry) -> Reader | Problem:
        return Problem(entry.path, "large", "only small files are made here")

    def read_small(self, entry: Entry, limit: int) -> tuple[Entry, bytes] | Problem | None:
        return entry, hashlib.shake_128(b"%d %d" % (self.salt, entry.inode)).digest(CHUNK_BYTES)


def clock() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


def opener(folder: Path) -> VaultOpener:
    key = KeySpec.parse("keyring:", secret=(folder / "key").read_text())
    place = Location.parse(str(folder / "vault"))
    return VaultOpener(location=place, key=key, cache=str(folder / f"cache-{os.getpid()}"))


def back_up(folder: Path, *, files: int, salt: int, series: str) -> Any:
    source = Generated(files=files, salt=salt)
    job = backup.BackupJob(session=new_ulid(clock()), series=series, source=source, started_at=clock())  # type: ignore[arg-type] # the verb is written for any source
    return run(opener(folder), backup, job, workers=1, progress=Silent(), clock=clock)


def expire_half(folder: Path) -> Any:
    names = opener(folder).vault.points()
    doomed = tuple(f"{name.series}/{name.point}" for name in names if int(name.series[1:]) % 2)
    job = expire.ExpireJob(run=new_ulid(clock()), started_at=clock(), points=doomed, reason="bench", confirmed=True)
    return run(opener(folder), expire, job, workers=1, progress=Silent(), clock=clock)


def prune_once(folder: Path) -> Any:
    job = prune.PruneJob(run=new_ulid(clock()), started_at=clock())
    return run(opener(folder), prune, job, workers=1, progress=Silent(), clock=clock)


ACTS = {
    "fill": lambda folder, chunks: [
        back_up(folder, files=chunks // POINTS, salt=salt, series=f"s{salt}") for salt in range(POINTS)
    ][-1],
    "backup": lambda folder, chunks: back_up(folder, files=chunks // 2, salt=POINTS, series="beside"),
    "expire": lambda folder, chunks: expire_half(folder),
    "prune": lambda folder, chunks: prune_once(folder),
}


def start(act: str, folder: Path, chunks: int) -> "subprocess.Popen[bytes]":
    """Start one act in a process of its own."""
    command = [sys.executable, "-m", "bench.scale", "--act", act, "--folder", str(folder), "--chunks", str(chunks)]
    return subprocess.Popen(command, stdout=subprocess.PIPE)


def ended(process: "subprocess.Popen[bytes]") -> dict[str, Any]:
    """Return what an act told. Raises CalledProcessError."""
    out, _ = process.communicate()
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, process.args)
    told: dict[str, Any] = json.loads(out)
    return told


def do(act: str, folder: Path, chunks: int) -> None:
    """Do one act here and tell its time, peak memory and outcome as JSON."""
    begin_s = time.perf_counter()
    outcome = ACTS[act](folder, chunks)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    told = {"seconds": time.perf_counter() - begin_s, "peak_bytes": peak, "outcome": msgspec.to_builtins(outcome)}
    sys.stdout.write(json.dumps(told))


def measure(folder: Path, chunks: int) -> list[tuple[str, dict[str, Any]]]:
    """Fill a vault and prune it; return each act with what it told."""
    ring = Keyring.generate()
    ring.save(folder / "key")
    Vault.create(Directory(str(folder / "vault"), create=True), providers=[ring], now=clock())
    told = [("fill", ended(start("fill", folder, chunks)))]
    told.append(("first prune, checks every listing, frees nothing", ended(start("prune", folder, chunks))))
    told.append(("expire half of the points", ended(start("expire", folder, chunks))))
    beside = start("backup", folder, chunks)
    while not open_sessions(Directory(str(folder / "vault"))):
        time.sleep(0.01)
    told.append(("prune beside a backup: condemns, waits for it", ended(start("prune", folder, chunks))))
    if beside.poll() is not None:
        raise SystemExit("the backup was over before the prune was: use more --chunks")
    told.append(("the backup beside it", ended(beside)))
    told.append(("prune: deletes, drops the rows of the index", ended(start("prune", folder, chunks))))
    return told


def section(told: list[tuple[str, dict[str, Any]]], chunks: int) -> str:
    """Return the section of the page."""
    done = [one["outcome"] for name, one in told if name.startswith("prune")]
    lines = [
        "## Prune at scale",
        "",
        f"Made by `python -m bench.scale`: {POINTS} points of {chunks // POINTS:,} files, {chunks:,} distinct chunks",
        f"of {CHUNK_BYTES} bytes in all, in a folder; the backup beside the prune has {chunks // 2:,} files.",
        "Each verb runs in a process of its own with one worker.",
        f"Measured on {dt.datetime.now(dt.UTC):%Y-%m-%d}, {platform.machine()}, Python {platform.python_version()}.",
        "",
        "| what | time | peak memory | outcome |",
        "|---|---|---|---|",
    ]
    for name, one in told:
        shown = one["outcome"]["state"]
        lines.append(f"| {name} | {one['seconds']:.2f} s | {one['peak_bytes'] / 2**20:.0f} MiB | {shown} |")
    packs, freed = (sum(one[what] for one in done) for what in ("packs_deleted", "bytes_freed"))
    return "\n".join([*lines, "", f"Freed: {packs:,} packs, {freed / 2**20:.0f} MiB."])


def main() -> None:
    """Measure and write the section, or do one act."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chunks", type=int, default=1_000_000)
    parser.add_argument("--output", type=Path, default=PAGE)
    parser.add_argument("--act", choices=list(ACTS))
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    if options.act:
        do(options.act, options.folder, options.chunks)
        return
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        told = measure(Path(name), options.chunks)
    condemned, beside, done = (one["outcome"] for _, one in told[-3:])
    if not condemned["packs_condemned"] or done["packs_deleted"] != condemned["packs_condemned"]:
        raise SystemExit(f"the prune left something: {condemned} {done}")
    if beside["state"] != "complete":
        raise SystemExit(f"the backup beside the prune failed: {beside}")
    text = section(told, options.chunks)
    write_section("scale", text, page=options.output)
    print(text)


if __name__ == "__main__":
    main()
