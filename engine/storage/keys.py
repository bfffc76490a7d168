"""What may be asked of any storage; everything else is refused before anything is touched."""

import re

from engine.errors import ShortRead

KEY_LENGTH = 900
SEGMENT_LENGTH = 250
_SEGMENT = re.compile(r"[a-z0-9_-][a-z0-9._-]*\Z")
_PREFIX = re.compile(r"[a-z0-9._/-]*\Z")


def check_key(key: str) -> str:
    """Return the key, or raise ValueError: relative, lower-case segments, none of which begins with a dot."""
    if len(key) > KEY_LENGTH:
        raise ValueError(f"object key of {len(key)} characters is longer than {KEY_LENGTH}")
    for segment in key.split("/"):
        if len(segment) > SEGMENT_LENGTH or not _SEGMENT.match(segment):
            raise ValueError(f"bad object key {key!r}: segment {segment!r} is not lower-case letters, digits, . - _")
    return key


def check_prefix(prefix: str) -> str:
    """Return the beginning of a key as `scan` takes it, or raise ValueError."""
    bad = any(segment.startswith(".") for segment in prefix.split("/"))
    if bad or prefix.startswith("/") or "//" in prefix or not _PREFIX.match(prefix):
        raise ValueError(f"bad key prefix {prefix!r}: expected the beginning of a relative lower-case key")
    return prefix


def check_range(offset: int, length: int | None) -> None:
    """Raise ValueError for a range that no object can have."""
    if offset < 0 or (length is not None and length < 0):
        raise ValueError(f"bad range: offset {offset}, length {length}")


def beyond_end(key: str, size: int, end: int) -> ShortRead:
    """Return the error for bytes that the object does not have: unlike an answer cut short, asking again is no use."""
    error = ShortRead(f"{key} has {size} bytes, {end} were asked for")
    error.transient = False
    return error
