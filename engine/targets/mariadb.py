"""A MariaDB or MySQL server as a target: dumps are loaded by its client program."""

import re

from engine.connections.mariadb import LOADING, SYSTEM, MariadbServer, for_target, quoted_name, told, unhex
from engine.connections.mariadb_points import NAMES_XATTR, TOGETHER, USERS, database_of, decoded
from engine.connections.process import Input
from engine.entries import Entry, Problem
from engine.errors import EngineError, SourceError, SourceIncomplete, TargetError, TargetFailed, TargetNotEmpty
from engine.targets.port import BaseTarget

_ACCOUNT = re.compile(rb"^CREATE USER .*?(`(?:[^`]|``)*`@`(?:[^`]|``)*`)", re.MULTILINE)
_LINE_BYTES = 1 << 16
_OF_THE_SYSTEM = ("mariadb.sys", "mysql.sys", "mysql.session", "mysql.infoschema")
_SHOWN = 5
_SAID_BYTES = 1 << 20


class MariadbTarget(BaseTarget, frozen=True, tag="mariadb", kw_only=True):
    """Loads dumps into databases of their names, with `suffix` behind them; accounts from `users.sql`.

    A database that holds something already is refused before anything is written, or with `overwrite` dropped first.
    """

    server: MariadbServer
    suffix: str = ""
    overwrite: bool = False

    def __repr__(self) -> str:
        return f"MariadbTarget({self.server.address!r})"

    @property
    def one_by_one(self) -> bool:
        """Say yes: a server loads its dumps one after the other, and the accounts last."""
        return True

    def chain(self, path: bytes) -> bytes:
        """Return the path: no dump relies on another one that could be damaged."""
        return path

    def where(self) -> str:
        return f"the server {self.server.address}" + (f", databases with {self.suffix!r}" if self.suffix else "")

    def check(self) -> None:
        """Raise TargetDenied, TargetUnavailable, TargetFailed, ExtraMissing."""
        try:
            self.server.check()
        except SourceError as error:
            raise for_target(error) from error

    def ask(self, sql: str) -> list[list[str]]:
        """Ask the server, with the errors of a target."""
        try:
            return self.server.ask(sql)
        except SourceError as error:
            raise for_target(error) from error

    def existing(self, path: bytes) -> int | None:
        """Return None. Raises TargetNotEmpty, and TargetError for a file that this target can't load."""
        database = database_of(path)
        if database is not None:
            self._refuse_standing(database + self.suffix)
        elif path == TOGETHER and self.suffix:
            raise TargetError(f"{TOGETHER.decode()} names its databases itself: it can't be restored under other names")
        elif path not in (TOGETHER, USERS):
            raise TargetError(
                f"{path.decode('utf-8', 'replace')} is no dump of a database: restore this point into a folder, or "
                "with the settings of the mode that made it"
            )
        return None

    def create(self, entry: Entry) -> "MariadbWriter":
        """Make the database and start the client in it."""
        database = database_of(entry.path)
        if database is not None:
            name = database + self.suffix
            self._clear([name])
            self.ask(f"CREATE DATABASE IF NOT EXISTS {quoted_name(name)}")
            return MariadbWriter(entry, self.server, f"--database={name}")
        if entry.path == TOGETHER:
            names = decoded(entry.xattrs.get(NAMES_XATTR, b""))
            if not names:
                raise TargetFailed(f"the point does not tell which databases {TOGETHER.decode()} holds")
            for name in names:
                self._refuse_standing(name)
            self._clear(names)
            return MariadbWriter(entry, self.server)
        there = self.ask("SELECT HEX(User), HEX(Host) FROM mysql.user")
        pairs = [(unhex(user), unhex(host)) for user, host in there]
        accounts = {f"{quoted_name(user)}@{quoted_name(host)}" for user, host in pairs if user not in _OF_THE_SYSTEM}
        # One grant that this account may not give must not keep all others away.
        return MariadbWriter(entry, self.server, "--force", accounts=accounts)

    def _refuse_standing(self, database: str) -> None:
        """Raise TargetNotEmpty when the database holds anything and may not be replaced."""
        literal = f"X'{database.encode().hex()}'"
        kinds = {"TABLES": "TABLE_SCHEMA", "ROUTINES": "ROUTINE_SCHEMA", "EVENTS": "EVENT_SCHEMA"}
        counts = " + ".join(
            f"(SELECT COUNT(*) FROM information_schema.{kind} WHERE {column} = CONVERT({literal} USING utf8))"  # noqa: S608  # in hex
            for kind, column in kinds.items()
        )
        if not self.overwrite and self.ask(f"SELECT {counts}") != [["0"]]:
            raise TargetNotEmpty(
                f"the database {database!r} on {self.server.address} holds something already: drop it, restore under "
                "another name (suffix), or ask for it to be replaced (overwrite)"
            )

    def _clear(self, databases: list[str]) -> None:
        if self.overwrite:
            for database in databases:
                if database.lower() in SYSTEM:
                    raise TargetError(f"{database!r} is a database of the system: it is never dropped")
                self.ask(f"DROP DATABASE IF EXISTS {quoted_name(database)}")


class MariadbWriter:
    """One dump on its way into the client (the Writer port). `accounts` are those that the server had before."""

    def __init__(self, entry: Entry, server: MariadbServer, *options: str, accounts: set[str] | None = None) -> None:
        self._entry, self._server = entry, server
        self._accounts = accounts or set()
        self._met: list[str] = []
        self._rest = b""
        self._program = Input(
            server.argv("client", *LOADING, "--default-character-set=utf8mb4", *options),
            env=server.env,
            idle_s=server.idle_s,
        )

    def write(self, data: memoryview, offset: int) -> None:
        if self._accounts:
            self._look(bytes(data))
        try:
            self._program.write(data)
        except TargetFailed as error:
            raise _translated(error) from error

    def commit(self) -> list[Problem]:
        """Wait until all is loaded. Raises TargetFailed with what the server said."""
        try:
            self._program.prove()
            problems = self._refused()
        except TargetFailed as error:
            raise _translated(error) from error
        finally:
            self._program.close()
        return problems + self._replaced()

    def abort(self) -> None:
        """End the client before it has all."""
        self._program.close()

    def _refused(self) -> list[Problem]:
        """Return what the client went on after: it does so for accounts only."""
        self._program.errors.seek(0)
        lines = self._program.errors.read(_SAID_BYTES).decode("utf-8", "replace").splitlines()
        refused = [line for line in lines if line.startswith("ERROR ")]
        if not refused:
            return []
        shown = "; ".join(refused[:_SHOWN]) + (" …" if len(refused) > _SHOWN else "")
        return [Problem(self._entry.path, "write-failed", f"{len(refused)} statements were refused: {shown}")]

    def _replaced(self) -> list[Problem]:
        """Return what is to be told of accounts that were there before."""
        if not self._met:
            return []
        shown = ", ".join(self._met[:_SHOWN]) + (" …" if len(self._met) > _SHOWN else "")
        text = f"{len(self._met)} accounts were there already; they got the rights and passwords of the point: {shown}"
        return [Problem(self._entry.path, "exists", text, lost=False)]

    def _look(self, data: bytes) -> None:
        """Note the accounts that are made though they are there."""
        whole, _, self._rest = (self._rest + data).rpartition(b"\n")
        self._rest = self._rest[-_LINE_BYTES:]
        names = (found.decode("utf-8", "replace") for found in _ACCOUNT.findall(whole))
        self._met += [name for name in names if name in self._accounts]


def _translated(error: EngineError) -> EngineError:
    """Return what the client's failure means."""
    return for_target(told(SourceIncomplete(str(error.args[0]))))
