"""Binary logs as what a server is brought forward with: from a position, up to a moment, once."""

import signal
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from engine.errors import TargetError, TargetFailed
from engine.ids import new_ulid
from engine.sources.mariadb import MariadbImageSource
from engine.sources.mariadb_logs import MariadbLogsSource
from engine.targets.mariadb_image import MariadbImageTarget
from engine.targets.mariadb_logs import GUARD, MariadbLogsTarget
from engine.verbs.backup import BackupJob
from tests.support.mariadb import OwnServer
from tests.support.runs import restored, run_backup
from tests.support.vaults import Bench


class Past:
    """A table that logs tell of: one row in each of four logs, of which the last three are backed up."""

    def __init__(self, own: OwnServer, spool: Path) -> None:
        self.own, self.spool, self.bench = own, spool, Bench()
        own.sql("FLUSH BINARY LOGS", "CREATE DATABASE past", "CREATE TABLE past.t (a INT)")
        self.places: list[str] = []
        for number in range(4):
            own.sql(f"INSERT INTO past.t VALUES ({number})")
            self.places.append(self.place())
            own.sql("FLUSH BINARY LOGS")
        own.purge(self.places[1].partition(":")[0])
        own.sql("DELETE FROM past.t WHERE a > 0", "SET sql_log_bin = 0")
        self.back_up()
        self.reset()

    def place(self) -> str:
        name, position, *_ = self.own.sql("SHOW MASTER STATUS")[0]
        return f"{name}:{position}"

    def back_up(self) -> None:
        source = MariadbLogsSource(server=self.own.server, host="here", spool=str(self.spool))
        order = BackupJob(
            session=new_ulid(self.bench.clock()), series="logs", source=source, started_at=self.bench.clock()
        )
        run_backup(self.bench, order)

    def reset(self) -> None:
        """Bring the table to what it was before the logs that are backed up."""
        self.own.sql("TRUNCATE past.t", "INSERT INTO past.t VALUES (0)")

    def play(self, **options: str) -> list[int]:
        """Play the logs and return the rows that are there then."""
        restored(self.bench, MariadbLogsTarget(server=self.own.server, **{"start": "first", **options}))
        return self.rows()

    def rows(self) -> list[int]:
        return [number for (number,) in self.own.sql("SELECT a FROM past.t ORDER BY a")]


@pytest.fixture
def past(own_mariadb: OwnServer, tmp_path: Path) -> Iterator[Past]:
    yield Past(own_mariadb, tmp_path)
    own_mariadb.sql("DROP DATABASE IF EXISTS past", f"DROP DATABASE IF EXISTS {GUARD}")


def test_logs_are_played_from_a_position_up_to_another(past: Past) -> None:
    assert past.play(stop=past.places[2]) == [0, 1, 2]
    past.reset()
    assert past.play(start=past.places[1], stop=past.places[3]) == [0, 2, 3]
    past.reset()
    assert past.play() == [0]  # what was deleted in the end is gone again


def test_a_time_stops_before_all_that_happened_in_its_second_or_later(past: Past) -> None:
    [[begin]] = past.own.sql("SELECT UTC_TIMESTAMP() - INTERVAL 1 HOUR")
    assert past.play(stop="2999-01-01T00:00:00+08:00") == [0]
    with pytest.raises(TargetFailed, match="there is nothing to play"):
        past.play(stop=begin.isoformat())


def test_a_replay_that_did_not_end_keeps_the_next_from_doing_things_twice(past: Past) -> None:
    past.own.sql("DROP TABLE past.t")
    with pytest.raises(TargetFailed, match=r"ERROR 1146 .*doesn't exist"):
        past.play(stop=past.places[2])
    past.own.sql("CREATE TABLE past.t (a INT)")
    with pytest.raises(TargetFailed, match=f"DROP DATABASE {GUARD}"):
        past.play(stop=past.places[2])
    assert past.rows() == []
    past.own.sql(f"DROP DATABASE {GUARD}")
    past.reset()
    assert past.play(stop=past.places[2]) == [0, 1, 2]


def test_data_files_are_brought_forward_from_where_their_backup_ended(
    own_mariadb: OwnServer, past: Past, tmp_path: Path
) -> None:
    image, folder = Bench(), tmp_path / "files"
    folder.mkdir()
    source = MariadbImageSource(server=own_mariadb.server, host="here")
    order = BackupJob(session=new_ulid(image.clock()), series="files", source=source, started_at=image.clock())
    run_backup(image, order)
    own_mariadb.sql("INSERT INTO past.t VALUES (7)")
    stop = past.place()
    own_mariadb.sql("DROP TABLE past.t")
    past.back_up()
    restored(image, MariadbImageTarget(folder=str(folder)))
    name, position, *_ = (folder / "xtrabackup_binlog_info").read_text().split()
    revived = OwnServer(tmp_path / "revived", data=folder)
    try:
        target = MariadbLogsTarget(server=revived.server, start=f"{name}:{position}", stop=stop)
        restored(past.bench, target)
        assert revived.sql("SELECT a FROM past.t ORDER BY a") == [(0,), (7,)]
    finally:
        revived.end(signal.SIGKILL)


def test_the_right_to_replay_and_those_of_the_data_are_enough(own_mariadb: OwnServer, past: Past) -> None:
    own_mariadb.sql("CREATE USER player@'%' IDENTIFIED BY 'p'", "GRANT BINLOG REPLAY ON *.* TO player@'%'")
    own_mariadb.sql("GRANT ALL ON past.* TO player@'%'", f"GRANT ALL ON {GUARD}.* TO player@'%'")
    try:
        player = msgspec.structs.replace(own_mariadb.server, user="player", password="p")
        restored(past.bench, MariadbLogsTarget(server=player, start="first", stop=past.places[2]))
        assert past.rows() == [0, 1, 2]
    finally:
        own_mariadb.sql("DROP USER player@'%'")


def test_nobody_plays_across_logs_that_are_missing(past: Past) -> None:
    past.own.sql("FLUSH BINARY LOGS")
    past.own.purge(past.own.current_log())
    past.back_up()
    with pytest.raises(TargetFailed, match=r"the logs between .* and .* are missing"):
        past.play()
    with pytest.raises(TargetFailed, match="does not hold the log"):
        past.play(start=past.places[0])
    past.reset()
    assert past.play(stop=past.places[1]) == [0, 1]


def test_half_of_a_points_logs_are_not_played(past: Past) -> None:
    name = past.places[2].partition(":")[0]
    with pytest.raises(TargetFailed, match=f"the log {name} is not there whole"):
        restored(past.bench, MariadbLogsTarget(server=past.own.server, start="first"), exclude=(f"/binlog/{name}",))
    assert past.rows() == [0]


def test_the_copies_of_logs_go_when_the_replay_is_over(past: Past, tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    past.play(scratch=str(scratch))
    assert list(scratch.iterdir()) == []


@pytest.mark.parametrize("options", [{"start": ""}, {"start": "log:4"}, {"start": "log.000001"}, {"stop": "yesterday"}])
def test_a_place_that_is_none_is_told_before_anything_is_played(
    own_mariadb: OwnServer, options: dict[str, str]
) -> None:
    with pytest.raises(TargetError, match="position"):
        MariadbLogsTarget(server=own_mariadb.server, **{"start": "first", **options}).check()
