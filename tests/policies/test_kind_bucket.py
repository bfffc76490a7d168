"""Buckets as people name them: what settings are taken, and what the engine makes of them."""

from typing import Any

import pytest
from rest_framework import serializers

from engine.sources.bucket import BucketSource
from engine.storage.location import Location
from engine.targets.bucket import BucketTarget
from policies.addresses import AddressRefused
from policies.kinds.bucket import TYPE
from policies.kinds.port import Reading
from policies.reading import check_credentials, check_settings

PLAIN = {"endpoint": "https://s3.example.com", "bucket": "photos"}
KEYS = {"access_key": "key", "secret_key": "secret"}


def settings_of(**values: Any) -> dict[str, Any]:
    return check_settings("bucket", {**PLAIN, **values})


def reading(**values: Any) -> Reading:
    return Reading("", settings_of(**values), check_credentials("bucket", KEYS))


@pytest.mark.rule("A13")
def test_settings_become_the_source_that_they_describe() -> None:
    chosen = {
        "prefix": " 2031/",
        "include": ["*.jpg"],
        "exclude": ["tmp/"],
        "ignore_archived": True,
        "inventory": "s3://lists/photos/daily",
        "hot_prefixes": ["2031/new"],
        "path_style": False,
        "bytes_per_s": 5000,
        "region": "eu-central-1",
    }
    assert TYPE.source(reading(**chosen)) == BucketSource(
        location=Location(
            url="s3://photos",
            endpoint="https://s3.example.com",
            access_key="key",
            secret_key="secret",
            region="eu-central-1",
            path_style=False,
            bytes_per_s=5000,
        ),
        prefix=" 2031/",
        include=("*.jpg",),
        exclude=("tmp/",),
        ignore_archived=True,
        inventory="s3://lists/photos/daily",
        hot_prefixes=("2031/new",),
    )


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"endpoint": "s3.example.com"}, "is not an endpoint"),
        ({"endpoint": "https://s3.example.com:port"}, "port"),
        ({"endpoint": "https://s3.example.com/photos"}, "is not an endpoint"),
        ({"bucket": "Photos/2031"}, "no bucket's name"),
        ({"inventory": "lists/photos"}, "Give s3://bucket/prefix"),
        ({"inventory": "s3://lists/x", "by_version": True}, "can't be used together"),
        ({"hot_prefixes": ["new/"]}, "only together with an inventory"),
        ({"bytes_per_s": 10}, "at least 1000"),
        ({"include": ["["]}, "pattern"),
        ({"colour": "red"}, "Unknown"),
    ],
)
def test_settings_that_mean_nothing_are_refused(wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(Exception, match=told):
        settings_of(**wrong)


def test_half_a_pair_of_keys_is_refused() -> None:
    with pytest.raises(Exception, match="belong together"):
        check_credentials("bucket", {"access_key": "alone"})


@pytest.mark.parametrize(
    ("values", "servers"),
    [
        ({}, [("s3.example.com", 443)]),
        ({"endpoint": "http://10.0.0.1:9000"}, [("10.0.0.1", 9000)]),
        ({"inventory": "s3://lists/x"}, [("s3.example.com", 443)]),
        ({"path_style": False}, [("photos.s3.example.com", 443)]),
        (
            {"path_style": False, "inventory": "s3://lists/x"},
            [("photos.s3.example.com", 443), ("lists.s3.example.com", 443)],
        ),
    ],
)
def test_every_server_that_would_be_asked_is_named_for_the_check_of_addresses(
    values: dict[str, Any], servers: list[tuple[str, int]]
) -> None:
    assert TYPE.endpoints(settings_of(**values)) == servers


@pytest.mark.rule("A29")
@pytest.mark.parametrize(
    ("to", "bucket", "prefix"),
    [
        ("", "photos", ""),
        ("restored/", "photos", "restored/"),
        ("s3://photos", "photos", ""),
        ("s3://photos/from-", "photos", "from-"),
    ],
)
def test_a_restore_goes_to_the_place_that_was_typed(to: str, bucket: str, prefix: str) -> None:
    TYPE.check_to(to)
    target = TYPE.target(reading(), to)
    assert isinstance(target, BucketTarget)
    assert (target.location.bucket, target.prefix) == (bucket, prefix)
    assert target.location.secret_key == "secret"


def test_another_bucket_that_is_another_host_is_checked_like_one(settings: Any) -> None:
    settings.SOURCE_NETWORKS = []
    inside = reading(endpoint="http://localhost:9000", path_style=True)
    with pytest.raises(AddressRefused):
        TYPE.target(inside, "s3://other/x/")
    assert isinstance(TYPE.target(inside, "x/"), BucketTarget), "the source's own server was checked before"


def test_a_place_that_is_no_bucket_is_refused() -> None:
    with pytest.raises(serializers.ValidationError, match="Give s3://bucket/prefix"):
        TYPE.check_to("s3:///prefix")
