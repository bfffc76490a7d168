"""A bucket as something to protect or to restore into: requests, counted and repeated, and what their failures mean.

Unlike engine.storage it takes every key that a server takes, and what it meets belongs to somebody else.
"""

import base64
import contextlib
import datetime as dt
import email.utils
import functools
import hashlib
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar
from urllib.parse import unquote_plus
from xml.etree import ElementTree
from xml.sax.saxutils import escape

import urllib3
from minio.error import S3Error

from engine import halt
from engine.connections.objectmeta import attributes
from engine.errors import (
    Forbidden,
    SourceDenied,
    SourceError,
    SourceMissing,
    SourceUnavailable,
    StorageError,
    StorageFull,
    TargetDenied,
    TargetError,
    TargetMissing,
    TargetUnavailable,
    Unreachable,
)
from engine.storage.location import Location
from engine.storage.s3client import connect, reading
from engine.storage.s3errors import translated
from engine.storage.throttle import SLICE_BYTES, Budget, unpaced

T = TypeVar("T")
PAGE = 1000
_PAUSES_S = (0.3, 1.0, 3.0)
_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_MICROSECOND = dt.timedelta(microseconds=1)
# What has to be thawed before it can be read. S3's GLACIER_IR can be read at once.
_ARCHIVE = {"glacier", "deep_archive", "archive", "coldarchive", "cold_archive", "deepcoldarchive", "deep_cold_archive"}
_HINTS = {
    "InvalidAccessKeyId": "the server does not know this access key",
    "SignatureDoesNotMatch": "the secret key is not the one of this access key",
    "RequestTimeTooSkewed": "the clocks of this host and of the server differ too much",
    "ExpiredToken": "the session token has ended",
    "InvalidToken": "the session token is not valid",
}


class NoBucket(Unreachable):
    """There is no bucket of this name on this server."""


class Overwritten(StorageError):
    """The object is not the version that was asked for any more."""


class Archived(StorageError):
    """The object is in an archive class: it has to be thawed before it can be read."""


class BadCredentials(Forbidden):
    """The server does not accept who we say we are, whatever we ask for."""


class ArchiveBucket(SourceError):
    """The bucket's default storage class is an archive class (A3)."""

    advice = "Back up a bucket of the class Standard or Infrequent Access; archived objects can't be read"


_SPECIAL: dict[str, type[StorageError]] = {
    "NoSuchBucket": NoBucket,
    "PreconditionFailed": Overwritten,
    "InvalidObjectState": Archived,
    **dict.fromkeys(_HINTS, BadCredentials),
}


class Listed(NamedTuple):
    """One object as a listing tells of it; `version` only where versions were listed."""

    key: str
    size: int
    modified_ns: int
    etag: str
    storage_class: str = ""
    version: str = ""


class Page(NamedTuple):
    """One answer to a listing. `following` are the parameters that ask for the next one, empty at the end."""

    objects: list[Listed]
    prefixes: list[str]
    following: dict[str, str]


class Head(NamedTuple):
    """What the headers of an object say. `size` is that of the whole object, whatever part was read."""

    size: int
    modified_ns: int
    etag: str
    version: str
    headers: Mapping[str, str]


class BucketClient:
    """Requests to one bucket, each repeated while it fails transiently, and counted by verb at every attempt.

    For any number of threads of one process; make another one after a fork. Raises StorageError and its kinds.
    """

    def __init__(self, location: Location, *, connect_s: float = 10.0, read_s: float = 60.0) -> None:
        self.bucket = location.bucket
        self._pace = Budget(location.bytes_per_s).take if location.bytes_per_s else unpaced
        self._client = connect(location, pace=self._pace, timeout=urllib3.Timeout(connect=connect_s, read=read_s))
        self._counts: Counter[str] = Counter()
        self._mutex = threading.Lock()

    def requests(self) -> dict[str, int]:
        """Return what was asked since the last call, by verb: LIST, HEAD, GET, PUT, POST, DELETE."""
        with self._mutex:
            counts, self._counts = dict(self._counts), Counter()
        return counts

    def about(self) -> Mapping[str, str]:
        """Return what the server says of the bucket itself, as headers."""
        headers: Mapping[str, str] = self._answer("HEAD", "HEAD", "").headers
        return headers

    def page(self, parameters: Mapping[str, str], *, versions: bool = False) -> Page:
        """Return one page of a listing; `versions` takes only the current one of each key, with its id."""
        query = {"encoding-type": "url", **({"versions": ""} if versions else {"list-type": "2"}), **parameters}
        response = self._answer("LIST", "GET", "", query_params=query)
        try:
            return _parsed(ElementTree.fromstring(response.data), parameters)  # noqa: S314  # expat resolves nothing external
        except (ElementTree.ParseError, KeyError, ValueError) as error:
            raise Unreachable(f"{self.bucket}: this is no listing of a bucket: {error}") from error

    def scan(self, parameters: Mapping[str, str], *, versions: bool = False) -> Iterator[Page]:
        """Yield page after page."""
        while True:
            page = self.page(parameters, versions=versions)
            yield page
            if not page.following:
                return
            parameters = page.following

    def head(self, key: str) -> Head:
        """Return what the headers of the current version say."""
        return _head(self._answer("HEAD", "HEAD", key))

    def get(self, key: str, *, start: int = 0, length: int = 0, etag: str = "", most: int = 0) -> tuple[Head, bytes]:
        """Return the object, or `length` bytes from `start`; with `etag` only of that version, else Overwritten.

        Nothing is read of an object that has grown larger than `most`.
        """
        headers = {"Range": f"bytes={start}-{start + length - 1}"} if length else {}
        if etag:
            headers["If-Match"] = f'"{etag}"'

        def read() -> tuple[Head, bytes]:
            with reading(self._send("GET", key, headers=headers, preload_content=False)) as response:
                if length and response.status != 206:
                    raise StorageError(f"{key}: the server ignores ranges")
                head = _head(response)
                if most and head.size > most:
                    return head, b""
                if self._pace is unpaced:
                    return head, response.read()
                parts = []
                for part in response.stream(SLICE_BYTES):
                    self._pace(len(part))
                    parts.append(part)
                return head, b"".join(parts)

        return self._repeated("GET", key, read)

    def tags(self, key: str) -> dict[str, str]:
        """Return the object's tags."""
        response = self._answer("GET", "GET", key, query_params={"tagging": ""})
        with translated(key):
            root = ElementTree.fromstring(response.data)  # noqa: S314  # expat resolves nothing external
        return {_text(tag, "Key"): _text(tag, "Value") for tag in root.iter() if _name(tag) == "Tag"}

    def attributes(self, key: str, head: Head) -> dict[bytes, bytes]:
        """Return what the object carries beside its bytes; tags cost one more request where there are any."""
        count = head.headers.get("x-amz-tagging-count") or head.headers.get("x-oss-tagging-count") or "0"
        try:
            return attributes(head.headers, self.tags(key) if count != "0" else {})
        except BadCredentials:
            raise
        except Forbidden as error:
            raise Forbidden(f"{error.args[0]} (its tags may not be read: s3:GetObjectTagging is missing)") from error

    def put_tags(self, key: str, tags: Mapping[str, str]) -> None:
        """Give an object these tags."""
        pairs = "".join(f"<Tag><Key>{escape(key)}</Key><Value>{escape(tags[key])}</Value></Tag>" for key in tags)
        body = f"<Tagging><TagSet>{pairs}</TagSet></Tagging>".encode()
        digest = base64.b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode()
        headers = {"Content-Type": "application/xml", "Content-MD5": digest}
        self._answer("PUT", "PUT", key, body=body, headers=headers, query_params={"tagging": ""})

    def put(self, key: str, data: bytes, headers: Mapping[str, str]) -> None:
        """Store a whole object."""
        self._answer("PUT", "PUT", key, body=data, headers=dict(headers))

    def begin_upload(self, key: str, headers: Mapping[str, str]) -> str:
        """Begin an object of many parts; return the upload's id."""

        def begin() -> str:
            return self._client._create_multipart_upload(self.bucket, key, dict(headers))

        return self._repeated("POST", key, begin)

    def put_part(self, key: str, upload: str, number: int, data: bytes) -> str:
        """Store one part, counted from 1; return its ETag."""
        query = {"partNumber": str(number), "uploadId": upload}
        response = self._answer("PUT", "PUT", key, body=data, query_params=query)
        return str(response.headers.get("etag", "")).strip('"')

    def end_upload(self, key: str, upload: str, etags: list[str]) -> None:
        """Make the object of its parts."""
        parts = "".join(
            f"<Part><PartNumber>{number}</PartNumber><ETag>&quot;{etag}&quot;</ETag></Part>"
            for number, etag in enumerate(etags, 1)
        )
        body = f"<CompleteMultipartUpload>{parts}</CompleteMultipartUpload>".encode()
        response = self._answer(
            "POST",
            "POST",
            key,
            body=body,
            headers={"Content-Type": "application/xml"},
            query_params={"uploadId": upload},
        )
        # A server may begin to answer with status 200 before it knows.
        if b"<Error>" in response.data:
            raise StorageError(f"{key}: its parts were not put together: {response.data[:300]!r}")

    def abort_upload(self, key: str, upload: str) -> None:
        """Delete the parts that were stored."""
        self._answer("DELETE", "DELETE", key, query_params={"uploadId": upload})

    def _answer(self, verb: str, method: str, key: str, **options: Any) -> Any:
        return self._repeated(verb, key, lambda: self._send(method, key, **options))

    def _send(self, method: str, key: str, **options: Any) -> Any:
        # The public calls parse what is not needed, and refuse keys that servers take.
        return self._client._execute(method, self.bucket, key or None, **options)

    def _repeated(self, verb: str, key: str, attempt: Callable[[], T]) -> T:
        for pause_s in (*_PAUSES_S, None):
            with self._mutex:
                self._counts[verb] += 1
            try:
                with _told(key or f"bucket {self.bucket}"):
                    return attempt()
            except StorageError as error:
                if not error.transient or pause_s is None:
                    raise
                halt.sleep(pause_s)
        raise AssertionError("the last attempt returns or raises")


@contextlib.contextmanager
def _told(what: str) -> Iterator[None]:
    """Raise what went wrong as a storage error, the cases that matter here by their own names."""
    try:
        with translated(what):
            yield
    except StorageError as error:
        cause = error.__cause__
        code = (cause.code or "") if isinstance(cause, S3Error) else ""
        special = _SPECIAL.get(code)
        if special is None:
            raise
        hint = _HINTS.get(code)
        raise special(f"{error.args[0]} ({hint})" if hint else error.args[0]) from cause


@contextlib.contextmanager
def as_source() -> Iterator[None]:
    """Raise storage errors as what they mean for a source as a whole."""
    try:
        yield
    except StorageError as error:
        raise _meaning(error, SourceMissing, SourceDenied, SourceUnavailable, SourceError) from error


@contextlib.contextmanager
def as_target() -> Iterator[None]:
    """Raise storage errors as what they mean for a target as a whole."""
    try:
        yield
    except StorageError as error:
        raise _meaning(error, TargetMissing, TargetDenied, TargetUnavailable, TargetError) from error


def is_whole(error: StorageError) -> bool:
    """Say whether an error on one object concerns the whole bucket."""
    return error.transient or isinstance(error, Unreachable | BadCredentials | StorageFull)


def is_archive(storage_class: str) -> bool:
    """Say whether objects of the class must be thawed before they can be read."""
    return storage_class.lower() in _ARCHIVE


def identity(etag: str, version: str) -> int:
    """Return 64 bits that stand for one version of an object. An ETag's case is not the same everywhere."""
    digest = hashlib.blake2b(f"{etag.lower()}\0{version}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big")


def nanoseconds(text: str) -> int:
    """Return the time of an ISO 8601 text; OSS writes dashes between the hours and minutes of some."""
    if text[13:14] == "-":
        text = text[:10] + text[10:].replace("-", ":")
    moment = dt.datetime.fromisoformat(text)
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=dt.UTC)
    return (moment - _EPOCH) // _MICROSECOND * 1000


def _meaning(
    error: StorageError,
    missing: type[Exception],
    denied: type[Exception],
    unavailable: type[Exception],
    other: type[Exception],
) -> Exception:
    text = str(error.args[0])
    if isinstance(error, NoBucket):
        return missing(f"there is no such bucket: {text}")
    if isinstance(error, Forbidden):
        return denied(text)
    if error.transient or (isinstance(error, Unreachable) and not isinstance(error.__cause__, S3Error)):
        return unavailable(text)
    return other(text)


def _head(response: Any) -> Head:
    headers = response.headers
    total = headers.get("Content-Range", "").rpartition("/")[2] or headers.get("Content-Length", "0")
    version = headers.get("x-amz-version-id") or headers.get("x-oss-version-id") or ""
    try:
        modified = email.utils.parsedate_to_datetime(headers["Last-Modified"]) if "Last-Modified" in headers else _EPOCH
        size, modified_ns = int(total), (modified - _EPOCH) // _MICROSECOND * 1000
    except (TypeError, ValueError) as error:
        raise StorageError(f"the server tells size or time of an object in a way that is none: {error}") from error
    etag = headers.get("ETag", "").strip('"')
    return Head(size, modified_ns, etag, "" if version == "null" else version, headers)


def _name(element: ElementTree.Element) -> str:
    return _local(element.tag)


@functools.lru_cache(256)
def _local(tag: str) -> str:
    return tag.rpartition("}")[2]


def _text(element: ElementTree.Element, name: str) -> str:
    return next((child.text or "" for child in element if _name(child) == name), "")


def _parsed(root: ElementTree.Element, parameters: Mapping[str, str]) -> Page:
    """Read a page of either kind of listing."""
    said: dict[str, str] = {}
    objects: list[dict[str, str]] = []
    prefixes: list[str] = []
    for child in root:
        name = _name(child)
        if name in ("Contents", "Version"):
            objects.append({_local(field.tag): field.text or "" for field in child})
        elif name == "CommonPrefixes":
            prefixes.append(_text(child, "Prefix"))
        else:
            said[name] = child.text or ""
    if _name(root) not in ("ListBucketResult", "ListVersionsResult"):
        raise ElementTree.ParseError(f"a {_name(root)} instead of a listing")
    decoded = unquote_plus if said.get("EncodingType") == "url" else str
    current = [one for one in objects if one.get("IsLatest", "true") == "true"]
    keys = decoded("\n".join([one["Key"] for one in current])).split("\n")  # a page at once is much faster
    if len(keys) != len(current):
        keys = [decoded(one["Key"]) for one in current]  # there is a line feed in one of them
    found = [
        Listed(
            key,
            int(one["Size"]),
            nanoseconds(one["LastModified"]),
            one["ETag"].strip('"'),
            one.get("StorageClass", ""),
            one.get("VersionId", "").removeprefix("null"),
        )
        for key, one in zip(keys, current, strict=True)
    ]
    return Page(found, [decoded(prefix) for prefix in prefixes], _following(said, parameters, decoded))


def _following(said: dict[str, str], parameters: Mapping[str, str], decoded: Callable[[str], str]) -> dict[str, str]:
    if said.get("IsTruncated") != "true":
        return {}
    if "NextContinuationToken" in said:
        kept = {name: value for name, value in parameters.items() if name != "start-after"}
        return {**kept, "continuation-token": said["NextContinuationToken"]}
    if "NextKeyMarker" in said:
        return {
            **parameters,
            "key-marker": decoded(said["NextKeyMarker"]),
            "version-id-marker": said.get("NextVersionIdMarker", ""),
        }
    raise ElementTree.ParseError("a listing that goes on but does not say where")
