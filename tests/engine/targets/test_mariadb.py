"""MariaDB as a target: dumps are loaded, files prepared, logs played; what stands there already is safe."""

import os
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from engine.connections.mariadb import MariadbServer
from engine.entries import Entry, Kind
from engine.errors import (
    ExtraMissing,
    TargetDenied,
    TargetError,
    TargetFailed,
    TargetMissing,
    TargetNotEmpty,
    TargetUnavailable,
)
from engine.ids import new_ulid
from engine.sources.kinds import AnySource
from engine.sources.mariadb import MariadbImageSource, MariadbSource
from engine.targets.mariadb import MariadbTarget
from engine.targets.mariadb_image import MariadbImageTarget
from engine.targets.mariadb_logs import MariadbLogsTarget
from engine.verbs.backup import BackupJob
from engine.verbs.restore import Outcome
from tests.support.mariadb import OwnServer, contents, fill
from tests.support.runs import restored, run_backup
from tests.support.vaults import Bench


@pytest.fixture
def own(own_mariadb: OwnServer) -> Iterator[OwnServer]:
    """A server with the database `kept`; whatever else a test makes goes away."""
    before = {name for (name,) in own_mariadb.sql("SHOW DATABASES")}
    fill(own_mariadb.server, "kept", rows=5)
    yield own_mariadb
    for (name,) in own_mariadb.sql("SHOW DATABASES"):
        if name not in before:
            own_mariadb.sql(f"DROP DATABASE `{name}`")


@pytest.fixture
def server(own: OwnServer) -> MariadbServer:
    return own.server


def backed_up(source: AnySource) -> Bench:
    """Return a new vault with one point of the source."""
    bench = Bench()
    order = BackupJob(session=new_ulid(bench.clock()), series="m", source=source, started_at=bench.clock())
    run_backup(bench, order)
    return bench


def dumped(server: MariadbServer, *, together: bool = False, users: bool = False) -> Bench:
    return backed_up(MariadbSource(server=server, host="here", databases=("kept",), together=together, users=users))


def details(outcome: Outcome) -> dict[str, str]:
    return {problem.reason: problem.detail for problem in outcome.problems}


def test_a_database_that_holds_something_is_refused_before_anything_is_written(own: OwnServer) -> None:
    bench = dumped(own.server)
    expected = contents(own.server, "kept")
    own.sql("CREATE DATABASE kept_a", "CREATE PROCEDURE kept_a.p() SELECT 1")
    for suffix in ("", "_a"):
        with pytest.raises(TargetNotEmpty, match=f"'kept{suffix}' .* holds something already: drop it"):
            restored(bench, MariadbTarget(server=own.server, suffix=suffix))
    assert contents(own.server, "kept") == expected
    together = dumped(own.server, together=True)
    with pytest.raises(TargetNotEmpty, match="'kept'"):
        restored(together, MariadbTarget(server=own.server))
    assert contents(own.server, "kept") == expected


def test_another_name_and_an_empty_database_are_filled(own: OwnServer) -> None:
    bench = dumped(own.server)
    expected = contents(own.server, "kept")
    own.sql("CREATE DATABASE `kept é` CHARACTER SET latin1")
    outcome = restored(bench, MariadbTarget(server=own.server, suffix=" é"))
    assert outcome.state == "complete"
    found = contents(own.server, "kept é")
    same = [name for name in expected if name.startswith("rows of")]
    assert {name: found[name] for name in same} == {name: expected[name] for name in same}
    assert found.keys() == expected.keys()
    assert "CHARACTER SET utf8mb4 COLLATE utf8mb4_bin" in found["database"][0]


@pytest.mark.parametrize("together", [False, True])
def test_a_database_is_replaced_whole_when_that_is_asked_for(own: OwnServer, together: bool) -> None:
    bench = dumped(own.server, together=together)
    expected = contents(own.server, "kept")
    own.sql("DELETE FROM kept.sold", "CREATE TABLE kept.newer (a INT)")
    restored(bench, MariadbTarget(server=own.server, overwrite=True))
    assert contents(own.server, "kept") == expected


def test_databases_of_one_stream_keep_their_names(server: MariadbServer) -> None:
    with pytest.raises(TargetError, match="can't be restored under other names"):
        restored(dumped(server, together=True), MariadbTarget(server=server, suffix="_a"))


def test_accounts_that_were_there_are_told_and_those_refused_are_lost_from_the_restore(own: OwnServer) -> None:
    own.sql("CREATE USER there@'%' IDENTIFIED BY 'x'", "GRANT SELECT ON kept.* TO there@'%'")
    own.sql("CREATE USER gone@'%' IDENTIFIED BY 'y'", "GRANT SELECT ON kept.* TO gone@'%'")
    own.sql("CREATE USER loader@'%' IDENTIFIED BY 'z'", "GRANT ALL ON kept_a.* TO loader@'%'")
    try:
        bench = dumped(own.server, users=True)
        own.sql("DROP USER gone@'%'")
        outcome = restored(bench, MariadbTarget(server=own.server, suffix="_a"))
        assert outcome.state == "complete"
        assert "`there`@`%`" in details(outcome)["exists"]
        assert "gone" not in details(outcome)["exists"]
        assert own.sql("SHOW GRANTS FOR gone@'%'")[1][0].startswith("GRANT SELECT ON `kept`.*")
        own.sql("DROP DATABASE kept_a")
        own.sql(
            "GRANT ALL ON kept_a.* TO loader@'%'",
            "GRANT SELECT ON mysql.* TO loader@'%'",
            "GRANT SET USER, SUPER ON *.* TO loader@'%'",
        )
        loader = msgspec.structs.replace(own.server, user="loader", password="z")
        outcome = restored(bench, MariadbTarget(server=loader, suffix="_a"))
        assert outcome.state == "partial_complete"
        assert "statements were refused: ERROR 1" in details(outcome)["write-failed"]
        assert "IDENTIFIED" not in str(outcome.problems)
        assert "goods" in {name for (name,) in own.sql("SHOW TABLES FROM kept_a")}
    finally:
        own.sql("DROP USER IF EXISTS there@'%', gone@'%', loader@'%'")


def test_a_statement_that_fails_ends_the_restore_with_what_the_server_said_and_without_its_data(own: OwnServer) -> None:
    bench = dumped(own.server)
    own.sql(
        "CREATE USER weak@'%' IDENTIFIED BY 'w'",
        "GRANT CREATE, DROP, ALTER, SELECT, LOCK TABLES ON kept_a.* TO weak@'%'",
    )
    try:
        weak = msgspec.structs.replace(own.server, user="weak", password="w")
        with pytest.raises(TargetDenied, match=r"ERROR 1\d+ .*denied") as raised:
            restored(bench, MariadbTarget(server=weak, suffix="_a"))
        assert str(raised.value).startswith("mariadb ended with code 1: ERROR 1142 (42000) at line ")
    finally:
        own.sql("DROP USER weak@'%'")


@pytest.mark.parametrize(
    ("change", "kind"),
    [({"password": "wrong"}, TargetDenied), ({"port": 1}, TargetUnavailable), ({"tls": "require"}, TargetFailed)],
)
def test_a_target_that_cannot_be_reached_is_told_before_anything_is_written(
    server: MariadbServer, change: dict[str, str], kind: type[TargetError], tmp_path: Path
) -> None:
    wrong = msgspec.structs.replace(server, **change)
    for target in (MariadbTarget(server=wrong), MariadbLogsTarget(server=wrong, start="first")):
        with pytest.raises(kind):
            target.check()
        assert server.password not in repr(target) + target.where()


def test_each_target_refuses_what_another_mode_made(server: MariadbServer, tmp_path: Path) -> None:
    dump, folder = dumped(server), tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(TargetError, match="is no physical backup"):
        restored(dump, MariadbImageTarget(folder=str(folder)))
    with pytest.raises(TargetError, match="is no binary log"):
        restored(dump, MariadbLogsTarget(server=server, start="first"))
    image = backed_up(MariadbImageSource(server=server, host="here"))
    with pytest.raises(TargetError, match="is no dump of a database"):
        restored(image, MariadbTarget(server=server))


def test_data_files_need_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(TargetMissing, match="is not a folder"):
        MariadbImageTarget(folder=str(tmp_path / "none")).check()
    with pytest.raises(TargetMissing):
        MariadbImageTarget(folder="relative").check()
    (tmp_path / "file").touch()
    with pytest.raises(TargetNotEmpty, match="a folder of their own"):
        MariadbImageTarget(folder=str(tmp_path)).check()
    (tmp_path / "file").unlink()
    with pytest.raises(ExtraMissing, match="mbstream"):
        MariadbImageTarget(folder=str(tmp_path), server=MariadbServer(programs="/nowhere")).check()


def test_data_files_that_cannot_be_prepared_are_a_failure(tmp_path: Path) -> None:
    writer = MariadbImageTarget(folder=str(tmp_path)).create(Entry(b"backup.xbstream", Kind.FILE))
    with pytest.raises(TargetFailed, match="could not prepare"):
        writer.commit()


def test_data_files_get_the_owner_of_the_folder(server: MariadbServer, tmp_path: Path) -> None:
    if os.geteuid():
        pytest.skip("only root may give files away")
    os.chown(tmp_path, 4321, 4321)
    restored(backed_up(MariadbImageSource(server=server, host="here")), MariadbImageTarget(folder=str(tmp_path)))
    assert {(path.stat().st_uid, path.stat().st_gid) for path in tmp_path.rglob("*")} == {(4321, 4321)}
    assert (tmp_path / "xtrabackup_binlog_info").exists()
