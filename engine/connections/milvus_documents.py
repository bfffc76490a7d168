"""The files of a Milvus point: their names, in the order in which a restore needs them, and what the JSON ones hold.

    cluster.json
    databases/<db>/0-database.json
    databases/<db>/collections/<collection>/0-schema.json
    databases/<db>/collections/<collection>/rows/<partition>/rows.arrow
    databases/<db>/collections/<collection>/z-finish.json
    zz-rbac.json

Names are percent-encoded where they hold anything but letters, digits, `_`, `.`, `-` and `~`.
"""

import hashlib
import json
from typing import Any, NamedTuple
from urllib.parse import quote, unquote

from engine.connections.milvus import Client, Unsupported
from engine.connections.milvus_columns import Unkept, columns
from engine.errors import UnsafePath

CLUSTER, DATABASES, RBAC = b"cluster.json", b"databases", b"zz-rbac.json"
DATABASE, COLLECTIONS = b"0-database.json", b"collections"
SCHEMA, ROWS, ROWS_FILE, FINISH = b"0-schema.json", b"rows", b"rows.arrow", b"z-finish.json"
ALL = "_all"  # in the place of a partition's name where a key chooses the partition
FORMAT = 1
# The numbers that a server gives by itself; a restored collection has others.
_OWN_NUMBERS = ("fieldID", "id", "input_field_ids", "output_field_ids", "version", "dbName", "state")

Document = dict[str, Any]


class File(NamedTuple):
    """What a path of a point means: `kind` is one of the file names above, empty for a folder."""

    kind: bytes
    database: str = ""
    collection: str = ""
    partition: str = ""


def component(name: str) -> bytes:
    """Return a name as a part of a path."""
    quoted = quote(name, safe="")
    return (quoted.replace(".", "%2E") if quoted in (".", "..") else quoted).encode()


def collection_path(database: str, collection: str) -> bytes:
    return b"/".join((DATABASES, component(database), COLLECTIONS, component(collection)))


def meaning(path: bytes) -> File:
    """Return what a path means. Raises UnsafePath for one that is none of a Milvus point's."""
    parts = path.split(b"/")
    names = [unquote(part.decode("ascii", "replace")) for part in parts]
    if path in (CLUSTER, RBAC):
        return File(path)
    if parts[0] == DATABASES:
        if len(parts) == 3 and parts[2] == DATABASE:
            return File(DATABASE, names[1])
        if len(parts) == 5 and parts[2] == COLLECTIONS and parts[4] in (SCHEMA, FINISH):
            return File(parts[4], names[1], names[3])
        if len(parts) == 7 and (parts[2], parts[4], parts[6]) == (COLLECTIONS, ROWS, ROWS_FILE):
            return File(ROWS_FILE, names[1], names[3], names[5])
    raise UnsafePath(f"{path.decode(errors='replace')} is no part of a Milvus cluster's backup")


def encoded(document: Document) -> bytes:
    """Return a document as JSON for people: sorted keys, indented."""
    return json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False).encode() + b"\n"


def digest(data: bytes) -> int:
    """Return 64 bits that tell one version of a document from another; never 0."""
    return int.from_bytes(hashlib.sha256(data).digest()[:8], "big") or 1


def cluster_document(client: Client, snapshots: bool | None) -> Document:
    """Say what was backed up, and honestly how consistent it is. `snapshots` is None where no collection tells."""
    told = {
        True: "Each partition is read as of one moment (a timestamp of the server); partitions differ by seconds.",
        False: "The server gives no snapshots: each page of rows is read as it is then, while writing goes on.",
        None: "No collection could be asked whether the server gives snapshots.",
    }
    return {
        "format": FORMAT,
        "server_version": client.version(),
        "consistency": f"Crash-consistent per collection. {told[snapshots]}",
        "excluded": ["passwords", "autoscaling settings", "indexes' contents (they are built again)"],
    }


def database_document(client: Client, database: str) -> Document:
    try:
        properties = client.call("DescribeDatabase", db_name=database).properties
    except Unsupported:
        properties = []
    return {"name": database, "properties": {pair.key: pair.value for pair in properties}}


def schema_document(client: Client, database: str, collection: str) -> Document:
    """Return a collection's whole description. Raises Refused (no_collection)."""
    from google.protobuf import json_format  # comes with pymilvus

    told = client.describe(database, collection)
    return {
        "name": collection,
        "collection_id": told.collectionID,
        "schema": json_format.MessageToDict(told.schema, preserving_proto_field_name=True),
        "shards": told.shards_num,
        "consistency_level": told.consistency_level,
        "properties": {pair.key: pair.value for pair in told.properties},
        "num_partitions": told.num_partitions,
        "partitions": client.partitions(database, collection),
    }


def message(document: Document, schema: Any) -> Any:
    """Return a document's schema as the message CollectionSchema; `schema` is the module of messages.

    Raises ValueError for what is none.
    """
    from google.protobuf import json_format

    try:
        return json_format.ParseDict(document["schema"], schema.CollectionSchema(), ignore_unknown_fields=True)
    except json_format.ParseError as error:
        raise ValueError(f"the schema can't be read: {error}") from None


def row_partitions(document: Document, schema: Any) -> list[str]:
    """Return the names under which a collection's rows are kept. Raises Unkept where they can't be."""
    told = message(document, schema)
    if not columns(told):
        raise Unkept("it has no fields")
    if any(field.is_partition_key for field in told.fields):
        return [ALL]
    return list(document["partitions"])


def finish_document(client: Client, database: str, collection: str, *, loaded: bool) -> Document:
    """Return what is done once the rows are there: indexes, aliases, load state."""
    hidden = ("total_rows", "indexed_rows")
    indexes = [
        {
            "name": index.index_name,
            "field": index.field_name,
            "params": {pair.key: pair.value for pair in index.params if pair.key not in hidden},
        }
        for index in client.indexes(database, collection)
    ]
    indexes.sort(key=lambda index: (index["field"], index["name"]))
    return {"indexes": indexes, "aliases": client.aliases(database, collection), "loaded": loaded}


def rbac_document(client: Client) -> Document | None:
    """Return users (never a password), roles, grants and privilege groups; None where the server has none of it."""
    from google.protobuf import json_format

    try:
        meta = client.call("BackupRBAC", request="BackupRBACMetaRequest").RBAC_meta
    except Unsupported:
        return None
    for user in meta.users:
        user.password = ""
    document: Document = json_format.MessageToDict(meta, preserving_proto_field_name=True)
    return document


def plain(document: Document) -> Document:
    """Return a collection's description without the numbers that a server gives by itself, to compare two of them."""
    return {
        "schema": _plain({key: value for key, value in document["schema"].items() if key != "name"}),
        "shards": document["shards"],
        "consistency_level": document["consistency_level"],
        "properties": document["properties"],
        "partitions": document["partitions"],
    }


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items() if key not in _OWN_NUMBERS}
    return [_plain(one) for one in value] if isinstance(value, list) else value
