"""Two services of tables to test with, looked at by their own clients alone: none of the project's code reads here."""

import logging
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import boto3
import pytest

from engine.connections.dynamodb import DynamoDb
from engine.connections.tablestore import Tablestore
from engine.entries import Entry, Problem
from engine.sources.dynamodb import DynamoDbSource
from engine.sources.port import Reader
from engine.sources.tablestore import TablestoreSource
from engine.targets.dynamodb import DynamoDbTarget
from engine.targets.tablestore import TablestoreTarget
from tests.services import Dynamo
from tests.support.tablestore_server import TablestoreServer

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # the SDK brings a codec for another Python
    logging.getLogger("tablestore").setLevel(logging.CRITICAL)
    import tablestore as ts

__all__ = ["KINDS", "DynamoLab", "Lab", "Meddled", "TablestoreLab", "labs", "ts"]


Text = str | Callable[[int], str]


class Lab(Protocol):
    """A service with tables `<name>`: rows are told apart by a number and hold a text."""

    kind: str

    def source(self, *, door: str = "", **options: Any) -> TablestoreSource | DynamoDbSource: ...

    def target(self, *, door: str = "", **options: Any) -> TablestoreTarget | DynamoDbTarget: ...

    def make(self, table: str, rows: int = 0, *, text: Text = "") -> None: ...

    def put(self, table: str, numbers: range, *, text: Text) -> None: ...

    def delete(self, table: str, numbers: range) -> None: ...

    def drop(self, table: str) -> None: ...

    def tables(self) -> set[str]: ...

    def content(self, table: str) -> Any:
        """Return all rows with all their cells, in a shape to be compared."""
        ...

    def shape(self, table: str) -> Any:
        """Return what the table is, beside its name and when it was made."""
        ...

    def alter(self, table: str) -> None:
        """Change the table's description."""
        ...


class TablestoreLab:
    """The contract test double, through the vendor's SDK."""

    kind = "tablestore"

    def __init__(self, server: TablestoreServer) -> None:
        self.server = server
        self.client = ts.OTSClient(server.endpoint, server.access_key, server.secret_key, server.instance)

    def place(self, *, door: str = "", secret_key: str = "") -> Tablestore:
        return Tablestore(
            endpoint=f"http://{door}" if door else self.server.endpoint,
            instance=self.server.instance,
            access_key=self.server.access_key,
            secret_key=secret_key or self.server.secret_key,
            timeout_s=5,
        )

    def source(self, *, door: str = "", secret_key: str = "", **options: Any) -> TablestoreSource:
        return TablestoreSource(place=self.place(door=door, secret_key=secret_key), **options)

    def target(self, *, door: str = "", secret_key: str = "", **options: Any) -> TablestoreTarget:
        return TablestoreTarget(place=self.place(door=door, secret_key=secret_key), **options)

    def make(self, table: str, rows: int = 0, *, text: Text = "a text") -> None:
        meta = ts.TableMeta(table, [("part", "STRING"), ("number", "INTEGER")], [("text", "STRING")])
        options = ts.TableOptions(-1, 3, 10**8, True)
        self.client.create_table(meta, options, ts.ReservedThroughput(ts.CapacityUnit(0, 0)))
        self.put(table, range(rows), text=text)

    def put(self, table: str, numbers: range, *, text: Text) -> None:
        """Put rows with two versions of a column, and cells of every type."""
        now_ms = int(time.time() * 1000)
        for at in range(0, len(numbers), 200):
            items = []
            for number in numbers[at : at + 200]:
                cells = [
                    ("text", _text(text, number), now_ms),
                    ("text", f"older {number}", now_ms - 7),
                    ("raw", bytearray(b"\0\xff\n"), now_ms - 1),
                    ("ratio", -0.0, now_ms),
                    ("big", -(1 << 63), now_ms),
                    ("yes", True, now_ms),
                ]
                items.append(ts.PutRowItem(ts.Row(self._key(number), cells), ts.Condition("IGNORE")))
            request = ts.BatchWriteRowRequest()
            request.add(ts.TableInBatchWriteRowItem(table, items))
            assert self.client.batch_write_row(request).is_all_succeed()

    def _key(self, number: int) -> list[tuple[str, Any]]:
        return [("part", f"p{number // 50:04}"), ("number", number)]

    def delete(self, table: str, numbers: range) -> None:
        rows = self.server.tables[table]
        for known in [key for key in rows.order if key[1][1] in numbers]:
            rows.order.remove(known)
            del rows.rows[known]

    def drop(self, table: str) -> None:
        self.client.delete_table(table)

    def tables(self) -> set[str]:
        return set(self.client.list_table())

    def content(self, table: str) -> Any:
        edges = ([(name, edge) for name in ("part", "number")] for edge in (ts.INF_MIN, ts.INF_MAX))
        start, end = edges
        found: dict[Any, Any] = {}
        while start:
            _, start, rows, _ = self.client.get_range(table, "FORWARD", start, end, max_version=100)
            found |= {tuple(row.primary_key): row.attribute_columns for row in rows}
        return found

    def shape(self, table: str) -> Any:
        told = self.client.describe_table(table)
        return (
            told.table_meta.schema_of_primary_key,
            told.table_meta.defined_columns,
            vars(told.table_options),
            sorted(vars(index)["index_name"] for index in told.secondary_indexes),
        )

    def alter(self, table: str) -> None:
        self.client.update_table(table, ts.TableOptions(86400 * 30, 3, 10**8, True))


class DynamoLab:
    """dynalite, through boto3."""

    kind = "dynamodb"

    def __init__(self, service: Dynamo) -> None:
        self.service = service
        self.client = boto3.client(
            "dynamodb",
            endpoint_url=service.url,
            region_name=service.region,
            aws_access_key_id=service.access_key,
            aws_secret_access_key=service.secret_key,
        )

    def place(self, *, door: str = "") -> DynamoDb:
        return DynamoDb(
            region=self.service.region,
            access_key=self.service.access_key,
            secret_key=self.service.secret_key,
            endpoint=f"http://{door}" if door else self.service.url,
            timeout_s=5,
            tries=2,
        )

    def source(self, *, door: str = "", **options: Any) -> DynamoDbSource:
        return DynamoDbSource(place=self.place(door=door), **options)

    def target(self, *, door: str = "", **options: Any) -> DynamoDbTarget:
        return DynamoDbTarget(place=self.place(door=door), **options)

    def make(self, table: str, rows: int = 0, *, text: Text = "a text") -> None:
        def key(*names: str) -> list[dict[str, str]]:
            return [
                {"AttributeName": name, "KeyType": kind} for name, kind in zip(names, ("HASH", "RANGE"), strict=False)
            ]

        everything = {"Projection": {"ProjectionType": "ALL"}}
        self.client.create_table(
            TableName=table,
            KeySchema=key("part", "number"),
            AttributeDefinitions=[
                {"AttributeName": name, "AttributeType": kind}
                for name, kind in (("part", "S"), ("number", "N"), ("text", "S"))
            ],
            BillingMode="PAY_PER_REQUEST",
            GlobalSecondaryIndexes=[{"IndexName": "by-text", "KeySchema": key("text"), **everything}],
            LocalSecondaryIndexes=[{"IndexName": "part-text", "KeySchema": key("part", "text"), **everything}],
        )
        self.client.get_waiter("table_exists").wait(TableName=table, WaiterConfig={"Delay": 0.05, "MaxAttempts": 99})
        arn = self.client.describe_table(TableName=table)["Table"]["TableArn"]
        self.client.tag_resource(ResourceArn=arn, Tags=[{"Key": "cost", "Value": "centre 5"}])
        self.put(table, range(rows), text=text)

    def put(self, table: str, numbers: range, *, text: Text) -> None:
        """Put items with values of every type."""
        for at in range(0, len(numbers), 25):
            requests = []
            for number in numbers[at : at + 25]:
                item = {
                    **self._key(number),
                    "text": {"S": _text(text, number)},
                    "raw": {"B": b"\0\xff\n"},
                    "exact": {"N": "12345678901234567890.123456789012345678"},
                    "names": {"SS": ["b", "a"]},
                    "nothing": {"NULL": True},
                    "deep": {"M": {"z": {"L": [{"BOOL": False}, {"NS": ["10", "9"]}]}, "a": {"BS": [b"2", b"1"]}}},
                }
                requests.append({"PutRequest": {"Item": item}})
            assert not self.client.batch_write_item(RequestItems={table: requests})["UnprocessedItems"]

    def _key(self, number: int) -> dict[str, dict[str, str]]:
        return {"part": {"S": f"p{number // 50:04}"}, "number": {"N": str(number)}}

    def delete(self, table: str, numbers: range) -> None:
        for number in numbers:
            self.client.delete_item(TableName=table, Key=self._key(number))

    def drop(self, table: str) -> None:
        self.client.delete_table(TableName=table)
        self.client.get_waiter("table_not_exists").wait(
            TableName=table, WaiterConfig={"Delay": 0.05, "MaxAttempts": 99}
        )

    def tables(self) -> set[str]:
        return set(self.client.list_tables()["TableNames"])

    def content(self, table: str) -> Any:
        pages = self.client.get_paginator("scan").paginate(TableName=table, ConsistentRead=True)
        return {(item["part"]["S"], item["number"]["N"]): _unordered(item) for page in pages for item in page["Items"]}

    def shape(self, table: str) -> Any:
        told = self.client.describe_table(TableName=table)["Table"]
        tags = self.client.list_tags_of_resource(ResourceArn=told["TableArn"])["Tags"]
        indexes = {
            one["IndexName"]: (one["KeySchema"], one["Projection"])
            for kind in ("GlobalSecondaryIndexes", "LocalSecondaryIndexes")
            for one in told[kind]
        }
        kinds = sorted((one["AttributeName"], one["AttributeType"]) for one in told["AttributeDefinitions"])
        return told["KeySchema"], kinds, told["BillingModeSummary"]["BillingMode"], indexes, tags

    def alter(self, table: str) -> None:
        arn = self.client.describe_table(TableName=table)["Table"]["TableArn"]
        self.client.tag_resource(ResourceArn=arn, Tags=[{"Key": "altered", "Value": "yes"}])


class Meddled:
    """A source while which is read something happens: after its walk, and after each opening."""

    def __init__(
        self,
        source: TablestoreSource | DynamoDbSource,
        *,
        walked: Callable[[], None] = lambda: None,
        opened: Callable[[Entry], None] = lambda entry: None,
    ) -> None:
        self._source, self._walked, self._opened = source, walked, opened

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)

    def walk(self) -> Iterator[Entry | Problem]:
        found = list(self._source.walk())
        self._walked()
        yield from found

    def open(self, entry: Entry) -> Reader | Problem:
        found = self._source.open(entry)
        self._opened(entry)
        return found


KINDS = ("tablestore", "dynamodb")


def labs(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """Give one of KINDS, without tables, to a fixture with them as its parameters."""
    if request.param == "tablestore":
        server = TablestoreServer()
        yield TablestoreLab(server)
        server.stop()
        return
    lab = DynamoLab(request.getfixturevalue("dynalite_service"))
    for table in lab.tables():
        lab.drop(table)
    yield lab


def _text(text: Text, number: int) -> str:
    return f"{text} {number}" if isinstance(text, str) else text(number)


def _unordered(value: Any) -> Any:
    """Return an item whose sets have one order."""
    if isinstance(value, dict):
        return {
            name: sorted(inner) if name in ("SS", "NS", "BS") else _unordered(inner) for name, inner in value.items()
        }
    return [_unordered(one) for one in value] if isinstance(value, list) else value
