"""A Milvus server, by its protocol: calls with time-outs, and errors told in the engine's words.

The messages are those that the package pymilvus carries; its client is not used, because rows travel here column by
column, and because its way to page breaks on keys with quotes. Works for Milvus, Zilliz Cloud and Milvus Lite's server.
"""

import base64
import time
from collections.abc import Iterator
from types import ModuleType
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from engine import halt
from engine.errors import (
    EngineError,
    ExtraMissing,
    SourceDenied,
    SourceError,
    SourceUnavailable,
    TargetDenied,
    TargetError,
    TargetUnavailable,
)

PORT = 19530
TIMEOUT_S = 60.0
WAIT_S = 1800.0  # for what the server does on its own after an answer: loading, indexing, flushing
LOADED = 3  # LoadState
_MESSAGE_BYTES = 512 << 20
_TRIES = 3
_PAUSE_S = 0.5
_NO_COLLECTION, _NO_INDEX, _NOT_LOADED = (4, 100), (11, 700), (101, 106)
_DENIED = (1400, 1401)
_RATE_LIMIT = (8, 49)


class Refused(SourceError, TargetError):
    """The server answered that it won't: `code` is Milvus's own, 0 when the call itself failed."""

    def __init__(self, message: str, *, code: int = 0) -> None:
        super().__init__(message)
        self.code = code

    @property
    def no_collection(self) -> bool:
        return self.code in _NO_COLLECTION

    @property
    def not_loaded(self) -> bool:
        return self.code in _NOT_LOADED


class Unsupported(Refused):
    """The server does not know this call: an older one, or Milvus Lite."""


class TooMuch(Refused):
    """The answer would be larger than the server or this side takes."""


class Side(NamedTuple):
    """The errors by which a failure is told: a source's or a target's."""

    denied: type[EngineError]
    unavailable: type[EngineError]


SOURCE = Side(SourceDenied, SourceUnavailable)
TARGET = Side(TargetDenied, TargetUnavailable)


class Endpoint(NamedTuple):
    """Where and as whom: `uri` is http(s)://host[:port]; `token` is "user:password" or an API key, empty for none.

    `ca` is a certificate (PEM) to trust beside the system's, for https.
    """

    uri: str
    token: str
    ca: str
    timeout_s: float

    @property
    def address(self) -> str:
        """Return host:port. Raises SourceError for what is no such address."""
        try:
            parts = urlsplit(self.uri)
            host, port = parts.hostname, parts.port or (443 if parts.scheme == "https" else PORT)
        except ValueError as error:
            raise SourceError(f"{self.uri!r} is no address of a Milvus server: {error}") from None
        if parts.scheme not in ("http", "https") or not host or parts.username or parts.password:
            raise SourceError(
                f"the Milvus server's address must be like http://host:{PORT} or https://host, without a user and"
                " without a password: those are the token"
            )
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class Protocol(NamedTuple):
    """The generated modules of Milvus's protocol, and gRPC."""

    grpc: ModuleType
    milvus: ModuleType
    schema: ModuleType
    stubs: ModuleType


def protocol() -> Protocol:
    """Load pymilvus's messages, which takes a second, and gRPC. Raises ExtraMissing."""
    try:
        import grpc
        import pyarrow  # noqa: F401  # used by the modules of columns and rows
        from pymilvus.grpc_gen import milvus_pb2, milvus_pb2_grpc, schema_pb2
    except ImportError as error:
        raise ExtraMissing(
            "Milvus needs the packages pymilvus and pyarrow: pip install pymilvus==3.0.2 pyarrow==26.0.1"
        ) from error
    return Protocol(grpc, milvus_pb2, schema_pb2, milvus_pb2_grpc)


class Client:
    """Calls of one server. Safe to share among threads, never across a fork. Close it."""

    def __init__(self, endpoint: Endpoint, side: Side) -> None:
        self._side, self._endpoint = side, endpoint
        self.protocol = protocol()
        self._address = endpoint.address
        options = [("grpc.max_receive_message_length", _MESSAGE_BYTES), ("grpc.max_send_message_length", -1)]
        grpc = self.protocol.grpc
        if endpoint.uri.startswith("https:"):
            trusted = grpc.ssl_channel_credentials(root_certificates=endpoint.ca.encode() or None)
            self._channel = grpc.secure_channel(self._address, trusted, options=options)
        else:
            self._channel = grpc.insecure_channel(self._address, options=options)
        self._stub: Any = self.protocol.stubs.MilvusServiceStub(self._channel)

    def close(self) -> None:
        self._channel.close()

    def call(self, verb: str, *, retry: bool = True, request: str = "", **fields: Any) -> Any:
        """Return the answer to an RPC; `fields` are those of the message `request`, by default `<verb>Request`.

        Waits out rate limits, and tries again after a broken connection unless `retry` is off (for what adds rows).
        Raises Refused, Unsupported, TooMuch, and the side's denied and unavailable.
        """
        message = getattr(self.protocol.milvus, request or f"{verb}Request")(**fields)
        metadata = [("dbname", fields["db_name"])] if fields.get("db_name") else []
        if self._endpoint.token:
            metadata.append(("authorization", base64.b64encode(self._endpoint.token.encode()).decode()))
        deadline_s = time.monotonic() + self._endpoint.timeout_s
        for attempt in range(1, 1000):
            try:
                answer = getattr(self._stub, verb)(message, timeout=self._endpoint.timeout_s, metadata=metadata)
            except self.protocol.grpc.RpcError as error:
                if attempt < _TRIES and retry and error.code() == self.protocol.grpc.StatusCode.UNAVAILABLE:
                    halt.sleep(_PAUSE_S * attempt)
                    continue
                raise self._failure(verb, error) from None
            status = getattr(answer, "status", answer)
            if not (status.code or status.error_code):
                return answer
            limited = status.code in _RATE_LIMIT or status.error_code in _RATE_LIMIT
            if not limited or time.monotonic() > deadline_s:
                raise self._refusal(verb, status)
            halt.sleep(_PAUSE_S)
        raise AssertionError("a deadline ends every loop of tries")

    def _failure(self, verb: str, error: Any) -> EngineError:
        codes = self.protocol.grpc.StatusCode
        said = " ".join(str(error.details()).split())[:400]
        if error.code() in (codes.UNAUTHENTICATED, codes.PERMISSION_DENIED):
            return self._side.denied(f"the Milvus server at {self._address} refuses {verb}: {said}")
        if error.code() == codes.UNIMPLEMENTED:
            return Unsupported(f"the Milvus server at {self._address} does not know {verb}")
        if error.code() == codes.RESOURCE_EXHAUSTED:
            return TooMuch(f"the answer to {verb} is too large: {said}")
        if error.code() == codes.DEADLINE_EXCEEDED:
            said = f"it did not answer {verb} within {self._endpoint.timeout_s:g} s"
        return self._side.unavailable(f"the Milvus server at {self._address} can't be used: {said}")

    def _refusal(self, verb: str, status: Any) -> EngineError:
        said, code = " ".join(status.reason.split())[:400], status.code or status.error_code
        if code in _DENIED:
            return self._side.denied(f"the Milvus server at {self._address} refuses {verb}: {said}")
        if status.retriable or code in _RATE_LIMIT:
            return self._side.unavailable(f"the Milvus server at {self._address} can't do {verb} now: {said}")
        kind = TooMuch if "exceed" in said and "size" in said.lower() else Refused
        return kind(f"the Milvus server at {self._address} refuses {verb}: {said}", code=code)

    def version(self) -> str:
        return str(self.call("GetVersion").version)

    def databases(self) -> list[str]:
        """Return the names of all databases; a server without databases has the one named default."""
        try:
            return sorted(self.call("ListDatabases").db_names)
        except Unsupported:
            return ["default"]

    def collections(self, database: str) -> list[str]:
        return sorted(self.call("ShowCollections", db_name=database).collection_names)

    def describe(self, database: str, collection: str) -> Any:
        """Return a DescribeCollectionResponse. Raises Refused (no_collection)."""
        return self.call("DescribeCollection", db_name=database, collection_name=collection)

    def exists(self, database: str, collection: str) -> bool:
        if database not in self.databases():
            return False
        try:
            self.describe(database, collection)
        except Refused as refused:
            if refused.no_collection:
                return False
            raise
        return True

    def partitions(self, database: str, collection: str) -> list[str]:
        return sorted(self.call("ShowPartitions", db_name=database, collection_name=collection).partition_names)

    def indexes(self, database: str, collection: str) -> list[Any]:
        """Return IndexDescriptions, none without an index."""
        try:
            answer = self.call("DescribeIndex", db_name=database, collection_name=collection)
        except Refused as refused:
            if refused.code in _NO_INDEX:
                return []
            raise
        return list(answer.index_descriptions)

    def aliases(self, database: str, collection: str) -> list[str]:
        return sorted(self.call("ListAliases", db_name=database, collection_name=collection).aliases)

    def loaded(self, database: str, collection: str) -> bool:
        return bool(self._load_state(database, collection) == LOADED)

    def _load_state(self, database: str, collection: str) -> int:
        return int(self.call("GetLoadState", db_name=database, collection_name=collection).state)

    def load(self, database: str, collection: str) -> None:
        """Load a collection and wait until it can be read. Raises Refused, for one without an index for example."""
        self.call("LoadCollection", db_name=database, collection_name=collection, replica_number=1)
        for _ in self.waiting(f"loading {collection}"):
            if self.loaded(database, collection):
                return

    def release(self, database: str, collection: str) -> None:
        self.call("ReleaseCollection", db_name=database, collection_name=collection)

    def waiting(self, what: str) -> Iterator[None]:
        """Yield again and again, ever more slowly; raise the side's unavailable after half an hour."""
        end_s, pause_s = time.monotonic() + WAIT_S, 0.05
        while time.monotonic() < end_s:
            yield
            halt.sleep(pause_s)
            pause_s = min(pause_s * 1.5, 5.0)
        raise self._side.unavailable(f"the Milvus server at {self._address} is not done with {what} after {WAIT_S:g} s")
