"""Shares of SMB servers: Windows, Samba, a NAS."""

import re
from typing import Any, NamedTuple

from django.core.exceptions import ValidationError
from rest_framework import serializers

from engine.connections.smb import PORT
from engine.errors import UnsafePath
from engine.patterns import BadPattern, Selection
from engine.sources.kinds import AnySource
from engine.sources.smb import WALKERS_MAX, SmbSource
from engine.targets.kinds import AnyTarget
from engine.targets.smb import SmbTarget
from engine.targets.smb_names import safe_path
from policies import addresses
from policies.kinds.port import Reading, SourceType, TextList
from policies.models import SourceKind

_SERVER = re.compile(r"\A([A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\])\Z")
_SHARE = re.compile(r"\A[^\\/:*?\"<>|\x00-\x1f]{1,80}\Z")
_PLACE = re.compile(r"//(?P<server>[^/:]+|\[[^/\]]+\])(:(?P<port>[0-9]{1,5}))?/(?P<share>[^/]+)(/(?P<path>.*))?")


class SmbSettings(serializers.Serializer[Any]):
    """Which folder of which share, and how to read it."""

    server = serializers.RegexField(_SERVER, max_length=253, error_messages={"invalid": "This is no server's name."})
    port = serializers.IntegerField(default=PORT, min_value=1, max_value=65535)
    share = serializers.RegexField(_SHARE, max_length=80, error_messages={"invalid": "This is no share's name."})
    path = serializers.CharField(
        default="", allow_blank=True, max_length=4096, label="Folder", help_text="In the share; empty is all of it"
    )
    include = TextList(default=list, help_text="Only what matches these patterns; none is everything")
    exclude = TextList(default=list, help_text="Never what matches these patterns")
    walkers = serializers.IntegerField(
        default=4,
        min_value=1,
        max_value=WALKERS_MAX,
        label="Connections",
        help_text="That list and read ahead, per worker",
    )
    security = serializers.BooleanField(
        default=False,
        label="Owners and access lists",
        help_text="Keep them, and set them when restoring; the account needs the right to",
    )
    encrypt = serializers.BooleanField(default=True, help_text="Refuse a server that does not encrypt")
    bytes_per_s = serializers.IntegerField(
        default=0, min_value=0, label="Bytes per second", help_text="The most that each worker reads; 0 is no limit"
    )

    def validate_path(self, path: str) -> str:
        return _checked_path(path)

    def validate_bytes_per_s(self, count: int) -> int:
        if 0 < count < 1000:
            raise serializers.ValidationError("Give at least 1000, or 0 for no limit.")
        return count

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        try:
            Selection(attrs["include"], attrs["exclude"])
        except BadPattern as error:
            raise serializers.ValidationError(str(error)) from error
        return attrs


class SmbCredentials(serializers.Serializer[Any]):
    """An account of the server, which may read the folder; to restore also write."""

    user = serializers.CharField(max_length=256)
    password = serializers.CharField(max_length=512, trim_whitespace=False, style={"input_type": "password"})
    domain = serializers.CharField(default="", allow_blank=True, max_length=256, help_text="Empty for a local account")


class _Place(NamedTuple):
    server: str
    port: int
    share: str
    path: str


def _checked_path(path: str) -> str:
    cleaned = path.replace("\\", "/").strip("/")
    if cleaned:
        try:
            safe_path(cleaned.encode("utf-8", "surrogatepass"))
        except UnsafePath as error:
            raise serializers.ValidationError("Give a folder as the share spells it, without '.' and '..'.") from error
    return cleaned


def _place(settings: dict[str, Any], to: str) -> _Place:
    """Return where a text leads: nowhere else, to a folder of the same share, or to //server/share/folder."""
    own = _Place(settings["server"], settings["port"], settings["share"], "")
    text = to.replace("\\", "/")
    if not text.startswith("//"):
        return own._replace(path=_checked_path(text))
    found = _PLACE.fullmatch(text)
    if not found or not _SERVER.fullmatch(found["server"]) or not _SHARE.fullmatch(found["share"]):
        raise serializers.ValidationError("Give //server/share/folder, or a folder of the same share.")
    port = int(found["port"] or PORT)
    return _Place(found["server"], port, found["share"], _checked_path(found["path"] or ""))


def _source(reading: Reading) -> AnySource:
    wanted = reading.settings
    return SmbSource(
        server=wanted["server"].strip("[]"),
        share=wanted["share"],
        port=wanted["port"],
        path=wanted["path"],
        include=tuple(wanted["include"]),
        exclude=tuple(wanted["exclude"]),
        walkers=wanted["walkers"],
        security=wanted["security"],
        encrypt=wanted["encrypt"],
        bytes_per_s=wanted["bytes_per_s"],
        **_account(reading),
    )


def _target(reading: Reading, to: str) -> AnyTarget:
    place = _place(reading.settings, to)
    if (place.server, place.port) != (reading.settings["server"], reading.settings["port"]):
        addresses.check([(place.server.strip("[]"), place.port)])
    return SmbTarget(
        server=place.server.strip("[]"),
        share=place.share,
        port=place.port,
        path=place.path,
        security=reading.settings["security"],
        encrypt=reading.settings["encrypt"],
        **_account(reading),
    )


def _account(reading: Reading) -> dict[str, Any]:
    secret = reading.credentials
    return {"user": secret["user"], "password": secret["password"], "domain": secret.get("domain", "")}


def _check_to(to: str) -> None:
    try:
        _place({"server": "", "port": PORT, "share": ""}, to)
    except serializers.ValidationError as error:
        raise ValidationError([str(text) for text in error.detail]) from error


TYPE = SourceType(
    settings=SmbSettings,
    source=_source,
    target=_target,
    to="Empty: the same places of the same share. A folder such as restored: inside of it. "
    "//server/share/folder: on another share, with the same account",
    credentials=SmbCredentials,
    endpoints=lambda settings: [(settings["server"].strip("[]"), settings["port"])],
    takes=frozenset(SourceKind.values),
    check_to=_check_to,
    leaves=lambda to: to.replace("\\", "/").startswith("//"),
    about="Folders and files of a share (Windows, Samba, a NAS), without an agent there",
    preflight="The share and the folder to restore into exist, and the account may write there.",
)
