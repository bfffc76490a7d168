"""The verify command: what it says of damage and of how much was read."""

from pathlib import Path

import pytest

from tests.engine.cli.conftest import Cli


@pytest.fixture
def pack(vault: Path, point: str) -> Path:
    return max((path for path in vault.glob("packs/*/*") if path.is_file()), key=lambda path: path.stat().st_size)


def test_damaged_packs_are_listed_with_files_and_points_and_healed_when_whole(
    cli: Cli, vault: Path, pack: Path
) -> None:
    whole = pack.read_bytes()
    pack.chmod(0o600)
    pack.write_bytes(whole[:200] + bytes(len(whole) - 200))
    found = cli("verify", vault, "--level", "scrub", "--json", "--workers", "1").document
    assert found["packs_damaged"] == [pack.name]
    assert found["findings"][0]["files"] >= 1
    answer = cli("verify", vault, "--level", "scrub", "--workers", "1")
    assert answer.code == 1
    assert f"files affected by packs/{pack.name[:2]}/{pack.name}" in answer.out
    assert "1 packs are noted as damaged: backups store again what was in them" in answer.out
    pack.write_bytes(whole)
    found = cli("verify", vault, "--level", "scrub", "--json", "--workers", "1").document
    assert (found["state"], found["packs_damaged"], found["packs_healed"]) == ("complete", [], [pack.name])


def test_a_limited_scrub_says_how_much_is_covered(cli: Cli, vault: Path, point: str) -> None:
    answer = cli("verify", vault, "--level", "scrub", "--days", "30", "--workers", "1")
    assert answer.code == 0
    assert "every byte read in the last 30 days: " in answer.out
    assert "100.0%" not in answer.out
    document = cli("verify", vault, "--level", "scrub", "--json", "--workers", "1").document
    assert document["coverage"]["share"] == 1.0
    assert cli("verify", vault, "--level", "scrub", "--mib-max", "1", "--workers", "1").code == 0


@pytest.mark.parametrize("option", ["--days", "--mib-max"])
def test_a_level_that_does_not_read_everything_cannot_be_limited(
    cli: Cli, vault: Path, point: str, option: str
) -> None:
    answer = cli("verify", vault, option, "1")
    assert (answer.code, answer.out) == (2, "")
    assert "--level scrub" in answer.err
