"""Backups by an inventory: its files checked, its list taken for what it is, hot prefixes listed (A22).

No server at hand makes inventories, so the tests write them, in the forms that AWS and OSS document.
"""

import csv
import datetime as dt
import gzip
import hashlib
import io
import json
import sys
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote_plus

import pyarrow
import pyarrow.parquet
import pytest

from engine.entries import Entry
from engine.errors import ExtraMissing, SourceError, SourceIncomplete, SourceMissing
from engine.sources.bucket import BucketSource
from engine.storage.location import Location
from tests.support.bucket_double import MODIFIED, BucketDouble, serving
from tests.support.vaults import Bench, contents

AWS = ("Bucket", "Key", "VersionId", "IsLatest", "IsDeleteMarker", "Size", "LastModifiedDate", "ETag", "StorageClass")
OSS = ("Bucket", "Key", "Size", "StorageClass", "LastModifiedDate", "ETag", "IsMultipartUploaded", "EncryptionStatus")
PARQUET = ("bucket", "key", "is_latest", "is_delete_marker", "size", "last_modified_date", "e_tag", "storage_class")
WHERE = "s3://bucket/lists/bucket/daily"


@pytest.fixture
def double() -> BucketDouble:
    made = BucketDouble()
    for key in ("a", "new/1", "photos/ä +%.jpg", "z/deep/x"):
        made.put(key, f"body of {key}".encode())
    return made


@pytest.fixture
def at(double: BucketDouble) -> Iterator[Location]:
    with serving(double) as endpoint:
        yield Location(url="s3://bucket", endpoint=endpoint)


def row(double: BucketDouble, key: str, **other: Any) -> dict[str, Any]:
    held = double.held[key]
    return {
        "bucket": "bucket",
        "key": key,
        "versionid": "",
        "islatest": "true",
        "isdeletemarker": "false",
        "size": len(held.body),
        "lastmodifieddate": MODIFIED,
        "etag": held.etag,
        "storageclass": held.storage_class,
        **other,
    }


def as_csv(rows: list[dict[str, Any]], columns: tuple[str, ...], *, packed: bool = True) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, quoting=csv.QUOTE_ALL)
    for one in rows:
        values = {**one, "key": quote_plus(one["key"], safe="/")}
        writer.writerow([values.get(column.lower(), "") for column in columns])
    plain = text.getvalue().encode()
    return gzip.compress(plain) if packed else plain


def as_parquet(rows: list[dict[str, Any]]) -> bytes:
    fields: dict[str, list[Any]] = {name: [] for name in PARQUET}
    for one in rows:
        for name in PARQUET:
            fields[name].append(one[name.replace("_", "")])
    fields["last_modified_date"] = [dt.datetime.fromisoformat(text) for text in fields["last_modified_date"]]
    for name in ("is_latest", "is_delete_marker"):
        fields[name] = [text == "true" for text in fields[name]]
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(fields), file)
    return file.getvalue()


def deliver(
    double: BucketDouble,
    files: list[bytes],
    *,
    date: str = "2026-03-04T01-00Z",
    columns: tuple[str, ...] = AWS,
    **said: Any,
) -> None:
    """Put an inventory into the bucket as a server does: data, manifest, and its checksum last."""
    described = []
    for number, data in enumerate(files):
        key = f"lists/bucket/daily/data/{date}-{number}"
        double.put(key, data)
        described.append({"key": key, "size": len(data), "MD5checksum": hashlib.md5(data).hexdigest()})
    manifest = json.dumps(
        {
            "sourceBucket": "bucket",
            "destinationBucket": "arn:aws:s3:::bucket",
            "version": "2016-11-30",
            "creationTimestamp": "1772586000000",
            "fileFormat": "CSV",
            "fileSchema": ", ".join(columns),
            "files": described,
            **said,
        }
    ).encode()
    double.put(f"lists/bucket/daily/{date}/manifest.json", manifest)
    double.put(f"lists/bucket/daily/{date}/manifest.checksum", hashlib.md5(manifest).hexdigest().encode() + b"\n")


def all_rows(double: BucketDouble) -> list[dict[str, Any]]:
    return [row(double, key) for key in reversed(double.order) if not key.startswith("lists/")]


def walked(source: BucketSource) -> list[Entry]:
    return [found for found in source.walk() if isinstance(found, Entry)]


@pytest.mark.rule("A22")
@pytest.mark.parametrize("form", ["aws csv", "oss csv", "plain csv", "parquet"])
def test_an_inventory_gives_what_a_listing_gives(double: BucketDouble, at: Location, form: str) -> None:
    rows = all_rows(double)
    if form == "parquet":
        schema = "message s3.inventory { required binary bucket (UTF8); }"
        deliver(double, [as_parquet(rows[:2]), as_parquet(rows[2:])], fileFormat="Parquet", fileSchema=schema)
    elif form == "oss csv":
        dashed = [{**one, "lastmodifieddate": "2024-05-06T07-08-09Z", "etag": one["etag"].upper()} for one in rows]
        deliver(double, [as_csv(dashed, OSS)], columns=OSS)
    else:
        deliver(double, [as_csv(rows[:1], AWS, packed=form == "aws csv"), as_csv(rows[1:], AWS)])
    listed = [entry for entry in walked(BucketSource(location=at)) if not entry.path.startswith(b"lists/")]
    asked = double.asked["LIST"]
    source = BucketSource(location=at, inventory=WHERE)
    source.check()
    assert walked(source) == listed, "the next backup without the inventory reads nothing anew"
    assert double.asked["LIST"] == asked + 3, "one for the check, and one for each look at the dates"


def test_old_versions_and_delete_markers_are_left_out(double: BucketDouble, at: Location) -> None:
    rows = [
        row(double, "a", islatest="false", etag="old", size=1, versionid="1"),
        row(double, "a", versionid="2"),
        {**row(double, "a"), "key": "gone", "isdeletemarker": "true", "size": "", "etag": ""},
    ]
    deliver(double, [as_csv(rows, AWS)])
    current = len(double.held["a"].body)
    assert [(entry.path, entry.size) for entry in walked(BucketSource(location=at, inventory=WHERE))] == [
        (b"a", current)
    ]


def test_the_newest_inventory_that_is_complete_counts(double: BucketDouble, at: Location) -> None:
    deliver(double, [as_csv([row(double, "a")], AWS)], date="2026-03-04T01-00Z")
    deliver(double, [as_csv([row(double, "z/deep/x")], AWS)], date="2026-03-05T01-00Z")
    source = BucketSource(location=at, inventory=WHERE)
    assert [entry.path for entry in walked(source)] == [b"z/deep/x"]
    double.delete("lists/bucket/daily/2026-03-05T01-00Z/manifest.checksum")
    assert [entry.path for entry in walked(source)] == [b"a"], "one that is still being written does not count"


def test_hot_prefixes_are_listed_and_the_inventory_is_not_asked_about_them(double: BucketDouble, at: Location) -> None:
    stale = [row(double, key) for key in ("a", "new/1", "z/deep/x")]
    deliver(double, [as_csv(stale, AWS)])
    double.delete("new/1")
    double.put("new/2", b"made after the inventory")
    double.put("later", b"made after the inventory")
    cold = BucketSource(location=at, inventory=WHERE)
    assert [entry.path for entry in walked(cold)] == [b"a", b"new/1", b"z/deep/x"]
    hot = BucketSource(location=at, inventory=WHERE, hot_prefixes=("new/", "new/x", "elsewhere/"))
    assert [entry.path for entry in walked(hot)] == [b"a", b"new/2", b"z/deep/x"], "what came later waits"
    inside = BucketSource(location=at, inventory=WHERE, prefix="new/2", hot_prefixes=("new/",))
    assert [entry.path for entry in walked(inside)] == [b"new/2"]


def test_only_keys_of_the_prefix_are_taken(double: BucketDouble, at: Location) -> None:
    deliver(double, [as_csv(all_rows(double), AWS)])
    source = BucketSource(location=at, inventory=WHERE, prefix="z/de")
    assert [entry.path for entry in walked(source)] == [b"z/deep/x"]


def test_what_was_deleted_since_the_inventory_vanished_and_what_was_overwritten_is_taken_as_it_is(
    double: BucketDouble, at: Location
) -> None:
    deliver(double, [as_csv(all_rows(double), AWS)])
    double.delete("a")
    double.put("z/deep/x", b"overwritten")
    bench = Bench()
    outcome = bench.back_up_from(BucketSource(location=at, inventory=WHERE))
    assert outcome.state == "complete"
    assert [(problem.path, problem.reason, problem.lost) for problem in outcome.problems] == [(b"a", "vanished", False)]
    vault = bench.open()
    found = contents(vault, vault.find(outcome.point))
    assert found[b"z/deep/x"] == b"overwritten"
    assert set(found) == {b"new/1", "photos/ä +%.jpg".encode(), b"z/deep/x"}


def test_archived_objects_are_known_from_the_inventory(double: BucketDouble, at: Location) -> None:
    deliver(double, [as_csv([row(double, "a", storageclass="GLACIER"), row(double, "new/1")], AWS)])
    outcome = Bench().back_up_from(BucketSource(location=at, inventory=WHERE))
    assert (outcome.state, outcome.stats.skipped, outcome.stats.files) == ("complete", {"archived": 1}, 1)


def test_a_key_that_is_told_twice_is_taken_once(double: BucketDouble, at: Location) -> None:
    deliver(double, [as_csv([row(double, "a")], AWS), as_csv([row(double, "a")], AWS)])
    assert [entry.path for entry in walked(BucketSource(location=at, inventory=WHERE))] == [b"a"]


@pytest.mark.parametrize("broken", ["manifest", "data", "cut short", "columns"])
def test_an_inventory_that_is_not_what_its_checksums_say_makes_no_point(
    double: BucketDouble, at: Location, broken: str
) -> None:
    data = as_csv(all_rows(double), AWS)
    if broken == "cut short":
        data = data[:-20]
    if broken == "columns":
        data = as_csv(all_rows(double), AWS[:-1])
    deliver(double, [data])
    if broken == "manifest":
        key = "lists/bucket/daily/2026-03-04T01-00Z/manifest.json"
        double.put(key, double.held[key].body.replace(b"1772586000000", b"1772586000001"))
    if broken == "data":
        double.put("lists/bucket/daily/data/2026-03-04T01-00Z-0", as_csv([], AWS))
    bench = Bench()
    with pytest.raises(SourceIncomplete, match="inventory"):
        bench.back_up_from(BucketSource(location=at, inventory=WHERE))
    assert bench.open().points("home") == []


@pytest.mark.parametrize(
    ("other", "error", "told"),
    [
        ({"sourceBucket": "another"}, SourceError, "is of the bucket another, not of bucket"),
        ({"fileFormat": "ORC"}, SourceError, "have it made as CSV or Parquet"),
        ({"fileSchema": "Bucket, Key"}, SourceError, "lacks etag, lastmodifieddate, size"),
        ({"version": 1, "fileFormat": None}, SourceError, "manifest that can't be read"),
    ],
)
def test_an_inventory_that_can_not_serve_is_refused(
    double: BucketDouble, at: Location, other: dict[str, Any], error: type[Exception], told: str
) -> None:
    deliver(double, [as_csv(all_rows(double), AWS)], **other)
    with pytest.raises(error, match=told):
        BucketSource(location=at, inventory=WHERE).check()


def test_a_place_without_inventories_is_told(at: Location) -> None:
    with pytest.raises(SourceMissing, match=r"no complete inventory at s3://bucket/else/.*inventory-id"):
        BucketSource(location=at, inventory="s3://bucket/else").check()


def test_an_inventory_in_parquet_without_its_package_says_what_to_install(
    double: BucketDouble, at: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    deliver(double, [as_parquet(all_rows(double))], fileFormat="Parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ExtraMissing, match=r"pip install pyarrow==.*, or have it made as CSV"):
        walked(BucketSource(location=at, inventory=WHERE))


def test_the_requests_for_the_inventory_are_counted_too(double: BucketDouble, at: Location) -> None:
    deliver(double, [as_csv(all_rows(double), AWS)])
    source = BucketSource(location=at, inventory=WHERE)
    list(source.walk())
    assert source.requests() == {"LIST": 1, "HEAD": 1, "GET": 3}
