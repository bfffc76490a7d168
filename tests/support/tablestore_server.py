"""A contract test double of Alibaba Tablestore: not the service, but a server that the vendor's real SDK talks to.

It is built on the SDK's own protocol messages and row codec, checks the signature of every request and signs every
answer, and keeps the service's rules that a backup meets: 200 rows and 4 MB a request, pages of limited size, versions
of cells within the table's time deviation, expiry, AUTO_INCREMENT, one version where secondary indexes are. What it
does not have: transactions, filters, streams, searches, time series.
"""

import base64
import bisect
import datetime as dt
import hashlib
import hmac
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # the SDK brings a codec for another Python
    from tablestore.plainbuffer import plain_buffer_consts as consts
    from tablestore.plainbuffer.plain_buffer_builder import PlainBufferBuilder
    from tablestore.plainbuffer.plain_buffer_coded_stream import PlainBufferCodedInputStream
    from tablestore.plainbuffer.plain_buffer_crc8 import PlainBufferCrc8
    from tablestore.plainbuffer.plain_buffer_stream import PlainBufferInputStream
    from tablestore.protobuf import search_pb2 as search
    from tablestore.protobuf import table_store_pb2 as pb

BATCH_ROWS, BODY_BYTES = 200, 4 << 20
HEADER = b"\x75\0\0\0"
LOW, HIGH = (0, 0), (2, 0)
Key = tuple[tuple[int, Any], ...]
TYPES = {pb.INTEGER: int, pb.STRING: str, pb.BINARY: bytearray, pb.PK_BOOLEAN: bool}


class Refusal(Exception):
    """An error of the service."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code = status, code


@dataclass
class Table:
    """A table: its descriptions as the SDK sends them, and rows by their sortable keys."""

    meta: Any
    options: Any
    throughput: Any
    sse: Any = None
    stream: Any = None
    indexes: list[Any] = field(default_factory=list)
    searches: dict[str, Any] = field(default_factory=dict)
    rows: dict[Key, tuple[list[Any], list[Any]]] = field(default_factory=dict)
    order: list[Key] = field(default_factory=list)
    encoded: dict[Key, bytes] = field(default_factory=dict)  # rows as they were last sent: encoding them is slow

    def put(self, key: list[Any], cells: list[Any]) -> None:
        known = sortable(key)
        if known not in self.rows:
            bisect.insort(self.order, known)
        self.rows[known] = key, cells
        self.encoded.pop(known, None)


def sortable(key: list[Any]) -> Key:
    """Return a primary key so that Python sorts it as the service does; LOW and HIGH are its infinities."""
    return tuple(
        value if isinstance(value, tuple) else (1, bytes(value) if isinstance(value, bytearray) else value)
        for _, value in key
    )


class KeyReader(PlainBufferCodedInputStream):
    """The SDK's reader, which knows no infinities: only servers read them."""

    def read_primary_key_value(self, cell_check_sum: int) -> tuple[Any, int]:
        stream = self.input_stream
        kind = stream.buffer[stream.cur_pos + 4]
        if kind in (consts.const.VT_INF_MIN, consts.const.VT_INF_MAX):
            stream.read_bytes(5)
            stream.read_tag()
            edge = LOW if kind == consts.const.VT_INF_MIN else HIGH
            return edge, PlainBufferCrc8.crc_int8(cell_check_sum, kind)
        value, check = super().read_primary_key_value(cell_check_sum)
        return value, check


def read_row(data: bytes) -> tuple[list[Any], list[Any]]:
    key, cells = KeyReader(PlainBufferInputStream(data)).read_row()
    return key, cells


def write_row(key: list[Any], cells: list[Any]) -> bytes:
    """Return a row without the header that stands once before all rows."""
    return bytes(PlainBufferBuilder.serialize_for_put_row(key, cells))[len(HEADER) :]


class TablestoreServer:
    """One instance on loopback, served by threads of this process until `stop`.

    Tests may set `page_rows`, `busy` (so many of the next requests are throttled), `busy_rows` (rows of the next batch
    that are), `wide` (rows do not fit into an answer), `split_bytes` (the size of splits, whatever is asked for), and
    `before`, which is called with each call's name before its answer.
    """

    def __init__(self, *, access_key: str = "AK", secret_key: str = "SK", instance: str = "shop") -> None:
        self.access_key, self.secret_key, self.instance = access_key, secret_key, instance
        self.tables: dict[str, Table] = {}
        self.page_rows = 1000
        self.busy = self.busy_rows = 0
        self.wide = False
        self.split_bytes = 0
        self.before: Callable[[str], None] = lambda api: None
        self.calls: list[str] = []
        self._mutex = threading.RLock()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), handler(self))
        self._http.daemon_threads = True
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._http.server_port}"

    def stop(self) -> None:
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()

    def answer(self, api: str, body: bytes) -> bytes:
        """Do one call. Raises Refusal."""
        self.before(api)
        with self._mutex:
            self.calls.append(api)
            if self.busy:
                self.busy -= 1
                raise Refusal(503, "OTSServerBusy", "Server is busy.")
            act = CALLS.get(api)
            if act is None:
                raise Refusal(400, "OTSUnsupportOperation", f"Unsupported operation: {api}.")
            if len(body) > BODY_BYTES:
                raise Refusal(400, "OTSRequestBodySizeExceed", "The size of http request body exceeds 4 MB.")
            request, work = act
            return bytes(work(self, request.FromString(body)).SerializeToString())

    def table(self, name: str) -> Table:
        if name not in self.tables:
            raise Refusal(404, "OTSObjectNotExist", "Requested table does not exist.")
        return self.tables[name]


def mac(secret: str, text: str) -> str:
    return base64.b64encode(hmac.new(secret.encode(), text.encode(), hashlib.sha1).digest()).decode()


def signed_part(headers: dict[str, str], *, without: str = "") -> str:
    shown = {name.lower(): value.strip() for name, value in headers.items()}
    return "\n".join(
        sorted(f"{name}:{value}" for name, value in shown.items() if name.startswith("x-ots-") and name != without)
    )


def handler(server: TablestoreServer) -> type[BaseHTTPRequestHandler]:
    """Return the HTTP side: what is signed how, on the way in and on the way out."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            try:
                self._check(body)
                status, answer = 200, server.answer(self.path[1:], body)
            except Refusal as refusal:
                status, answer = refusal.status, pb.Error(code=refusal.code, message=str(refusal)).SerializeToString()
            headers = {
                "x-ots-contentmd5": base64.b64encode(hashlib.md5(answer).digest()).decode(),
                "x-ots-requestid": "0005-test",
                "x-ots-date": dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z"),
                "x-ots-contenttype": "protocol buffer",
            }
            signature = mac(server.secret_key, signed_part(headers) + "\n" + self.path)
            headers["Authorization"] = f"OTS {server.access_key}:{signature}"
            self.send_response(status)
            for name, value in (headers | {"Content-Length": str(len(answer))}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(answer)

        def _check(self, body: bytes) -> None:
            headers = dict(self.headers.items())
            text = self.path + "\nPOST\n\n" + signed_part(headers, without="x-ots-signature") + "\n"
            if self.headers["x-ots-accesskeyid"] != server.access_key:
                raise Refusal(403, "OTSAuthFailed", "The AccessKeyID does not exist.")
            if self.headers["x-ots-signature"] != mac(server.secret_key, text):
                raise Refusal(403, "OTSAuthFailed", "Signature mismatch.")
            if self.headers["x-ots-contentmd5"] != base64.b64encode(hashlib.md5(body).digest()).decode():
                raise Refusal(400, "OTSParameterInvalid", "The MD5 of the body does not match.")
            if self.headers["x-ots-instancename"] != server.instance:
                raise Refusal(404, "OTSNoPermissionAccess", "The instance does not exist.")

        def log_message(self, format: str, *arguments: object) -> None: ...

    return Handler


def create_table(server: TablestoreServer, request: Any) -> Any:
    meta = request.table_meta
    if meta.table_name in server.tables:
        raise Refusal(409, "OTSObjectAlreadyExist", "Requested table already exists.")
    if not 1 <= len(meta.primary_key) <= 4:
        raise Refusal(400, "OTSParameterInvalid", "The number of primary key columns must be 1 to 4.")
    options = pb.TableOptions(time_to_live=-1, max_versions=1, deviation_cell_version_in_sec=86400, allow_update=True)
    options.MergeFrom(request.table_options)
    table = Table(meta, options, request.reserved_throughput, indexes=list(request.index_metas))
    table.sse = request.sse_spec if request.HasField("sse_spec") else None
    table.stream = request.stream_spec if request.HasField("stream_spec") else None
    server.tables[meta.table_name] = table
    return pb.CreateTableResponse()


def list_table(server: TablestoreServer, request: Any) -> Any:
    return pb.ListTableResponse(table_names=sorted(server.tables))


def delete_table(server: TablestoreServer, request: Any) -> Any:
    server.table(request.table_name)
    del server.tables[request.table_name]
    return pb.DeleteTableResponse()


def describe_table(server: TablestoreServer, request: Any) -> Any:
    table = server.table(request.table_name)
    answer = pb.DescribeTableResponse(table_meta=table.meta, table_options=table.options, index_metas=table.indexes)
    answer.reserved_throughput_details.capacity_unit.CopyFrom(table.throughput.capacity_unit)
    answer.reserved_throughput_details.last_increase_time = 1_700_000_000
    if table.stream is not None:
        answer.stream_details.enable_stream = table.stream.enable_stream
        answer.stream_details.expiration_time = table.stream.expiration_time
        answer.stream_details.stream_id = "a-stream"
    if table.sse is not None:
        answer.sse_details.enable = table.sse.enable
        answer.sse_details.key_type = table.sse.key_type
    return answer


def update_table(server: TablestoreServer, request: Any) -> Any:
    table = server.table(request.table_name)
    table.options.MergeFrom(request.table_options)
    if request.HasField("stream_spec"):
        table.stream = request.stream_spec
    answer = pb.UpdateTableResponse(table_options=table.options)
    answer.reserved_throughput_details.capacity_unit.CopyFrom(table.throughput.capacity_unit)
    answer.reserved_throughput_details.last_increase_time = 1_700_000_000
    return answer


def put_row(server: TablestoreServer, request: Any) -> Any:
    take_row(server.table(request.table_name), request.row)
    answer = pb.PutRowResponse()
    answer.consumed.capacity_unit.write = 1
    return answer


def take_row(table: Table, data: bytes) -> None:
    """Put one row. Raises Refusal."""
    key, cells = read_row(data)
    wanted = [(column.name, TYPES[column.type]) for column in table.meta.primary_key]
    if [(name, type(value)) for name, value in key] != wanted:
        raise Refusal(400, "OTSInvalidPK", "Validate PK fail.")
    if any(column.HasField("option") for column in table.meta.primary_key):
        raise Refusal(400, "OTSParameterInvalid", "AUTO_INCREMENT column can't be given a value.")
    now_ms = int(time.time() * 1000)
    kept = []
    for name, value, version in cells:
        given = now_ms if version is None else version
        if abs(given - now_ms) > table.options.deviation_cell_version_in_sec * 1000:
            raise Refusal(400, "OTSParameterInvalid", "timestamp is out of the max time deviation.")
        kept.append((name, value, given))
    kept.sort(key=lambda cell: (cell[0], -cell[2]))
    table.put(key, kept)


def batch_write_row(server: TablestoreServer, request: Any) -> Any:
    if sum(len(part.rows) for part in request.tables) > BATCH_ROWS:
        raise Refusal(400, "OTSParameterInvalid", "Rows count exceeds the upper limit: 200.")
    answer = pb.BatchWriteRowResponse()
    for part in request.tables:
        told = answer.tables.add(table_name=part.table_name)
        for row in part.rows:
            try:
                if server.busy_rows:
                    server.busy_rows -= 1
                    raise Refusal(503, "OTSServerBusy", "Server is busy.")
                take_row(server.table(part.table_name), row.row_change)
                result = told.rows.add(is_ok=True)
                result.consumed.capacity_unit.write = 1
            except Refusal as refusal:
                told.rows.add(is_ok=False, error=pb.Error(code=refusal.code, message=str(refusal)))
    return answer


def get_range(server: TablestoreServer, request: Any) -> Any:
    table = server.table(request.table_name)
    if request.direction != pb.FORWARD or not request.HasField("max_versions"):
        raise Refusal(400, "OTSParameterInvalid", "this double reads forward, by max_versions")
    start, end = (
        sortable(read_row(key)[0]) for key in (request.inclusive_start_primary_key, request.exclusive_end_primary_key)
    )
    if start > end:
        raise Refusal(400, "OTSParameterInvalid", "Begin key must less than end key in FORWARD.")
    at, stop = bisect.bisect_left(table.order, start), bisect.bisect_left(table.order, end)
    until = min(stop, at + min(server.page_rows, request.limit or server.page_rows))
    answer = pb.GetRangeResponse()
    answer.consumed.capacity_unit.read = 1
    rows = [sent(table, known, request.max_versions) for known in table.order[at:until]]
    answer.rows = HEADER + b"".join(rows) if rows else b""
    if server.wide:
        answer.next_token = b"more of the last row"
    if until < stop:
        following = table.rows[table.order[until]][0]
        answer.next_start_primary_key = bytes(PlainBufferBuilder.serialize_primary_key(following))
    return answer


def sent(table: Table, known: Key, versions: int) -> bytes:
    """Return a row as it travels."""
    key, cells = table.rows[known]
    shown = visible(table, cells, versions)
    if len(shown) < len(cells):
        return write_row(key, shown)
    if known not in table.encoded:
        table.encoded[known] = write_row(key, cells)
    return table.encoded[known]


def visible(table: Table, cells: list[Any], versions: int) -> list[Any]:
    """Return the newest cells of each column that have not expired, no more than the table keeps."""
    most = min(versions, table.options.max_versions if table.options.max_versions > 0 else versions)
    ttl = table.options.time_to_live
    oldest_ms = 0 if ttl < 0 else (time.time() - ttl) * 1000
    seen: dict[str, int] = {}
    kept = []
    for name, value, version in cells:
        seen[name] = seen.get(name, 0) + 1
        if seen[name] <= most and version >= oldest_ms:
            kept.append((name, value, version))
    return kept


def split_points(server: TablestoreServer, request: Any) -> Any:
    """Cut by the size of the rows as they travel; a point is the whole primary key of the first row behind it."""
    table = server.table(request.table_name)
    most = server.split_bytes or request.split_size * (request.split_size_unit_in_byte or 100 << 20)
    answer = pb.ComputeSplitPointsBySizeResponse()
    answer.consumed.capacity_unit.read = 1
    size = 0
    for known in table.order:
        key, cells = table.rows[known]
        if size >= most:
            answer.split_points.append(bytes(PlainBufferBuilder.serialize_primary_key(key)))
            size = 0
        size += sum(len(name) + (len(value) if isinstance(value, (str, bytearray)) else 8) for name, value, _ in cells)
    return answer


def create_index(server: TablestoreServer, request: Any) -> Any:
    table = server.table(request.main_table_name)
    if table.options.max_versions != 1:
        raise Refusal(400, "OTSParameterInvalid", "Only tables of one version can have a secondary index.")
    if any(index.name == request.index_meta.name for index in table.indexes):
        raise Refusal(409, "OTSObjectAlreadyExist", "Requested index already exists.")
    table.indexes.append(request.index_meta)
    return pb.CreateIndexResponse()


def list_search_index(server: TablestoreServer, request: Any) -> Any:
    names = server.table(request.table_name).searches
    infos = [search.IndexInfo(table_name=request.table_name, index_name=name) for name in names]
    return search.ListSearchIndexResponse(indices=infos)


def describe_search_index(server: TablestoreServer, request: Any) -> Any:
    kept = server.table(request.table_name).searches[request.index_name]
    return search.DescribeSearchIndexResponse(schema=kept.schema, time_to_live=kept.time_to_live, create_time=5)


def create_search_index(server: TablestoreServer, request: Any) -> Any:
    searches = server.table(request.table_name).searches
    if request.index_name in searches:
        raise Refusal(409, "OTSObjectAlreadyExist", "Requested index already exists.")
    searches[request.index_name] = request
    return search.CreateSearchIndexResponse()


CALLS: dict[str, tuple[Any, Callable[[TablestoreServer, Any], Any]]] = {
    "CreateTable": (pb.CreateTableRequest, create_table),
    "ListTable": (pb.ListTableRequest, list_table),
    "DeleteTable": (pb.DeleteTableRequest, delete_table),
    "DescribeTable": (pb.DescribeTableRequest, describe_table),
    "UpdateTable": (pb.UpdateTableRequest, update_table),
    "PutRow": (pb.PutRowRequest, put_row),
    "BatchWriteRow": (pb.BatchWriteRowRequest, batch_write_row),
    "GetRange": (pb.GetRangeRequest, get_range),
    "ComputeSplitPointsBySize": (pb.ComputeSplitPointsBySizeRequest, split_points),
    "CreateIndex": (pb.CreateIndexRequest, create_index),
    "ListSearchIndex": (search.ListSearchIndexRequest, list_search_index),
    "DescribeSearchIndex": (search.DescribeSearchIndexRequest, describe_search_index),
    "CreateSearchIndex": (search.CreateSearchIndexRequest, create_search_index),
}
