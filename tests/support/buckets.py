"""Buckets as the tests see them: written and read by boto3, which shares no code with ours."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import boto3
import msgspec
from botocore.config import Config

from engine.sources.bucket import BucketSource
from engine.storage.location import Location
from engine.targets.bucket import BucketTarget
from tests.services import S3

_THREADS = 16
_PLAIN = ("ContentType", "ContentEncoding", "ContentLanguage", "ContentDisposition", "CacheControl", "ExpiresString")


class Seen(NamedTuple):
    """One object: its bytes, its plain headers, user metadata and tags."""

    body: bytes
    headers: dict[str, str]
    metadata: dict[str, str]
    tags: dict[str, str]


class Peer:
    """A bucket through boto3."""

    def __init__(self, service: S3, bucket: str) -> None:
        options = Config(
            s3={"addressing_style": "path"},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            max_pool_connections=_THREADS,
        )
        self.bucket = bucket
        self.client: Any = boto3.client(
            "s3",
            endpoint_url=service.url,
            aws_access_key_id=service.access_key,
            aws_secret_access_key=service.secret_key,
            region_name=service.region,
            config=options,
        )

    def put(self, key: str, body: bytes, **extra: Any) -> None:
        self.client.put_object(Bucket=self.bucket, Key=key, Body=body, **extra)

    def put_many(self, bodies: Iterable[tuple[str, bytes]]) -> None:
        with ThreadPoolExecutor(_THREADS) as executor:
            list(executor.map(lambda pair: self.put(*pair), bodies))

    def delete(self, *keys: str) -> None:
        for key in keys:
            self.client.delete_object(Bucket=self.bucket, Key=key)

    def keys(self, prefix: str = "") -> list[str]:
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix)
        return [one["Key"] for page in pages for one in page.get("Contents", [])]

    def seen(self, prefix: str = "") -> dict[str, Seen]:
        """Return everything below a prefix, by the rest of its key."""
        keys = self.keys(prefix)
        with ThreadPoolExecutor(_THREADS) as executor:
            return {
                key.removeprefix(prefix): seen for key, seen in zip(keys, executor.map(self.one, keys), strict=True)
            }

    def one(self, key: str) -> Seen:
        got = self.client.get_object(Bucket=self.bucket, Key=key)
        tags = self.client.get_object_tagging(Bucket=self.bucket, Key=key)["TagSet"] if got.get("TagCount") else []
        headers = {name: got[name] for name in _PLAIN if got.get(name)}
        return Seen(got["Body"].read(), headers, got["Metadata"], {tag["Key"]: tag["Value"] for tag in tags})


@contextmanager
def peer(service: S3, bucket: str) -> Iterator[Peer]:
    """Open a bucket with boto3 and close its connections in the end."""
    made = Peer(service, bucket)
    try:
        yield made
    finally:
        made.client.close()


def place(service: S3, bucket: str, **options: Any) -> Location:
    """Return the address of a bucket on a server; `options` replace its fields."""
    fields = {
        "endpoint": service.url,
        "access_key": service.access_key,
        "secret_key": service.secret_key,
        "region": service.region,
    }
    return Location(url=f"s3://{bucket}", **{**fields, **options})


def described(thing: BucketSource | BucketTarget, file: Path) -> str:
    """Write a source or target to a file as the command line takes it; return its path."""
    file.touch(mode=0o600)
    file.write_bytes(msgspec.json.encode(thing))
    return str(file)
