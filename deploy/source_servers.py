"""More servers of deploy/dev-services: the systems that tests back up. Standard library only."""

from collections.abc import Callable
from typing import Any

from dynalite_server import start_dynalite
from mariadb_server import start_mariadb
from milvus_server import start_milvus
from samba_server import start_samba
from servers import Server

STARTERS: dict[str, Callable[[Server], dict[str, Any]]] = {
    "mariadb": start_mariadb,
    "dynalite": start_dynalite,
    "milvus": start_milvus,
    "samba": start_samba,
}
