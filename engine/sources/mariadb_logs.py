"""A server's binary logs as a source: closed ones are copied into a spool folder of the host, which is backed up.

The spool keeps what the server purges. A log leaves it only by `keep_days`, and never unsaid: the run that removes one
reports it. Missing logs, between those that are there, are reported as lost: nobody can play on across a gap.
"""

import contextlib
import fcntl
import os
import stat
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import msgspec

from engine.connections.mariadb import MariadbServer, run, told
from engine.connections.mariadb_grants import Grants
from engine.connections.mariadb_points import FIRST_POSITION, INDEX, LOGS, Index, Log, base_of, is_log, number_of
from engine.entries import Entry, Kind, Problem
from engine.errors import SourceDenied, SourceError, SourceIncomplete, SourceMissing, SourceUnavailable
from engine.sources.port import BaseSource, Identity
from engine.sources.reading import READ, FileReader

_MAGIC = b"\xfebin"
_DAY_S = 86_400
_NS = 10**9
_NEEDED = (
    ("RELOAD",),
    ("BINLOG MONITOR", "REPLICATION CLIENT"),
    ("REPLICATION SLAVE",),
)


class MariadbLogsSource(BaseSource, frozen=True, tag="mariadb-logs", kw_only=True):
    """The binary logs: `binlog/<name>` as the server wrote them, and `binlog.index.json` about them.

    Each run closes the current log first, so that it is part of the point. `spool` is an existing folder of the host,
    of this source alone. `keep_days` counts by the server's clock from a log's end; 0 keeps all.
    """

    server: MariadbServer
    host: str
    spool: str
    keep_days: int = 0

    def __repr__(self) -> str:
        return f"MariadbLogsSource({self.server.address!r})"

    def identity(self) -> Identity:
        """Return the server."""
        return Identity("mariadb", self.host, [self.server.address])

    def options(self) -> dict[str, list[str]]:
        return {"mode": ["binlog"], "spool": [self.spool], "keep_days": [str(self.keep_days)]}

    def check(self) -> None:
        """Raise SourceError where logs aren't kept or can't be copied, SourceDenied naming the rights that lack."""
        self.server.program("binlog")
        if not self.spool.startswith("/") or not os.path.isdir(self.spool):
            raise SourceMissing(f"the spool folder {self.spool!r} is not there on {self.host}: make it first")
        if not os.access(self.spool, os.R_OK | os.W_OK | os.X_OK):
            raise SourceDenied(f"the spool folder {self.spool!r} can't be written on {self.host}")
        self.server.check()
        [[log_bin, encrypted]] = self.server.ask("SELECT @@log_bin, IF(VERSION() LIKE '%MariaDB%', 1, 0)")
        if log_bin != "1":
            raise SourceError(f"{self.server.address} keeps no binary log: set log_bin in its configuration")
        if encrypted == "1" and self.server.ask("SELECT @@encrypt_binlog") == [["1"]]:
            raise SourceError(f"{self.server.address} encrypts its binary logs, which can't be copied whole")
        grants = Grants.of(self.server)
        if lacking := [rights[0] for rights in _NEEDED if not grants.has(*rights)]:
            raise SourceDenied(
                f"the account {self.server.user!r} can't copy the binary logs: GRANT {', '.join(lacking)} ON *.*"
            )

    def walk(self) -> Iterator[Entry | Problem | None]:
        """Close the current log, copy what is new into the spool, then yield all of it."""
        spool = Path(self.spool)
        with _locked(spool):
            [[now, version]] = self.server.ask("FLUSH BINARY LOGS; SELECT UNIX_TIMESTAMP(), VERSION()")
            listed = {row[0]: int(row[1]) for row in self.server.ask("SHOW BINARY LOGS")}
            current = max(listed, key=number_of)
            del listed[current]
            held = _logs(spool)
            _check_same(held, listed, current, self.spool)
            yield from self._copy(spool, [name for name in listed if name not in {log.name for log in held}], listed)
            held = _logs(spool)
            trimmed = self._trim(spool, held, listed, int(now))
            held = held[len(trimmed) :]
            _write_index(spool, Index(self.server.address, version, held))
        for log in trimmed:
            text = f"removed from the spool after {self.keep_days} days; points that hold it keep it"
            yield Problem(LOGS + log.name.encode(), "vanished", text, lost=False)
        for before, after in pairwise(held):
            if after.number != before.number + 1:
                text = f"the logs between it and {after.name} were gone before they were copied"
                yield Problem(LOGS + before.name.encode(), "vanished", text)
        yield from sorted((_entry(log) for log in held), key=lambda entry: entry.sort_key)
        yield _index_entry(spool)

    def open(self, entry: Entry) -> FileReader | Problem:
        """Open a file of the spool."""
        name = os.fsdecode(entry.path.removeprefix(LOGS))
        try:
            fd = os.open(Path(self.spool) / name, READ)
        except OSError as error:
            return Problem(entry.path, "vanished", f"it can't be read in the spool: {error.strerror}")
        status = os.fstat(fd)
        return FileReader(fd, msgspec.structs.replace(entry, size=status.st_size), status)

    def _copy(self, spool: Path, names: list[str], sizes: dict[str, int]) -> Iterator[None]:
        """Copy logs into the spool, yielding after each; each gets its name when it is whole and on the disk."""
        for name in sorted(names, key=number_of):
            fresh = spool / f".new-{name}"
            fresh.unlink(missing_ok=True)
            options = ("--read-from-remote-server", "--raw", f"--result-file={spool}/.new-", name)
            try:
                run(self.server.argv("binlog", *options), env=self.server.env, idle_s=self.server.idle_s)
            except SourceIncomplete as error:
                raise told(error) from error
            if fresh.stat().st_size != sizes[name]:
                raise SourceIncomplete(f"the binary log {name} came as {fresh.stat().st_size} bytes of {sizes[name]}")
            fresh.chmod(0o600)
            with fresh.open("rb") as file:
                os.fsync(file.fileno())
            fresh.rename(spool / name)
            yield None
        _sync(spool)

    def _trim(self, spool: Path, held: list[Log], listed: dict[str, int], now_s: int) -> list[Log]:
        """Remove the oldest logs that ended before `keep_days` ago and that the server has no more; return them."""
        trimmed: list[Log] = []
        if self.keep_days:
            for log, following in pairwise(held):
                if log.name in listed or following.begins_at >= now_s - self.keep_days * _DAY_S:
                    break
                (spool / log.name).unlink()
                trimmed.append(log)
        return trimmed


@contextlib.contextmanager
def _locked(spool: Path) -> Iterator[None]:
    """Hold the spool against another run on this host."""
    with (spool / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SourceUnavailable(f"another run copies binary logs into {spool} now") from None
        yield


def _logs(spool: Path) -> list[Log]:
    """Return the logs in the spool, oldest first."""
    found = []
    for path in spool.iterdir():
        if path.name.startswith(".") or not is_log(path.name):
            continue
        status = path.lstat()
        if stat.S_ISREG(status.st_mode):
            found.append(Log(path.name, FIRST_POSITION, status.st_size, _begin(path)))
    return sorted(found, key=lambda log: log.number)


def _begin(path: Path) -> int:
    """Return the time of a log's first event: 4 bytes of magic, then its header, which begins with it."""
    with path.open("rb") as file:
        head = file.read(8)
    if len(head) < 8 or head[:4] != _MAGIC:
        raise SourceError(f"{path} is not a binary log: give the spool a folder of its own")
    return int.from_bytes(head[4:8], "little")


def _check_same(held: list[Log], listed: dict[str, int], current: str, spool: str) -> None:
    """Raise SourceError when the server's logs are not those that the spool was begun with."""
    other = [log.name for log in held if listed.get(log.name, log.end) != log.end]
    if held and held[-1].number >= number_of(current):
        other.append(held[-1].name)
    if other or any(base_of(current) != base_of(log.name) for log in held):
        raise SourceError(
            f"the spool {spool} holds logs of other times or of another server ({(other or [held[0].name])[0]}): they "
            "were reset. Make a new spool folder, and a new base backup; the points keep what they hold"
        )


def _write_index(spool: Path, index: Index) -> None:
    fresh = spool / ".new-index"
    fresh.write_bytes(msgspec.json.format(msgspec.json.encode(index), indent=1) + b"\n")
    fresh.chmod(0o600)
    fresh.rename(spool / os.fsdecode(INDEX))


def _entry(log: Log) -> Entry:
    # A closed log never changes: its name, size and time tell it from every other.
    return Entry(LOGS + log.name.encode(), Kind.FILE, 0o600, size=log.end, mtime_ns=log.begins_at * _NS)


def _index_entry(spool: Path) -> Entry:
    status = (spool / os.fsdecode(INDEX)).stat()
    return Entry(INDEX, Kind.FILE, 0o600, size=status.st_size, mtime_ns=status.st_mtime_ns)


def _sync(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
