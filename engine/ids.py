"""Names of things: ULIDs for what happens in time, SHA-256 for stored bytes; and moments, as stored notes hold them."""

import datetime as dt
import hashlib
import os
import re
from typing import Annotated

import msgspec

# A time without a zone can't be compared with others: a note that holds one cannot be read.
Moment = Annotated[dt.datetime, msgspec.Meta(tz=True)]

SEGMENTS = "index/"  # of the index
FOLDERS = ("packs", "meta")  # of the kinds of packs
_PACK = re.compile(r"[0-9a-f]{64}(\.[1-9][0-9]{0,9})?")
_SERIES = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_DIGITS = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's base 32, five bits each
_TIME_DIGITS, _ULID_DIGITS = 10, 26


def new_ulid(now: dt.datetime) -> str:
    """Return a fresh ULID, lower case: sorts by `now` (aware), unique by 80 random bits."""
    # By hand: loading the library for it took as long as walking three thousand files.
    number = int(now.timestamp() * 1000) << 80 | int.from_bytes(os.urandom(10), "big")
    return "".join(_DIGITS[number >> 5 * place & 31] for place in reversed(range(_ULID_DIGITS)))


def ulid_moment(ulid: str) -> dt.datetime:
    """Return the moment in a ULID, to the millisecond. Raises ValueError."""
    milliseconds = 0
    for digit in ulid[:_TIME_DIGITS]:
        milliseconds = milliseconds << 5 | _DIGITS.index(digit)
    return dt.datetime.fromtimestamp(milliseconds / 1000, dt.UTC)


def digest_name(data: bytes | bytearray | memoryview) -> str:
    """Return the name of stored bytes: lower-case hex SHA-256 (vault-format, section 2)."""
    return hashlib.sha256(data).hexdigest()


def named_digest(key: str) -> str:
    """Return the digest that an object is named by, of its key or name, without the alias of a pack."""
    return key.rpartition("/")[2].partition(".")[0]


def pack_key(kind: int, name: str) -> str:
    """Return the key of a pack."""
    return f"{FOLDERS[kind]}/{name[:2]}/{name}"


def valid_pack(name: str) -> bool:
    """Say whether `name` is a pack's: the SHA-256 of its bytes, and perhaps an alias."""
    return bool(_PACK.fullmatch(name))


def valid_series(series: str) -> bool:
    """Say whether `series` may stand in a key: 1-63 of a-z 0-9 . _ -, not starting with a sign."""
    return bool(_SERIES.fullmatch(series))
