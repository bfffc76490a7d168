"""The embedded default needs no setting; a full installation refuses to start with a generated secret."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from backupsite import embedded

ROOT = Path(__file__).parents[2]
FULL = {
    "BROKER_URL": "redis://127.0.0.1:1/0",
    "SECRET_KEY": "s" * 50,
    "BACKUPSITE_FIELD_KEYS": "ab" * 32,
    "ALLOWED_HOSTS": "backup.example.org",
}
SHOW = "from django.conf import settings as s; print(s.EMBEDDED, s.SECRET_KEY, s.HTTPS, s.SESSION_COOKIE_SECURE)"

HASH = "import django; django.setup()\nfrom django.contrib.auth.hashers import make_password; print(make_password('x'))"


def start(var: Path, *, shown: str = SHOW, **values: str) -> subprocess.CompletedProcess[str]:
    env = {"PATH": os.environ["PATH"], "BACKUPSITE_VAR": str(var), "DJANGO_SETTINGS_MODULE": "backupsite.settings"}
    command = [sys.executable, "-c", shown]
    return subprocess.run(command, cwd=ROOT, env=env | values, capture_output=True, text=True, timeout=60)


def test_the_embedded_default_makes_its_secrets_once_and_for_itself(tmp_path):
    first, second = start(tmp_path / "var"), start(tmp_path / "var")
    assert first.stdout == second.stdout
    assert first.stdout.startswith("True ")
    for name in ("secret.key", "field.keys", "broker.password"):
        assert stat.S_IMODE((tmp_path / "var" / name).stat().st_mode) == 0o600


@pytest.mark.parametrize("missing", ["SECRET_KEY", "BACKUPSITE_FIELD_KEYS", "ALLOWED_HOSTS"])
def test_a_full_installation_without_its_own_secrets_does_not_start(tmp_path, missing):
    ended = start(tmp_path, **{name: value for name, value in FULL.items() if name != missing})
    assert ended.returncode != 0
    assert f"Set {missing}" in ended.stderr


def test_passwords_are_hashed_with_argon2(tmp_path):
    made = start(tmp_path, shown=HASH)
    assert made.stdout.startswith("argon2$argon2id$")


def test_secrets_may_come_from_files(tmp_path):
    (tmp_path / "key").write_text("from-a-file")
    values = {name: value for name, value in FULL.items() if name != "SECRET_KEY"}
    assert "False from-a-file" in start(tmp_path, **values, SECRET_KEY_FILE=str(tmp_path / "key")).stdout


def test_an_https_address_makes_cookies_secure(tmp_path):
    assert start(tmp_path, **FULL, BACKUPSITE_URL="https://backup.example.org").stdout.split()[2:] == ["True", "True"]


def test_what_is_kept_once_stays(tmp_path):
    assert embedded.kept(tmp_path / "a", "first") == embedded.kept(tmp_path / "a", "second") == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_networks_that_are_none_are_told_at_the_start(tmp_path):
    ended = start(tmp_path, BACKUPSITE_SOURCE_NETWORKS="10.0.0.0/8, my-lan")
    assert ended.returncode != 0
    assert "BACKUPSITE_SOURCE_NETWORKS must be networks" in ended.stderr
    assert start(tmp_path, BACKUPSITE_SOURCE_NETWORKS="10.0.0.0/8,fd00::/8").returncode == 0


@pytest.mark.rule("C21")
def test_email_is_off_until_a_mail_server_is_named_and_a_wrong_one_is_told_at_the_start(tmp_path):
    shown = (
        "from django.conf import settings as s; print(s.EMAIL_ON, s.EMAIL_HOST, s.EMAIL_PORT, s.EMAIL_HOST_PASSWORD)"
    )
    assert start(tmp_path, shown=shown).stdout.startswith("False ")
    named = start(tmp_path, shown=shown, EMAIL_URL="smtp+tls://user:p%40ss@mail.example.org:587")
    assert named.stdout == "True mail.example.org 587 p@ss\n"
    assert "EMAIL_URL must look like" in start(tmp_path, EMAIL_URL="mail.example.org").stderr
