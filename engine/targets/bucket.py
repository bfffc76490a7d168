"""A bucket as a target: objects under a prefix, small ones by one request, large ones in parts (A29)."""

import contextlib
import errno
from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING
from urllib.parse import quote, urlencode

from engine.connections.keypaths import key_of, path_of
from engine.connections.objectmeta import tags_of, upload_headers
from engine.connections.sorting import Row, Sorter
from engine.entries import Entry, Kind, Problem, sort_key
from engine.errors import Forbidden, NotFound, StorageError, TargetError
from engine.perprocess import PerProcess
from engine.storage.location import Location
from engine.targets.port import BaseTarget

if TYPE_CHECKING:
    from engine.connections.bucket import BucketClient

PART_BYTES = 16 << 20
_PARTS = 9_000  # an object has at most 10,000
_LOOKS = 200  # so many single look-ups cost as much as listing some thousand keys
_LISTERS = 4


class BucketTarget(BaseTarget, frozen=True, tag="bucket", kw_only=True):
    """The bucket `location` (s3://bucket); every key is put behind `prefix`, a plain string.

    An object is there whole or not at all. A crash may leave parts of an upload that are not listed: let the bucket's
    lifecycle delete those. Memory: one part for each large object under way, 16 MiB for objects up to 140 GB.
    """

    location: Location
    prefix: str = ""
    connect_s: float = 10.0
    read_s: float = 60.0

    def __repr__(self) -> str:
        return f"BucketTarget({self.location!r}, prefix={self.prefix!r})"

    def where(self) -> str:
        return f"s3://{self.location.bucket}/{self.prefix} at {self.location.endpoint}"

    def check(self) -> None:
        """Raise TargetMissing without the bucket, TargetDenied when it can't be listed, TargetUnavailable."""
        from engine.connections.bucket import as_target

        try:
            self.location.validate()
        except ValueError as error:
            raise TargetError(str(error)) from error
        if not self.location.is_s3 or self.location.prefix:
            raise TargetError(
                f"{self.location.url!r} is not a bucket alone: give s3://bucket, and the prefix by itself"
            )
        with as_target():
            self._client.page({"prefix": self.prefix, "max-keys": "1"})

    def existing(self, path: bytes) -> int | None:
        """Return FILE for an object, DIRECTORY when there are keys below `path`. Raises UnsafePath, TargetError.

        Cheap for many paths that are asked in listing order: after some, the whole prefix is listed once.
        """
        from engine.connections.bucket import as_target

        key = self._key(path)
        with as_target():
            return self._standing.look(key)

    def create(self, entry: Entry) -> "BucketWriter":
        """Begin an object; nothing is sent before it has a whole part."""
        return BucketWriter(self._client, self._key(entry.path), entry)

    def write_small(self, entry: Entry, data: bytes | memoryview) -> list[Problem]:
        """Store a whole object by one request."""
        return _put(self._client, self._key(entry.path), entry, bytes(data))

    def _key(self, path: bytes) -> str:
        key = self.prefix + key_of(path)
        key_of(path_of(key))  # the prefix may make it too long
        return key

    @property
    def _client(self) -> "BucketClient":
        return self._connected()

    @cached_property
    def _connected(self) -> "PerProcess[BucketClient]":
        return PerProcess(self._connect)

    def _connect(self) -> "BucketClient":
        # Loading the S3 client takes longer than a small restore of files: only buckets pay for it.
        from engine.connections.bucket import BucketClient

        return BucketClient(self.location, connect_s=self.connect_s, read_s=self.read_s)

    @cached_property
    def _standing(self) -> "_Standing":
        return _Standing(self._client, self.prefix)


class BucketWriter:
    """One object being written front to back (the Writer port). `write` needs offsets without gaps."""

    def __init__(self, client: "BucketClient", key: str, entry: Entry) -> None:
        self._client, self._key, self._entry = client, key, entry
        self._part_bytes = max(PART_BYTES, -(-entry.size // _PARTS))
        self._buffer = bytearray()
        self._upload = ""
        self._etags: list[str] = []

    def write(self, data: memoryview | bytes, offset: int) -> None:
        """Take the next bytes; send a part when there is one. Raises OSError for this object, TargetError."""
        assert offset == len(self._etags) * self._part_bytes + len(self._buffer)
        self._buffer += data
        while len(self._buffer) >= self._part_bytes:
            self._send()

    def commit(self) -> list[Problem]:
        """Make the object; what was sent is deleted when that fails."""
        if not self._upload:
            return _put(self._client, self._key, self._entry, bytes(self._buffer))
        try:
            if self._buffer:
                self._send()
            with _object_errors():
                self._client.end_upload(self._key, self._upload, self._etags)
        except BaseException:
            self.abort()
            raise
        return _tag(self._client, self._key, self._entry)  # some servers ignore the tags of an upload in parts

    def abort(self) -> None:
        """Delete the parts that were sent."""
        upload, self._upload = self._upload, ""
        if upload:
            with contextlib.suppress(StorageError):  # something worse is being told
                self._client.abort_upload(self._key, upload)

    def _send(self) -> None:
        part = bytes(self._buffer[: self._part_bytes])
        with _object_errors():
            if not self._upload:
                self._upload = self._client.begin_upload(self._key, upload_headers(self._entry.xattrs))
            self._etags.append(self._client.put_part(self._key, self._upload, len(self._etags) + 1, part))
        del self._buffer[: self._part_bytes]


class _Standing:
    """What stands in the target already: asked key by key, and after some by one listing, walked along."""

    def __init__(self, client: "BucketClient", prefix: str) -> None:
        self._client, self._prefix = client, prefix
        self._looks = 0
        self._rows: Iterator[Row] | None = None
        self._row: Row | None = None
        self._asked = b""

    def look(self, key: str) -> int | None:
        self._looks += 1
        wanted = sort_key(path_of(key))
        if self._looks <= _LOOKS or wanted < self._asked:
            return self._single(key)
        if self._rows is None:
            self._rows = self._listed()
            self._row = next(self._rows, None)
        self._asked = wanted
        while self._row is not None and self._row.sort_key < wanted:
            self._row = next(self._rows, None)
        if self._row is None:
            return None
        if self._row.sort_key == wanted:
            return Kind.FILE
        return Kind.DIRECTORY if self._row.sort_key.startswith(wanted + b"\0") else None

    def _single(self, key: str) -> int | None:
        from engine.connections.bucket import is_whole

        try:
            self._client.head(key)
        except NotFound:
            # Nothing can be said to be inside of a folder's mark, and some servers refuse to look.
            below = [] if key.endswith("/") else self._client.page({"prefix": f"{key}/", "max-keys": "1"}).objects
            return Kind.DIRECTORY if below else None
        except StorageError as error:
            if is_whole(error) or isinstance(error, Forbidden):
                raise
            return None  # a name that the server can't have: writing it will tell
        return Kind.FILE

    def _listed(self) -> Iterator[Row]:
        from engine.connections.bucketlist import list_into

        with Sorter() as sorter:
            list_into(sorter, self._client, [self._prefix], threads=_LISTERS)
            yield from sorter.merged()


def _put(client: "BucketClient", key: str, entry: Entry, data: bytes) -> list[Problem]:
    headers, tags = upload_headers(entry.xattrs), tags_of(entry.xattrs)
    with _object_errors():
        if tags:
            try:
                client.put(key, data, {**headers, "x-amz-tagging": urlencode(tags, quote_via=quote)})
                return []
            except StorageError as error:
                if error.transient:
                    raise
        client.put(key, data, headers)
    return _tag(client, key, entry)


def _tag(client: "BucketClient", key: str, entry: Entry) -> list[Problem]:
    """Give a stored object its tags; what the server or the account can't have is no reason to lose the object."""
    tags = tags_of(entry.xattrs)
    try:
        if tags:
            client.put_tags(key, tags)
    except StorageError as error:
        return [Problem(entry.path, "attributes", f"the tags were not set: {error.args[0]}", lost=False)]
    return []


@contextlib.contextmanager
def _object_errors() -> Iterator[None]:
    """Raise what concerns one object as OSError, what concerns the bucket as a kind of TargetError."""
    from engine.connections.bucket import as_target, is_whole

    with as_target():
        try:
            yield
        except StorageError as error:
            if is_whole(error) or isinstance(error, Forbidden):
                raise
            raise OSError(errno.EIO, str(error.args[0])) from error
