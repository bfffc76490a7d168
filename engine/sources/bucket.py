"""Objects of a bucket: S3, OSS and what speaks like them (docs/sources/bucket.md)."""

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

import msgspec

from engine.connections.keypaths import key_of
from engine.connections.sorting import Sorter
from engine.entries import Entry, Kind, Problem
from engine.errors import Forbidden, NotFound, SourceDenied, SourceError, StorageError
from engine.patterns import Selection, Verdict
from engine.perprocess import PerProcess
from engine.sources.breath import breathing
from engine.sources.objects import PARTED_BYTES, PIECE_BYTES, ObjectReader, object_problem
from engine.sources.port import BaseSource, Identity
from engine.sources.prefetch import Prefetch
from engine.storage.location import Location

if TYPE_CHECKING:
    from engine.connections.bucket import BucketClient, Head
    from engine.sources.inventory import Inventory

_PRIVATE = 0o600


class _Fetched(NamedTuple):
    """One object, read whole."""

    head: "Head"
    data: bytes
    xattrs: dict[bytes, bytes]


class BucketSource(BaseSource, frozen=True, tag="bucket", kw_only=True):
    """The objects of `location` (s3://bucket) whose keys begin with `prefix`, a plain string; empty is all (A20).

    Patterns are tried on paths made of keys (engine.connections.keypaths). Objects in archive classes are Problems that
    lose nothing; with `ignore_archived` they are not told of (A4). `by_version` lists versions, which is dearer in
    buckets with many, and takes an object for changed when its version id did. `inventory` (s3://bucket/prefix of the
    same server) takes the keys from the newest inventory there instead of listing; only keys that begin with one of
    `hot_prefixes` are listed then (A22). `listers` and `readers` are threads.
    """

    location: Location
    prefix: str = ""
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    ignore_archived: bool = False
    by_version: bool = False
    inventory: str = ""
    hot_prefixes: tuple[str, ...] = ()
    listers: int = 8
    readers: int = 16
    connect_s: float = 10.0
    read_s: float = 60.0

    def __repr__(self) -> str:
        return f"BucketSource({self.location!r}, prefix={self.prefix!r})"

    def identity(self) -> Identity:
        """Return the server and the address of what is read."""
        return Identity(
            "bucket", urlsplit(self.location.endpoint).netloc.rpartition("@")[2], [f"{self._address}/{self.prefix}"]
        )

    def options(self) -> dict[str, list[str]]:
        """Return what was chosen, without what was left as it is."""
        chosen = {
            "prefix": [self.prefix],
            "include": list(self.include),
            "exclude": list(self.exclude),
            "inventory": [self.inventory],
            "hot_prefixes": list(self.hot_prefixes),
            "ignore_archived": ["yes"] * self.ignore_archived,
            "by_version": ["yes"] * self.by_version,
        }
        return {name: values for name, values in chosen.items() if any(values)}

    def check(self) -> None:
        """Try the credentials, the bucket, and the rights to list and to read (A30).

        Raises SourceMissing, SourceDenied, SourceUnavailable, ArchiveBucket (A3), BadPattern.
        """
        from engine.connections import bucket

        self._validate()
        Selection(self.include, self.exclude)
        with bucket.as_source():
            try:
                found = self._client.page({"prefix": self.prefix, "max-keys": "1"}).objects
            except bucket.BadCredentials:
                raise
            except Forbidden as error:
                raise SourceDenied(
                    f"the bucket {self.location.bucket} can't be listed with these credentials: {error.args[0]}"
                ) from error
            self._check_class()
            if found:
                self._check_reading(found[0].key)
        if self.inventory:
            self._inventory().newest()

    def requests(self) -> dict[str, int]:
        """Return what this process has asked since the last call."""
        counts: Counter[str] = Counter()
        for connected in self._clients.values():
            if client := connected.made():
                counts.update(client.requests())
        return dict(counts)

    def expect(self, entries: Sequence[Entry]) -> None:
        """Begin to fetch those that are read whole."""
        self._prefetch.expect([entry for entry in entries if entry.kind == Kind.FILE and entry.size <= PIECE_BYTES])

    def walk(self) -> Iterator[Entry | Problem | None]:
        """List everything, sort it, and yield it; an object in an archive class is a Problem."""
        selection = Selection(self.include, self.exclude)
        with Sorter() as sorter:
            yield from breathing(lambda: self._gather(sorter), stop=sorter.stop)
            last = b""
            for row in sorter.merged():
                path = row.sort_key.replace(b"\0", b"/")
                if path == last:
                    continue  # an inventory may tell of a key twice
                last = path
                if not selection.everything and selection.verdict(path, folder=False) is not Verdict.KEEP:
                    continue
                if not row.archived:
                    yield Entry(path, Kind.FILE, _PRIVATE, size=row.size, mtime_ns=row.mtime_ns, inode=row.inode)
                elif not self.ignore_archived:
                    yield Problem(path, "archived", f"its storage class is {row.archived}: left out", lost=False)

    def open(self, entry: Entry) -> "ObjectReader | Problem":
        """Open one version of an object: the one that was listed, or the one that took its place."""
        key = key_of(entry.path)
        try:
            if entry.size <= PIECE_BYTES:
                head, data, xattrs = self._fetched(entry)
                if len(data) == head.size:
                    fresh = self._fresh(entry, head, xattrs)
                    return ObjectReader(self._client, fresh, head, self._overwritten, data=data)
            else:
                head = self._client.head(key)
            if entry.size > PARTED_BYTES and self._inode(head) != entry.inode:
                # Other workers may have read other parts of it already, of the version that was listed.
                return Problem(entry.path, "changed", "it was overwritten after the listing: the next backup reads it")
            fresh = self._fresh(entry, head, self._client.attributes(key, head))
            return ObjectReader(self._client, fresh, head, self._overwritten)
        except StorageError as error:
            return self._problem(entry, error)

    def read_small(self, entry: Entry, limit: int) -> tuple[Entry, bytes] | Problem | None:
        """Return a whole object, fetched ahead if it was expected."""
        if entry.size > min(limit, PIECE_BYTES):
            return None
        try:
            whole = self._fetched(entry)
        except StorageError as error:
            return self._problem(entry, error)
        if whole.head.size > min(limit, len(whole.data)):
            return None  # it has grown since it was listed
        return self._fresh(entry, whole.head, whole.xattrs), whole.data

    @property
    def _address(self) -> str:
        return f"s3://{self.location.bucket}"

    @property
    def _client(self) -> "BucketClient":
        return self._client_of(self.location.bucket)

    def _client_of(self, name: str) -> "BucketClient":
        """Return this process's client for a bucket of the server."""
        return self._clients.setdefault(name, PerProcess(lambda: self._connect(name)))()

    def _connect(self, name: str) -> "BucketClient":
        # Loading the S3 client takes longer than a small backup of files: only buckets pay for it.
        from engine.connections.bucket import BucketClient

        place = msgspec.structs.replace(self.location, url=f"s3://{name}")
        return BucketClient(place, connect_s=self.connect_s, read_s=self.read_s)

    @cached_property
    def _clients(self) -> "dict[str, PerProcess[BucketClient]]":
        return {}

    @cached_property
    def _prefetch(self) -> Prefetch[_Fetched]:
        return Prefetch(self._fetch, threads=self.readers)

    @cached_property
    def _overwritten(self) -> set[bytes]:
        """The objects that were overwritten while they were read, once each."""
        return set()

    def _validate(self) -> None:
        try:
            self.location.validate()
        except ValueError as error:
            raise SourceError(str(error)) from error
        if not self.location.is_s3 or self.location.prefix:
            raise SourceError(
                f"{self.location.url!r} is not a bucket alone: give s3://bucket, and the prefix by itself"
            )
        if self.inventory and not self.inventory.startswith("s3://"):
            raise SourceError(f"{self.inventory!r} is not where an inventory lies: give s3://bucket/prefix")
        if self.inventory and self.by_version:
            raise SourceError("an inventory can't be used together with listing by version: choose one of them")
        if self.listers < 1 or self.readers < 1:
            raise SourceError("listers and readers are threads: give at least one of each")

    def _check_class(self) -> None:
        from engine.connections.bucket import ArchiveBucket, is_archive

        try:
            said = self._client.about()
        except StorageError as error:
            if error.transient:
                raise
            return  # it can be listed: whoever may not ask about the bucket may still read it
        for name in ("x-oss-storage-class", "x-amz-storage-class"):
            if is_archive(said.get(name, "")):
                raise ArchiveBucket(f"the bucket {self.location.bucket} is of the class {said[name]}")

    def _check_reading(self, key: str) -> None:
        from engine.connections.bucket import BadCredentials, NoBucket

        try:
            self._client.head(key)
        except (NotFound, NoBucket):
            return  # deleted just now
        except BadCredentials:
            raise
        except Forbidden as error:
            raise SourceDenied(
                f"the bucket {self.location.bucket} can be listed, but {key!r} can't be read: {error.args[0]}"
            ) from error

    def _gather(self, sorter: Sorter) -> None:
        from engine.connections.bucket import as_source
        from engine.connections.bucketlist import list_into

        listed = [self.prefix] if not self.inventory else self._hot()
        with as_source():
            list_into(sorter, self._client, listed, threads=self.listers, versions=self.by_version)
        if listed != [self.prefix]:
            hot = tuple(listed)
            self._inventory().read_into(
                sorter, wanted=lambda key: key.startswith(self.prefix) and not (hot and key.startswith(hot))
            )

    def _hot(self) -> list[str]:
        """Return the prefixes to list in spite of the inventory, none inside another."""
        if self.prefix.startswith(self.hot_prefixes):
            return [self.prefix]
        inside = sorted(hot for hot in set(self.hot_prefixes) if hot.startswith(self.prefix))
        return [hot for number, hot in enumerate(inside) if not hot.startswith(tuple(inside[:number]))]

    def _inventory(self) -> "Inventory":
        from engine.sources.inventory import Inventory

        bucket, _, prefix = self.inventory.removeprefix("s3://").partition("/")
        return Inventory(self._client_of(bucket), prefix, source_bucket=self.location.bucket)

    def _fetch(self, entry: Entry) -> _Fetched:
        key = key_of(entry.path)
        head, data = self._client.get(key, most=PIECE_BYTES)
        return _Fetched(head, data, self._client.attributes(key, head))

    def _fetched(self, entry: Entry) -> _Fetched:
        ahead = self._prefetch.take(entry)
        return ahead.result() if ahead is not None else self._fetch(entry)

    def _problem(self, entry: Entry, error: StorageError) -> Problem:
        """Return what a failed request means for the object; when the bucket is away, ask for nothing more."""
        from engine.connections.bucket import is_whole

        if is_whole(error):
            self._prefetch.close()
        return object_problem(entry, error)

    def _inode(self, head: "Head") -> int:
        from engine.connections.bucket import identity

        return identity(head.etag, head.version if self.by_version else "")

    def _fresh(self, entry: Entry, head: "Head", xattrs: dict[bytes, bytes]) -> Entry:
        """Return the entry as of reading. Headers have whole seconds: they count only for another version."""
        inode = self._inode(head)
        if inode == entry.inode:
            return msgspec.structs.replace(entry, xattrs=xattrs)
        return msgspec.structs.replace(entry, size=head.size, mtime_ns=head.modified_ns, inode=inode, xattrs=xattrs)
