"""How to reach a MariaDB or MySQL server: through its own client programs, which know every way to log in.

No option file is read. The password goes into the programs' environment (MYSQL_PWD): it stands in no command line, and
nothing of it is left on a disk when a worker is killed.
"""

import re
import shutil
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Literal

import msgspec

from engine.connections.process import IDLE_S, Output
from engine.errors import (
    EngineError,
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

CONNECT_S = 10
SYSTEM = ("information_schema", "mysql", "performance_schema", "sys")
_READ_BYTES = 1 << 16
# Older packages, and MySQL's, have only the second names.
_NAMES = {
    "client": ("mariadb", "mysql"),
    "dump": ("mariadb-dump", "mysqldump"),
    "binlog": ("mariadb-binlog", "mysqlbinlog"),
    "backup": ("mariadb-backup", "mariabackup"),
    "unpack": ("mbstream",),
}
# For statements from a file: nothing in them is a command to the client itself, \r\n and zeros stay what they are, and
# no error quotes a statement, which may hold secrets.
LOADING = ("--batch", "--binary-mode", "--max-allowed-packet=1G", "--loose-skip-print-query-on-error")
_PACKAGES = {"backup": "mariadb-backup", "unpack": "mariadb-backup"}
_CODE = re.compile(r"error:? (\d{4})\b|\((\d{4})\)$", re.IGNORECASE)
_DENIED = {1044, 1045, 1130, 1142, 1143, 1227, 1370, 1419, 1698, 1820, 1862, 3118, 4151}
_AWAY = {1040, 1053, 1129, 1203, 1317, 1927, 2002, 2003, 2005, 2006, 2013}
_DENIED_TEXT = ("access denied", "access is denied")
_AWAY_TEXT = ("can't connect to", "lost connection", "server has gone away", "unknown server host")
_UNKNOWN_DATABASE = 1049

Tls = Literal["", "off", "require", "verify"]


class MariadbServer(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """One server and an account on it. `socket` wins over host and port.

    `tls`: empty leaves it to the programs, `require` encrypts, `verify` also checks the server's certificate and name.
    MariaDB's programs fall back to plain text under `require`, so call `check`, which refuses a server without TLS.
    `programs` is the folder of the client programs, empty for those on PATH.
    """

    host: str = "127.0.0.1"
    port: int = 3306
    socket: str = ""
    user: str = ""
    password: str = ""
    tls: Tls = ""
    tls_ca: str = ""
    tls_cert: str = ""
    tls_key: str = ""
    programs: str = ""
    idle_s: float = IDLE_S
    connect_s: int = CONNECT_S

    def __repr__(self) -> str:
        return f"MariadbServer({self.address!r})"

    @property
    def address(self) -> str:
        """Return where the server is, for people."""
        return self.socket or f"{self.host}:{self.port}"

    @property
    def env(self) -> dict[str, str]:
        """Return what the programs find in their environment: the secret."""
        return {"MYSQL_PWD": self.password} if self.password else {}

    def program(self, role: str) -> str:
        """Return a program's path. Raises ExtraMissing."""
        for name in _NAMES[role]:
            if found := shutil.which(name, path=self.programs or None):
                return found
        where = f"in {self.programs}" if self.programs else "on PATH"
        package = _PACKAGES.get(role, "mariadb-client")
        raise ExtraMissing(
            f"the program {_NAMES[role][0]} is not there {where}: install it on this host (Debian: {package}), "
            "or give the folder of the programs"
        )

    def argv(self, role: str, *options: str) -> list[str]:
        """Return a command line that reaches the server. Raises ExtraMissing."""
        address = [f"--socket={self.socket}"] if self.socket else [f"--host={self.host}", f"--port={self.port}"]
        if not self.socket and role != "backup":
            address.append("--protocol=tcp")
        user = [f"--user={self.user}"] if self.user else []
        return [self.program(role), "--no-defaults", *address, *user, *self._tls(role), *options]

    def is_mariadb_program(self, role: str) -> bool:
        """Say whether the program is MariaDB's; MySQL's takes other options in places."""
        return "MariaDB" in self._version_of(role)

    def _version_of(self, role: str) -> str:
        known: dict[str, str] = self._versions
        if role not in known:
            known[role] = run([self.program(role), "--version"], idle_s=self.idle_s)
        return known[role]

    @cached_property
    def _versions(self) -> dict[str, str]:
        return {}

    def _tls(self, role: str) -> list[str]:
        files = {"--ssl-ca": self.tls_ca, "--ssl-cert": self.tls_cert, "--ssl-key": self.tls_key}
        options = [f"{name}={path}" for name, path in files.items() if path]
        if not self.tls:
            return options
        if self.is_mariadb_program(role):
            modes = {"off": ["--skip-ssl"], "require": ["--ssl"], "verify": ["--ssl", "--ssl-verify-server-cert"]}
            return [*modes[self.tls], *options]
        mysql = {"off": "DISABLED", "require": "REQUIRED", "verify": "VERIFY_IDENTITY"}
        return [f"--ssl-mode={mysql[self.tls]}", *options]

    def check(self) -> None:
        """Raise SourceDenied, SourceUnavailable, ExtraMissing; SourceError when TLS is wanted and not offered."""
        [[_, *cipher]] = self.ask("SHOW SESSION STATUS LIKE 'Ssl_cipher'")
        if self.tls in ("require", "verify") and not any(cipher):
            raise SourceError(f"the server {self.address} offers no TLS: set it up there, or do without (tls)")

    def ask(self, sql: str) -> list[list[str]]:
        """Return the rows that one statement or several give, as texts; select HEX(...) of what may hold anything.

        Raises SourceDenied, SourceUnavailable, SourceMissing, SourceError.
        """
        options = ("--batch", "--raw", "--skip-column-names", "--default-character-set=utf8mb4")
        argv = self.argv("client", *options, f"--connect-timeout={self.connect_s}", f"--execute={sql}")
        try:
            text = run(argv, env=self.env, idle_s=self.idle_s)
        except SourceIncomplete as error:
            raise told(error, SourceError) from error
        return [line.split("\t") for line in text.split("\n") if line]

    def backup_fits(self, version: str) -> bool:
        """Say whether the program for physical backups is of the server's series, as it has to be."""
        series = re.match(r"\d+\.\d+", version)
        return series is not None and f"MariaDB server {series[0]}." in self._version_of("backup")


def run(argv: Sequence[str], *, env: Mapping[str, str] | None = None, idle_s: float = IDLE_S) -> str:
    """Run a program to its end and return what it wrote. Raises SourceIncomplete when it fails."""
    output = Output(argv, env=env, idle_s=idle_s)
    try:
        parts = []
        view = memoryview(bytearray(_READ_BYTES))
        while count := output.readinto(view):
            parts.append(bytes(view[:count]))
        # mariabackup tells its version on its standard error.
        output.prove()
        output.errors.seek(0)
        return (b"".join(parts) or output.errors.read()).decode("utf-8", "replace")
    finally:
        output.close()


def unhex(text: str) -> str:
    """Return a name that was selected as HEX(name)."""
    return bytes.fromhex(text).decode()


def quoted_name(name: str) -> str:
    """Return a name as it stands in a statement."""
    return "`" + name.replace("`", "``") + "`"


def told(error: SourceIncomplete, otherwise: type[SourceError] = SourceIncomplete) -> SourceError:
    """Return what a program's failure means: the server said no, is not there, has no such database, or `otherwise`."""
    text = str(error.args[0])
    codes = {int(found[1] or found[2]) for found in _CODE.finditer(text)}
    lowered = text.lower()
    if codes & _AWAY or any(sign in lowered for sign in _AWAY_TEXT):
        return SourceUnavailable(text)
    if codes & _DENIED or any(sign in lowered for sign in _DENIED_TEXT):
        return SourceDenied(text)
    if _UNKNOWN_DATABASE in codes:
        return SourceMissing(text)
    return otherwise(text)


def for_target(error: EngineError) -> EngineError:
    """Return a source's error as the one that a target raises."""
    kinds: list[tuple[type[SourceError], type[TargetError]]] = [
        (SourceDenied, TargetDenied),
        (SourceUnavailable, TargetUnavailable),
    ]
    if isinstance(error, ExtraMissing) or not isinstance(error, SourceError):
        return error
    wanted = next((to for source, to in kinds if isinstance(error, source)), TargetFailed)
    return wanted(str(error.args[0]))
