"""The rows of one partition as an Arrow IPC stream: ordered by primary key, cut where the keys say.

A record batch ends at a key whose hash says so, so that a row that comes or goes changes one batch and not those behind
it. The last batch is empty and carries the number of rows and the SHA-256 of all batches before it (as `backupsite`):
a stream without it is incomplete. The same rows make the same bytes, however the server pages them.
"""

import hashlib
import io
import json
import zlib
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from engine.connections.milvus import Client, Refused, TooMuch
from engine.connections.milvus_columns import VARCHAR, Column, arrow_schema, columns, to_arrow
from engine.errors import SourceIncomplete

MARK = b"backupsite"
BATCH_BYTES = 256 << 10
PAGE_BYTES = 16 << 20
PAGE_ROWS_MAX = 16_000  # Milvus gives at most 16,384 at once
_BATCH_BYTES_MAX = 4 << 20
_MIX = np.uint64(0x9E3779B97F4A7C15)


class Place(NamedTuple):
    """One partition's rows; an empty `partition` means the whole collection (where a key chooses the partition)."""

    database: str
    collection: str
    partition: str


class Ending(NamedTuple):
    """What the last batch of a stream tells."""

    rows: int
    sha256: str


class Rows:
    """Reads a partition page by page; `readinto` gives the Arrow stream. One per thread.

    `reload` is called when the server says that the collection is not loaded (any more).
    """

    def __init__(self, client: Client, place: Place, schema: Any, *, reload: Callable[[], None]) -> None:
        self._client, self._place, self._reload = client, place, reload
        self._columns = columns(schema)
        self._key = next(column for column in self._columns if column.key)
        self._cutter = _Cutter(self._columns)
        self._sink = _Sink(arrow_schema(self._columns))
        self._last: Any = None
        self._snapshot_ts: int | None = None
        self._limit = max(1, min(PAGE_ROWS_MAX, PAGE_BYTES // sum(column.width for column in self._columns)))
        self.ending: Ending | None = None

    def readinto(self, view: memoryview) -> int:
        """Fill the view; 0 when the stream is at its end."""
        while not self._sink.ready and self.ending is None:
            self._advance()
        return self._sink.take(view)

    def drain(self) -> Ending:
        """Read all of it for its ending alone."""
        view = memoryview(bytearray(1 << 20))
        while self.readinto(view):
            pass
        assert self.ending is not None
        return self.ending

    def close(self) -> None: ...

    def _advance(self) -> None:
        page = self._page()
        if page is not None:
            for batch in self._cutter.add(page, self._keys(page)):
                self._sink.write(batch)
            return
        for batch in self._cutter.end():
            self._sink.write(batch)
        self.ending = self._sink.finish()

    def _page(self) -> Any:
        """Return the next rows as a record batch, None behind the last."""
        import pyarrow as pa

        if self._snapshot_ts is None:
            self._snapshot_ts = int(self._query("", 1, 0).session_ts)
        beyond = "" if self._last is None else f"{self._key.name} > {literal(self._last)}"
        answer = self._query(beyond, self._limit, self._snapshot_ts)
        fields = {field.field_name: field for field in answer.fields_data}
        if self._key.name not in fields:
            return None
        scalars = fields[self._key.name].scalars
        rows = len((scalars.string_data if self._key.type == VARCHAR else scalars.long_data).data)
        if not rows:
            return None
        missing = [column.name for column in self._columns if column.name not in fields]
        if missing:
            raise SourceIncomplete(f"the server's answer lacks the field {missing[0]} of {self._place.collection}")
        self._limit = max(1, min(PAGE_ROWS_MAX, PAGE_BYTES * rows // max(answer.ByteSize(), 1)))
        arrays = [to_arrow(column, fields[column.name], rows) for column in self._columns]
        return pa.RecordBatch.from_arrays(arrays, schema=self._sink.schema)

    def _query(self, beyond: str, limit: int, snapshot_ts: int) -> Any:
        """Ask for rows behind a key; fewer at once where they are too much, loading the collection when it is not."""
        while True:
            options = {"limit": limit, "iterator": "True", "reduce_stop_for_best": "True", "ignore_growing": "False"}
            try:
                return self._client.call(
                    "Query",
                    db_name=self._place.database,
                    collection_name=self._place.collection,
                    partition_names=[self._place.partition] if self._place.partition else [],
                    expr=beyond,
                    output_fields=["*"],
                    guarantee_timestamp=snapshot_ts,
                    use_default_consistency=bool(snapshot_ts),  # the first one sees all that was written before
                    query_params=[{"key": key, "value": str(value)} for key, value in options.items()],
                )
            except TooMuch:
                if limit == 1:
                    raise
                limit = self._limit = max(limit // 4, 1)
            except Refused as refused:
                if not refused.not_loaded:
                    raise
                self._reload()

    def _keys(self, page: Any) -> Any:
        """Return the page's keys. Raises SourceIncomplete unless they ascend: paging by key would lose rows."""
        array = page.column(self._columns.index(self._key))
        keys = array.to_pylist() if self._key.type == VARCHAR else array.to_numpy()
        ascending = all(map(str.__lt__, keys, keys[1:])) if self._key.type == VARCHAR else (keys[:-1] < keys[1:]).all()
        if not ascending or (self._last is not None and keys[0] <= self._last):
            raise SourceIncomplete(
                f"the server gives the rows of {self._place.collection} out of the order of their keys: they can't be"
                " read page by page without losing some"
            )
        self._last = keys[-1] if self._key.type == VARCHAR else int(keys[-1])
        return keys


def literal(value: int | str) -> str:
    """Return a key as Milvus's filter language writes it."""
    if isinstance(value, int):
        return str(value)
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + escaped.replace("\n", "\\n").replace("\r", "\\r").replace("\t", "\\t") + '"'


class _Cutter:
    """Cuts pages into batches at keys whose hash says so; how the rows came in pages makes no difference."""

    def __init__(self, wanted: list[Column]) -> None:
        width = sum(column.width for column in wanted)
        self._bits = max(BATCH_BYTES // width, 4).bit_length() - 1
        self._least, self._most = (1 << self._bits) // 4, (1 << self._bits) * 4
        self._pending: list[Any] = []
        self._rows = self._bytes = 0

    def add(self, page: Any, keys: Any) -> list[Any]:
        cuts, sizes = self._cuts(keys), _row_bytes(page)
        done, start = [], 0
        for row in range(page.num_rows):
            self._rows += 1
            self._bytes += sizes[row]
            due = self._rows >= self._least and cuts[row]
            if due or self._rows >= self._most or self._bytes >= _BATCH_BYTES_MAX:
                self._pending.append(page.slice(start, row + 1 - start))
                start = row + 1
                done += self.end()
        if start < page.num_rows:
            self._pending.append(page.slice(start))
        return done

    def end(self) -> list[Any]:
        """Return what is left as a batch of its own."""
        import pyarrow as pa

        pending, self._pending = self._pending, []
        self._rows = self._bytes = 0
        if not pending:
            return []
        whole = pa.concat_batches(pending)
        return [pa.RecordBatch.from_arrays([pa.concat_arrays([one]) for one in whole.columns], schema=whole.schema)]

    def _cuts(self, keys: Any) -> list[bool]:
        if isinstance(keys, list):
            hashes = np.array([zlib.crc32(key.encode()) for key in keys], dtype=np.uint64)
        else:
            hashes = keys.astype(np.uint64)
        with np.errstate(over="ignore"):
            mixed = (hashes ^ (hashes >> np.uint64(29))) * _MIX
        cuts: list[bool] = ((mixed >> np.uint64(64 - self._bits)) == 0).tolist()
        return cuts


def _row_bytes(page: Any) -> list[int]:
    """Return about how many bytes each row takes; texts count by their length."""
    import pyarrow as pa
    import pyarrow.compute as pc

    total = np.zeros(page.num_rows, dtype=np.int64)
    for array in page.columns:
        if pa.types.is_string(array.type):
            total += pc.fill_null(pc.binary_length(array), 0).to_numpy()
        elif pa.types.is_list(array.type) or pa.types.is_map(array.type):
            total += np.diff(array.offsets.to_numpy()) * 16
        else:
            total += (
                array.nbytes // max(page.num_rows, 1)
                if not pa.types.is_fixed_size_list(array.type)
                else (array.type.list_size * array.type.value_type.bit_width // 8)
            )
    sizes: list[int] = total.tolist()
    return sizes


class _Sink:
    """Makes the Arrow stream and keeps what was not yet taken."""

    def __init__(self, schema: Any) -> None:
        import pyarrow as pa

        self.schema = schema
        self._out = io.BytesIO()
        self._writer = pa.ipc.new_stream(self._out, schema)
        self._ready: deque[memoryview] = deque()
        self._rows, self._hash = 0, hashlib.sha256()
        self._head = len(schema.serialize())  # written with the first batch

    @property
    def ready(self) -> bool:
        return bool(self._ready)

    def write(self, batch: Any) -> None:
        self._writer.write_batch(batch)
        self._rows += batch.num_rows
        self._hash.update(self._keep()[self._head :])
        self._head = 0

    def finish(self) -> Ending:
        import pyarrow as pa

        ending = Ending(self._rows, self._hash.hexdigest())
        empty = pa.RecordBatch.from_pylist([], schema=self.schema)
        self._writer.write_batch(empty, custom_metadata={MARK: json.dumps(ending._asdict())})
        self._writer.close()
        self._keep()
        return ending

    def take(self, view: memoryview) -> int:
        at = 0
        while self._ready and at < len(view):
            piece = self._ready.popleft()
            count = min(len(piece), len(view) - at)
            view[at : at + count] = piece[:count]
            at += count
            if count < len(piece):
                self._ready.appendleft(piece[count:])
        return at

    def _keep(self) -> bytes:
        data = self._out.getvalue()
        self._out.seek(0)
        self._out.truncate()
        if data:
            self._ready.append(memoryview(data))
        return data


class Batches:
    """An Arrow stream taken apart as it comes in, in pieces of any length."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._head = b""
        self._hash = hashlib.sha256()
        self.rows = 0
        self.ending: Ending | None = None

    def add(self, data: memoryview) -> list[Any]:
        """Return the record batches that are whole now. Raises ValueError for what is no such stream."""
        self._buffer += data
        found = []
        while (message := self._message()) is not None:
            if not self._head:
                self._head = message
                continue
            batch = self._batch(message)
            if batch is not None:
                found.append(batch)
        return found

    def _message(self) -> bytes | None:
        """Cut the next whole message from the buffer; None when it is not all there, or the end mark."""
        import pyarrow as pa

        if len(self._buffer) < 8 or self._buffer[4:8] == b"\0\0\0\0":
            return None
        source = pa.BufferReader(bytes(self._buffer))
        try:
            message = pa.ipc.read_message(source)
        except (pa.ArrowInvalid, OSError, EOFError):
            return None
        if message is None:
            return None
        length = source.tell()
        whole = bytes(self._buffer[:length])
        del self._buffer[:length]
        return whole

    def _batch(self, message: bytes) -> Any:
        """Return a message's batch, None for the last, which is the ending."""
        import pyarrow as pa

        try:
            batch, told = pa.ipc.open_stream(self._head + message).read_next_batch_with_custom_metadata()
        except (pa.ArrowInvalid, OSError) as error:
            raise ValueError(f"it is no Arrow stream: {error}") from None
        if told is not None and MARK in told:
            self.ending = Ending(**json.loads(told[MARK]))
            return None
        self.rows += batch.num_rows
        self._hash.update(message)
        return batch

    def prove(self) -> Ending:
        """Return the ending. Raises ValueError unless the stream came to it whole."""
        if self.ending is None:
            raise ValueError("the stream of rows ends before its end")
        if self.ending != Ending(self.rows, self._hash.hexdigest()):
            raise ValueError("the stream of rows is not what its end says")
        return self.ending
