"""Addresses of stores: what is accepted, what is refused, what is kept secret."""

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from engine.errors import Unreachable
from engine.storage import Location, open_storage

S3_OPTIONS = {"endpoint": "https://s3.example.org", "access_key": "AK", "secret_key": "hush", "session_token": "token"}


@pytest.mark.parametrize(
    ("url", "folder"), [("/a/b", "/a/b"), ("file:///a%20b", "/a b"), ("file://localhost/a", "/a"), ("/ä b", "/ä b")]
)
def test_a_folder_can_be_given_as_a_path_or_a_url(url: str, folder: str) -> None:
    assert Location.parse(url).folder == folder


@pytest.mark.parametrize(
    ("url", "prefix"),
    [("s3://bucket", ""), ("s3://bucket/", ""), ("s3://bucket/a", "a/"), ("s3://bucket/a/b/", "a/b/")],
)
def test_a_bucket_may_have_a_prefix(url: str, prefix: str) -> None:
    location = Location.parse(url, **S3_OPTIONS)
    assert (location.is_s3, location.bucket, location.prefix) == (True, "bucket", prefix)


@pytest.mark.parametrize(
    ("url", "options", "message"),
    [
        ("", {}, "absolute/folder"),
        ("relative/folder", {}, "absolute/folder"),
        ("ftp://host/x", {}, "absolute/folder"),
        ("file://host/x", {}, "absolute/folder"),
        ("/a/../b", {}, "leave out"),
        ("/a\0b", {}, "not a plain folder"),
        ("s3://", S3_OPTIONS, "bucket's name"),
        ("s3://a b/x", S3_OPTIONS, "bucket's name"),
        ("s3://bucket/../other", S3_OPTIONS, "object key"),
        ("s3://bucket/UPPER", S3_OPTIONS, "object key"),
        ("s3://bucket", {}, "endpoint"),
        ("s3://bucket", {**S3_OPTIONS, "endpoint": "s3.example.org"}, "http://host:port"),
        ("s3://bucket", {**S3_OPTIONS, "endpoint": "http://h/path"}, "endpoint"),
        ("s3://bucket", {**S3_OPTIONS, "secret_key": ""}, "belong together"),
        ("s3://bucket", {**S3_OPTIONS, "ca_file": "/x", "tls_verify": False}, "no use"),
        ("/a", {"bytes_per_s": 10}, "too low"),
        ("/a", {"bytes_per_s": -5}, "too low"),
    ],
)
def test_a_bad_address_is_refused_with_what_to_change(url: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Location.parse(url, **options)


def test_the_secrets_do_not_show() -> None:
    location = Location.parse("s3://bucket/a", **S3_OPTIONS)
    for text in (repr(location), str(location), f"{location}"):
        assert "hush" not in text
        assert "token'" not in text.replace("session_token=", "")
        assert "AK" in text


def test_a_location_can_be_kept_and_sent() -> None:
    location = Location.parse("s3://bucket/a", **S3_OPTIONS, path_style=False, bytes_per_s=10_000_000)
    assert msgspec.json.decode(msgspec.json.encode(location), type=Location) == location


def test_opening_a_folder_gives_a_store_and_makes_nothing_unasked(tmp_path: Path) -> None:
    place = Location.parse(str(tmp_path / "vault"), bytes_per_s=10_000_000)
    with pytest.raises(Unreachable):
        open_storage(place).put("a", b"x")
    open_storage(place, create=True).put("a", b"x")
    assert open_storage(place).get("a") == b"x"


def test_a_folder_does_not_load_the_s3_client() -> None:
    program = (
        "import sys; from engine.storage import Location, open_storage; open_storage(Location.parse('/tmp'));"
        "sys.exit(any(name.split('.')[0] in ('minio', 'urllib3') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parents[3]).returncode == 0
