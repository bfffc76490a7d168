"""MariaDB and MySQL servers as sources: dumps of their databases, or their data files as mariabackup streams them."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from typing import NamedTuple

import msgspec

from engine.connections.mariadb import SYSTEM, MariadbServer, quoted_name, told, unhex
from engine.connections.mariadb_grants import Grants
from engine.connections.mariadb_points import IMAGE, NAMES_XATTR, TOGETHER, USERS, encoded, path_of
from engine.connections.process import Output, quoted
from engine.entries import Entry, Problem, sort_key
from engine.errors import SourceDenied, SourceError, SourceIncomplete, SourceMissing
from engine.sources.port import BaseSource, Identity
from engine.sources.stream import StreamReader, stream_entry

_MARKER = b"-- Dump completed"
_IMAGE_MARKER = "completed OK!"
_NEEDED = ("SELECT", "SHOW VIEW", "TRIGGER", "EVENT")
_IMAGE_NEEDED = (("RELOAD",), ("PROCESS",), ("LOCK TABLES",), ("BINLOG MONITOR", "REPLICATION CLIENT"))
# Rows in the order of their keys and no date: what did not change gives the same bytes again.
_DUMP_OPTIONS = (
    *("--single-transaction", "--quick", "--routines", "--events", "--triggers", "--hex-blob"),
    *("--order-by-primary", "--skip-dump-date", "--default-character-set=utf8mb4", "--max-allowed-packet=1G"),
)


class Database(NamedTuple):
    """One database and what is given to those tables of it that say nothing else."""

    name: str
    charset: str
    collation: str


class MariadbSource(BaseSource, frozen=True, tag="mariadb", kw_only=True):
    """Dumps of databases: `databases/<name>/dump.sql` each, names percent-encoded, and accounts as `users.sql`.

    `databases` empty means all but the system's. Each dump shows one moment; with `together` all databases are one
    stream, `databases.sql`, of one moment and with one position in the binary log.
    """

    server: MariadbServer
    host: str
    databases: tuple[str, ...] = ()
    together: bool = False
    users: bool = True

    def __repr__(self) -> str:
        return f"MariadbSource({self.server.address!r})"

    def identity(self) -> Identity:
        """Return the server, and the databases that were named."""
        roots = [f"{self.server.address}/{encoded(name)}" for name in self.databases]
        return Identity("mariadb", self.host, roots or [self.server.address])

    def options(self) -> dict[str, list[str]]:
        return {
            "mode": ["logical"],
            "databases": list(self.databases) or ["all"],
            "together": ["yes" if self.together else "no"],
            "users": ["yes" if self.users else "no"],
        }

    def check(self) -> None:
        """Raise SourceDenied naming the rights that the account lacks: what it may not see, a dump leaves out unsaid.

        Raises ExtraMissing, SourceMissing, SourceUnavailable too.
        """
        self.server.program("dump")
        self.server.check()
        grants = Grants.of(self.server)
        if not self.databases and not grants.has("SELECT", "SHOW DATABASES"):
            raise SourceDenied(
                f"the account {self.server.user!r} does not see every database: name those to back up, or "
                f"GRANT {', '.join(_NEEDED)} ON *.*"
            )
        for database in self._found():
            lacking = [right for right in _NEEDED if not grants.has_in(database.name, right)]
            if lacking:
                raise SourceDenied(
                    f"the account {self.server.user!r} can't read all of the database {database.name!r}: "
                    f"GRANT {', '.join(lacking)} ON {quoted_name(database.name)}.*"
                )
        if not (grants.has_in("mysql", "SELECT", table="proc") or grants.has("SHOW CREATE ROUTINE", "SHOW_ROUTINE")):
            raise SourceDenied(
                f"the account {self.server.user!r} does not see every procedure and function: GRANT SELECT ON mysql.*"
            )
        if self.users and not grants.has_in("mysql", "SELECT"):
            raise SourceDenied(
                f"the account {self.server.user!r} can't read the other accounts: GRANT SELECT ON mysql.*, or leave "
                "the accounts out (users: false)"
            )
        if self.users and not self.server.is_mariadb_program("dump"):
            raise SourceError("MySQL's mysqldump can't dump accounts: leave them out (users: false)")

    def walk(self) -> Iterator[Entry | Problem]:
        """Yield a stream for each database; what a dump can't keep at one moment is told beside it."""
        found = self._found()
        notes = self._notes([database.name for database in found])
        if self.together:
            yield from (Problem(TOGETHER, "changed", text, lost=False) for text in notes.values())
            yield stream_entry(TOGETHER)
        else:
            for database in sorted(found, key=lambda one: sort_key(path_of(one.name))):
                if database.name in notes:
                    yield Problem(path_of(database.name), "changed", notes[database.name], lost=False)
                yield stream_entry(path_of(database.name))
        if self.users:
            yield stream_entry(USERS)

    def open(self, entry: Entry) -> StreamReader | Problem:
        """Start the dump program. Its end is proven by its exit code and its last line."""
        entry = msgspec.structs.replace(entry)
        if entry.path == USERS:
            return self._dump(entry, b"", "--insert-ignore", "--system=users")
        if entry.path == TOGETHER:
            names = [database.name for database in self._found()]
            entry.xattrs = {NAMES_XATTR: " ".join(encoded(name) for name in names).encode()}
            return self._dump(entry, b"", *self._position(), "--databases", "--", *names)
        database = next((one for one in self._all() if path_of(one.name) == entry.path), None)
        if database is None:
            return Problem(entry.path, "vanished", "the database was dropped while the backup ran")
        head = (
            f"-- The database {quoted_name(database.name)}; load it into one of any name: mariadb NAME < dump.sql\n"
            f"ALTER DATABASE CHARACTER SET {database.charset} COLLATE {database.collation};\n"
        )
        return self._dump(entry, head.encode(), *self._position(), "--", database.name)

    def _dump(self, entry: Entry, head: bytes, *options: str) -> StreamReader:
        argv = self.server.argv("dump", *_DUMP_OPTIONS, *options)
        output = Output(argv, env=self.server.env, idle_s=self.server.idle_s)
        return StreamReader(entry, Headed(head, output), lambda: _prove(output))

    def _position(self) -> list[str]:
        """Return the option that notes the binary log's position, none where the server keeps no log."""
        if self.server.ask("SELECT @@log_bin") != [["1"]]:
            return []
        return ["--master-data=2" if self.server.is_mariadb_program("dump") else "--source-data=2"]

    def _all(self) -> list[Database]:
        rows = self.server.ask(
            "SELECT HEX(SCHEMA_NAME), DEFAULT_CHARACTER_SET_NAME, DEFAULT_COLLATION_NAME "
            "FROM information_schema.SCHEMATA ORDER BY SCHEMA_NAME"
        )
        return [Database(unhex(name), charset, collation) for name, charset, collation in rows]

    def _found(self) -> list[Database]:
        """Return the databases to back up. Raises SourceMissing for a named one that is not there."""
        there = {database.name: database for database in self._all()}
        if not self.databases:
            return [database for name, database in there.items() if name.lower() not in SYSTEM]
        if missing := [name for name in self.databases if name not in there]:
            raise SourceMissing(
                f"the database {missing[0]!r} is not on {self.server.address}, or the account "
                f"{self.server.user!r} has no right to see it"
            )
        return [there[name] for name in dict.fromkeys(self.databases)]

    def _notes(self, names: list[str]) -> dict[str, str]:
        """Return for each database with tables that know no transactions what that means."""
        rows = self.server.ask(
            "SELECT HEX(TABLE_SCHEMA), COUNT(*), GROUP_CONCAT(DISTINCT ENGINE) FROM information_schema.TABLES "
            "WHERE TABLE_TYPE = 'BASE TABLE' AND ENGINE NOT IN ('InnoDB', 'RocksDB', 'TokuDB', 'BLACKHOLE') "
            "GROUP BY TABLE_SCHEMA"
        )
        return {
            name: f"{count} of the tables of {name!r} ({engines}) know no transactions: each was read at another moment"
            for name, count, engines in ((unhex(schema), count, engines) for schema, count, engines in rows)
            if name in names
        }


class MariadbImageSource(BaseSource, frozen=True, tag="mariadb-image", kw_only=True):
    """The whole server as mariabackup copies it while it runs: one stream, `backup.xbstream`.

    Runs where the data folder is, under an account that may read it. MariaDB only.
    """

    server: MariadbServer
    host: str

    def __repr__(self) -> str:
        return f"MariadbImageSource({self.server.address!r})"

    def identity(self) -> Identity:
        """Return the server."""
        return Identity("mariadb", self.host, [self.server.address])

    def options(self) -> dict[str, list[str]]:
        return {"mode": ["physical"]}

    def check(self) -> None:
        """Raise what keeps mariabackup from working: SourceError, SourceDenied, ExtraMissing, SourceUnavailable."""
        self.server.program("backup")
        self.server.check()
        [[version, folder]] = self.server.ask("SELECT VERSION(), HEX(@@datadir)")
        if "mariadb" not in version.lower():
            raise SourceError(f"{self.server.address} is MySQL {version}: mariabackup reads MariaDB's files only")
        if not self.server.backup_fits(version):
            raise SourceError(
                f"mariabackup and the server ({version}) are of different series: install the one of the server"
            )
        if not os.access(unhex(folder), os.R_OK | os.X_OK):
            raise SourceDenied(
                f"the data folder {unhex(folder)} of {self.server.address} can't be read on {self.host}: run the "
                "worker on the server's host, under an account that may read it"
            )
        grants = Grants.of(self.server)
        if lacking := [rights[0] for rights in _IMAGE_NEEDED if not grants.has(*rights)]:
            raise SourceDenied(
                f"the account {self.server.user!r} can't make a physical backup: GRANT {', '.join(lacking)} ON *.*"
            )

    def walk(self) -> Iterator[Entry | Problem]:
        yield stream_entry(IMAGE)

    def open(self, entry: Entry) -> StreamReader | Problem:
        """Start mariabackup. Its end is proven by its exit code and the last line of what it says."""
        scratch = tempfile.mkdtemp(prefix="backupsite-mariabackup-")
        try:
            argv = self.server.argv("backup", "--backup", "--stream=xbstream", f"--target-dir={scratch}")
            output = Output(argv, env=self.server.env, idle_s=self.server.idle_s)
        except BaseException:
            shutil.rmtree(scratch, ignore_errors=True)
            raise
        producer = Headed(b"", output, after=lambda: shutil.rmtree(scratch, ignore_errors=True))
        return StreamReader(msgspec.structs.replace(entry), producer, lambda: _prove_image(output))


class Headed:
    """A program's output behind a few bytes of our own (the Producer port). `after` is called once it is closed."""

    def __init__(self, head: bytes, output: Output, *, after: Callable[[], None] | None = None) -> None:
        self._head, self._output, self._after = head, output, after

    def readinto(self, view: memoryview) -> int:
        count = min(len(self._head), len(view))
        view[:count] = self._head[:count]
        self._head = self._head[count:]
        return count or self._output.readinto(view)

    def close(self) -> None:
        try:
            self._output.close()
        finally:
            if self._after is not None:
                self._after()


def _prove(output: Output) -> None:
    try:
        output.prove()
    except SourceIncomplete as error:
        raise told(error) from error
    if not output.tail.rstrip().endswith(_MARKER):
        raise SourceIncomplete(f"{output.name} ended without {_MARKER.decode()!r} at the end of the dump")


def _prove_image(output: Output) -> None:
    try:
        output.prove()
    except SourceIncomplete as error:
        raise told(error) from error
    said = quoted(output.errors)
    if not said.endswith(_IMAGE_MARKER):
        raise SourceIncomplete(f"{output.name} did not end with {_IMAGE_MARKER!r}: {said}")
