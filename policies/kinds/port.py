"""What a kind of source is to the control plane: the shape of its settings, and what the engine makes of them."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from rest_framework import serializers

from engine.sources.kinds import AnySource
from engine.targets.kinds import AnyTarget

UNITS = "units"


class Reading(NamedTuple):
    """One source as a kind sees it: its host (may be empty), checked settings, and credentials in the clear.

    `overwrite` says of a restore that a person confirmed the loss of what stands in its place (C28).
    """

    host: str
    settings: dict[str, Any]
    credentials: dict[str, str]
    overwrite: bool = False


class NoCredentials(serializers.Serializer[Any]):
    """What a kind takes that needs no credentials."""


def _no_endpoints(settings: dict[str, Any]) -> list[tuple[str, int]]:
    return []


def _any_place(to: str) -> None:
    """Take any text for a place."""


def _stays(to: str) -> bool:
    return False


def _never(settings: dict[str, Any]) -> bool:
    return False


@dataclass(frozen=True, slots=True)
class SourceType:
    """One kind of source. The serializers are the one declaration of its fields: API, console form and checks use them.

    `on_host`: read by the worker of a named host; the others are read by any worker of their region. `endpoints`
    returns (host, port) of every server that settings make the service contact: internal addresses are refused there
    unless the operator allows them. `source` and `target` make the engine's view; `target` takes what a person typed
    as the place, meant as `to` tells, empty for the original place. `check_to` raises ValidationError for a text that
    is no place of this kind; `leaves` says whether one lies on another server than the source's, to which the
    credentials would be shown. What `starts_itself` backs up without this service's plans. `takes` are the kinds of
    points that it can restore beside its own. What `is_cluster` has one automatic policy of its own and manual backups
    beside it, which outlive it (D1-D30). `from_replica` says whether its points are
    restored from a replication target, too (E13). `policy_only` says of settings that the replication of a vault with
    such backups is begun by their policy alone, not at the vault (E9).

    For people: `about` says in one line what the kind protects, `preflight` what has to be there before a restore
    (E37), `parts` what the units of its backups are, where they are not runs of files.
    """

    settings: type[serializers.Serializer[Any]]
    source: Callable[[Reading], AnySource]
    target: Callable[[Reading, str], AnyTarget]
    to: str
    credentials: type[serializers.Serializer[Any]] = NoCredentials
    on_host: bool = False
    starts_itself: bool = False
    is_cluster: bool = False
    endpoints: Callable[[dict[str, Any]], list[tuple[str, int]]] = _no_endpoints
    takes: frozenset[str] = field(default_factory=frozenset)
    from_replica: bool = True
    policy_only: Callable[[dict[str, Any]], bool] = _never
    check_to: Callable[[str], None] = _any_place
    leaves: Callable[[str], bool] = _stays
    about: str = ""
    preflight: str = ""
    parts: str = UNITS


class HostPath(serializers.CharField):
    """An absolute path on the host that reads; empty unless one is given."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{"default": "", "allow_blank": True, "max_length": 4096, **kwargs})

    def to_internal_value(self, data: Any) -> str:
        path = str(super().to_internal_value(data))
        if path and not os.path.isabs(path):
            raise serializers.ValidationError("Give an absolute path.")
        return path


class ServerPassword(serializers.Serializer[Any]):
    """The password of an account of a database server."""

    password = serializers.CharField(
        default="",
        allow_blank=True,
        max_length=1000,
        trim_whitespace=False,
        style={"input_type": "password"},
        help_text="Empty where the server asks for none, as it may on its Unix socket",
    )


class TextList(serializers.ListField):
    """A list of texts; `max_length` counts the texts."""

    child = serializers.CharField(max_length=4096)
