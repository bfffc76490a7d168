"""Servers on loopback that take what alerts send: mail by SMTP, webhooks by HTTP."""

import email
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class _Smtp(socketserver.StreamRequestHandler):
    """As much of SMTP as a client needs that hands one message over."""

    def handle(self) -> None:
        self.wfile.write(b"220 loopback\r\n")
        recipients = []
        while line := self.rfile.readline():
            verb = line[:4].upper()
            if verb == b"RCPT":
                recipients.append(line.split(b"<")[1].split(b">")[0].decode())
            if verb == b"DATA":
                self.wfile.write(b"354 go on\r\n")
                lines = []
                while (text := self.rfile.readline()) != b".\r\n":
                    lines.append(text)
                self.server.took.append((recipients, email.message_from_bytes(b"".join(lines))))  # type: ignore[attr-defined]  # set below
            self.wfile.write(b"221 bye\r\n" if verb == b"QUIT" else b"250 fine\r\n")
            if verb == b"QUIT":
                return


@contextmanager
def mail_server() -> Iterator[tuple[int, list[tuple[list[str], Message]]]]:
    """Run a mail server on loopback; give its port and what it took, as recipients and message."""
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Smtp) as server:
        server.took = []  # type: ignore[attr-defined]  # what the handler adds to
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield server.server_address[1], server.took  # type: ignore[attr-defined]  # as above
        server.shutdown()


@dataclass
class Receiver:
    """A web server that takes webhooks. `answers` are the next statuses, 200 after them; a text is where it redirects.

    `took` is what came: path, headers, body.
    """

    url: str = ""
    answers: list[int | str] = field(default_factory=list)
    took: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)


@contextmanager
def receiver() -> Iterator[Receiver]:
    """Run a web server on loopback that takes webhooks."""
    found = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            headers = {name.lower(): value for name, value in self.headers.items()}
            found.took.append((self.path, headers, body))
            answer = found.answers.pop(0) if found.answers else 200
            self.send_response(answer if isinstance(answer, int) else 307)
            if isinstance(answer, str):
                self.send_header("Location", answer)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *args: Any) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        found.url = f"http://127.0.0.1:{server.server_address[1]}"
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield found
        server.shutdown()
