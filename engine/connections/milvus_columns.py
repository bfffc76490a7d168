"""Columns of a Milvus collection as Arrow arrays, and back: the same values always make the same bytes.

| Milvus | Arrow |
|---|---|
| Bool, Int8 to Int64, Float, Double | the same |
| VarChar, Text, Geometry (WKT), Timestamptz (ISO) | string |
| JSON, and the dynamic field as `$meta` | string: JSON with sorted keys |
| Array | list |
| FloatVector, Float16Vector, Int8Vector | fixed-size list |
| BFloat16Vector, BinaryVector | fixed-size binary |
| SparseFloatVector | map of index to value, by index |
"""

import datetime as dt
import itertools
import json
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from engine.errors import SourceError, SourceIncomplete

BOOL, INT8, INT16, INT32, INT64, FLOAT, DOUBLE = 1, 2, 3, 4, 5, 10, 11
VARCHAR, ARRAY, JSON, GEOMETRY, TEXT, TIMESTAMPTZ = 21, 22, 23, 24, 25, 26
BINARY_VECTOR, FLOAT_VECTOR, FLOAT16_VECTOR, BFLOAT16_VECTOR, SPARSE_VECTOR, INT8_VECTOR = range(100, 106)
DYNAMIC = "$meta"
_SPARSE = np.dtype([("index", "<u4"), ("value", "<f4")])
_JSON = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)

# Milvus type: slot of the message, numpy type
_NUMBERS = {
    BOOL: ("bool_data", "?"),
    INT8: ("int_data", "i1"),
    INT16: ("int_data", "<i2"),
    INT32: ("int_data", "<i4"),
    INT64: ("long_data", "<i8"),
    FLOAT: ("float_data", "<f4"),
    DOUBLE: ("double_data", "<f8"),
}
_TEXTS = {
    VARCHAR: "string_data",
    TEXT: "string_data",
    JSON: "json_data",
    GEOMETRY: "geometry_wkt_data",
    TIMESTAMPTZ: "string_data",
}
# Milvus type: field of the message, numpy type of an element (None: bytes as they are)
_VECTORS = {
    FLOAT_VECTOR: ("float_vector", "<f4"),
    FLOAT16_VECTOR: ("float16_vector", "<f2"),
    INT8_VECTOR: ("int8_vector", "i1"),
    BFLOAT16_VECTOR: ("bfloat16_vector", None),
    BINARY_VECTOR: ("binary_vector", None),
}
_WIDTHS = {VARCHAR: 64, TEXT: 256, JSON: 128, GEOMETRY: 64, TIMESTAMPTZ: 32, ARRAY: 64, SPARSE_VECTOR: 256}


class Unkept(SourceError):
    """A collection has what this version can't keep."""


class Column(NamedTuple):
    """One field of a collection that rows carry. `dim` is a vector's, `element` an array's type."""

    name: str
    type: int
    element: int
    dim: int
    nullable: bool
    key: bool

    @property
    def width(self) -> int:
        """Return about how many bytes a value takes, by the schema alone."""
        if self.type in _VECTORS:
            kind = _VECTORS[self.type][1]
            return self.dim * np.dtype(kind).itemsize if kind else _packed(self)
        return np.dtype(_NUMBERS[self.type][1]).itemsize if self.type in _NUMBERS else _WIDTHS[self.type]


def columns(schema: Any) -> list[Column]:
    """Return what rows of a CollectionSchema carry, in its order, the dynamic field last. Raises Unkept.

    What a function makes out of other fields is left out: the server makes it again.
    """
    if schema.struct_array_fields:
        raise Unkept(f"the field {schema.struct_array_fields[0].name} is an array of structs, which can't be kept yet")
    if schema.enable_namespace or schema.external_source:
        raise Unkept("it has namespaces or an external source, which can't be kept yet")
    made = {name for function in schema.functions for name in function.output_field_names}
    found = []
    for field in schema.fields:
        if field.name in made or field.is_function_output or field.is_dynamic:
            continue
        if field.data_type not in {*_NUMBERS, *_TEXTS, *_VECTORS, ARRAY, SPARSE_VECTOR} or (
            field.data_type == ARRAY and field.element_type not in {*_NUMBERS, VARCHAR}
        ):
            raise Unkept(f"the field {field.name} has the type {field.data_type}, which can't be kept yet")
        dim = next((int(pair.value) for pair in field.type_params if pair.key == "dim"), 0)
        found.append(Column(field.name, field.data_type, field.element_type, dim, field.nullable, field.is_primary_key))
    if schema.enable_dynamic_field:
        found.append(Column(DYNAMIC, JSON, 0, 0, nullable=False, key=False))
    return found


def arrow_schema(wanted: Sequence[Column]) -> Any:
    """Return the pyarrow.Schema of rows with these columns; each field tells its Milvus type."""
    import pyarrow as pa

    fields = []
    for column in wanted:
        told = {"milvus_type": str(column.type)} | ({"dim": str(column.dim)} if column.dim else {})
        fields.append(pa.field(column.name, _arrow_type(column), nullable=column.nullable, metadata=told))
    return pa.schema(fields)


def _arrow_type(column: Column) -> Any:
    import pyarrow as pa

    if column.type in _NUMBERS:
        return pa.from_numpy_dtype(np.dtype(_NUMBERS[column.type][1]))
    if column.type in _TEXTS:
        return pa.string()
    if column.type == ARRAY:
        return pa.list_(_arrow_type(column._replace(type=column.element)))
    if column.type == SPARSE_VECTOR:
        return pa.map_(pa.uint32(), pa.float32())
    kind = _VECTORS[column.type][1]
    return pa.list_(pa.from_numpy_dtype(np.dtype(kind)), column.dim) if kind else pa.binary(_packed(column))


def _packed(column: Column) -> int:
    return column.dim // 8 if column.type == BINARY_VECTOR else column.dim * 2


def to_arrow(column: Column, field: Any, rows: int) -> Any:
    """Return a FieldData of `rows` rows as an Arrow array. Raises SourceIncomplete for an answer that doesn't fit."""
    valid = np.array(field.valid_data, dtype=bool) if len(field.valid_data) else np.ones(rows, dtype=bool)
    if len(valid) != rows:
        raise SourceIncomplete(f"the server's answer has {len(valid)} marks for {rows} rows of {column.name}")
    if column.type in _NUMBERS:
        return _numbers(column, field, valid)
    if column.type in _TEXTS:
        return _texts(column, field, valid)
    if column.type == ARRAY:
        return _lists(column, field, valid)
    if column.type == SPARSE_VECTOR:
        return _sparse(column, field, valid)
    return _vectors(column, field, valid)


def _numbers(column: Column, field: Any, valid: Any) -> Any:
    import pyarrow as pa

    slot, kind = _NUMBERS[column.type]
    given = np.array(getattr(field.scalars, slot).data, dtype=kind)
    values = np.zeros(len(valid), dtype=kind)
    values[valid] = given[valid] if len(given) == len(valid) else _fitting(column, given, valid)
    return pa.array(values, mask=~valid if column.nullable else None)


def _texts(column: Column, field: Any, valid: Any) -> Any:
    import pyarrow as pa

    given: Iterable[Any]
    if column.type == TIMESTAMPTZ and field.scalars.HasField("timestamptz_data"):
        given = [_iso(micros) for micros in field.scalars.timestamptz_data.data]
    elif column.type == JSON:
        given = [canonical(text) for text in field.scalars.json_data.data]
    else:
        given = getattr(field.scalars, _TEXTS[column.type]).data or field.scalars.string_data.data
    values = _spread(column, list(given), valid)
    if column.name == DYNAMIC:
        values = ["{}" if value is None else value for value in values]
    return pa.array(values, pa.string())


def _lists(column: Column, field: Any, valid: Any) -> Any:
    import pyarrow as pa

    slot = "string_data" if column.element == VARCHAR else _NUMBERS[column.element][0]
    given = [list(getattr(cell, slot).data) for cell in field.scalars.array_data.data]
    return pa.array(_spread(column, given, valid), _arrow_type(column))


def _sparse(column: Column, field: Any, valid: Any) -> Any:
    import pyarrow as pa

    given = [np.frombuffer(cell, _SPARSE) for cell in field.vectors.sparse_float_vector.contents]
    cells = [cell[np.argsort(cell["index"], kind="stable")] for cell in given]
    spread = _spread(column, cells, valid)
    offsets = np.zeros(len(valid) + 1, dtype=np.int32)
    np.cumsum([0 if cell is None else len(cell) for cell in spread], out=offsets[1:])
    flat = np.concatenate([cell for cell in spread if cell is not None] or [np.zeros(0, _SPARSE)])
    keys, items = pa.array(np.ascontiguousarray(flat["index"])), pa.array(np.ascontiguousarray(flat["value"]))
    mask = pa.array(~valid) if not valid.all() else None
    return pa.MapArray.from_arrays(pa.array(offsets), keys, items, mask=mask)


def _vectors(column: Column, field: Any, valid: Any) -> Any:
    """Return a dense vector column; a null has zeros behind it."""
    import pyarrow as pa

    name, kind = _VECTORS[column.type]
    held = getattr(field.vectors, name)
    given = np.array(held.data, dtype=kind) if column.type == FLOAT_VECTOR else np.frombuffer(held, kind or "u1")
    length = column.dim if kind else _packed(column)
    if not length or len(given) % length:
        raise SourceIncomplete(f"the server's answer has vectors of another length than {column.name} has")
    given = given.reshape(-1, length)
    values = np.zeros((len(valid), length), dtype=kind or "u1")
    values[valid] = given[valid] if len(given) == len(valid) else _fitting(column, given, valid)
    mask = pa.array(~valid) if not valid.all() else None
    if kind:
        return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), length, mask=mask)
    bits = pa.py_buffer(np.packbits(valid, bitorder="little")) if mask is not None else None
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(length), len(valid), [bits, pa.py_buffer(values)])


def _spread(column: Column, given: list[Any], valid: Any) -> list[Any]:
    """Return one value a row, None where there is none, whether the answer leaves nulls out or not."""
    if len(given) == len(valid):
        return [value if held else None for value, held in zip(given, valid, strict=True)]
    values = iter(_fitting(column, given, valid))
    return [next(values) if held else None for held in valid]


def _fitting(column: Column, given: Any, valid: Any) -> Any:
    if len(given) != np.count_nonzero(valid):
        raise SourceIncomplete(f"the server's answer has {len(given)} values for {len(valid)} rows of {column.name}")
    return given


def canonical(text: bytes) -> str:
    """Return JSON with sorted keys and no spaces; what is no JSON, or would not come back equal, as it is."""
    try:
        return _JSON.encode(json.loads(text))
    except ValueError:
        return text.decode("utf-8", "replace")


def _iso(micros: int) -> str:
    return (_EPOCH + dt.timedelta(microseconds=micros)).isoformat().replace("+00:00", "Z")


def to_field(column: Column, array: Any, schema: Any) -> Any:
    """Return an Arrow array as FieldData for an insert: nulls are left out of the values and marked.

    `schema` is the module of Milvus's messages.
    """
    field = schema.FieldData(field_name=column.name, type=column.type, is_dynamic=column.name == DYNAMIC)
    if column.nullable:
        field.valid_data.extend(array.is_valid().to_pylist())
    values = array.drop_null()
    if column.type in _NUMBERS:
        getattr(field.scalars, _NUMBERS[column.type][0]).data.extend(values.to_pylist())
    elif column.type == JSON:
        field.scalars.json_data.data.extend(text.encode() for text in values.to_pylist())
    elif column.type in _TEXTS:
        getattr(field.scalars, _TEXTS[column.type]).data.extend(values.to_pylist())
    elif column.type == ARRAY:
        _fill_lists(column, field, values, schema)
    else:
        _fill_vectors(column, field, values)
    return field


def _fill_lists(column: Column, field: Any, values: Any, schema: Any) -> None:
    slot = "string_data" if column.element == VARCHAR else _NUMBERS[column.element][0]
    field.scalars.array_data.element_type = column.element
    for value in values.to_pylist():
        cell = schema.ScalarField()
        getattr(cell, slot).data.extend(value)
        getattr(cell, slot).SetInParent()
        field.scalars.array_data.data.append(cell)


def _fill_vectors(column: Column, field: Any, values: Any) -> None:
    field.vectors.dim = column.dim
    if column.type == SPARSE_VECTOR:
        flat = np.zeros(len(values.keys), dtype=_SPARSE)
        flat["index"], flat["value"] = values.keys.to_numpy(), values.items.to_numpy()
        cells = [flat[start:end] for start, end in itertools.pairwise(values.offsets.to_pylist())]
        field.vectors.sparse_float_vector.contents.extend(cell.tobytes() for cell in cells)
        field.vectors.dim = max((int(cell["index"][-1]) + 1 for cell in cells if len(cell)), default=0)
        field.vectors.sparse_float_vector.dim = field.vectors.dim
        return
    name, kind = _VECTORS[column.type]
    if column.type == FLOAT_VECTOR:
        field.vectors.float_vector.data.extend(values.flatten().to_numpy().tolist())
        field.vectors.float_vector.SetInParent()
    elif kind:
        setattr(field.vectors, name, values.flatten().to_numpy().astype(kind).tobytes())
    else:
        setattr(field.vectors, name, b"".join(values.to_pylist()))
