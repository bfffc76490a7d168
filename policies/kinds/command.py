"""A program's output on a host."""

from typing import Any

from rest_framework import serializers

from engine.sources.command import CommandSource
from engine.sources.kinds import AnySource
from engine.targets.command import CommandTarget
from engine.targets.kinds import AnyTarget
from policies.kinds.port import Reading, SourceType, TextList


class CommandSettings(serializers.Serializer[Any]):
    """Which program writes what is backed up, and which one takes it back."""

    argv = TextList(
        min_length=1, label="Command", help_text="The program and its arguments, each by itself; no shell is involved"
    )
    name = serializers.CharField(default="output", max_length=255, help_text="The file as which the output is kept")
    marker = serializers.CharField(
        default="",
        allow_blank=True,
        max_length=255,
        help_text="What stands near the end of a complete output; without it no point comes about",
    )
    restore_argv = TextList(
        default=list, label="Command to restore", help_text="The program that takes the output back as its input"
    )

    def validate_name(self, name: str) -> str:
        if name in (".", "..") or "/" in name or "\0" in name:
            raise serializers.ValidationError("Give the name of a file, without '/'.")
        return name


class CommandCredentials(serializers.Serializer[Any]):
    """Secrets that the program finds in its environment."""

    environment = serializers.CharField(
        default="", allow_blank=True, help_text="NAME=value, one a line", style={"base_template": "textarea.html"}
    )

    def validate_environment(self, text: str) -> str:
        for line in filter(None, (line.strip() for line in text.splitlines())):
            name, equals, _ = line.partition("=")
            if not equals or not name.isidentifier():
                raise serializers.ValidationError(f"{name!r} is not NAME=value.")
        return text


def _environment(reading: Reading) -> dict[str, str]:
    lines = filter(None, (line.strip() for line in reading.credentials.get("environment", "").splitlines()))
    return dict(line.split("=", 1) for line in lines)


def _source(reading: Reading) -> AnySource:
    wanted = reading.settings
    return CommandSource(
        argv=tuple(wanted["argv"]),
        host=reading.host,
        name=wanted["name"],
        marker=wanted["marker"],
        env=_environment(reading),
    )


def _target(reading: Reading, to: str) -> AnyTarget:
    return CommandTarget(argv=tuple(reading.settings["restore_argv"]), host=reading.host, env=_environment(reading))


TYPE = SourceType(
    settings=CommandSettings,
    source=_source,
    target=_target,
    to="Empty: the program to restore takes it",
    credentials=CommandCredentials,
    on_host=True,
    about="What any dump program writes, taken back by any program that loads it",
    preflight="The host runs a worker with its queue; the program to restore is installed there and can reach what it "
    "loads into.",
    parts="streams",
)
