"""Buckets on real servers: back up, lose, restore, compared through boto3; and what goes wrong on the way."""

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.errors import SourceDenied, SourceMissing, SourceUnavailable
from engine.sources.bucket import BucketSource
from engine.sources.objects import PARTED_BYTES
from engine.targets.bucket import BucketTarget
from tests.scenarios.relay import Door
from tests.scenarios.test_command_line import CommandLine
from tests.services import S3
from tests.support.buckets import Peer, described, peer, place
from tests.support.runs import restored
from tests.support.vaults import Bench, contents

pytestmark = [pytest.mark.scenario, pytest.mark.timeout(180)]
LARGE = random.Random(5).randbytes(20 << 20)
SMALL = 6_000  # two units of a backup, six pages of a listing
EXTRA = {
    "ContentType": "text/x-story; charset=utf-8",
    "ContentEncoding": "identity",
    "ContentLanguage": "de",
    "ContentDisposition": 'attachment; filename="story.txt"',
    "CacheControl": "max-age=60",
    "Metadata": {"author": "somebody", "page-count": "12"},
    "Tagging": "team=a%20b&cost=7",
}


@pytest.fixture
def bucket(s3_service: S3, s3_bucket: Callable[..., str]) -> Iterator[Peer]:
    with peer(s3_service, s3_bucket(s3_service)) as made:
        yield made


@pytest.fixture
def bench() -> Bench:
    return Bench()


@pytest.fixture
def vault(tmp_path: Path) -> CommandLine:
    made = CommandLine(str(tmp_path / "vault"), tmp_path, {})
    made.run("init")
    return made


def back_up(vault: CommandLine, source: str, *options: str) -> Any:
    return vault.run("backup", "--source", source, "--series", "bucket", *options)


def fill(bucket: Peer) -> None:
    bucket.put_many((f"logs/{number % 7}/{number:03}.txt", b"line %d\n" % number * 50) for number in range(60))
    bucket.put("story.txt", b"once upon a time", **EXTRA)
    bucket.put("odd name +%&=é.bin", bytes(range(256)))
    bucket.put("empty", b"")
    bucket.put("marker/", b"")
    bucket.put("large", LARGE, ContentType="application/x-large")


@pytest.mark.rule("A1", "A2", "A29")
def test_objects_that_were_deleted_overwritten_or_modified_come_back_byte_for_byte(
    s3_service: S3, bucket: Peer, bench: Bench, s3_bucket: Callable[..., str]
) -> None:
    fill(bucket)
    before = bucket.seen()
    source = BucketSource(location=place(s3_service, bucket.bucket))
    first = bench.back_up_from(source)
    assert first.state == "complete"
    assert first.stats.files == len(before)
    assert first.requests["GET"] >= len(before)

    quiet = bench.back_up_from(source)
    assert quiet.stats.bytes_read == quiet.stats.entries_read == 0
    assert quiet.requests == {"LIST": 2, "HEAD": 2}, "the check and the listing; what did not change is not asked for"

    bucket.delete("logs/3/003.txt", "story.txt")
    bucket.put("logs/1/001.txt", b"overwritten")
    bucket.put("large", LARGE[:-7] + b"changed")
    after = bucket.seen()
    second = bench.back_up_from(source)
    assert second.stats.entries_read == 2
    assert second.stats.bytes_read == len(b"overwritten") + len(LARGE)
    assert second.stats.bytes_new < 3 << 20, "only the changed end of the large object is new"
    assert second.stats.bytes_stored < 4 << 20

    same = BucketTarget(location=place(s3_service, bucket.bucket))
    skipping = restored(bench, same, point=first.point)
    assert skipping.files == 2, "skip leaves what stands there: only the deleted ones come back"
    restored(bench, same, point=first.point, same_name="overwrite")
    assert bucket.seen() == before

    other = s3_bucket(s3_service)
    elsewhere = BucketTarget(location=place(s3_service, other), prefix="restored/here-")
    assert restored(bench, elsewhere, point=second.point).state == "complete"
    with peer(s3_service, other) as copy:
        assert copy.seen("restored/here-") == after
        assert copy.keys() == copy.keys("restored/here-")


def test_a_point_is_restored_into_a_folder_under_the_names_of_the_keys(
    s3_service: S3, bucket: Peer, bench: Bench, tmp_path: Path
) -> None:
    fill(bucket)
    bench.back_up_from(BucketSource(location=place(s3_service, bucket.bucket)))
    folder = tmp_path / "folder"
    folder.mkdir()
    restored(bench, folder)
    assert (folder / "large").read_bytes() == LARGE
    assert (folder / "odd name +%&=é.bin").read_bytes() == bytes(range(256))
    assert os.getxattr(folder / "story.txt", "user.s3.meta.author") == b"somebody"
    names = {os.fsencode(path.relative_to(folder)) for path in folder.rglob("*")}
    assert b"marker/\xff" in names, "a key that ends with a slash is a file of the name 0xFF"


@pytest.mark.rule("A5")
def test_a_public_object_comes_back_private(radosgw_service: S3, s3_bucket: Callable[..., str], bench: Bench) -> None:
    with peer(radosgw_service, s3_bucket(radosgw_service)) as bucket:
        bucket.put("public", b"for all", ACL="public-read")
        at = place(radosgw_service, bucket.bucket)
        bench.back_up_from(BucketSource(location=at))
        bucket.delete("public")
        restored(bench, BucketTarget(location=at))
        grants = bucket.client.get_object_acl(Bucket=bucket.bucket, Key="public")["Grants"]
    assert [grant["Grantee"]["Type"] for grant in grants] == ["CanonicalUser"], "nobody but the owner"


def test_after_a_killed_worker_the_next_run_makes_a_whole_point(
    minio_service: S3, s3_bucket: Callable[..., str], vault: CommandLine, tmp_path: Path
) -> None:
    with peer(minio_service, s3_bucket(minio_service)) as bucket:
        bucket.put_many((f"{number:04}", random.Random(number).randbytes(3000)) for number in range(200))
        bucket.put("large", LARGE)
        at = place(minio_service, bucket.bucket)
        slow = described(
            BucketSource(location=place(minio_service, bucket.bucket, bytes_per_s=2_000_000)), tmp_path / "s"
        )
        process = vault.start("backup", "--source", slow, "--series", "bucket", "--workers", "2")
        time.sleep(3)
        assert process.poll() is None
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        assert vault.run("points")["points"] == []
        done = back_up(vault, described(BucketSource(location=at), tmp_path / "source.json"))
        assert done["state"] == "complete"
        before = bucket.seen()
        bucket.delete(*before)
        vault.run("restore", done["point"], "--target", described(BucketTarget(location=at), tmp_path / "target.json"))
        assert bucket.seen() == before


def test_a_server_that_disappears_leaves_no_point_and_a_clear_error(
    bucket: Peer, vault: CommandLine, s3_service: S3, tmp_path: Path
) -> None:
    bucket.put("large", LARGE)
    door = Door(s3_service.endpoint)
    at = place(s3_service, bucket.bucket, endpoint=f"http://{door.endpoint}", bytes_per_s=2_000_000)
    source = described(BucketSource(location=at, connect_s=1, read_s=1), tmp_path / "source.json")
    process = vault.start("backup", "--source", source, "--series", "bucket")
    time.sleep(3)
    assert process.poll() is None
    door.close()
    out, err = process.communicate(timeout=60)
    assert process.returncode == 1, (out, err)
    assert b"Run it again when the source answers" in out + err
    assert b"Traceback" not in out + err
    assert vault.run("points")["points"] == []


@pytest.mark.rule("A30")
@pytest.mark.parametrize(
    ("wrong", "error", "told"),
    [
        (
            {"secret_key": "not-the-secret"},
            SourceDenied,
            "the secret key is not the one of this access key|can't be listed with these credentials",
        ),
        (
            {"access_key": "nobody-has-this-key"},
            SourceDenied,
            "the server does not know this access key|can't be listed with these credentials",
        ),
        ({"bucket": "no-such-bucket-here"}, SourceMissing, "there is no such bucket"),
        ({"endpoint": "http://127.0.0.1:9"}, SourceUnavailable, "Connection refused"),
    ],
    ids=["secret", "access key", "bucket", "server"],
)
def test_what_is_wrong_is_told_before_anything_is_written(
    bucket: Peer, bench: Bench, s3_service: S3, wrong: dict[str, str], error: type[Exception], told: str
) -> None:
    bucket.put("a", b"a")
    at = place(s3_service, **{"bucket": bucket.bucket, **wrong})
    before = bench.objects()
    with pytest.raises(error, match=told):
        bench.back_up_from(BucketSource(location=at, connect_s=1, read_s=5))
    assert bench.objects() == before


def test_the_command_line_tells_of_a_wrong_secret_without_showing_it(
    minio_service: S3, vault: CommandLine, tmp_path: Path
) -> None:
    wrong = BucketSource(location=place(minio_service, "bucket", secret_key="a-wrong-secret"))
    process = vault.start("backup", "--source", described(wrong, tmp_path / "source.json"))
    out, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert b"source_denied" in out
    assert b"a-wrong-secret" not in out + err


@pytest.mark.slow
def test_an_object_that_several_workers_read_part_by_part_comes_back_whole(
    minio_service: S3, s3_bucket: Callable[..., str], vault: CommandLine, tmp_path: Path
) -> None:
    body = b"".join(bytes([number]) + LARGE for number in range(14))
    assert len(body) > PARTED_BYTES
    with peer(minio_service, s3_bucket(minio_service)) as bucket:
        bucket.put("huge", body, ContentType="text/huge")
        at = place(minio_service, bucket.bucket)
        source = described(BucketSource(location=at), tmp_path / "source.json")
        done = back_up(vault, source, "--workers", "2")
        assert (done["state"], done["stats"]["bytes"]) == ("complete", len(body))
        assert done["stats"]["bytes_stored"] < 3 * len(LARGE), "what repeats is stored once in each part"
        target = described(BucketTarget(location=at, prefix="copy-of-"), tmp_path / "target.json")
        vault.run("restore", done["point"], "--target", target)
        seen = bucket.one("copy-of-huge")
        assert seen.headers == {"ContentType": "text/huge"}
        assert seen.body == body


@pytest.mark.slow
def test_thousands_of_small_objects_cost_one_request_each_and_then_none(
    minio_service: S3, s3_bucket: Callable[..., str], bench: Bench
) -> None:
    bodies = {f"{number % 100:02}/{number:05}": b"small %d" % number for number in range(SMALL)}
    with peer(minio_service, s3_bucket(minio_service)) as bucket:
        bucket.put_many(bodies.items())
        source = BucketSource(location=place(minio_service, bucket.bucket))
        first = bench.back_up_from(source)
        assert first.stats.files == SMALL
        assert first.requests["GET"] == SMALL
        assert first.requests["LIST"] < 100
        second = bench.back_up_from(source)
        assert second.stats.entries_read == 0
        assert "GET" not in second.requests
    vault = bench.open()
    found = contents(vault, vault.find(second.point))
    assert {path.decode(): body for path, body in found.items()} == bodies
