"""expire, delete, hold: what they say and what they leave."""

import io
import json
from pathlib import Path

import pytest

from tests.engine.cli.conftest import Cli


class Terminal(io.StringIO):
    """A terminal at which somebody types one line."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def points(cli: Cli, vault: Path, tree: Path) -> list[str]:
    """The ids of three backups of the tree, oldest first."""
    made = []
    for number in range(3):
        (tree / "a.txt").write_text(f"version {number}")
        made.append(cli("backup", vault, tree, "--series", "home", "--json", "--workers", "1").document["point"])
    return made


def left(cli: Cli, vault: Path) -> list[str]:
    return [point["point"] for point in cli("points", vault, "--json").document["points"]]


def test_a_dry_run_tells_why_each_point_stays_or_goes_and_changes_nothing(cli: Cli, vault: Path, points: list[str]):
    before = {path for path in vault.rglob("*") if path.is_file()}
    answer = cli("expire", vault, "--keep-last", "1", "--keep-monthly", "1", "--dry-run")
    lines = [line.split() for line in answer.out.splitlines()]
    assert [(line[0], line[5]) for line in lines[1:4]] == [
        (points[0], "stays"), (points[1], "goes"), (points[2], "stays"),
    ]  # fmt: skip
    assert "first of month" in answer.out.splitlines()[1]
    assert "no rule keeps it" in answer.out.splitlines()[2]
    assert "number 1 of the last 1" in answer.out.splitlines()[3]
    assert lines[4][:4] == ["1", "points", "would", "go,"]
    assert {path for path in vault.rglob("*") if path.is_file()} == before
    assert answer.code == 0


def test_what_no_rule_keeps_is_expired(cli: Cli, vault: Path, points: list[str]):
    answer = cli("expire", vault, "--keep-last", "2")
    assert "1 of 3 points expired, 1 deleted" in answer.out
    assert left(cli, vault) == points[1:]
    document = cli("expire", vault, "--keep-last", "1", "--json").document
    assert (document["state"], document["expired"], document["visible"]) == ("complete", [f"home/{points[1]}"], 2)


def test_without_rules_points_stay_for_the_retention_they_were_made_with(cli: Cli, vault: Path, points: list[str]):
    document = cli("expire", vault, "--json").document
    assert document["expired"] == []
    assert {tuple(one["reasons"]) for one in document["decisions"]} == {("stays until somebody deletes it",)}


def test_more_than_a_fifth_needs_to_be_confirmed(cli: Cli, vault: Path, points: list[str]):
    preview = cli("expire", vault, "--keep-last", "1", "--dry-run")
    assert "would be refused without --confirm: 2 of 3 recovery points would go" in preview.err
    answer = cli("expire", vault, "--keep-last", "1")
    assert answer.code == 1
    assert "2 of 3 recovery points would go, more than a fifth" in answer.err
    assert "--confirm" in answer.err
    refused = cli("expire", vault, "--keep-last", "1", "--json").document
    assert refused["error"]["code"] == "expiry_refused"
    assert left(cli, vault) == points
    assert cli("expire", vault, "--keep-last", "1", "--confirm").code == 0
    assert left(cli, vault) == points[2:]


def test_only_the_series_that_are_named_are_judged(cli: Cli, vault: Path, tree: Path, points: list[str]):
    cli("backup", vault, tree, "--series", "other", "--workers", "1")
    document = cli("expire", vault, "--series", "other", "--keep-last", "1", "--dry-run", "--json").document
    assert [one["series"] for one in document["decisions"]] == ["other"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--keep-days", "0"], "keep nothing"),
        (["--keep-days", "-1"], "give 0 or more"),
        (["--keep-last", "-2"], "last is -2"),
        (["--keep-daily", "1", "--time-zone", "Mars/Olympus"], "no time zone 'Mars/Olympus'"),
        (["--keep-last", "1", "--series", "../x"], "can't name a series"),
    ],
)
def test_wrong_rules_are_wrong_usage(cli: Cli, vault: Path, options: list[str], says: str):
    answer = cli("expire", vault, *options)
    assert answer.code == 2
    assert says in answer.err


def test_a_damaged_point_is_told_stays_and_can_be_deleted_by_its_name(cli: Cli, vault: Path, points: list[str]):
    root = vault / "points" / "home" / points[0] / "root"
    root.write_bytes(b"rot")
    answer = cli("expire", vault, "--keep-last", "2")
    assert answer.code == 3
    assert f"cannot be read, so it stays: home/{points[0]}; delete it by its name" in answer.err
    assert cli("delete", vault, points[0], "--yes").code == 0
    assert left(cli, vault) == points[1:]


def test_delete_without_yes_and_without_a_terminal_deletes_nothing(cli: Cli, vault: Path, points: list[str]):
    answer = cli("delete", vault, points[0])
    assert answer.code == 2
    assert "--yes" in answer.err
    assert left(cli, vault) == points


@pytest.mark.parametrize("right", [True, False])
def test_at_a_terminal_the_points_id_is_typed(
    cli: Cli, vault: Path, points: list[str], monkeypatch: pytest.MonkeyPatch, right: bool
):
    monkeypatch.setattr("sys.stdin", Terminal(points[0] if right else points[1]))
    answer = cli("delete", vault, points[0])
    assert f"to go on, type: {points[0]}".lower() in answer.err.lower()
    assert answer.code == (0 if right else 2)
    assert left(cli, vault) == (points[1:] if right else points)


def test_for_several_points_their_number_is_typed(
    cli: Cli, vault: Path, points: list[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("sys.stdin", Terminal("delete 2 points\n"))
    answer = cli("delete", vault, points[0], f"home/{points[1]}", points[0], "--confirm", "--reason", "by mistake")
    assert answer.code == 0
    assert left(cli, vault) == points[2:]
    assert b"by mistake" in (vault / "points" / "home" / points[1] / "expired").read_bytes()


def test_deleting_a_point_that_is_not_there_is_told(cli: Cli, vault: Path, points: list[str]):
    assert "no recovery point has an id" in cli("delete", vault, "01zzz", "--yes").err
    gone = f"home/{points[0]}"
    cli("delete", vault, gone, "--yes")
    answer = cli("delete", vault, gone, "--yes", "--json").document
    assert (answer["state"], answer["missing"], answer["expired"]) == ("complete", [gone], [])


@pytest.mark.parametrize("name", ["latest", "Home/x", "home/"])
def test_what_is_deleted_is_named_exactly(cli: Cli, vault: Path, points: list[str], name: str):
    assert cli("delete", vault, name, "--yes").code == 2
    assert left(cli, vault) == points


def test_a_held_point_is_neither_expired_nor_deleted_until_it_is_released(cli: Cli, vault: Path, points: list[str]):
    assert cli("hold", vault, points[0], "--reason", "the court").code == 0
    [held] = cli("holds", vault, "--json").document["holds"]
    assert (held["point"], held["series"], held["reason"]) == (points[0], "home", "the court")
    assert "the court" in cli("holds", vault).out
    answer = cli("delete", vault, points[0], "--yes")
    assert answer.code == 1
    assert f"not deleted: home/{points[0]}: held: release it first" in answer.err
    assert cli("expire", vault, "--keep-last", "2").code == 0
    assert left(cli, vault) == points
    assert cli("release", vault, points[0], "--json").document["holds"] == 1
    assert cli("holds", vault).out == "No point is held.\n"
    assert cli("delete", vault, points[0], "--yes").code == 0


def test_releasing_what_is_not_held_fails(cli: Cli, vault: Path, points: list[str]):
    answer = cli("release", vault, points[0])
    assert (answer.code, answer.out) == (1, f"not held: home/{points[0]}\n")


def test_a_reason_that_is_a_book_is_refused(cli: Cli, vault: Path, points: list[str]):
    assert "give at most 1,000" in cli("hold", vault, points[0], "--reason", "x" * 1001).err


def test_a_damaged_hold_is_told_and_can_be_released(cli: Cli, vault: Path, points: list[str]):
    cli("hold", vault, points[0])
    [note] = (vault / "holds" / "home" / points[0]).iterdir()
    note.write_bytes(b"rot")
    assert "it holds all the same" in cli("holds", vault).out
    assert json.loads(cli("holds", vault, "--json").out)["holds"][0]["error"]
    assert cli("delete", vault, points[0], "--yes").code == 1
    assert cli("release", vault, points[0]).code == 0
    assert cli("delete", vault, points[0], "--yes").code == 0


def test_a_vault_without_points_is_complete(cli: Cli, vault: Path):
    answer = cli("expire", vault, "--keep-last", "1")
    assert (answer.code, answer.out) == (0, "0 of 0 points expired, 0 deleted; prune frees their space\n")
