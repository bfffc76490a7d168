"""More servers of deploy/dev-services: the systems that tests back up. Standard library only."""

from collections.abc import Callable
from typing import Any

from mariadb_server import start_mariadb
from servers import Server

STARTERS: dict[str, Callable[[Server], dict[str, Any]]] = {"mariadb": start_mariadb}
