"""lock and audit: a lock is made once, longer only, and after it was typed what it means."""

import io
import sys
from pathlib import Path

import pytest

from engine.storage import APPLICATION_LEVEL
from tests.engine.cli.conftest import Cli

SAYS = "lock vault for 30 days"


def test_a_vault_without_a_lock_says_so(cli: Cli, vault: Path) -> None:
    assert cli("lock", vault).out == "The vault is not locked.\n"
    assert cli("lock", vault, "--json").document == {"command": "lock", "state": "complete", "days": 0}
    assert cli("audit", vault).out.splitlines() == ["The vault is not locked.", "nothing is wrong"]


@pytest.mark.parametrize("words", [[], ["--confirm", "yes"], ["--confirm", "lock vault for 31 days"]])
def test_a_lock_needs_to_be_typed(cli: Cli, vault: Path, words: list[str]) -> None:
    answer = cli("lock", vault, "--days", 30, *words)
    assert answer.code == 2
    assert "cannot be undone" in answer.err
    assert f"--confirm '{SAYS}'" in answer.err
    assert "not locked" in cli("lock", vault).out


def test_a_person_at_a_terminal_is_asked(cli: Cli, vault: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stdin", Terminal("no\n"))
    assert cli("lock", vault, "--days", 30).code == 2
    monkeypatch.setattr(sys, "stdin", Terminal(f"{SAYS}\n"))
    answer = cli("lock", vault, "--days", 30, "--workers", 1)
    assert answer.code == 0
    assert f"Type: {SAYS}" in answer.err


@pytest.mark.parametrize("days", [0, -1, 36_491])
def test_a_senseless_number_of_days_is_wrong_usage(cli: Cli, vault: Path, days: int) -> None:
    answer = cli("lock", vault, f"--days={days}", "--confirm", f"lock vault for {days} days")
    assert answer.code == 2
    assert "give 1 to" in answer.err


@pytest.mark.usefixtures("point")
@pytest.mark.rule("B6")
def test_a_folder_is_locked_tightened_never_loosened_and_called_what_it_is(cli: Cli, vault: Path) -> None:
    first = cli("lock", vault, "--days", 30, "--confirm", SAYS, "--json", "--workers", 1)
    assert (first.code, first.document["days"], first.document["retention"]) == (0, 30, APPLICATION_LEVEL)
    assert first.document["audit"]["lengthened"] > 0
    shown = cli("lock", vault).out
    assert "Locked for 30 days" in shown
    assert "application-level retention: the store itself does not lock" in shown
    assert "immutable" not in shown
    assert cli("lock", vault, "--days", 30, "--workers", 1).code == 0, "nothing new needs no confirmation"
    looser = cli("lock", vault, "--days", 7, "--json")
    assert (looser.code, looser.document["error"]["code"]) == (1, "lock_cannot_loosen")
    assert cli("lock", vault, "--days", 60, "--confirm", "lock vault for 60 days", "--workers", 1).code == 0
    assert "Locked for 60 days" in cli("lock", vault, "--quiet").out


@pytest.mark.usefixtures("point")
def test_an_audit_tells_what_it_found(cli: Cli, vault: Path) -> None:
    cli("lock", vault, "--days", 30, "--confirm", SAYS, "--workers", 1)
    good = cli("audit", vault, "--json", "--workers", 1)
    assert (good.code, good.document["state"], good.document["findings"]) == (0, "complete", [])
    for path in (vault / "locks" / "policy").iterdir():
        path.unlink()
    bad = cli("audit", vault, "--workers", 1)
    assert bad.code == 1
    assert "WRONG" in bad.out
    assert "1 things are still wrong" in bad.out
    found = cli("audit", vault, "--json").document["findings"]
    assert [(one["kind"], one["repaired"]) for one in found] == [("policy", False)]


@pytest.mark.usefixtures("point")
def test_an_audit_that_repaired_something_is_partially_complete(cli: Cli, vault: Path) -> None:
    cli("lock", vault, "--days", 30, "--confirm", SAYS, "--workers", 1)
    cli("backup", vault, vault.parent / "tree", "--workers", 1)
    newest = max(path.name for path in (vault / "points").glob("*/*"))
    for lock in (vault / ".locks" / "points").glob(f"*/{newest}/*"):
        lock.unlink()
    answer = cli("audit", vault, "--workers", 1)
    assert answer.code == 3
    assert answer.out.count("repaired") == 2
    assert "find out who did this" in answer.out
    assert cli("audit", vault, "--workers", 1).code == 0
