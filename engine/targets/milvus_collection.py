"""One collection on its way into a Milvus cluster: made under another name, filled, proven, then given its own."""

import hashlib
from collections.abc import Iterator
from typing import Any

from engine.connections.milvus import Client, Refused
from engine.connections.milvus_columns import Column, columns, to_field
from engine.connections.milvus_documents import ALL, Document, message, plain, schema_document
from engine.connections.milvus_rows import Ending, Place, Rows
from engine.entries import Problem

TTL = "collection.ttl.seconds"
SCALING = frozenset(
    {"collection.replica.number", "collection.resource_groups", "database.replica.number", "database.resource_groups"}
)
_INDEX_FINISHED, _INDEX_FAILED = 3, 4


class Filling:
    """A collection between its schema and its last file.

    Until then it is named `_restoring_...`, so that nobody takes a part for the whole; a restore that runs again begins
    it anew. A collection that a first run has finished is not filled twice: its rows are proven instead.
    """

    def __init__(self, client: Client, database: str, name: str, suffix: str) -> None:
        self._client, self.database, self.name, self._suffix = client, database, name, suffix
        self._aside = "_restoring_" + hashlib.sha256(f"{database}/{name}{suffix}".encode()).hexdigest()[:16]
        self._done = False
        self._columns: dict[str, Column] = {}
        self._schema: Any = None
        self._expected: dict[str, Ending] = {}

    @property
    def _final(self) -> str:
        return self.name + self._suffix

    @property
    def _current(self) -> str:
        return self._final if self._done else self._aside

    def begin(self, path: bytes, document: Document, *, keep_ttl: bool) -> list[Problem]:
        """Make the collection and its partitions; return what had to be adjusted (D4, D6, D7)."""
        self._schema = message(document, self._client.protocol.schema)
        self._columns = {column.name: column for column in columns(self._schema)}
        if self.database not in self._client.databases():
            self._client.call("CreateDatabase", db_name=self.database)
        self._done = self._client.exists(self.database, self._final)
        if self._done:
            return []
        if self._client.exists(self.database, self._aside):
            self._client.call("DropCollection", db_name=self.database, collection_name=self._aside)
        left_out = document["properties"].keys() & (SCALING if keep_ttl else SCALING | {TTL})
        told = [f"the property {key} ({document['properties'][key]}) is left out" for key in sorted(left_out)]
        properties = {key: value for key, value in document["properties"].items() if key not in left_out}
        if self._schema.autoID or any(field.autoID for field in self._schema.fields):
            told.append("keys are not given by the server any more: the restored rows keep theirs")
        wanted = {**document, "properties": properties}
        self._create(wanted)
        told += self._partitions(document["partitions"])
        made = plain(schema_document(self._client, self.database, self._aside))
        told += [f"the server made it otherwise: {line}" for line in differences(self._expected_plain(wanted), made)]
        return [Problem(path, "adjusted", line, lost=False) for line in told]

    def _create(self, wanted: Document) -> None:
        schema = self._fresh()
        keyed = any(field.is_partition_key for field in schema.fields)
        shards = max(int(wanted["shards"]), 1)
        while True:
            try:
                self._client.call(
                    "CreateCollection",
                    retry=False,
                    db_name=self.database,
                    collection_name=self._aside,
                    schema=schema.SerializeToString(),
                    shards_num=shards,
                    consistency_level=wanted["consistency_level"],
                    properties=[{"key": key, "value": value} for key, value in sorted(wanted["properties"].items())],
                    num_partitions=wanted["num_partitions"] if keyed else 0,
                )
                return
            except Refused as refused:
                # A smaller cluster takes fewer (D7); how many is only in the message.
                if shards == 1 or "shard" not in str(refused).lower():
                    raise
                shards //= 2

    def _fresh(self) -> Any:
        """Return the schema as a new collection's: without the old server's numbers, with keys given by us."""
        schema = type(self._schema)()
        schema.CopyFrom(self._schema)
        schema.name, schema.dbName, schema.version, schema.autoID = self._aside, "", 0, False
        kept = [field for field in schema.fields if not field.is_dynamic]
        del schema.fields[:]
        schema.fields.extend(kept)
        for field in schema.fields:
            field.fieldID, field.autoID = 0, False
            field.ClearField("state")
        for function in schema.functions:
            function.id = 0
            function.ClearField("input_field_ids")
            function.ClearField("output_field_ids")
        return schema

    def _expected_plain(self, wanted: Document) -> Document:
        from google.protobuf import json_format  # comes with pymilvus

        schema = json_format.MessageToDict(self._fresh(), preserving_proto_field_name=True)
        return plain({**wanted, "schema": schema})

    def _partitions(self, wanted: list[str]) -> list[str]:
        """Make the partitions that are not there."""
        if any(field.is_partition_key for field in self._schema.fields):
            return []
        held = self._client.partitions(self.database, self._aside)
        for name in sorted(set(wanted) - set(held)):
            self._client.call(
                "CreatePartition", db_name=self.database, collection_name=self._aside, partition_name=name
            )
        return []

    def insert(self, partition: str, batches: list[Any]) -> None:
        """Insert record batches, unless a first run has done so. Raises Refused, ValueError."""
        import pyarrow as pa

        unknown = set(batches[0].schema.names) - self._columns.keys()
        if unknown:
            raise ValueError(
                f"the rows have the field {min(unknown)}, which the schema lacks: it changed during backup"
            )
        if self._done:
            return
        whole = pa.concat_batches(batches)
        fields = [
            to_field(self._columns[name], array, self._client.protocol.schema)
            for name, array in zip(whole.schema.names, whole.columns, strict=True)
        ]
        answer = self._client.call(
            "Insert",
            retry=False,
            db_name=self.database,
            collection_name=self._aside,
            partition_name="" if partition == ALL else partition,
            fields_data=fields,
            num_rows=whole.num_rows,
        )
        if answer.insert_cnt != whole.num_rows:
            raise ValueError(f"the server took {answer.insert_cnt} of {whole.num_rows} rows")

    def expect(self, partition: str, ending: Ending) -> None:
        """Remember what a partition's rows must be."""
        self._expected[partition] = ending

    def drop(self) -> None:
        """Drop what is not whole."""
        if not self._done:
            self._client.call("DropCollection", db_name=self.database, collection_name=self._aside)

    def finish(self, path: bytes, document: Document, *, prove: bool) -> list[Problem]:
        """Flush, index, load, prove the rows, and give the collection its name and aliases."""
        if not self._done:
            self._flush()
            self._index(document["indexes"])
        problems = list(self._prove(path, document, prove=prove))
        if any(problem.lost for problem in problems):
            return problems
        if not self._done:
            self._client.call(
                "RenameCollection", db_name=self.database, oldName=self._aside, newName=self._final, retry=False
            )
            self._done = True
            if document["loaded"] and not problems and not self._client.loaded(self.database, self._final):
                self._client.load(self.database, self._final)  # Lite forgets that it was when the name changes
        return problems + list(self._aliases(path, document["aliases"]))

    def _flush(self) -> None:
        answer = self._client.call("Flush", db_name=self.database, collection_names=[self._aside])
        segments = answer.coll_segIDs[self._aside].data if self._aside in answer.coll_segIDs else []
        asked: dict[str, Any] = {"db_name": self.database, "collection_name": self._aside, "segmentIDs": segments}
        asked["flush_ts"] = answer.coll_flush_ts.get(self._aside, 0)
        for _ in self._client.waiting(f"flushing {self._final}"):
            if self._client.call("GetFlushState", **asked).flushed:
                return

    def _index(self, wanted: list[Document]) -> None:
        for index in wanted:
            pairs = [{"key": key, "value": value} for key, value in sorted(index["params"].items()) if value != "NONE"]
            self._client.call(
                "CreateIndex",
                db_name=self.database,
                collection_name=self._aside,
                field_name=index["field"],
                index_name=index["name"],
                extra_params=pairs,
            )
        for _ in self._client.waiting(f"indexing {self._final}"):
            states = {index.state: index for index in self._client.indexes(self.database, self._aside)}
            if _INDEX_FAILED in states:
                failed = states[_INDEX_FAILED]
                raise Refused(f"the index {failed.index_name} can't be built: {failed.index_state_fail_reason}")
            if states.keys() <= {_INDEX_FINISHED}:
                return

    def _prove(self, path: bytes, document: Document, *, prove: bool) -> Iterator[Problem]:
        """Load the collection, compare its rows with the backup's, leave it in the state that it had."""
        if not (prove or document["loaded"]):
            return
        try:
            self._client.load(self.database, self._current)
        except Refused as refused:
            # One without an index, for example: Milvus doesn't load it.
            yield Problem(path, "unverified", f"its rows can't be read to compare them: {refused}", lost=False)
            return
        for partition, wanted in sorted(self._expected.items()) if prove else ():
            place = Place(self.database, self._current, "" if partition == ALL else partition)
            described = self._client.describe(self.database, self._current).schema
            found = Rows(self._client, place, described, reload=self._reload).drain()
            if found != wanted:
                told = f"{found.rows} of {wanted.rows} rows" if found.rows != wanted.rows else "their content differs"
                name = f"the partition {partition} of {self._final}"
                left = "" if self._done else f"; it is left under the name {self._aside}"
                yield Problem(path, "write-failed", f"{name} is not what was backed up: {told}{left}")
        if not document["loaded"]:
            self._client.release(self.database, self._current)

    def _reload(self) -> None:
        self._client.load(self.database, self._current)

    def _aliases(self, path: bytes, wanted: list[str]) -> Iterator[Problem]:
        held = self._client.aliases(self.database, self._final)
        for alias in (name + self._suffix for name in wanted):
            if alias in held:
                continue
            try:
                self._client.call("CreateAlias", db_name=self.database, collection_name=self._final, alias=alias)
            except Refused as refused:
                yield Problem(path, "adjusted", f"the alias {alias} is left out: {refused}", lost=False)


def differences(wanted: Any, made: Any, where: str = "") -> list[str]:
    """Return in which places two JSON values differ, for people."""
    if isinstance(wanted, dict) and isinstance(made, dict):
        return [
            line
            for key in sorted(wanted.keys() | made.keys())
            for line in differences(wanted.get(key), made.get(key), f"{where}.{key}" if where else str(key))
        ]
    if isinstance(wanted, list) and isinstance(made, list) and len(wanted) == len(made):
        return [
            line
            for number, (one, other) in enumerate(zip(wanted, made, strict=True))
            for line in differences(one, other, f"{where}[{number}]")
        ]
    return [] if wanted == made else [f"{where} is {made!r} instead of {wanted!r}"]
