"""A door in front of a server: passes connections on while it is open, refuses them while it is closed."""

import contextlib
import socket
import threading
import time

from tests.scenarios.installation import free_port


class Door:
    """Listens on loopback while open. Closing it ends every connection that goes through; hushed it passes nothing on,
    and says nothing. `sent` has when how many bytes went to the server. A context closes it at its end.
    """

    def __init__(self, server: str) -> None:
        host, _, port = server.rpartition(":")
        self._server = (host, int(port))
        self._port = free_port()
        self.sent: list[tuple[float, int]] = []
        self._ends: list[socket.socket] = []
        self._listener: socket.socket | None = None
        self._speaks = threading.Event()
        self._speaks.set()
        self.open()

    def __enter__(self) -> "Door":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def hush(self) -> None:
        self._speaks.clear()

    def reopen(self) -> None:
        """Be a door again, with new connections."""
        self.close()
        self._speaks.set()
        self.open()

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self._port}"

    def open(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", self._port), reuse_port=False)
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def close(self) -> None:
        if self._listener is not None:
            _shut(self._listener)
            self._listener = None
        while self._ends:
            _shut(self._ends.pop())

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                client, _ = listener.accept()
                server = socket.create_connection(self._server)
                self._ends += [client, server]
                for way in ((client, server, self.sent), (server, client, None)):
                    threading.Thread(target=self._pump, args=way, daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, passed: list[tuple[float, int]] | None) -> None:
        with contextlib.suppress(OSError):  # either end closed
            while data := source.recv(1 << 16):
                self._speaks.wait()
                if passed is not None:
                    passed.append((time.monotonic(), len(data)))
                sink.sendall(data)
        _shut(source)
        _shut(sink)


def _shut(one: socket.socket) -> None:
    with contextlib.suppress(OSError):  # not connected any more
        one.shutdown(socket.SHUT_RDWR)
    one.close()
