"""How fast a job may run: bytes per second by time of day, steps at once, share of a core (C10, C15)."""

import datetime as dt
import zoneinfo
from typing import Any

import msgspec
from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from vaults.models import validate_time_zone

RATE_MIN = 1000
# A limit is divided among the steps that may run at once: so many, where nobody said how many.
PARALLEL_WHEN_LIMITED = 2
PARALLEL_MAX = 64
WINDOWS_MAX = 24


class Window(msgspec.Struct, frozen=True):
    """A time of day, "HH:MM" to "HH:MM", over midnight when it ends before it begins; 0 bytes_per_s is no limit."""

    start: dt.time
    end: dt.time
    bytes_per_s: int = 0

    def holds(self, time: dt.time) -> bool:
        """Say whether a wall-clock time lies in the window, which takes its start and not its end."""
        if self.start < self.end:
            return self.start <= time < self.end
        return time >= self.start or time < self.end


class Limits(msgspec.Struct, frozen=True):
    """The limits of one job, kept with it: what is changed later holds for the next one (C37).

    `bytes_per_s` holds outside of `windows`, whose first that fits counts; times of day are in `zone`. Of the job's
    steps `parallel_max` run at once, 0 is any number, each with `cpu_percent` of one core.
    """

    bytes_per_s: int = 0
    parallel_max: int = 0
    cpu_percent: int = 100
    windows: tuple[Window, ...] = ()
    zone: str = "UTC"

    @property
    def is_limited(self) -> bool:
        """Say whether a rate is limited at some time of day."""
        return bool(self.bytes_per_s or any(window.bytes_per_s for window in self.windows))

    @property
    def steps_max(self) -> int:
        """Return how many steps may run at once, 0 for any number: a limited rate is divided among a known number."""
        return self.parallel_max or (PARALLEL_WHEN_LIMITED if self.is_limited else 0)

    def rate(self, now: dt.datetime) -> int:
        """Return the bytes per second that the job may read, and send, at a moment; 0 is no limit."""
        time = now.astimezone(zoneinfo.ZoneInfo(self.zone)).time()
        return next((window.bytes_per_s for window in self.windows if window.holds(time)), self.bytes_per_s)

    def share(self, now: dt.datetime) -> int:
        """Return the part of the rate that each of the job's steps has."""
        return self.rate(now) // max(self.steps_max, 1)


def kept(limits: Limits) -> dict[str, Any]:
    """Return limits as a job's row keeps them; nothing for none."""
    found: dict[str, Any] = msgspec.to_builtins(limits) if limits != Limits(zone=limits.zone) else {}
    return found


def load(kept: dict[str, Any]) -> Limits:
    """Return limits from what a job's row, or whatever it takes its limits from, keeps of them."""
    return msgspec.convert(kept, Limits)


class RateField(serializers.IntegerField):
    """Bytes per second; 0 is no limit."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"default": 0, "min_value": 0, "max_value": 1 << 50} | options)

    def to_internal_value(self, data: Any) -> int:
        rate = int(super().to_internal_value(data))
        if 0 < rate < RATE_MIN:
            raise serializers.ValidationError(f"Give at least {RATE_MIN} bytes per second, or 0 for no limit.")
        return rate


class WindowSerializer(serializers.Serializer[Any]):
    """A time of day with a limit of its own; it may go over midnight."""

    start = serializers.TimeField()
    end = serializers.TimeField()
    bytes_per_s = RateField()

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        if attrs["start"] == attrs["end"]:
            raise serializers.ValidationError("A window ends at another time than it starts at.")
        return attrs


class LimitsSerializer(serializers.Serializer[Any]):
    """How fast jobs may run: reading and sending are each held to the rate. Times of day are in the plan's zone."""

    bytes_per_s = RateField(help_text="Outside of the windows; 0 is no limit")
    windows = WindowSerializer(many=True, default=list, help_text="Other limits by time of day; the first that fits")
    parallel_max = serializers.IntegerField(
        default=0, min_value=0, max_value=PARALLEL_MAX, help_text="Steps of one job that run at once; 0 is any number"
    )
    cpu_percent = serializers.IntegerField(
        default=100, min_value=10, max_value=100, help_text="The share of one core that each step takes"
    )

    def validate_windows(self, windows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        if len(windows) > WINDOWS_MAX:
            raise serializers.ValidationError(f"Give at most {WINDOWS_MAX} windows.")
        return windows

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        parallel = attrs["parallel_max"] or PARALLEL_WHEN_LIMITED
        for rate in (attrs["bytes_per_s"], *(window["bytes_per_s"] for window in attrs["windows"])):
            if 0 < rate < RATE_MIN * parallel:
                raise serializers.ValidationError(
                    f"{rate} bytes per second are too few for {parallel} steps at once: give {RATE_MIN * parallel}, "
                    "or fewer steps."
                )
        return attrs


class ReplicationLimitsSerializer(LimitsSerializer):
    """How fast a replica may follow: what is read at the source, and what is sent to the target, each keep to it."""

    zone = serializers.CharField(
        default="UTC", max_length=64, validators=[validate_time_zone], help_text="The time zone of the windows"
    )


@extend_schema_field(LimitsSerializer)
class LimitsField(serializers.DictField):
    """How fast jobs run; checked, and completed, when it is saved."""


@extend_schema_field(ReplicationLimitsSerializer)
class ReplicationLimitsField(serializers.DictField):
    """How fast a replica may follow; checked, and completed, when it is saved."""

    def to_representation(self, value: Any) -> Any:
        return msgspec.to_builtins(load(value))
