"""Every refusal of the command line: one line that says what to do, and the exit code."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.keyproviders.keyring import Keyring, RecoveryKey
from engine.verbs import cutter
from tests.engine.cli.conftest import Cli
from tests.services import S3

USAGE, FAILED = 2, 1


def refused(cli: Cli, *arguments: object, code: int, says: str, name: str = "usage") -> None:
    """Expect one line on stderr, and the same as JSON."""
    answer = cli(*arguments)
    assert (answer.code, answer.out) == (code, "")
    assert answer.err.startswith("error: ")
    assert len(answer.err.splitlines()) == 1
    assert says in answer.err
    answer = cli(*arguments, "--json")
    assert (answer.code, answer.document["error"]["code"]) == (code, name)
    assert says in answer.document["error"]["message"]


def test_no_key(cli: Cli, vault: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BACKUPSITE_KEY_FILE")
    refused(cli, "points", vault, code=USAGE, says="give --key-file FILE or set BACKUPSITE_KEY_FILE")
    refused(cli, "init", vault, code=USAGE, says="give --key-file FILE or set BACKUPSITE_KEY_FILE")


def test_missing_key_file(cli: Cli, vault: Path, tmp_path: Path) -> None:
    (tmp_path / "key").unlink()
    refused(cli, "points", vault, code=FAILED, says="there is no key file at", name="bad_key_file")


def test_wrong_key_file(cli: Cli, vault: Path, tmp_path: Path) -> None:
    (tmp_path / "key").write_text(Keyring.generate().text())
    refused(cli, "points", vault, code=FAILED, says="does not open this vault", name="wrong_key")


def test_wrong_recovery_key(cli: Cli, vault: Path, tmp_path: Path) -> None:
    (tmp_path / "other").write_text(RecoveryKey.generate().text())
    other = ("--recovery-key-file", tmp_path / "other")
    refused(cli, "points", vault, *other, code=FAILED, says="does not open this vault", name="wrong_key")


def test_mistyped_recovery_key(cli: Cli, vault: Path, tmp_path: Path) -> None:
    (tmp_path / "other").write_text(RecoveryKey.generate().text()[:-6])
    other = ("--recovery-key-file", tmp_path / "other")
    refused(cli, "points", vault, *other, code=FAILED, says="recovery key", name="bad_key_file")


def test_missing_vault(cli: Cli, vault: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    refused(cli, "points", tmp_path / "empty", code=FAILED, says="there is no vault", name="vault_missing")
    assert cli("points", tmp_path / "nowhere").code == FAILED


def test_existing_vault(cli: Cli, vault: Path) -> None:
    refused(cli, "init", vault, code=FAILED, says="there is a vault at this place already", name="vault_exists")


def test_a_key_file_made_for_a_vault_that_was_not_is_taken_back(cli: Cli, vault: Path, tmp_path: Path) -> None:
    assert cli("init", vault, "--key-file", tmp_path / "new").code == FAILED
    assert not (tmp_path / "new").exists()


def test_newer_format(cli: Cli, vault: Path) -> None:
    info, _, mac = (vault / "vault.json").read_bytes().rpartition(b"\n")
    newer = json.dumps({**json.loads(info), "format": 2}).encode()
    (vault / "vault.json").write_bytes(newer + b"\n" + mac)
    refused(cli, "points", vault, code=FAILED, says="Use a newer version", name="format_error")


def test_missing_source_folder(cli: Cli, vault: Path, tmp_path: Path) -> None:
    refused(cli, "backup", vault, tmp_path / "gone", code=FAILED, says="does not exist", name="source_missing")


@pytest.mark.rule("C27")
def test_missing_restore_folder(cli: Cli, vault: Path, point: str, tmp_path: Path) -> None:
    target = ("--to", tmp_path / "gone")
    refused(cli, "restore", vault, point, *target, code=FAILED, says="Make the folder first", name="target_missing")
    assert not (tmp_path / "gone").exists()


def test_a_restore_needs_one_place(cli: Cli, vault: Path, point: str, tmp_path: Path) -> None:
    refused(cli, "restore", vault, point, code=USAGE, says="either --to DIR, --original")
    refused(cli, "restore", vault, point, "--to", tmp_path, "--original", code=USAGE, says="either --to DIR")


def test_full_disk(cli: Cli, full_disk: Path, tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(os.urandom(1 << 20))
    cli("init", full_disk / "vault")
    command = ("backup", full_disk / "vault", tmp_path / "big", "--workers", "1")
    refused(cli, *command, code=FAILED, says="Free some space", name="storage_full")
    assert cli("points", full_disk / "vault", "--json").document["points"] == []


def test_unknown_and_ambiguous_points(cli: Cli, vault: Path, point: str, tree: Path) -> None:
    cli("backup", vault, tree, "--workers", "1")
    refused(cli, "ls", vault, "zzz", code=FAILED, says="list them with points", name="point_missing")
    refused(cli, "ls", vault, point[:2], code=FAILED, says="type more of the id", name="point_missing")


def test_latest_of_an_empty_vault(cli: Cli, vault: Path) -> None:
    refused(cli, "ls", vault, "latest", code=FAILED, says="no recovery point yet", name="point_missing")


def test_unknown_path_in_a_point(cli: Cli, vault: Path, point: str) -> None:
    refused(cli, "cat", vault, point, "/gone", code=FAILED, says="/gone is not in", name="entry_missing")
    refused(cli, "ls", vault, point, "/gone", code=FAILED, says="/gone is not in", name="entry_missing")


def test_bad_pattern(cli: Cli, vault: Path, point: str, tree: Path) -> None:
    refused(cli, "backup", vault, tree, "--exclude", "/", code=USAGE, says="matches nothing")
    restore = ("restore", vault, point, "--to", tree)
    refused(cli, *restore, "--include", "  ", code=USAGE, says="matches nothing")


def test_bad_series(cli: Cli, vault: Path, tree: Path) -> None:
    refused(cli, "backup", vault, tree, "--series", "No Good", code=USAGE, says="can't name a series")


@pytest.mark.parametrize("workers", ["0", "-3"])
def test_too_few_workers(cli: Cli, vault: Path, tree: Path, workers: str) -> None:
    refused(cli, "backup", vault, tree, "--workers", workers, code=USAGE, says="give at least 1")


def test_an_address_that_is_none(cli: Cli, vault: Path) -> None:
    refused(cli, "points", "ftp://host/x", code=USAGE, says="is not an address")


def test_a_bucket_without_an_endpoint(cli: Cli, vault: Path) -> None:
    refused(cli, "points", "s3://bucket/x", code=USAGE, says="set BACKUPSITE_S3_ENDPOINT")


def test_unreachable_bucket(cli: Cli, vault: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BACKUPSITE_S3_ENDPOINT", "http://127.0.0.1:9")
    refused(cli, "points", "s3://bucket/x", code=FAILED, says="Check the endpoint", name="unreachable")


def test_forbidden_bucket(
    cli: Cli, vault: Path, minio_service: S3, s3_bucket: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", minio_service.url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", minio_service.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not the right one")
    url = f"s3://{s3_bucket(minio_service)}/x"
    refused(cli, "points", url, code=FAILED, says="Check the access key", name="forbidden")


def test_a_vault_in_a_bucket_works(
    cli: Cli, minio_service: S3, s3_bucket: Callable[..., str], monkeypatch: pytest.MonkeyPatch, tree: Path
) -> None:
    monkeypatch.setenv("BACKUPSITE_S3_ENDPOINT", minio_service.url)
    monkeypatch.setenv("BACKUPSITE_S3_ACCESS_KEY", minio_service.access_key)
    monkeypatch.setenv("BACKUPSITE_S3_SECRET_KEY", minio_service.secret_key)
    url = f"s3://{s3_bucket(minio_service)}/x"
    assert cli("init", url).code == 0
    monkeypatch.setattr(cutter, "UNIT_FILES", 1)  # enough units for a pool
    assert cli("backup", url, tree, "--workers", "2").code == 0
    assert cli("ls", url, "latest", tree).code == 0


@pytest.mark.parametrize("arguments", [["frobnicate"], ["backup"], ["points", "x", "--nonsense"], ["points", "x", "y"]])
def test_wrong_usage_exits_with_2(cli: Cli, arguments: list[str]) -> None:
    assert cli(*arguments).code == USAGE
    answer = cli(*arguments, "--json")
    assert (answer.code, answer.document["error"]["code"]) == (USAGE, "usage")
