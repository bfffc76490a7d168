"""The PostgreSQL source on a real server: what is refused, what is told, what proves an end."""

import datetime as dt
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.entries import Entry, Problem
from engine.errors import (
    ExtraMissing,
    SourceDenied,
    SourceError,
    SourceIncomplete,
    SourceMissing,
    SourceUnavailable,
)
from engine.sources.port import Reader
from engine.sources.postgres import PostgresSource
from tests.services import Postgres
from tests.support.postgres import PASSWORD, OwnServer, open_folder, program, servers

LONG_AGO_S = 1_700_000_000


@pytest.fixture(scope="module")
def server(postgres_service: Postgres) -> Iterator[OwnServer]:
    """A server of this module's own; the shared one says that it can be made."""
    with servers() as make:
        made = make()
        made.rows("CREATE ROLE reader LOGIN PASSWORD 'reads'")
        made.rows("CREATE DATABASE shop")
        made.rows("CREATE TABLE t AS SELECT g, md5(g::text) m FROM generate_series(1, 2000) g", database="shop")
        made.rows("GRANT SELECT ON t TO reader", database="shop")
        yield made


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that servers can use."""
    made = open_folder()
    yield made
    shutil.rmtree(made, ignore_errors=True)


def walked(source: PostgresSource) -> tuple[list[bytes], list[Problem]]:
    """Return the paths and the problems of a walk."""
    found = list(source.walk())
    return [one.path for one in found if isinstance(one, Entry)], [one for one in found if isinstance(one, Problem)]


def read(source: PostgresSource, path: bytes) -> bytes:
    """Return all of an entry, whose end must be proven."""
    [entry] = [one for one in source.walk() if isinstance(one, Entry) and one.path == path]
    opened = source.open(entry)
    assert not isinstance(opened, Problem), opened
    with opened as reader:
        data = drained(reader)
        assert not reader.changed()
    return data


def drained(reader: Reader) -> bytes:
    data, view = bytearray(), memoryview(bytearray(1 << 16))
    while count := reader.readinto(view, len(data)):
        data += view[:count]
    return bytes(data)


def impostor(folder: Path, name: str, script: str) -> str:
    """Return a folder of programs in which one is a script; `$REAL` is the real one."""
    for other in ("psql", "pg_dump", "pg_dumpall", "pg_basebackup", "pg_receivewal"):
        (folder / other).symlink_to(program(other))
    (folder / name).unlink()
    (folder / name).write_text(f"#!/bin/sh\nREAL={program(name)}\n{script}\n")
    (folder / name).chmod(0o755)
    return str(folder)


def test_each_database_and_the_roles_are_streams_in_the_order_of_a_listing(server: OwnServer) -> None:
    server.rows('CREATE DATABASE "a/b %"')
    try:
        paths, problems = walked(server.source())
        assert paths == [
            b"cluster.sql", b"databases/a%2Fb%20%25.dump", b"databases/postgres.dump", b"databases/shop.dump"
        ]  # fmt: skip
        assert problems == []
        assert read(server.source(), paths[1]).startswith(b"PGDMP")
    finally:
        server.rows('DROP DATABASE "a/b %"')
    assert walked(server.source(databases=("shop",)))[0] == [b"cluster.sql", b"databases/shop.dump"]


def test_what_is_excluded_is_not_in_the_dump(server: OwnServer) -> None:
    whole = read(server.source(), b"databases/shop.dump")
    without = read(server.source(exclude_tables=("t",)), b"databases/shop.dump")
    assert b"TABLE DATA" in whole
    assert b"TABLE DATA" not in without
    assert server.source(exclude_tables=("t",)).options()["exclude_tables"] == ["t"]


def test_an_account_that_is_no_superuser_backs_up_all_but_the_passwords_of_roles_and_says_so(server: OwnServer) -> None:
    source = server.source(user="reader", password="reads")
    source.check()
    [problem] = walked(source)[1]
    assert (problem.path, problem.reason, problem.lost) == (b"cluster.sql", "attributes", False)
    assert "passwords" in problem.detail
    roles = read(source, b"cluster.sql")
    assert b"CREATE ROLE reader" in roles
    assert b"PASSWORD" not in roles
    assert b"SCRAM-SHA-256" in read(server.source(), b"cluster.sql")
    read(source, b"databases/shop.dump")


def test_a_database_that_takes_no_connections_is_told(server: OwnServer) -> None:
    server.rows("CREATE DATABASE closed ALLOW_CONNECTIONS false")
    try:
        paths, problems = walked(server.source())
        assert b"databases/closed.dump" not in paths
        assert [(one.path, one.lost) for one in problems] == [(b"databases/closed.dump", False)]
        assert walked(server.source(databases=("closed",)))[1][0].lost
    finally:
        server.rows("DROP DATABASE closed")


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"password": "wrong"}, SourceDenied, "password authentication failed"),
        ({"databases": ("shop", "none")}, SourceMissing, "no database 'none'"),
        ({"port": 1}, SourceUnavailable, "refused"),
        ({"server": "no.such.host.invalid"}, SourceMissing, "no.such.host.invalid"),
        ({"programs": "/nowhere"}, ExtraMissing, "install PostgreSQL's programs"),
        ({"mode": "physical", "user": "reader", "password": "reads"}, SourceDenied, "WITH REPLICATION"),
        ({"mode": "wal"}, SourceError, "one of them"),
        ({"mode": "wal", "spool": "/a", "wal_folder": "/b"}, SourceError, "one of them"),
        ({"mode": "wal", "spool": "relative"}, SourceError, "not an absolute path"),
        ({"mode": "wal", "spool": "/nowhere"}, SourceMissing, "make it first"),
        ({"mode": "wal", "wal_folder": "/tmp", "user": "reader", "password": "reads"}, SourceDenied, "pg_switch_wal"),
    ],
)
def test_what_can_not_be_read_is_refused_before_any_work(
    server: OwnServer, change: dict[str, object], error: type[SourceError], says: str
) -> None:
    with pytest.raises(error, match=says) as refused:
        server.source(**change).check()
    assert type(refused.value) is error
    assert PASSWORD not in str(refused.value)


def test_tablespaces_forbid_a_base_backup_in_one_stream(server: OwnServer, folder: Path) -> None:
    server.source(mode="physical").check()
    server.rows(f"CREATE TABLESPACE far LOCATION '{folder}'")
    try:
        with pytest.raises(SourceError, match=r"tablespaces of its own \(far\).*logical"):
            server.source(mode="physical").check()
        server.source().check()
    finally:
        server.rows("DROP TABLESPACE far")


def test_programs_older_than_the_server_are_refused(server: OwnServer, tmp_path: Path) -> None:
    programs = impostor(tmp_path, "pg_dump", 'echo "pg_dump (PostgreSQL) 12.3"')
    with pytest.raises(ExtraMissing, match="version 12"):
        server.source(programs=programs).check()


@pytest.mark.parametrize(
    ("name", "path", "mode"),
    [
        ("pg_dump", b"databases/shop.dump", "logical"),
        ("pg_dumpall", b"cluster.sql", "logical"),
        ("pg_basebackup", b"base.tar", "physical"),
    ],
)
@pytest.mark.parametrize(
    ("script", "says"),
    [
        ('"$REAL" "$@" | head -c -700', "ends|sign of completeness|checksum"),
        ('"$REAL" "$@"; echo "disk on fire" >&2; exit 3', "disk on fire"),
        ("exit 0", "ends|sign of completeness"),
        ('"$REAL" "$@"; exit 1', "ended with code 1"),
    ],
)
def test_an_output_without_its_true_end_is_no_backup(
    server: OwnServer, tmp_path: Path, name: str, path: bytes, mode: str, script: str, says: str
) -> None:
    whole = read(server.source(mode=mode), path)
    assert whole
    source = server.source(mode=mode, programs=impostor(tmp_path, name, script))
    with pytest.raises(SourceIncomplete, match=says):
        read(source, path)


def test_a_base_backup_whose_manifest_was_changed_is_no_backup(server: OwnServer, tmp_path: Path) -> None:
    script = """"$REAL" "$@" | sed 's/"Path": "PG_VERSION"/"Path": "PG_VERSIUN"/'"""
    source = server.source(mode="physical", programs=impostor(tmp_path, "pg_basebackup", script))
    with pytest.raises(SourceIncomplete, match="does not fit its own checksum"):
        read(source, b"base.tar")


def test_a_program_that_hangs_is_ended(server: OwnServer, tmp_path: Path) -> None:
    source = server.source(idle_s=1.5, programs=impostor(tmp_path, "pg_dump", "sleep 100"))
    with pytest.raises(SourceUnavailable, match="nothing for"):
        read(source, b"databases/shop.dump")


def test_the_password_is_shown_nowhere(server: OwnServer, tmp_path: Path) -> None:
    source = server.source(programs=impostor(tmp_path, "pg_dump", 'cat /proc/$$/cmdline | tr "\\0" " " >&2; exit 1'))
    with pytest.raises(SourceIncomplete) as told:
        read(source, b"databases/shop.dump")
    for shown in (repr(source), repr(source._client), str(source.identity()), str(source.options()), str(told.value)):
        assert PASSWORD not in shown


class TestLog:
    """The write-ahead log, gathered in a folder."""

    @pytest.fixture
    def source(self, server: OwnServer, folder: Path) -> Iterator[PostgresSource]:
        yield server.source(mode="wal", spool=str(folder), slot="tested")
        server.rows("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots")

    def test_each_run_brings_it_up_to_its_moment(self, server: OwnServer, source: PostgresSource) -> None:
        source.check()
        first, problems = walked(source)
        assert problems == []
        [(position,)] = server.rows("INSERT INTO t VALUES (0, '') RETURNING pg_current_wal_lsn()", database="shop")
        [(name,)] = server.rows(f"SELECT pg_walfile_name('{position}')")
        second, _ = walked(source)
        assert set(first) < set(second)
        assert f"wal/{name}".encode() in second
        assert walked(source) == (second, [])  # nothing happened: nothing new
        assert len(read(source, second[-1])) == 16 << 20

    def test_segments_go_only_when_they_are_old_and_a_point_holds_them(
        self, server: OwnServer, source: PostgresSource, folder: Path
    ) -> None:
        for _ in range(3):
            server.rows("INSERT INTO t VALUES (0, '')", database="shop")
            paths, _ = walked(source)
        old = [folder / os.fsdecode(path).removeprefix("wal/") for path in paths[:-1]]
        assert len(old) >= 2
        for path in old:
            os.utime(path, (LONG_AGO_S, LONG_AGO_S))
        assert walked(source)[0] == paths  # no point is known
        before = dt.datetime.fromtimestamp(LONG_AGO_S - 10, dt.UTC)
        source.follows(before)
        assert walked(source)[0] == paths  # the newest point is from before them
        source.follows(dt.datetime.fromtimestamp(LONG_AGO_S + 86_400, dt.UTC))
        assert walked(source)[0] == paths[-1:]
        server.rows("INSERT INTO t VALUES (0, '')", database="shop")
        assert len(walked(source)[0]) == 2

    def test_young_segments_stay_whatever_holds_them(self, source: PostgresSource) -> None:
        paths, _ = walked(source)
        source.follows(dt.datetime(2100, 1, 1, tzinfo=dt.UTC))
        assert walked(source)[0] == paths

    def test_a_folder_of_another_server_is_refused(self, source: PostgresSource, folder: Path) -> None:
        list(source.walk())
        (folder / ".system").write_text("7000000000000000001")
        with pytest.raises(SourceError, match="log of another server"):
            source.check()

    def test_log_that_piles_up_in_the_server_is_told(self, server: OwnServer, folder: Path) -> None:
        source = server.source(mode="wal", spool=str(folder), slot="tested", warn_wal_bytes=1 << 20)
        try:
            assert walked(source)[1] == []
            server.rows(
                "SELECT pg_switch_wal() FROM (SELECT pg_logical_emit_message(false, '', repeat('x', 3000000))) s"
            )
            [problem] = walked(source)[1]
            assert (problem.path, problem.reason, problem.lost) == (b"wal", "lag", False)
            assert "MiB" in problem.detail
        finally:
            server.rows("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots")

    def test_a_segment_that_is_missing_is_a_loss_that_is_told(
        self, server: OwnServer, source: PostgresSource, folder: Path
    ) -> None:
        for _ in range(3):
            server.rows("INSERT INTO t VALUES (0, '')", database="shop")
            paths, _ = walked(source)
        (folder / os.fsdecode(paths[-2]).removeprefix("wal/")).unlink()
        left, [problem] = walked(source)
        assert (problem.path, problem.reason, problem.lost) == (paths[-2], "vanished", True)
        assert "new one" in problem.detail
        assert set(left) == set(paths) - {paths[-2]}

    def test_log_that_the_server_threw_away_is_an_error(self, server: OwnServer, source: PostgresSource) -> None:
        list(source.walk())
        server.rows("SELECT pg_drop_replication_slot('tested')")
        for _ in range(4):
            server.rows("SELECT pg_switch_wal() FROM (SELECT pg_logical_emit_message(false, '', repeat('x', 900))) s")
        server.rows("CHECKPOINT")
        with pytest.raises(SourceIncomplete, match="already been removed"):
            list(source.walk())

    def test_a_folder_that_archive_command_fills_is_read_once_the_last_segment_came(
        self, postgres_service: Postgres
    ) -> None:
        with servers() as make:
            folder = open_folder()
            options = ("-c", "archive_mode=on", "-c", f"archive_command=test ! -e {folder}/stop && cp %p {folder}/%f")
            server = make(options=options)
            source = server.source(mode="wal", wal_folder=str(folder), idle_s=20)
            source.check()
            [(name,)] = server.rows("SELECT pg_walfile_name(pg_current_wal_lsn())")
            assert walked(source)[0][-1] == f"wal/{name}".encode()
            (folder / "stop").touch()
            server.rows("CREATE TABLE t (i int)")
            with pytest.raises(SourceUnavailable, match="pg_stat_archiver"):
                walked(server.source(mode="wal", wal_folder=str(folder), idle_s=0.5))
            shutil.rmtree(folder)
