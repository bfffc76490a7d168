"""Columns between Milvus's messages and Arrow: every type, both ways, the same bytes for the same values."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.connections import milvus_columns as kinds
from engine.connections.milvus_columns import Column, arrow_schema, canonical, columns, to_arrow, to_field
from engine.errors import SourceIncomplete

pa = pytest.importorskip("pyarrow")
schema = pytest.importorskip("pymilvus.grpc_gen.schema_pb2")

DIM = 8
FLOAT32 = st.floats(width=32, allow_nan=False)
VALUES: dict[int, st.SearchStrategy[Any]] = {
    kinds.BOOL: st.booleans(),
    kinds.INT8: st.integers(-128, 127),
    kinds.INT16: st.integers(-(2**15), 2**15 - 1),
    kinds.INT32: st.integers(-(2**31), 2**31 - 1),
    kinds.INT64: st.integers(-(2**63), 2**63 - 1),
    kinds.FLOAT: FLOAT32,
    kinds.DOUBLE: st.floats(allow_nan=False),
    kinds.VARCHAR: st.text(),
    kinds.TEXT: st.text(),
    kinds.GEOMETRY: st.just("POINT (1 2)"),
    kinds.TIMESTAMPTZ: st.just("2031-05-06T07:08:09Z"),
    kinds.JSON: st.dictionaries(st.text(max_size=3), st.integers() | st.text(max_size=3), max_size=3).map(
        lambda value: canonical(json.dumps(value).encode())
    ),
    kinds.ARRAY: st.lists(st.integers(-(2**31), 2**31 - 1), max_size=4),
    kinds.FLOAT_VECTOR: st.lists(FLOAT32, min_size=DIM, max_size=DIM),
    kinds.FLOAT16_VECTOR: st.lists(st.integers(-400, 400).map(lambda n: n / 4), min_size=DIM, max_size=DIM),
    kinds.INT8_VECTOR: st.lists(st.integers(-128, 127), min_size=DIM, max_size=DIM),
    kinds.BFLOAT16_VECTOR: st.binary(min_size=DIM * 2, max_size=DIM * 2),
    kinds.BINARY_VECTOR: st.binary(min_size=DIM // 8, max_size=DIM // 8),
    kinds.SPARSE_VECTOR: st.dictionaries(st.integers(0, 2**32 - 2), FLOAT32, max_size=4).map(
        lambda cell: sorted(cell.items())
    ),
}


def column(kind: int, *, nullable: bool = True) -> Column:
    return Column("x", kind, kinds.INT32 if kind == kinds.ARRAY else 0, DIM, nullable, key=False)


def arrow(one: Column, values: list[Any]) -> Any:
    field = arrow_schema([one]).field(0)
    if one.type == kinds.FLOAT16_VECTOR:
        values = [None if value is None else [np.float16(number) for number in value] for value in values]
    return pa.array(values, field.type)


@pytest.mark.parametrize("kind", sorted(VALUES))
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_what_arrow_holds_comes_back_equal_from_an_inserts_message(kind: int, data: st.DataObject) -> None:
    one = column(kind)
    values = data.draw(st.lists(st.none() | VALUES[kind], min_size=1, max_size=6))
    given_array = arrow(one, values)
    back = to_arrow(one, to_field(one, given_array, schema), len(values))
    assert back.type == given_array.type
    assert back.to_pylist() == given_array.to_pylist()


@pytest.mark.parametrize("kind", sorted(VALUES))
def test_an_answer_that_keeps_places_for_nulls_makes_the_same_bytes_as_one_that_leaves_them_out(kind: int) -> None:
    one = column(kind)
    samples = {kinds.SPARSE_VECTOR: [(1, 2.0)], kinds.JSON: "{}", kinds.BOOL: True, kinds.ARRAY: [1, 2]}
    texts = (kinds.VARCHAR, kinds.TEXT, kinds.GEOMETRY, kinds.TIMESTAMPTZ)
    packed = {kinds.BFLOAT16_VECTOR: bytes(16), kinds.BINARY_VECTOR: b"\1"}
    sample: Any = samples.get(kind, packed.get(kind, "t" if kind in texts else 1 if kind < 100 else [1.0] * DIM))
    compact = to_field(one, arrow(one, [sample, None, sample]), schema)
    full = to_field(one._replace(nullable=False), arrow(one, [sample, sample, sample]), schema)
    full.valid_data.extend([True, False, True])
    assert stream(one, to_arrow(one, compact, 3)) == stream(one, to_arrow(one, full, 3))


def stream(one: Column, array: Any) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, arrow_schema([one])) as writer:
        writer.write_batch(pa.RecordBatch.from_arrays([array], schema=arrow_schema([one])))
    data: bytes = sink.getvalue().to_pybytes()
    return data


def test_negative_zero_and_not_a_number_are_kept_bit_by_bit() -> None:
    one = column(kinds.FLOAT, nullable=False)
    field = schema.FieldData(field_name="x", type=kinds.FLOAT)
    field.scalars.float_data.data.extend([-0.0, float("nan"), float("inf"), 1e-45])
    array = to_arrow(one, field, 4)
    assert np.signbit(array.to_numpy()[0])
    again = to_arrow(one, to_field(one, array, schema), 4)
    assert again.to_numpy().tobytes() == array.to_numpy().tobytes()


def test_sparse_vectors_are_kept_by_index_whatever_order_they_come_in() -> None:
    one = column(kinds.SPARSE_VECTOR, nullable=False)
    cell = np.array([(7, 0.5), (2, 1.5)], dtype=[("i", "<u4"), ("v", "<f4")])
    field = schema.FieldData(field_name="x", type=kinds.SPARSE_VECTOR)
    field.vectors.sparse_float_vector.contents.append(cell.tobytes())
    assert to_arrow(one, field, 1).to_pylist() == [[(2, 1.5), (7, 0.5)]]


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        (b'{"b": 1, "a": [2, {"d": 1, "c": null}]}', '{"a":[2,{"c":null,"d":1}],"b":1}'),
        (b"123456789012345678901234567890", "123456789012345678901234567890"),
        (b"[1e400]", "[1e400]"),  # more than a double holds: as it is
        (b"no json", "no json"),
        ('"ü"'.encode(), '"ü"'),
    ],
)
def test_json_is_kept_with_sorted_keys_and_never_with_another_meaning(text: bytes, kept: str) -> None:
    assert canonical(text) == kept


def test_an_answer_that_does_not_fit_is_no_answer() -> None:
    one = column(kinds.INT64)
    field = schema.FieldData(field_name="x", type=kinds.INT64)
    field.scalars.long_data.data.extend([1, 2])
    for rows in (1, 3):
        with pytest.raises(SourceIncomplete, match="the server's answer has 2 values"):
            to_arrow(one, field, rows)
    short = schema.FieldData(field_name="x", type=kinds.FLOAT_VECTOR)
    short.vectors.float_vector.data.extend([1.0] * (DIM + 1))
    with pytest.raises(SourceIncomplete, match="another length"):
        to_arrow(column(kinds.FLOAT_VECTOR), short, 1)


def test_what_a_function_makes_is_left_to_the_server_and_structs_are_refused() -> None:
    described = schema.CollectionSchema(enable_dynamic_field=True)
    described.fields.add(name="id", data_type=kinds.INT64, is_primary_key=True)
    described.fields.add(name="text", data_type=kinds.VARCHAR)
    described.fields.add(name="terms", data_type=kinds.SPARSE_VECTOR)
    described.functions.add(name="bm25", input_field_names=["text"], output_field_names=["terms"])
    assert [one.name for one in columns(described)] == ["id", "text", "$meta"]
    described.struct_array_fields.add(name="parts")
    with pytest.raises(kinds.Unkept, match="parts is an array of structs"):
        columns(described)
