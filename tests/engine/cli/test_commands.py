"""What the commands say, to people and to programs."""

import base64
from pathlib import Path

import pytest

from engine.cli.backup import default_series
from engine.ids import valid_series
from tests.engine.cli.conftest import Cli


def test_a_backup_tells_its_point_its_counts_and_its_state(cli: Cli, vault: Path, tree: Path) -> None:
    first = cli("backup", vault, tree, "--json", "--workers", "1").document
    assert (first["state"], first["problems"], first["problems_total"]) == ("complete", [], 0)
    assert (first["stats"]["entries"], first["stats"]["entries_read"], first["stats"]["files"]) == (5, 5, 2)
    second = cli("backup", vault, tree, "--json").document
    assert (second["stats"]["bytes_new"], second["stats"]["bytes_stored"]) == (0, 0)
    assert second["series"] == first["series"]


def test_the_same_paths_in_another_order_are_the_same_series() -> None:
    assert default_series("h", [b"/a", b"/b"]) == default_series("h", [b"/b", b"/a"])


def test_other_hosts_and_other_paths_are_other_series() -> None:
    names = {default_series(host, [path]) for host in ("h", "g") for path in (b"/a/x", b"/b/x")}
    assert len(names) == 4


@pytest.mark.parametrize("host", ["h", "Host.Example.ORG", "_", "é" * 200])
def test_a_default_series_is_always_a_valid_name(host: str) -> None:
    assert valid_series(default_series(host, [b"/" + b"x" * 200, b"/\xff"]))
    assert valid_series(default_series(host, [b"/"]))


def test_a_partial_backup_says_so_and_exits_with_3(cli: Cli, vault: Path) -> None:
    # A file that the kernel lists and refuses to read, for every user.
    answer = cli("backup", vault, "/proc/self/mem", "--workers", "1")
    assert answer.code == 3
    assert "PARTIALLY COMPLETE" in answer.out
    assert "lost: /proc/self/mem: unreadable" in answer.err
    assert ": complete" not in answer.out


@pytest.mark.rule("B28")
def test_mounts_inside_are_listed(cli: Cli, vault: Path, tree: Path, full_disk: Path) -> None:
    answer = cli("backup", vault, full_disk.parent, "--exclude", "cache", "--workers", "1")
    assert "note: other file systems inside are part of the backup:" in answer.err
    assert str(full_disk) in answer.err


def test_a_vault_inside_the_folder_is_left_out_of_it(cli: Cli, vault: Path, tree: Path) -> None:
    answer = cli("backup", vault, tree.parent, "--json", "--workers", "1")
    names = {entry["path"] for entry in cli("ls", vault, "latest", tree.parent, "--json").document["entries"]}
    assert answer.code == 0
    assert str(tree) in names
    assert str(vault) not in names


@pytest.mark.rule("B22")
def test_ls_lists_one_level(cli: Cli, vault: Path, point: str, tree: Path) -> None:
    entries = cli("ls", vault, point[:20], tree, "--json").document["entries"]
    assert [(Path(one["path"]).name, one["kind"]) for one in entries] == [
        ("a.txt", "file"), ("inner", "directory"), ("link", "symlink"),
    ]  # fmt: skip
    lines = cli("ls", vault, point, tree).out.splitlines()
    assert lines[0].startswith("-rw")
    assert lines[2].endswith("link -> a.txt")


def test_ls_of_a_file_lists_it(cli: Cli, vault: Path, point: str, tree: Path) -> None:
    assert len(cli("ls", vault, point, tree / "a.txt").out.splitlines()) == 1


def test_cat_gives_the_content_in_json_too(cli: Cli, vault: Path, point: str, tree: Path) -> None:
    document = cli("cat", vault, point, tree / "a.txt", "--json").document
    assert base64.b64decode(document["content_base64"]) == b"hello"


def test_points_lists_state_and_series(cli: Cli, vault: Path, point: str) -> None:
    [listed] = cli("points", "--json", vault).document["points"]
    assert (listed["point"], listed["state"]) == (point, "complete")
    assert point in cli("points", vault).out


def test_a_dry_run_names_what_it_would_write_and_writes_nothing(cli: Cli, vault: Path, point: str, tree: Path) -> None:
    out = tree.parent / "out"
    out.mkdir()
    answer = cli("restore", vault, point, "--to", out, "--dry-run", "--include", "*.log")
    assert f"write {tree}/inner/b.log" in answer.out
    assert "a.txt" not in answer.out
    assert list(out.iterdir()) == []
    assert all(path.name != "open" or (path.parent / "closed").exists() for path in vault.glob("sessions/*/*"))


@pytest.mark.rule("C28")
def test_a_file_of_the_same_name_stays_unless_overwrite_is_asked_for(
    cli: Cli, vault: Path, point: str, tree: Path
) -> None:
    (tree / "a.txt").write_text("mine")
    skipped = cli("restore", vault, point, "--original", "--json", "--workers", "1").document
    assert skipped["stats"]["skipped"] == 3
    assert (tree / "a.txt").read_text() == "mine"
    answer = cli("restore", vault, point, "--original", "--same-name", "overwrite", "--workers", "1")
    assert "lost for good" in answer.err
    assert (tree / "a.txt").read_text() == "hello"


def test_verify_finds_damage_and_fails(cli: Cli, vault: Path, point: str) -> None:
    assert cli("verify", vault, "--level", "content", "--workers", "1").code == 0
    pack = next(path for path in vault.glob("packs/*/*") if path.is_file())
    pack.unlink()
    answer = cli("verify", vault, "--json", "--workers", "1")
    assert (answer.code, answer.document["state"]) == (1, "failed")
    assert answer.document["findings"][0]["damage"] == "missing"
    assert "DAMAGE FOUND" in cli("verify", vault, "--workers", "1").out


def test_rebuild_tells_the_points_and_series(cli: Cli, vault: Path, point: str) -> None:
    for segment in vault.glob("index/*/*"):
        segment.unlink()
    answer = cli("rebuild", vault, "--json", "--workers", "1").document
    assert answer["state"] == "complete"
    assert (answer["stats"]["points"], answer["stats"]["series"]) == (1, 1)
    assert answer["stats"]["packs_listed"] > 0
    assert "1 points in 1 series" in cli("rebuild", vault, "--workers", "1").out


def test_the_recovery_key_opens_the_vault_without_the_key_file(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = cli("init", tmp_path / "vault", "--json").document
    (tmp_path / "key").unlink()
    (tmp_path / "recovery").write_text(made["recovery_key"] + "\n")
    assert cli("points", tmp_path / "vault", "--recovery-key-file", tmp_path / "recovery").code == 0
    monkeypatch.setenv("BACKUPSITE_RECOVERY_KEY", made["recovery_key"].lower())
    assert cli("points", tmp_path / "vault").code == 0


def test_an_existing_key_file_is_used_again(cli: Cli, vault: Path, tmp_path: Path) -> None:
    document = cli("init", tmp_path / "second", "--json").document
    assert document["key_file_created"] is False
    assert cli("points", tmp_path / "second").code == 0


def test_quiet_is_quiet_but_for_problems_and_the_recovery_key(cli: Cli, tmp_path: Path, tree: Path) -> None:
    assert "BSRK-" in cli("init", tmp_path / "v", "--quiet").out
    answer = cli("backup", tmp_path / "v", tree, "--quiet", "--workers", "1")
    assert (answer.out, answer.err) == ("", "")
