"""Files of a host."""

import os
from typing import Any, NamedTuple

import msgspec
from django.core.exceptions import ValidationError
from rest_framework import serializers

from engine.sources.files import WALKERS_MAX, files_source
from engine.sources.kinds import AnySource
from engine.targets.files import FilesTarget
from engine.targets.kinds import AnyTarget
from policies.kinds.port import Reading, SourceType, TextList


class Profile(NamedTuple):
    """How a kind of file system is read: threads that list ahead, and which of its numbers are not believed."""

    walkers: int
    ignore_inode: bool
    ignore_ctime: bool


PROFILES = {
    "local": Profile(walkers=1, ignore_inode=False, ignore_ctime=False),
    # Few walkers spare a filer; its mounts may number files anew, and count a change of rights as a change.
    "nas": Profile(walkers=4, ignore_inode=True, ignore_ctime=True),
    "parallel": Profile(walkers=16, ignore_inode=False, ignore_ctime=False),
}
_SHOWN = (("local", "Local disk"), ("nas", "NAS (NFS, SMB)"), ("parallel", "Parallel (CPFS, Lustre, GPFS)"))


class FilesSettings(serializers.Serializer[Any]):
    """How to read folders and files of a host."""

    roots = TextList(min_length=1, label="Folders and files", help_text="Absolute paths on the host")
    include = TextList(default=list, help_text="Only what matches these patterns; none is everything")
    exclude = TextList(default=list, help_text="Never what matches these patterns")
    one_file_system = serializers.BooleanField(default=False, help_text="Leave out other file systems mounted inside")
    skip_network = serializers.BooleanField(
        default=False,
        label="Skip network storage",
        help_text="Leave out what is mounted inside from elsewhere: NFS, SMB, GlusterFS, buckets and other FUSE mounts",
    )
    profile = serializers.ChoiceField(
        default="local", choices=_SHOWN, label="File system", help_text="How what is mounted there is read best"
    )
    walkers = serializers.IntegerField(
        default=0,
        min_value=0,
        max_value=WALKERS_MAX,
        help_text="Threads that list folders ahead; 0 is what fits the file system: 1, 4 or 16",
    )
    ignore_inode = serializers.BooleanField(
        default=False,
        label="Ignore inode numbers",
        help_text="For mounts that number files anew; hard links become files of their own; always on for a NAS",
    )
    ignore_ctime = serializers.BooleanField(
        default=False,
        label="Ignore change times",
        help_text="A change that keeps a file's size and time of modification is missed then; always on for a NAS",
    )
    must_be_mounted = serializers.BooleanField(
        default=False, help_text="Refuse to back up a folder at which nothing is mounted: it would look empty"
    )

    freeze_command = TextList(
        default=list,
        help_text="A program and its arguments, one a line, that brings an application to rest before its files are "
        "read",
    )
    thaw_command = TextList(
        default=list, help_text="The program that lets it go on after the last file was read; it may be run twice"
    )
    command_s_max = serializers.IntegerField(
        default=60, min_value=1, max_value=3600, label="Seconds for a command", help_text="After them it has failed"
    )
    frozen_s_max = serializers.IntegerField(
        default=1800,
        min_value=1,
        max_value=86_400,
        label="Seconds at rest",
        help_text="After them the application goes on, and a backup that still reads fails",
    )

    def validate_roots(self, roots: list[str]) -> list[str]:
        for root in roots:
            if not root.startswith("/") or "\0" in root or ".." in root.split("/"):
                raise serializers.ValidationError(f"{root!r} is not an absolute path without '..'.")
        return roots

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        for name in ("freeze_command", "thaw_command"):
            if attrs[name] and not attrs[name][0].startswith("/"):
                text = f"Give the whole path of the program, not {attrs[name][0]!r}."
                raise serializers.ValidationError({name: text})
        return attrs


def _source(reading: Reading) -> AnySource:
    wanted = reading.settings
    profile = PROFILES[wanted["profile"]]
    source = files_source(
        wanted["roots"],
        host=reading.host,
        include=wanted["include"],
        exclude=wanted["exclude"],
        one_file_system=wanted["one_file_system"],
    )
    return msgspec.structs.replace(
        source,
        skip_network=wanted["skip_network"],
        walkers=wanted["walkers"] or profile.walkers,
        ignore_inode=wanted["ignore_inode"] or profile.ignore_inode,
        ignore_ctime=wanted["ignore_ctime"] or profile.ignore_ctime,
        must_be_mounted=wanted["must_be_mounted"],
    )


def _target(reading: Reading, to: str) -> AnyTarget:
    return FilesTarget(root=os.fsencode(to or "/"))


def _check_to(to: str) -> None:
    if to and (not to.startswith("/") or "\0" in to or ".." in to.split("/")):
        raise ValidationError("Give an absolute path without '..'.")


def _is_whole_host(settings: dict[str, Any]) -> bool:
    """Say whether a machine with all that is on it is backed up, not some of its folders."""
    return any(os.path.normpath(root) in ("/", "//") for root in settings["roots"])


TYPE = SourceType(
    settings=FilesSettings,
    source=_source,
    target=_target,
    to="An existing folder of the host; empty is the original path",
    check_to=_check_to,
    on_host=True,
    policy_only=_is_whole_host,
    about="Folders and files of a machine that runs a worker, also a NAS or CPFS that it has mounted",
    preflight="The host runs a worker with its queue; the folder to restore into exists and has the room.",
)
