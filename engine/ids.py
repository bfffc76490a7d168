"""Names of things: ULIDs for what happens in time, SHA-256 for stored bytes; and moments, as stored notes hold them."""

import datetime as dt
import hashlib
import re
from typing import Annotated

import msgspec
from ulid import ULID

# A time without a zone can't be compared with others: a note that holds one cannot be read.
Moment = Annotated[dt.datetime, msgspec.Meta(tz=True)]

_PACK = re.compile(r"[0-9a-f]{64}(\.[1-9][0-9]{0,9})?")
_SERIES = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")


def new_ulid(now: dt.datetime) -> str:
    """Return a fresh ULID, lower case: sorts by `now` (aware), unique by 80 random bits."""
    return str(ULID.from_datetime(now)).lower()


def digest_name(data: bytes | bytearray | memoryview) -> str:
    """Return the name of stored bytes: lower-case hex SHA-256 (vault-format, section 2)."""
    return hashlib.sha256(data).hexdigest()


def valid_pack(name: str) -> bool:
    """Say whether `name` is a pack's: the SHA-256 of its bytes, and perhaps an alias."""
    return bool(_PACK.fullmatch(name))


def valid_series(series: str) -> bool:
    """Say whether `series` may stand in a key: 1-63 of a-z 0-9 . _ -, not starting with a sign."""
    return bool(_SERIES.fullmatch(series))
