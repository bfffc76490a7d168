"""Rows of wide-column services as lines of JSON: exact, the same for the same row, and back again.

Tablestore: `{"key":{"id":5},"cells":[["name",value,version],…]}`, columns by name, newest version first. Integers and
texts are JSON's, a double always has a point or an exponent, bytes are `{"binary":"<base64>"}`, and the doubles that
JSON has no word for are `{"double":"NaN"}`, `"Infinity"` and `"-Infinity"`.

DynamoDB: `{"Item":{…}}` in DynamoDB JSON, as the service itself exports it: numbers as exact texts, bytes as base64,
attributes and the members of sets sorted.
"""

import math
from base64 import b64decode, b64encode
from collections.abc import Iterable
from decimal import Decimal
from typing import Any

import msgspec

Key = list[tuple[str, Any]]
Cell = tuple[str, Any, int]

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode


def encode_cells(key: Key, cells: Iterable[Cell]) -> bytes:
    """Return a Tablestore row's line."""
    ordered = sorted(cells, key=lambda cell: (cell[0], -cell[2]))
    return _encode(
        {
            "key": {name: _plain(value) for name, value in key},
            "cells": [[name, _plain(value), version] for name, value, version in ordered],
        }
    )


def decode_cells(line: bytes) -> tuple[Key, list[Cell]]:
    """Return a Tablestore row as its SDK takes it. Raises ValueError."""
    try:
        row = _decode(line)
        key = [(name, _typed(value)) for name, value in row["key"].items()]
        return key, [(name, _typed(value), version) for name, value, version in row["cells"]]
    except (msgspec.DecodeError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"not a row of Tablestore: {line[:80]!r}") from error


def _plain(value: Any) -> Any:
    if isinstance(value, (bytes, bytearray)):
        return {"binary": b64encode(value).decode()}
    if isinstance(value, float) and not math.isfinite(value):
        return {"double": "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"}
    return value


def _typed(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    if "binary" in value:
        return bytearray(b64decode(value["binary"], validate=True))
    return float(value["double"])


def encode_item(item: dict[str, dict[str, Any]]) -> bytes:
    """Return a DynamoDB item's line; the item is as boto3's client gives it."""
    return _encode({"Item": {name: _sorted(item[name]) for name in sorted(item)}})


def decode_item(line: bytes) -> dict[str, dict[str, Any]]:
    """Return a DynamoDB item as boto3's client takes it. Raises ValueError."""
    try:
        return {name: _bytes(value) for name, value in _decode(line)["Item"].items()}
    except (msgspec.DecodeError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"not an item of DynamoDB: {line[:80]!r}") from error


def _sorted(value: dict[str, Any]) -> dict[str, Any]:
    [(kind, inner)] = value.items()
    match kind:
        case "M":
            return {kind: {name: _sorted(inner[name]) for name in sorted(inner)}}
        case "L":
            return {kind: [_sorted(one) for one in inner]}
        case "NS":
            return {kind: sorted(inner, key=Decimal)}
        case "SS":
            return {kind: sorted(inner)}
        case "B":
            return {kind: b64encode(bytes(inner)).decode()}
        case "BS":
            return {kind: [b64encode(one).decode() for one in sorted(bytes(one) for one in inner)]}
    return {kind: inner}


def _bytes(value: dict[str, Any]) -> dict[str, Any]:
    [(kind, inner)] = value.items()
    match kind:
        case "M":
            return {kind: {name: _bytes(one) for name, one in inner.items()}}
        case "L":
            return {kind: [_bytes(one) for one in inner]}
        case "B":
            return {kind: b64decode(inner, validate=True)}
        case "BS":
            return {kind: [b64decode(one, validate=True) for one in inner]}
    return {kind: inner}
