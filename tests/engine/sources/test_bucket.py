"""What the bucket source promises beyond what the stories on real servers tell; mostly against a double."""

import hashlib
import pickle
import threading
import time
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from engine.chunker import PART_BYTES
from engine.connections.bucket import ArchiveBucket
from engine.entries import Entry, Problem
from engine.errors import Canceled, SourceDenied, SourceError, SourceMissing, SourceUnavailable
from engine.patterns import BadPattern
from engine.sources import objects
from engine.sources.bucket import BucketSource
from engine.storage.location import Location
from tests.services import S3
from tests.support.bucket_double import BucketDouble, serving
from tests.support.buckets import peer, place
from tests.support.runs import Stopping, backup_job, run_backup
from tests.support.vaults import Bench, contents

PIECE = objects.PIECE_BYTES


@pytest.fixture
def double() -> BucketDouble:
    return BucketDouble()


@pytest.fixture
def at(double: BucketDouble) -> Iterator[Location]:
    with serving(double) as endpoint:
        yield Location(url="s3://bucket", endpoint=endpoint)


def entries(source: BucketSource) -> list[Entry]:
    return [found for found in source.walk() if isinstance(found, Entry)]


def problems(source: BucketSource) -> list[Problem]:
    return [found for found in source.walk() if isinstance(found, Problem)]


def paths(source: BucketSource) -> list[bytes]:
    return [entry.path for entry in entries(source)]


def whole(source: BucketSource, entry: Entry) -> tuple[Entry, bytes] | Problem:
    """Read an entry as a backup does."""
    small = source.read_small(entry, 1 << 20)
    if small is not None:
        return small
    opened = source.open(entry)
    if isinstance(opened, Problem):
        return opened
    with opened as reader:
        buffer = bytearray(reader.entry.size + 1)
        view, done = memoryview(buffer), 0
        while count := reader.readinto(view[done:], done):
            done += count
        assert not reader.changed()
        return reader.entry, bytes(buffer[:done])


def test_large_objects_are_what_the_vaults_parts_are() -> None:
    assert objects.PARTED_BYTES == PART_BYTES


@pytest.mark.rule("A20")
def test_a_prefix_is_a_plain_string_and_none_is_everything(double: BucketDouble, at: Location) -> None:
    for key in ("a", "log", "log/1", "logs", "logs/2"):
        double.put(key, b"")
    assert paths(BucketSource(location=at)) == [b"a", b"log", b"log/1", b"logs", b"logs/2"]
    assert paths(BucketSource(location=at, prefix="log")) == [b"log", b"log/1", b"logs", b"logs/2"]
    assert paths(BucketSource(location=at, prefix="log/")) == [b"log/1"]


def test_patterns_choose_among_the_keys(double: BucketDouble, at: Location) -> None:
    for key in ("a.txt", "tmp/a.txt", "tmp/deep/b.txt", "c.bin"):
        double.put(key, b"")
    assert paths(BucketSource(location=at, include=("*.txt",))) == [b"a.txt", b"tmp/a.txt", b"tmp/deep/b.txt"]
    assert paths(BucketSource(location=at, exclude=("tmp/deep/", "*.bin"))) == [b"a.txt", b"tmp/a.txt"]


@pytest.mark.rule("A4")
def test_objects_of_archive_classes_are_left_out_and_counted_and_the_point_is_complete(
    double: BucketDouble, at: Location
) -> None:
    for number, storage_class in enumerate(("GLACIER", "DEEP_ARCHIVE", "Archive", "ColdArchive", "DeepColdArchive")):
        double.put(f"cold/{number}", b"cold", storage_class=storage_class)
    for storage_class in ("STANDARD", "STANDARD_IA", "IA", "GLACIER_IR", "INTELLIGENT_TIERING"):
        double.put(f"warm/{storage_class}", b"warm", storage_class=storage_class)
    bench = Bench()
    outcome = bench.back_up_from(BucketSource(location=at))
    assert outcome.state == "complete"
    assert outcome.stats.files == 5
    assert outcome.stats.skipped == {"archived": 5}
    assert {(problem.reason, problem.lost) for problem in outcome.problems} == {("archived", False)}
    quiet = bench.back_up_from(BucketSource(location=at, ignore_archived=True), series="quiet")
    assert (quiet.state, quiet.stats.files, quiet.problems) == ("complete", 5, [])


def test_an_object_that_turns_out_to_be_archived_is_left_out_like_the_others(
    double: BucketDouble, at: Location
) -> None:
    double.put("a", b"x", storage_class="THAWING")
    outcome = Bench().back_up_from(BucketSource(location=at))
    assert (outcome.state, outcome.stats.skipped) == ("complete", {"archived": 1})


@pytest.mark.rule("A3")
@pytest.mark.parametrize("header", ["x-oss-storage-class", "x-amz-storage-class"])
def test_a_bucket_whose_own_class_is_an_archive_is_refused(double: BucketDouble, at: Location, header: str) -> None:
    double.bucket_headers = {header: "Archive"}
    with pytest.raises(ArchiveBucket, match=r"of the class Archive.*Standard or Infrequent Access"):
        BucketSource(location=at).check()
    double.bucket_headers = {header: "IA"}
    BucketSource(location=at).check()


@pytest.mark.rule("A2")
def test_requests_are_counted_by_verb(double: BucketDouble, at: Location) -> None:
    double.put("a", b"x")
    double.put("tagged", b"x", x_amz_tagging_count="1")
    source = BucketSource(location=at)
    source.check()
    list(source.walk())
    assert source.requests() == {"LIST": 2, "HEAD": 2}
    assert source.requests() == {}
    entry = entries(source)[0]
    source.read_small(entry, 100)
    assert source.requests() == {"LIST": 1, "GET": 1}
    assert sum(double.asked.values()) == 6


def test_what_is_expected_is_fetched_ahead_and_each_object_once(double: BucketDouble, at: Location) -> None:
    for number in range(300):
        double.put(f"{number:03}", b"%d" % number)
    source = BucketSource(location=at, readers=4)
    found = entries(source)
    source.expect(found)
    for number, entry in enumerate(found):
        read = source.read_small(entry, 100)
        assert isinstance(read, tuple)
        assert read[1] == b"%d" % number
    assert double.asked["GET"] == 300
    assert source.read_small(found[0], 100) is not None, "what was not expected is fetched when it is asked for"


def test_an_object_larger_than_the_limit_is_left_to_open(double: BucketDouble, at: Location) -> None:
    double.put("a", b"12345")
    source = BucketSource(location=at)
    assert source.read_small(entries(source)[0], 4) is None
    assert not double.asked["GET"]


def test_a_large_object_is_read_in_ranges_of_one_version(double: BucketDouble, at: Location) -> None:
    body = hashlib.shake_128(b"large").digest(PIECE * 2 + 12345)
    double.put("large", body, Content_Type="text/x")
    source = BucketSource(location=at)
    entry = entries(source)[0]
    read = whole(source, entry)
    assert isinstance(read, tuple)
    assert read[1] == body
    assert read[0].xattrs == {b"user.s3.content-type": b"text/x"}
    assert double.asked["GET"] == 3
    reader = source.open(entry)
    assert not isinstance(reader, Problem)
    with reader:
        assert [tuple(span) for span in reader.spans(PIECE, PIECE + 10)] == [(PIECE, 10, False)]
        part = bytearray(10)
        assert reader.readinto(memoryview(part), PIECE) == 10
        assert part == body[PIECE : PIECE + 10]
    assert double.asked["GET"] == 4, "nothing behind the part is fetched"


def overwriting(double: BucketDouble, key: str, bodies: list[bytes]) -> None:
    """Put the next body ahead of every second range that is asked for."""
    asked: list[str] = []

    def before(method: str, asked_key: str) -> None:
        if method == "GET" and asked_key == key:
            asked.append(key)
            if len(asked) % 2 == 0 and bodies:
                double.put(key, bodies.pop(0))

    double.before = before


def test_an_object_that_is_overwritten_while_it_is_read_is_read_again_whole(double: BucketDouble, at: Location) -> None:
    first, second = (bytes([number]) * (PIECE + 100) for number in (1, 2))
    double.put("large", first)
    overwriting(double, "large", [second])
    bench = Bench()
    outcome = bench.back_up_from(BucketSource(location=at))
    assert outcome.state == "complete"
    vault = bench.open()
    assert contents(vault, vault.find(outcome.point)) == {b"large": second}, "never bytes of two versions"


def test_an_object_that_is_overwritten_again_and_again_is_reported_lost(double: BucketDouble, at: Location) -> None:
    double.put("large", b"0" * (PIECE + 100))
    overwriting(double, "large", [bytes([number]) * (PIECE + 100) for number in range(1, 9)])
    bench = Bench()
    outcome = bench.back_up_from(BucketSource(location=at))
    assert outcome.state == "partial_complete"
    assert [(problem.path, problem.lost) for problem in outcome.problems] == [(b"large", True)]
    vault = bench.open()
    assert contents(vault, vault.find(outcome.point)) == {}


def test_parts_of_two_versions_are_never_put_together(
    double: BucketDouble, at: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.sources.bucket.PARTED_BYTES", PIECE)
    double.put("huge", b"1" * (PIECE + 1))
    source = BucketSource(location=at)
    entry = entries(source)[0]
    double.put("huge", b"2" * (PIECE + 1))
    opened = source.open(entry)
    assert isinstance(opened, Problem)
    assert (opened.reason, opened.lost) == ("changed", True)


def test_a_small_object_that_was_overwritten_after_the_listing_is_taken_as_it_is_now(
    double: BucketDouble, at: Location
) -> None:
    double.put("a", b"old")
    source = BucketSource(location=at)
    listed = entries(source)[0]
    double.put("a", b"newer")
    read = whole(source, listed)
    assert isinstance(read, tuple)
    assert (read[0].size, read[1]) == (5, b"newer")
    assert read[0].inode != listed.inode, "the next backup compares with what was read"
    assert read[0].inode == entries(source)[0].inode


def test_an_object_that_grew_after_the_listing_is_not_taken_into_memory_whole(
    double: BucketDouble, at: Location
) -> None:
    double.put("a", b"old")
    source = BucketSource(location=at)
    listed = entries(source)[0]
    double.put("a", b"x" * (2 * PIECE + 1))
    assert source.read_small(listed, 1 << 20) is None
    read = whole(source, listed)
    assert isinstance(read, tuple)
    assert (read[0].size, len(read[1])) == (2 * PIECE + 1, 2 * PIECE + 1)


def test_an_object_that_was_deleted_after_the_listing_vanished(double: BucketDouble, at: Location) -> None:
    double.put("a", b"x")
    double.put("large", b"x" * (PIECE + 1))
    source = BucketSource(location=at)
    listed = entries(source)
    for key in ("a", "large"):
        double.delete(key)
    for entry in listed:
        problem = whole(source, entry)
        assert isinstance(problem, Problem)
        assert (problem.reason, problem.lost) == ("vanished", False)


def test_one_object_that_may_not_be_read_is_lost_and_the_others_are_kept(double: BucketDouble, at: Location) -> None:
    for key in ("a", "b", "c"):
        double.put(key, key.encode())
    double.denied.add("b")
    outcome = Bench().back_up_from(BucketSource(location=at))
    assert outcome.state == "partial_complete"
    assert [(problem.path, problem.reason) for problem in outcome.problems] == [(b"b", "unreadable")]
    assert outcome.stats.files == 2


def test_an_object_whose_tags_may_not_be_read_is_lost_and_the_missing_right_is_named(
    double: BucketDouble, at: Location
) -> None:
    double.put("tagged", b"x", x_amz_tagging_count="1")
    outcome = Bench().back_up_from(BucketSource(location=at))
    assert [(problem.reason, problem.lost) for problem in outcome.problems] == [("unreadable", True)]
    assert "s3:GetObjectTagging is missing" in outcome.problems[0].detail


@pytest.mark.rule("A30")
def test_a_bucket_whose_objects_may_not_be_read_is_refused_before_the_backup(
    double: BucketDouble, at: Location
) -> None:
    double.put("a", b"x")
    double.denied.add("a")
    with pytest.raises(SourceDenied, match="can be listed, but 'a' can't be read"):
        BucketSource(location=at).check()


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"url": "s3://bucket/folder"}, "not a bucket alone"),
        ({"url": "/folder"}, "not a bucket alone"),
        ({"endpoint": "nowhere"}, "is not an endpoint"),
        ({"access_key": "alone"}, "belong together"),
    ],
)
def test_an_address_that_is_none_is_refused(at: Location, wrong: dict[str, str], told: str) -> None:
    source = BucketSource(location=msgspec.structs.replace(at, **wrong))
    with pytest.raises(SourceError, match=told):
        source.check()


@pytest.mark.parametrize(
    ("options", "error", "told"),
    [
        ({"inventory": "/folder"}, SourceError, "not where an inventory lies"),
        ({"inventory": "s3://b/i", "by_version": True}, SourceError, "choose one"),
        ({"readers": 0}, SourceError, "at least one"),
        ({"include": ("!",)}, BadPattern, "matches nothing"),
        ({"inventory": "s3://bucket/none"}, SourceMissing, "no complete inventory"),
    ],
)
def test_settings_that_contradict_are_refused(
    at: Location, options: dict[str, Any], error: type[Exception], told: str
) -> None:
    with pytest.raises(error, match=told):
        BucketSource(location=at, **options).check()


def test_a_server_that_hangs_counts_as_away(
    at: Location, double: BucketDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.connections.bucket._PAUSES_S", ())
    answer, asked = double.listing, []

    def hang(query: dict[str, str]) -> bytes:
        asked.append(1)
        time.sleep(0.5)
        return answer(query)

    double.listing = hang  # type: ignore[method-assign]  # it is slow
    with pytest.raises(SourceUnavailable, match="timed out"):
        BucketSource(location=at, read_s=0.1).check()
    assert asked


def test_when_the_server_hangs_what_was_expected_is_not_asked_for_any_more(
    double: BucketDouble, at: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.connections.bucket._PAUSES_S", ())
    for number in range(60):
        double.put(f"{number:02}", b"x")
    source = BucketSource(location=at, readers=3, read_s=0.2)
    found = entries(source)
    double.before = lambda method, key: time.sleep(0.4)
    source.expect(found)
    with pytest.raises(SourceUnavailable, match="timed out"):
        source.read_small(found[0], 100)
    time.sleep(0.6)
    assert double.asked["GET"] <= 6


@pytest.mark.parametrize(
    "header", [{"Last_Modified": "yesterday"}, {"Last_Modified": "Mon, 06 May 2024 07:08:09 -0000"}]
)
def test_an_object_with_headers_that_mean_nothing_is_reported(
    double: BucketDouble, at: Location, header: dict[str, str]
) -> None:
    double.put("a", b"x")
    double.put("b", b"x", **header)
    outcome = Bench().back_up_from(BucketSource(location=at))
    assert [(problem.path, problem.reason) for problem in outcome.problems] == [(b"b", "unreadable")]


def test_secrets_show_nowhere() -> None:
    at = Location(
        url="s3://b", endpoint="http://h", access_key="A", secret_key="hidden-one", session_token="hidden-two"
    )
    source = BucketSource(location=at, prefix="p", hot_prefixes=("p/new",), inventory="s3://i/x")
    for text in (repr(source), str(source.identity()), str(source.options())):
        assert "hidden" not in text
    assert source.identity().roots == ["s3://b/p"]
    assert source.options() == {"prefix": ["p"], "hot_prefixes": ["p/new"], "inventory": ["s3://i/x"]}


def test_a_pickled_source_reads_the_same(double: BucketDouble, at: Location) -> None:
    double.put("a", b"x")
    source = BucketSource(location=at)
    found = entries(source)
    other = pickle.loads(pickle.dumps(source))
    assert entries(other) == found
    assert whole(other, found[0]) == whole(source, found[0])


def test_only_current_versions_are_backed_up_and_what_was_deleted_is_absent(s3_service: S3, s3_bucket: Any) -> None:
    with peer(s3_service, s3_bucket(s3_service)) as bucket:
        bucket.client.put_bucket_versioning(Bucket=bucket.bucket, VersioningConfiguration={"Status": "Enabled"})
        for number in range(3):
            bucket.put("often", b"version %d" % number)
        bucket.put("gone", b"x")
        bucket.delete("gone")
        at = place(s3_service, bucket.bucket)
        for source in (BucketSource(location=at), BucketSource(location=at, by_version=True)):
            found = entries(source)
            assert [entry.path for entry in found] == [b"often"]
            read = whole(source, found[0])
            assert isinstance(read, tuple)
            assert read[1] == b"version 2"
            assert read[0].inode == found[0].inode, "what was read is what was listed"
        before = found[0].inode
        bucket.put("often", b"version 2")
        assert entries(source)[0].inode != before, "by version, the same bytes anew are another version"


def test_keys_that_are_no_paths_are_read_as_well_as_others(radosgw_service: S3, s3_bucket: Any) -> None:
    keys = ["a", "a/b", "line\nfeed", "a//b", "/lead", "tail/", "d/./x", "d/../y", "..", "é/ü ü+%", "a!"]
    with peer(radosgw_service, s3_bucket(radosgw_service)) as bucket:
        for key in keys:
            bucket.put(key, key.encode())
        source = BucketSource(location=place(radosgw_service, bucket.bucket))
        found = entries(source)
        assert [entry.sort_key for entry in found] == sorted({entry.sort_key for entry in found})
        bodies = [whole(source, entry) for entry in found]
    assert sorted(read[1].decode() for read in bodies if isinstance(read, tuple)) == sorted(keys)


class SlowDouble(BucketDouble):
    """Takes a while for each page."""

    def listing(self, query: dict[str, str]) -> bytes:
        time.sleep(0.15)
        return super().listing(query)


def test_a_long_listing_shows_that_it_goes_on_and_ends_when_the_walk_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.sources.breath.BREATH_S", 0.05)
    double = SlowDouble()
    for number in range(30_000):
        double.put(f"folder/{number:06d}", b"")
    with serving(double) as endpoint:
        source = BucketSource(location=Location(url="s3://bucket", endpoint=endpoint), listers=1)
        walk = source.walk()
        assert [next(walk), next(walk), next(walk)] == [None, None, None]
        before = threading.active_count()
        walk.close()  # type: ignore[attr-defined]  # it is a generator
        assert threading.active_count() < before
        asked = sum(double.asked.values())
        time.sleep(0.4)
        assert sum(double.asked.values()) == asked < 30


def test_a_backup_is_canceled_while_the_bucket_is_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.sources.breath.BREATH_S", 0.05)
    double = SlowDouble()
    for number in range(30_000):
        double.put(f"folder/{number:06d}", b"")
    bench, stopping = Bench(), Stopping(at=3)
    with serving(double) as endpoint:
        source = BucketSource(location=Location(url="s3://bucket", endpoint=endpoint), listers=1)
        began_s = time.monotonic()
        with pytest.raises(Canceled):
            run_backup(bench, backup_job(bench, source), progress=stopping)
        assert time.monotonic() - began_s < 4
    assert bench.open().points() == []
