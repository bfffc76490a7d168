"""The bucket target on real servers: objects come out whole, with what they carried, or not at all."""

import random
from collections.abc import Callable, Iterator
from email.header import decode_header, make_header
from pathlib import Path
from typing import Any

import pytest

from engine.connections.keypaths import path_of
from engine.entries import Entry, Kind
from engine.errors import TargetDenied, TargetError, TargetMissing, TargetUnavailable, UnsafePath
from engine.sources.bucket import BucketSource
from engine.storage.location import Location
from engine.targets import bucket as target_module
from engine.targets.bucket import BucketTarget, BucketWriter
from tests.services import S3
from tests.support.buckets import Peer, peer, place
from tests.support.runs import reasons, restored
from tests.support.vaults import Bench, write_files

PART = target_module.PART_BYTES
BODY = random.Random(3).randbytes(2 * PART + 777)


@pytest.fixture
def bucket(s3_service: S3, s3_bucket: Callable[..., str]) -> Iterator[Peer]:
    with peer(s3_service, s3_bucket(s3_service)) as made:
        yield made


@pytest.fixture
def target(s3_service: S3, bucket: Peer) -> BucketTarget:
    return BucketTarget(location=place(s3_service, bucket.bucket), prefix="to/")


def entry(key: str, size: int, **xattrs: bytes) -> Entry:
    named = {b"user.s3." + name.replace("_", "-").encode(): value for name, value in xattrs.items()}
    return Entry(path_of(key), Kind.FILE, size=size, xattrs=named)


def poured(target: BucketTarget, key: str, body: bytes, **xattrs: bytes) -> list[Any]:
    """Write an object in uneven pieces, as a restore of a large one does."""
    writer = target.create(entry(key, len(body), **xattrs))
    for at in range(0, len(body), 5_000_000):
        writer.write(memoryview(body)[at : at + 5_000_000], at)
    return writer.commit()


def uploads(bucket: Peer) -> list[Any]:
    found: list[Any] = bucket.client.list_multipart_uploads(Bucket=bucket.bucket, Prefix="to/large").get("Uploads", [])
    return found


def test_large_and_small_objects_come_out_whole_with_what_they_carried(bucket: Peer, target: BucketTarget) -> None:
    carried = {"content_type": b"text/x", "cache_control": b"no-store", "meta.who": b"me", "tags": b"a=1&b=x%20y"}
    target.check()
    assert poured(target, "large", BODY, **carried) == []
    assert poured(target, "exactly two parts", BODY[: 2 * PART]) == []
    assert poured(target, "middling", BODY[: PART - 1], **carried) == []
    assert target.write_small(entry("small", 5, **carried), b"small") == []
    assert target.write_small(entry("empty", 0), b"") == []
    found = bucket.seen("to/")
    assert {key: len(seen.body) for key, seen in found.items()} == {
        "large": len(BODY), "exactly two parts": 2 * PART, "middling": PART - 1, "small": 5, "empty": 0,
    }  # fmt: skip
    assert found["large"].body == BODY
    for key in ("large", "middling", "small"):
        assert found[key].headers == {"ContentType": "text/x", "CacheControl": "no-store"}
        assert found[key].metadata == {"who": "me"}
        assert found[key].tags == {"a": "1", "b": "x y"}
    assert found["empty"].headers == {"ContentType": "application/octet-stream"}
    assert uploads(bucket) == []


def test_an_object_that_is_given_up_leaves_nothing(bucket: Peer, target: BucketTarget) -> None:
    writer = target.create(entry("large", len(BODY)))
    writer.write(BODY, 0)
    assert len(uploads(bucket)) == 1, "parts were sent already"
    writer.abort()
    assert uploads(bucket) == []
    assert bucket.keys() == []


def test_an_object_that_can_not_be_put_together_leaves_nothing(bucket: Peer, target: BucketTarget) -> None:
    writer = target.create(entry("large", len(BODY)))
    assert isinstance(writer, BucketWriter)
    writer.write(BODY, 0)
    writer._etags[0] = "0" * 32
    with pytest.raises(OSError, match=r"[Pp]art"):
        writer.commit()
    assert uploads(bucket) == []
    assert bucket.keys() == []


def test_metadata_that_no_header_can_hold_as_it_is_is_encoded(bucket: Peer, target: BucketTarget) -> None:
    odd = entry("a", 1, **{"meta.raw": "über".encode(), "meta.lines": b"a\r\nb: c", "meta.bad name": b"x"})
    assert target.write_small(odd, b"a") == []
    found = {name: make_header(decode_header(text)) for name, text in bucket.seen("to/")["a"].metadata.items()}
    assert {name: str(text) for name, text in found.items()} == {"raw": "über", "lines": "a\r\nb: c"}


def test_tags_that_the_server_refuses_are_reported_and_the_object_is_there(bucket: Peer, target: BucketTarget) -> None:
    many = "&".join(f"tag{number}=x" for number in range(11)).encode()
    problems = target.write_small(entry("a", 1, tags=many), b"a")
    assert [(problem.reason, problem.lost) for problem in problems] == [("attributes", False)]
    assert bucket.seen("to/")["a"].body == b"a"


def test_existing_tells_objects_from_what_is_only_above_objects(bucket: Peer, target: BucketTarget) -> None:
    for key in ("to/a", "to/folder/deep/x", "to/folder-", "other"):
        bucket.put(key, b"")
    kinds = {path: target.existing(path) for path in (b"a", b"folder", b"folder-", b"folder/deep", b"fold", b"other")}
    assert kinds == {
        b"a": Kind.FILE, b"folder": Kind.DIRECTORY, b"folder-": Kind.FILE, b"folder/deep": Kind.DIRECTORY,
        b"fold": None, b"other": None,
    }  # fmt: skip


def test_looking_for_many_paths_costs_one_listing(
    bucket: Peer, target: BucketTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(target_module, "_LOOKS", 3)
    standing = {f"{number % 10}/{number:03}" for number in range(0, 300, 2)}
    bucket.put_many((f"to/{key}", b"") for key in standing)
    asked = sorted(f"{number % 10}/{number:03}" for number in range(300))
    found = {key: target.existing(key.encode()) for key in asked}
    assert {key for key, kind in found.items() if kind == Kind.FILE} == standing
    assert target.existing(b"4") == Kind.DIRECTORY, "out of order is asked for singly"
    assert target.existing(b"95") is None
    assert sum(target._client.requests().values()) < 15


@pytest.mark.rule("C28")
def test_nothing_below_a_folder_of_the_point_is_overwritten_unasked(
    bucket: Peer, target: BucketTarget, tmp_path: Path
) -> None:
    bench = Bench()
    write_files(tmp_path, {"folder/kept": b"from the point", "folder/new": b"from the point"})
    bench.back_up(tmp_path)
    below = str(tmp_path).lstrip("/")
    bucket.put(f"to/{below}/folder/kept", b"somebody's")
    outcome = restored(bench, target)
    assert (outcome.state, outcome.skipped, outcome.files) == ("complete", 1, 1)
    found = {key: seen.body for key, seen in bucket.seen(f"to/{below}/").items()}
    assert found == {"folder/kept": b"somebody's", "folder/new": b"from the point"}


def test_files_that_a_bucket_can_not_hold_are_reported_and_the_others_come(
    bucket: Peer, target: BucketTarget, tmp_path: Path
) -> None:
    bench = Bench()
    write_files(tmp_path, {"good": b"x"})
    (tmp_path / "link").symlink_to("good")
    Path(str(tmp_path) + "/\udcfe").write_bytes(b"x")
    bench.back_up(tmp_path)
    outcome = restored(bench, target)
    assert outcome.state == "partial_complete"
    assert {path.rpartition(b"/")[2]: why for path, why in reasons(outcome.problems).items()} == {
        b"link": "write-failed", b"\xfe": "unsafe-path",
    }  # fmt: skip
    assert [key.rpartition("/")[2] for key in bucket.seen()] == ["good"]


@pytest.mark.rule("E37")
def test_a_target_that_is_not_there_is_told_before_anything_is_read(s3_service: S3, bucket: Peer) -> None:
    for wrong, error in (
        ({"bucket": "no-such-bucket-here"}, TargetMissing),
        ({"secret_key": "wrong-secret"}, TargetDenied),
        ({"endpoint": "http://127.0.0.1:9"}, TargetUnavailable),
        ({"endpoint": "nowhere"}, TargetError),
    ):
        at = place(s3_service, **{"bucket": bucket.bucket, **wrong})
        with pytest.raises(error):
            BucketTarget(location=at).check()
    with pytest.raises(TargetError, match="not a bucket alone"):
        BucketTarget(location=Location(url="s3://bucket/folder", endpoint="http://h")).check()


def test_a_server_that_goes_away_ends_the_restore(
    s3_service: S3, bucket: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.connections.bucket._PAUSES_S", ())
    gone = BucketTarget(location=place(s3_service, bucket.bucket, endpoint="http://127.0.0.1:9"))
    with pytest.raises(TargetUnavailable, match="refused"):
        gone.write_small(entry("a", 1), b"a")


def test_a_key_that_becomes_too_long_behind_the_prefix_is_refused(target: BucketTarget) -> None:
    with pytest.raises(UnsafePath, match="more than 1024"):
        target.create(entry("x" * 1023, 1))


def test_a_key_that_is_also_the_folder_of_others_is_reported_where_a_folder_is_restored_into(
    radosgw_service: S3, s3_bucket: Callable[..., str], tmp_path: Path
) -> None:
    bench = Bench()
    with peer(radosgw_service, s3_bucket(radosgw_service)) as both:
        both.put("a", b"object")
        both.put("a/b", b"below it")
        at = place(radosgw_service, both.bucket)
        assert bench.back_up_from(BucketSource(location=at)).state == "complete"
        outcome = restored(bench, tmp_path)
        assert outcome.state == "partial_complete"
        assert [(problem.reason, problem.lost) for problem in outcome.problems] == [("exists", True)]
        both.delete("a", "a/b")
        assert restored(bench, BucketTarget(location=at)).state == "complete"
        assert {key: seen.body for key, seen in both.seen().items()} == {"a": b"object", "a/b": b"below it"}


def test_secrets_show_nowhere() -> None:
    at = Location(url="s3://b", endpoint="http://h", access_key="A", secret_key="hidden-one")
    target = BucketTarget(location=at, prefix="p/")
    assert "hidden" not in repr(target) + target.where()
    assert target.where() == "s3://b/p/ at http://h"
