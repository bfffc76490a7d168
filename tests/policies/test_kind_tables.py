"""Wide-column services as kinds of sources: what people type, what is refused, what the engine gets."""

from typing import Any

import pytest
from rest_framework.exceptions import ValidationError

from engine.sources.dynamodb import DynamoDbSource
from engine.sources.tablestore import TablestoreSource
from engine.targets.dynamodb import DynamoDbTarget
from engine.targets.tablestore import TablestoreTarget
from policies.kinds import dynamodb, tablestore
from policies.kinds.port import Reading, SourceType

TYPES = {"tablestore": tablestore.TYPE, "dynamodb": dynamodb.TYPE}
GIVEN: dict[str, dict[str, Any]] = {
    "tablestore": {"endpoint": "https://shop.cn-hangzhou.ots.aliyuncs.com/", "instance": "shop"},
    "dynamodb": {"region": "eu-central-1"},
}
KEYS = {"access_key": "an id", "secret_key": " secret ", "token": "temporary"}


def checked(kind: SourceType, given: dict[str, Any]) -> dict[str, Any]:
    serializer = kind.settings(data=given)
    serializer.is_valid(raise_exception=True)
    return dict(serializer.validated_data)


def reading(name: str, **given: Any) -> Reading:
    credentials = TYPES[name].credentials(data=KEYS)
    credentials.is_valid(raise_exception=True)
    return Reading("", checked(TYPES[name], GIVEN[name] | given), dict(credentials.validated_data))


@pytest.mark.parametrize("name", TYPES)
def test_what_people_typed_reaches_the_engine(name: str) -> None:
    given = reading(name, tables=["a*"], exclude=["ab"], reads_per_s=5, bytes_per_s=2000, rows_per_s=7)
    source = TYPES[name].source(given)
    assert isinstance(source, TablestoreSource | DynamoDbSource)
    assert (source.tables, source.exclude, source.reads_per_s, source.bytes_per_s) == (("a*",), ("ab",), 5, 2000)
    assert (source.place.access_key, source.place.secret_key, source.place.token) == ("an id", " secret ", "temporary")
    target, careful = TYPES[name].target(given._replace(overwrite=True), "_x"), TYPES[name].target(given, "")
    assert isinstance(target, TablestoreTarget | DynamoDbTarget)
    assert isinstance(careful, TablestoreTarget | DynamoDbTarget)
    assert not careful.overwrite
    assert (target.suffix, target.overwrite, target.rows_per_s, target.verify) == ("_x", True, 7, True)
    assert target.place == source.place


def test_the_addresses_that_will_be_contacted_are_told() -> None:
    assert tablestore.TYPE.endpoints(checked(tablestore.TYPE, GIVEN["tablestore"])) == [
        ("shop.cn-hangzhou.ots.aliyuncs.com", 443)
    ]
    assert dynamodb.TYPE.endpoints(checked(dynamodb.TYPE, GIVEN["dynamodb"])) == [
        ("dynamodb.eu-central-1.amazonaws.com", 443)
    ]
    other = checked(dynamodb.TYPE, GIVEN["dynamodb"] | {"endpoint": "http://10.0.0.5:8000"})
    assert dynamodb.TYPE.endpoints(other) == [("10.0.0.5", 8000)]


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("tablestore", {"endpoint": "shop.cn-hangzhou.ots.aliyuncs.com"}),
        ("tablestore", {"endpoint": "https://user@shop.example.org"}),
        ("tablestore", {"endpoint": "https://shop.example.org/path"}),
        ("tablestore", {"endpoint": "https://shop.example.org:port"}),
        ("tablestore", {"instance": "a/b"}),
        ("tablestore", {"bytes_per_s": 5}),
        ("dynamodb", {"endpoint": "ftp://x"}),
        ("dynamodb", {"region": "x.evil.example/"}),
        ("dynamodb", {"reads_per_s": -1}),
    ],
)
def test_what_can_not_work_is_refused(name: str, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        checked(TYPES[name], GIVEN[name] | wrong)


@pytest.mark.parametrize(("name", "wrong"), [("tablestore", "-x"), ("tablestore", "a b"), ("dynamodb", "a/b")])
def test_a_place_is_a_suffix_that_table_names_can_have(name: str, wrong: str) -> None:
    TYPES[name].check_to("")
    TYPES[name].check_to("_restored")
    with pytest.raises(ValidationError, match="Give a suffix"):
        TYPES[name].check_to(wrong)


@pytest.mark.parametrize("name", TYPES)
def test_keys_are_required_so_that_no_worker_uses_its_own(name: str) -> None:
    assert set(TYPES[name].credentials(data={}).fields) == {"access_key", "secret_key", "token"}
    serializer = TYPES[name].credentials(data={})
    assert not serializer.is_valid()
    assert set(serializer.errors) == {"access_key", "secret_key"}
