"""A contract double of a Vault server's transit engine and AppRole login: its HTTP protocol, and real encryption.

It is no Vault. It is strict where a client could be careless: unknown fields, a missing context, base64 that is none,
paths that the server does not have are answered as the server does, or noted in `complaints`.
"""

import base64
import json
import os
import secrets
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

_FIELDS = {
    "encrypt": {"plaintext", "context", "associated_data"},
    "decrypt": {"ciphertext", "context", "associated_data"},
}


class Refused(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, *errors: str) -> None:
        super().__init__(status)
        self.status, self.errors = status, list(errors)


@dataclass
class Key:
    """One named key; `derived` ones make a key of their own for each context."""

    derived: bool = False
    type: str = "aes256-gcm96"
    versions: list[bytes] = field(default_factory=lambda: [os.urandom(32)])

    def cipher(self, version: int, context: str) -> AESGCM:
        key = self.versions[version - 1]
        if self.derived:
            if not context:
                raise Refused(400, "missing 'context' for key derivation; the key was created using a derived key")
            key = HKDF(hashes.SHA256(), 32, None, _decoded(context)).derive(key)
        return AESGCM(key)


@dataclass
class TransitDouble:
    """The server's state; tests change it. `tokens` hold the operations that a token may do on keys."""

    url: str = ""
    mount: str = "transit"
    namespace: str = ""
    sealed: bool = False
    status: int = 0
    keys: dict[str, Key] = field(default_factory=dict)
    tokens: dict[str, set[str]] = field(default_factory=dict)
    roles: dict[str, str] = field(default_factory=dict)
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def token(self, *operations: str) -> str:
        """Return a new token that may read, encrypt, decrypt, create (or just these)."""
        token = f"hvs.{secrets.token_urlsafe(12)}"
        self.tokens[token] = set(operations or ("read", "encrypt", "decrypt"))
        return token

    def role(self) -> tuple[str, str]:
        """Return role id and secret id of a new AppRole."""
        role, secret = secrets.token_hex(8), secrets.token_hex(8)
        self.roles[role] = secret
        return role, secret

    def address(self, key: str, **options: str) -> str:
        query = "&".join(f"{name}={value}" for name, value in options.items())
        return f"transit:{self.url}/{self.mount}/{key}" + (f"?{query}" if query else "")

    def answer(self, method: str, path: str, headers: dict[str, str], body: Any) -> dict[str, Any]:
        """Return the answer to one request. Raises Refused."""
        self.requests.append(f"{method} {path}")
        if self.status:
            raise Refused(self.status, "made to fail")
        if self.sealed:
            raise Refused(503, "Vault is sealed")
        if headers.get("X-Vault-Request") != "true":
            self.complaints.append(f"{path} came without X-Vault-Request")
        if headers.get("X-Vault-Namespace", "") != self.namespace:
            raise Refused(404, f'no handler for route "{path}". route entry not found.')
        if path == "auth/approle/login":
            return self._login(body)
        may = self.tokens.get(headers.get("X-Vault-Token", ""))
        if may is None:
            raise Refused(403, "permission denied", "invalid token")
        prefix, _, rest = path.partition(f"{self.mount}/")
        operation, _, name = rest.partition("/")
        if prefix or "/" in name or operation not in ("keys", "encrypt", "decrypt"):
            raise Refused(404, f'no handler for route "{path}". route entry not found.')
        if operation == "keys":
            return self._read(method, name, may)
        if method not in ("POST", "PUT"):
            raise Refused(405, "unsupported operation")
        if operation not in may:
            raise Refused(403, "1 error occurred:\n\t* permission denied\n\n")
        if strange := set(body) - _FIELDS[operation]:
            self.complaints.append(f"{operation} got {sorted(strange)}")
        return self._encrypt(name, may, body) if operation == "encrypt" else self._decrypt(name, body)

    def _login(self, body: Any) -> dict[str, Any]:
        if set(body) != {"role_id", "secret_id"}:
            self.complaints.append(f"login got {sorted(body)}")
        if self.roles.get(body["role_id"]) != body["secret_id"]:
            raise Refused(400, "invalid role or secret ID")
        return {"auth": {"client_token": self.token(), "lease_duration": 1200, "renewable": True}}

    def _read(self, method: str, name: str, may: set[str]) -> dict[str, Any]:
        if method != "GET":
            self.complaints.append(f"{method} of a key")
        if "read" not in may:
            raise Refused(403, "1 error occurred:\n\t* permission denied\n\n")
        if name not in self.keys:
            raise Refused(404)
        key = self.keys[name]
        encrypts = key.type != "ed25519"
        described = {"name": name, "type": key.type, "derived": key.derived, "latest_version": len(key.versions)}
        return {"data": {**described, "supports_encryption": encrypts, "supports_decryption": encrypts}}

    def _encrypt(self, name: str, may: set[str], body: Any) -> dict[str, Any]:
        if name not in self.keys:
            if "create" not in may:
                raise Refused(403, "1 error occurred:\n\t* permission denied\n\n")
            self.keys[name] = Key(derived=bool(body.get("context")))  # as the real one does
        key = self.keys[name]
        nonce, version = os.urandom(12), len(key.versions)
        bound = _decoded(body["associated_data"]) if body.get("associated_data") else None
        sealed = key.cipher(version, body.get("context", "")).encrypt(nonce, _decoded(body["plaintext"]), bound)
        text = base64.b64encode(nonce + sealed).decode()
        return {"data": {"ciphertext": f"vault:v{version}:{text}", "key_version": version}}

    def _decrypt(self, name: str, body: Any) -> dict[str, Any]:
        if name not in self.keys:
            raise Refused(400, "encryption key not found")
        head, _, rest = str(body["ciphertext"]).partition(":v")
        number, _, text = rest.partition(":")
        key = self.keys[name]
        if head != "vault" or not number.isdigit() or not 1 <= int(number) <= len(key.versions):
            raise Refused(400, "invalid ciphertext: no prefix")
        raw = _decoded(text)
        bound = _decoded(body["associated_data"]) if body.get("associated_data") else None
        try:
            plain = key.cipher(int(number), body.get("context", "")).decrypt(raw[:12], raw[12:], bound)
        except (InvalidTag, ValueError):
            raise Refused(400, "cipher: message authentication failed") from None
        return {"data": {"plaintext": base64.b64encode(plain).decode()}}


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        raise Refused(400, "failed to base64-decode") from None


@contextmanager
def transit_double(*, certificate: Path | None = None) -> Iterator[TransitDouble]:
    """Serve on loopback until the end; with a PEM file of certificate and key by TLS."""
    double = TransitDouble()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # one packet an answer, or the client waits for the second

        def _serve(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            raw = self.rfile.read(length)
            try:
                body = json.loads(raw) if raw else {}
                status, answer = 200, double.answer(self.command, self.path[4:], dict(self.headers), body)
            except Refused as refused:
                status, answer = refused.status, {"errors": refused.errors}
            data = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_PUT = _serve

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    scheme = "https" if certificate is not None else "http"
    double.url = f"{scheme}://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield double
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    assert double.complaints == []
