"""The erase command: only the vault that is named, and nothing while a lock is in force."""

import datetime as dt
from pathlib import Path

import pytest

from engine.keyproviders.keyring import Keyring
from engine.storage import Directory
from engine.vault import Vault
from tests.engine.cli.conftest import Cli


@pytest.fixture
def vault_id(vault: Path, point: str, tmp_path: Path) -> str:
    return Vault.open(Directory(str(vault)), provider=Keyring.load(tmp_path / "key")).info.vault_id


def stored(vault: Path) -> int:
    return sum(path.is_file() for path in vault.rglob("*") if not path.name.startswith("."))


def test_without_the_vaults_id_it_tells_it_and_deletes_nothing(cli: Cli, vault: Path, vault_id: str) -> None:
    before = stored(vault)
    answer = cli("erase", vault)
    assert answer.code == 2
    assert f"its 1 recovery points for good. To go on, give --vault-id {vault_id}" in answer.err
    assert "is to be erased" in cli("erase", vault, "--vault-id", "0" * 32, "--workers", "1").err
    told = cli("erase", vault, "--vault-id", vault_id, "--dry-run", "--workers", "1")
    assert (told.code, "this was a dry run" in told.out) == (0, True)
    assert stored(vault) == before


def test_nothing_of_the_vault_is_left(cli: Cli, vault: Path, vault_id: str) -> None:
    done = cli("erase", vault, "--vault-id", vault_id, "--json", "--workers", "1")
    assert (done.code, done.document["state"], done.document["locked_until"]) == (0, "complete", None)
    assert stored(vault) == 0
    assert "there is no vault" in cli("points", vault).err


@pytest.mark.rule("B6")
def test_a_lock_keeps_it_and_its_date_is_told(cli: Cli, vault: Path, vault_id: str, point: str) -> None:
    assert cli("lock", vault, "--days", "30", "--confirm", f"lock {vault.name} for 30 days", "--workers", "1").code == 0
    before = stored(vault)
    answer = cli("erase", vault, "--vault-id", vault_id, "--workers", "1")
    assert answer.code == 3
    ends = dt.datetime.now(dt.UTC) + dt.timedelta(days=30)
    assert any(f"{ends + dt.timedelta(days=day):%Y-%m-%d}" in answer.err for day in range(12))
    assert stored(vault) == before
    assert point[:10] in cli("points", vault).out
