"""Where a store is and how to reach it, as one value that can be kept and sent."""

import datetime as dt
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

import msgspec

from engine.storage.directory import Directory
from engine.storage.keys import check_key
from engine.storage.port import Storage
from engine.storage.retry import Retrying
from engine.storage.throttle import Budget, Pace, both, unpaced

_SECRET = ("secret_key", "session_token")


class Location(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, repr_omit_defaults=True):
    """The address of a store: `/folder`, `file:///folder` or `s3://bucket/prefix`, and what reaching it needs.

    `endpoint` is `http(s)://host[:port]`; `bytes_per_s` limits puts and gets together, 0 is no limit. Holds secrets:
    encrypt it where it is kept; `repr` leaves them out.
    """

    url: str
    endpoint: str = ""
    access_key: str = ""
    secret_key: str = ""
    session_token: str = ""
    region: str = "us-east-1"
    tls_verify: bool = True
    ca_file: str = ""
    path_style: bool = True
    bytes_per_s: int = 0

    @classmethod
    def parse(cls, url: str, **options: Any) -> "Location":
        """Return the checked location; `options` are the other fields. Raises ValueError saying what to change."""
        location = cls(url=url, **options)
        location.validate()
        return location

    def validate(self) -> None:
        """Raise ValueError, saying what to change, when the fields don't make an address."""
        if self.bytes_per_s and self.bytes_per_s < 1000:
            raise ValueError(f"a limit of {self.bytes_per_s} bytes/s is too low: give at least 1000, or 0 for none")
        if self.is_s3:
            self._validate_s3()
        elif not self.folder.startswith("/"):
            raise ValueError(f"{self.url!r} is not an address: give /an/absolute/folder or s3://bucket/prefix")
        elif ".." in PurePosixPath(self.folder).parts or "\0" in self.folder:
            raise ValueError(f"{self.url!r} is not a plain folder: leave out '..'")

    @property
    def is_s3(self) -> bool:
        """Say whether this is a bucket rather than a folder."""
        return self.url.startswith("s3://")

    @property
    def folder(self) -> str:
        """Return the folder, empty when the address has another host or scheme."""
        if not self.url.startswith("file:"):
            return self.url
        parts = urlsplit(self.url)
        return unquote(parts.path) if parts.netloc in ("", "localhost") else ""

    @property
    def bucket(self) -> str:
        """Return the bucket's name."""
        return self.url.removeprefix("s3://").partition("/")[0]

    @property
    def prefix(self) -> str:
        """Return what precedes every key in the bucket: empty, or ending in `/`."""
        inside = self.url.removeprefix("s3://").partition("/")[2].strip("/")
        return f"{inside}/" if inside else ""

    def _validate_s3(self) -> None:
        if not 3 <= len(self.bucket) <= 63 or not self.bucket.replace("-", "").replace(".", "").isalnum():
            raise ValueError(f"{self.bucket!r} is not a bucket's name: give s3://bucket/prefix")
        if self.prefix:
            check_key(self.prefix.rstrip("/"))
        scheme, _, host = self.endpoint.partition("://")
        if scheme not in ("http", "https") or not host.strip("/") or "/" in host.rstrip("/"):
            raise ValueError(f"{self.endpoint!r} is not an endpoint: give http://host:port or https://host")
        if bool(self.access_key) != bool(self.secret_key):
            raise ValueError("an access key and a secret key belong together: give both, or none for a public bucket")
        if self.ca_file and (scheme == "http" or not self.tls_verify):
            raise ValueError("a CA file has no use without https and TLS verification: leave it out or change those")

    def __repr__(self) -> str:
        shown = ((name, getattr(self, name)) for name in self.__struct_fields__)
        return f"Location({', '.join(f'{name}={_shown(name, value)}' for name, value in shown if value != '')})"


def _shown(name: str, value: object) -> str:
    return "'***'" if name in _SECRET else repr(value)


def open_storage(
    location: Location, *, create: bool = False, clock: Callable[[], dt.datetime] | None = None, pace: Pace = unpaced
) -> Storage:
    """Return the store at a location, retrying and, if the location says so, throttled; nothing is contacted yet.

    `create` makes a missing folder (a bucket is never made). `clock` lets a folder forget locks that have ended. `pace`
    is a limit beside the location's own.
    """
    location.validate()
    if location.bytes_per_s:
        pace = both(Budget(location.bytes_per_s).take, pace)
    if not location.is_s3:
        return Retrying(Directory(location.folder, create=create, clock=clock, pace=pace))
    # Loading the S3 client takes longer than a small backup into a folder: only buckets pay for it.
    from engine.storage.s3 import S3Storage

    return Retrying(S3Storage(location, pace=pace))
