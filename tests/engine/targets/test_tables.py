"""Both services of tables as targets: what is made, what is refused, and what is told."""

import json
import pickle
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from engine import halt
from engine.connections.tables import FINISH, SCHEMA, path_of
from engine.entries import Entry, Kind
from engine.errors import TargetDenied, TargetFailed, TargetNotEmpty, TargetUnavailable, UnsafePath
from engine.ids import new_ulid
from engine.progress import Silent
from engine.targets.kinds import AnyTarget
from engine.verbs import restore
from tests.support.runs import restored
from tests.support.tablestore_server import TablestoreServer
from tests.support.vaults import Bench, on_disk, travelled
from tests.support.wide_columns import KINDS, Lab, TablestoreLab, labs

pytestmark = pytest.mark.services  # dynalite, and a server of the vendor's protocol

ROWS = b"/rows/0001-of-0001.jsonl"


@pytest.fixture(params=KINDS)
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    yield from labs(request)


def brought_back(bench: Bench, target: AnyTarget, **options: Any) -> restore.Outcome:
    """Restore the newest point; `options` are those of RestoreJob."""
    planner, worker, silent = bench.open(), bench.open(), Silent()
    name = planner.find("latest")
    job = restore.RestoreJob(
        session=new_ulid(bench.clock()), series=name.series, point=name.point, target=target,
        started_at=bench.clock(), **options,
    )  # fmt: skip
    units = list(restore.plan(planner, job, silent, now=bench.clock()))
    assert len(units) == 1  # rows need their table: one worker, in order
    results = [travelled(restore.work(worker, travelled_job(job), travelled(unit), silent)) for unit in units]
    return restore.finish(bench.open(), job, results, silent, clock=bench.clock)


def travelled_job(job: restore.RestoreJob) -> restore.RestoreJob:
    """Return the job as another process has it: with nothing that this one found out."""
    return msgspec.json.decode(msgspec.json.encode(job), type=restore.RestoreJob)


def test_tables_come_back_with_their_rows_indexes_and_settings(lab: Lab, bench: Bench) -> None:
    lab.make("users", 230)
    lab.make("empty")
    before = {table: (lab.content(table), lab.shape(table)) for table in ("users", "empty")}
    bench.back_up_from(lab.source())
    for table in before:
        lab.drop(table)
    outcome = brought_back(bench, lab.target())
    assert (outcome.state, outcome.problems) == ("complete", [])
    assert {table: (lab.content(table), lab.shape(table)) for table in before} == before


def test_a_suffix_makes_new_tables_beside_those_that_are_there(lab: Lab, bench: Bench) -> None:
    lab.make("users", 5)
    bench.back_up_from(lab.source())
    before = lab.content("users")
    lab.put("users", range(5, 7), text="later")
    assert brought_back(bench, lab.target(suffix="_restored")).state == "complete"
    assert lab.content("users_restored") == before
    assert len(lab.content("users")) == 7


def test_a_table_that_holds_rows_is_refused_before_anything_is_written(lab: Lab, bench: Bench) -> None:
    lab.make("apples", 5)
    lab.make("users", 5)
    bench.back_up_from(lab.source())
    lab.drop("apples")
    with pytest.raises(TargetNotEmpty, match="users holds rows: restore with a suffix"):
        brought_back(bench, lab.target())
    assert lab.tables() == {"users"}


def test_an_empty_table_is_filled(lab: Lab, bench: Bench) -> None:
    lab.make("users", 5)
    before = lab.content("users")
    bench.back_up_from(lab.source())
    lab.delete("users", range(5))
    assert brought_back(bench, lab.target()).problems == []
    assert lab.content("users") == before


def test_overwriting_puts_rows_over_others_and_tells_that_nothing_was_compared(lab: Lab, bench: Bench) -> None:
    lab.make("users", 5)
    before = lab.content("users")
    bench.back_up_from(lab.source())
    lab.put("users", range(3, 8), text="later")
    outcome = brought_back(bench, lab.target(overwrite=True))
    assert outcome.state == "complete"
    assert [problem.detail for problem in outcome.problems] == [
        "not compared: the table was there and may hold rows that are not the point's"
    ]
    after = lab.content("users")
    assert len(after) == 8
    assert {key: after[key] for key in before} == before


def test_rows_that_are_lost_on_the_way_are_noticed_at_the_end(
    lab: Lab, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.make("users", 40)
    bench.back_up_from(lab.source())
    service = type(lab.target().connect())
    put = service.put
    monkeypatch.setattr(service, "put", lambda self, table, schema, lines: put(self, table, schema, lines[1:]))
    outcome = brought_back(bench, lab.target(suffix="_new"))
    assert outcome.state == "partial_complete"
    [problem] = outcome.problems
    assert problem.reason == "write-failed"
    assert "rows that add up to" in problem.detail
    assert brought_back(bench, lab.target(suffix="_unread", verify=False)).state == "complete"


def test_rows_without_their_table_need_one_that_is_there(lab: Lab, bench: Bench) -> None:
    lab.make("users", 5)
    bench.back_up_from(lab.source())
    lab.drop("users")
    with pytest.raises(TargetFailed, match=r"there is no table users: restore its 0-schema.json"):
        brought_back(bench, lab.target(), include=("rows/",))
    lab.make("users")
    assert brought_back(bench, lab.target(), include=("rows/",)).state == "complete"
    assert len(lab.content("users")) == 5


def test_a_lost_worker_is_followed_by_one_that_writes_everything_again(lab: Lab, bench: Bench) -> None:
    lab.make("users", 60)
    before = lab.content("users")
    bench.back_up_from(lab.source())
    lab.drop("users")
    planner, silent = bench.open(), Silent()
    name = planner.find("latest")
    job = restore.RestoreJob(
        session=new_ulid(bench.clock()), series=name.series, point=name.point, target=lab.target(),
        started_at=bench.clock(),
    )  # fmt: skip
    [unit] = restore.plan(planner, job, silent, now=bench.clock())
    restore.work(bench.open(), travelled_job(job), unit, silent)
    lab.delete("users", range(10))
    result = restore.work(bench.open(), travelled_job(job), unit, silent)
    outcome = restore.finish(bench.open(), job, [result], silent, clock=bench.clock)
    assert (outcome.state, outcome.problems) == ("complete", [])
    assert lab.content("users") == before


def test_a_point_comes_back_as_files_that_people_can_read(lab: Lab, bench: Bench, tmp_path: Path) -> None:
    lab.make("users", 3)
    bench.back_up_from(lab.source())
    restored(bench, tmp_path)
    files = on_disk(tmp_path)
    assert set(files) == {b"tables/users/0-schema.json", b"tables/users" + ROWS, b"tables/users/z-finish.json"}
    assert json.loads(files[b"tables/users/0-schema.json"])["table"] == "users"
    assert len(files[b"tables/users" + ROWS].splitlines()) == 4


@pytest.mark.parametrize(
    ("name", "data", "reason", "detail"),
    [
        (SCHEMA, b"no json", "damaged", "describes no table"),
        (SCHEMA, b'{"service":"another","format":1}', "write-failed", "can't take"),
        (FINISH, b'{"service":"SAME","format":99}', "write-failed", "newer format"),
        ("rows/0001-of-0001.jsonl", b'{"end":{"rows":1,"digest":"00"}}\n', "damaged", "last line"),
        ("rows/0001-of-0001.jsonl", b"", "damaged", "last line"),
    ],
)
def test_a_file_that_is_not_what_it_should_be_is_told(
    lab: Lab, name: str, data: bytes, reason: str, detail: str
) -> None:
    lab.make("users")
    entry = Entry(path_of("users", name), Kind.FILE)
    [problem] = lab.target().write_small(entry, data.replace(b"SAME", lab.kind.encode()))
    assert (problem.reason, problem.lost) == (reason, True)
    assert detail in problem.detail


def test_a_line_that_is_no_row_fails_its_file(lab: Lab) -> None:
    lab.make("users")
    entry = Entry(path_of("users", "rows", "0001-of-0001.jsonl"), Kind.FILE)
    with pytest.raises(OSError, match="not a"):
        lab.target().write_small(entry, b'{"no":"row"}\n{"end":{"rows":1,"digest":"00"}}\n')
    with pytest.raises(OSError, match="behind the end"):
        lab.target().write_small(entry, b'{"end":{"rows":0,"digest":"00"}}\n{}\n')


def test_a_path_that_is_no_tables_is_unsafe(lab: Lab) -> None:
    with pytest.raises(UnsafePath, match="no file of a table"):
        lab.target().existing(b"home/me/file")


def test_a_server_that_is_not_there_is_unavailable(lab: Lab) -> None:
    with pytest.raises(TargetUnavailable, match="does not answer"):
        lab.target(door="127.0.0.1:1").check()


def test_a_target_survives_being_stored_and_pickled_and_shows_no_secret(lab: Lab) -> None:
    target = lab.target(suffix="_x")
    assert pickle.loads(pickle.dumps(target)) == target
    assert msgspec.json.decode(msgspec.json.encode(target), type=AnyTarget) == target
    assert target.place.secret_key not in f"{target!r} {target.where()}"
    assert "…_x" in target.where()


def test_wrong_credentials_are_denied_before_anything_is_written() -> None:
    server = TablestoreServer()
    with pytest.raises(TargetDenied, match="Signature"):
        TablestoreLab(server).target(secret_key="another").check()
    server.stop()


def test_refused_rows_are_counted_and_the_first_is_quoted(bench: Bench) -> None:
    server = TablestoreServer()
    lab = TablestoreLab(server)
    lab.make("users", 5)
    bench.back_up_from(lab.source())

    def before(api: str) -> None:
        if api == "BatchWriteRow":  # as if somebody set it meanwhile
            server.tables["users_new"].options.deviation_cell_version_in_sec = 0

    server.before = before
    outcome = brought_back(bench, lab.target(suffix="_new"))
    server.stop()
    assert outcome.state == "partial_complete"
    assert outcome.problems[0].detail.startswith("users_new refused 5 of 5 rows: OTSParameterInvalid: timestamp")


def test_a_table_that_is_dropped_while_it_is_restored_fails_the_restore(bench: Bench) -> None:
    server = TablestoreServer()
    lab = TablestoreLab(server)
    lab.make("users", 5)
    bench.back_up_from(lab.source())

    def before(api: str) -> None:
        if api == "GetRange" and "BatchWriteRow" in server.calls[-1:]:  # the comparison begins
            server.tables.pop("users_new", None)

    server.before = before
    with pytest.raises(TargetFailed, match="somebody drops tables"):
        brought_back(bench, lab.target(suffix="_new"))
    server.stop()


def test_a_service_that_takes_no_more_rows_ends_the_restore_as_unavailable(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = TablestoreServer()
    lab = TablestoreLab(server)
    lab.make("users", 5)
    bench.back_up_from(lab.source())
    for module in (time, halt):  # of the vendor's program, and of this one
        monkeypatch.setattr(module, "sleep", lambda seconds: None)
    server.busy_rows = 10**6
    with pytest.raises(TargetUnavailable, match="has taken 5 rows in none of 9 tries"):
        brought_back(bench, lab.target(suffix="_new"))
    server.stop()


def test_a_description_is_not_gathered_without_end(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.targets.tables._TEXT_BYTES", 10)
    entry = Entry(path_of("users", SCHEMA), Kind.FILE)
    with pytest.raises(OSError, match="too large"):
        lab.target().write_small(entry, b"{" + b" " * 10)


def test_rows_are_written_at_the_asked_pace(bench: Bench) -> None:
    server = TablestoreServer()
    lab = TablestoreLab(server)
    lab.make("users", 401)
    bench.back_up_from(lab.source())
    began = time.monotonic()
    brought_back(bench, lab.target(suffix="_new", rows_per_s=1000))
    took_s = time.monotonic() - began
    server.stop()
    assert took_s >= 0.4
