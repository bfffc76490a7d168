"""A Milvus cluster as a target: collections are filled aside and get their names once their rows are proven."""

import contextlib
import json
from functools import cached_property
from typing import Any

from engine.connections.milvus import TARGET, TIMEOUT_S, Client, Endpoint, Refused
from engine.connections.milvus_documents import (
    CLUSTER,
    DATABASE,
    DATABASES,
    FINISH,
    RBAC,
    ROWS_FILE,
    SCHEMA,
    Document,
    meaning,
)
from engine.connections.milvus_rows import Batches
from engine.entries import Entry, Kind, Problem
from engine.errors import EngineError, TargetNotEmpty, UnsafePath
from engine.perprocess import PerProcess
from engine.targets.milvus_collection import SCALING, Filling
from engine.targets.milvus_rights import restore_rights
from engine.targets.port import BaseTarget, Writer

_INSERT_BYTES = 4 << 20
_DOCUMENT_BYTES_MAX = 256 << 20


class MilvusTarget(BaseTarget, frozen=True, tag="milvus", kw_only=True):
    """The cluster at `uri`, as MilvusSource names it. Databases are made where they are missing.

    Nothing that exists is touched: a collection whose name is taken is refused, unless a `suffix` gives the restored
    ones and their aliases other names. `keep_ttl` restores the time to live of collections, which is left out
    otherwise (D4). `prove` reads every restored row again and compares.
    """

    uri: str
    token: str = ""
    ca: str = ""
    suffix: str = ""
    keep_ttl: bool = False
    prove: bool = True
    timeout_s: float = TIMEOUT_S

    def __repr__(self) -> str:
        return f"MilvusTarget({self.uri!r})"

    @property
    def one_by_one(self) -> bool:
        """Say yes: rows need their schema, and indexes the rows."""
        return True

    def chain(self, path: bytes) -> bytes:
        """Return the collection's folder: one that fails leaves the others alone."""
        parts = path.split(b"/")
        return b"/".join(parts[:4]) if len(parts) > 4 else path

    def where(self) -> str:
        return self.uri

    def check(self) -> None:
        """Raise TargetDenied, TargetUnavailable, or ExtraMissing without the packages that it takes."""
        self._client.databases()

    @property
    def _client(self) -> Client:
        return self._connected()

    @cached_property
    def _connected(self) -> PerProcess[Client]:
        return PerProcess(lambda: Client(Endpoint(self.uri, self.token, self.ca, self.timeout_s), TARGET))

    def existing(self, path: bytes) -> int | None:
        """Raise TargetNotEmpty for a collection whose name is taken: parts of two can't be mixed.

        Folders stand always, so that every file is asked for.
        """
        try:
            file = meaning(path)
        except UnsafePath:
            return Kind.DIRECTORY if path.split(b"/")[0] == DATABASES else None
        if file.kind == SCHEMA and self._client.exists(file.database, file.collection + self.suffix):
            raise TargetNotEmpty(
                f"the collection {file.collection + self.suffix} of the database {file.database} is there already:"
                " drop or rename it, restore others only, or give the restored ones a suffix"
            )
        return None

    def create(self, entry: Entry) -> Writer:
        """Begin a file. Rows are inserted as they come in; the others are acted upon when they are whole."""
        file = meaning(entry.path)
        if file.kind == ROWS_FILE:
            return _RowsWriter(self._filling(file.database, file.collection), file.partition)
        return _DocumentWriter(self, entry)

    def act(self, entry: Entry, data: bytes) -> list[Problem]:
        """Do what a whole document tells. Raises OSError for one that is damaged, or that this server refuses."""
        file = meaning(entry.path)
        try:
            document: Document = json.loads(data)
            if file.kind == DATABASE:
                return self._make_database(entry.path, file.database, document)
            if file.kind == SCHEMA:
                self._drop_unfinished()
                filling = Filling(self._client, file.database, file.collection, self.suffix)
                self.__dict__["filling"] = filling
                return filling.begin(entry.path, document, keep_ttl=self.keep_ttl)
            if file.kind == FINISH:
                filling = self._filling(file.database, file.collection)
                del self.__dict__["filling"]
                return filling.finish(entry.path, document, prove=self.prove)
            if file.kind == RBAC:
                return restore_rights(self._client, entry.path, document)
        except (Refused, ValueError, KeyError, TypeError) as error:
            raise OSError(f"it can't be restored: {error}") from error
        assert file.kind == CLUSTER  # for people
        return []

    def _filling(self, database: str, collection: str) -> Filling:
        filling = self.__dict__.get("filling")
        if isinstance(filling, Filling) and (filling.database, filling.name) == (database, collection):
            return filling
        raise OSError(f"the schema of {collection} was not restored before: restore the collection's whole folder")

    def _drop_unfinished(self) -> None:
        """Drop the collection before, when it did not come to its end: something of it was damaged."""
        filling = self.__dict__.pop("filling", None)
        if isinstance(filling, Filling):
            with contextlib.suppress(Refused):  # it is not there any more
                filling.drop()

    def _make_database(self, path: bytes, database: str, document: Document) -> list[Problem]:
        wanted = {key: value for key, value in document["properties"].items() if key not in SCALING}
        problems = [
            Problem(path, "adjusted", f"{key} is left out: it belongs to the old cluster's scaling", lost=False)
            for key in sorted(document["properties"].keys() & SCALING)
        ]
        if database not in self._client.databases():
            pairs = [{"key": key, "value": value} for key, value in sorted(wanted.items())]
            self._client.call("CreateDatabase", db_name=database, properties=pairs)
        elif wanted:
            held = {pair.key: pair.value for pair in self._client.call("DescribeDatabase", db_name=database).properties}
            if any(held.get(key) != value for key, value in wanted.items()):
                told = f"the database {database} was there already and keeps its properties"
                problems.append(Problem(path, "adjusted", told, lost=False))
        return problems


class _DocumentWriter:
    """Gathers a JSON file; its commit acts upon it."""

    def __init__(self, target: MilvusTarget, entry: Entry) -> None:
        self._target, self._entry, self._data = target, entry, bytearray()

    def write(self, data: memoryview, offset: int) -> None:
        self._data += data
        if len(self._data) > _DOCUMENT_BYTES_MAX:
            raise OSError("it is too large for what it should be")

    def commit(self) -> list[Problem]:
        return self._target.act(self._entry, bytes(self._data))

    def abort(self) -> None: ...


class _RowsWriter:
    """Inserts the rows of one partition as they come in. What it began is dropped when it is aborted."""

    def __init__(self, filling: Filling, partition: str) -> None:
        self._filling, self._partition = filling, partition
        self._batches = Batches()
        self._pending: list[Any] = []
        self._bytes = 0

    def write(self, data: memoryview, offset: int) -> None:
        """Insert what is whole. Raises OSError for a damaged stream, or rows that this server refuses."""
        try:
            for batch in self._batches.add(data):
                self._pending.append(batch)
                self._bytes += batch.nbytes
                if self._bytes >= _INSERT_BYTES:
                    self._insert()
        except (Refused, ValueError) as error:
            raise OSError(f"the rows can't be restored: {error}") from error

    def commit(self) -> list[Problem]:
        """Insert the rest; the rows are proven once the collection is finished."""
        try:
            ending = self._batches.prove()
            self._insert()
        except (Refused, ValueError) as error:
            self.abort()
            raise OSError(f"the rows can't be restored: {error}") from error
        self._filling.expect(self._partition, ending)
        return []

    def _insert(self) -> None:
        pending, self._pending, self._bytes = self._pending, [], 0
        if pending:
            self._filling.insert(self._partition, pending)

    def abort(self) -> None:
        with contextlib.suppress(EngineError):  # the first error is the one to tell
            self._filling.drop()
