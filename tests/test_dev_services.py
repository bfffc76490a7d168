"""deploy/dev-services starts real servers once, says what it couldn't start, and ends only what it started."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.services import PROGRAM

pytestmark = pytest.mark.services


@pytest.fixture
def folder(tmp_path, redis_service):
    """A state folder whose servers end with the test; asks for redis_service, so that Redis is known to be there."""
    yield tmp_path
    call("stop", folder=tmp_path)


def call(*arguments: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(PROGRAM), *arguments, "--dir", str(folder)]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, check=False, env=os.environ | variables)


def state(folder: Path) -> dict[str, Any]:
    services: dict[str, Any] = json.loads((folder / "state.json").read_text())
    return services


def processes(folder: Path) -> list[int]:
    entries = state(folder).values() if (folder / "state.json").exists() else []
    return [process["pid"] for entry in entries for process in entry.get("processes", [])]


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def test_a_second_start_changes_nothing(folder):
    assert call("start", "redis", folder=folder).returncode == 0
    first = state(folder)
    assert call("start", "redis", folder=folder).returncode == 0
    assert state(folder) == first


def test_a_server_that_died_is_started_anew(folder):
    call("start", "redis", folder=folder)
    before = state(folder)["redis"]
    os.kill(before["processes"][0]["pid"], signal.SIGKILL)
    assert call("start", "redis", folder=folder).returncode == 0
    after = state(folder)["redis"]
    assert after["processes"] != before["processes"]
    assert not Path(before["folder"]).exists()
    with redis.Redis.from_url(after["url"]) as client:
        assert client.ping()


def test_a_server_is_bound_to_loopback_alone(folder):
    call("start", "redis", folder=folder)
    with redis.Redis.from_url(state(folder)["redis"]["url"], decode_responses=True) as client:
        assert client.config_get("bind") == {"bind": "127.0.0.1"}


def test_stop_ends_the_server_and_deletes_its_data(folder):
    call("start", "redis", folder=folder)
    entry = state(folder)["redis"]
    assert call("stop", folder=folder).returncode == 0
    assert not is_running(entry["processes"][0]["pid"])
    assert not Path(entry["folder"]).exists()
    assert call("status", "redis", folder=folder).returncode == 1


def test_a_server_whose_starter_was_killed_can_be_stopped(folder):
    starter = subprocess.Popen([sys.executable, str(PROGRAM), "start", "postgres", "redis", "--dir", str(folder)])
    deadline = time.monotonic() + 30
    while not processes(folder) and time.monotonic() < deadline:
        time.sleep(0.01)
    starter.kill()
    starter.wait()
    pids = processes(folder)
    assert pids
    call("stop", folder=folder)
    assert not any(map(is_running, pids))


def test_stop_leaves_alone_a_process_that_only_has_the_same_pid(folder):
    bystander = subprocess.Popen(["sleep", "60"])
    entry = {"processes": [{"pid": bystander.pid, "born": "1", "signal": int(signal.SIGKILL), "command": "redis"}]}
    (folder / "state.json").write_text(json.dumps({"redis": entry}))
    try:
        assert call("stop", folder=folder).returncode == 0
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_what_cannot_be_started_is_said_and_the_others_start(folder, tmp_path):
    broken = tmp_path / "bin" / "minio"
    broken.parent.mkdir()
    broken.write_text("#!/bin/sh\necho the disk is gone >&2\nexit 3\n")
    broken.chmod(0o755)
    done = call("start", "redis", "minio", folder=folder, PATH=f"{broken.parent}:{os.environ['PATH']}")
    assert done.returncode == 1
    assert "minio COULD NOT BE STARTED: minio ended at once: the disk is gone" in done.stderr
    assert "redis: 127.0.0.1:" in done.stdout


def test_the_environment_is_printed_for_a_shell(folder):
    call("start", "redis", folder=folder)
    assert call("env", folder=folder).stdout == f"export BROKER_URL={state(folder)['redis']['url']}\n"


def test_names_may_stand_before_and_after_the_folder(folder):
    command = [sys.executable, str(PROGRAM), "status", "--dir", str(folder), "redis"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout == "redis: not running\n"


def test_an_unknown_service_is_refused(folder):
    done = call("start", "oracle", folder=folder)
    assert done.returncode == 2
    assert "no such service: oracle; choose from redis, postgres, minio, minio-far, radosgw" in done.stderr
