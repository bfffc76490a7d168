"""The inventory that a server makes of a bucket: a list of its keys, some hours old (A22; docs/sources/bucket.md).

    <prefix>/<YYYY-MM-DDTHH-MMZ>/manifest.json       which files, of which columns, with their digests
    <prefix>/<YYYY-MM-DDTHH-MMZ>/manifest.checksum   the MD5 of the manifest, written last
    <prefix>/data/...                                CSV, mostly compressed, or Parquet

Nothing of a file is used before its digest was compared.
"""

import contextlib
import csv
import gzip
import hashlib
import io
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Any, NamedTuple
from urllib.parse import unquote_plus

import msgspec

from engine.connections.bucket import BucketClient, Listed, as_source, nanoseconds
from engine.connections.bucketlist import row_of
from engine.connections.sorting import Sorter
from engine.errors import ExtraMissing, NotFound, SourceError, SourceIncomplete, SourceMissing

_DATE = re.compile(r"\d{4}-\d\d-\d\dT\d\d-\d\dZ/\Z")
_GZIP = b"\x1f\x8b"
_PIECE_BYTES = 8 << 20
_BATCH = 1000
_NEEDED = ("key", "size", "lastmodifieddate", "etag")


class _File(msgspec.Struct):
    """One data file of an inventory."""

    key: str
    size: int
    md5: str = msgspec.field(name="MD5checksum")


class Manifest(msgspec.Struct, rename="camel"):
    """What the manifest of an inventory says."""

    source_bucket: str
    file_format: str
    file_schema: str
    files: list[_File]


class Inventory:
    """The inventories of one configuration, below `prefix` of the client's bucket."""

    def __init__(self, client: BucketClient, prefix: str, *, source_bucket: str) -> None:
        self._client = client
        self._prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        self._source_bucket = source_bucket

    def newest(self) -> Manifest:
        """Return the manifest of the newest complete inventory.

        Raises SourceMissing when there is none, SourceIncomplete for a digest that is another one, SourceError for one
        of another bucket or without the columns that a backup needs.
        """
        where = f"s3://{self._client.bucket}/{self._prefix}"
        with as_source():
            dates: list[str] = []
            for page in self._client.scan({"prefix": self._prefix, "delimiter": "/"}):
                dates += [prefix for prefix in page.prefixes if _DATE.search(prefix)]
            for date in sorted(dates, reverse=True):
                try:
                    _, checksum = self._client.get(f"{date}manifest.checksum")
                except NotFound:
                    continue  # it is being written
                _, raw = self._client.get(f"{date}manifest.json")
                if not _same(hashlib.md5(raw, usedforsecurity=False), checksum.decode("ascii", "replace")):
                    raise SourceIncomplete(f"the inventory {date}manifest.json is not what its checksum says")
                return self._checked(raw, where)
        raise SourceMissing(
            f"there is no complete inventory at {where}: give the folder in which its dates lie, "
            "such as s3://bucket/destination-prefix/source-bucket/inventory-id"
        )

    def read_into(self, sorter: Sorter, *, wanted: Callable[[str], bool]) -> None:
        """Give the sorter the current version of every key that is wanted. Raises what `newest` raises."""
        manifest = self.newest()
        for file in manifest.files:
            with as_source(), self._downloaded(file) as data:
                batch = []
                for listed in _current(_records(data, manifest)):
                    if wanted(listed.key):
                        batch.append(row_of(listed))
                    if len(batch) == _BATCH:
                        sorter.add(batch)
                        batch = []
                sorter.add(batch)

    def _checked(self, raw: bytes, where: str) -> Manifest:
        try:
            manifest = msgspec.json.decode(raw, type=Manifest)
        except msgspec.DecodeError as error:
            raise SourceError(f"the inventory at {where} has a manifest that can't be read: {error}") from error
        named = manifest.source_bucket.rpartition(":")[2]
        if named != self._source_bucket:
            raise SourceError(f"the inventory at {where} is of the bucket {named}, not of {self._source_bucket}")
        if manifest.file_format.upper() not in ("CSV", "PARQUET"):
            raise SourceError(f"the inventory at {where} is in {manifest.file_format}: have it made as CSV or Parquet")
        if manifest.file_format.upper() == "CSV":
            missing = set(_NEEDED).difference(_columns(manifest))
            if missing:
                raise SourceError(
                    f"the inventory at {where} lacks {', '.join(sorted(missing))}: have it made with the fields Size, "
                    "LastModifiedDate, ETag and StorageClass"
                )
        return manifest

    def _downloaded(self, file: _File) -> IO[bytes]:
        """Return a data file, checked, in a file without a name."""
        digest = hashlib.md5(usedforsecurity=False)
        head = self._client.head(file.key)
        with contextlib.ExitStack() as stack:
            data = stack.enter_context(tempfile.TemporaryFile())
            for start in range(0, head.size, _PIECE_BYTES):
                length = min(_PIECE_BYTES, head.size - start)
                _, piece = self._client.get(file.key, start=start, length=length, etag=head.etag)
                digest.update(piece)
                data.write(piece)
            if not _same(digest, file.md5):
                raise SourceIncomplete(f"the inventory's file {file.key} is not what the manifest's checksum says")
            data.seek(0)
            stack.pop_all()  # it is the caller's now
        return data


class _Record(NamedTuple):
    """One line of an inventory: column (lower case, without underscores) -> value."""

    values: dict[str, Any]

    def flag(self, name: str, otherwise: bool) -> bool:
        value = self.values.get(name)
        return otherwise if value is None or value == "" else str(value).lower() == "true"


def _current(records: Iterable[_Record]) -> Iterator[Listed]:
    """Yield the objects that a listing would have shown."""
    for record in records:
        if not record.flag("islatest", True) or record.flag("isdeletemarker", False):
            continue
        values = record.values
        modified = values["lastmodifieddate"]
        text = modified if isinstance(modified, str) else modified.isoformat()
        etag = str(values["etag"]).strip('"')
        yield Listed(values["key"], int(values["size"]), nanoseconds(text), etag, values.get("storageclass") or "")


def _records(data: IO[bytes], manifest: Manifest) -> Iterator[_Record]:
    try:
        yield from (_csv if manifest.file_format.upper() == "CSV" else _parquet)(data, manifest)
    except (csv.Error, EOFError, KeyError, ValueError, OSError) as error:
        raise SourceIncomplete(f"a file of the inventory can't be read: {error}") from error


def _csv(data: IO[bytes], manifest: Manifest) -> Iterator[_Record]:
    columns = _columns(manifest)
    packed = data.read(2) == _GZIP
    data.seek(0)
    plain: IO[bytes] = gzip.GzipFile(fileobj=data) if packed else data  # type: ignore[assignment]  # it reads alike
    with io.TextIOWrapper(plain, "utf-8", newline="") as text:
        for line in csv.reader(text):
            record = dict(zip(columns, line, strict=True))
            record["key"] = unquote_plus(record["key"])
            yield _Record(record)


def _parquet(data: IO[bytes], manifest: Manifest) -> Iterator[_Record]:
    try:
        # 170 MB that only this format needs.
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise ExtraMissing(
            "an inventory in Parquet needs a package: pip install pyarrow==26.0.1, or have it made as CSV"
        ) from error
    try:
        for batch in ParquetFile(data).iter_batches():
            names = [_plain(name) for name in batch.schema.names]
            for values in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                yield _Record(dict(zip(names, values, strict=True)))
    except ArrowException as error:
        raise SourceIncomplete(f"a file of the inventory can't be read: {error}") from error


def _columns(manifest: Manifest) -> list[str]:
    return [_plain(name) for name in manifest.file_schema.split(",")]


def _plain(name: str) -> str:
    return name.strip().replace("_", "").lower()


def _same(digest: Any, said: str) -> bool:
    return bool(digest.hexdigest() == said.strip().strip('"').lower())
