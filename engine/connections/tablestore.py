"""Alibaba Tablestore by the vendor's SDK: tables, rows with every version of every cell, and what is set on tables.

Descriptions go through the SDK's own protocol messages instead of its classes, which leave out what a restore needs.
"""

import itertools
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import msgspec

from engine.connections.rows import decode_cells, encode_cells
from engine.connections.tables import (
    FORMAT,
    RANGES_MAX,
    Denied,
    Described,
    Fault,
    Gone,
    Page,
    Range,
    Schema,
    Silent,
    escaped,
    patiently,
    unescaped,
)
from engine.errors import ExtraMissing

PACKAGE = "tablestore==6.4.8"
BATCH_ROWS, BATCH_BYTES = 200, 1 << 20  # a request of 4 MB; encoded rows can be thrice as long as their lines
RANGE_MIB = 256
_ALL_VERSIONS = (1 << 31) - 1
_ANY_TIME_S = (1 << 31) - 1  # reaches from before 1970 to 2094: any version that cells may carry
_WRITE_TRIES = 9
_CONNECTIONS = 16
_BOUND_BYTES = 32  # a boundary may be cut short: any value between two keys parts them
_SPLITS = "ComputeSplitPointsBySize"
_GONE = frozenset({"OTSObjectNotExist", "OTSTableNotExist"})
_DENIED = frozenset({"OTSAuthFailed", "OTSNoPermissionAccess", "OTSInvalidAccessKeyId", "OTSAuthenticationFailed"})
_AGAIN = frozenset(
    {
        *("OTSServerBusy", "OTSNotEnoughCapacityUnit", "OTSRowOperationConflict", "OTSPartitionUnavailable"),
        *("OTSTimeout", "OTSInternalServerError", "OTSServerUnavailable", "OTSTableNotReady", "OTSOperationThrottled"),
    }
)


class Tablestore(msgspec.Struct, frozen=True, kw_only=True):
    """How to reach an instance: its endpoint with http:// or https://, its name, and keys that never show."""

    endpoint: str
    instance: str
    access_key: str
    secret_key: str
    token: str = ""
    timeout_s: float = 30

    def __repr__(self) -> str:
        return f"Tablestore({self.instance!r} at {self.endpoint!r})"


class TablestoreService:
    """The tables of one instance (the Service port). Threads may share it."""

    def __init__(self, place: Tablestore, *, range_mib: int = RANGE_MIB) -> None:
        self._place, self._range_mib = place, range_mib
        self._client = _connect(place)

    @property
    def batch(self) -> tuple[int, int]:
        return BATCH_ROWS, BATCH_BYTES

    def tables(self) -> list[str]:
        with self._translated():
            return sorted(self._client.list_table())

    def describe(self, table: str) -> Described:
        """Return keys, columns, throughput, encryption, options, stream and indexes of both kinds."""
        from google.protobuf.json_format import MessageToDict  # comes with the SDK

        found = MessageToDict(self._call("DescribeTable", table_name=table), preserving_proto_field_name=True)
        meta = found["table_meta"]
        create = {
            "table_meta": {"primary_key": meta["primary_key"], "defined_column": meta.get("defined_column", [])},
            "reserved_throughput": {"capacity_unit": found["reserved_throughput_details"]["capacity_unit"]},
        }
        if found.get("sse_details", {}).get("enable"):
            create["sse_spec"] = found["sse_details"]
        after = {
            "table_options": found["table_options"],
            "index_metas": sorted(found.get("index_metas", []), key=lambda index: str(index["name"])),
            "search_indexes": self._search_indexes(table),
        }
        stream = found.get("stream_details", {})
        if stream.get("enable_stream"):
            after["stream_spec"] = {"enable_stream": True, "expiration_time": stream.get("expiration_time", 24)}
        schema = {"service": "tablestore", "format": FORMAT, "table": table, "create": create, "after": after}
        return Described(schema)

    def _search_indexes(self, table: str) -> list[dict[str, Any]]:
        from google.protobuf.json_format import MessageToDict

        names = sorted(info.index_name for info in self._call("ListSearchIndex", table_name=table).indices)
        found = []
        for name in names:
            index = self._call("DescribeSearchIndex", table_name=table, index_name=name)
            definition = MessageToDict(index, preserving_proto_field_name=True)
            kept = {field: definition[field] for field in ("schema", "time_to_live") if field in definition}
            found.append({"index_name": name, **kept})
        return found

    def ranges(self, table: str, schema: Schema) -> list[Range]:
        """Cut where the service says that about RANGE_MIB lie between; boundaries are values of the first key column.

        They stand in the names of the rows files: `from-<value>-to-<value>`, percent-encoded.
        """
        answer = self._call(_SPLITS, table_name=table, split_size=1, split_size_unit_in_byte=self._range_mib << 20)
        bounds: list[Any] = []
        for point in answer.split_points:
            bound = self._bound(point)
            # Cut short, it can have become like the one before.
            if bound != b"" and (not bounds or bound > bounds[-1]):
                bounds.append(bound)
        step = -(-(len(bounds) + 1) // RANGES_MAX)
        edges = ["", *map(_text, bounds[step - 1 :: step]), ""]
        return [
            Range(number, len(edges) - 1, _named(start, end))
            for number, (start, end) in enumerate(itertools.pairwise(edges), 1)
        ]

    def _bound(self, point: bytes) -> Any:
        """Return the first key column of a split point, texts as bytes, cut short."""
        from tablestore.plainbuffer.plain_buffer_coded_stream import PlainBufferCodedInputStream
        from tablestore.plainbuffer.plain_buffer_stream import PlainBufferInputStream

        with self._translated():
            key, _ = PlainBufferCodedInputStream(PlainBufferInputStream(point)).read_row()
        value = key[0][1] if key else b""
        if isinstance(value, str):
            return value.encode()[:_BOUND_BYTES].decode("utf-8", "ignore").encode()
        return bytes(value[:_BOUND_BYTES]) if isinstance(value, (bytes, bytearray)) else value

    def pages(self, table: str, schema: Schema, part: Range) -> Iterator[Page]:
        """Yield the rows of a range by primary key. Raises Fault for a row that is wider than one answer."""
        start, end = _edges(schema, part.bounds)
        versions = schema["after"]["table_options"].get("max_versions", 0)
        versions = versions if versions > 0 else _ALL_VERSIONS
        following: Any = start
        while following:
            with self._translated():
                consumed, following, rows, token = self._client.get_range(
                    table, "FORWARD", following, end, max_version=versions
                )
            if token:
                raise Fault(f"a row of {table} is too wide to be read in one piece")
            lines = [encode_cells(row.primary_key, row.attribute_columns) for row in rows]
            yield Page(lines, consumed.read if consumed else 0)

    def holds_rows(self, table: str) -> bool:
        try:
            schema = self.describe(table).schema
            start, end = _edges(schema, "")
            with self._translated():
                return bool(self._client.get_range(table, "FORWARD", start, end, limit=1, max_version=1)[2])
        except Gone:
            return False

    def create(self, table: str, schema: Schema) -> bool:
        """Make the table so that it takes cells of any age and drops none: what is wanted comes with `settle`.

        An AUTO_INCREMENT column becomes a plain one, since nobody can give such a column its values back.
        """
        from google.protobuf.json_format import ParseDict
        from tablestore.protobuf import table_store_pb2 as pb

        wanted = schema["create"] | {"table_options": self._open_options(schema)}
        request = ParseDict(wanted, pb.CreateTableRequest(table_meta={"table_name": table}), ignore_unknown_fields=True)
        request.table_meta.table_name = table
        for column in request.table_meta.primary_key:
            column.ClearField("option")
        try:
            self._send("CreateTable", request)
        except _Exists:
            self._check_keys(table, schema)
            self._set_options(table, self._open_options(schema))
            return False
        self.holds_rows(table)  # the SDK waits for a table that is not ready
        return True

    def _open_options(self, schema: Schema) -> dict[str, Any]:
        options: dict[str, Any] = schema["after"]["table_options"]
        return options | {
            "time_to_live": -1,
            "deviation_cell_version_in_sec": _ANY_TIME_S,
            "allow_update": True,
        }

    def _check_keys(self, table: str, schema: Schema) -> None:
        def keys(described: Schema) -> list[tuple[str, str]]:
            return [(key["name"], key["type"]) for key in described["create"]["table_meta"]["primary_key"]]

        if keys(self.describe(table).schema) != keys(schema):
            raise Fault(f"the table {table} is there and has another primary key")

    def _set_options(self, table: str, options: dict[str, Any]) -> None:
        from google.protobuf.json_format import ParseDict
        from tablestore.protobuf import table_store_pb2 as pb

        self._send("UpdateTable", ParseDict({"table_options": options}, pb.UpdateTableRequest(table_name=table)))

    def put(self, table: str, schema: Schema, lines: list[bytes]) -> list[str]:
        """Write rows with the versions of their cells. What the service can't take now is sent again for a minute."""
        left = [decode_cells(line) for line in lines]
        refused: list[str] = []

        def write() -> bool:
            nonlocal left
            left, said = self._put_once(table, left)
            refused.extend(said)
            return not left

        if not patiently(write, tries=_WRITE_TRIES, first_s=0.1, most_s=15):
            raise Silent(f"the table {table} has taken {len(left)} rows in none of {_WRITE_TRIES} tries")
        return refused

    def _put_once(self, table: str, rows: list[Any]) -> tuple[list[Any], list[str]]:
        """Return the rows to send again, and what was said of those that are refused for good."""
        from tablestore import (
            BatchWriteRowRequest,
            Condition,
            PutRowItem,
            Row,
            RowExistenceExpectation,
            TableInBatchWriteRowItem,
        )

        ignore = Condition(RowExistenceExpectation.IGNORE)
        request = BatchWriteRowRequest()
        items = [PutRowItem(Row(key, cells), ignore) for key, cells in rows]
        request.add(TableInBatchWriteRowItem(table, items))
        with self._translated():
            results = self._client.batch_write_row(request).get_put_by_table(table)
        again, refused = [], []
        for row, result in zip(rows, results, strict=True):
            if not result.is_ok:
                if result.error_code in _AGAIN:
                    again.append(row)
                else:
                    refused.append(f"{result.error_code}: {result.error_message}")
        return again, refused

    def settle(self, table: str, schema: Schema) -> list[str]:
        """Set options and stream, then build the indexes, search indexes last; those that are there stay."""
        from google.protobuf.json_format import ParseDict
        from tablestore.protobuf import search_pb2
        from tablestore.protobuf import table_store_pb2 as pb

        after, missed = schema["after"], []
        if any("option" in column for column in schema["create"]["table_meta"]["primary_key"]):
            missed.append("the AUTO_INCREMENT of its key column: a table that has it takes no given values")
        update = {"table_options": after["table_options"]}
        if "stream_spec" in after:
            update["stream_spec"] = after["stream_spec"]
        requests = [("its options", "UpdateTable", ParseDict(update, pb.UpdateTableRequest(table_name=table)))]
        for index in after["index_metas"]:
            wanted = {"index_meta": index, "include_base_data": True}
            request = ParseDict(wanted, pb.CreateIndexRequest(main_table_name=table))
            requests.append((f"the secondary index {index['name']}", "CreateIndex", request))
        for search in after["search_indexes"]:
            request = ParseDict(search, search_pb2.CreateSearchIndexRequest(table_name=table))
            requests.append((f"the search index {search['index_name']}", "CreateSearchIndex", request))
        for what, api, request in requests:
            try:
                self._send(api, request)
            except _Exists:
                continue
            except (Denied, Silent):
                raise
            except Fault as error:
                missed.append(f"{what}: {error}")
        return missed

    def close(self) -> None:
        self._client.connection.pool.clear()

    def _call(self, api: str, **fields: Any) -> Any:
        return self._send(api, _messages()[api][0](**fields))

    def _send(self, api: str, request: Any) -> Any:
        with self._translated():
            return self._client._request_helper(api, request)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        from tablestore.error import OTSClientError, OTSServiceError
        from urllib3.exceptions import HTTPError

        try:
            yield
        except OTSServiceError as error:
            raise _fault(error.code, error.message, error.http_status) from error
        except OTSClientError as error:
            # What is no answer of the service: a proxy's page, a broken or foreign signature.
            raise Silent(f"{self._place.endpoint} does not answer as Tablestore: {_short(str(error))}") from error
        except (HTTPError, OSError) as error:
            raise Silent(f"{self._place.endpoint} does not answer: {_short(str(error))}") from error


class _Exists(Fault):
    """What was to be made is there."""


def _fault(code: str, message: str, status: int) -> Fault:
    text = _short(f"{message} ({code})")
    if code in _GONE:
        return Gone(text)
    if code == "OTSObjectAlreadyExist" or (code == "OTSParameterInvalid" and "already exist" in message.lower()):
        return _Exists(text)
    if code in _DENIED or status in (401, 403):
        return Denied(text)
    if code in _AGAIN or status >= 500:
        return Silent(text)
    return Fault(text)


def _short(text: str) -> str:
    return " ".join(text.split())[:300]


def _text(bound: Any) -> str:
    return escaped(bound if isinstance(bound, bytes) else str(bound)).replace("-", "%2D")


def _named(start: str, end: str) -> str:
    return "-".join([*(("from", start) if start else ()), *(("to", end) if end else ())])


def _edges(schema: Schema, bounds: str) -> tuple[list[tuple[str, Any]], list[tuple[str, Any]]]:
    """Return the first primary key of a range and the one behind it."""
    from tablestore import INF_MAX, INF_MIN

    columns = schema["create"]["table_meta"]["primary_key"]
    words = bounds.split("-") if bounds else []
    given = dict(zip(words[::2], words[1::2], strict=True))

    def edge(word: str, otherwise: Any) -> list[tuple[str, Any]]:
        if word not in given:
            return [(column["name"], otherwise) for column in columns]
        raw = unescaped(given[word])
        of_type: dict[str, Callable[[bytes], Any]] = {"INTEGER": int, "BINARY": bytearray, "STRING": bytes.decode}
        first = of_type[columns[0]["type"]](raw)
        return [(columns[0]["name"], first), *((column["name"], INF_MIN) for column in columns[1:])]

    return edge("from", INF_MIN), edge("to", INF_MAX)


def _messages() -> dict[str, tuple[Any, Any]]:
    """Return the requests and answers that are sent as they are, by the name of their call."""
    from tablestore.protobuf import search_pb2 as search
    from tablestore.protobuf import table_store_pb2 as pb

    return {
        "DescribeTable": (pb.DescribeTableRequest, pb.DescribeTableResponse),
        "CreateTable": (pb.CreateTableRequest, pb.CreateTableResponse),
        "UpdateTable": (pb.UpdateTableRequest, pb.UpdateTableResponse),
        "CreateIndex": (pb.CreateIndexRequest, pb.CreateIndexResponse),
        _SPLITS: (pb.ComputeSplitPointsBySizeRequest, pb.ComputeSplitPointsBySizeResponse),
        "ListSearchIndex": (search.ListSearchIndexRequest, search.ListSearchIndexResponse),
        "DescribeSearchIndex": (search.DescribeSearchIndexRequest, search.DescribeSearchIndexResponse),
        "CreateSearchIndex": (search.CreateSearchIndexRequest, search.CreateSearchIndexResponse),
    }


def _connect(place: Tablestore) -> Any:
    """Return a client that retries, is silent, and sends the messages above as they are. Raises ExtraMissing, Fault."""
    # Under the SDK's own names, and without its warnings that a codec for another Python is left out.
    logging.getLogger("tablestore").setLevel(logging.CRITICAL)
    quiet = logging.getLogger("tablestore-client")
    quiet.setLevel(logging.CRITICAL)  # it would write every request as text, only to drop it
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from tablestore import OTSClient, WriteRetryPolicy
            from tablestore.error import OTSError
            from urllib3.util import Retry
    except ImportError as error:
        raise ExtraMissing(f"Tablestore needs its SDK: pip install {PACKAGE}") from error
    try:
        client = OTSClient(
            place.endpoint,
            place.access_key,
            place.secret_key,
            place.instance,
            sts_token=place.token or None,
            socket_timeout=place.timeout_s,
            max_connection=_CONNECTIONS,
            retry_policy=WriteRetryPolicy(),
        )
    except OTSError as error:
        raise Fault(f"the settings are not those of a Tablestore instance: {_short(str(error))}") from error
    # Rows are put over rows, so that any call may be sent twice.
    client.connection.pool.connection_pool_kw["retries"] = Retry(3, allowed_methods=None, backoff_factor=0.3)
    protocol = client.protocol
    protocol.api_list = [*protocol.api_list, _SPLITS]
    for api, (_, answer) in _messages().items():
        protocol.encoder.api_encode_map[api] = lambda message: message
        protocol.decoder.api_decode_map[api] = lambda body, _, answer=answer: (answer.FromString(body), None)
    return client
