"""Shares as people name them: what settings are taken, and what the engine makes of them."""

from ipaddress import ip_network
from typing import Any

import pytest
from django.core.exceptions import ValidationError

from engine.sources.smb import SmbSource
from engine.targets.smb import SmbTarget
from policies.addresses import AddressRefused
from policies.kinds.port import Reading
from policies.kinds.smb import TYPE
from policies.reading import check_credentials, check_settings

PLAIN = {"server": "filer.example.com", "share": "data"}
ACCOUNT = {"user": "backup", "password": " secret ", "domain": "OFFICE"}


def reading(**values: Any) -> Reading:
    return Reading("", check_settings("smb", {**PLAIN, **values}), check_credentials("smb", ACCOUNT))


def test_settings_become_the_source_that_they_describe() -> None:
    chosen = {"path": "\\projects\\2031", "exclude": ["~*"], "walkers": 9, "security": True, "bytes_per_s": 5000}
    assert TYPE.source(reading(**chosen)) == SmbSource(
        server="filer.example.com",
        share="data",
        path="projects/2031",
        exclude=("~*",),
        walkers=9,
        security=True,
        bytes_per_s=5000,
        user="backup",
        password=" secret ",
        domain="OFFICE",
    )


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("server", "a/b"),
        ("server", ""),
        ("share", "a\\b"),
        ("share", "a/../b"),
        ("path", "../elsewhere"),
        ("path", "a:stream"),
        ("port", 0),
        ("walkers", 65),
        ("bytes_per_s", 10),
    ],
)
def test_what_names_no_share_is_refused(field: str, value: object) -> None:
    with pytest.raises(ValidationError):
        check_settings("smb", {**PLAIN, field: value})


def test_a_malformed_pattern_is_refused() -> None:
    with pytest.raises(ValidationError, match="gitignore"):
        check_settings("smb", {**PLAIN, "include": ["/"]})


@pytest.mark.parametrize(
    ("to", "server", "port", "share", "path"),
    [
        ("", "filer.example.com", 445, "data", ""),
        ("restored/2031", "filer.example.com", 445, "data", "restored/2031"),
        ("//127.0.0.9/backup/x", "127.0.0.9", 445, "backup", "x"),
        ("\\\\127.0.0.9\\backup", "127.0.0.9", 445, "backup", ""),
        ("//127.0.0.9:1445/backup/", "127.0.0.9", 1445, "backup", ""),
    ],
)
def test_a_place_to_restore_to_is_read_as_told(
    settings: Any, to: str, server: str, port: int, share: str, path: str
) -> None:
    settings.SOURCE_NETWORKS = [ip_network("127.0.0.0/8")]
    TYPE.check_to(to)
    target = TYPE.target(reading(), to)
    assert isinstance(target, SmbTarget)
    assert (target.server, target.port, target.share, target.path) == (server, port, share, path)


@pytest.mark.parametrize("to", ["..", "a/../b", "//server", "///share", "//ser ver/share", "//server/sh:are/x", "a:b"])
def test_what_is_no_place_is_refused(to: str) -> None:
    with pytest.raises(ValidationError):
        TYPE.check_to(to)


def test_another_server_to_restore_to_is_checked_like_the_first(settings: Any) -> None:
    settings.SOURCE_NETWORKS = []
    with pytest.raises(AddressRefused):
        TYPE.target(reading(), "//127.0.0.1/share")


def test_the_server_that_is_contacted_is_told() -> None:
    assert TYPE.endpoints(reading(server="[::1]", port=4450).settings) == [("::1", 4450)]
