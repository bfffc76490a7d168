"""PostgreSQL for real: dumps, base backups and the log, lost and given back, compared through another client."""

import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.errors import SourceError, SourceIncomplete, SourceUnavailable
from engine.targets.files import FilesTarget
from engine.targets.postgres_data import PostgresDataTarget
from tests.services import Postgres
from tests.support.engine_program import EngineProgram, killed
from tests.support.postgres import OwnServer, open_folder, program, run, servers
from tests.support.runs import backup_job, run_backup
from tests.support.vaults import Bench

pytestmark = [pytest.mark.scenario, pytest.mark.timeout(120)]
ODD = 'Größe "1"/ $x'
SHOP = """
CREATE SCHEMA "Art's";
CREATE TABLE customers (id int PRIMARY KEY, name text, at timestamptz DEFAULT now());
INSERT INTO customers SELECT g, md5(g::text) FROM generate_series(1, 80000) g;
CREATE TABLE "Art's"."Bill" (id serial PRIMARY KEY, customer int REFERENCES customers, sum numeric, more jsonb,
  raw bytea);
INSERT INTO "Art's"."Bill" (customer, sum, more, raw)
  SELECT g, g / 7.0, json_build_object('g', g), sha256(g::text::bytea) FROM generate_series(1, 20000) g;
CREATE VIEW rich AS SELECT customer FROM "Art's"."Bill" WHERE sum > 100;
CREATE TABLE nothing (id int);
GRANT SELECT ON customers TO "read er";
ALTER TABLE nothing OWNER TO "read er";
SELECT lo_from_bytea(4711, 'a large object');
"""

Maker = Callable[..., OwnServer]


@pytest.fixture(scope="module")
def make(postgres_service: Postgres) -> Iterator[Maker]:
    """Make servers of the module's own, which the shared one says are installed."""
    with servers() as maker:
        yield maker


@pytest.fixture(scope="module")
def filled(make: Maker) -> OwnServer:
    """A server with roles and two databases, one of an odd name; it outlives the tests that use it."""
    server = make()
    server.rows("""CREATE ROLE "read er" LOGIN PASSWORD 'reads'""")
    server.rows("CREATE DATABASE shop")
    server.rows(f"""CREATE DATABASE "{ODD.replace('"', '""')}" """)
    server.rows(SHOP, database="shop")
    server.rows("CREATE TABLE t AS SELECT 1 AS one", database=ODD)
    return server


@pytest.fixture
def engine(tmp_path: Path) -> EngineProgram:
    return EngineProgram(tmp_path)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that servers and the engine can use."""
    made = open_folder()
    yield made
    shutil.rmtree(made, ignore_errors=True)


def test_databases_are_dumped_changed_dumped_lost_and_given_back_here_and_elsewhere(
    make: Maker, filled: OwnServer, engine: EngineProgram
) -> None:
    first = engine.back_up(filled.source())
    assert first["state"] == "complete"
    filled.rows("UPDATE customers SET name = 'changed' WHERE id = 60000", database="shop")
    second = engine.back_up(filled.source())
    stats = second["stats"]
    assert stats["bytes_read"] > 4 << 20
    assert stats["bytes_new"] < stats["bytes_read"] / 2, stats
    before = {name: filled.contents(name) for name in ("shop", ODD)}
    assert len(before["shop"]["public.customers"]) == 80_000

    other = make()
    assert engine.restore(other.target(), point="latest")["state"] == "complete"
    assert {name: other.contents(name) for name in before} == before
    assert other.rows("SELECT convert_from(lo_get(4711), 'UTF8')", database="shop") == [("a large object",)]
    assert other.rows("SELECT count(*) FROM customers", database="shop", user="read er", password="reads")

    filled.rows("DROP DATABASE shop")
    filled.rows(f"""DROP DATABASE "{ODD.replace('"', '""')}" """)
    engine.restore(filled.target(), point="latest")
    assert {name: filled.contents(name) for name in before} == before
    engine.restore(filled.target(overwrite=True), point=first["point"])
    assert filled.contents("shop")["public.customers"][59_999][1] != "changed"


def test_a_dump_restored_into_a_folder_serves_without_this_program(
    make: Maker, filled: OwnServer, engine: EngineProgram, folder: Path
) -> None:
    engine.back_up(filled.source(databases=("shop",)))
    engine.restore(FilesTarget(root=str(folder).encode(), restore_owner=False), point="latest")
    shutil.copyfile(folder / "databases/shop.dump", folder / "dump")
    (folder / "dump").chmod(0o644)
    run(program("pg_restore"), "-f", str(folder / "script.sql"), str(folder / "dump"))
    assert "PostgreSQL database dump complete" in (folder / "script.sql").read_text()[-200:]
    assert 'CREATE ROLE "read er"' in (folder / "cluster.sql").read_text()


def test_a_server_is_given_back_as_it_was_a_moment_before_the_mistake(
    make: Maker, engine: EngineProgram, folder: Path
) -> None:
    server = make()
    (folder / "spool").mkdir()
    spool = server.source(mode="wal", spool=str(folder / "spool"))
    engine.back_up(spool, series="log")
    server.rows("CREATE TABLE t AS SELECT g, md5(g::text) AS m FROM generate_series(1, 150000) g")
    engine.back_up(server.source(mode="physical"), series="base")
    server.rows("UPDATE t SET m = 'changed' WHERE g = 7")
    second = engine.back_up(server.source(mode="physical"), series="base")
    assert second["stats"]["bytes_new"] < second["stats"]["bytes_read"] / 2, second["stats"]

    server.rows("INSERT INTO t VALUES (-1, 'after the base backup')")
    [(moment,)] = server.rows("SELECT clock_timestamp()")
    rows = server.rows("SELECT * FROM t ORDER BY g")
    time.sleep(0.05)
    server.rows("DROP TABLE t")
    log = engine.back_up(spool, series="log")
    assert log["state"] == "complete"
    again = engine.back_up(spool, series="log")
    assert again["stats"]["bytes_new"] <= 2 * 16 << 20
    server.end(signal.SIGQUIT)
    shutil.rmtree(server.data)

    target = PostgresDataTarget(folder=str(folder / "restored"), until=moment.isoformat())
    engine.restore(target, point=second["point"])
    engine.restore(target, point=again["point"])
    recovered = make(data=folder / "restored")
    assert recovered.rows("SELECT * FROM t ORDER BY g") == rows
    recovered.rows("INSERT INTO t VALUES (0, 'it takes writes')")
    recovered.end()

    whole = PostgresDataTarget(folder=str(folder / "whole"))
    engine.restore(whole, point=second["point"])
    as_backed_up = make(data=folder / "whole")
    assert as_backed_up.rows("SELECT m FROM t WHERE g IN (7, -1)") == [("changed",)]


def test_a_killed_worker_leaves_no_point_and_the_next_run_completes(filled: OwnServer, engine: EngineProgram) -> None:
    process = engine.backing_up(filled.source(bytes_per_s=1_000_000))
    _until_dumping(filled)
    killed(process)
    assert engine.points("home") == []
    assert engine.back_up(filled.source())["state"] == "complete"
    assert len(engine.points("home")) == 1


@pytest.mark.parametrize("mode", ["logical", "physical"])
def test_a_server_that_stops_in_the_middle_gives_an_error_and_no_point(make: Maker, mode: str) -> None:
    server, bench = make(), Bench()
    # More than the buffers between the server and pg_dump take in.
    server.rows("CREATE TABLE t AS SELECT g, repeat(md5(g::text), 12) AS m FROM generate_series(1, 60000) g")
    job = backup_job(bench, server.source(mode=mode, bytes_per_s=2_000_000))

    def stop() -> None:
        _until_dumping(server)
        server.end(signal.SIGQUIT)

    stopping = threading.Thread(target=stop)
    stopping.start()
    with pytest.raises(SourceError, match="pg_") as told:
        run_backup(bench, job)
    stopping.join()
    assert isinstance(told.value, SourceUnavailable | SourceIncomplete)
    assert bench.open().points() == []
    server.start()
    assert run_backup(bench, backup_job(bench, server.source(mode=mode))).state == "complete"


def test_a_wrong_password_is_told_before_anything_is_written(filled: OwnServer, engine: EngineProgram) -> None:
    before = engine.stored()
    refusal = engine.back_up(filled.source(password="not-the-one"), expect=1)
    assert "password authentication failed" in refusal
    assert "not-the-one" not in refusal
    assert engine.stored() == before


def _until_dumping(server: OwnServer) -> None:
    """Wait until a program reads much of the server."""
    deadline = time.monotonic() + 30
    busy: Any = "SELECT 1 FROM pg_stat_activity WHERE query LIKE 'COPY public.%' OR query LIKE 'BASE_BACKUP%'"
    while not server.rows(busy):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    time.sleep(0.5)
