"""Binary logs played into a server, onto the base backup that was loaded before: point-in-time recovery."""

import contextlib
import datetime as dt
import os
import re
import shutil
import tempfile
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import msgspec

from engine.connections.mariadb import LOADING, MariadbServer, for_target, told
from engine.connections.mariadb_points import FIRST_POSITION, INDEX, LOGS, Index, Log, is_log
from engine.connections.process import Input, Output
from engine.entries import Entry, Problem
from engine.errors import SourceError, SourceIncomplete, TargetError, TargetFailed
from engine.targets.port import BaseTarget

GUARD = "backupsite_replay"
FIRST = "first"
_READ_BYTES = 1 << 20
_POSITION = re.compile(r"(?P<name>[^:/\s]+\.\d{6,}):(?P<position>\d+)")


class Position(NamedTuple):
    """A place in the binary logs."""

    name: str
    position: int


class MariadbLogsTarget(BaseTarget, frozen=True, tag="mariadb-logs", kw_only=True):
    """Plays the logs of a point from `start` up to `stop` into the server.

    `start`: NAME:POSITION as the base backup tells it, or `first` for the first log there is. `stop`: NAME:POSITION, a
    time (ISO 8601, of UTC unless it says otherwise; events of that second and later are left out), or empty for all.
    All databases are played: a log doesn't tell reliably which of them a statement is about. The logs lie in a
    temporary folder below `scratch` until the last is there; then they are played at once. While they are played the
    server has a database `backupsite_replay`: when it is there before, an earlier replay did not come to its end, and
    another on top would do things twice.
    """

    server: MariadbServer
    start: str
    stop: str = ""
    scratch: str = ""

    def __repr__(self) -> str:
        return f"MariadbLogsTarget({self.server.address!r})"

    @property
    def one_by_one(self) -> bool:
        """Say yes: the index comes last, and with it the replay."""
        return True

    def where(self) -> str:
        return f"the server {self.server.address}, up to {self.stop or 'the last log'}"

    def check(self) -> None:
        """Raise TargetError for a place that is none, TargetDenied, TargetUnavailable, TargetFailed, ExtraMissing."""
        _ = self._start, self._stop
        self.server.program("binlog")
        try:
            self.server.check()
        except SourceError as error:
            raise for_target(error) from error
        self._refuse_half_played()

    def existing(self, path: bytes) -> int | None:
        """Return None. Raises TargetError for a file of another kind of point."""
        if path != INDEX and not (path.startswith(LOGS) and is_log(os.fsdecode(path[len(LOGS) :]))):
            raise TargetError(
                f"{path.decode('utf-8', 'replace')} is no binary log: restore this point into a folder, or with the "
                "settings of the mode that made it"
            )
        return None

    def create(self, entry: Entry) -> "LogWriter":
        """Begin a file in the temporary folder."""
        return LogWriter(self, entry, self._folder / os.fsdecode(entry.path).rpartition("/")[2])

    def ask(self, sql: str) -> list[list[str]]:
        """Ask the server, with the errors of a target."""
        try:
            return self.server.ask(sql)
        except SourceError as error:
            raise for_target(error) from error

    def play(self) -> None:
        """Play what the temporary folder holds, and remove it. Raises TargetFailed."""
        folder = self._folder
        try:
            index = msgspec.json.decode((folder / os.fsdecode(INDEX)).read_bytes(), type=Index)
            logs = self._chosen(index.logs)
            for log in logs:
                if not (folder / log.name).exists() or (folder / log.name).stat().st_size != log.end:
                    raise TargetFailed(f"the log {log.name} is not there whole: restore all of {LOGS.decode()}")
            self._refuse_half_played()
            self.ask(f"CREATE DATABASE {GUARD}")
            self._pipe([str(folder / log.name) for log in logs])
            self.ask(f"DROP DATABASE {GUARD}")
        finally:
            self.forget()

    def forget(self) -> None:
        """Remove the temporary folder."""
        if folder := self.__dict__.pop("_folder", None):
            shutil.rmtree(folder, ignore_errors=True)

    @cached_property
    def _folder(self) -> Path:
        return Path(tempfile.mkdtemp(prefix="backupsite-binlog-", dir=self.scratch or None))

    @property
    def _start(self) -> Position | None:
        return None if self.start == FIRST else _position(self.start)

    @property
    def _stop(self) -> Position | dt.datetime | None:
        if not self.stop or _POSITION.fullmatch(self.stop):
            return _position(self.stop) if self.stop else None
        try:
            when = dt.datetime.fromisoformat(self.stop)
        except ValueError as error:
            raise TargetError(
                f"{self.stop!r} is neither a position (NAME:POSITION) nor a time (2031-05-06T07:08:09Z)"
            ) from error
        return when if when.tzinfo else when.replace(tzinfo=dt.UTC)

    def _refuse_half_played(self) -> None:
        if self.ask(f"SHOW DATABASES LIKE '{GUARD}'"):
            raise TargetFailed(
                f"an earlier replay into {self.server.address} did not come to its end (the database {GUARD} is "
                f"there): load the base backup anew, then DROP DATABASE {GUARD} and restore the logs again"
            )

    def _chosen(self, logs: list[Log]) -> list[Log]:
        """Return the logs from start to stop. Raises TargetFailed when one of them is missing."""
        start, stop = self._start, self._stop
        for place in (start, stop):
            if isinstance(place, Position) and place.name not in [log.name for log in logs]:
                raise TargetFailed(f"the point does not hold the log {place.name}")
        names = [log.name for log in logs]
        first = names.index(start.name) if start else 0
        last = names.index(stop.name) + 1 if isinstance(stop, Position) else len(logs)
        chosen = logs[first:last]
        if isinstance(stop, dt.datetime):
            chosen = [log for log in chosen if log.begins_at < stop.timestamp()]
        if not chosen:
            raise TargetFailed(f"there is nothing to play: {self.stop} is before the logs that were chosen begin")
        for before, after in pairwise(chosen):
            if after.number != before.number + 1:
                raise TargetFailed(f"the logs between {before.name} and {after.name} are missing: play up to there")
        return chosen

    def _options(self) -> list[str]:
        start, stop = self._start, self._stop
        options = [f"--start-position={start.position if start else FIRST_POSITION}"]
        if isinstance(stop, Position):
            options.append(f"--stop-position={stop.position}")
        elif stop is not None:
            options.append(f"--stop-datetime={stop.astimezone(dt.UTC):%Y-%m-%d %H:%M:%S}")
        return options

    def _pipe(self, paths: list[str]) -> None:
        """Let mariadb-binlog write into the client, and prove that both came to their end."""
        # Its times are those of its time zone.
        argv = [self.server.program("binlog"), "--no-defaults", *self._options(), *paths]
        with contextlib.ExitStack() as stack:
            output = Output(argv, env={"TZ": "UTC"}, idle_s=self.server.idle_s)
            stack.callback(output.close)
            client = Input(self.server.argv("client", *LOADING), env=self.server.env, idle_s=self.server.idle_s)
            stack.callback(client.close)
            view = memoryview(bytearray(_READ_BYTES))
            try:
                while count := output.readinto(view):
                    client.write(view[:count])
                output.prove()
                client.prove()
            except SourceIncomplete as error:
                raise TargetFailed(f"the logs can't be read to their end: {error.args[0]}") from error
            except TargetFailed as error:
                raise for_target(told(SourceIncomplete(str(error.args[0])))) from error


class LogWriter:
    """One log on its way into the temporary folder (the Writer port). The index comes last and starts the replay."""

    def __init__(self, target: MariadbLogsTarget, entry: Entry, path: Path) -> None:
        self._target, self._entry = target, entry
        self._file = path.open("wb")

    def write(self, data: memoryview, offset: int) -> None:
        self._file.write(data)

    def commit(self) -> list[Problem]:
        self._file.close()
        if self._entry.path == INDEX:
            self._target.play()
        return []

    def abort(self) -> None:
        self._file.close()
        self._target.forget()


def _position(text: str) -> Position:
    found = _POSITION.fullmatch(text)
    if found is None:
        raise TargetError(
            f"{text!r} is no position in the binary logs: give it as NAME:POSITION, as a base backup does"
        )
    return Position(found["name"], int(found["position"]))
