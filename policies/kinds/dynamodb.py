"""Tables behind the DynamoDB API: AWS, ScyllaDB Alternator and others."""

import re
from typing import Any

from rest_framework import serializers

from engine.connections.dynamodb import DynamoDb
from engine.sources.dynamodb import DynamoDbSource
from engine.sources.kinds import AnySource
from engine.targets.dynamodb import DynamoDbTarget
from engine.targets.kinds import AnyTarget
from policies.kinds.port import Reading, SourceType
from policies.kinds.tables import TablesCredentials, TablesSettings, chosen, host_and_port, written

_SUFFIX = re.compile(r"[A-Za-z0-9_.-]{1,64}")


class DynamoDbSettings(TablesSettings):
    """Which account's tables: the keys say it; in which region, or at which address."""

    region = serializers.RegexField(
        r"\A[a-z0-9-]{1,40}\Z", max_length=40, help_text="Such as eu-central-1; other services take any"
    )
    endpoint = serializers.CharField(
        default="", allow_blank=True, max_length=500, help_text="Empty: AWS. http://host:port of another service"
    )
    consistent = serializers.BooleanField(
        default=True,
        label="Consistent reads",
        help_text="Every write that ended before the run is seen; off costs half and may miss the newest ones",
    )

    def validate_endpoint(self, endpoint: str) -> str:
        if endpoint:
            host_and_port(endpoint)
        return endpoint.rstrip("/")


def _place(reading: Reading) -> DynamoDb:
    return DynamoDb(
        region=reading.settings["region"],
        endpoint=reading.settings["endpoint"],
        access_key=reading.credentials.get("access_key", ""),
        secret_key=reading.credentials.get("secret_key", ""),
        token=reading.credentials.get("token", ""),
    )


def _source(reading: Reading) -> AnySource:
    wanted = reading.settings
    return DynamoDbSource(place=_place(reading), consistent=wanted["consistent"], **chosen(wanted))


def _target(reading: Reading, to: str) -> AnyTarget:
    return DynamoDbTarget(place=_place(reading), **written(reading, to))


def _endpoints(settings: dict[str, Any]) -> list[tuple[str, int]]:
    return [host_and_port(settings["endpoint"] or f"https://dynamodb.{settings['region']}.amazonaws.com")]


def _check_to(to: str) -> None:
    if to and not _SUFFIX.fullmatch(to):
        raise serializers.ValidationError("Give a suffix of letters, digits, '_', '-' and '.' for the tables' names.")


TYPE = SourceType(
    settings=DynamoDbSettings,
    source=_source,
    target=_target,
    to="Empty: tables of the same names, which must be missing or empty. A suffix such as -restored: other names",
    credentials=TablesCredentials,
    endpoints=_endpoints,
    check_to=_check_to,
    about="Tables behind the DynamoDB API: items, indexes, expiry, tags, streams' settings",
    preflight="Tables of the restored names are missing or hold no items. The account may create and update tables "
    "and write items.",
    parts="segments of tables",
)
