"""Binary logs as a source: each is copied once, none goes unsaid."""

import fcntl
import shutil
import signal
from pathlib import Path

import msgspec
import pytest

from engine.connections.mariadb import MariadbServer
from engine.connections.mariadb_points import Index
from engine.entries import Entry, Problem
from engine.errors import SourceDenied, SourceError, SourceIncomplete, SourceMissing, SourceUnavailable
from engine.ids import new_ulid
from engine.sources.mariadb_logs import MariadbLogsSource
from engine.verbs.backup import BackupJob
from tests.support.mariadb import OwnServer, connected
from tests.support.runs import run_backup
from tests.support.vaults import Bench

DAY_S = 86_400


@pytest.fixture(scope="module")
def server(own_mariadb: OwnServer) -> MariadbServer:
    return own_mariadb.server


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    folder = tmp_path / "spool"
    folder.mkdir()
    return folder


@pytest.fixture
def data(own_mariadb: OwnServer) -> Path:
    return own_mariadb.data


def source(server: MariadbServer, spool: Path, *, keep_days: int = 0) -> MariadbLogsSource:
    return MariadbLogsSource(server=server, host="here", spool=str(spool), keep_days=keep_days)


def walked(given: MariadbLogsSource) -> tuple[list[str], list[Problem]]:
    """Return the names of the logs that a run yields, and its problems."""
    found = list(given.walk())
    paths = [one.path.decode() for one in found if isinstance(one, Entry)]
    assert paths[-1] == "binlog.index.json"
    return [path.removeprefix("binlog/") for path in paths[:-1]], [one for one in found if isinstance(one, Problem)]


def aged(log: Path, days: int) -> None:
    """Let a log begin so many days earlier."""
    with log.open("r+b") as file:
        file.seek(4)
        begins = int.from_bytes(file.read(4), "little")
        file.seek(4)
        file.write((begins - days * DAY_S).to_bytes(4, "little"))


def test_each_run_closes_the_log_and_copies_what_is_new_byte_for_byte(
    server: MariadbServer, spool: Path, data: Path
) -> None:
    given = source(server, spool)
    given.check()
    first, problems = walked(given)
    second, _ = walked(given)
    assert problems == []
    assert second[:-1] == first
    for name in second:
        assert (spool / name).read_bytes() == (data / name).read_bytes()
    index = msgspec.json.decode((spool / "binlog.index.json").read_bytes(), type=Index)
    assert [log.name for log in index.logs] == second
    assert [log.end for log in index.logs] == [(data / name).stat().st_size for name in second]
    assert {path.stat().st_mode & 0o777 for path in spool.glob("own-log.*")} == {0o600}


def test_a_log_is_read_once_and_carried_over_from_then_on(server: MariadbServer, spool: Path) -> None:
    bench = Bench()
    given = source(server, spool)

    def run() -> tuple[int, int]:
        order = BackupJob(session=new_ulid(bench.clock()), series="logs", source=given, started_at=bench.clock())
        stats = run_backup(bench, order).stats
        return stats.entries, stats.entries_read

    entries, read = run()
    assert read == entries
    assert run() == (entries + 1, 2)  # the new log, and the index


def test_what_the_server_purged_stays_in_the_spool(server: MariadbServer, own_mariadb: OwnServer, spool: Path) -> None:
    given = source(server, spool)
    first, _ = walked(given)
    own_mariadb.purge(first[-1])
    second, problems = walked(given)
    assert set(first) < set(second)
    assert problems == []


def test_logs_that_were_gone_before_they_were_copied_are_told_as_lost(
    server: MariadbServer, own_mariadb: OwnServer, spool: Path
) -> None:
    given = source(server, spool)
    walked(given)
    own_mariadb.sql("FLUSH BINARY LOGS", "FLUSH BINARY LOGS")
    own_mariadb.purge(own_mariadb.current_log())
    for _ in range(2):  # for as long as there is a gap
        names, [problem] = walked(given)
        assert (problem.reason, problem.lost) == ("vanished", True)
        assert "were gone before they were copied" in problem.detail


def test_only_logs_that_the_server_no_longer_has_leave_the_spool_and_the_run_says_which(
    server: MariadbServer, own_mariadb: OwnServer, spool: Path
) -> None:
    first, _ = walked(source(server, spool))
    later, _ = walked(source(server, spool))
    for name in later:
        aged(spool / name, 40)
    assert walked(source(server, spool, keep_days=30))[1] == []  # the server still has them
    own_mariadb.purge(later[-1])
    names, problems = walked(source(server, spool, keep_days=50))
    assert (set(later) < set(names), problems) == (True, [])
    names, problems = walked(source(server, spool, keep_days=30))
    assert [problem.path.decode() for problem in problems] == [f"binlog/{name}" for name in later[:-1]]
    assert not any(problem.lost for problem in problems)
    assert names[0] == later[-1]
    assert not [name for name in later[:-1] if (spool / name).exists()]


def test_logs_of_other_times_are_never_mixed_with_the_servers(server: MariadbServer, spool: Path) -> None:
    names, _ = walked(source(server, spool))
    with (spool / names[-1]).open("ab") as file:
        file.write(b"more")
    with pytest.raises(SourceError, match="of other times or of another server"):
        walked(source(server, spool))
    (spool / names[-1]).unlink()
    for name in names[:-1]:
        (spool / name).unlink()
    (spool / "elsewhere.000001").write_bytes(b"\xfebin" + bytes(20))
    with pytest.raises(SourceError, match="of other times or of another server"):
        walked(source(server, spool))
    (spool / "elsewhere.000001").unlink()
    (spool / "own-log.999999").write_bytes(b"\xfebin" + bytes(20))
    with pytest.raises(SourceError, match=r"were reset. Make a new spool folder"):
        walked(source(server, spool))


def test_a_file_that_is_no_log_is_not_taken_for_one(server: MariadbServer, spool: Path) -> None:
    (spool / "notes.000001").write_text("shopping")
    with pytest.raises(SourceError, match="is not a binary log"):
        walked(source(server, spool))


def test_a_copy_that_came_short_is_not_kept(server: MariadbServer, spool: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bin"
    folder.mkdir()
    found = shutil.which("mariadb")
    assert found is not None
    (folder / "mariadb").symlink_to(found)
    script = folder / "mariadb-binlog"
    script.write_text('#!/bin/sh\nfor last; do :; done\nprintf abc > "' + str(spool) + '/.new-$last"\n')
    script.chmod(0o755)
    with pytest.raises(SourceIncomplete, match="came as 3 bytes of"):
        walked(source(msgspec.structs.replace(server, programs=str(folder)), spool))
    assert not list(spool.glob("own-log.*"))
    walked(source(server, spool))  # a later run starts over


def test_two_runs_do_not_share_a_spool(server: MariadbServer, spool: Path) -> None:
    walk = source(server, spool).walk()
    with (spool / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(SourceUnavailable, match="another run"):
            next(walk)


def test_what_is_missing_for_logs_is_told_before_anything_is_copied(server: MariadbServer, spool: Path) -> None:
    with pytest.raises(SourceMissing, match="make it first"):
        source(server, spool / "none").check()
    with connected(server) as connection, connection.cursor() as cursor:
        cursor.execute("CREATE USER logs_a@'%' IDENTIFIED BY 'a'")
        cursor.execute("GRANT RELOAD ON *.* TO logs_a@'%'")
        cursor.execute("CREATE USER logs_b@'%' IDENTIFIED BY 'b'")
        cursor.execute("GRANT RELOAD, BINLOG MONITOR, REPLICATION SLAVE ON *.* TO logs_b@'%'")
    try:
        with pytest.raises(SourceDenied, match=r"GRANT BINLOG MONITOR, REPLICATION SLAVE ON \*\.\*"):
            source(msgspec.structs.replace(server, user="logs_a", password="a"), spool).check()
        enough = source(msgspec.structs.replace(server, user="logs_b", password="b"), spool)
        enough.check()
        walked(enough)
    finally:
        with connected(server) as connection, connection.cursor() as cursor:
            cursor.execute("DROP USER logs_a@'%', logs_b@'%'")


def test_a_server_without_a_binary_log_is_told_so(spool: Path, tmp_path: Path) -> None:
    own = OwnServer(tmp_path / "own", options={"skip-log-bin": "1"})
    try:
        with pytest.raises(SourceError, match="keeps no binary log: set log_bin"):
            source(own.server, spool).check()
    finally:
        own.end(signal.SIGKILL)
