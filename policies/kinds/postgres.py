"""PostgreSQL servers, read by the client programs of a host.

No addresses are checked: the host reaches the server, and may reach what it may reach.
"""

import datetime as dt
from typing import Any

from rest_framework import serializers

from engine.sources.kinds import AnySource
from engine.sources.postgres import PostgresSource
from engine.targets.kinds import AnyTarget
from engine.targets.postgres import PostgresTarget
from engine.targets.postgres_data import PostgresDataTarget
from policies.kinds.port import HostPath, Reading, ServerPassword, SourceType, TextList

_UNTIL = " until "
_MODES = [
    ("logical", "Dumps of the databases"),
    ("physical", "Base backups of the whole server"),
    ("wal", "The write-ahead log, for recovery to any moment"),
]
_SSL_MODES = ["disable", "allow", "prefer", "require", "verify-ca", "verify-full"]


class PostgresSettings(serializers.Serializer[Any]):
    """How to reach a server, and what of it to keep."""

    server = serializers.CharField(
        default="localhost", max_length=255, help_text="A host name, or the folder of the server's Unix socket"
    )
    port = serializers.IntegerField(default=5432, min_value=1, max_value=65535)
    user = serializers.CharField(default="postgres", max_length=63, help_text="The account that reads")
    sslmode = serializers.ChoiceField(
        default="prefer",
        choices=_SSL_MODES,
        label="TLS",
        help_text="As PostgreSQL means it; verify-full is the safe one",
    )
    sslrootcert = HostPath(label="CA file", help_text="On the host; for verify-ca and above")
    mode = serializers.ChoiceField(default="logical", choices=_MODES, label="What to keep")
    databases = TextList(default=list, help_text="Dumps: only these databases; none is all")
    exclude_schemas = TextList(default=list, help_text="Dumps: without these schemas (patterns of pg_dump)")
    exclude_tables = TextList(default=list, help_text="Dumps: without these tables (patterns of pg_dump)")
    spool = HostPath(
        label="Folder of the log",
        help_text="Log: a folder of the host, for this source alone, in which it is gathered through a slot",
    )
    slot = serializers.RegexField(
        "^[a-z0-9_]{1,63}$", default="backupsite", help_text="Log: the replication slot; made when it is not there"
    )
    wal_folder = HostPath(
        label="Folder of archive_command",
        help_text="Log: instead of a slot, the folder on the host into which the server's archive_command puts it",
    )
    keep_days = serializers.IntegerField(
        default=14,
        min_value=1,
        max_value=3650,
        label="Days of log",
        help_text="Log: how long it stays in its folder, and so how far back a point reaches: longer than the time "
        "between two base backups",
    )
    programs = HostPath(
        label="Folder of the programs",
        help_text="Where pg_dump and the others are on the host; empty finds them",
    )

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        if attrs["mode"] == "wal" and bool(attrs["spool"]) == bool(attrs["wal_folder"]):
            raise serializers.ValidationError({"spool": "Name this folder or the one of archive_command, one of them."})
        return attrs


def _source(reading: Reading) -> AnySource:
    wanted = reading.settings
    return PostgresSource(
        host=reading.host,
        server=wanted["server"],
        port=wanted["port"],
        user=wanted["user"],
        password=reading.credentials.get("password", ""),
        sslmode=wanted["sslmode"],
        sslrootcert=wanted["sslrootcert"],
        mode=wanted["mode"],
        databases=tuple(wanted["databases"]),
        exclude_schemas=tuple(wanted["exclude_schemas"]),
        exclude_tables=tuple(wanted["exclude_tables"]),
        spool=wanted["spool"],
        slot=wanted["slot"],
        wal_folder=wanted["wal_folder"],
        keep_days=wanted["keep_days"],
        programs=wanted["programs"],
    )


def _target(reading: Reading, to: str) -> AnyTarget:
    wanted = reading.settings
    folder, _, until = to.partition(_UNTIL)
    if wanted["mode"] != "logical" or folder.startswith("/"):
        return PostgresDataTarget(folder=folder, until=until.strip(), programs=wanted["programs"])
    return PostgresTarget(
        server=wanted["server"],
        port=wanted["port"],
        user=wanted["user"],
        password=reading.credentials.get("password", ""),
        sslmode=wanted["sslmode"],
        sslrootcert=wanted["sslrootcert"],
        suffix=to,
        overwrite=reading.overwrite,
        programs=wanted["programs"],
    )


def _check_to(to: str) -> None:
    folder, until, moment = to.partition(_UNTIL)
    if until:
        try:
            zone = dt.datetime.fromisoformat(moment.strip()).tzinfo
        except ValueError:
            zone = None
        if zone is None or not folder.startswith("/"):
            raise serializers.ValidationError(
                "Write a folder and a moment with its time zone: /srv/restored until 2031-05-06T07:08:09+00:00."
            )
    elif "/" in to and not to.startswith("/"):
        raise serializers.ValidationError("Give the absolute path of a new data directory, or a suffix without '/'.")


TYPE = SourceType(
    settings=PostgresSettings,
    source=_source,
    target=_target,
    to="Dumps: a suffix for the names of the databases, empty for the same names. Base backups and log: a new data "
    "directory of the host, such as /srv/restored, or /srv/restored until 2031-05-06T07:08:09+00:00",
    credentials=ServerPassword,
    on_host=True,
    check_to=_check_to,
    about="Databases as dumps, or the whole server as base backups and its log, for recovery to any moment",
    preflight="The host runs a worker with its queue and PostgreSQL's programs of the server's version. Dumps go into "
    "databases that do not exist or are empty. A base backup goes into an empty folder, then the log into the same "
    "one; nothing of it starts a server.",
    parts="streams",
)
