"""A PostgreSQL server, reached by its own client programs.

The programs get address and password through their environment (PGHOST, PGPASSWORD, ...), never through their command
lines, and never ask a person for anything.
"""

import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from engine.connections.process import IDLE_S, Output, quoted
from engine.errors import (
    ExtraMissing,
    SourceDenied,
    SourceError,
    SourceIncomplete,
    SourceMissing,
    SourceUnavailable,
    TargetDenied,
    TargetError,
    TargetFailed,
    TargetUnavailable,
)

OLDEST = 13  # the first with backup manifests, and the oldest that its makers kept up lately
_CONNECT_S = 20
_VERSION = re.compile(rb"\) (\d+)")
_INSTALLED = Path("/usr/lib/postgresql")  # where Debian keeps the programs of each version

_DENIED = re.compile(
    r"authentication failed|no password supplied|no pg_hba\.conf entry|permission denied|must be (?:superuser|owner|"
    r"replication)|role \S+ does not exist|is not permitted to log in|must have .*privilege|authentication method"
)
_MISSING = re.compile(r"database \S+ does not exist|could not translate host name|No such file or directory")
_AWAY = re.compile(
    r"Connection refused|timeout expired|server closed the connection|is starting up|is shutting down|"
    r"terminating connection|connection not open|Connection reset|could not receive data|too many clients|"
    r"no connection to the server|Network is unreachable|No route to host|SSL SYSCALL|is active for PID|"
    r"lost connection|remaining connection slots"
)


@dataclass(frozen=True)
class Client:
    """How to reach one server. `server` is a host name, an address, or the folder of its Unix socket.

    `database` is where questions are asked that concern no database; `programs` the folder of the client programs,
    empty for those on PATH or, failing that, the newest that are installed.
    """

    server: str
    port: int
    user: str
    password: str = field(repr=False)
    database: str = "postgres"
    sslmode: str = "prefer"
    sslrootcert: str = ""
    programs: str = ""
    idle_s: float = IDLE_S

    def program(self, name: str) -> str:
        """Return the path of a PostgreSQL program. Raises ExtraMissing."""
        if self.programs:
            found = shutil.which(name, path=self.programs)
        else:
            found = shutil.which(name) or shutil.which(name, path=os.pathsep.join(_installed()))
        if found is None:
            where = f"in {self.programs!r}" if self.programs else "on this host"
            raise ExtraMissing(
                f"the program {name!r} is not there {where}: install PostgreSQL's programs (Debian: postgresql-client; "
                "pg_verifybackup comes with the server's package), or name their folder"
            )
        return found

    def env(self, database: str = "") -> dict[str, str]:
        """Return the environment in which the programs reach the server, and `database` in it."""
        env = {
            "PGHOST": self.server,
            "PGPORT": str(self.port),
            "PGUSER": self.user,
            "PGDATABASE": database or self.database,
            "PGSSLMODE": self.sslmode,
            "PGCONNECT_TIMEOUT": str(_CONNECT_S),
            "PGAPPNAME": "backupsite",
            "LC_ALL": "C",  # the texts of errors are read below
        }
        if self.password:
            env["PGPASSWORD"] = self.password
        if self.sslrootcert:
            env["PGSSLROOTCERT"] = self.sslrootcert
        return env

    def ask(self, sql: str, *, database: str = "") -> Any:
        """Return the JSON value that a statement of one row and column answers, None for no row. Raises SourceError."""
        argv = [self.program("psql"), "-XAtqw", "-v", "ON_ERROR_STOP=1", "-c", sql]
        answer = self._output(argv, self.env(database) | {"PGCLIENTENCODING": "UTF8"})
        return msgspec.json.decode(answer) if answer.strip() else None

    def system(self) -> str:
        """Return the server's system identifier, asked as replication asks. Raises SourceError."""
        argv = [self.program("psql"), "-XAtqw", "-d", "replication=true", "-c", "IDENTIFY_SYSTEM"]
        return self._output(argv, self.env()).decode().partition("|")[0]

    def version(self, name: str) -> int:
        """Return the major version of one of the programs."""
        found = _VERSION.search(self._output([self.program(name), "--version"], self.env()))
        if found is None:
            raise ExtraMissing(f"{name} does not tell its version: name the folder of PostgreSQL's programs")
        return int(found[1])

    def _output(self, argv: Sequence[str], env: dict[str, str]) -> bytes:
        output = Output(argv, env=env, idle_s=min(self.idle_s, IDLE_S))
        try:
            answer = bytearray()
            view = memoryview(bytearray(1 << 16))
            while count := output.readinto(view):
                answer += view[:count]
            if output.code():
                raise source_error(output.name, quoted(output.errors))
            return bytes(answer)
        finally:
            output.close()


def _installed() -> list[str]:
    """Return the folders of installed versions, the newest first."""
    found = [path for path in _INSTALLED.glob("*/bin") if path.parent.name.isdigit()]
    return [str(path) for path in sorted(found, key=lambda path: int(path.parent.name), reverse=True)]


def literal(text: str) -> str:
    """Return a text as SQL writes it."""
    return "'" + text.replace("'", "''") + "'"


def identifier(name: str) -> str:
    """Return a name as SQL writes it, in quotes."""
    return '"' + name.replace('"', '""') + '"'


def source_error(program: str, said: str) -> SourceError:
    """Return what the words of a program that failed mean for a backup."""
    text = f"{program} says: {said or 'nothing, and failed'}"
    if _DENIED.search(said):
        return SourceDenied(text)
    if _AWAY.search(said):
        return SourceUnavailable(text)
    return SourceMissing(text) if _MISSING.search(said) else SourceIncomplete(text)


def target_error(error: SourceError | TargetFailed) -> TargetError:
    """Return what a failure means for a restore."""
    if isinstance(error, SourceDenied) or _DENIED.search(str(error)):
        return TargetDenied(error.args[0])
    if isinstance(error, SourceUnavailable) or _AWAY.search(str(error)):
        return TargetUnavailable(error.args[0])
    return TargetFailed(error.args[0])
