"""Rows as lines: exact both ways, and one line only for one row."""

import math
import struct
from decimal import Decimal
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from engine.connections.rows import decode_cells, decode_item, encode_cells, encode_item

INT64 = st.integers(-(1 << 63), (1 << 63) - 1)
TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
VALUE = st.one_of(INT64, TEXT, st.booleans(), st.floats(), st.binary(max_size=20).map(bytearray))
KEY = st.lists(st.tuples(TEXT, st.one_of(INT64, TEXT, st.binary(max_size=9).map(bytearray))), min_size=1, max_size=4)
CELLS = st.lists(st.tuples(TEXT, VALUE, st.integers(0, 1 << 50)), max_size=6, unique_by=lambda cell: (cell[0], cell[2]))


def told_apart(value: Any) -> Any:
    """Return a value so that equality is identity: -0.0 is not 0.0, 1 is not 1.0 and not True."""
    if isinstance(value, float):
        return "double", "NaN" if math.isnan(value) else struct.pack(">d", value)
    return type(value).__name__, bytes(value) if isinstance(value, bytearray) else value


@given(key=st.lists(KEY, min_size=1, max_size=1).map(lambda keys: list(dict(keys[0]).items())), cells=CELLS)
@example(key=[("k", -(1 << 63))], cells=[("a", -0.0, 1), ("a", math.inf, 2), ("b", -math.inf, 1), ("c", math.nan, 1)])
@example(key=[("k", "")], cells=[("a", "", 1), ("b", bytearray(), 0), ("c", 1e22, 1), ("d", 5e-324, 1), ("e", 1.0, 1)])
@example(key=[("k", "\u2028\x00\U0001f600")], cells=[("a", True, 1), ("b", 1, 1), ("c", 0, 1), ("d", False, 1)])
def test_a_row_of_tablestore_comes_back_exactly(key: Any, cells: Any) -> None:
    line = encode_cells(key, cells)
    key_back, cells_back = decode_cells(line)
    assert [(name, told_apart(value)) for name, value in key_back] == [(name, told_apart(value)) for name, value in key]
    wanted = sorted(cells, key=lambda cell: (cell[0], -cell[2]))
    assert [(n, told_apart(v), at) for n, v, at in cells_back] == [(n, told_apart(v), at) for n, v, at in wanted]
    assert b"\n" not in line
    assert encode_cells(key_back, reversed(cells_back)) == line


def test_a_row_of_tablestore_can_be_read_by_people_and_their_programs() -> None:
    cells = [("name", "Zoë", 5), ("name", "Zoe", 4), ("photo", bytearray(b"\0\xff"), 5), ("weight", 3.0, 5)]
    assert encode_cells([("id", 7)], cells).decode() == (
        '{"key":{"id":7},"cells":[["name","Zoë",5],["name","Zoe",4],["photo",{"binary":"AP8="},5],["weight",3.0,5]]}'
    )


NUMBER = st.decimals(allow_nan=False, allow_infinity=False, places=9).map(str)
BINARY = st.binary(max_size=9)
SCALAR = st.one_of(
    st.builds(lambda v: {"S": v}, TEXT),
    st.builds(lambda v: {"N": v}, NUMBER),
    st.builds(lambda v: {"B": v}, BINARY),
    st.builds(lambda v: {"BOOL": v}, st.booleans()),
    st.just({"NULL": True}),
    st.builds(lambda v: {"SS": v}, st.lists(TEXT, min_size=1, max_size=4, unique=True)),
    st.builds(lambda v: {"NS": v}, st.lists(NUMBER, min_size=1, max_size=4, unique_by=Decimal)),
    st.builds(lambda v: {"BS": v}, st.lists(BINARY, min_size=1, max_size=4, unique=True)),
)
NESTED = st.recursive(
    SCALAR,
    lambda inner: st.one_of(
        st.builds(lambda v: {"L": v}, st.lists(inner, max_size=3)),
        st.builds(lambda v: {"M": v}, st.dictionaries(TEXT, inner, max_size=3)),
    ),
    max_leaves=8,
)
ITEM = st.dictionaries(TEXT, NESTED, min_size=1, max_size=5)


def unordered(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: sorted(v) if k in ("SS", "NS", "BS") else unordered(v) for k, v in value.items()}
    return [unordered(one) for one in value] if isinstance(value, list) else value


def turned_round(value: Any) -> Any:
    """Return the same item with the members of sets and maps in another order."""
    if isinstance(value, dict):
        turned = {k: v[::-1] if k in ("SS", "NS", "BS") else turned_round(v) for k, v in value.items()}
        return dict(reversed(turned.items()))
    return [turned_round(one) for one in value] if isinstance(value, list) else value


@given(ITEM)
def test_an_item_of_dynamodb_comes_back_exactly_and_its_line_does_not_depend_on_any_order(item: Any) -> None:
    line = encode_item(item)
    assert unordered(decode_item(line)) == unordered(item)
    assert encode_item(turned_round(item)) == line
    assert b"\n" not in line


def test_an_item_of_dynamodb_is_kept_in_the_form_that_the_service_exports_and_imports() -> None:
    number = "0.10000000000000000000000000000000000001"
    item: dict[str, Any] = {
        "raw": {"B": b"\0\xff"},
        "id": {"S": "x"},
        "tens": {"NS": ["10", "9"]},
        "exact": {"N": number},
    }
    assert msgspec.json.decode(encode_item(item)) == {
        "Item": {"exact": {"N": number}, "id": {"S": "x"}, "raw": {"B": "AP8="}, "tens": {"NS": ["9", "10"]}}
    }


@pytest.mark.parametrize("line", [b"", b"{}", b"[]", b'{"key":{}}', b'{"key":{"a":1},"cells":[["a",1]]}', b"\xff"])
def test_what_is_no_row_of_tablestore_is_refused(line: bytes) -> None:
    with pytest.raises(ValueError, match="not a row"):
        decode_cells(line)


@pytest.mark.parametrize("line", [b"", b"{}", b"[]", b'{"Item":{"a":1}}', b'{"Item":[]}', b'{"Item":{"a":{"B":"?"}}}'])
def test_what_is_no_item_of_dynamodb_is_refused(line: bytes) -> None:
    with pytest.raises(ValueError, match="not an item"):
        decode_item(line)
