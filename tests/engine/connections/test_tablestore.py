"""Tablestore through the vendor's SDK, against the contract test double: ranges, versions, refusals, patience."""

import math
import time
from collections.abc import Iterator
from typing import Any

import pytest

from engine import halt
from engine.connections.rows import decode_cells, encode_cells
from engine.connections.tables import Denied, Fault, Gone, Range, Schema, Silent
from engine.connections.tablestore import Tablestore, TablestoreService
from tests.support.tablestore_server import TablestoreServer
from tests.support.wide_columns import TablestoreLab, ts

EVER = 10**8


@pytest.fixture
def server() -> Iterator[TablestoreServer]:
    server = TablestoreServer()
    yield server
    server.stop()


@pytest.fixture
def lab(server: TablestoreServer) -> TablestoreLab:
    return TablestoreLab(server)


@pytest.fixture
def service(lab: TablestoreLab) -> TablestoreService:
    return TablestoreService(lab.place())


def table_of(lab: TablestoreLab, kind: str, keys: list[Any], *, name: str = "t", size: int = 40_000) -> Schema:
    """Make a table whose first key column has these values, and whose rows have `size` bytes; return its schema."""
    options = ts.TableOptions(-1, 1, EVER)
    lab.client.create_table(
        ts.TableMeta(name, [("k", kind), ("n", "INTEGER")]), options, ts.ReservedThroughput(ts.CapacityUnit(0, 0))
    )
    for number, key in enumerate(keys):
        row = ts.Row([("k", key), ("n", number)], [("data", bytearray(size), 5 * 10**11)])
        table = lab.server.tables[name]
        table.put(row.primary_key, row.attribute_columns)
    return TablestoreService(lab.place()).describe(name).schema


def read(service: TablestoreService, name: str, schema: Schema, part: Range) -> list[Any]:
    return [decode_cells(line)[0][0][1] for page in service.pages(name, schema, part) for line in page.lines]


@pytest.mark.parametrize(
    ("kind", "keys"),
    [
        ("INTEGER", sorted([-(1 << 63), -5, -1, 0, 1, 7, (1 << 63) - 1] * 9)),
        ("STRING", sorted(["", "-", "a-b", "é" * 40, "é" * 40 + "x", "x" * 31 + "a", "x" * 31 + "é", "z/%"] * 9)),
        ("BINARY", sorted([bytearray(), bytearray(b"\0"), bytearray(b"\xff" * 50), bytearray(b"-/%")] * 9)),
    ],
)
def test_ranges_cover_every_row_once_in_order_whatever_the_keys_are(
    lab: TablestoreLab, kind: str, keys: list[Any]
) -> None:
    schema = table_of(lab, kind, keys, size=10)
    lab.server.split_bytes = 1  # at every row
    service = TablestoreService(lab.place())
    ranges = service.ranges("t", schema)
    assert [part.number for part in ranges] == list(range(1, len(ranges) + 1))
    assert len({part.total for part in ranges}) == 1
    assert [key for part in ranges for key in read(service, "t", schema, part)] == keys
    assert len(ranges) > 2


def test_the_boundaries_stay_when_rows_come_in_between(lab: TablestoreLab) -> None:
    schema = table_of(lab, "STRING", [f"u{number:03}" for number in range(100)])
    service = TablestoreService(lab.place(), range_mib=1)
    before = service.ranges("t", schema)
    assert [part.name for part in before][:2] == ["0001-of-0004-to-u027.jsonl", "0002-of-0004-from-u027-to-u054.jsonl"]
    lab.server.tables["t"].put([("k", "u000"), ("n", 1000)], [("data", 1, 5)])
    assert service.ranges("t", schema) == before


def test_all_versions_of_a_cell_are_read_and_pages_follow_each_other(
    lab: TablestoreLab, service: TablestoreService
) -> None:
    lab.make("users", 25)
    lab.server.page_rows = 10
    schema = service.describe("users").schema
    pages = list(service.pages("users", schema, Range()))
    assert [len(page.lines) for page in pages] == [10, 10, 5]
    _, cells = decode_cells(pages[0].lines[0])
    assert [(name, value) for name, value, _ in cells if name == "text"] == [("text", "a text 0"), ("text", "older 0")]


def test_every_value_goes_through_the_sdk_and_back_unchanged(lab: TablestoreLab, service: TablestoreService) -> None:
    lab.make("users")
    schema = service.describe("users").schema
    values: list[Any] = [
        0,
        1,
        -1,
        (1 << 63) - 1,
        -(1 << 63),
        0.0,
        -0.0,
        1.0,
        5e-324,
        1.7976931348623157e308,
        math.inf,
        -math.inf,
    ]
    values += [math.nan, True, False, "", "Zoë \U0001f600 \x00", "1", bytearray(), bytearray(range(256))]
    cells: list[Any] = [(f"c{number:02}", value, 1_700_000_000_000 + number) for number, value in enumerate(values)]
    line = encode_cells([("part", "é"), ("number", -(1 << 63))], cells)
    service.create("users", schema)  # cells of any age
    assert service.put("users", schema, [line]) == []
    assert [read for page in service.pages("users", schema, Range()) for read in page.lines] == [line]


def test_a_row_that_is_wider_than_an_answer_is_no_half_row(lab: TablestoreLab, service: TablestoreService) -> None:
    lab.make("users", 3)
    lab.server.wide = True
    with pytest.raises(Fault, match="too wide"):
        list(service.pages("users", service.describe("users").schema, Range()))


def test_a_wrong_secret_and_an_unknown_key_are_denied(lab: TablestoreLab) -> None:
    with pytest.raises(Denied, match="Signature mismatch"):
        TablestoreService(lab.place(secret_key="another")).tables()
    unknown = Tablestore(endpoint=lab.server.endpoint, instance="shop", access_key="who", secret_key="SK")
    with pytest.raises(Denied, match="does not exist"):
        TablestoreService(unknown).tables()


def test_an_answer_that_the_service_did_not_sign_is_not_believed(
    lab: TablestoreLab, service: TablestoreService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.support.tablestore_server.mac", lambda secret, text: "forged")
    with pytest.raises((Silent, Denied)):
        service.tables()


def test_a_table_that_is_not_there_is_gone_and_holds_no_rows(service: TablestoreService) -> None:
    with pytest.raises(Gone):
        service.describe("nothing")
    assert not service.holds_rows("nothing")


@pytest.mark.parametrize("endpoint", ["shop.example.org", "ftp://shop.example.org", ""])
def test_an_address_without_its_scheme_is_refused_with_what_to_do(endpoint: str) -> None:
    with pytest.raises(Fault, match=r"http|end_point"):
        TablestoreService(Tablestore(endpoint=endpoint, instance="shop", access_key="a", secret_key="b"))


def test_throttled_reads_and_rows_are_sent_again(
    lab: TablestoreLab, service: TablestoreService, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.make("users", 3)
    schema = service.describe("users").schema
    lines = [line for page in service.pages("users", schema, Range()) for line in page.lines]
    for module in (time, halt):  # of the vendor's program, and of this one
        monkeypatch.setattr(module, "sleep", lambda seconds: None)
    lab.server.busy = 4
    assert len([line for page in service.pages("users", schema, Range()) for line in page.lines]) == 3
    lab.server.busy, lab.server.busy_rows = 2, 5
    assert service.put("users", schema, lines) == []
    assert lab.server.busy == lab.server.busy_rows == 0


def test_what_is_throttled_for_ever_ends_as_silent(
    lab: TablestoreLab, service: TablestoreService, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.make("users", 3)
    schema = service.describe("users").schema
    for module in (time, halt):  # of the vendor's program, and of this one
        monkeypatch.setattr(module, "sleep", lambda seconds: None)
    lab.server.busy = 10**6
    with pytest.raises(Silent, match="busy"):
        list(service.pages("users", schema, Range()))
    lab.server.busy, lab.server.busy_rows = 0, 10**6
    with pytest.raises(Silent, match="has taken 1 rows in none of 9 tries"):
        service.put("users", schema, [encode_cells([("part", "p"), ("number", 1)], [])])


def test_rows_that_the_service_refuses_are_told_and_the_others_written(
    lab: TablestoreLab, service: TablestoreService
) -> None:
    lab.make("users")
    schema = service.describe("users").schema
    now_ms = int(time.time() * 1000)
    right = [encode_cells([("part", "p"), ("number", number)], [("text", "x", now_ms)]) for number in range(3)]
    wrong = [encode_cells([("part", 5), ("number", 5)], [])]
    [said] = service.put("users", schema, right[:2] + wrong + right[2:])
    assert "OTSInvalidPK" in said
    assert len(lab.content("users")) == 3


def test_cells_older_than_the_table_allows_are_taken_while_it_is_restored(
    lab: TablestoreLab, service: TablestoreService
) -> None:
    """A table takes no versions beyond its time deviation, and drops what is beyond its time to live."""
    options = ts.TableOptions(86400, 1, 3600)
    lab.client.create_table(ts.TableMeta("t", [("k", "STRING")]), options, ts.ReservedThroughput(ts.CapacityUnit(0, 0)))
    schema = service.describe("t").schema
    old = encode_cells([("k", "a")], [("c", 1, 1)])
    assert "time deviation" in service.put("t", schema, [old])[0]
    assert not service.create("t", schema)
    assert service.put("t", schema, [old]) == []
    assert [line for page in service.pages("t", schema, Range()) for line in page.lines] == [old]
    assert service.settle("t", schema) == []
    assert service.describe("t").schema == schema


def test_a_table_of_another_key_is_not_written_into(lab: TablestoreLab, service: TablestoreService) -> None:
    lab.make("users")
    schema = table_of(lab, "STRING", [])
    with pytest.raises(Fault, match="another primary key"):
        service.create("users", schema)


def test_a_description_makes_the_same_table_again_with_indexes_streams_and_encryption(
    lab: TablestoreLab, service: TablestoreService
) -> None:
    meta = ts.TableMeta("full", [("k", "STRING"), ("n", "INTEGER")], [("a", "STRING"), ("b", "DOUBLE")])
    index = ts.SecondaryIndexMeta("by_a", ["a"], ["b"], ts.SecondaryIndexType.LOCAL_INDEX)
    lab.client.create_table(
        meta,
        ts.TableOptions(86400 * 9, 1, 500, False),
        ts.ReservedThroughput(ts.CapacityUnit(3, 4)),
        [index],
        ts.SSESpecification(True, ts.SSEKeyType.SSE_KMS_SERVICE),
    )
    split = ts.FieldSchema("a", ts.FieldType.TEXT, analyzer="split", analyzer_parameter=ts.SplitAnalyzerParameter("-"))
    lab.client.create_search_index("full", "words", ts.SearchIndexMeta([split]))
    lab.server.tables["full"].stream = _stream(168)
    schema = service.describe("full").schema
    assert service.create("again", schema)
    assert service.settle("again", schema) == []
    again = service.describe("again").schema
    assert again == schema | {"table": "again"}
    assert again["after"]["search_indexes"][0]["schema"]["field_schemas"][0]["analyzer"] == "split"
    assert again["create"]["reserved_throughput"]["capacity_unit"] == {"read": 3, "write": 4}
    assert again["after"]["stream_spec"]["expiration_time"] == 168
    assert service.settle("again", schema) == []  # twice, as after a lost worker


def test_a_key_that_counts_by_itself_becomes_a_plain_one_and_that_is_told(
    lab: TablestoreLab, service: TablestoreService
) -> None:
    meta = ts.TableMeta("log", [("k", "STRING"), ("n", "INTEGER", ts.PK_AUTO_INCR)])
    lab.client.create_table(meta, ts.TableOptions(), ts.ReservedThroughput(ts.CapacityUnit(0, 0)))
    schema = service.describe("log").schema
    assert service.create("log2", schema)
    assert service.put("log2", schema, [encode_cells([("k", "a"), ("n", 1)], [])]) == []
    [missed] = service.settle("log2", schema)
    assert "AUTO_INCREMENT" in missed


def test_an_index_that_can_not_be_built_is_told_and_the_rest_is_set(
    lab: TablestoreLab, service: TablestoreService
) -> None:
    lab.make("users")
    schema = service.describe("users").schema
    index = {
        "name": "i",
        "primary_key": ["text"],
        "index_update_mode": "IUM_ASYNC_INDEX",
        "index_type": "IT_GLOBAL_INDEX",
    }
    schema["after"]["index_metas"] = [index]
    [missed] = service.settle("users", schema)
    assert missed.startswith("the secondary index i: Only tables of one version")


def _stream(hours: int) -> Any:
    from tablestore.protobuf import table_store_pb2 as pb

    return pb.StreamSpecification(enable_stream=True, expiration_time=hours)
