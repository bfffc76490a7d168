"""A Milvus cluster as a source: every database, schema, row, index and alias, and who may do what.

Rows are streams that are read anew each time, in the order of their keys, so that the vault takes only what changed.
"""

import contextlib
from collections.abc import Callable, Iterator
from functools import cached_property

import msgspec

from engine.connections.milvus import SOURCE, TIMEOUT_S, Client, Endpoint, Refused
from engine.connections.milvus_columns import Unkept
from engine.connections.milvus_documents import (
    ALL,
    CLUSTER,
    COLLECTIONS,
    DATABASE,
    DATABASES,
    FINISH,
    RBAC,
    ROWS,
    ROWS_FILE,
    SCHEMA,
    Document,
    File,
    cluster_document,
    collection_path,
    component,
    database_document,
    digest,
    encoded,
    finish_document,
    meaning,
    message,
    rbac_document,
    row_partitions,
    schema_document,
)
from engine.connections.milvus_rows import Place, Rows
from engine.entries import Entry, Kind, Problem
from engine.errors import SourceDenied
from engine.perprocess import PerProcess
from engine.sources.port import BaseSource, Identity, Reader, Span
from engine.sources.stream import StreamReader, stream_entry

# What a walked entry carries of its collection as it was then, in `rdev`, which files don't use: a collection that is
# not loaded is loaded to be read, and its last stream to be opened puts that back.
_WAS_LOADED, _WAS_RELEASED, _WAS_RELEASED_AND_IS_LAST = 0, 1, 2


class MilvusSource(BaseSource, frozen=True, tag="milvus", kw_only=True):
    """The cluster at `uri` (http://host:19530 or https://host), as whoever `token` says: user:password or an API key.

    `ca` is a certificate in PEM to trust for https. `rbac` off leaves out users and roles, which takes rights that an
    account for backups may not have. Each call ends after `timeout_s`.
    """

    uri: str
    token: str = ""
    ca: str = ""
    rbac: bool = True
    timeout_s: float = TIMEOUT_S

    def __repr__(self) -> str:
        return f"MilvusSource({self.uri!r})"

    def identity(self) -> Identity:
        return Identity("milvus", "", [self.uri])

    def check(self) -> None:
        """Raise SourceDenied, SourceUnavailable, or ExtraMissing without the packages that it takes."""
        self._client.databases()

    @property
    def _client(self) -> Client:
        return self._connected()

    @cached_property
    def _connected(self) -> PerProcess[Client]:
        return PerProcess(lambda: Client(Endpoint(self.uri, self.token, self.ca, self.timeout_s), SOURCE))

    def walk(self) -> Iterator[Entry | Problem]:
        """Yield the cluster's files. A collection that goes away meanwhile is left out."""
        yield _file(CLUSTER, self._cluster())
        yield _folder(DATABASES)
        for database in sorted(self._client.databases(), key=component):
            folder = DATABASES + b"/" + component(database)
            yield _folder(folder)
            yield _file(folder + b"/" + DATABASE, database_document(self._client, database))
            yield _folder(folder + b"/" + COLLECTIONS)
            for collection in sorted(self._client.collections(database), key=component):
                with contextlib.suppress(_Gone):
                    yield from self._collection(database, collection)
        if self.rbac:
            yield from self._rights()

    def _cluster(self) -> Document:
        return cluster_document(self._client, self._snapshots())

    def _snapshots(self) -> bool | None:
        """Ask the first collection that is loaded whether the server reads as of one moment."""
        for database in self._client.databases():
            for collection in self._client.collections(database):
                with contextlib.suppress(Refused):
                    options = [{"key": "limit", "value": "1"}, {"key": "iterator", "value": "True"}]
                    return bool(
                        self._client.call(
                            "Query", db_name=database, collection_name=collection, expr="", query_params=options
                        ).session_ts
                    )
        return None

    def _collection(self, database: str, collection: str) -> Iterator[Entry | Problem]:
        folder = collection_path(database, collection)
        with _present():
            described = schema_document(self._client, database, collection)
            loaded = self._client.loaded(database, collection)
            finish = finish_document(self._client, database, collection, loaded=loaded)
        yield _folder(folder)
        yield _file(folder + b"/" + SCHEMA, described)
        yield from self._rows(folder, described, loaded=loaded)
        entry = _file(folder + b"/" + FINISH, finish)
        entry.rdev = _WAS_LOADED if loaded else _WAS_RELEASED
        yield entry

    def _rows(self, folder: bytes, described: Document, *, loaded: bool) -> Iterator[Entry | Problem]:
        try:
            partitions = sorted(row_partitions(described, self._client.protocol.schema), key=component)
        except Unkept as unkept:
            yield Problem(folder + b"/" + ROWS, "unreadable", f"its rows are not kept: {unkept}")
            return
        yield _folder(folder + b"/" + ROWS)
        for partition in partitions:
            yield _folder(b"/".join((folder, ROWS, component(partition))))
            entry = stream_entry(b"/".join((folder, ROWS, component(partition), ROWS_FILE)))
            entry.inode = digest(encoded(described))
            if not loaded:
                entry.rdev = _WAS_RELEASED_AND_IS_LAST if partition == partitions[-1] else _WAS_RELEASED
            yield entry

    def _rights(self) -> Iterator[Entry | Problem]:
        try:
            document = rbac_document(self._client)
        except SourceDenied as error:
            yield Problem(RBAC, "unreadable", f"{error}; or let the backup leave users and roles out")
            return
        if document is not None:
            yield _file(RBAC, document)

    def read_small(self, entry: Entry, limit: int) -> tuple[Entry, bytes] | Problem | None:
        """Return a JSON file as the server would have it now."""
        if meaning(entry.path).kind == ROWS_FILE:
            return None
        made = self._document(entry)
        if isinstance(made, Problem):
            return made
        return (_walked(entry, made), made) if len(made) <= limit else None

    def open(self, entry: Entry) -> Reader | Problem:
        """Open a partition's rows or a JSON file. A collection that was dropped since the walk is a Problem."""
        file = meaning(entry.path)
        if file.kind == ROWS_FILE:
            return self._stream(entry, file)
        made = self._document(entry)
        return made if isinstance(made, Problem) else _Whole(_walked(entry, made), made)

    def _document(self, entry: Entry) -> bytes | Problem:
        file = meaning(entry.path)
        makers: dict[bytes, Callable[[], Document | None]] = {
            CLUSTER: self._cluster,
            DATABASE: lambda: database_document(self._client, file.database),
            SCHEMA: lambda: schema_document(self._client, file.database, file.collection),
            FINISH: lambda: finish_document(
                self._client, file.database, file.collection, loaded=entry.rdev == _WAS_LOADED
            ),
            RBAC: lambda: rbac_document(self._client),
        }
        try:
            made = makers[file.kind]()
        except Refused as refused:
            if refused.no_collection or (file.database and file.database not in self._client.databases()):
                return Problem(entry.path, "vanished", "it was dropped while the backup ran")
            raise
        return Problem(entry.path, "vanished", "the server has it no more") if made is None else encoded(made)

    def _stream(self, entry: Entry, file: File) -> StreamReader | Problem:
        holder = _Loaded(self._client, file, entry.rdev)
        try:
            with _present():
                described = schema_document(self._client, file.database, file.collection)
            if entry.rdev != _WAS_LOADED:
                holder.load()
            place = Place(file.database, file.collection, "" if file.partition == ALL else file.partition)
            schema = message(described, self._client.protocol.schema)
            rows = Rows(self._client, place, schema, reload=holder.load)
        except _Gone:
            return Problem(entry.path, "vanished", "its collection was dropped while the backup ran")
        except Refused as refused:
            return Problem(entry.path, "unreadable", f"its rows can't be read: {refused}")
        producer = _Producer(rows, holder, entry)
        return StreamReader(msgspec.structs.replace(entry), producer, producer.prove)


class _Gone(Exception):
    """A collection is not there any more."""


@contextlib.contextmanager
def _present() -> Iterator[None]:
    """Turn the server's refusal because of a collection that is not there into _Gone."""
    try:
        yield
    except Refused as refused:
        if refused.no_collection:
            raise _Gone from refused
        raise


class _Loaded:
    """Loads a collection to be read, and puts its state back."""

    def __init__(self, client: Client, file: File, was: int) -> None:
        self.client, self._database, self._collection = client, file.database, file.collection
        self._was, self._again = was, 0

    def load(self) -> None:
        """Load it: also when somebody, another worker of this run perhaps, released it meanwhile."""
        self.client.load(self._database, self._collection)
        self._again += 1

    def put_back(self, *, broken: bool) -> None:
        """Release what was released before, when this was its last stream, the run fails, or it was loaded twice."""
        if self._was == _WAS_LOADED:
            return
        if broken or self._again > 1 or self._was == _WAS_RELEASED_AND_IS_LAST:
            with contextlib.suppress(Refused):  # it was dropped meanwhile
                self.client.release(self._database, self._collection)


class _Producer:
    """Rows whose end is proven by the collection's description being the one that was walked."""

    def __init__(self, rows: Rows, holder: _Loaded, entry: Entry) -> None:
        self._rows, self._holder, self._entry = rows, holder, entry
        self._proven = False

    def readinto(self, view: memoryview) -> int:
        """Read on. Raises OSError when the server refuses this collection alone: it was dropped, perhaps."""
        try:
            return self._rows.readinto(view)
        except Refused as refused:
            gone = "it was dropped while it was read" if refused.no_collection else str(refused)
            raise OSError(gone) from None

    def prove(self) -> bool:
        """Say whether the collection is another than was walked, by its description (D27)."""
        self._proven = True
        file = meaning(self._entry.path)
        try:
            described = schema_document(self._holder.client, file.database, file.collection)
        except Refused:
            return True  # the next reading will tell why
        return digest(encoded(described)) != self._entry.inode

    def close(self) -> None:
        self._holder.put_back(broken=not self._proven)


class _Whole:
    """A JSON file as an open file (the Reader port)."""

    def __init__(self, entry: Entry, data: bytes) -> None:
        self.entry, self._data = entry, data

    def __enter__(self) -> "_Whole":
        return self

    def __exit__(self, *exc: object) -> None: ...

    def readinto(self, view: memoryview, offset: int) -> int:
        piece = self._data[offset : offset + len(view)]
        view[: len(piece)] = piece
        return len(piece)

    def spans(self, start: int, end: int) -> list[Span]:
        length = min(end, len(self._data)) - start
        return [Span(start, length, hole=False)] if length > 0 else []

    def changed(self) -> bool:
        return False


def _folder(path: bytes) -> Entry:
    return Entry(path, Kind.DIRECTORY, 0o700)


def _file(path: bytes, document: Document) -> Entry:
    data = encoded(document)
    return Entry(path, Kind.FILE, 0o600, size=len(data), inode=digest(data))


def _walked(entry: Entry, data: bytes) -> Entry:
    return msgspec.structs.replace(entry, size=len(data), inode=digest(data))
