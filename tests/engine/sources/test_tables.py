"""Both services of tables as sources: what a walk yields, what reading gives, and what is told of a changing source."""

import hashlib
import json
import multiprocessing
import pickle
import socket
import sys
import time
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from engine.connections.tables import FINISH, ROWS, SCHEMA, place_of
from engine.entries import Entry, Problem
from engine.errors import ExtraMissing, SourceError, SourceIncomplete, SourceMissing, SourceUnavailable
from engine.sources.kinds import AnySource
from engine.sources.port import STREAM_BYTES, STREAM_NS, Reader
from engine.sources.stream import StreamReader
from engine.sources.tables import TablesSource
from engine.vault import PointName
from tests.support.tablestore_server import TablestoreServer
from tests.support.vaults import Bench, contents
from tests.support.wide_columns import KINDS, Lab, Meddled, TablestoreLab, labs

pytestmark = pytest.mark.services  # dynalite, and a server of the vendor's protocol


@pytest.fixture(params=KINDS)
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    yield from labs(request)


def entries(source: TablesSource) -> list[Entry]:
    return [found for found in source.walk() if isinstance(found, Entry)]


def opened(source: TablesSource, entry: Entry) -> Reader:
    reader = source.open(entry)
    assert not isinstance(reader, Problem), reader
    return reader


def content(source: TablesSource, entry: Entry, *, step: int = 1 << 16) -> bytes:
    found = bytearray()
    with opened(source, entry) as reader:
        view = memoryview(bytearray(step))
        while count := reader.readinto(view, len(found)):
            found += view[:count]
        assert not reader.changed()
    return bytes(found)


def rows_of(source: TablesSource, table: str) -> list[Entry]:
    def is_rows(entry: Entry) -> bool:
        place = place_of(entry.path)
        return place is not None and (place.table, place.kind) == (table, ROWS)

    return [entry for entry in entries(source) if is_rows(entry)]


def test_the_walk_is_in_listing_order_and_describes_each_table_before_its_rows(lab: Lab) -> None:
    for table in ("users", "orders", "users_2"):
        lab.make(table, 3)
    found = entries(lab.source())
    keys = [entry.sort_key for entry in found]
    assert keys == sorted(set(keys))
    kinds = [(place.table, place.kind) for place in (place_of(entry.path) for entry in found) if place]
    assert kinds == [(table, kind) for table in ("orders", "users", "users_2") for kind in (SCHEMA, ROWS, FINISH)]


def test_rows_are_streams_and_descriptions_are_files_whose_size_is_known(lab: Lab) -> None:
    lab.make("users", 3)
    source = lab.source()
    schema, rows, finish = entries(source)
    assert (rows.size, rows.mtime_ns) == (0, STREAM_NS)
    with opened(source, rows) as reader:
        assert isinstance(reader, StreamReader)
        assert reader.entry.size == STREAM_BYTES
    for entry in (schema, finish):
        small = source.read_small(entry, 1 << 20)
        assert isinstance(small, tuple)
        assert small == (entry, content(source, entry))
        assert len(small[1]) == entry.size
        assert source.read_small(entry, entry.size - 1) is None
    assert source.read_small(rows, 1 << 20) is None


def test_a_rows_file_has_a_line_a_row_and_tells_at_its_end_what_they_add_up_to(lab: Lab) -> None:
    lab.make("users", 60)
    source = lab.source()
    whole = content(source, rows_of(source, "users")[0])
    *lines, last = [json.loads(line) for line in whole.splitlines()]
    assert len(lines) == 60
    assert last["end"]["rows"] == 60
    assert content(source, rows_of(source, "users")[0], step=7) == whole
    assert whole.endswith(b"}\n")


def test_an_empty_table_is_a_table(lab: Lab) -> None:
    lab.make("users")
    source = lab.source()
    assert json.loads(content(source, rows_of(source, "users")[0])) == {"end": {"rows": 0, "digest": "0" * 32}}


def test_only_the_chosen_tables_are_read(lab: Lab) -> None:
    for table in ("users", "users_old", "orders"):
        lab.make(table)
    source = lab.source(tables=("users*", "orders"), exclude=("*_old",))
    source.check()
    assert {place.table for place in (place_of(entry.path) for entry in entries(source)) if place} == {
        "users",
        "orders",
    }
    assert source.options() == {"tables": ["users*", "orders"], "exclude": ["*_old"]}


def test_a_named_table_that_is_not_there_is_missed_before_any_work(lab: Lab) -> None:
    lab.make("users")
    lab.source(tables=("users", "none*")).check()
    with pytest.raises(SourceMissing, match="there is no table 'orders': there are users"):
        lab.source(tables=("orders",)).check()


def test_a_server_that_is_not_there_is_unavailable(lab: Lab) -> None:
    with pytest.raises(SourceUnavailable, match="does not answer"):
        lab.source(door="127.0.0.1:1").check()


def test_a_server_that_takes_connections_and_says_nothing_is_unavailable_when_its_time_is_over(lab: Lab) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        source = lab.source(door=f"127.0.0.1:{mute.getsockname()[1]}")
        began = time.monotonic()
        hasty = msgspec.structs.replace(source, place=msgspec.structs.replace(source.place, timeout_s=0.2))
        with pytest.raises(SourceUnavailable, match="does not answer"):
            hasty.check()
    assert time.monotonic() - began < 20


def test_a_missing_package_is_named_with_how_to_install_it(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    package = {"tablestore": "tablestore", "dynamodb": "boto3"}[lab.kind]
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ExtraMissing, match=f"pip install {package}=="):
        lab.source().check()


def test_settings_that_are_none_are_an_error_of_the_source(lab: Lab) -> None:
    source = lab.source()
    wrong = msgspec.structs.replace(source, place=msgspec.structs.replace(source.place, endpoint="nowhere"))
    with pytest.raises(SourceError, match="http"):
        wrong.check()


def test_rows_that_were_not_read_to_their_end_make_no_point(lab: Lab) -> None:
    lab.make("users", 60)
    source = lab.source()
    with opened(source, rows_of(source, "users")[0]) as reader:
        assert reader.readinto(memoryview(bytearray(100)), 0) == 100
        with pytest.raises(SourceIncomplete, match="not read to their end"):
            reader.changed()


def test_a_source_survives_being_stored_and_pickled_and_shows_no_secret(lab: Lab) -> None:
    source = lab.source(tables=("a",))
    assert pickle.loads(pickle.dumps(source)) == source
    assert msgspec.json.decode(msgspec.json.encode(source), type=AnySource) == source
    secret = source.place.secret_key
    shown = f"{source!r} {source.identity()} {source.options()}"
    assert secret not in shown
    assert source.identity().kind == lab.kind
    assert source.identity().host == "127.0.0.1"


def test_a_table_that_is_altered_while_its_rows_are_read_is_told_as_changed(lab: Lab, bench: Bench) -> None:
    lab.make("users", 5)
    [rows] = rows_of(lab.source(), "users")
    altering: Any = Meddled(lab.source(), opened=lambda entry: lab.alter("users"))
    outcome = bench.back_up_from(altering)
    assert outcome.state == "complete"
    assert [(p.path, p.reason, p.lost) for p in outcome.problems] == [(rows.path, "changed", False)]


def test_a_table_dropped_after_the_walk_is_vanished_and_lost_and_the_others_are_kept(lab: Lab, bench: Bench) -> None:
    lab.make("orders", 4)
    lab.make("users", 4)
    dropping: Any = Meddled(lab.source(), walked=lambda: lab.drop("users"))
    outcome = bench.back_up_from(dropping)
    assert outcome.state == "partial_complete"
    assert {(problem.reason, problem.lost) for problem in outcome.problems} == {("vanished", True)}
    kept = contents(bench.open(), PointName("home", outcome.point))
    assert {place.table for place in map(place_of, kept) if place} == {"orders"}


def test_a_table_dropped_while_its_rows_are_read_is_lost_and_the_others_are_kept(bench: Bench) -> None:
    server = TablestoreServer()
    lab = TablestoreLab(server)
    lab.make("orders", 4)
    lab.make("users", 40)
    server.page_rows = 10
    reads: list[str] = []

    def before(api: str) -> None:
        reads.append(api)
        if reads.count("GetRange") == 3:
            server.tables.pop("users", None)

    server.before = before
    outcome = bench.back_up_from(lab.source())
    server.stop()
    assert outcome.state == "partial_complete"
    assert ("unreadable", "the table was dropped while it was read", True) in {
        (problem.reason, problem.detail, problem.lost) for problem in outcome.problems
    }
    kept = contents(bench.open(), PointName("home", outcome.point))
    assert b"tables/orders/rows/0001-of-0001.jsonl" in kept
    assert not any(path.startswith(b"tables/users/rows") for path in kept)


def test_reads_are_held_to_the_asked_pace(bench: Bench) -> None:
    server = TablestoreServer()
    lab = TablestoreLab(server)
    lab.make("users", 50)
    server.page_rows = 10  # a read capacity unit each
    source = lab.source(reads_per_s=20)
    [rows] = rows_of(source, "users")
    began = time.monotonic()
    content(source, rows)
    took_s = time.monotonic() - began
    server.stop()
    assert 0.2 <= took_s < 2


def test_a_process_that_was_forked_speaks_over_a_connection_of_its_own(lab: Lab) -> None:
    """The runner forks its workers after the walk: two processes on one connection would read each other's answers."""
    lab.make("users", 200)
    source = lab.source()
    [rows] = rows_of(source, "users")
    whole = content(source, rows)
    fork = multiprocessing.get_context("fork")
    told = fork.SimpleQueue()

    def read_again() -> None:
        told.put([hashlib.sha256(content(source, rows)).hexdigest() for _ in range(5)])

    children = [fork.Process(target=read_again) for _ in range(2)]
    for child in children:
        child.start()
    read_again()
    for child in children:
        child.join(60)
    assert [child.exitcode for child in children] == [0, 0]
    assert [told.get() for _ in range(3)] == [[hashlib.sha256(whole).hexdigest()] * 5] * 3
