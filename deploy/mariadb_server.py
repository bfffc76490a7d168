"""The MariaDB of deploy/dev-services: with a binary log, and small. Standard library only."""

import os
import secrets
import socket
from typing import Any

from server_programs import find
from servers import HOST, Server, free_ports

_MISSING = "Debian: mariadb-server; macOS: brew install mariadb"


def start_mariadb(server: Server) -> dict[str, Any]:
    """Start a server with one account, which may do everything; its data folder is `data` in the server's."""
    install, program = (find(one, missing=_MISSING) for one in ("mariadb-install-db", "mariadbd"))
    [port], user, password = free_ports(1), "backupsite", secrets.token_urlsafe(24)
    data, begin = server.folder / "data", server.folder / "begin.sql"
    account = ("--user=root",) if os.geteuid() == 0 else ()  # a server refuses to run as root unless told so
    small = ("--innodb-log-file-size=16M", "--innodb-buffer-pool-size=64M")
    server.run(
        *(install, "--no-defaults", f"--datadir={data}", *small, *account),
        *("--auth-root-authentication-method=normal", "--skip-test-db", "--skip-name-resolve"),
    )
    begin.touch(0o600)
    statements = [
        "DELETE FROM mysql.global_priv WHERE User <> 'mariadb.sys';",
        "FLUSH PRIVILEGES;",
        f"CREATE USER {user}@'%' IDENTIFIED BY '{password}';",
        f"GRANT ALL ON *.* TO {user}@'%' WITH GRANT OPTION;",
    ]
    begin.write_text("\n".join(statements) + "\n")
    options = {
        "datadir": data,
        "bind-address": HOST,
        "port": port,
        "socket": "mariadb.sock",  # in the data folder: the whole path may be too long for a socket
        "pid-file": server.folder / "pid",
        "log-bin": "binlog",
        "server-id": 1,
        "init-file": begin,
        # The data lives no longer than the server.
        "innodb-flush-log-at-trx-commit": 0,
        "sync-binlog": 0,
    }
    server.spawn(
        *(program, "--no-defaults", *account, "--skip-name-resolve", *small),
        *(f"--{name}={value}" for name, value in options.items()),
    )

    def ready() -> bool:
        with socket.create_connection((HOST, port), timeout=2) as connection:
            return len(connection.recv(5)) == 5

    server.wait(ready)
    begin.unlink()
    return {"port": port, "user": user, "password": password, "data": str(data), "url": f"mysql://{HOST}:{port}"}
