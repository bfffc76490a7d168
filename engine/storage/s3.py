"""Any S3-compatible bucket as a store."""

import base64
import contextlib
import datetime as dt
import hashlib
import io
import re
import ssl
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import certifi
import urllib3
from minio import Minio
from minio.commonconfig import COMPLIANCE
from minio.error import S3Error
from minio.helpers import genheaders
from minio.retention import Retention

from engine.errors import Forbidden, StorageError, Unreachable
from engine.perprocess import PerProcess
from engine.storage.keys import beyond_end, check_key, check_prefix, check_range
from engine.storage.port import Broken, Bytes, Claims, Refusal, Stored
from engine.storage.s3errors import translated
from engine.storage.s3versions import PAGE, S3Versions
from engine.storage.throttle import SLICE_BYTES, Pace, unpaced

if TYPE_CHECKING:
    from engine.storage.location import Location

_CONNECTIONS = 16
_DIGEST = "x-amz-content-sha256"
PIECE_BYTES = 1 << 20  # an order to stop is heard between two pieces of a large body
_DOTS = re.compile(r"(?<=/)\.\.?(?=[/?]|\Z)")  # a signature is made of the decoded path: encoding these changes none
_NO_VERSIONS = ("NotImplemented", "MethodNotAllowed")
_NO_LOCKING = ("InvalidRequest", "ObjectLockConfigurationNotFoundError", "NotImplemented", "MethodNotAllowed")


class S3Storage:
    """Keep objects in a bucket under the location's prefix.

    Payloads are signed by SHA-256 over plain http and guarded by TLS and Content-MD5 over https. Nothing is retried
    here. The client is made at first use and made anew in a forked process, so an instance survives a fork.
    """

    def __init__(
        self, location: "Location", *, pace: Pace = unpaced, connect_s: float = 10.0, read_s: float = 60.0
    ) -> None:
        self._bucket = location.bucket
        self._prefix = location.prefix
        self._pace = pace
        self._timeout = urllib3.Timeout(connect=connect_s, read=read_s)
        self._client = PerProcess(lambda: connect(location, pace=pace, timeout=self._timeout))
        self._is_versioned = False
        self._versions = S3Versions(self._client, self._bucket, self._prefix)

    def put(self, key: str, data: Bytes, *, locked_until: dt.datetime | None = None, sha256: str = "") -> None:
        """Store the object, in compliance mode until `locked_until`; raises Forbidden where the bucket cannot lock.

        The server refuses a body of another `sha256`.
        """
        check_key(key)
        body = bytes(data)
        headers: Any = genheaders(None, None, None, _retention(locked_until), False)
        headers["Content-Type"] = "application/octet-stream"
        if sha256 and body:
            headers[_DIGEST] = sha256
        if locked_until is not None:
            # Object lock requires it, and over plain http the client sends none.
            digest = hashlib.md5(body, usedforsecurity=False).digest()
            headers["Content-MD5"] = base64.b64encode(digest).decode()
        with translated(key), _no_locking(key):
            # The public put_object would copy the body twice and cannot send Content-MD5.
            self._client()._put_object(self._bucket, self._prefix + key, body, headers)

    def get(self, key: str, *, offset: int = 0, length: int | None = None) -> bytes:
        """Return exactly the range that was asked for."""
        check_key(key)
        check_range(offset, length)
        if length == 0:
            return self._nothing(key, offset)
        name = self._prefix + key
        with translated(key):
            try:
                response = self._client().get_object(self._bucket, name, offset=offset, length=length or 0)
            except S3Error as error:
                if error.code != "InvalidRange":
                    raise
                return self._nothing(key, offset, missing=length or 0)
            try:
                if (offset or length) and response.status != 206:
                    raise StorageError(f"{key}: the store ignores ranges")
                data = self._body(response)
            finally:
                response.close()
                response.release_conn()
        if length is not None and len(data) != length:
            # A body cut short raises while it is read: this is all that the object has.
            raise beyond_end(key, offset + len(data), offset + length)
        return data

    def scan(self, prefix: str, *, after: str = "") -> Iterator[Stored]:
        """Yield the objects, one page of a thousand per request."""
        check_prefix(prefix)
        return self._scan(prefix, after)

    def delete(self, keys: Sequence[str]) -> list[Refusal]:
        """Delete by version id every version and delete marker of exactly these keys.

        A plain DELETE, which would hide the object and keep its bytes, is never sent (engine invariant 20).
        """
        for key in keys:
            check_key(key)
        refusals: list[Refusal] = []
        for start in range(0, len(keys), PAGE):
            refusals += self._versions.delete(self._versions.of_keys(keys[start : start + PAGE]))
        return list({refusal.key: refusal for refusal in refusals}.values())

    def extend_lock(self, key: str, *, until: dt.datetime) -> None:
        """Lengthen the newest version's compliance lock."""
        until = _whole_seconds(until)
        current = self.locked_until(key)
        if current is not None and current >= until:
            return
        try:
            with translated(key), _no_locking(key):
                self._client().set_object_retention(self._bucket, self._prefix + key, Retention(COMPLIANCE, until))
        except StorageError:
            # Another session may have set a later end since we looked; then the refusal is right and we are done.
            current = self.locked_until(key)
            if current is None or current < until:
                raise

    def locked_until(self, key: str) -> dt.datetime | None:
        """Return the newest version's lock as its headers show it."""
        check_key(key)
        with translated(key):
            return self._versions.lock_end(self._prefix + key)

    def describe(self) -> Claims:
        """Return what the bucket says about versions, object lock and the time; asking changes nothing."""
        client = self._client()
        with translated(self._bucket):
            response = client._execute("GET", self._bucket, query_params={"list-type": "2", "max-keys": "1"})
            status = client.get_bucket_versioning(self._bucket).status
            try:
                client.get_object_lock_config(self._bucket)
                locks = True
            except S3Error:
                locks = False
        date = response.headers.get("Date")
        moment = dt.datetime.strptime(date, "%a, %d %b %Y %H:%M:%S GMT").replace(tzinfo=dt.UTC) if date else None
        return Claims(status == "Enabled", locks, moment)

    def attack_lock(self, key: str, *, earlier: dt.datetime) -> Broken:
        """Try to break the compliance lock of the newest version of `key` in every way a client can.

        Leaves a second version with other bytes under the key. Only for objects made to be attacked.
        """
        return self._versions.attack(key, earlier=_whole_seconds(earlier))

    def history(self) -> S3Versions | None:
        """Return the view of versions, None for a bucket that never kept any, or a store that knows of none."""
        if not self._is_versioned:
            with translated(self._bucket):
                try:
                    status = self._client().get_bucket_versioning(self._bucket).status
                except S3Error as error:
                    if error.code not in _NO_VERSIONS:
                        raise
                    return None
            self._is_versioned = status in ("Enabled", "Suspended")  # there is no way back from these
        return self._versions if self._is_versioned else None

    def _body(self, response: Any) -> bytes:
        body = io.BytesIO()  # hands out what it holds: a list of pieces would be held, and copied, once more
        # As it is stored: what decodes copies each piece twice.
        for part in response.stream(SLICE_BYTES if self._pace is not unpaced else PIECE_BYTES, decode_content=False):
            self._pace(len(part))
            body.write(part)
        return body.getvalue()

    def _nothing(self, key: str, offset: int, *, missing: int = 0) -> bytes:
        """Answer a range without bytes, which http cannot ask for: the object must be there and long enough."""
        with translated(key):
            size = self._client().stat_object(self._bucket, self._prefix + key).size or 0
        if missing or offset > size:
            raise beyond_end(key, size, offset + missing)
        return b""

    def _scan(self, prefix: str, after: str) -> Iterator[Stored]:
        start = self._prefix + after if after else None
        with translated(self._bucket):
            found = self._client().list_objects(
                self._bucket, prefix=self._prefix + prefix, recursive=True, start_after=start
            )
            for item in found:
                yield Stored((item.object_name or "").removeprefix(self._prefix), item.size or 0)


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


class _Client(Minio):
    """Signs a body by the SHA-256 that a put brings along; any other by what the base class makes of it."""

    def _build_headers(self, host: str, headers: Any = None, body: bytes | None = None, creds: Any = None) -> Any:
        known = (headers or {}).get(_DIGEST)
        if not known or body is None:
            return super()._build_headers(host, headers, body, creds)
        made, date = super()._build_headers(host, headers, None, creds)
        return made | {_DIGEST: known, "Content-Length": str(len(body))}, date


class _Transport(urllib3.PoolManager):
    """Send bodies no faster than the pace allows, and keys as they are: urllib3 would resolve "." and ".." in them."""

    def __init__(self, *, pace: Pace, **options: Any) -> None:
        super().__init__(**options)
        self._pace = pace

    def urlopen(self, method: str, url: str, redirect: bool = True, **kw: Any) -> urllib3.BaseHTTPResponse:  # type: ignore[override]  # the options only pass through
        body = kw.get("body")
        if body and (self._pace is not unpaced or len(body) > PIECE_BYTES):
            kw["body"] = _PacedBody(body, self._pace)
        return super().urlopen(method, _DOTS.sub(lambda dots: dots[0].replace(".", "%2E"), url), redirect, **kw)


class _PacedBody:
    """A request body that urllib3 reads piece by piece; without a limit the pieces are larger than it asks for."""

    def __init__(self, data: bytes, pace: Pace) -> None:
        self._data = memoryview(data)
        self._pace = pace
        self._at = 0

    def read(self, size: int = SLICE_BYTES) -> memoryview:
        """Return the next piece once it may flow."""
        piece = self._data[self._at : self._at + (PIECE_BYTES if self._pace is unpaced else size)]
        self._pace(len(piece))
        self._at += len(piece)
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


def _whole_seconds(moment: dt.datetime) -> dt.datetime:
    """Round up: some servers drop fractions, and a lock must not end early."""
    moment = moment.astimezone(dt.UTC)
    return moment.replace(microsecond=0) + dt.timedelta(seconds=1) if moment.microsecond else moment


def _retention(until: dt.datetime | None) -> Retention | None:
    return None if until is None else Retention(COMPLIANCE, _whole_seconds(until))


@contextlib.contextmanager
def _no_locking(key: str) -> Iterator[None]:
    """Turn what buckets without object lock answer to a lock into Forbidden."""
    try:
        yield
    except S3Error as error:
        if error.code in _NO_LOCKING:
            refused = Forbidden(f"{key} cannot be locked: object lock is off in this bucket")
            refused.advice = "Make a bucket with object lock on: it cannot be switched on later everywhere"
            raise refused from error
        raise
