"""The PostgreSQL targets on a real server: what is refused, what is reported, what is never written."""

import io
import os
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.entries import Entry, Kind, Problem
from engine.errors import (
    ExtraMissing,
    TargetDenied,
    TargetError,
    TargetFailed,
    TargetMissing,
    TargetNotEmpty,
    TargetUnavailable,
)
from engine.sources.postgres import PostgresSource
from engine.targets.postgres import PostgresTarget
from engine.targets.postgres_data import PostgresDataTarget
from tests.services import Postgres
from tests.support.postgres import ACCOUNT, PASSWORD, OwnServer, open_folder, servers

LABEL = "START WAL LOCATION: 0/2000028 (file 000000010000000000000002)\n"
SEGMENT = bytes(1 << 20)


@pytest.fixture(scope="module")
def server(postgres_service: Postgres) -> Iterator[OwnServer]:
    """A server of this module's own; the shared one says that it can be made."""
    with servers() as make:
        made = make()
        made.rows("CREATE ROLE weak LOGIN PASSWORD 'weak'")
        made.rows("CREATE DATABASE shop")
        made.rows("CREATE TABLE t AS SELECT 1 AS a", database="shop")
        yield made


@pytest.fixture
def folder() -> Iterator[Path]:
    made = open_folder()
    yield made
    shutil.rmtree(made, ignore_errors=True)


def dump(source: PostgresSource, path: bytes = b"databases/shop.dump") -> bytes:
    """Return the dump of a database."""
    opened = source.open(Entry(path, Kind.FILE))
    assert not isinstance(opened, Problem)
    data, view = bytearray(), memoryview(bytearray(1 << 16))
    with opened as reader:
        while count := reader.readinto(view, len(data)):
            data += view[:count]
    return bytes(data)


def put(target: PostgresTarget | PostgresDataTarget, path: bytes, data: bytes) -> list[Problem]:
    """Restore one file, after asking what stands in its place."""
    assert target.existing(path) is None
    return target.write_small(Entry(path, Kind.FILE, 0o600, size=len(data)), data)


def test_the_account_that_restores_keeps_its_own_password_and_roles_that_exist_are_left_alone(
    server: OwnServer,
) -> None:
    roles = b"""CREATE ROLE boss;
ALTER ROLE boss WITH NOSUPERUSER NOLOGIN PASSWORD 'other';
CREATE ROLE weak;
CREATE ROLE fresh;
ALTER ROLE fresh WITH LOGIN PASSWORD 'fresh';
"""
    assert put(server.target(), b"cluster.sql", roles) == []
    assert server.rows("SELECT rolsuper FROM pg_roles WHERE rolname = 'boss'") == [(True,)]
    assert server.rows("SELECT 1", user="fresh", password="fresh") == [(1,)]


def test_what_the_server_refuses_of_the_roles_is_reported(server: OwnServer) -> None:
    script = b"CREATE ROLE other;\nCREATE TABLESPACE gone LOCATION '/nowhere/at/all';\nCREATE ROLE other;\n"
    [problem] = put(server.target(), b"cluster.sql", script)
    assert (problem.reason, problem.lost) == ("write-failed", True)
    assert "/nowhere/at/all" in problem.detail
    assert "already exists" not in problem.detail
    assert server.rows("SELECT 1 FROM pg_roles WHERE rolname = 'other'") == [(1,)]


def test_a_database_with_tables_is_not_touched(server: OwnServer) -> None:
    with pytest.raises(TargetNotEmpty, match=r"'shop'.*holds tables.*suffix"):
        server.target().existing(b"databases/shop.dump")
    with pytest.raises(TargetNotEmpty):
        server.target().create(Entry(b"databases/shop.dump", Kind.FILE))
    assert server.target(suffix="2").existing(b"databases/shop.dump") is None
    assert server.target(overwrite=True).existing(b"databases/shop.dump") is None


def test_an_empty_database_of_the_name_is_filled(server: OwnServer) -> None:
    server.rows("CREATE DATABASE shop_empty")
    assert put(server.target(suffix="_empty"), b"databases/shop.dump", dump(server.source())) == []
    assert server.contents("shop_empty") == {"public.t": [(1,)]}


def test_a_suffix_makes_a_database_as_the_dumped_one_was(server: OwnServer) -> None:
    server.rows("CREATE DATABASE latin ENCODING 'LATIN1' TEMPLATE template0")
    data = dump(server.source(), b"databases/latin.dump")
    odd = """ 'x' dbname="y" \\"""
    assert put(server.target(suffix=odd), b"databases/latin.dump", data) == []
    names = dict(server.rows("SELECT datname, pg_encoding_to_char(encoding) FROM pg_database"))
    assert names["latin" + odd] == "LATIN1"


def test_a_database_that_fails_is_its_own_problem(server: OwnServer) -> None:
    target = server.target(suffix="_bad")
    whole = dump(server.source())
    for data in (whole[:-20], whole[:100], b"no dump at all"):
        [problem] = put(target, b"databases/shop.dump", data)
        assert (problem.path, problem.reason, problem.lost) == (b"databases/shop.dump", "write-failed", True)
        server.rows("DROP DATABASE IF EXISTS shop_bad")
    assert target.one_by_one
    assert target.chain(b"databases/a.dump") != target.chain(b"databases/b.dump")


def test_a_server_that_builds_indexes_is_waited_for_and_one_that_waits_for_a_lock_is_not(server: OwnServer) -> None:
    server.rows("CREATE DATABASE slow")
    slow = "SELECT 1 FROM (SELECT pg_sleep(1.5)) s"
    server.rows(f"CREATE FUNCTION slow(int) RETURNS int IMMUTABLE LANGUAGE sql AS '{slow}'", database="slow")
    server.rows("CREATE TABLE t AS SELECT g FROM generate_series(1, 2) g", database="slow")
    server.rows("CREATE INDEX ON t (slow(g))", database="slow")
    data = dump(server.source(), b"databases/slow.dump")
    target = server.target(suffix="er", idle_s=1.0)
    assert put(target, b"databases/slow.dump", data) == []
    assert server.contents("slower") == {"public.t": [(1,), (2,)]}
    with server.connect("slower") as other:
        other.execute("BEGIN; LOCK TABLE t")
        with pytest.raises(TargetUnavailable, match="within 1 s"):
            put(server.target(suffix="er", idle_s=1.0, overwrite=True), b"databases/slow.dump", data)


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"password": "wrong"}, TargetDenied, "authentication failed"),
        ({"port": 1}, TargetUnavailable, "refused"),
        ({"programs": "/nowhere"}, ExtraMissing, "install"),
        ({"database": "none"}, TargetFailed, "does not exist"),
    ],
)
def test_a_server_that_can_not_be_used_is_told_before_anything_is_written(
    server: OwnServer, change: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says) as refused:
        server.target(**change).check()
    assert PASSWORD not in f"{refused.value} {server.target()!r} {server.target().where()}"


def test_an_account_that_may_make_no_databases_is_told(server: OwnServer) -> None:
    target = server.target(user="weak", password="weak", suffix="_weak")
    with pytest.raises(TargetDenied, match="permission denied to create database"):
        put(target, b"databases/shop.dump", dump(server.source()))


def test_other_files_have_no_place_in_a_server(server: OwnServer) -> None:
    with pytest.raises(TargetFailed, match="no part of a logical backup"):
        server.target().create(Entry(b"base.tar", Kind.FILE))


def packed(*members: tuple[str, bytes], kind: bytes = tarfile.REGTYPE) -> bytes:
    """Return a base backup in small."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(data), 0o700
            if name == "link":
                member.type, member.linkname = kind, "/etc/passwd"
            elif name.endswith("/"):
                member.type = tarfile.DIRTYPE
            tar.addfile(member, io.BytesIO(data))
    return archive.getvalue()


def data_target(place: Path, **options: Any) -> PostgresDataTarget:
    return PostgresDataTarget(**{"folder": str(place / "data"), "verify": False, **options})


def test_a_base_backup_is_unpacked_for_the_account_of_the_server(folder: Path) -> None:
    target = data_target(folder)
    target.check()
    folders = (("base/", b""), ("base/1/", b""))
    base = packed(("backup_label", LABEL.encode()), *folders, ("base/1/2", b"x" * 3000))
    assert put(target, b"base.tar", base) == []
    target.flush()
    assert (folder / "data/base/1/2").read_bytes() == b"x" * 3000
    assert {path.owner() for path in (folder / "data", *(folder / "data").rglob("*"))} == {ACCOUNT}
    assert (folder / "data").stat().st_mode & 0o777 == 0o700
    assert not (folder / "data/recovery.signal").exists()


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (packed(("../escaped", b"x")), "outside the data directory"),
        (packed(("/escaped", b"x")), "outside the data directory"),
        (packed(("a/../../escaped", b"x")), "outside the data directory"),
        (packed(("link", b""), kind=tarfile.SYMTYPE), "could lead anywhere"),
        (packed(("link", b""), kind=tarfile.LNKTYPE), "could lead anywhere"),
        (packed(("PG_VERSION", b"15"))[:600], "no whole base backup"),
        (b"no archive" * 100, "no base backup"),
    ],
)
def test_a_hostile_or_broken_archive_leaves_nothing_outside(folder: Path, data: bytes, says: str) -> None:
    with pytest.raises(TargetFailed, match=says):
        put(data_target(folder), b"base.tar", data)
    assert [path.name for path in folder.iterdir()] == ["data"]


def test_a_backup_that_does_not_fit_its_manifest_is_refused(folder: Path) -> None:
    target = data_target(folder, verify=True)
    target.check()
    with pytest.raises(TargetFailed, match="does not fit its manifest"):
        put(target, b"base.tar", packed(("backup_label", LABEL.encode()), ("backup_manifest", b"{}")))


def test_the_log_sets_up_recovery_to_the_moment(folder: Path) -> None:
    target = data_target(folder, until="2031-05-06T07:08:09+02:00")
    segment = "pg_wal/000000010000000000000002"
    base = packed(("backup_label", LABEL.encode()), (segment, SEGMENT), ("postgresql.auto.conf", b"port = 1\n"))
    put(target, b"base.tar", base)
    target.flush()
    for _ in range(2):  # a restore may run twice
        assert put(target, b"wal/000000010000000000000003", SEGMENT) == []
        target.flush()
    configuration = (folder / "data/postgresql.auto.conf").read_text()
    assert configuration.startswith("port = 1\n")
    assert configuration.count("recovery_target_time = '2031-05-06 07:08:09+02:00'") == 1
    assert f"restore_command = 'cp {folder}/data.wal/%f \"%p\"'" in configuration
    assert (folder / "data/recovery.signal").owner() == ACCOUNT
    assert (folder / "data.wal/000000010000000000000003").read_bytes() == SEGMENT


def test_a_log_that_does_not_go_on_where_the_base_backup_ends_is_refused(folder: Path) -> None:
    target = data_target(folder)
    put(target, b"base.tar", packed(("backup_label", LABEL.encode()), ("pg_wal/000000010000000000000002", SEGMENT)))
    put(target, b"wal/000000010000000000000005", SEGMENT)
    with pytest.raises(TargetFailed, match="000000010000000000000003 to 000000010000000000000004 is missing"):
        target.flush()
    assert not (folder / "data/recovery.signal").exists()


def test_a_folder_that_holds_something_is_refused(folder: Path) -> None:
    (folder / "data").mkdir()
    (folder / "data/postmaster.pid").touch()
    with pytest.raises(TargetNotEmpty, match="not empty"):
        data_target(folder).existing(b"base.tar")
    with pytest.raises(TargetNotEmpty, match="a server runs"):
        data_target(folder).check()
    with pytest.raises(TargetMissing, match="no base backup that waits"):
        data_target(folder).existing(b"wal/000000010000000000000005")


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"folder": "relative"}, TargetError, "not an absolute path"),
        ({"folder": "/nowhere/at/all"}, TargetMissing, "does not exist"),
        ({"until": "yesterday"}, TargetError, "is no time"),
        ({"until": "2031-05-06T07:08:09"}, TargetError, "no time zone"),
        ({"verify": True, "programs": "/nowhere"}, ExtraMissing, "pg_verifybackup"),
        ({"folder": "/etc/passwd"}, TargetNotEmpty, "not a folder"),
    ],
)
def test_what_can_not_become_a_data_directory_is_refused_before_anything_is_written(
    folder: Path, change: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        data_target(folder, **change).check()
    assert list(folder.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root chooses an owner")
def test_an_owner_that_is_not_there_is_told(folder: Path) -> None:
    with pytest.raises(TargetError, match="no account 'nobody-of-the-name'"):
        data_target(folder, owner="nobody-of-the-name").check()


def test_other_files_have_no_place_in_a_data_directory(folder: Path) -> None:
    with pytest.raises(TargetFailed, match="no part of a base backup"):
        data_target(folder).create(Entry(b"cluster.sql", Kind.FILE))
