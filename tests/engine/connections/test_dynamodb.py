"""The DynamoDB API: real items on dynalite; what only AWS says, from a server that says just that."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from engine import halt
from engine.connections.dynamodb import DynamoDb, DynamoDbService
from engine.connections.rows import decode_item, encode_item
from engine.connections.tables import Denied, Fault, Gone, Range, Silent
from tests.services import Dynamo
from tests.support.wide_columns import DynamoLab

Answer = tuple[int, dict[str, Any]]
TABLE: dict[str, Any] = {
    "TableName": "users",
    "TableStatus": "ACTIVE",
    "CreationDateTime": 1_700_000_000.5,
    "TableArn": "arn:aws:dynamodb:eu-central-1:1:table/users",
    "TableId": "one",
    "KeySchema": [{"AttributeName": "id", "KeyType": "HASH"}],
    "AttributeDefinitions": [{"AttributeName": "id", "AttributeType": "S"}],
    "ProvisionedThroughput": {"ReadCapacityUnits": 5, "WriteCapacityUnits": 6, "NumberOfDecreasesToday": 1},
    "TableSizeBytes": 900 << 20,
    "ItemCount": 7,
}


class Stage:
    """A server that answers each call as a test wants it: no DynamoDB, only its words."""

    def __init__(self) -> None:
        self.says: dict[str, Callable[[dict[str, Any]], Answer]] = {}
        self.heard: list[tuple[str, dict[str, Any]]] = []
        stage = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                call = self.headers["X-Amz-Target"].partition(".")[2]
                stage.heard.append((call, asked))
                status, answer = stage.says[call](asked)
                body = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *arguments: object) -> None: ...

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def service(self) -> DynamoDbService:
        endpoint = f"http://127.0.0.1:{self._http.server_port}"
        place = DynamoDb(region="eu-central-1", access_key="a", secret_key="b", endpoint=endpoint, timeout_s=3)
        return DynamoDbService(place)

    def refuse(self, call: str, code: str, message: str = "no", *, status: int = 400) -> None:
        self.says[call] = lambda asked: (status, {"__type": f"com.amazonaws.dynamodb#{code}", "message": message})

    def stop(self) -> None:
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()


@pytest.fixture
def stage() -> Iterator[Stage]:
    stage = Stage()
    stage.says["DescribeTable"] = lambda asked: (200, {"Table": TABLE})
    stage.says["DescribeTimeToLive"] = lambda asked: (200, {"TimeToLiveDescription": {"TimeToLiveStatus": "DISABLED"}})
    stage.says["ListTagsOfResource"] = lambda asked: (200, {"Tags": []})
    yield stage
    stage.stop()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (time, halt):  # of the vendor's program, and of this one
        monkeypatch.setattr(module, "sleep", lambda seconds: None)


@pytest.mark.parametrize(
    "code",
    ["UnrecognizedClientException", "InvalidSignatureException", "AccessDeniedException", "ExpiredTokenException"],
)
def test_wrong_keys_and_missing_rights_are_denied(stage: Stage, code: str) -> None:
    stage.refuse("ListTables", code, "The security token included in the request is invalid.")
    with pytest.raises(Denied, match="security token"):
        stage.service().tables()


@pytest.mark.usefixtures("impatient")
def test_reads_throttled_for_ever_end_as_silent_after_retries(stage: Stage) -> None:
    stage.refuse("Scan", "ProvisionedThroughputExceededException", "exceeds the throughput")
    with pytest.raises(Silent, match="exceeds the throughput"):
        list(stage.service().pages("users", {}, Range()))
    assert len(stage.heard) == 6


@pytest.mark.usefixtures("impatient")
def test_what_a_batch_leaves_unprocessed_is_sent_again_until_patience_ends(stage: Stage) -> None:
    def take_one(asked: dict[str, Any]) -> Answer:
        return 200, {"UnprocessedItems": {"users": left} if (left := asked["RequestItems"]["users"][1:]) else {}}

    stage.says["BatchWriteItem"] = take_one
    lines = [encode_item({"id": {"S": str(number)}}) for number in range(4)]
    assert stage.service().put("users", {}, lines) == []
    assert [len(asked["RequestItems"]["users"]) for _, asked in stage.heard] == [4, 3, 2, 1]
    stage.says["BatchWriteItem"] = lambda asked: (200, {"UnprocessedItems": asked["RequestItems"]})
    with pytest.raises(Silent, match="has taken 4 items in none of 9 tries"):
        stage.service().put("users", {}, lines)


@pytest.mark.parametrize(
    "call", ["DescribeTable", "DescribeTimeToLive", "ListTagsOfResource", "Scan", "BatchWriteItem"]
)
def test_an_answer_without_content_is_no_success(stage: Stage, call: str) -> None:
    """Such an answer must not end a table, nor count rows as written."""
    stage.says[call] = lambda asked: (200, {})
    service = stage.service()

    def ask() -> None:
        match call:
            case "Scan":
                list(service.pages("users", {}, Range()))
            case "BatchWriteItem":
                service.put("users", {}, [encode_item({"id": {"S": "1"}})])
            case _:
                service.describe("users")

    with pytest.raises(Silent, match="out of its answer"):
        ask()


@pytest.mark.usefixtures("impatient")
def test_a_table_that_never_becomes_active_ends_as_silent(stage: Stage) -> None:
    stage.says["CreateTable"] = lambda asked: (200, {"TableDescription": TABLE})
    stage.says["DescribeTable"] = lambda asked: (200, {"Table": TABLE | {"TableStatus": "CREATING"}})
    with pytest.raises(Silent, match="still not active"):
        stage.service().create("users", {"create": {key: TABLE[key] for key in ("KeySchema", "AttributeDefinitions")}})


def test_a_table_of_given_throughput_is_described_without_what_changes_by_itself(stage: Stage) -> None:
    described = stage.service().describe("users")
    assert described.schema["create"]["ProvisionedThroughput"] == {"ReadCapacityUnits": 5, "WriteCapacityUnits": 6}
    assert described.created_ns == 1_700_000_000_500_000_000
    TABLE_LATER = TABLE | {"ItemCount": 8, "TableSizeBytes": 1, "TableStatus": "UPDATING"}
    stage.says["DescribeTable"] = lambda asked: (200, {"Table": TABLE_LATER})
    assert stage.service().describe("users") == described
    stage.says["DescribeTable"] = lambda asked: (200, {"Table": TABLE | {"TableId": "another"}})
    assert stage.service().describe("users") != described


def test_what_the_account_may_not_read_of_a_table_is_told(stage: Stage) -> None:
    stage.refuse("ListTagsOfResource", "AccessDeniedException", "not allowed to list tags")
    stage.refuse("DescribeTimeToLive", "UnknownOperationException")
    unread = stage.service().describe("users").unread
    assert [what.partition(":")[0] for what in unread] == ["its expiry", "its tags"]


def test_a_large_table_is_cut_into_a_power_of_two_segments(stage: Stage) -> None:
    names = [part.name for part in stage.service().ranges("users", {})]
    assert names == [f"000{number}-of-0004.jsonl" for number in (1, 2, 3, 4)]
    stage.says["Scan"] = lambda asked: (200, {"Items": []})
    list(stage.service().pages("users", {}, Range(3, 4)))
    _, asked = stage.heard[-1]
    assert (asked["Segment"], asked["TotalSegments"], asked["ConsistentRead"]) == (2, 4, True)


def test_expiry_tags_stream_and_protection_are_set_when_the_items_are_there(stage: Stage) -> None:
    after = {
        "TimeToLiveSpecification": {"Enabled": True, "AttributeName": "until"},
        "Tags": [{"Key": "a", "Value": "b"}],
        "StreamSpecification": {"StreamEnabled": True, "StreamViewType": "NEW_IMAGE"},
        "DeletionProtectionEnabled": True,
    }
    for call in ("UpdateTimeToLive", "TagResource"):
        stage.says[call] = lambda asked: (200, {})
    stage.says["UpdateTable"] = lambda asked: (200, {"TableDescription": TABLE})
    assert stage.service().settle("users", {"after": after}) == []
    told = [(call, asked) for call, asked in stage.heard if call != "DescribeTable"]
    assert [call for call, _ in told] == ["UpdateTimeToLive", "TagResource", "UpdateTable", "UpdateTable"]
    assert told[0][1]["TimeToLiveSpecification"] == after["TimeToLiveSpecification"]
    stage.refuse("UpdateTimeToLive", "UnknownOperationException")
    [missed] = stage.service().settle("users", {"after": after})
    assert missed.startswith("its expiry: ")


def test_keys_of_the_machine_are_never_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "the machine's")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "the machine's")
    with pytest.raises(Fault, match="needs an access key"):
        DynamoDbService(DynamoDb(region="eu-central-1", access_key="", secret_key=""))


def test_an_address_that_is_none_is_refused() -> None:
    with pytest.raises(Fault, match="no address of a service"):
        DynamoDbService(DynamoDb(region="x", access_key="a", secret_key="b", endpoint="no address"))


@pytest.fixture
def lab(dynalite_service: Dynamo) -> DynamoLab:
    lab = DynamoLab(dynalite_service)
    for table in lab.tables():
        lab.drop(table)
    return lab


def test_segments_together_hold_every_item_once_in_the_order_of_the_whole(lab: DynamoLab) -> None:
    """What lets the next backup find the same bytes, whether a table has been cut or not."""
    lab.make("users", 300)
    service = DynamoDbService(lab.place())
    schema = service.describe("users").schema

    def lines(part: Range) -> list[bytes]:
        return [line for page in service.pages("users", schema, part) for line in page.lines]

    whole = lines(Range())
    assert len(set(whole)) == 300
    assert [line for number in range(1, 5) for line in lines(Range(number, 4))] == whole
    lab.put("users", range(5000, 5001), text="new")
    assert [line for line in lines(Range()) if decode_item(line)["number"] != {"N": "5000"}] == whole


def test_items_that_the_service_refuses_are_found_one_by_one(lab: DynamoLab) -> None:
    lab.make("users")
    service = DynamoDbService(lab.place())
    right = [encode_item({"part": {"S": "p"}, "number": {"N": str(number)}}) for number in range(3)]
    [said] = service.put("users", {}, [*right, encode_item({"part": {"S": "no number"}})])
    assert "ValidationException" in said
    assert len(lab.content("users")) == 3


def test_a_table_of_another_key_is_not_written_into(lab: DynamoLab) -> None:
    lab.make("users")
    service = DynamoDbService(lab.place())
    text = {"AttributeName": "text"}
    keys = {"KeySchema": [text | {"KeyType": "HASH"}], "AttributeDefinitions": [text | {"AttributeType": "S"}]}
    schema = {"create": keys | {"BillingMode": "PAY_PER_REQUEST"}}
    with pytest.raises(Fault, match="another key"):
        service.create("users", schema)
    with pytest.raises(Gone):
        service.describe("nothing")
