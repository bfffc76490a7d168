"""Milvus Lite as a server, which the package milvus-lite brings. Standard library only."""

import socket
from typing import Any

from server_programs import find
from servers import HOST, Server, free_ports


def start_milvus(server: Server) -> dict[str, Any]:
    """Start an empty Milvus Lite; it knows no users."""
    program = find("milvus-lite", missing="make .venv/dev, or pip install milvus-lite==3.2.2")
    [port] = free_ports(1)
    # Without a host it listens on every address.
    server.spawn(program, "server", "--data-dir", str(server.folder / "data"), "--host", HOST, "--port", str(port))

    def ready() -> bool:
        with socket.create_connection((HOST, port), timeout=2):
            return True

    server.wait(ready)
    return {"port": port, "uri": f"http://{HOST}:{port}"}
