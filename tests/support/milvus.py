"""Milvus Lite servers of a test's own, data to put into them, and a look at all of it through pymilvus alone."""

import contextlib
import json
import logging
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pymilvus import DataType, MilvusClient

from tests.scenarios.installation import free_port

DIMENSIONS = 128

logging.getLogger("pymilvus").setLevel(logging.CRITICAL)
logging.getLogger("pymilvus.decorators").setLevel(logging.CRITICAL)  # a traceback for every call that Lite lacks


class Lite:
    """A server on loopback. Only one may use a folder at a time."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._port = folder, free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Start it and wait until it answers."""
        program = Path(sys.executable).parent / "milvus-lite"
        command = [str(program), "server", "--data-dir", str(self._folder)]
        command += ["--host", "127.0.0.1", "--port", str(self._port)]
        with self._folder.with_suffix(".log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        end = time.monotonic() + 60
        while time.monotonic() < end and self._process.poll() is None:
            with contextlib.suppress(Exception):
                MilvusClient(self.uri, timeout=2).close()
                return
            time.sleep(0.2)
        raise AssertionError(self._folder.with_suffix(".log").read_text()[-800:])

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        assert self._process is not None
        self._process.send_signal(number)
        self._process.wait(20)

    def pause(self) -> None:
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGSTOP)


@contextlib.contextmanager
def lite(folder: Path) -> Iterator[Lite]:
    """Give a fresh server that goes away with the test."""
    server = Lite(folder)
    server.start()
    try:
        yield server
    finally:
        server.kill()


def client(uri: str, database: str = "default") -> MilvusClient:
    return MilvusClient(uri, timeout=20, db_name=database, dedicated=True)


def empty(uri: str) -> None:
    """Drop everything."""
    one = client(uri)
    for database in one.list_databases():
        one.use_database(database)
        for name in one.list_collections():
            for alias in one.list_aliases(name)["aliases"]:
                one.drop_alias(alias)
            one.drop_collection(name)
        if database != "default":
            one.use_database("default")
            one.drop_database(database)
    one.close()


def items(count: int, *, seed: int = 1, start: int = 0) -> list[dict[str, Any]]:
    """Return rows of the collection `items`, always the same for a seed, some fields null."""
    chance = random.Random(seed)
    return [
        {
            "id": start + number,
            "name": f'item {number} "quoted" \\ ü',
            "small": chance.randrange(-128, 128),
            "price": chance.random() if number % 3 else None,
            "ratio": -0.0 if number % 5 == 0 else chance.random(),
            "sold": bool(number % 2),
            "note": {"b": number, "a": [1, {"z": None}]} if number % 4 else None,
            "tags": [number, number + 1] if number % 7 else None,
            "words": ["x", f"w{number}"],
            "vector": [chance.random() for _ in range(DIMENSIONS)],
            "sparse": {chance.randrange(1000): chance.random() for _ in range(4)},
            "extra": number,
            "more": {"k": "v"},
        }
        for number in range(count)
    ]


def make_items(one: MilvusClient, name: str = "items") -> None:
    """Make a collection with every kind of field that Lite has, and a partition."""
    schema = one.create_schema(enable_dynamic_field=True)
    schema.add_field("id", DataType.INT64, is_primary=True)
    schema.add_field("name", DataType.VARCHAR, max_length=100)
    schema.add_field("small", DataType.INT8)
    schema.add_field("price", DataType.DOUBLE, nullable=True)
    schema.add_field("ratio", DataType.FLOAT, default_value=0.5)
    schema.add_field("sold", DataType.BOOL)
    schema.add_field("note", DataType.JSON, nullable=True)
    schema.add_field("tags", DataType.ARRAY, element_type=DataType.INT64, max_capacity=8, nullable=True)
    schema.add_field("words", DataType.ARRAY, element_type=DataType.VARCHAR, max_capacity=8, max_length=40)
    schema.add_field("vector", DataType.FLOAT_VECTOR, dim=DIMENSIONS)
    schema.add_field("sparse", DataType.SPARSE_FLOAT_VECTOR)
    one.create_collection(name, schema=schema, properties={"collection.ttl.seconds": "864000"})
    one.create_partition(name, "north")
    indexes = one.prepare_index_params()
    indexes.add_index("vector", index_type="HNSW", metric_type="L2", M=8, efConstruction=32)
    indexes.add_index("sparse", index_type="SPARSE_INVERTED_INDEX", metric_type="IP")
    indexes.add_index("small", index_type="INVERTED")
    one.create_index(name, indexes)
    one.load_collection(name)


def make_words(one: MilvusClient, name: str = "words") -> None:
    """Make a collection with texts as keys, some of them hard to quote, that is not loaded."""
    schema = one.create_schema()
    schema.add_field("key", DataType.VARCHAR, max_length=64, is_primary=True)
    schema.add_field("vector", DataType.FLOAT_VECTOR, dim=4)
    one.create_collection(name, schema=schema)
    hard = ['"', "\\", "'", '\\"', "a\nb", "tab\t", "ü", "日本", " ", "%"]
    rows = [{"key": key, "vector": [float(number)] * 4} for number, key in enumerate(hard)]
    one.insert(name, rows + [{"key": f"w{number:04}", "vector": [0.5] * 4} for number in range(90)])
    indexes = one.prepare_index_params()
    indexes.add_index("vector", index_type="FLAT", metric_type="COSINE")
    one.create_index(name, indexes)
    one.release_collection(name)


def fill(uri: str, *, rows: int = 600) -> None:
    """Make two databases with collections, partitions, indexes, aliases and rows."""
    one = client(uri)
    make_items(one)
    data = items(rows)
    for start in range(0, rows, 2000):
        one.insert("items", [row for row in data[start : start + 2000] if row["id"] % 4])
        one.insert("items", [row for row in data[start : start + 2000] if row["id"] % 4 == 0], partition_name="north")
    one.create_alias("items", "goods")
    one.create_database("archive", properties={"database.max.collections": "10"})
    one.use_database("archive")
    make_words(one)
    one.create_collection("empty", dimension=4, auto_id=True)
    one.close()


def seen(uri: str) -> dict[str, Any]:
    """Return all that a cluster holds, as pymilvus tells it."""
    one = client(uri)
    found: dict[str, Any] = {}
    for database in sorted(one.list_databases()):
        one.use_database(database)
        collections = {name: collection(one, name) for name in sorted(one.list_collections())}
        found[database] = {"properties": one.describe_database(database), "collections": collections}
    one.close()
    return found


def collection(one: MilvusClient, name: str) -> dict[str, Any]:
    """Return one collection with all its rows; one that is not loaded is loaded for it and released again."""
    hidden = ("total_rows", "indexed_rows", "pending_index_rows", "state", "index_state_fail_reason")
    described = {key: str(value) for key, value in one.describe_collection(name).items() if key != "collection_name"}
    loaded = one.get_load_state(name)["state"].name == "Loaded"
    one.load_collection(name)
    rows = {
        partition: _rows(one, name, partition, one.describe_collection(name)["fields"][0])
        for partition in sorted(one.list_partitions(name))
    }
    if not loaded:
        one.release_collection(name)
    return {
        "described": described,
        "loaded": loaded,
        "indexes": [
            {key: value for key, value in one.describe_index(name, index).items() if key not in hidden}
            for index in sorted(one.list_indexes(name))
        ],
        "aliases": sorted(one.list_aliases(name)["aliases"]),
        "rows": rows,
    }


def _rows(one: MilvusClient, name: str, partition: str, key: dict[str, Any]) -> list[str]:
    everything = f'{key["name"]} >= ""' if key["type"] == DataType.VARCHAR else f"{key['name']} > -1000000000"
    found = one.query(name, filter=everything, output_fields=["*"], partition_names=[partition])
    return sorted(json.dumps(dict(row), sort_keys=True, default=str) for row in found)
