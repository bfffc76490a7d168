"""The programs that are compared, and where they come from: `python -m bench.peers` installs what is missing.

restic and borg are Debian's, as most people have them. The newest restic, kopia and rustic are built from their
registries into a cache folder that is on nobody's PATH: $BACKUPSITE_BENCH_PEERS, or ~/.cache/backupsite/peers. Each
runs with the settings that are its own best where it offers a choice, encrypted, zstd at its level 3.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

PASSWORD = "bench"
ROOT = Path(__file__).resolve().parent.parent
CACHE = Path(os.environ.get("BACKUPSITE_BENCH_PEERS") or Path.home() / ".cache" / "backupsite" / "peers")
NAMES = ("restic", "restic-new", "borg", "kopia", "rustic")


class Took(NamedTuple):
    """What one command cost: wall time, wall time until its data is on the disk, processor time, peak memory."""

    seconds: float
    durable_s: float
    cpu_s: float
    peak_bytes: int


def _below(source: Path, target: Path) -> Path:
    return target / str(source).lstrip("/")


@dataclass(frozen=True)
class Peer:
    """One program. Each field returns a command line, or the environment, for a repository, a source and a target.

    `restored` says where a restore puts the source. `wanted` are further commands after `init`.
    """

    name: str
    version: str
    init: Callable[[Path], list[str]]
    backup: Callable[[Path, Path], list[str]]
    restore: Callable[[Path, Path, Path], list[str]]
    environment: Callable[[Path], dict[str, str]]
    restored: Callable[[Path, Path], Path] = _below
    wanted: list[list[str]] = field(default_factory=list)

    def create(self, repository: Path) -> None:
        """Make a repository."""
        for command in (self.init(repository), *self.wanted):
            self.run(command, repository)

    def run(self, command: list[str], repository: Path, *, cwd: Path | None = None) -> Took:
        """Run one command to its end; raise with its output when it fails."""
        os.sync()
        begin = time.perf_counter()
        with tempfile.TemporaryFile() as output:
            process = subprocess.Popen(
                command,
                cwd=cwd or ROOT,
                env={**os.environ, **self.environment(repository)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            seconds = time.perf_counter() - begin
            if process.returncode != 0:
                output.seek(0)
                told = output.read()[-4000:].decode(errors="replace")
                raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}:\n{told}")
        os.sync()
        durable_s = time.perf_counter() - begin
        return Took(seconds, durable_s, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)

    def remove(self, repository: Path) -> None:
        """Delete a repository and all that the program keeps beside it."""
        for leftover in repository.parent.glob(f"{repository.stem}.*"):
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()


def _version(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\n")[0].strip()


def ours() -> Peer:
    """Return this project's command line."""
    engine = [sys.executable, "-m", "engine"]
    return Peer(
        "backupsite",
        _version([sys.executable, "-c", "import engine; print('backupsite', engine.__version__)"]),
        lambda repository: [*engine, "init", str(repository)],
        lambda repository, source: [*engine, "backup", str(repository), str(source), "--quiet"],
        lambda repository, source, target: [
            *(*engine, "restore", str(repository), "latest"), *("--to", str(target), "--quiet"),
        ],
        lambda repository: {
            "BACKUPSITE_KEY_FILE": str(repository.with_suffix(".key")),
            "BACKUPSITE_CACHE_DIR": str(repository.with_suffix(".cache")),
        },
    )  # fmt: skip


def restic(program: str = "restic", name: str = "restic") -> Peer:
    """Return restic, compressing as it does by default (zstd, level 3 of its library)."""
    return Peer(
        name,
        _version([program, "version"]),
        lambda repository: [program, "init"],
        lambda repository, source: [program, "backup", "-q", *([] if name == "restic" else ["--no-scan"]), str(source)],
        lambda repository, source, target: [program, "restore", "-q", "latest", "--target", str(target)],
        lambda repository: {
            "RESTIC_REPOSITORY": str(repository),
            "RESTIC_PASSWORD": PASSWORD,
            "RESTIC_CACHE_DIR": str(repository.with_suffix(".cache")),
        },
    )


def borg() -> Peer:
    """Return borg with zstd at level 3 and BLAKE2 authentication."""
    return Peer(
        "borg",
        _version(["borg", "--version"]),
        lambda repository: ["borg", "init", "-e", "repokey-blake2"],
        lambda repository, source: ["borg", "create", "-C", "zstd,3", "::{now:%Y%m%d%H%M%S%f}", str(source)],
        # borg extracts into the folder that it runs in.
        lambda repository, source, target: [
            "sh", "-c", f'cd "{target}" && borg extract "::$(borg list --last 1 --short)"',
        ],
        lambda repository: {
            "BORG_REPO": str(repository),
            "BORG_PASSPHRASE": PASSWORD,
            "BORG_BASE_DIR": str(repository.with_suffix(".base")),
            "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes",
        },
    )  # fmt: skip


def kopia() -> Peer:
    """Return kopia with BLAKE3, the fastest of its hashes, AES-256-GCM and zstd at its default level."""
    program = str(CACHE / "kopia")
    create = [program, "repository", "create", "filesystem", "--no-persist-credentials", "--block-hash=BLAKE3-256-128"]
    return Peer(
        "kopia",
        f"kopia {_version([program, '--version'])}",
        lambda repository: [*create, "--path", str(repository)],
        lambda repository, source: [program, "snapshot", "create", str(source), "--no-progress"],
        lambda repository, source, target: [
            *(program, "snapshot", "restore", str(source), str(target / "tree")),
            *("--snapshot-time=latest", "--no-progress"),
        ],
        lambda repository: {
            "KOPIA_PASSWORD": PASSWORD,
            "KOPIA_CONFIG_PATH": str(repository.with_suffix(".config")),
            "KOPIA_CACHE_DIRECTORY": str(repository.with_suffix(".cache")),
            "KOPIA_LOG_DIR": str(repository.with_suffix(".log")),
            "KOPIA_CHECK_FOR_UPDATES": "false",
        },
        restored=lambda source, target: target / "tree",
        wanted=[[program, "policy", "set", "--global", "--compression=zstd"]],
    )  # fmt: skip


def rustic() -> Peer:
    """Return rustic, compressing as it does by default (zstd, level 3)."""
    program = str(CACHE / "rustic" / "bin" / "rustic")
    quiet = [program, "--no-progress", "--log-level", "error"]
    return Peer(
        "rustic",
        _version([program, "--version"]),
        lambda repository: [*quiet, "init"],
        lambda repository, source: [*quiet, "backup", str(source)],
        lambda repository, source, target: [*quiet, "restore", f"latest:{source}", str(target / "tree")],
        lambda repository: {
            "RUSTIC_REPOSITORY": str(repository),
            "RUSTIC_PASSWORD": PASSWORD,
            "RUSTIC_CACHE_DIR": str(repository.with_suffix(".cache")),
        },
        restored=lambda source, target: target / "tree",
    )


PLACES = {
    "restic": "restic",
    "restic-new": str(CACHE / "restic"),
    "borg": "borg",
    "kopia": str(CACHE / "kopia"),
    "rustic": str(CACHE / "rustic" / "bin" / "rustic"),
}
MAKERS: dict[str, Callable[[], Peer]] = {
    "restic": restic,
    "restic-new": lambda: restic(PLACES["restic-new"], "restic-new"),
    "borg": borg,
    "kopia": kopia,
    "rustic": rustic,
}


def available(names: list[str]) -> list[Peer]:
    """Return ours and the named peers that are installed; say which are not."""
    peers = [ours()]
    for name in names:
        if shutil.which(PLACES[name]):
            peers.append(MAKERS[name]())
        else:
            print(f"{name} is not installed: left out (python -m bench.peers installs it)", file=sys.stderr)
    return peers


def install() -> int:
    """Install the peers that are missing; return how many could not be had, each with what its installer said."""
    CACHE.mkdir(parents=True, exist_ok=True)
    quiet = ["nice", "-n", "19"]
    ways = {
        "restic": ["apt-get", "install", "-y", "--no-install-recommends", "restic"],
        "restic-new": [*quiet, "go", "install", "github.com/restic/restic/cmd/restic@v0.18.1"],
        "borg": ["apt-get", "install", "-y", "--no-install-recommends", "borgbackup"],
        "kopia": [*quiet, "go", "install", "github.com/kopia/kopia@v0.22.3"],
        "rustic": [*quiet, "cargo", "install", "--root", str(CACHE / "rustic"), "-j", "1", "rustic-rs"],
    }
    missing = 0
    for name, command in ways.items():
        if shutil.which(PLACES[name]):
            print(f"{name}: {PLACES[name]}")
            continue
        try:
            done = subprocess.run(command, env={**os.environ, "GOBIN": str(CACHE)}, check=False)
        except OSError as error:
            print(f"{name}: {error}", file=sys.stderr)
        else:
            print(f"{name}: {' '.join(command)} ended with {done.returncode}")
        missing += not shutil.which(PLACES[name])
    return missing


if __name__ == "__main__":
    sys.exit(install())
