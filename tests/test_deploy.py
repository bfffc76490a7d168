"""What deploy/ describes holds together: well formed, restarted, started in order, and with no password in it."""

import configparser
import re
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
PASSWORDS = re.compile(r"PASSWORD|SECRET|KEYS?$|AUTH$")


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    parsed: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    return parsed


def unit(path: Path) -> dict[str, list[str]]:
    """Return the unit's [Service] settings; a name may stand several times."""
    text = path.read_text().partition("[Service]")[2].partition("\n[")[0]
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        if "=" in line and not line.startswith("#"):
            name, _, value = line.partition("=")
            found.setdefault(name, []).append(value)
    return found


def example() -> dict[str, str]:
    lines = (DEPLOY / "backupsite.env.example").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))


def test_the_compose_file_passes_its_linter():
    command = [sys.executable, "-m", "yamllint", "--strict", str(DEPLOY)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout


def test_the_full_set_is_complete(compose):
    assert set(compose["services"]) == {"postgres", "redis", "minio", "web", "worker", "beat"}


def test_every_service_comes_back_after_a_crash(compose):
    assert {service["restart"] for service in compose["services"].values()} == {"unless-stopped"}


def test_what_others_wait_for_says_when_it_is_healthy(compose):
    services = compose["services"]
    for name, service in services.items():
        for needed, how in service.get("depends_on", {}).items():
            assert how == {"condition": "service_healthy"}, name
            assert "healthcheck" in services[needed], f"{name} waits for {needed}"


def test_no_service_has_a_default_password(compose):
    secrets = {
        f"{name}.{key}": value
        for name, service in compose["services"].items()
        for key, value in service.get("environment", {}).items()
        if PASSWORDS.search(key)
    }
    assert len(secrets) >= 5
    assert [key for key, value in secrets.items() if not re.fullmatch(r"\$\{\w+:\?[^}]+\}", value)] == []


def test_no_address_holds_a_password(compose):
    values = [str(v) for one in compose["services"].values() for v in one.get("environment", {}).values() if "://" in v]
    passwords = {found[1] for value in values if (found := re.search(r"//[^/:@]*:(.+)@", value))}
    assert len(passwords) == 2
    assert [one for one in passwords if not re.fullmatch(r"\$\{\w+:\?[^}]+\}", one)] == []


def test_the_example_names_every_variable_that_compose_asks_for_and_leaves_secrets_empty():
    asked = set(re.findall(r"\$\{(\w+):\?", (DEPLOY / "compose.yaml").read_text()))
    assert asked <= set(example())
    assert {name: value for name, value in example().items() if PASSWORDS.search(name) and value} == {}


def test_only_the_console_is_published_and_only_on_loopback(compose):
    assert {name: one["ports"] for name, one in compose["services"].items() if "ports" in one} == {
        "web": ["127.0.0.1:8000:8000"]
    }


def test_the_worker_keeps_its_large_buffers(compose):
    wanted = {"MALLOC_MMAP_THRESHOLD_": "67108864", "MALLOC_TRIM_THRESHOLD_": "268435456"}
    assert wanted.items() <= compose["services"]["worker"]["environment"].items()
    settings = unit(DEPLOY / "systemd" / "backupsite-worker.service")
    assert {f"{name}={value}" for name, value in wanted.items()} <= set(settings["Environment"])


def test_there_is_a_unit_for_every_process_of_ours():
    assert [path.stem for path in UNITS] == ["backupsite-beat", "backupsite-web", "backupsite-worker"]


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.stem)
def test_a_unit_restarts_reads_its_secrets_from_a_file_and_gains_no_rights(path: Path):
    configparser.RawConfigParser(strict=False).read_string(path.read_text())
    settings = unit(path)
    assert settings["Restart"] == ["always"]
    assert settings["EnvironmentFile"] == ["/etc/backupsite/backupsite.env"]
    assert settings["NoNewPrivileges"] == ["true"]
    assert not [value for value in settings.get("Environment", []) if PASSWORDS.search(value.partition("=")[0])]


def test_the_image_contains_every_package_and_runs_as_nobody_special():
    lines = (DEPLOY / "Dockerfile").read_text().splitlines()
    copied = {word for line in lines if line.startswith("COPY ") for word in line.split()[1:-1]}
    assert {"engine", "accounts", "vaults", "policies", "jobs", "backupsite", "manage.py", "requirements.txt"} <= copied
    assert "USER backupsite" in lines
    let_in = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    assert {name for name in copied if not any(fnmatch(name, pattern) for pattern in let_in)} == set()
