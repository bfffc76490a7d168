"""The command line in this process, and the real program in another."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from engine.cli.program import main

ROOT = Path(__file__).parents[3]


class Ran(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        return json.loads(self.out)


Cli = Callable[..., Ran]


@pytest.fixture
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An environment of the test's own: a key file's name, a cache; no S3 settings."""
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("BACKUPSITE_KEY_FILE", str(tmp_path / "key"))
    monkeypatch.setenv("BACKUPSITE_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path


@pytest.fixture
def cli(surroundings: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """Run a command in this process."""

    def run(*arguments: object) -> Ran:
        monkeypatch.setattr(sys, "argv", ["engine", *(str(one) for one in arguments)])
        capsys.readouterr()
        code = main()
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return Ran(code, captured.out, captured.err)

    return run


@pytest.fixture
def program(surroundings: Path) -> Cli:
    """Run the real program."""

    def run(*arguments: object) -> Ran:
        command = [sys.executable, "-m", "engine", *(os.fspath(one) for one in arguments)]  # type: ignore[call-overload] # text, bytes and paths
        done = subprocess.run(command, capture_output=True, cwd=ROOT, check=False, timeout=60)
        return Ran(done.returncode, os.fsdecode(done.stdout), os.fsdecode(done.stderr))

    return run


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A few files."""
    tree = tmp_path / "tree"
    (tree / "inner").mkdir(parents=True)
    (tree / "a.txt").write_text("hello")
    (tree / "inner" / "b.log").write_bytes(bytes(range(256)) * 100)
    (tree / "link").symlink_to("a.txt")
    return tree


@pytest.fixture
def vault(cli: Cli, tmp_path: Path) -> Path:
    """A new vault."""
    assert cli("init", tmp_path / "vault").code == 0
    return tmp_path / "vault"


@pytest.fixture
def point(cli: Cli, vault: Path, tree: Path) -> str:
    """The id of a backup of the tree."""
    point: str = cli("backup", vault, tree, "--json", "--workers", "1").document["point"]
    return point


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 300 KiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=300k", "none", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"a small file system can't be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)
