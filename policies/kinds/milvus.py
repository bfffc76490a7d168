"""Milvus clusters, and what speaks like them: Zilliz Cloud, Milvus Lite as a server."""

import re
from typing import Any

from rest_framework import serializers

from engine.connections.milvus import Endpoint
from engine.errors import SourceError
from engine.sources.kinds import AnySource
from engine.sources.milvus import MilvusSource
from engine.targets.kinds import AnyTarget
from engine.targets.milvus import MilvusTarget
from policies import addresses
from policies.kinds.port import Reading, SourceType

_CLUSTER_ID = re.compile(r"[A-Za-z0-9_-]{0,64}")
_SUFFIX = re.compile(r"[A-Za-z0-9_]{1,64}")
_SCHEMES = ("http://", "https://")


class MilvusSettings(serializers.Serializer[Any]):
    """Which cluster, and what of it beside its data. It is always backed up whole (D1)."""

    uri = serializers.CharField(
        max_length=500, label="Address", help_text="http://host:19530, or https://host for an encrypted connection"
    )
    ca = serializers.CharField(
        default="",
        allow_blank=True,
        max_length=20_000,
        label="Certificate to trust",
        help_text="PEM; only for https with a certificate that the system does not trust",
        style={"base_template": "textarea.html"},
    )
    rbac = serializers.BooleanField(
        default=True,
        label="Users, roles and rights",
        help_text="Never passwords. Needs an account that may read them; off leaves them out",
    )
    keep_ttl = serializers.BooleanField(
        default=False,
        label="Restore times to live",
        help_text="Off: restored collections have no time to live, so that nothing expires that was just restored",
    )

    cluster_id = serializers.CharField(
        default="",
        allow_blank=True,
        max_length=64,
        label="Cluster ID",
        help_text="The name by which scripts know it at /v2/clusters/ID/; empty: the source's own id",
    )

    def validate_cluster_id(self, name: str) -> str:
        if not _CLUSTER_ID.fullmatch(name):
            raise serializers.ValidationError("Use letters, digits, '-' and '_'.")
        return name

    def validate_uri(self, uri: str) -> str:
        _checked(uri)
        return uri.rstrip("/")


class MilvusCredentials(serializers.Serializer[Any]):
    """An account that may read every database; to restore also create and write."""

    token = serializers.CharField(
        default="",
        allow_blank=True,
        max_length=5000,
        trim_whitespace=False,
        style={"input_type": "password"},
        help_text="user:password, or an API key; empty where the server asks for none",
    )


def _checked(uri: str) -> tuple[str, int]:
    """Return host and port. Raises ValidationError for what is no address of a server."""
    try:
        host, _, port = Endpoint(uri, "", "", 0.0).address.rpartition(":")
    except SourceError as error:
        raise serializers.ValidationError(f"{error}.") from error
    return host.strip("[]"), int(port)


def _source(reading: Reading) -> AnySource:
    wanted = reading.settings
    token = reading.credentials.get("token", "")
    return MilvusSource(uri=wanted["uri"], token=token, ca=wanted["ca"], rbac=wanted["rbac"])


def _target(reading: Reading, to: str) -> AnyTarget:
    wanted = reading.settings
    other = to.startswith(_SCHEMES)
    if other:
        addresses.check([_checked(to)])
    return MilvusTarget(
        uri=to.rstrip("/") if other else wanted["uri"],
        token=reading.credentials.get("token", ""),
        ca=wanted["ca"],
        suffix="" if other else to,
        keep_ttl=wanted["keep_ttl"],
    )


def _check_to(to: str) -> None:
    if to.startswith(_SCHEMES):
        _checked(to)
    elif to and not _SUFFIX.fullmatch(to):
        raise serializers.ValidationError(
            "Give the address of another cluster, or a suffix of letters, digits and '_' for the restored names."
        )


TYPE = SourceType(
    settings=MilvusSettings,
    source=_source,
    target=_target,
    to="Empty: the same names in the same cluster. A suffix such as _restored: other names for the restored "
    "collections. http://host:19530: the same names in another cluster that takes the same token",
    credentials=MilvusCredentials,
    endpoints=lambda settings: [_checked(settings["uri"])],
    check_to=_check_to,
    leaves=lambda to: to.startswith(_SCHEMES),
    about="A whole Milvus cluster: databases, collections, rows, indexes, aliases, users and roles without passwords",
    preflight="No collection of a restored name exists. The account may create databases and collections, write, "
    "build indexes and load. Users that are made again get new passwords, told once in the restore's report.",
    parts="partitions",
    is_cluster=True,
)
