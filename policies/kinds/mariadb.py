"""MariaDB and MySQL servers, read by the client programs of a host.

No addresses are checked: the host reaches the server, and may reach what it may reach.
"""

import os
import re
from typing import Any

from rest_framework import serializers

from engine.connections.mariadb import MariadbServer
from engine.sources.kinds import AnySource
from engine.sources.mariadb import MariadbImageSource, MariadbSource
from engine.sources.mariadb_logs import MariadbLogsSource
from engine.targets.kinds import AnyTarget
from engine.targets.mariadb import MariadbTarget
from engine.targets.mariadb_image import MariadbImageTarget
from engine.targets.mariadb_logs import FIRST, MariadbLogsTarget
from policies.kinds.port import HostPath, Reading, ServerPassword, SourceType, TextList

_MODES = [
    ("logical", "Dumps of the databases"),
    ("physical", "The data files of the whole server (MariaDB)"),
    ("binlog", "The binary logs, for recovery to any moment"),
]
_TLS = [
    ("", "As the programs do it"),
    ("off", "Without"),
    ("require", "Encrypted"),
    ("verify", "Encrypted, and the server's certificate is checked"),
]
_SUFFIX = re.compile(r"[^/\\:\s]{1,32}")
_SPAN = re.compile(rf"(?P<start>{FIRST}|[^:/\s]+\.\d{{6,}}:\d+)(?: until (?P<stop>\S+))?")


class MariadbSettings(serializers.Serializer[Any]):
    """How to reach a server, and what of it to keep."""

    server = serializers.CharField(
        default="127.0.0.1", max_length=255, help_text="A host name or address, as the host reaches it"
    )
    port = serializers.IntegerField(default=3306, min_value=1, max_value=65535)
    socket = HostPath(max_length=107, help_text="The server's Unix socket, instead of name and port")
    user = serializers.CharField(default="backup", max_length=128, help_text="The account that reads")
    tls = serializers.ChoiceField(default="", choices=_TLS, allow_blank=True, label="TLS")
    tls_ca = HostPath(
        label="CA file",
        help_text="On the host; for a checked certificate",
    )
    mode = serializers.ChoiceField(default="logical", choices=_MODES, label="What to keep")
    databases = TextList(default=list, help_text="Dumps: only these databases; none is all but the system's")
    together = serializers.BooleanField(
        default=False,
        help_text="Dumps: all databases in one, as they were at one moment; what recovery by binary logs begins with",
    )
    users = serializers.BooleanField(
        default=True,
        label="Accounts",
        help_text="Dumps: the server's accounts too, with their rights and hashed passwords",
    )
    spool = HostPath(
        label="Folder of the logs",
        help_text="Binary logs: a folder of the host, for this source alone, in which they are gathered",
    )
    keep_days = serializers.IntegerField(
        default=0,
        min_value=0,
        max_value=3650,
        label="Days of logs",
        help_text="Binary logs: how long they stay in that folder; 0 keeps all. Longer than the time between two base "
        "backups",
    )
    programs = HostPath(
        label="Folder of the programs",
        help_text="Where mariadb-dump and the others are on the host; empty finds them",
    )

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        if attrs["mode"] == "binlog" and not attrs["spool"]:
            raise serializers.ValidationError({"spool": "Name a folder in which the binary logs are gathered."})
        return attrs


def _server(reading: Reading) -> MariadbServer:
    wanted = reading.settings
    return MariadbServer(
        host=wanted["server"],
        port=wanted["port"],
        socket=wanted["socket"],
        user=wanted["user"],
        password=reading.credentials.get("password", ""),
        tls=wanted["tls"],
        tls_ca=wanted["tls_ca"],
        programs=wanted["programs"],
    )


def _source(reading: Reading) -> AnySource:
    wanted, server = reading.settings, _server(reading)
    if wanted["mode"] == "physical":
        return MariadbImageSource(server=server, host=reading.host)
    if wanted["mode"] == "binlog":
        return MariadbLogsSource(server=server, host=reading.host, spool=wanted["spool"], keep_days=wanted["keep_days"])
    return MariadbSource(
        server=server,
        host=reading.host,
        databases=tuple(wanted["databases"]),
        together=wanted["together"],
        users=wanted["users"],
    )


def _target(reading: Reading, to: str) -> AnyTarget:
    mode, server = reading.settings["mode"], _server(reading)
    if mode == "physical" or to.startswith("/"):
        return MariadbImageTarget(folder=to, server=server)
    if mode == "binlog":
        start, _, stop = to.partition(" until ")
        return MariadbLogsTarget(server=server, start=start, stop=stop, scratch=reading.settings["spool"])
    return MariadbTarget(server=server, suffix=to, overwrite=reading.overwrite)


def _check_to(to: str) -> None:
    if not (not to or os.path.isabs(to) or _SPAN.fullmatch(to) or _SUFFIX.fullmatch(to)):
        raise serializers.ValidationError(
            "Give a suffix for names of databases, the absolute path of an empty folder, or which logs to play: "
            "binlog.000012:345 until 2031-05-06T07:08:09+00:00."
        )


TYPE = SourceType(
    settings=MariadbSettings,
    source=_source,
    target=_target,
    to="Dumps: a suffix for the names of the databases, empty for the same names. Data files: an empty folder of the "
    "host. Binary logs: where the base backup ends and what to play up to, such as binlog.000012:345 until "
    "2031-05-06T07:08:09+00:00, or until binlog.000014:678",
    credentials=ServerPassword,
    on_host=True,
    check_to=_check_to,
    about="Databases as dumps, a whole server as its data files, or its binary logs for recovery to any moment",
    preflight="The host runs a worker with its queue and MariaDB's programs. Dumps go into databases that do not exist "
    "or are empty. Data files go into an empty folder, on which a server of the same series is then started. Binary "
    "logs go into a server that holds the base backup and nothing newer.",
    parts="streams",
)
