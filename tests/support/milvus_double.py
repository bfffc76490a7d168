"""Milvus Lite with what it lacks of a Milvus cluster, as Milvus documents it: a token, snapshots, limits, users.

A test double where Lite has nothing to test against; everything else of it is Lite itself.
"""

import base64
import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
from milvus_lite.adapter.grpc.servicer import MilvusServicer
from milvus_lite.db import MilvusLite
from pymilvus.grpc_gen import common_pb2, milvus_pb2, milvus_pb2_grpc

TOKEN = "root:secret"
SNAPSHOT_TS = 4711
SHARDS_MAX = 2


class Double(MilvusServicer):
    """What the server does beyond Lite. `page_rows` bounds an answer, `calls` keeps what was asked.

    `backwards` turns keys around, `spoil_inserts` changes a value of what is inserted, `has_decimals` describes a field
    of a type that nobody knows yet. `busy` counts the queries still to be put off, `largest` is the largest page that
    it sends, `released` are collections that it calls not loaded, and without `loads_without_index` it loads as a real
    Milvus does.
    """

    def __init__(self, database: MilvusLite) -> None:
        super().__init__(database)
        self.page_rows = 1 << 30
        self.backwards = False
        self.has_decimals = False
        self.shards: dict[str, int] = {}
        self.timestamps: list[int] = []
        self.calls: list[tuple[str, Any]] = []
        self.rights = milvus_pb2.RBACMeta()
        self.spoil_inserts = False
        self.busy = 0
        self.largest = 1 << 30
        self.loads_without_index = True
        self.released: set[str] = set()

    def Query(self, request: Any, context: Any) -> Any:
        self.timestamps.append(request.guarantee_timestamp)
        if self.busy:
            self.busy -= 1
            said = "rate limit exceeded[rate=1]"
            return milvus_pb2.QueryResults(status=common_pb2.Status(code=8, reason=said, retriable=True))
        for pair in request.query_params:
            if pair.key == "limit" and int(pair.value) > self.largest:
                context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "grpc: trying to send message larger than max")
            if pair.key == "limit":
                pair.value = str(min(int(pair.value), self.page_rows))
        answer = super().Query(request, context)
        if not request.guarantee_timestamp:
            answer.session_ts = SNAPSHOT_TS
        if self.backwards:
            for field in answer.fields_data:
                if field.field_name == "id":
                    field.scalars.long_data.data[:] = list(field.scalars.long_data.data)[::-1]
        return answer

    def Insert(self, request: Any, context: Any) -> Any:
        if self.spoil_inserts:
            for field in request.fields_data:
                if field.field_name == "small":
                    field.scalars.int_data.data[0] = 1 + field.scalars.int_data.data[0] % 100
        return super().Insert(request, context)

    def CreateCollection(self, request: Any, context: Any) -> Any:
        if request.shards_num > SHARDS_MAX:
            said = f"maximum shards's number should be limited to {SHARDS_MAX}"
            return common_pb2.Status(error_code=1, code=1100, reason=said)
        self.calls.append(("CreateCollection", request.shards_num))
        return super().CreateCollection(request, context)

    def DescribeCollection(self, request: Any, context: Any) -> Any:
        answer = super().DescribeCollection(request, context)
        answer.shards_num = self.shards.get(request.collection_name, answer.shards_num)
        if self.has_decimals:
            answer.schema.fields[2].data_type = 30
        return answer

    def LoadCollection(self, request: Any, context: Any) -> Any:
        indexes = self.DescribeIndex(milvus_pb2.DescribeIndexRequest(collection_name=request.collection_name), context)
        if not self.loads_without_index and not indexes.index_descriptions:
            return common_pb2.Status(error_code=1, code=700, reason="index not found")
        return super().LoadCollection(request, context)

    def GetLoadState(self, request: Any, context: Any) -> Any:
        answer = super().GetLoadState(request, context)
        if request.collection_name in self.released:
            answer.state = common_pb2.LoadStateNotLoad
        return answer

    def BackupRBAC(self, request: Any, context: Any) -> Any:
        return milvus_pb2.BackupRBACMetaResponse(RBAC_meta=self.rights)

    def CreateCredential(self, request: Any, context: Any) -> Any:
        return self._made("CreateCredential", request)

    def CreateRole(self, request: Any, context: Any) -> Any:
        return self._made("CreateRole", request)

    def OperateUserRole(self, request: Any, context: Any) -> Any:
        return self._made("OperateUserRole", request)

    def OperatePrivilege(self, request: Any, context: Any) -> Any:
        return self._made("OperatePrivilege", request)

    def CreatePrivilegeGroup(self, request: Any, context: Any) -> Any:
        return self._made("CreatePrivilegeGroup", request)

    def OperatePrivilegeGroup(self, request: Any, context: Any) -> Any:
        return self._made("OperatePrivilegeGroup", request)

    def _made(self, verb: str, request: Any) -> Any:
        self.calls.append((verb, request))
        return common_pb2.Status()


class _Gate(grpc.ServerInterceptor):
    """Refuses calls without the token, as Milvus does."""

    def intercept_service(self, continuation: Any, details: Any) -> Any:
        wanted = base64.b64encode(TOKEN.encode()).decode()
        if dict(details.invocation_metadata).get("authorization") == wanted:
            return continuation(details)

        def refuse(request: Any, context: Any) -> None:
            said = "auth check failure, please check username and password are correct"
            context.abort(grpc.StatusCode.UNAUTHENTICATED, said)

        return grpc.unary_unary_rpc_method_handler(refuse)


@contextlib.contextmanager
def double(
    folder: Path, *, locked: bool = False, tls: tuple[bytes, bytes] | None = None
) -> Iterator[tuple[Double, str]]:
    """Give a server on loopback and its address; `locked` ones ask for TOKEN, `tls` is a key and its certificate."""
    database = MilvusLite(str(folder))
    server = grpc.server(ThreadPoolExecutor(4), interceptors=[_Gate()] if locked else [])
    servicer = Double(database)
    milvus_pb2_grpc.add_MilvusServiceServicer_to_server(servicer, server)
    secured = grpc.ssl_server_credentials([tls]) if tls else grpc.insecure_server_credentials()
    port = server.add_secure_port("127.0.0.1:0", secured)
    server.start()
    try:
        yield servicer, f"https://localhost:{port}" if tls else f"http://127.0.0.1:{port}"
    finally:
        server.stop(grace=None).wait()
        database.close()
