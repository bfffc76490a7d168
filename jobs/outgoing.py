"""A program of its own that sends one message to an address that a person gave: python -m jobs.outgoing.

It reads an order as JSON from its standard input and writes the outcome to its standard output. A process of its own
can be ended when it takes too long, whatever it waits for; and from the moment it has loaded its libraries it connects
to allowed addresses only (policies.addresses), whatever name, redirect or second look-up leads elsewhere, opens no file
but those of its programs, and starts nothing.

Order: `do` is "webhook" (url, headers, body), "apprise" (url, title, body, severity) or "check" (url, for Apprise);
`networks` are those that the operator allows. Outcome: `error`, empty for none; `permanent`, when trying again is no
use; `service`, what an Apprise address belongs to.
"""

import http.client
import ipaddress
import json
import logging
import os
import re
import socket
import ssl
import sys
import sysconfig
from typing import Any
from urllib.parse import urlsplit

import certifi
from django.conf import settings

from policies import addresses

SOCKET_S = 10.0
_QUOTED = 300
_STARTS = (
    "subprocess.Popen",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "os.system",
    "os.fork",
    "os.forkpty",
    "pty.spawn",
)
_SENDS = ("socket.connect", "socket.sendto", "socket.sendmsg")
# What these reach is the machine itself, not a person.
_LOCAL = {"dbus", "glib", "gnome", "kde", "macosx", "qt", "syslog", "windows"}
_SEVERITY = {"info": "info", "warning": "warning", "critical": "failure", "resolved": "success"}


class Permanent(Exception):
    """Trying again is no use."""


class Guard:
    """Refuses connections to internal addresses, files and programs, for the rest of the process's life."""

    def __init__(self) -> None:
        self.refused = ""
        folders = {sys.prefix, sys.base_prefix, *sysconfig.get_paths().values(), os.path.dirname(certifi.where())}
        self._readable = tuple(f"{os.path.realpath(one)}{os.sep}" for one in [*folders, "/usr/share", "/etc/ssl"])
        self._ours = f"{os.getcwd()}{os.sep}"  # with the installation's own secrets beside the code

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        if event in _SENDS and args[1] is not None:
            self._connect(args[1])
        elif event == "open" and isinstance(args[0], str | bytes):
            self._open(os.fsdecode(args[0]), args[2] or 0)
        elif event in _STARTS:
            raise PermissionError(f"{event} is not allowed here")

    def _connect(self, address: Any) -> None:
        host = str(address[0]).partition("%")[0] if isinstance(address, tuple) else ""
        try:
            meant = ipaddress.ip_address(host)
        except ValueError:
            meant = None  # a Unix socket, or a name: what is looked up comes again with its address
        if meant is None or not addresses.is_allowed(meant):
            self.refused = host or "a socket of this machine"
            raise PermissionError(f"{self.refused} is an internal address")

    def _open(self, path: str, flags: int) -> None:
        real = os.path.realpath(path)
        is_code = real.startswith(self._ours) and real.endswith((".py", ".pyc"))
        is_readable = is_code or real.startswith(self._readable)
        if not is_readable or flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            raise PermissionError(f"{path} is not for this program")


def _webhook(order: dict[str, Any]) -> None:
    parts = urlsplit(order["url"])
    assert parts.hostname
    if parts.scheme == "https":
        context = ssl.create_default_context(cafile=certifi.where())
        connection: http.client.HTTPConnection = http.client.HTTPSConnection(
            parts.hostname, parts.port, timeout=SOCKET_S, context=context
        )
    else:
        connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=SOCKET_S)
    _guarded()
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    try:
        connection.request("POST", target, body=order["body"].encode(), headers=order["headers"])
        answer = connection.getresponse()
    except http.client.HTTPException as error:
        raise OSError(f"the server does not speak HTTP ({type(error).__name__})") from error
    if not 200 <= answer.status < 300:
        raise OSError(f"the server answered {answer.status} {answer.reason}"[:_QUOTED])


class _Lines(logging.Handler):
    """Keeps what a library logs."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def _apprise(order: dict[str, Any], *, send: bool) -> str:
    """Load the library, see what the address means, and send through it. Return the name of the service."""
    import apprise  # takes a second: not for webhooks

    schema = order["url"].partition("://")[0].lower()
    if schema in _LOCAL:
        raise Permanent(f"{schema}:// reaches the service's own machine, not a person")
    heard = _Lines()
    logging.getLogger("apprise").addHandler(heard)
    _guarded()
    plugin = apprise.Apprise.instantiate(order["url"], suppress_exceptions=True)
    if plugin is None:
        raise Permanent(
            "this is no address that Apprise knows; its documentation lists them: github.com/caronc/apprise"
        )
    if send and not plugin.notify(
        title=order["title"], body=order["body"], notify_type=_SEVERITY[order["severity"]], body_format="text"
    ):
        raise OSError(_without_secrets(heard.lines[-1] if heard.lines else "the service refused it", order["url"]))
    return str(plugin.service_name)


def _without_secrets(text: str, url: str) -> str:
    """Return a log line without the parts of the address: any of them may be a token."""
    for part in re.findall(r"[^/:@?&=]{4,}", url.partition("://")[2]):
        text = text.replace(part, "***")
    return " ".join(text.split())[:_QUOTED]


_guard = Guard()


def _guarded() -> None:
    sys.dont_write_bytecode = True
    sys.addaudithook(_guard)


def run(order: dict[str, Any]) -> dict[str, Any]:
    """Carry the order out and return the outcome."""
    settings.configure(SOURCE_NETWORKS=[ipaddress.ip_network(text) for text in order["networks"]])
    try:
        if order["do"] == "webhook":
            _webhook(order)
            return {"error": ""}
        return {"error": "", "service": _apprise(order, send=order["do"] == "apprise")}
    except Permanent as error:
        return {"error": str(error), "permanent": True}
    except socket.gaierror as error:
        return {"error": f"the name can't be looked up: {error.strerror}"}
    except Exception as error:
        if _guard.refused:
            allow = "Whoever runs this installation can allow its network with BACKUPSITE_SOURCE_NETWORKS"
            return {"error": f"{_guard.refused} is an internal address. {allow}", "permanent": True}
        told = error.strerror or str(error) if isinstance(error, OSError) else f"{type(error).__name__} in the library"
        return {"error": _without_secrets(told, order["url"])}


if __name__ == "__main__":
    outcome = run(json.load(sys.stdin))
    sys.stdout.write(f"\n{json.dumps(outcome)}\n")
