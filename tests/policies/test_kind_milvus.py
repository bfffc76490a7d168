"""Milvus clusters as people name them: what settings are taken, and what the engine makes of them."""

import ipaddress
from typing import Any

import pytest
from django.core.exceptions import ValidationError
from rest_framework import serializers

from engine.sources.milvus import MilvusSource
from engine.targets.milvus import MilvusTarget
from policies.addresses import AddressRefused
from policies.kinds.milvus import TYPE
from policies.kinds.port import Reading
from policies.reading import check_credentials, check_settings


def reading(**values: Any) -> Reading:
    chosen = {"uri": "https://milvus.example.com", **values}
    return Reading("", check_settings("milvus", chosen), check_credentials("milvus", {"token": "me:secret"}))


def test_settings_become_the_source_that_they_describe() -> None:
    assert TYPE.source(reading(rbac=False, ca="PEM")) == MilvusSource(
        uri="https://milvus.example.com", token="me:secret", ca="PEM", rbac=False
    )


@pytest.mark.rule("D1")
def test_a_cluster_is_always_backed_up_whole() -> None:
    with pytest.raises(ValidationError):
        check_settings("milvus", {"uri": "https://milvus.example.com", "include": ["one"]})
    assert not {"include", "exclude", "collections"} & set(TYPE.settings().fields)


@pytest.mark.parametrize("uri", ["milvus.example.com", "ftp://host", "http://me:secret@host", "http://host:x", ""])
def test_what_is_no_address_of_a_server_is_refused(uri: str) -> None:
    with pytest.raises(ValidationError):
        check_settings("milvus", {"uri": uri})


@pytest.mark.parametrize(
    ("uri", "server"),
    [
        ("http://milvus.example.com", ("milvus.example.com", 19530)),
        ("https://milvus.example.com", ("milvus.example.com", 443)),
        ("http://[2001:db8::1]:1234/", ("2001:db8::1", 1234)),
    ],
)
def test_the_server_is_named_for_the_check_of_addresses(uri: str, server: tuple[str, int]) -> None:
    assert TYPE.endpoints(check_settings("milvus", {"uri": uri})) == [server]


@pytest.mark.parametrize(
    ("to", "uri", "suffix"),
    [
        ("", "https://milvus.example.com", ""),
        ("_restored", "https://milvus.example.com", "_restored"),
        ("http://127.0.0.1:19530/", "http://127.0.0.1:19530", ""),
    ],
)
def test_a_restore_goes_to_the_place_that_was_typed(to: str, uri: str, suffix: str, settings: Any) -> None:
    settings.SOURCE_NETWORKS = [ipaddress.ip_network("127.0.0.0/8")]
    TYPE.check_to(to)
    target = TYPE.target(reading(keep_ttl=True), to)
    assert target == MilvusTarget(uri=uri, token="me:secret", suffix=suffix, keep_ttl=True)


def test_another_cluster_inside_is_refused(settings: Any) -> None:
    settings.SOURCE_NETWORKS = []
    with pytest.raises(AddressRefused):
        TYPE.target(reading(), "http://127.0.0.1:19530")


@pytest.mark.parametrize("to", ["-x", "a b", "http://", "../x"])
def test_a_place_that_is_neither_a_cluster_nor_a_suffix_is_refused(to: str) -> None:
    with pytest.raises(serializers.ValidationError):
        TYPE.check_to(to)
