"""What an account may do, read from SHOW GRANTS: a dump silently leaves out what its account may not see."""

import re
from collections.abc import Iterable

from engine.connections.mariadb import MariadbServer

_GRANT = re.compile(r"GRANT (?P<rights>.+?) ON (?P<scope>\S.*?) TO ")
_DATABASE = re.compile(r"`(?P<name>(?:[^`]|``)*)`\.(?P<rest>.+)")
_COLUMNS = re.compile(r"\([^)]*\)")
ALL = "ALL PRIVILEGES"


class Grants:
    """The rights of an account and its active roles: on everything, and on databases by pattern."""

    def __init__(self, lines: Iterable[str]) -> None:
        self._everywhere: set[str] = set()
        self._inside: list[tuple[re.Pattern[str], str, set[str]]] = []
        for line in lines:
            found = _GRANT.match(line)
            if found is None:
                continue
            rights = {right.strip().upper() for right in _COLUMNS.sub("", found["rights"]).split(",")}
            if found["scope"] == "*.*":
                self._everywhere |= rights
            elif database := _DATABASE.fullmatch(found["scope"]):
                pattern = _like(database["name"].replace("``", "`"))
                self._inside.append((pattern, database["rest"].strip("`"), rights))

    @classmethod
    def of(cls, server: MariadbServer) -> "Grants":
        """Ask the server. Raises SourceDenied, SourceUnavailable."""
        return cls("\t".join(row) for row in server.ask("SHOW GRANTS"))

    def has(self, *rights: str) -> bool:
        """Say whether the account has one of these rights on everything."""
        return not self._everywhere.isdisjoint({ALL, *rights})

    def has_in(self, database: str, *rights: str, table: str = "") -> bool:
        """Say whether the account has one of these rights on the whole database, or on this table of it."""
        wanted = {ALL, *rights}
        return self.has(*rights) or any(
            rest in ("*", table) and not granted.isdisjoint(wanted) and pattern.fullmatch(database)
            for pattern, rest, granted in self._inside
        )


def _like(pattern: str) -> re.Pattern[str]:
    """Return a LIKE pattern as a regular expression."""
    parts = []
    characters = iter(pattern)
    for one in characters:
        if one == "\\":
            parts.append(re.escape(next(characters, "\\")))
        else:
            parts.append({"%": ".*", "_": "."}.get(one, re.escape(one)))
    return re.compile("".join(parts), re.DOTALL)
