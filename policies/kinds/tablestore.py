"""Alibaba Tablestore instances."""

import re

from rest_framework import serializers

from engine.connections.tablestore import Tablestore
from engine.sources.kinds import AnySource
from engine.sources.tablestore import TablestoreSource
from engine.targets.kinds import AnyTarget
from engine.targets.tablestore import TablestoreTarget
from policies.kinds.port import Reading, SourceType
from policies.kinds.tables import TablesCredentials, TablesSettings, chosen, host_and_port, written

_SUFFIX = re.compile(r"[A-Za-z0-9_]{1,64}")


class TablestoreSettings(TablesSettings):
    """Which instance, and which of its tables."""

    endpoint = serializers.CharField(
        max_length=500, help_text="https://instance.region.ots.aliyuncs.com, or the address in a VPC"
    )
    instance = serializers.RegexField(r"\A[A-Za-z][A-Za-z0-9-]{1,62}\Z", max_length=63, help_text="The instance's name")

    def validate_endpoint(self, endpoint: str) -> str:
        host_and_port(endpoint)
        return endpoint.rstrip("/")


def _place(reading: Reading) -> Tablestore:
    return Tablestore(
        endpoint=reading.settings["endpoint"],
        instance=reading.settings["instance"],
        access_key=reading.credentials.get("access_key", ""),
        secret_key=reading.credentials.get("secret_key", ""),
        token=reading.credentials.get("token", ""),
    )


def _source(reading: Reading) -> AnySource:
    return TablestoreSource(place=_place(reading), **chosen(reading.settings))


def _target(reading: Reading, to: str) -> AnyTarget:
    return TablestoreTarget(place=_place(reading), **written(reading, to))


def _check_to(to: str) -> None:
    if to and not _SUFFIX.fullmatch(to):
        raise serializers.ValidationError("Give a suffix of letters, digits and '_' for the tables' names.")


TYPE = SourceType(
    settings=TablestoreSettings,
    source=_source,
    target=_target,
    to="Empty: tables of the same names, which must be missing or empty. A suffix such as _restored: other names",
    credentials=TablesCredentials,
    endpoints=lambda settings: [host_and_port(settings["endpoint"])],
    check_to=_check_to,
    about="Tables of a Tablestore instance: rows with every version of every cell, indexes, options",
    preflight="The instance exists. Its tables of the restored names are missing or hold no rows. The account may "
    "create and update tables, write rows and make indexes.",
    parts="ranges of rows",
)
