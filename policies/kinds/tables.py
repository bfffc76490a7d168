"""What the kinds of wide-column services share: which tables, how fast, and where a restore puts them."""

from typing import Any
from urllib.parse import urlsplit

from rest_framework import serializers

from policies.kinds.port import Reading, TextList


class TablesSettings(serializers.Serializer[Any]):
    """Which tables, and how much of the service reading them may take."""

    tables = TextList(default=list, help_text="Names or patterns such as orders_*; none is every table")
    exclude = TextList(default=list, help_text="Never the tables whose names match these patterns")
    reads_per_s = serializers.FloatField(
        default=0,
        min_value=0,
        label="Read capacity units per second",
        help_text="The most that each worker uses up; 0 is no limit",
    )
    bytes_per_s = serializers.IntegerField(
        default=0, min_value=0, label="Bytes per second", help_text="The most that each worker reads; 0 is no limit"
    )
    rows_per_s = serializers.FloatField(
        default=0,
        min_value=0,
        label="Rows per second of a restore",
        help_text="The most that a restore writes; 0 is no limit",
    )

    def validate_bytes_per_s(self, count: int) -> int:
        if 0 < count < 1000:
            raise serializers.ValidationError("Give at least 1000, or 0 for no limit.")
        return count


class TablesCredentials(serializers.Serializer[Any]):
    """Keys of an account that may describe and read tables; to restore also create and write them."""

    access_key = serializers.CharField(max_length=200)
    secret_key = serializers.CharField(max_length=500, trim_whitespace=False, style={"input_type": "password"})
    token = serializers.CharField(
        default="",
        allow_blank=True,
        max_length=5000,
        label="Session token",
        style={"input_type": "password"},
        help_text="Only with temporary keys",
    )


def host_and_port(url: str) -> tuple[str, int]:
    """Return what an address names. Raises ValidationError for what is no address of a service."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise serializers.ValidationError(f"{url!r} is no address: {error}.") from error
    if parts.scheme not in ("http", "https") or not host or parts.username is not None or parts.path.strip("/"):
        raise serializers.ValidationError("Give https://host or http://host:port, without a path.")
    return host, port or (443 if parts.scheme == "https" else 80)


def chosen(wanted: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a source as the engine's source takes them."""
    return {
        "tables": tuple(wanted["tables"]),
        "exclude": tuple(wanted["exclude"]),
        "reads_per_s": wanted["reads_per_s"],
        "bytes_per_s": wanted["bytes_per_s"],
    }


def written(reading: Reading, to: str) -> dict[str, Any]:
    """Return the settings of a target as the engine's target takes them."""
    return {"suffix": to, "overwrite": reading.overwrite, "rows_per_s": reading.settings["rows_per_s"]}
