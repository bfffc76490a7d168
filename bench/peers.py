"""The programs that are compared: each can make a repository, back up a folder into it, and restore it."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

PASSWORD = "bench"
ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Peer:
    """One program. Each field returns a command line (and environment) for a repository, a source or a target."""

    name: str
    version: str
    init: Callable[[Path], list[str]]
    backup: Callable[[Path, Path], list[str]]
    restore: Callable[[Path, Path], list[str]]
    environment: Callable[[Path], dict[str, str]]

    def run(self, command: list[str], repository: Path, *, cwd: Path | None = None) -> None:
        """Run one command; raise with its output when it fails."""
        done = subprocess.run(
            command,
            cwd=cwd or ROOT,
            env={**os.environ, **self.environment(repository)},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")


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
        lambda repository, target: [*engine, "restore", str(repository), "latest", "--to", str(target), "--quiet"],
        lambda repository: {
            "BACKUPSITE_KEY_FILE": str(repository.with_suffix(".key")),
            "BACKUPSITE_CACHE_DIR": str(repository.with_suffix(".cache")),
        },
    )


def restic() -> Peer:
    """Return restic, compressing as it does by default (zstd, level 3 of its library)."""
    return Peer(
        "restic",
        _version(["restic", "version"]),
        lambda repository: ["restic", "init"],
        lambda repository, source: ["restic", "backup", "-q", str(source)],
        lambda repository, target: ["restic", "restore", "-q", "latest", "--target", str(target)],
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
        lambda repository, target: ["sh", "-c", 'borg extract "::$(borg list --last 1 --short)"'],
        lambda repository: {
            "BORG_REPO": str(repository),
            "BORG_PASSPHRASE": PASSWORD,
            "BORG_BASE_DIR": str(repository.with_suffix(".base")),
            "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes",
        },
    )


def available(names: list[str]) -> list[Peer]:
    """Return ours and the named peers that are installed; say which are not."""
    makers = {"restic": restic, "borg": borg}
    peers = [ours()]
    for name in names:
        if shutil.which(name):
            peers.append(makers[name]())
        else:
            print(f"{name} is not installed: left out", file=sys.stderr)
    return peers
