"""A server of the DynamoDB API for development: dynalite, in memory, on loopback. Standard library only."""

import json
import urllib.request
from typing import Any

from server_programs import find
from servers import HOST, Server, free_ports

REGION = "us-east-1"


def start_dynalite(server: Server) -> dict[str, Any]:
    """Start it. It takes any keys, since it checks no signatures."""
    missing = "run `deploy/dev-services install` (installs it with npm), or put it on PATH"
    program, node = find("dynalite", missing=missing), find("node", missing="Debian: nodejs")
    [port] = free_ports(1)
    at_once = ("--createTableMs", "0", "--deleteTableMs", "0", "--updateTableMs", "0")
    server.spawn(node, program, "--host", HOST, "--port", str(port), *at_once)
    url = f"http://{HOST}:{port}"

    def ready() -> bool:
        headers = {
            "Content-Type": "application/x-amz-json-1.0",
            "X-Amz-Target": "DynamoDB_20120810.ListTables",
            "X-Amz-Date": "20260101T000000Z",
            "Authorization": f"AWS4-HMAC-SHA256 Credential=a/20260101/{REGION}/dynamodb/aws4_request, "
            "SignedHeaders=host, Signature=0",
        }
        asked = urllib.request.Request(url, b"{}", headers)
        with urllib.request.urlopen(asked, timeout=2) as answer:  # noqa: S310  # the address is ours, on loopback
            return "TableNames" in json.load(answer)

    server.wait(ready)
    return {"port": port, "url": url, "region": REGION, "access_key": "backupsite", "secret_key": "any"}
