"""Any S3-compatible bucket as a store."""

import base64
import contextlib
import datetime as dt
import hashlib
import io
import secrets
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, cast

import urllib3
from minio.commonconfig import COMPLIANCE
from minio.error import S3Error
from minio.helpers import genheaders
from minio.retention import Retention

from engine.errors import Forbidden, StorageError
from engine.perprocess import PerProcess
from engine.storage.keys import beyond_end, check_key, check_prefix, check_range
from engine.storage.passing import checked, whole
from engine.storage.port import Broken, Bytes, Claims, Refusal, Storage, Stored
from engine.storage.s3client import DIGEST, PacedBody, connect, reading
from engine.storage.s3errors import translated
from engine.storage.s3versions import PAGE, S3Versions
from engine.storage.throttle import PIECE_BYTES, SLICE_BYTES, Pace, unpaced

if TYPE_CHECKING:
    from engine.storage.location import Location

_NO_VERSIONS = ("NotImplemented", "MethodNotAllowed")
_ALTERED = "XAmzContentSHA256Mismatch"
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
        self._refuses_altered = PerProcess(self._refuses)
        self._versions = S3Versions(self._client, self._bucket, self._prefix)

    def put(self, key: str, data: Bytes, *, locked_until: dt.datetime | None = None, sha256: str = "") -> None:
        """Store the object, in compliance mode until `locked_until`; raises Forbidden where the bucket cannot lock.

        The server refuses a body of another `sha256`.
        """
        check_key(key)
        body = bytes(data)
        headers: Any = genheaders(None, None, None, _retention(locked_until), False)
        if sha256 and body:
            headers[DIGEST] = sha256
        if locked_until is not None:
            # Object lock requires it, and over plain http the client sends none.
            digest = hashlib.md5(body, usedforsecurity=False).digest()
            headers["Content-MD5"] = base64.b64encode(digest).decode()
        with translated(key), _no_locking(key):
            self._send(key, body, headers)

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
            with reading(response):
                if (offset or length) and response.status != 206:
                    raise StorageError(f"{key}: the store ignores ranges")
                data = self._body(response)
        if length is not None and len(data) != length:
            # A body cut short raises while it is read: this is all that the object has.
            raise beyond_end(key, offset + len(data), offset + length)
        return data

    def pieces(self, key: str) -> Iterator[Bytes]:
        """Yield the object as it is stored; who leaves before the end closes the connection."""
        check_key(key)
        with translated(key):
            with reading(self._client().get_object(self._bucket, self._prefix + key)) as response:
                yield from self._flow(response)

    def relay(self, key: str, source: Storage, *, size: int, sha256: str) -> None:
        """Send on what comes, signed with the digest that it must have.

        A store that has shown that it refuses a body of another digest compares it; for any other we do.
        """
        check_key(key)
        here = "" if size >= PIECE_BYTES and self._refuses_altered() else sha256
        body = PacedBody(checked(key, source.pieces(key), size=size, sha256=here), size, self._pace)
        with translated(key):
            try:
                self._send(key, body, {DIGEST: sha256})
                return
            except S3Error as error:
                if error.code != _ALTERED:
                    raise
        # What came was altered, at the source or on the way: this says which.
        self.put(key, whole(key, source, size=size, sha256=sha256), sha256=sha256)

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

    def _send(self, key: str, body: bytes | PacedBody, headers: Any) -> None:
        headers["Content-Type"] = "application/octet-stream"
        # The public put_object would copy the body twice, cannot send Content-MD5, and knows of no digest.
        self._client()._put_object(self._bucket, self._prefix + key, cast("bytes", body), headers)

    def _refuses(self) -> bool:
        """Try whether the store refuses a body of another digest than it was signed with."""
        key = f"canary/{secrets.token_hex(16)}-altered"
        try:
            self.put(key, b"altered", sha256=hashlib.sha256(b"").hexdigest())
        except StorageError as error:
            return isinstance(error.__cause__, S3Error) and error.__cause__.code == _ALTERED
        with contextlib.suppress(StorageError):  # who may not delete leaves it: it is nobody's
            self.delete([key])
        return False

    def _body(self, response: Any) -> bytes:
        body = io.BytesIO()  # hands out what it holds: a list of pieces would be held, and copied, once more
        for part in self._flow(response):
            body.write(part)
        return body.getvalue()

    def _flow(self, response: Any) -> Iterator[bytes]:
        # As it is stored: what decodes copies each piece twice.
        for part in response.stream(SLICE_BYTES if self._pace is not unpaced else PIECE_BYTES, decode_content=False):
            self._pace(len(part))
            yield part

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
