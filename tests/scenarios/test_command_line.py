"""Whole stories of the command line, run as real processes: on both S3 servers and on a directory."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.services import S3
from tests.support.trees import build_real, difference, snapshot

pytestmark = [pytest.mark.scenario, pytest.mark.timeout(300)]
FILES = 400


class CommandLine:
    """`python -m engine` on one vault, with its own key file and cache."""

    def __init__(self, vault: str, folder: Path, environment: dict[str, str]) -> None:
        self.vault = vault
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("AWS_")},
            "BACKUPSITE_KEY_FILE": str(folder / "service.key"),
            "BACKUPSITE_CACHE_DIR": str(folder / "cache"),
            **environment,
        }

    def start(self, verb: str, *arguments: str, environment: dict[str, str] | None = None) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-m", "engine", verb, self.vault, *arguments, "--json"]
        return subprocess.Popen(
            command,
            env={**self._environment, **(environment or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )

    def run(self, verb: str, *arguments: str, expect: int = 0, environment: dict[str, str] | None = None) -> Any:
        process = self.start(verb, *arguments, environment=environment)
        out, err = process.communicate(timeout=200)
        assert process.returncode == expect, (process.returncode, out[-2000:], err[-2000:])
        return json.loads(out)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    build_real(folder, files=FILES)
    (folder / "large").write_bytes(random.Random(1).randbytes(8 << 20))
    return folder


@pytest.fixture
def on_s3(s3_service: S3, s3_bucket: Callable[..., str], tmp_path: Path) -> CommandLine:
    environment = {
        "BACKUPSITE_S3_ENDPOINT": s3_service.url,
        "BACKUPSITE_S3_ACCESS_KEY": s3_service.access_key,
        "BACKUPSITE_S3_SECRET_KEY": s3_service.secret_key,
        "BACKUPSITE_S3_REGION": s3_service.region,
    }
    return CommandLine(f"s3://{s3_bucket(s3_service)}/a/vault", tmp_path, environment)


@pytest.fixture
def on_disk(tmp_path: Path) -> CommandLine:
    return CommandLine(str(tmp_path / "vault"), tmp_path, {})


def restored(command_line: CommandLine, source: Path, folder: Path, point: str = "latest") -> list[str]:
    """Restore into a fresh folder; return how it differs from the source."""
    folder.mkdir()
    command_line.run("restore", point, "--to", str(folder))
    return difference(snapshot(source), snapshot(folder / str(source).lstrip("/")))


@pytest.mark.rule("B1", "B12", "C4")
def test_a_vault_in_a_bucket_gives_back_every_version_after_the_source_was_lost(
    on_s3: CommandLine, source: Path, tmp_path: Path
) -> None:
    on_s3.run("init")
    first = on_s3.run("backup", str(source))
    before = tmp_path / "before"
    shutil.copytree(source, before, symlinks=True)
    (source / "large").write_bytes((source / "large").read_bytes()[:-5] + b"after")
    second = on_s3.run("backup", str(source))
    assert second["stats"]["bytes_stored"] < first["stats"]["bytes_stored"] / 2
    assert restored(on_s3, source, tmp_path / "newest") == []
    shutil.rmtree(source)
    on_s3.run("restore", first["point"], "--original", "--same-name", "overwrite")
    changed = difference(snapshot(before), snapshot(source))
    assert [line for line in changed if "ctime" not in line] == []
    on_s3.run("verify", "--level", "content")


@pytest.mark.invariant(23)
def test_with_the_bucket_and_the_recovery_key_alone_everything_is_there(
    on_s3: CommandLine, source: Path, tmp_path: Path
) -> None:
    key = tmp_path / "recovery"
    key.write_text(on_s3.run("init")["recovery_key"])
    on_s3.run("backup", str(source))
    (tmp_path / "service.key").unlink()
    shutil.rmtree(tmp_path / "cache")
    on_s3.run("points", expect=1)
    with_key = {"BACKUPSITE_RECOVERY_KEY": str(key)}
    assert len(on_s3.run("points", environment=with_key)["points"]) == 1
    on_s3.run("rebuild", environment=with_key)
    target = tmp_path / "target"
    target.mkdir()
    on_s3.run("restore", "latest", "--to", str(target), environment=with_key)
    assert difference(snapshot(source), snapshot(target / str(source).lstrip("/"))) == []


@pytest.mark.invariant(1, 2)
def test_a_backup_that_is_killed_at_any_moment_loses_nothing_and_the_next_one_completes(
    on_disk: CommandLine, source: Path, tmp_path: Path
) -> None:
    on_disk.run("init")
    on_disk.run("backup", str(source))
    moments = random.Random(7)
    for turn in range(8):
        (source / "large").write_bytes(moments.randbytes(24 << 20))
        process = on_disk.start("backup", str(source), "--workers", "2")
        time.sleep(moments.uniform(0.2, 1.4))
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        if turn % 4 == 3:
            on_disk.run("verify", "--level", "structure")
    on_disk.run("backup", str(source))
    on_disk.run("verify", "--level", "content")
    assert restored(on_disk, source, tmp_path / "restored") == []


@pytest.mark.rule("C42")
def test_an_interrupted_backup_says_so_and_leaves_no_point(on_disk: CommandLine, source: Path) -> None:
    with (source / "huge").open("wb") as huge:
        for _ in range(300):
            huge.write(os.urandom(1 << 20))
    on_disk.run("init")
    process = on_disk.start("backup", str(source), "--workers", "2")
    while not list(Path(on_disk.vault).glob("sessions/*/open")):
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 1, (out, err)
    assert b"Traceback" not in out + err
    assert on_disk.run("points")["points"] == []


def test_two_backups_into_one_vault_at_once_both_complete(on_s3: CommandLine, source: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(source, other, symlinks=True)
    on_s3.run("init")
    both = [on_s3.start("backup", str(source)), on_s3.start("backup", str(other))]
    for process in both:
        out, err = process.communicate(timeout=200)
        assert process.returncode == 0, (out, err)
    assert len(on_s3.run("points")["points"]) == 2
    on_s3.run("verify", "--level", "content")
