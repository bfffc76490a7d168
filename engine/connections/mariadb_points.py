"""What points of MariaDB hold, for sources that write it and targets that read it: names, the index of binary logs."""

import re
from urllib.parse import quote, unquote

import msgspec

from engine.errors import SourceError

TOGETHER = b"databases.sql"
USERS = b"users.sql"
IMAGE = b"backup.xbstream"
INDEX = b"binlog.index.json"
LOGS = b"binlog/"
NAMES_XATTR = b"user.mariadb.databases"
FIRST_POSITION = 4  # behind the magic number
_DATABASES, _DUMP = b"databases/", b"/dump.sql"
_LOG_NAME = re.compile(r"(?P<base>.+)\.(?P<number>\d{6,})")


class Log(msgspec.Struct, frozen=True):
    """One closed binary log: its events stand from `start` to `end`; the first was written at `begins_at` (Unix)."""

    name: str
    start: int
    end: int
    begins_at: int

    @property
    def number(self) -> int:
        """Return its place among the logs."""
        return number_of(self.name)


class Index(msgspec.Struct, frozen=True):
    """The content of `binlog.index.json`: the logs of a point, oldest first."""

    server: str
    version: str
    logs: list[Log]


def path_of(database: str) -> bytes:
    """Return the path of a database's dump."""
    return _DATABASES + encoded(database).encode() + _DUMP


def database_of(path: bytes) -> str | None:
    """Return the database whose dump stands at `path`, None for other files."""
    if not (path.startswith(_DATABASES) and path.endswith(_DUMP)):
        return None
    return unquote(path[len(_DATABASES) : -len(_DUMP)].decode())


def encoded(name: str) -> str:
    """Return a name percent-encoded, so that it can be one of a folder."""
    return name.replace(".", "%2E") if name in (".", "..") else quote(name, safe="")


def decoded(names: bytes) -> list[str]:
    """Return the names that NAMES_XATTR holds."""
    return [unquote(name) for name in names.decode().split()]


def is_log(name: str) -> bool:
    """Say whether a file's name is one of a binary log."""
    return _LOG_NAME.fullmatch(name) is not None


def number_of(name: str) -> int:
    """Return the number at the end of a log's name. Raises SourceError."""
    return int(_split(name)["number"])


def base_of(name: str) -> str:
    """Return what the logs of one server have in common. Raises SourceError."""
    return _split(name)["base"]


def _split(name: str) -> re.Match[str]:
    found = _LOG_NAME.fullmatch(name)
    if found is None:
        raise SourceError(f"{name!r} is not the name of a binary log")
    return found
