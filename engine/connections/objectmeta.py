"""What an object carries beside its bytes, as extended attributes of an entry, and back as headers of an upload.

    user.s3.content-type, .content-encoding, .content-language, .content-disposition, .cache-control, .expires
    user.s3.meta.<name>      user metadata
    user.s3.tags             the tags, as a query string
    user.s3.storage-class    for people: a restored object gets the class that its new bucket gives

The names begin with "user." so that a restore into a folder can set them. ACLs are not kept (A5).
"""

import base64
import re
from collections.abc import Mapping
from urllib.parse import parse_qsl, quote

_SPACE = b"user.s3."
_META = _SPACE + b"meta."
_TAGS = _SPACE + b"tags"
_CLASS = _SPACE + b"storage-class"
_PLAIN = ("Content-Type", "Content-Encoding", "Content-Language", "Content-Disposition", "Cache-Control", "Expires")
_VENDORS = ("x-amz-", "x-oss-")
_PRINTABLE = re.compile(rb"[ -~]*")
_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
DEFAULT_TYPE = "application/octet-stream"


def attributes(headers: Mapping[str, str], tags: Mapping[str, str]) -> dict[bytes, bytes]:
    """Return the extended attributes for the headers of an answer; their values are bytes read as Latin-1."""
    found: dict[bytes, bytes] = {}
    for name in _PLAIN:
        value = headers.get(name, "")
        if name == "Content-Encoding":
            # How an upload was framed is told as an encoding by some servers; it is none of the object.
            value = ", ".join(part.strip() for part in value.split(",") if part.strip() not in ("", "aws-chunked"))
        if value:
            found[_SPACE + name.lower().encode()] = value.encode("latin-1", "replace")
    for name, value in headers.items():
        lower = name.lower()
        for vendor in _VENDORS:
            if lower.startswith(f"{vendor}meta-"):
                found[_META + lower.removeprefix(f"{vendor}meta-").encode("latin-1", "replace")] = value.encode(
                    "latin-1", "replace"
                )
            elif lower == f"{vendor}storage-class":
                found[_CLASS] = value.encode("latin-1", "replace")
    if tags:
        pairs = (f"{quote(key, safe='')}={quote(value, safe='')}" for key, value in sorted(tags.items()))
        found[_TAGS] = "&".join(pairs).encode()
    return found


def upload_headers(xattrs: Mapping[bytes, bytes]) -> dict[str, str]:
    """Return the headers that give an object what `attributes` kept of it, but its tags.

    A value beyond printable ASCII is encoded as RFC 2047 says, as S3 does. A name that no header can have is left out:
    it came from no bucket.
    """
    headers = {"Content-Type": DEFAULT_TYPE}
    for name in _PLAIN:
        if value := xattrs.get(_SPACE + name.lower().encode()):
            headers[name] = _header_text(value)
    for key, value in xattrs.items():
        name = key.removeprefix(_META).decode("latin-1")
        if key.startswith(_META) and _TOKEN.fullmatch(name):
            headers[f"x-amz-meta-{name}"] = _header_text(value)
    return headers


def _header_text(value: bytes) -> str:
    if _PRINTABLE.fullmatch(value):
        return value.decode("ascii")
    return f"=?UTF-8?B?{base64.b64encode(value).decode()}?="


def tags_of(xattrs: Mapping[bytes, bytes]) -> dict[str, str]:
    """Return the tags that `attributes` kept."""
    return dict(parse_qsl(xattrs.get(_TAGS, b"").decode("latin-1"), keep_blank_values=True))
