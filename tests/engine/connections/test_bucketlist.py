"""A bucket is listed whole, by ranges of keys where there are any, in few requests."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from engine.connections.bucket import BucketClient
from engine.connections.bucketlist import KeyRange, list_into, ranges_of, split_points
from engine.connections.keypaths import key_of
from engine.connections.sorting import Sorter
from engine.errors import StorageError, Unreachable
from engine.storage.location import Location
from tests.support.bucket_double import BucketDouble, serving


@contextmanager
def client_of(double: BucketDouble) -> Iterator[BucketClient]:
    with serving(double) as endpoint:
        yield BucketClient(Location(url="s3://bucket", endpoint=endpoint), connect_s=2, read_s=5)


def listed(client: BucketClient, *prefixes: str, threads: int = 8) -> list[str]:
    """Return the keys in the order of their paths, doubles included."""
    with Sorter(run_rows=700) as sorter:
        list_into(sorter, client, prefixes or [""], threads=threads)
        return [key_of(row.sort_key.replace(b"\0", b"/")) for row in sorter.merged()]


SHAPES = {
    "counted in one folder": [f"data/part-{number:06}" for number in range(4200)],
    "digests": [f"{random.Random(number).randbytes(6).hex()}" for number in range(4200)],
    "folders": [f"site-{number % 40:02}/x/{number:05}.jpg" for number in range(4200)],
    "below one folder after the other": [f"a/b/c/{number % 9}/{number:05}" for number in range(4200)],
    "more folders than a page": [f"{number:05}/file" for number in range(4200)],
    "words": [f"{word}{number}" for word in ("äpfel/", "zebra", "Zoo ", "zebra/") for number in range(1100)],
    "few": ["a", "b/c", "b!"],
    "none": [],
}


@pytest.mark.parametrize("shape", SHAPES)
def test_every_key_is_listed_once_and_in_the_order_of_paths(shape: str) -> None:
    double = BucketDouble()
    for key in SHAPES[shape]:
        double.put(key, b"")
    with client_of(double) as client:
        found = listed(client)
    assert found == sorted(SHAPES[shape], key=lambda key: key.encode().replace(b"/", b"\0"))


@pytest.mark.parametrize("shape", [shape for shape in SHAPES if len(SHAPES[shape]) > 1000 and shape != "words"])
def test_a_large_bucket_is_cut_into_ranges_by_a_few_requests(shape: str) -> None:
    double = BucketDouble()
    for key in SHAPES[shape]:
        double.put(key, b"")
    with client_of(double) as client:
        ranges = ranges_of(client, "", wanted=16)
        asked = double.asked["LIST"]
        sizes = [sum(part.after < key <= (part.last or "\U0010ffff") for key in double.order) for part in ranges]
    assert sum(sizes) == len(double.order)
    assert max(sizes) <= len(double.order) / 3, "no thread has most of the work"
    assert asked <= 25


def test_a_small_bucket_costs_one_request() -> None:
    double = BucketDouble()
    for number in range(1000):
        double.put(f"{number % 10}/{number}", b"")
    with client_of(double) as client:
        assert len(listed(client)) == 1000
        assert client.requests() == {"LIST": 1}
        assert client.requests() == {}


def test_only_the_prefix_is_listed_and_it_is_no_folder() -> None:
    double = BucketDouble()
    for key in ("lo", "log", "log/a", "logs", "logs/a", "lp"):
        double.put(key, b"")
    with client_of(double) as client:
        assert listed(client, "log") == ["log", "log/a", "logs", "logs/a"]
        assert listed(client, "log/", "logs/") == ["log/a", "logs/a"]


def test_a_bucket_without_structure_is_one_range() -> None:
    double = BucketDouble()
    for number in range(2500):
        double.put("é" * (number + 1), b"")
    with client_of(double) as client:
        assert ranges_of(client, "", wanted=16) == [KeyRange("")]
        assert split_points(client, "nothing") == []


def test_what_answers_no_listing_is_told() -> None:
    double = BucketDouble()
    double.listing = lambda query: b"<html></html>"  # type: ignore[method-assign]  # this one answer
    with client_of(double) as client, pytest.raises(Unreachable, match="no listing of a bucket"):
        listed(client)


def test_a_listing_that_goes_on_without_saying_where_is_refused() -> None:
    double = BucketDouble()
    answer = b"<ListBucketResult><IsTruncated>true</IsTruncated></ListBucketResult>"
    double.listing = lambda query: answer  # type: ignore[method-assign]  # this one answer
    with client_of(double) as client, pytest.raises(StorageError, match="does not say where"):
        listed(client)


def test_when_one_range_fails_the_listing_fails() -> None:
    double = BucketDouble()
    for key in SHAPES["folders"]:
        double.put(key, b"")
    answer = double.listing

    def failing(query: dict[str, str]) -> bytes:
        return b"<broken" if query.get("start-after", "") > "site-30" else answer(query)

    double.listing = failing  # type: ignore[method-assign]  # it breaks in the middle
    with client_of(double) as client, pytest.raises(Unreachable):
        listed(client)
