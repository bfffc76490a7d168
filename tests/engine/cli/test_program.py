"""The real program in a process of its own."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.engine.cli.conftest import ROOT, Cli

pytestmark = pytest.mark.slow

WITHOUT_DJANGO = (
    "import runpy, sys; sys.modules['django'] = None; sys.argv[0] = 'engine'; "
    "runpy.run_module('engine', run_name='__main__', alter_sys=True)"
)


def test_a_vault_made_filled_looked_into_and_restored(program: Cli, tree: Path, tmp_path: Path) -> None:
    made = program("init", tmp_path / "vault")
    assert made.code == 0
    assert re.search(r"BSRK(-[A-Z2-7]{1,4}){14}", made.out)
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600

    saved = program("backup", "--exclude", "*.log", tmp_path / "vault", tree, "--series", "mine")
    assert saved.code == 0
    assert "of series mine: complete" in saved.out

    assert program("cat", tmp_path / "vault", "latest", tree / "a.txt").out == "hello"
    (tmp_path / "out").mkdir()
    assert program("restore", tmp_path / "vault", "latest", "--to", tmp_path / "out").code == 0
    restored = Path(f"{tmp_path}/out{tree}")
    assert (restored / "a.txt").read_text() == "hello"
    assert not (restored / "inner" / "b.log").exists()


def test_the_program_runs_where_django_is_not_installed(surroundings: Path, tree: Path) -> None:
    for arguments in (["init", "vault"], ["backup", "vault", str(tree)], ["verify", "vault"]):
        command = [sys.executable, "-c", WITHOUT_DJANGO, *arguments]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        subprocess.run(command, cwd=surroundings, env=environment, check=True, capture_output=True, timeout=60)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_backup_cleanly(number: signal.Signals, cli: Cli, tmp_path: Path) -> None:
    big = tmp_path / "big"
    big.mkdir()
    for one in range(6):
        with open(big / str(one), "wb") as file:
            for _ in range(48):
                file.write(os.urandom(1 << 20))
    cli("init", tmp_path / "vault")
    command = [sys.executable, "-m", "engine", "backup", str(tmp_path / "vault"), str(big), "--workers", "2"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True) as running:
        deadline = time.monotonic() + 20
        while not list(tmp_path.glob("vault/packs/*/*")) and time.monotonic() < deadline:
            time.sleep(0.01)
        os.killpg(running.pid, number)
        _, errors = running.communicate(timeout=30)
    assert running.returncode == 1
    assert errors.splitlines()[-1] == "error: canceled; nothing was committed"
    assert cli("points", tmp_path / "vault", "--json").document["points"] == []
    assert b"aborted" in next(tmp_path.glob("vault/sessions/*/closed")).read_bytes()


def test_a_signal_ends_a_replication_in_the_middle_of_a_pack(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "large").write_bytes(os.urandom(24 << 20))
    cli("init", tmp_path / "vault")
    cli("backup", tmp_path / "vault", tmp_path / "large")
    slow = tmp_path / "slow.json"
    slow.touch(0o600)
    slow.write_text(json.dumps({"url": str(tmp_path / "vault"), "bytes_per_s": 500_000}))
    monkeypatch.setenv("BACKUPSITE_KEY_FILE", str(tmp_path / "far.key"))
    assert cli("link", tmp_path / "far", "--from", slow, "--from-key-file", tmp_path / "key").code == 0
    command = [sys.executable, "-m", "engine", "replicate", str(tmp_path / "far"), "--from", str(slow)]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as running:
        deadline = time.monotonic() + 20
        while not any(part.stat().st_size for part in tmp_path.glob("far/.tmp/*")) and time.monotonic() < deadline:
            time.sleep(0.01)
        asked = time.monotonic()
        running.send_signal(signal.SIGINT)
        _, errors = running.communicate(timeout=30)
    assert time.monotonic() - asked < 10  # the pack alone would take a minute
    assert (running.returncode, errors.splitlines()[-1]) == (1, "error: canceled; nothing was committed")
    for end in ("vault", "far"):
        assert any(b"aborted" in closed.read_bytes() for closed in tmp_path.glob(f"{end}/sessions/*/closed"))
    assert not list(tmp_path.glob("far/packs/*/*"))
    assert cli("replicate", tmp_path / "far", "--from", tmp_path / "vault").code == 0


def test_a_name_that_is_not_utf8_survives(program: Cli, tmp_path: Path) -> None:
    name = b"caf\xe9 [x]\n\x1b[31m"
    folder = os.fsencode(tmp_path / "odd")
    os.mkdir(folder)
    with open(folder + b"/" + name, "wb") as file:
        file.write(b"odd")
    program("init", tmp_path / "vault")
    assert program("backup", tmp_path / "vault", folder).code == 0
    listed = program("ls", tmp_path / "vault", "latest", folder)
    assert r"caf\xe9 [x]\n\x1b[31m" in listed.out
    assert program("cat", tmp_path / "vault", "latest", folder + b"/" + name).out == "odd"


def test_a_reader_that_goes_away_ends_it_quietly(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(os.urandom(3 << 20))
    cli("init", tmp_path / "vault")
    cli("backup", tmp_path / "vault", tmp_path / "large")
    command = [sys.executable, "-m", "engine", "cat", str(tmp_path / "vault"), "latest", str(tmp_path / "large")]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        running.stdout.read(10)
        running.stdout.close()
        assert running.stderr.read() == b""
    assert running.returncode == 1


DEAF = """
import time
from engine.cli.stopping import Stopping
with Stopping():
    print("ready", flush=True)
    time.sleep(60)
"""


def test_a_second_signal_ends_what_does_not_heed_the_first() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", DEAF], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as deaf:
        assert deaf.stdout is not None
        assert deaf.stderr is not None
        assert deaf.stdout.readline() == b"ready\n"
        deaf.send_signal(signal.SIGINT)
        assert deaf.stderr.readline() == b"stopping; once more ends it at once\n"
        assert deaf.poll() is None
        deaf.send_signal(signal.SIGINT)
    assert deaf.returncode == -signal.SIGINT
