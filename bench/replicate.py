"""Compare replication with `rclone copy` of the same objects: `python -m bench.replicate`. Rewrites its part of
docs/benchmarks.md.

A vault of random and of small real files lies in a folder and on a MinIO. In turns it is replicated by the command line
and copied by rclone (as it comes: 4 transfers, checksums compared), each time to a fresh place: another folder of the
same disk, a bucket of another MinIO. What came is verified to the last byte, outside the time that counts. Whole
processes are timed, from their start to their end, and with what the disk still had to write afterwards.
"""

import argparse
import contextlib
import datetime as dt
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import engine
from bench import tree
from bench.charts import bars
from bench.page import PAGE, write_section
from tests import services
from tests.services import S3

FILE_BYTES = 64 << 20
ROOT = Path(__file__).resolve().parent.parent
GOAL = 1.2


class Took(NamedTuple):
    """What one copy cost: wall time of the process, the same with the disk's, and its processor time."""

    seconds: float
    durable_s: float
    cpu_s: float


@dataclass
class End:
    """Where a vault lies, for both programs: an address, what it needs in the environment, and how rclone names it."""

    url: str
    rclone: str
    environment: dict[str, str] = field(default_factory=dict)
    description: str = ""


class Bench:
    """The folder of one comparison; `near` has the vault, `fresh` makes a place to copy it to."""

    def __init__(self, folder: Path, near: End, fresh: Callable[[], contextlib.AbstractContextManager[End]]) -> None:
        self.folder, self.near, self.fresh = folder, near, fresh
        self.config = folder / "rclone.conf"

    def engine(self, end: End, *arguments: str) -> dict[str, object]:
        """Run a command of ours on the vault at `end`; return its answer."""
        verb, *rest = arguments
        environment = {
            "BACKUPSITE_KEY_FILE": str(self.folder / f"{'near' if end is self.near else 'far'}.key"),
            "BACKUPSITE_CACHE_DIR": str(self.folder / f"cache-{uuid.uuid4().hex}"),
            **end.environment,
        }
        command = [sys.executable, "-m", "engine", verb, end.url, *rest, "--json"]
        answer: dict[str, object] = json.loads(self._run(command, environment))
        return answer

    def rclone_run(self, *arguments: str) -> None:
        """Run rclone, with its own defaults."""
        self._run(["rclone", *arguments, "--config", str(self.config)], {})

    def _run(self, command: list[str], environment: dict[str, str]) -> str:
        done = subprocess.run(
            command, cwd=ROOT, env=plain_environment() | environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
        return done.stdout

    def ours(self) -> Took:
        """Replicate into a fresh place, and verify every byte of what came."""
        with self.fresh() as end:
            source = self.near.description or self.near.url
            self.engine(end, "link", "--from", source, "--from-key-file", str(self.folder / "near.key"))
            took = timed(lambda: self.engine(end, "replicate", "--from", source, "--quiet"))
            told = self.engine(end, "verify", "--level", "content")
            if told["state"] != "complete":
                raise SystemExit(f"what was replicated is not whole: {told}")
        return took

    def rclone(self) -> Took:
        """Copy into a fresh place, and compare what came."""
        with self.fresh() as end:
            took = timed(lambda: self.rclone_run("copy", self.near.rclone, end.rclone))
            self.rclone_run("check", self.near.rclone, end.rclone, "--one-way")
        return took


def plain_environment() -> dict[str, str]:
    """Return ours without the CA bundle that rclone takes for a reason to fail."""
    return {name: value for name, value in os.environ.items() if name != "AWS_CA_BUNDLE"}


def timed(act: Callable[[], object]) -> Took:
    os.sync()
    before, begin_s = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    act()
    seconds = time.perf_counter() - begin_s
    os.sync()
    durable_s = time.perf_counter() - begin_s
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return Took(seconds, durable_s, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def fill(folder: Path, *, mib: int, files: int) -> tuple[Path, str]:
    """Make the files that the vault will hold; return them and what they are."""
    source = folder / "files"
    source.mkdir()
    large = max(mib * (1 << 20) // FILE_BYTES, 1)
    for number in range(large):
        (source / f"random{number}").write_bytes(os.urandom(FILE_BYTES))
    count, size = tree.build(source / "small", files=files)
    return source, f"{large} files of random bytes, {large * FILE_BYTES >> 20} MiB; {count} real ones, {size >> 20} MiB"


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[End]:
    """Have a fresh folder inside the block."""
    path = folder / f"copy-{uuid.uuid4().hex[:8]}"
    try:
        yield End(str(path), str(path))
    finally:
        shutil.rmtree(path, ignore_errors=True)


def bucket(server: S3, name: str) -> End:
    """Make a bucket and return it."""
    place = f"bench-{uuid.uuid4().hex[:12]}"
    services.s3_client(server).make_bucket(place)
    environment = {
        "BACKUPSITE_S3_ENDPOINT": server.url,
        "BACKUPSITE_S3_ACCESS_KEY": server.access_key,
        "BACKUPSITE_S3_SECRET_KEY": server.secret_key,
        "BACKUPSITE_S3_REGION": server.region,
    }
    return End(f"s3://{place}/vault", f"{name}:{place}/vault", environment)


@contextlib.contextmanager
def servers(folder: Path) -> Iterator[dict[str, S3]]:
    """Have two MinIO servers of our own inside the block."""
    state = folder / "servers"
    names = {"near": "minio", "far": "minio-far"}
    try:
        yield {end: services.s3(name, services.start(name, state)) for end, name in names.items()}
    finally:
        services.stop(list(names.values()), state)


def rclone_config(found: dict[str, S3]) -> str:
    lines = []
    for name, server in found.items():
        lines += [f"[{name}]", "type = s3", "provider = Minio", f"endpoint = {server.url}"]
        lines += [f"access_key_id = {server.access_key}", f"secret_access_key = {server.secret_key}"]
        lines += [f"region = {server.region}", ""]
    return "\n".join(lines)


def compare(bench: Bench, name: str, runs: int) -> dict[str, list[Took]]:
    """Let both copy in turns, each first in every other run."""
    took: dict[str, list[Took]] = {"backupsite": [], "rclone": []}
    acts = {"backupsite": bench.ours, "rclone": bench.rclone}
    for run in range(runs):
        for program in sorted(took, reverse=bool(run % 2)):
            took[program].append(one := acts[program]())
            print(f"{name:8} {program:10} {one.seconds:6.2f} s, {one.durable_s:6.2f} s with the disk's, "
                  f"{one.cpu_s:6.2f} s of processor", flush=True)  # fmt: skip
    return took


def median(some: Sequence[Took]) -> Took:
    return Took(*(statistics.median(column) for column in zip(*some, strict=True)))


def rows(took: dict[str, dict[str, list[Took]]], size: int) -> list[str]:
    """Return the lines of the table."""
    lines = [
        "| regions | program | time | with the disk's | processor time | MB/s | times rclone's |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, programs in took.items():
        base = median(programs["rclone"])
        for program, some in programs.items():
            one = median(some)
            lines.append(
                f"| {name} | {program} | {one.seconds:.2f} s | {one.durable_s:.2f} s | {one.cpu_s:.2f} s "
                f"| {size / one.seconds / 1e6:.0f} | {one.seconds / base.seconds:.2f} |"
            )
    return lines


def version(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\n")[0].strip()


def seconds(programs: dict[str, list[Took]]) -> dict[str, float]:
    return {program: median(some).seconds for program, some in programs.items()}


def section(took: dict[str, dict[str, list[Took]]], size: int, data: str, *, runs: int, page: Path) -> str:
    """Return the section of the page; draw its chart."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return "\n".join(
        [
            "## A second region",
            "",
            "Made by `python -m bench.replicate`: a vault is replicated to a fresh place and, in turns, its objects",
            f"are copied to one by `rclone copy`; whole processes, warm cache, the median of {runs} runs. No pack is",
            "stored whose SHA-256 is not its name (a MinIO compares it, for folders we do), what we write is synced,",
            "and points become visible in the order that crashes can't break; every byte of the replica is verified,",
            "not in the time. rclone leaves writing to the system: *with the disk's* is until all is on the disk.",
            f"The goal is at most {GOAL} times the time of rclone.",
            "",
            f"- Measured on {dt.datetime.now(dt.UTC):%Y-%m-%d}, {cores} cores, {platform.machine()}, "
            f"Linux {platform.release()}, Python {platform.python_version()}, load {os.getloadavg()[0]:.1f} at the end",
            f"- Data: {data}; {size / 1e6:.0f} MB stored",
            f"- backupsite {engine.__version__}; {version(['rclone', 'version'])}",
            "",
            *rows(took, size),
            "",
            bars(page, "replicate", [(name, "s", seconds(programs)) for name, programs in took.items()]),
        ]
    )


def main() -> None:
    """Fill a vault, compare, write the section."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=2048, help="random bytes")
    parser.add_argument("--files", type=int, default=10_000, help="small real files")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--only", choices=("folders", "servers"), help="leave the others and the page alone")
    parser.add_argument("--output", type=Path, default=PAGE)
    options = parser.parse_args()
    took: dict[str, dict[str, list[Took]]] = {}
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        source, data = fill(folder, mib=options.mib, files=options.files)
        at = End(str(folder / "vault"), str(folder / "vault"))
        folders = Bench(folder, at, lambda: new_folder(folder))
        folders.config.touch()
        folders.engine(at, "init")
        folders.engine(at, "backup", str(source), "--series", "files", "--quiet")
        shutil.rmtree(source)
        size = tree.size(folder / "vault")
        tree.warm(folder / "vault")
        if options.only != "servers":
            took["two folders"] = compare(folders, "folders", options.runs)
        if options.only != "folders":
            took["two MinIO"] = compare_servers(folders, options.runs)
    if options.only:
        print("\n".join(rows(took, size)))
        return
    text = section(took, size, data, runs=options.runs, page=options.output)
    write_section("replicate", text, page=options.output)
    print(text)


def compare_servers(folders: Bench, runs: int) -> dict[str, list[Took]]:
    """Put the vault on a MinIO, as it is, and compare from there to another."""
    folder = folders.folder
    with servers(folder) as found:
        near = bucket(found["near"], "near")
        folders.config.write_text(rclone_config(found))
        folders.rclone_run("copy", folders.near.rclone, near.rclone)
        near.description = str(folder / "near.json")
        described = {name.removeprefix("BACKUPSITE_S3_").lower(): value for name, value in near.environment.items()}
        (folder / "near.json").touch(0o600)
        (folder / "near.json").write_text(json.dumps({"url": near.url, **described}))

        @contextlib.contextmanager
        def fresh() -> Iterator[End]:
            end = bucket(found["far"], "far")
            yield end
            folders.rclone_run("purge", end.rclone.removesuffix("/vault"))

        return compare(Bench(folder, near, fresh), "servers", runs)


if __name__ == "__main__":
    main()
