"""Keys of objects as paths of entries, and back (docs/sources/bucket.md).

The separator stays "/". A component that no path may have is marked by the byte 0xFF, which occurs in no UTF-8 text,
so that no two keys share a path:

    empty component ("a//b", "/a", "a/")    the mark alone
    "." and ".."                            the mark in front
    NUL inside a component                  the mark and "0" in its place
"""

from engine.errors import UnsafePath

_MARK = b"\xff"
_NUL = _MARK + b"0"
KEY_BYTES = 1024


def path_of(key: str) -> bytes:
    """Return the path of an entry for a key, which is never empty."""
    raw = key.encode("utf-8", "surrogateescape")
    components = raw.split(b"/")
    if b"\0" not in raw and not {b"", b".", b".."}.intersection(components):
        return raw
    return b"/".join(map(_escaped, components))


def key_of(path: bytes) -> str:
    """Return the key that `path_of` made the path of; others as they are. Raises UnsafePath for what no key can be."""
    raw = path
    if _MARK in path:
        raw = b"/".join(map(_unescaped, path.split(b"/")))
    try:
        key = raw.decode("utf-8")
    except UnicodeDecodeError:
        raise UnsafePath(f"{path!r} can't be the key of an object: keys are UTF-8") from None
    if len(raw) > KEY_BYTES:
        raise UnsafePath(f"{path[:100]!r}... can't be the key of an object: it has {len(raw)} bytes, more than 1024")
    return key


def _escaped(component: bytes) -> bytes:
    if component in (b"", b".", b".."):
        return _MARK + component
    return component.replace(b"\0", _NUL)


def _unescaped(component: bytes) -> bytes:
    if component in (_MARK, _MARK + b".", _MARK + b".."):
        return component[1:]
    return component.replace(_NUL, b"\0")
