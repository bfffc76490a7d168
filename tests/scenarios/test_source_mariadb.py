"""MariaDB from end to end, on real servers: dumps, data files, and binary logs up to a moment."""

import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from engine.connections.mariadb import MariadbServer
from engine.sources.mariadb import MariadbImageSource, MariadbSource
from engine.sources.mariadb_logs import MariadbLogsSource
from engine.targets.files import FilesTarget
from engine.targets.mariadb import MariadbTarget
from engine.targets.mariadb_image import MariadbImageTarget
from engine.targets.mariadb_logs import MariadbLogsTarget
from tests.services import Mariadb
from tests.support.engine_program import EngineProgram, ended, killed
from tests.support.mariadb import OwnServer, connected, contents, fill, reached

pytestmark = [pytest.mark.scenario, pytest.mark.timeout(110)]
BIG_ROWS = 4000
ODD = "other ünit/é"


@pytest.fixture(scope="module")
def fresh(mariadb_service: Mariadb) -> MariadbServer:
    """Another server than the one that is backed up."""
    return reached(mariadb_service)


@pytest.fixture(scope="module")
def origin(fresh: MariadbServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnServer]:
    """The server that is backed up; the database `shop` has one of everything and 8 MB of dump."""
    own = OwnServer(tmp_path_factory.mktemp("origin"))
    try:
        fill(own.server, "shop", rows=BIG_ROWS)
        fill(own.server, ODD)
        yield own
    finally:
        own.end(signal.SIGKILL)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> EngineProgram:
    """One vault; each test has series of its own."""
    return EngineProgram(tmp_path_factory.mktemp("engine"))


@pytest.fixture
def drop(fresh: MariadbServer) -> Iterator[Callable[..., None]]:
    """Drop databases of the other server, now and after the test."""
    dropped: set[str] = set()

    def drop_all(*databases: str) -> None:
        dropped.update(databases)
        with connected(fresh) as connection, connection.cursor() as cursor:
            for database in dropped:
                cursor.execute(f"DROP DATABASE IF EXISTS `{database}`")

    yield drop_all
    drop_all()


def until(ready: Callable[[], Any]) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + 30
    while not ready():
        assert time.monotonic() < deadline, "it did not come about within 30 s"
        time.sleep(0.05)


def waits_for_a_lock(own: OwnServer) -> bool:
    return bool(own.sql("SELECT 1 FROM information_schema.PROCESSLIST WHERE STATE LIKE '%table metadata lock%'"))


def test_databases_come_back_from_a_lost_server_and_only_changes_were_stored(
    origin: OwnServer, fresh: MariadbServer, program: EngineProgram, drop: Callable[..., None]
) -> None:
    drop("shop", ODD)
    source = MariadbSource(server=origin.server, host="here")
    first = program.back_up(source, series="dumps")
    same = program.back_up(source, series="dumps")["stats"]
    origin.sql("UPDATE shop.goods SET price = 99 WHERE id = 2000", "INSERT INTO shop.sold (good) VALUES (7)")
    second = program.back_up(source, series="dumps")
    assert first["stats"]["bytes_read"] > 7 << 20
    assert same["bytes_new"] == 0
    assert second["stats"]["bytes_new"] < first["stats"]["bytes_new"] / 4
    after = {name: contents(origin.server, name) for name in ("shop", ODD)}
    origin.sql("DROP DATABASE shop", f"DROP DATABASE `{ODD}`")

    program.restore(MariadbTarget(server=origin.server), point=second["point"])
    program.restore(MariadbTarget(server=fresh), point=second["point"])
    for place in (origin.server, fresh):
        assert {name: contents(place, name) for name in after} == after


def test_a_killed_worker_leaves_no_point_and_the_next_run_makes_one(
    origin: OwnServer, program: EngineProgram, tmp_path: Path
) -> None:
    source = MariadbSource(server=origin.server, host="here", databases=("shop",), users=False)
    with connected(origin.server) as connection, connection.cursor() as cursor:
        cursor.execute("LOCK TABLES shop.sold WRITE")
        running = program.backing_up(source, series="killed")
        until(lambda: waits_for_a_lock(origin))
        killed(running)
    assert program.points("killed") == []
    point = program.back_up(source, series="killed")["point"]
    program.restore(FilesTarget(root=bytes(tmp_path)), point=point)
    assert (tmp_path / "databases/shop/dump.sql").read_bytes().endswith(b"-- Dump completed\n")


def test_a_server_that_dies_in_mid_dump_leaves_no_point_and_a_clear_error(
    origin: OwnServer, program: EngineProgram
) -> None:
    source = MariadbSource(server=origin.server, host="here", databases=("shop",), users=False)
    with connected(origin.server) as connection, connection.cursor() as cursor:
        cursor.execute("LOCK TABLES shop.sold WRITE")
        running = program.backing_up(source, series="died")
        until(lambda: waits_for_a_lock(origin))
        origin.end(signal.SIGKILL)
    try:
        said = ended(running, expect=1)
        assert "mariadb-dump ended with code" in said
        assert "Lost connection" in said
        assert "Can't connect" in program.back_up(source, series="died", expect=1)
        assert program.points("died") == []
    finally:
        origin.start()


def test_a_wrong_password_is_told_before_anything_is_written(origin: OwnServer, program: EngineProgram) -> None:
    stored = program.stored()
    wrong = msgspec.structs.replace(origin.server, password="not the password")
    said = program.back_up(MariadbSource(server=wrong, host="here"), series="denied", expect=1)
    assert "Access denied for user" in said
    assert "Check the source's credentials" in said
    assert "not the password" not in said
    assert program.stored() == stored


def test_data_files_make_a_new_server_and_only_changes_were_stored(
    origin: OwnServer, program: EngineProgram, tmp_path: Path
) -> None:
    source = MariadbImageSource(server=origin.server, host="here")
    origin.sql("SET GLOBAL innodb_max_dirty_pages_pct = 0")  # else the first one holds the data in its redo log alone
    until(lambda: origin.sql("SHOW GLOBAL STATUS LIKE 'Innodb_buffer_pool_pages_dirty'")[0][1] == "0")
    first = program.back_up(source, series="image")
    origin.sql("UPDATE shop.goods SET price = 77 WHERE id = 1000")
    second = program.back_up(source, series="image")
    assert second["stats"]["bytes_new"] < first["stats"]["bytes_new"] / 2
    expected = contents(origin.server, "shop")
    folder = tmp_path / "restored"
    folder.mkdir()
    program.restore(MariadbImageTarget(folder=str(folder)), point=second["point"])
    revived = OwnServer(tmp_path / "revived", data=folder)
    try:
        assert contents(revived.server, "shop") == expected
    finally:
        revived.end(signal.SIGKILL)


def test_a_database_comes_back_as_it_was_just_before_a_table_was_dropped(
    origin: OwnServer, fresh: MariadbServer, program: EngineProgram, drop: Callable[..., None], tmp_path: Path
) -> None:
    spool, hand = tmp_path / "spool", tmp_path / "hand"
    spool.mkdir()
    hand.mkdir()
    fill(origin.server, "pitr")
    source = MariadbSource(server=origin.server, host="here", databases=("pitr",), together=True)
    base = program.back_up(source, series="base")["point"]
    logs = MariadbLogsSource(server=origin.server, host="here", spool=str(spool))
    origin.sql("INSERT INTO pitr.goods (name) VALUES ('later')", "UPDATE pitr.goods SET price = 1 WHERE id < 9")
    first = program.back_up(logs, series="logs")["stats"]
    origin.sql(
        "DELETE FROM pitr.sold WHERE id = 3", "CREATE TABLE pitr.more (a INT)", "INSERT INTO pitr.more VALUES (5)"
    )
    expected = contents(origin.server, "pitr")
    name, position, *_ = origin.sql("SHOW MASTER STATUS")[0]
    time.sleep(1.1)  # times of events are whole seconds
    [[moment]] = origin.sql("SELECT UTC_TIMESTAMP()")
    origin.sql("DROP TABLE pitr.sold", "INSERT INTO pitr.goods (name) VALUES ('too late')")
    second = program.back_up(logs, series="logs")
    assert second["stats"]["files"] == first["files"] + 1
    assert second["stats"]["bytes_read"] < second["stats"]["bytes"] - first["bytes"] / 2

    program.restore(FilesTarget(root=bytes(hand)), point=base)
    head = (hand / "databases.sql").read_text(errors="replace")[:4000]
    start = re.search(r"MASTER_LOG_FILE='([^']+)', MASTER_LOG_POS=(\d+)", head)
    assert start is not None
    for stop in (f"{name}:{position}", f"{moment.isoformat()}Z"):
        drop("pitr")
        program.restore(MariadbTarget(server=fresh), point=base)
        target = MariadbLogsTarget(server=fresh, start=f"{start[1]}:{start[2]}", stop=stop)
        program.restore(target, point=second["point"])
        assert contents(fresh, "pitr") == expected
