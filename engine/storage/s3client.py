"""How an S3 server is talked to: minio's client, with bodies that keep to a pace and are signed by a known digest."""

import re
import ssl
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import certifi
import urllib3
from minio import Minio

from engine.errors import Unreachable
from engine.storage.port import Bytes
from engine.storage.throttle import PIECE_BYTES, SLICE_BYTES, Pace, unpaced

if TYPE_CHECKING:
    from engine.storage.location import Location

DIGEST = "x-amz-content-sha256"
_CONNECTIONS = 16
_DOTS = re.compile(r"(?<=/)\.\.?(?=[/?]|\Z)")  # a signature is made of the decoded path: encoding these changes none


def connect(location: "Location", *, pace: Pace, timeout: urllib3.Timeout) -> Minio:
    """Return a client for a location's server; nothing is contacted, and nothing is retried by it."""
    scheme, _, host = location.endpoint.partition("://")
    options: dict[str, Any] = {}
    if scheme == "https":
        options["ssl_context"] = _tls(location)
    transport = _Transport(pace=pace, timeout=timeout, retries=False, maxsize=_CONNECTIONS, block=False, **options)
    client = _Client(
        host.rstrip("/"),
        access_key=location.access_key or None,
        secret_key=location.secret_key or None,
        session_token=location.session_token or None,
        secure=scheme == "https",
        region=location.region or None,
        http_client=transport,
    )
    if location.path_style:
        client.disable_virtual_style_endpoint()  # type: ignore[no-untyped-call]  # minio forgot it
    else:
        client.enable_virtual_style_endpoint()  # type: ignore[no-untyped-call]  # minio forgot it
    return client


@contextmanager
def reading(response: Any) -> Iterator[Any]:
    """Have an answer inside the block; afterwards its connection is used again, or closed if bytes are left on it."""
    try:
        yield response
    finally:
        response.close()
        response.release_conn()


class _Client(Minio):
    """Signs a body by the SHA-256 that a put brings along; any other by what the base class makes of it."""

    def _build_headers(
        self, host: str, headers: Any = None, body: "bytes | PacedBody | None" = None, creds: Any = None
    ) -> Any:
        known = (headers or {}).get(DIGEST)
        if not known or body is None:
            return super()._build_headers(host, headers, body, creds)  # type: ignore[arg-type]  # bytes, without a digest
        made, date = super()._build_headers(host, headers, None, creds)
        return made | {DIGEST: known, "Content-Length": str(len(body))}, date


class _Transport(urllib3.PoolManager):
    """Send bodies no faster than the pace allows, and keys as they are: urllib3 would resolve "." and ".." in them."""

    def __init__(self, *, pace: Pace, **options: Any) -> None:
        super().__init__(**options)
        self._pace = pace

    def urlopen(self, method: str, url: str, redirect: bool = True, **kw: Any) -> urllib3.BaseHTTPResponse:  # type: ignore[override]  # the options only pass through
        body = kw.get("body")
        if isinstance(body, bytes) and body and (self._pace is not unpaced or len(body) > PIECE_BYTES):
            kw["body"] = PacedBody([body], len(body), self._pace)
        return super().urlopen(method, _DOTS.sub(lambda dots: dots[0].replace(".", "%2E"), url), redirect, **kw)


class PacedBody:
    """A request body of `size` bytes that urllib3 reads piece by piece, while it may still be on its way to us.

    Without a limit the pieces are larger than it asks for. What `pieces` raises ends the request before its end.
    """

    def __init__(self, pieces: Iterable[Bytes], size: int, pace: Pace) -> None:
        self._pieces = iter(pieces)
        self._size = size
        self._pace = pace
        self._left = memoryview(b"")

    def __len__(self) -> int:
        return self._size

    def read(self, size: int = SLICE_BYTES) -> memoryview:
        """Return the next piece once it may flow."""
        if not self._left:
            self._left = memoryview(next(self._pieces, b""))
        step = PIECE_BYTES if self._pace is unpaced else size
        piece, self._left = self._left[:step], self._left[step:]
        self._pace(len(piece))
        return piece


def _tls(location: "Location") -> ssl.SSLContext:
    if not location.tls_verify:
        urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return context
    try:
        context = ssl.create_default_context(cafile=location.ca_file or None)
    except OSError as error:
        raise Unreachable(f"the CA file {location.ca_file} cannot be used: {error}") from error
    if not location.ca_file:
        context.load_verify_locations(certifi.where())
    return context
