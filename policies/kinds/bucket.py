"""Buckets of S3, OSS and servers that speak like them."""

import re
from typing import Any
from urllib.parse import urlsplit

from rest_framework import serializers

from engine.patterns import BadPattern, Selection
from engine.sources.bucket import BucketSource
from engine.sources.kinds import AnySource
from engine.storage.location import Location
from engine.targets.bucket import BucketTarget
from engine.targets.kinds import AnyTarget
from policies import addresses
from policies.kinds.port import Reading, SourceType, TextList
from policies.models import SourceKind

_BUCKET = re.compile(r"\A[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]\Z")
_SCHEME = "s3://"


class BucketSettings(serializers.Serializer[Any]):
    """Which objects of which bucket, and how to find them."""

    endpoint = serializers.CharField(
        max_length=500, help_text="https://host or http://host:port of the server, without the bucket"
    )
    bucket = serializers.RegexField(_BUCKET, max_length=63, error_messages={"invalid": "This is no bucket's name."})
    prefix = serializers.CharField(
        default="",
        allow_blank=True,
        max_length=1024,
        trim_whitespace=False,
        help_text="Only objects whose keys begin with this text; blank is all objects",
    )
    region = serializers.CharField(
        default="us-east-1", max_length=64, help_text="The region that requests are signed for"
    )
    path_style = serializers.BooleanField(
        default=True, label="Bucket in the path", help_text="Off: the bucket is part of the host name, as OSS requires"
    )
    tls_verify = serializers.BooleanField(default=True, label="Check the certificate")
    include = TextList(default=list, help_text="Only what matches these patterns; none is everything")
    exclude = TextList(default=list, help_text="Never what matches these patterns")
    ignore_archived = serializers.BooleanField(
        default=False,
        label="Leave archived objects out of the report",
        help_text="Objects in archive classes are never backed up; on, they are not counted either",
    )
    by_version = serializers.BooleanField(
        default=False,
        label="List versions",
        help_text="Compare version ids too; costs more requests where objects have many versions",
    )
    inventory = serializers.CharField(
        default="",
        allow_blank=True,
        max_length=1100,
        help_text="s3://bucket/prefix/source-bucket/inventory-id on the same server: take the keys from its newest "
        "inventory instead of listing; recommended above 100 million objects",
    )
    hot_prefixes = TextList(
        default=list, help_text="With an inventory: list keys that begin with these texts, because new ones come there"
    )
    bytes_per_s = serializers.IntegerField(
        default=0, min_value=0, label="Bytes per second", help_text="The most that each worker reads; 0 is no limit"
    )

    def validate_endpoint(self, endpoint: str) -> str:
        try:
            Location.parse("s3://bucket", endpoint=endpoint)
            urlsplit(endpoint).port  # noqa: B018  # a port that is none raises
        except ValueError as error:
            raise serializers.ValidationError(f"{error}.") from error
        return endpoint.rstrip("/")

    def validate_inventory(self, inventory: str) -> str:
        if inventory and not _BUCKET.fullmatch(_split(inventory)[0]):
            raise serializers.ValidationError("Give s3://bucket/prefix.")
        return inventory

    def validate_bytes_per_s(self, count: int) -> int:
        if 0 < count < 1000:
            raise serializers.ValidationError("Give at least 1000, or 0 for no limit.")
        return count

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        if attrs["inventory"] and attrs["by_version"]:
            raise serializers.ValidationError(
                {"inventory": "An inventory can't be used together with listing versions."}
            )
        if attrs["hot_prefixes"] and not attrs["inventory"]:
            raise serializers.ValidationError({"hot_prefixes": "They have a meaning only together with an inventory."})
        try:
            Selection(attrs["include"], attrs["exclude"])
        except BadPattern as error:
            raise serializers.ValidationError(str(error)) from error
        return attrs


class BucketCredentials(serializers.Serializer[Any]):
    """The keys of an account that may list and read; to restore into the bucket also write."""

    access_key = serializers.CharField(
        default="", allow_blank=True, max_length=200, help_text="Empty for a public bucket"
    )
    secret_key = serializers.CharField(
        default="", allow_blank=True, max_length=500, trim_whitespace=False, style={"input_type": "password"}
    )
    session_token = serializers.CharField(
        default="",
        allow_blank=True,
        max_length=5000,
        style={"input_type": "password"},
        help_text="Only for keys that are lent for some time",
    )

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        if bool(attrs["access_key"]) != bool(attrs["secret_key"]):
            raise serializers.ValidationError("An access key and a secret key belong together: give both, or none.")
        return attrs


def _split(address: str) -> tuple[str, str]:
    """Return bucket and prefix of s3://bucket/prefix."""
    bucket, _, prefix = address.removeprefix(_SCHEME).partition("/") if address.startswith(_SCHEME) else ("", "", "")
    return bucket, prefix


def _host_and_port(settings: dict[str, Any], bucket: str) -> tuple[str, int]:
    parts = urlsplit(settings["endpoint"])
    host = parts.hostname or ""
    port = parts.port or (443 if parts.scheme == "https" else 80)
    return (host if settings["path_style"] else f"{bucket}.{host}"), port


def _endpoints(settings: dict[str, Any]) -> list[tuple[str, int]]:
    buckets = [settings["bucket"], *filter(None, [_split(settings["inventory"])[0]])]
    return list(dict.fromkeys(_host_and_port(settings, bucket) for bucket in buckets))


def _location(reading: Reading, bucket: str) -> Location:
    wanted, secret = reading.settings, reading.credentials
    return Location(
        url=f"{_SCHEME}{bucket}",
        endpoint=wanted["endpoint"],
        access_key=secret.get("access_key", ""),
        secret_key=secret.get("secret_key", ""),
        session_token=secret.get("session_token", ""),
        region=wanted["region"],
        tls_verify=wanted["tls_verify"],
        path_style=wanted["path_style"],
        bytes_per_s=wanted["bytes_per_s"],
    )


def _source(reading: Reading) -> AnySource:
    wanted = reading.settings
    return BucketSource(
        location=_location(reading, wanted["bucket"]),
        prefix=wanted["prefix"],
        include=tuple(wanted["include"]),
        exclude=tuple(wanted["exclude"]),
        ignore_archived=wanted["ignore_archived"],
        by_version=wanted["by_version"],
        inventory=wanted["inventory"],
        hot_prefixes=tuple(wanted["hot_prefixes"]),
    )


def _target(reading: Reading, to: str) -> AnyTarget:
    bucket, prefix = _split(to) if to.startswith(_SCHEME) else (reading.settings["bucket"], to)
    if bucket != reading.settings["bucket"]:
        # Where the bucket is part of the host name, another one is another host.
        addresses.check([_host_and_port(reading.settings, bucket)])
    return BucketTarget(location=_location(reading, bucket), prefix=prefix)


def _check_to(to: str) -> None:
    if to.startswith(_SCHEME) and not _BUCKET.fullmatch(_split(to)[0]):
        raise serializers.ValidationError("Give s3://bucket/prefix, or a prefix in the same bucket.")


TYPE = SourceType(
    settings=BucketSettings,
    source=_source,
    target=_target,
    to="Empty: the same keys of the same bucket. A text such as restored/: put in front of every key. "
    "s3://other-bucket/restored/: the same in another bucket of the server",
    credentials=BucketCredentials,
    endpoints=_endpoints,
    takes=frozenset(SourceKind.values),
    check_to=_check_to,
    about="The objects of a bucket or of a prefix, with content type, metadata and tags, without ACLs",
    preflight="The bucket exists, and the credentials may list it, read, write and tag its objects. Restored objects "
    "get the bucket's own storage class and are private.",
)
