"""Where the parts of a PostgreSQL server stand in a recovery point."""

from urllib.parse import quote, unquote_to_bytes

CLUSTER = b"cluster.sql"
BASE = b"base.tar"
WAL = b"wal/"
_DATABASES = b"databases/"
_DUMP = b".dump"


def path_of(database: str) -> bytes:
    """Return the path under which a database's dump is kept."""
    return _DATABASES + quote(database, safe="").encode() + _DUMP


def database_of(path: bytes) -> str | None:
    """Return the database whose dump is kept under a path, None for another path."""
    if not (path.startswith(_DATABASES) and path.endswith(_DUMP)):
        return None
    return unquote_to_bytes(path.removeprefix(_DATABASES).removesuffix(_DUMP)).decode("utf-8", "replace")
