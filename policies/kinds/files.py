"""Files of a host."""

import os
from typing import Any

from django.core.exceptions import ValidationError
from rest_framework import serializers

from engine.sources.files import files_source
from engine.sources.kinds import AnySource
from engine.targets.files import FilesTarget
from engine.targets.kinds import AnyTarget
from policies.kinds.port import Reading, SourceType, TextList


class FilesSettings(serializers.Serializer[Any]):
    """How to read folders and files of a host."""

    roots = TextList(min_length=1, label="Folders and files", help_text="Absolute paths on the host")
    include = TextList(default=list, help_text="Only what matches these patterns; none is everything")
    exclude = TextList(default=list, help_text="Never what matches these patterns")
    one_file_system = serializers.BooleanField(default=False, help_text="Leave out other file systems mounted inside")

    def validate_roots(self, roots: list[str]) -> list[str]:
        for root in roots:
            if not root.startswith("/") or "\0" in root or ".." in root.split("/"):
                raise serializers.ValidationError(f"{root!r} is not an absolute path without '..'.")
        return roots


def _source(reading: Reading) -> AnySource:
    wanted = reading.settings
    return files_source(
        wanted["roots"],
        host=reading.host,
        include=wanted["include"],
        exclude=wanted["exclude"],
        one_file_system=wanted["one_file_system"],
    )


def _target(reading: Reading, to: str) -> AnyTarget:
    return FilesTarget(root=os.fsencode(to or "/"))


def _check_to(to: str) -> None:
    if to and (not to.startswith("/") or "\0" in to or ".." in to.split("/")):
        raise ValidationError("Give an absolute path without '..'.")


TYPE = SourceType(
    settings=FilesSettings,
    source=_source,
    target=_target,
    to="An existing folder of the host; empty is the original path",
    check_to=_check_to,
    on_host=True,
    about="Folders and files of a machine that runs a worker, also what it has mounted",
    preflight="The host runs a worker with its queue; the folder to restore into exists and has the room.",
)
