"""compact on the command line."""

import re
from pathlib import Path

import pytest

from tests.engine.cli.conftest import Cli
from tests.support.compaction import noise
from tests.support.vaults import write_files


@pytest.fixture
def sparse(cli: Cli, vault: Path, tree: Path) -> Path:
    """A vault with a pack of which three quarters are dead."""
    write_files(tree, {f"f{n}": noise(n, 50_000) for n in range(4)})
    first = cli("backup", vault, tree, "--json", "--workers", "1").document["point"]
    for n in range(3):
        (tree / f"f{n}").unlink()
    assert cli("backup", vault, tree, "--workers", "1").code == 0
    assert cli("delete", vault, first, "--yes", "--confirm").code == 0
    return vault


def stored_bytes(vault: Path) -> int:
    return sum(path.stat().st_size for path in (vault / "packs").rglob("*") if path.is_file())


def test_a_dry_run_tells_what_could_be_freed_and_changes_nothing(cli: Cli, sparse: Path) -> None:
    before = stored_bytes(sparse)
    answer = cli("compact", sparse, "--dry-run", "--workers", "1")
    assert answer.code == 0
    assert re.search(r"points need \d packs \([^)]+\), of which about [^ ]+ KiB are dead", answer.out)
    assert "1 mostly dead" in answer.out
    assert "this was a dry run" in answer.out
    assert stored_bytes(sparse) == before


def test_compact_and_prune_free_what_is_dead(cli: Cli, sparse: Path, tree: Path, tmp_path: Path) -> None:
    before = stored_bytes(sparse)
    answer = cli("compact", sparse, "--workers", "1")
    assert answer.code == 0
    assert "1 packs moved" in answer.out
    assert "run prune" in answer.out
    assert cli("prune", sparse, "--workers", "1").code == 0
    assert stored_bytes(sparse) < before / 2
    assert cli("verify", sparse, "--level", "content", "--workers", "1").code == 0
    document = cli("compact", sparse, "--json", "--workers", "1").document
    assert (document["command"], document["state"], document["packs_moved"]) == ("compact", "complete", 0)


def test_what_is_left_alone_is_told_and_exits_with_3(cli: Cli, sparse: Path) -> None:
    pack = max((path for path in (sparse / "packs").rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    data = bytearray(pack.read_bytes())
    data[1000:-70_000] = bytes(len(data) - 71_000)
    pack.chmod(0o600)
    pack.write_bytes(data)
    answer = cli("compact", sparse, "--workers", "1")
    assert answer.code == 3
    assert f"left alone: packs/{pack.name[:2]}/{pack.name}" in answer.err


def test_packs_with_less_dead_than_asked_for_stay(cli: Cli, sparse: Path) -> None:
    document = cli("compact", sparse, "--dead-share", "0.9", "--json", "--workers", "1").document
    assert (document["packs_moved"], document["choice"]["chosen"]) == (0, {})


@pytest.mark.parametrize("share", ["0", "1.5", "-1"])
def test_a_share_that_is_none_is_wrong_usage(cli: Cli, vault: Path, share: str) -> None:
    answer = cli("compact", vault, f"--dead-share={share}")
    assert answer.code == 2
    assert "more than 0 and at most 1" in answer.err


def test_a_vault_that_cannot_be_read_is_refused(cli: Cli, sparse: Path) -> None:
    (root,) = (sparse / "points").rglob("root")
    data = bytearray(root.read_bytes())
    data[-1] ^= 1
    root.chmod(0o600)
    root.write_bytes(data)
    answer = cli("compact", sparse, "--workers", "1")
    assert answer.code == 1
    assert "REFUSED" in answer.out
