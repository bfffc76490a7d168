"""A PostgreSQL server as a target of dumps: roles first, then each database into a fresh one."""

import re
from collections.abc import Callable
from functools import cached_property

from engine.connections.pgdump import Archive, ArchiveBroken
from engine.connections.pgnames import CLUSTER, database_of
from engine.connections.postgres import Client, identifier, literal, target_error
from engine.connections.process import IDLE_S, Input
from engine.entries import Entry, Kind, Problem
from engine.errors import (
    ExtraMissing,
    SourceError,
    TargetDenied,
    TargetError,
    TargetFailed,
    TargetNotEmpty,
    TargetUnavailable,
)
from engine.targets.port import BaseTarget, Writer

_SHOWN = 5
_ERROR = re.compile(rb"(?:ERROR|FATAL|error):  ?(.*)")
_TOLERATED = re.compile(rb"already exists$|^invalid command \\(?:un)?restrict")
_PLAIN_NAME = re.compile(r"[a-z_][a-z0-9_]*")
_ANYTHING = """
SELECT to_json(EXISTS (SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
  WHERE n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
  AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = c.oid AND d.deptype = 'e')))
"""
_WORKS = """
SELECT to_json(EXISTS (SELECT FROM pg_stat_activity WHERE application_name = 'backupsite' AND usename = current_user
  AND state = 'active' AND wait_event_type IS DISTINCT FROM 'Lock' AND pid <> pg_backend_pid()))
"""
_THERE = "SELECT to_json(EXISTS (SELECT FROM pg_database WHERE datname = {name}))"


class PostgresTarget(BaseTarget, frozen=True, tag="postgres", kw_only=True, dict=True):
    """A server that takes what a logical backup holds: `cluster.sql`, then the databases, one after the other.

    A database is made anew, under its name with `suffix` behind it; an empty one of that name is used as it is. One
    that holds tables is refused, or with `overwrite` emptied of what the dump holds before it is filled. Roles that
    exist stay as they are; the account that restores keeps its own password and rights. Without `owners` everything
    belongs to that account and no rights are granted. A crash leaves a half-filled database, which has to be dropped.
    """

    server: str = "localhost"
    port: int = 5432
    user: str = "postgres"
    password: str = ""
    database: str = "postgres"
    suffix: str = ""
    overwrite: bool = False
    owners: bool = True
    sslmode: str = "prefer"
    sslrootcert: str = ""
    programs: str = ""
    idle_s: float = IDLE_S

    def __repr__(self) -> str:
        return f"PostgresTarget({self.server!r}:{self.port})"

    @cached_property
    def _client(self) -> Client:
        return Client(
            server=self.server,
            port=self.port,
            user=self.user,
            password=self.password,
            database=self.database,
            sslmode=self.sslmode,
            sslrootcert=self.sslrootcert,
            programs=self.programs,
            idle_s=self.idle_s,
        )

    @property
    def one_by_one(self) -> bool:
        """Say yes: databases rely on the roles before them."""
        return True

    def chain(self, path: bytes) -> bytes:
        """Return the path: a database that fails leaves the others alone."""
        return path

    def where(self) -> str:
        return f"PostgreSQL at {self.server}:{self.port}"

    def check(self) -> None:
        """Raise ExtraMissing, TargetDenied, TargetUnavailable, or TargetFailed for another refusal."""
        self._client.program("pg_restore")
        self._ask("SELECT to_json(1)")

    def existing(self, path: bytes) -> int | None:
        """Raise TargetNotEmpty for a database that must not be touched; say that nothing stands in the way else."""
        name = database_of(path)
        if name is not None and not self.overwrite and self._is_there(name) and self._holds_tables(name):
            raise TargetNotEmpty(
                f"the database {name + self.suffix!r} at {self.server}:{self.port} holds tables: give a suffix for the "
                "names of restored databases, restore only the others (--include), drop it, or ask for overwriting"
            )
        return None

    def create(self, entry: Entry) -> Writer:
        """Start psql or pg_restore. Raises TargetFailed for a path that is no part of a logical backup."""
        if entry.path == CLUSTER:
            argv = [self._client.program("psql"), "-Xqw", "-v", "ON_ERROR_STOP=0", "-f", "-"]
            return ClusterWriter(Input(argv, env=self._client.env(), idle_s=self.idle_s), self.user)
        name = database_of(entry.path)
        if name is None or entry.kind != Kind.FILE:
            raise TargetFailed(
                f"{entry.path.decode('utf-8', 'replace')!r} is no part of a logical backup of PostgreSQL: restore it "
                "into a folder"
            )
        self.existing(entry.path)
        is_there = self._is_there(name)
        return DumpWriter(
            entry.path, lambda archive: self._restore(name, archive, is_there=is_there), works=self._works
        )

    def _restore(self, name: str, archive: Archive, *, is_there: bool) -> Input:
        """Make the database as the archive's table of contents says and start to fill it."""
        into = name + self.suffix
        argv = [self._client.program("pg_restore"), "-w", "-Fc"]
        if not self.owners:
            argv += ["--no-owner", "--no-privileges"]
        if is_there and self.overwrite:
            argv += ["--clean", "--if-exists"]
        if not is_there and not self.suffix:
            return self._input([*argv, "--create", "-d", self.database])
        if not is_there:
            self._make(into, archive)
        # A name is a connection string when it looks like one: as the value in one it is always a name.
        quoted = into.replace("\\", "\\\\").replace("'", "\\'")
        return self._input([*argv, "-d", f"dbname='{quoted}'"])

    def _make(self, into: str, archive: Archive) -> None:
        """Make a database as the dumped one was made, under another name."""
        for named in (archive.database, identifier(archive.database)):
            begin = f"CREATE DATABASE {named} "
            if archive.create.startswith(begin):
                how = archive.create.removeprefix(begin).rstrip().removesuffix(";")
                self._ask(f"CREATE DATABASE {identifier(into)} {how}")
                return
        raise TargetFailed(
            f"the dump does not tell how its database is made: make an empty database {into!r} and restore again"
        )

    def _input(self, argv: list[str]) -> Input:
        return Input(argv, env=self._client.env(), idle_s=self.idle_s)

    def _is_there(self, name: str) -> bool:
        return bool(self._ask(_THERE.format(name=literal(name + self.suffix))))

    def _works(self) -> bool:
        return bool(self._ask(_WORKS))

    def _holds_tables(self, name: str) -> bool:
        return bool(self._ask(_ANYTHING, database=name + self.suffix))

    def _ask(self, sql: str, *, database: str = "") -> object:
        try:
            return self._client.ask(sql, database=database)
        except SourceError as error:
            raise _translated(error) from error


def _translated(error: SourceError) -> SourceError | TargetError:
    """Return what the failure of a question means for a restore; a missing program stays one."""
    return error if isinstance(error, ExtraMissing) else target_error(error)


class ClusterWriter:
    """Runs `cluster.sql` (the Writer port), less what would change the account that restores."""

    def __init__(self, psql: Input, user: str) -> None:
        self._psql = psql
        names = [identifier(user)] + ([user] if _PLAIN_NAME.fullmatch(user) else [])
        self._left_out = tuple(f"{verb} ROLE {name}".encode() for name in names for verb in ("CREATE", "ALTER"))
        self._line = b""

    def write(self, data: memoryview, offset: int) -> None:
        *lines, self._line = (self._line + bytes(data)).split(b"\n")
        self._send(lines)

    def _send(self, lines: list[bytes]) -> None:
        kept = (line for line in lines if not line.startswith(tuple(one + b" WITH " for one in self._left_out)))
        try:
            self._psql.write(b"".join(line + b"\n" for line in kept))
        except TargetFailed as error:
            raise target_error(error) from error

    def commit(self) -> list[Problem]:
        """Report what the server refused; what exists already is left as it is."""
        try:
            self._send([self._line])
            self._psql.prove()
            self._psql.errors.seek(0)
            said = [found[1].strip() for line in self._psql.errors if (found := _ERROR.search(line))]
            wrong = [line.decode("utf-8", "replace") for line in said if not _TOLERATED.search(line)]
        except TargetFailed as error:
            raise target_error(error) from error
        finally:
            self._psql.close()
        if not wrong:
            return []
        more = f" (and {len(wrong) - _SHOWN} more)" if len(wrong) > _SHOWN else ""
        return [
            Problem(
                *(CLUSTER, "write-failed"),
                f"{'; '.join(wrong[:_SHOWN])}{more}. What relies on it may have failed as well: mend it in the server "
                f"and restore again, without {CLUSTER.decode()} (--exclude) when all roles are there",
            )
        ]

    def abort(self) -> None:
        self._psql.close()


class DumpWriter:
    """Fills one database (the Writer port). `start` is called once the archive's table of contents is known; `works`
    says whether the server is busy with it.

    What pg_restore refuses is this database's problem alone; a server that is gone ends the restore.
    """

    def __init__(self, path: bytes, start: Callable[[Archive], Input], *, works: Callable[[], bool]) -> None:
        self._path, self._start, self._works = path, start, works
        self._wrong = ""
        self._archive: Archive | None = Archive()
        self._held: list[bytes] = []
        self._restore: Input | None = None

    def write(self, data: memoryview, offset: int) -> None:
        if self._wrong:
            return
        try:
            if self._archive is not None:
                self._archive.feed(data)
                self._held.append(bytes(data))
                if self._archive.begun:
                    self._begin(self._archive)
            elif self._restore is not None:
                self._restore.write(data)
        except ArchiveBroken as error:
            self._wrong = f"this is no dump: {error}"
        except TargetFailed as error:
            self._fail(error)

    def _begin(self, archive: Archive) -> None:
        self._restore = self._start(archive)
        self._archive = None
        for part in self._held:
            self._restore.write(part)
        self._held.clear()

    def commit(self) -> list[Problem]:
        """Wait for pg_restore's end, and report what it refused."""
        try:
            if self._restore is not None and not self._wrong:
                self._await_end(self._restore)
        except TargetFailed as error:
            self._fail(error)
        finally:
            self.abort()
        if self._restore is None and not self._wrong:
            self._wrong = "this is no dump: it ends before its table of contents does"
        return [Problem(self._path, "write-failed", self._wrong)] if self._wrong else []

    def _await_end(self, restore: Input) -> None:
        """Wait as long as the server works: after the last row come the indexes, which take their time."""
        while True:
            try:
                return restore.prove()
            except TargetUnavailable:
                if not self._works():
                    raise

    def _fail(self, error: TargetFailed) -> None:
        means = target_error(error)
        if not isinstance(means, TargetFailed | TargetDenied):
            raise means from error
        self._wrong = str(error)

    def abort(self) -> None:
        if self._restore is not None:
            self._restore.close()
