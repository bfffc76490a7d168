"""Tables from end to end: Tablestore (the contract test double, under the vendor's SDK) and DynamoDB (dynalite)."""

import json
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.targets.files import FilesTarget
from tests.scenarios.relay import Door
from tests.support.engine_program import EngineProgram, ended, killed
from tests.support.tablestore_server import TablestoreServer
from tests.support.wide_columns import KINDS, Lab, TablestoreLab, labs

pytestmark = [pytest.mark.scenario, pytest.mark.timeout(110)]
ROWS, TEXT_CHARACTERS = 1000, 8000
SLOW = 300_000  # bytes/s: the rows take many seconds


@pytest.fixture(params=KINDS)
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    yield from labs(request)


@pytest.fixture
def program(tmp_path: Path) -> EngineProgram:
    return EngineProgram(tmp_path)


@pytest.fixture
def door(lab: Lab) -> Iterator[Door]:
    door = Door(lab.source().place.endpoint.removeprefix("http://"))
    yield door
    door.close()


def fill(lab: Lab) -> dict[str, tuple[Any, Any]]:
    """Make a table of 8 MB, a small one and an empty one; return what they are and hold."""
    lab.make("orders", ROWS, text=lambda number: random.Random(number).randbytes(TEXT_CHARACTERS // 2).hex())
    lab.delete("orders", range(505, 506))
    lab.make("users", 30)
    lab.make("empty")
    if isinstance(lab, TablestoreLab):
        lab.server.page_rows = 100
    return found(lab)


def found(lab: Lab, *, suffix: str = "") -> dict[str, tuple[Any, Any]]:
    """Return each table as its service's own client shows it."""
    names = [table for table in lab.tables() if table.endswith(suffix)]
    return {table.removesuffix(suffix): (lab.content(table), lab.shape(table)) for table in names}


def in_the_middle(process: Any) -> None:
    """Wait until a backup reads, and see that it has not ended."""
    time.sleep(3)
    assert process.poll() is None, process.communicate()


@pytest.mark.rule("E8")
def test_tables_are_backed_up_changed_destroyed_and_restored_to_the_same_and_to_other_names(
    lab: Lab, program: EngineProgram, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    before = fill(lab)
    first = program.back_up(lab.source(range_mib=1))
    assert first["state"] == "complete"

    lab.put("orders", range(500, 504), text="changed")
    lab.delete("orders", range(504, 505))
    lab.put("orders", range(505, 506), text="new, in between")
    changed = found(lab)
    second = program.back_up(lab.source(range_mib=1))
    figures = [(run["stats"]["bytes_read"], run["stats"]["bytes_new"]) for run in (first, second)]
    request.node.user_properties.append(("bytes read and new", json.dumps(figures)))
    assert figures[1][1] < figures[0][1] * 0.75  # at most three chunks of 2 MB, mostly far less

    for table in lab.tables():
        lab.drop(table)
    restored = program.restore(lab.target(), point="latest")
    assert (restored["state"], restored["problems"]) == ("complete", [])
    assert found(lab) == changed

    older = program.restore(lab.target(suffix="_old"), point=first["point"])
    assert older["state"] == "complete"
    assert found(lab, suffix="_old") == before

    out = tmp_path / "out"
    out.mkdir()
    program.restore(FilesTarget(root=str(out).encode()), point="latest")
    lines = [line for path in sorted(out.glob("tables/orders/rows/*.jsonl")) for line in path.read_text().splitlines()]
    rows = [json.loads(line) for line in lines]
    assert len([row for row in rows if "end" not in row]) == len(changed["orders"][0])
    said = program.restore(lab.target(), point="latest", expect=1)
    assert "holds rows: restore with a suffix" in said


def test_a_backup_whose_worker_is_killed_leaves_no_point_and_the_next_is_whole(
    lab: Lab, program: EngineProgram
) -> None:
    before = fill(lab)
    process = program.backing_up(lab.source(bytes_per_s=SLOW))
    in_the_middle(process)
    killed(process)
    assert program.points("home") == []
    assert program.back_up(lab.source())["state"] == "complete"
    for table in lab.tables():
        lab.drop(table)
    program.restore(lab.target(), point="latest")
    assert found(lab) == before


def test_a_server_that_goes_away_in_mid_backup_leaves_no_point_and_a_clear_error(
    lab: Lab, program: EngineProgram, door: Door
) -> None:
    fill(lab)
    process = program.backing_up(lab.source(door=door.endpoint, bytes_per_s=SLOW))
    in_the_middle(process)
    door.close()
    said = ended(process, expect=1)
    assert "does not answer" in said or "it went away" in said
    assert "Run it again when the source answers" in said
    assert program.points("home") == []


def test_wrong_credentials_end_a_backup_before_anything_is_written(program: EngineProgram) -> None:
    server = TablestoreServer()
    lab = TablestoreLab(server)
    lab.make("users", 3)
    stored = program.stored()
    said = program.back_up(lab.source(secret_key="another"), expect=1)
    server.stop()
    assert "Signature mismatch" in said
    assert "Check the source's credentials" in said
    assert program.stored() == stored
