"""MariaDB servers of a test's own, filled and compared through pymysql: not through what the engine uses."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pymysql

from engine.connections.mariadb import MariadbServer
from tests.services import Mariadb

SMALL = ("--innodb-log-file-size=16M", "--innodb-buffer-pool-size=64M")
START_S = 40


class OwnServer:
    """A server that a test may kill: its data folder, the process, and an account that may do everything.

    With `data` it runs on files that are there already.
    """

    def __init__(self, folder: Path, *, data: Path | None = None, options: dict[str, str] | None = None) -> None:
        self.folder, self.user, self.password = folder, "own", "its-password"
        self.data = data or folder / "data"
        self.log = folder / "log"
        self._options = options or {}
        self._process: subprocess.Popen[bytes] | None = None
        with socket.socket() as one:
            one.bind(("127.0.0.1", 0))
            self.port = one.getsockname()[1]
        folder.mkdir(parents=True, exist_ok=True)
        if data is None:
            self._install()
        self.start()

    @property
    def server(self) -> MariadbServer:
        return MariadbServer(port=self.port, user=self.user, password=self.password, idle_s=60)

    def start(self) -> None:
        """Start it and wait until it answers."""
        options = {
            "datadir": str(self.data), "port": str(self.port), "bind-address": "127.0.0.1", "socket": "own.sock",
            "pid-file": str(self.folder / "pid"), "log-bin": "own-log", "server-id": "7",
            "innodb-flush-log-at-trx-commit": "0", "init-file": str(self.folder / "begin.sql"), **self._options,
        }  # fmt: skip
        begin = [
            "DELETE FROM mysql.global_priv WHERE User IN ('', 'root');",
            "DELETE FROM mysql.proxies_priv;",
            "FLUSH PRIVILEGES;",
            f"CREATE USER IF NOT EXISTS {self.user}@'%' IDENTIFIED BY '{self.password}';",
            f"GRANT ALL ON *.* TO {self.user}@'%' WITH GRANT OPTION;",
        ]
        (self.folder / "begin.sql").write_text("SET sql_log_bin = 0;\n" + "\n".join(begin) + "\n")
        command = ["mariadbd", "--no-defaults", *_account(), "--skip-name-resolve", *SMALL]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*command, *(f"--{name}={value}" for name, value in options.items())],
                stdout=log, stderr=log, env=_env(),
            )  # fmt: skip
        deadline = time.monotonic() + START_S
        while True:
            with contextlib.suppress(pymysql.err.OperationalError):
                self.sql("SELECT 1")
                return
            assert self._process.poll() is None, self.log.read_text(errors="replace")[-2000:]
            assert time.monotonic() < deadline, self.log.read_text(errors="replace")[-2000:]
            time.sleep(0.05)

    def end(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End it, or kill it."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(30)
            self._process = None

    def sql(self, *statements: str, database: str | None = None) -> list[tuple[Any, ...]]:
        """Run statements; return the rows of the last."""
        with connected(self.server, database) as connection:
            return _run(connection, *statements)

    def current_log(self) -> str:
        """Return the name of the binary log that is written now."""
        return str(self.sql("SHOW MASTER STATUS")[0][0])

    def purge(self, log: str) -> None:
        """Remove the binary logs before this one; who has just read one of them may hold it for a moment."""
        deadline = time.monotonic() + START_S
        while self.sql("SHOW BINARY LOGS")[0][0] != log:
            assert time.monotonic() < deadline
            self.sql(f"PURGE BINARY LOGS TO '{log}'")

    def _install(self) -> None:
        command = ["mariadb-install-db", "--no-defaults", f"--datadir={self.data}", *SMALL, *_account()]
        more = ["--auth-root-authentication-method=normal", "--skip-test-db", "--skip-name-resolve"]
        done = subprocess.run([*command, *more], capture_output=True, text=True, check=False, env=_env())
        assert done.returncode == 0, done.stderr + done.stdout


def is_installed() -> bool:
    """Say whether the server's programs are there."""
    return shutil.which("mariadbd", path=_env()["PATH"]) is not None


def reached(service: Mariadb) -> MariadbServer:
    """Return how the engine reaches the shared server."""
    return MariadbServer(host=service.host, port=service.port, user=service.user, password=service.password, idle_s=60)


@contextlib.contextmanager
def connected(server: MariadbServer, database: str | None = None) -> Iterator["pymysql.Connection[Any]"]:
    connection = pymysql.connect(
        host=server.host, port=server.port, user=server.user, password=server.password, database=database,
        charset="utf8mb4", autocommit=True, connect_timeout=5, read_timeout=60,
    )  # fmt: skip
    try:
        yield connection
    finally:
        connection.close()


def contents(server: MariadbServer, database: str) -> dict[str, Any]:
    """Return all there is in a database: rows, and the definitions of everything in it, by name."""
    with connected(server, database) as connection:
        found: dict[str, Any] = {"database": _run(connection, f"SHOW CREATE DATABASE `{database}`")[0][1:]}
        for (name,) in _run(connection, "SHOW TABLES"):
            found[f"definition of {name}"] = _run(connection, f"SHOW CREATE TABLE `{name}`")[0][1:]
            found[f"rows of {name}"] = sorted(_run(connection, f"SELECT * FROM `{name}`"), key=repr)
        named = {
            "TRIGGER": f"SELECT TRIGGER_NAME FROM information_schema.TRIGGERS WHERE TRIGGER_SCHEMA = '{database}'",
            "EVENT": f"SELECT EVENT_NAME FROM information_schema.EVENTS WHERE EVENT_SCHEMA = '{database}'",
            "PROCEDURE": "SELECT ROUTINE_NAME FROM information_schema.ROUTINES WHERE ROUTINE_TYPE = 'PROCEDURE' "
            f"AND ROUTINE_SCHEMA = '{database}'",
            "FUNCTION": "SELECT ROUTINE_NAME FROM information_schema.ROUTINES WHERE ROUTINE_TYPE = 'FUNCTION' "
            f"AND ROUTINE_SCHEMA = '{database}'",
        }
        for kind, query in named.items():
            for (name,) in _run(connection, query):
                row = _run(connection, f"SHOW CREATE {kind} `{name}`")[0]
                found[f"{kind} {name}"] = [value for value in row if isinstance(value, str)]
    return found


def fill(server: MariadbServer, database: str, *, rows: int = 50) -> None:
    """Make a database with one of everything: blobs, four-byte letters, a trigger, a view, routines, an event."""
    with connected(server) as connection:
        _run(
            connection,
            f"CREATE DATABASE `{database}` CHARACTER SET utf8mb4 COLLATE utf8mb4_bin",
            f"USE `{database}`",
            "CREATE TABLE goods (id INT PRIMARY KEY AUTO_INCREMENT, name VARCHAR(90), picture LONGBLOB, "
            "price DECIMAL(12,4), made DATETIME(6) NULL, KEY (name)) ENGINE=InnoDB",
            "CREATE TABLE sold (id INT PRIMARY KEY AUTO_INCREMENT, good INT, at TIMESTAMP DEFAULT NOW(), "
            "FOREIGN KEY (good) REFERENCES goods (id)) ENGINE=InnoDB",
            "INSERT INTO goods (name, picture, price, made) VALUES ('Käse 🧀', X'00FF0A0D5C2700', 12.3456, "
            "'2031-05-06 07:08:09.123456'), ('''; DROP TABLE goods; --', NULL, NULL, NULL), "
            "('\\r\\n\\t\\0', '', 0, NULL)",
            f"INSERT INTO goods (name, picture) SELECT CONCAT('good ', seq), RANDOM_BYTES(1000) FROM seq_1_to_{rows}",
            "INSERT INTO sold (good) SELECT id FROM goods LIMIT 20",
            "CREATE VIEW dear AS SELECT name, price FROM goods WHERE price > 10",
            "CREATE TRIGGER upper_name BEFORE INSERT ON goods FOR EACH ROW SET NEW.name = TRIM(NEW.name)",
            "CREATE PROCEDURE clear_out() BEGIN DELETE FROM sold; DELETE FROM goods; END",
            "CREATE FUNCTION twice(a INT) RETURNS INT DETERMINISTIC RETURN a * 2",
            "CREATE EVENT tidy ON SCHEDULE EVERY 1 DAY DISABLE DO DELETE FROM sold WHERE id < 0",
        )


def _run(connection: "pymysql.Connection[Any]", *statements: str) -> list[tuple[Any, ...]]:
    rows: list[tuple[Any, ...]] = []
    with connection.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)
            rows = list(cursor.fetchall())
    return rows


def _account() -> list[str]:
    return ["--user=root"] if os.geteuid() == 0 else []


def _env() -> dict[str, str]:
    return {**os.environ, "PATH": f"{os.environ.get('PATH', '')}:/usr/sbin"}
