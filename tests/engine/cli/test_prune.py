"""The prune command: what it frees, what it leaves, and what it refuses."""

import datetime as dt
from pathlib import Path

import pytest

from engine.cli import prune as command
from engine.ids import new_ulid
from engine.keyproviders.keyring import Keyring
from engine.session import Session
from engine.storage import Directory
from engine.vault import Vault
from tests.engine.cli.conftest import Cli


@pytest.fixture
def waste(cli: Cli, vault: Path, tree: Path, point: str) -> Path:
    """A vault in which one point was deleted and one stays."""
    (tree / "a.txt").write_text("other")
    (tree / "inner" / "b.log").write_bytes(bytes(range(255)) * 100)
    assert cli("backup", vault, tree, "--workers", "1").code == 0
    assert cli("delete", vault, point, "--yes", "--confirm").code == 0
    return vault


def open_session(vault: Path, key: Path, *, ago_h: float) -> Session:
    now = dt.datetime.now(dt.UTC) - dt.timedelta(hours=ago_h)
    opened = Vault.open(Directory(str(vault)), provider=Keyring.load(key))
    return opened.open_session(new_ulid(now), verb="restore", now=now)


def packs(vault: Path) -> int:
    return sum(path.is_file() for folder in ("packs", "meta") for path in vault.glob(f"{folder}/*/*"))


def test_what_no_point_needs_is_told_then_deleted(cli: Cli, waste: Path, tmp_path: Path) -> None:
    before = packs(waste)
    told = cli("prune", waste, "--dry-run", "--workers", "1")
    assert told.code == 0
    assert "this was a dry run" in told.out
    assert packs(waste) == before
    done = cli("prune", waste, "--json", "--workers", "1")
    assert done.code == 0
    document = done.document
    assert document["packs_deleted"] == before - packs(waste) == document["packs_unneeded"] > 0
    assert "0 packs deleted, 0 B freed" in cli("prune", waste, "--workers", "1").out
    (tmp_path / "back").mkdir()
    assert cli("restore", waste, "latest", "--to", tmp_path / "back", "--workers", "1").code == 0


def test_a_running_session_is_waited_for_only_when_asked(
    cli: Cli, waste: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli("prune", waste, "--dry-run", "--workers", "1").code == 0
    session = open_session(waste, tmp_path / "key", ago_h=0.1)
    answer = cli("prune", waste, "--workers", "1")
    assert answer.code == 3
    assert "packs may belong to sessions that run" in answer.err
    before = packs(waste)
    pauses = []

    def pause(display: object) -> None:
        pauses.append(packs(waste))
        session.close("done", dt.datetime.now(dt.UTC))

    session.close("done", dt.datetime.now(dt.UTC))
    session = open_session(waste, tmp_path / "key", ago_h=0.1)
    monkeypatch.setattr(command, "_pause", pause)
    assert cli("prune", waste, "--wait", "--workers", "1").code == 0
    assert pauses == [before]
    assert packs(waste) < before


def test_a_dead_session_is_fenced_and_told(cli: Cli, waste: Path, tmp_path: Path) -> None:
    open_session(waste, tmp_path / "key", ago_h=3)
    answer = cli("prune", waste, "--workers", "1")
    assert answer.code == 0
    assert "1 sessions gave no sign of life and were fenced" in answer.err


def test_a_vault_that_is_not_whole_is_refused(cli: Cli, waste: Path) -> None:
    for path in waste.glob("packs/*/*"):
        path.unlink()
    answer = cli("prune", waste, "--workers", "1")
    assert answer.code == 1
    assert "REFUSED" in answer.out
    assert "missing" in answer.out
    assert packs(waste) > 0
