"""PostgreSQL servers of a test's own, filled and compared through psycopg: not through the programs the engine uses."""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from engine.connections.postgres import Client
from engine.sources.postgres import PostgresSource
from engine.targets.postgres import PostgresTarget

PASSWORD = "it's a \\ secret"
START_S = 40
ACCOUNT = "postgres" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name


def program(name: str) -> str:
    """Return the path of a program of the newest version installed, for those that are not on PATH too."""
    return Client("", 0, "", "").program(name)


def run(*argv: str) -> None:
    """Run a program as the account that servers run as."""
    done = subprocess.run(argv, capture_output=True, text=True, cwd="/", check=False, timeout=60, **_account())
    assert done.returncode == 0, done.stderr[-2000:]


def open_folder() -> Path:
    """Return a new folder that servers can write into; the caller removes it."""
    folder = Path(tempfile.mkdtemp(prefix="own-postgres-"))
    if os.geteuid() == 0:
        shutil.chown(folder, ACCOUNT)
    return folder


class OwnServer:
    """A server on loopback that a test may kill; its superuser is `boss`. With `data` it runs on files there are."""

    def __init__(self, folder: Path, *, data: Path | None = None, options: Sequence[str] = ()) -> None:
        self.folder = folder
        self.data = data or folder / f"data-{len(list(folder.iterdir()))}"
        self.log = self.data.with_suffix(".log")
        self._options = options
        with socket.socket() as one:
            one.bind(("127.0.0.1", 0))
            self.port = one.getsockname()[1]
        if data is None:
            self._install()
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        """Start it and wait until it takes writes."""
        settings = {
            "listen_addresses": "127.0.0.1", "port": str(self.port), "unix_socket_directories": str(self.folder),
            "fsync": "off", "shared_buffers": "32MB", "max_wal_senders": "4",
        }  # fmt: skip
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [program("postgres"), "-D", str(self.data), *options, *self._options],
                stdout=log, stderr=log, cwd="/", **_account(),
            )  # fmt: skip
        deadline = time.monotonic() + START_S
        while True:
            try:
                if self.rows("SELECT pg_is_in_recovery()") == [(False,)]:
                    return
            except psycopg.OperationalError:
                pass  # not yet
            assert self.process.poll() is None, self.log.read_text(errors="replace")[-3000:]
            assert time.monotonic() < deadline, self.log.read_text(errors="replace")[-3000:]
            time.sleep(0.05)

    def end(self, how: signal.Signals = signal.SIGINT) -> None:
        """End it: SIGINT at once but tidily, SIGQUIT as in a crash."""
        if self.process is not None:
            self.process.send_signal(how)
            self.process.wait(START_S)
            self.process = None

    def connect(self, database: str = "postgres", *, user: str = "boss", password: str = PASSWORD) -> Any:
        return psycopg.connect(
            host="127.0.0.1", port=self.port, user=user, password=password, dbname=database, autocommit=True
        )

    def rows(self, query: Any, *, database: str = "postgres", **login: str) -> list[tuple[Any, ...]]:
        """Run statements; return the rows of the last."""
        with self.connect(database, **login) as connection:
            cursor = connection.execute(query)
            return list(cursor.fetchall()) if cursor.description else []

    def contents(self, database: str) -> dict[str, list[tuple[Any, ...]]]:
        """Return every row of every table of a database."""
        named = (
            "SELECT schemaname, tablename FROM pg_tables WHERE schemaname !~ '^pg_|^information_schema$' ORDER BY 1, 2"
        )
        return {
            f"{schema}.{table}": self.rows(
                sql.SQL("SELECT * FROM {} ORDER BY 1").format(sql.Identifier(schema, table)), database=database
            )
            for schema, table in self.rows(named, database=database)
        }

    def source(self, **options: Any) -> PostgresSource:
        return PostgresSource(
            **{"host": "h", "server": "127.0.0.1", "port": self.port, "user": "boss", "password": PASSWORD}
            | {"idle_s": 30}
            | options
        )

    def target(self, **options: Any) -> PostgresTarget:
        return PostgresTarget(
            **{"server": "127.0.0.1", "port": self.port, "user": "boss", "password": PASSWORD, "idle_s": 30} | options
        )

    def _install(self) -> None:
        secret = self.folder / "password"
        secret.write_text(PASSWORD)
        secret.chmod(0o644)
        run(
            *(program("initdb"), "--no-sync", "--auth=scram-sha-256", f"--pwfile={secret}", "--username=boss"),
            *("--encoding=UTF8", "--no-locale", "-D", str(self.data)),
        )
        secret.unlink()


@contextmanager
def servers() -> Iterator[Any]:
    """Give a maker of servers, which end with the block; all their files go with it."""
    folder = open_folder()
    made: list[OwnServer] = []

    def make(**options: Any) -> OwnServer:
        made.append(OwnServer(folder, **options))
        return made[-1]

    try:
        yield make
    finally:
        for one in made:
            one.end(signal.SIGQUIT)
        shutil.rmtree(folder, ignore_errors=True)


def _account() -> dict[str, Any]:
    found = pwd.getpwnam(ACCOUNT)
    return {"user": found.pw_uid, "group": found.pw_gid, "extra_groups": []} if os.geteuid() == 0 else {}
