"""Vaults of every format ever released open and give exactly what was stored (engine invariant 30)."""

import json
import tarfile
from pathlib import Path

import pytest

from engine.keyproviders.keyring import Keyring, RecoveryKey
from engine.keyproviders.port import KeyProvider
from engine.storage import Directory
from engine.vault import Vault
from tests.support.golden import describe
from tests.support.vaults import Bench, verified

pytestmark = pytest.mark.invariant(30)

GOLDEN = Path(__file__).parent.parent / "golden"
VAULTS = sorted(GOLDEN.glob("vault-*.tar"))


def unpacked(tar: Path, target: Path) -> Directory:
    with tarfile.open(tar) as archive:
        archive.extractall(target, filter="data")
    return Directory(target)


def recovery_key(tar: Path) -> RecoveryKey:
    lines = tar.with_suffix(".keys").read_text().splitlines()
    return RecoveryKey.parse(next(line[2:] for line in lines if line.startswith("# BSRK")))


def test_there_is_a_golden_vault_of_the_first_format():
    assert GOLDEN / "vault-1.tar" in VAULTS


@pytest.mark.parametrize("which", ["key file", "recovery key"])
@pytest.mark.parametrize("tar", VAULTS, ids=lambda path: path.stem)
def test_a_golden_vault_opens_and_gives_what_was_stored(tmp_path: Path, tar: Path, which: str):
    provider: KeyProvider = recovery_key(tar) if which == "recovery key" else Keyring.load(tar.with_suffix(".keys"))
    vault = Vault.open(unpacked(tar, tmp_path / "vault"), provider=provider)
    expected = json.loads(tar.with_suffix(".json").read_text())
    assert {name.point: describe(vault, name) for name in vault.points()} == expected
    assert len(expected) == 2


@pytest.mark.parametrize("tar", VAULTS, ids=lambda path: path.stem)
def test_a_golden_vault_is_read_without_its_index_too(tmp_path: Path, tar: Path):
    storage = unpacked(tar, tmp_path / "vault")
    storage.delete([stored.key for stored in storage.scan("index/")])
    vault = Vault.open(storage, provider=Keyring.load(tar.with_suffix(".keys")))
    expected = json.loads(tar.with_suffix(".json").read_text())
    assert {name.point: describe(vault, name) for name in vault.points()} == expected


@pytest.mark.parametrize("tar", VAULTS, ids=lambda path: path.stem)
def test_a_golden_vault_is_verified_whole_and_goes_on_taking_backups(tmp_path: Path, tar: Path):
    bench = Bench.__new__(Bench)
    bench.storage, bench.cache = unpacked(tar, tmp_path / "vault"), None
    bench.ring = Keyring.load(tar.with_suffix(".keys"))
    bench.clock = Bench().clock
    assert verified(bench, "content").findings == []
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "new").write_bytes(b"new")
    bench.back_up(tmp_path / "home", series="new")
    assert verified(bench, "content").census.points == 3
