"""Which names a share can hold: what Windows would take for something else is refused."""

import re

from engine.errors import UnsafePath

_FORBIDDEN = re.compile(r'[<>:"|?*\\\x00-\x1f]')
# Names that mean devices, with whatever extension.
_DEVICE = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³]|conin\$|conout\$)\s*(\..*)?", re.IGNORECASE | re.DOTALL)
_NAME_UNITS = 255


def safe_path(path: bytes) -> None:
    """Raise UnsafePath for a path that a share can't hold, or that could lead out of the folder restored into."""
    for name in path.split(b"/"):
        if why := _wrong(name):
            raise UnsafePath(f"a share can't hold {path!r}: {why}; restore it into a folder instead")


def _wrong(name: bytes) -> str:
    try:
        text = name.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return "a name in it is not UTF-8"
    if text in ("", ".", ".."):
        return "it would leave the folder restored into"
    if _FORBIDDEN.search(text):
        return f"the name {text!r} has a character that means something else there"
    if text[-1] in " .":
        return f"the name {text!r} ends with a space or a dot"
    if _DEVICE.fullmatch(text):
        return f"the name {text!r} means a device"
    if len(text.encode("utf-16-le", "surrogatepass")) // 2 > _NAME_UNITS:
        return "a name in it is too long"
    return ""
