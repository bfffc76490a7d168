"""A server on loopback that answers like a bucket: for what real servers at hand can't be made to do or hold.

It knows storage classes, versions that change between two requests, and as many keys as a test wants; it checks no
signature, stores nothing that is put, and lets nobody read tags.
"""

import bisect
import hashlib
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import parse_qs, quote, unquote, urlsplit
from xml.sax.saxutils import escape

MODIFIED = "2024-05-06T07:08:09.000Z"
_MODIFIED_HTTP = "Mon, 06 May 2024 07:08:09 GMT"
_NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"


class Held(NamedTuple):
    """One object of the double."""

    body: bytes
    storage_class: str = "STANDARD"
    headers: dict[str, str] = {}

    @property
    def etag(self) -> str:
        return hashlib.md5(self.body).hexdigest()


class BucketDouble:
    """One bucket. `asked` counts requests; `before` hears (method, key) ahead of each answer for an object."""

    def __init__(self) -> None:
        self.order: list[str] = []
        self.held: dict[str, Held] = {}
        self.bucket_headers: dict[str, str] = {}
        self.denied: set[str] = set()
        self.asked: Counter[str] = Counter()
        self.before: Callable[[str, str], None] = lambda method, key: None

    def put(self, key: str, body: bytes, *, storage_class: str = "STANDARD", **headers: str) -> None:
        if key not in self.held:
            bisect.insort(self.order, key)
        self.held[key] = Held(body, storage_class, {name.replace("_", "-"): value for name, value in headers.items()})

    def delete(self, key: str) -> None:
        self.order.remove(key)
        del self.held[key]

    def look(self, key: str) -> Held | None:
        return self.held.get(key)

    def listing(self, query: dict[str, str]) -> bytes:
        """Answer ListObjectsV2."""
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        most = int(query.get("max-keys", "1000"))
        after = query.get("continuation-token") or query.get("start-after", "")
        at = max(bisect.bisect_right(self.order, after) if after else 0, bisect.bisect_left(self.order, prefix))
        rows: list[str] = []
        last = ""
        while at < len(self.order) and len(rows) < most and self.order[at].startswith(prefix):
            last = key = self.order[at]
            end = key.find(delimiter, len(prefix)) if delimiter else -1
            if end >= 0:
                folder = key[: end + 1]
                rows.append(f"<CommonPrefixes><Prefix>{quote(folder)}</Prefix></CommonPrefixes>")
                last = folder + "\U0010ffff"
                at = bisect.bisect_right(self.order, last)
                continue
            rows.append(self._row(key))
            at += 1
        more = at < len(self.order) and self.order[at].startswith(prefix)
        tail = f"<NextContinuationToken>{escape(last)}</NextContinuationToken>" if more else ""
        return (
            f'<ListBucketResult xmlns="{_NAMESPACE}"><EncodingType>url</EncodingType>'
            f"<IsTruncated>{str(more).lower()}</IsTruncated>{tail}{''.join(rows)}</ListBucketResult>"
        ).encode()

    def _row(self, key: str) -> str:
        held = self.look(key)
        assert held is not None
        return (
            f"<Contents><Key>{quote(key)}</Key><LastModified>{MODIFIED}</LastModified>"
            f"<ETag>&quot;{held.etag}&quot;</ETag><Size>{len(held.body)}</Size>"
            f"<StorageClass>{held.storage_class}</StorageClass></Contents>"
        )


@contextmanager
def serving(double: BucketDouble) -> Iterator[str]:
    """Serve it under every bucket name; give the endpoint."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(double))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _handler(double: BucketDouble) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = 1 << 20

        def log_message(self, *args: Any) -> None: ...

        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            key = unquote(parts.path).split("/", 2)[2] if parts.path.count("/") > 1 else ""
            query = {name: values[0] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
            if not key:
                double.asked["LIST" if self.command == "GET" else "HEAD"] += 1
                body = double.listing(query) if self.command == "GET" else b""
                self._answer(200, body, {"Content-Type": "application/xml", **double.bucket_headers})
                return
            double.asked[self.command] += 1
            double.before(self.command, key)
            if "tagging" in query:
                self._error(403, "AccessDenied")
                return
            self._object(key)

        do_HEAD = do_GET

        def _object(self, key: str) -> None:
            held = double.look(key)
            if key in double.denied:
                self._error(403, "AccessDenied")
            elif held is None:
                self._error(404, "NoSuchKey")
            elif held.storage_class == "THAWING" and self.command == "GET":
                self._error(403, "InvalidObjectState")
            elif self.headers.get("If-Match", held.etag).strip('"') != held.etag:
                self._error(412, "PreconditionFailed")
            else:
                self._content(held)

        def _content(self, held: Held) -> None:
            headers = {"ETag": f'"{held.etag}"', "Last-Modified": _MODIFIED_HTTP, **held.headers}
            wanted = self.headers.get("Range")
            if wanted is None:
                self._answer(200, held.body, headers)
                return
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            part = held.body[int(first) : int(last) + 1]
            headers["Content-Range"] = f"bytes {first}-{int(first) + len(part) - 1}/{len(held.body)}"
            self._answer(206, part, headers)

        def _error(self, status: int, code: str) -> None:
            body = f"<Error><Code>{code}</Code><Message>of the double</Message></Error>".encode()
            self._answer(status, body, {"Content-Type": "application/xml"})

        def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

    return Handler
