"""A Milvus cluster as a target: what is refused, what is adjusted, and that nothing half restored gets its name."""

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pymilvus import DataType

from engine.errors import TargetDenied, TargetNotEmpty, TargetUnavailable
from engine.ids import new_ulid
from engine.progress import Silent
from engine.sources.milvus import MilvusSource
from engine.targets.milvus import MilvusTarget
from engine.targets.milvus_collection import differences
from engine.verbs import restore
from tests.services import Milvus
from tests.support.milvus import client, collection, empty, fill, items, make_items, make_words
from tests.support.milvus_double import TOKEN, Double, double
from tests.support.runs import restored
from tests.support.vaults import Bench, flip

pytestmark = pytest.mark.services  # Milvus Lite

ITEMS = "databases/default/collections/items"


@pytest.fixture
def uri(milvus_service: Milvus) -> Iterator[str]:
    """Give a server with data."""
    empty(milvus_service.uri)
    fill(milvus_service.uri, rows=40)
    yield milvus_service.uri
    empty(milvus_service.uri)


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[tuple[Double, str]]:
    """Give an empty server that has a limit of shards, and users."""
    with double(tmp_path / "fresh") as made:
        yield made


@pytest.fixture
def bench(uri: str) -> Bench:
    """Give a vault with a point of the server with data."""
    made = Bench()
    made.back_up_from(MilvusSource(uri=uri))
    return made


def names(uri: str, database: str = "default") -> list[str]:
    one = client(uri, database)
    found: list[str] = one.list_collections()
    one.close()
    return sorted(found)


def described(uri: str, name: str, database: str = "default") -> dict[str, Any]:
    one = client(uri, database)
    found = collection(one, name)
    one.close()
    return found


def told(outcome: restore.Outcome) -> str:
    return "\n".join(f"{problem.path.decode()} {problem.reason} {problem.detail}" for problem in outcome.problems)


def test_a_collection_that_exists_is_refused_before_anything_is_written(
    bench: Bench, uri: str, fresh: tuple[Double, str]
) -> None:
    one = client(fresh[1])
    make_items(one)
    one.close()
    with pytest.raises(TargetNotEmpty, match="items of the database default is there already"):
        restored(bench, MilvusTarget(uri=fresh[1]))
    assert names(fresh[1]) == ["items"]
    one = client(fresh[1])
    assert one.list_databases() == ["default"]
    one.close()


def test_with_a_suffix_restored_collections_stand_beside_the_others(bench: Bench, uri: str) -> None:
    outcome = restored(bench, MilvusTarget(uri=uri, suffix="_old"))
    assert outcome.state == "complete"
    before, after = described(uri, "items"), described(uri, "items_old")
    assert (after["rows"], after["indexes"]) == (before["rows"], before["indexes"])
    assert after["aliases"] == ["goods_old"]
    assert names(uri, "archive") == ["empty", "empty_old", "words", "words_old"]


def test_chosen_collections_are_restored_alone_with_their_database(bench: Bench, fresh: tuple[Double, str]) -> None:
    outcome = restored(bench, MilvusTarget(uri=fresh[1]), include=("/databases/archive/collections/words",))
    assert outcome.state == "complete"
    assert (names(fresh[1]), names(fresh[1], "archive")) == ([], ["words"])


@pytest.mark.rule("D4")
def test_a_time_to_live_is_left_out_and_told_unless_it_is_asked_for(bench: Bench, fresh: tuple[Double, str]) -> None:
    chosen: dict[str, Any] = {"include": (f"/{ITEMS}",)}
    outcome = restored(bench, MilvusTarget(uri=fresh[1]), **chosen)
    assert "ttl" not in described(fresh[1], "items")["described"]["properties"]
    assert f"{ITEMS}/0-schema.json adjusted the property collection.ttl.seconds (864000) is left out" in told(outcome)
    outcome = restored(bench, MilvusTarget(uri=fresh[1], suffix="_ttl", keep_ttl=True), **chosen)
    assert "'collection.ttl.seconds': '864000'" in described(fresh[1], "items_ttl")["described"]["properties"]
    assert outcome.problems == []


@pytest.mark.rule("D6")
def test_scaling_settings_stay_behind_and_that_is_told(tmp_path: Path, fresh: tuple[Double, str]) -> None:
    bench = Bench()
    with double(tmp_path / "scaled") as (_, uri):
        one = client(uri)
        one.create_collection("small", dimension=4, properties={"collection.replica.number": "3"})
        one.create_database("wide", properties={"database.replica.number": "2", "database.max.collections": "7"})
        one.close()
        bench.back_up_from(MilvusSource(uri=uri))
    outcome = restored(bench, MilvusTarget(uri=fresh[1]))
    one = client(fresh[1])
    assert one.describe_database("wide") == {"name": "wide", "database.max.collections": "7"}
    one.close()
    assert described(fresh[1], "small")["described"]["properties"] == "{}"
    assert "collection.replica.number (3) is left out" in told(outcome)
    assert "database.replica.number is left out" in told(outcome)


def test_rows_whose_partition_a_key_chooses_come_back(tmp_path: Path, fresh: tuple[Double, str]) -> None:
    bench = Bench()
    with double(tmp_path / "keyed") as (_, uri):
        one = client(uri)
        schema = one.create_schema()
        schema.add_field("id", DataType.INT64, is_primary=True)
        schema.add_field("tenant", DataType.VARCHAR, max_length=20, is_partition_key=True)
        schema.add_field("vector", DataType.FLOAT_VECTOR, dim=4)
        one.create_collection("keyed", schema=schema)
        one.insert("keyed", [{"id": n, "tenant": f"t{n % 9}", "vector": [n] * 4} for n in range(200)])
        indexes = one.prepare_index_params()
        indexes.add_index("vector", index_type="FLAT", metric_type="L2")
        one.create_index("keyed", indexes)
        one.load_collection("keyed")
        one.close()
        bench.back_up_from(MilvusSource(uri=uri))
        before = described(uri, "keyed")
    outcome = restored(bench, MilvusTarget(uri=fresh[1]))
    assert (outcome.state, outcome.problems) == ("complete", [])
    assert described(fresh[1], "keyed")["rows"] == before["rows"]


def test_rows_that_cannot_be_compared_are_restored_and_told_as_unverified(
    tmp_path: Path, fresh: tuple[Double, str]
) -> None:
    bench = Bench()
    with double(tmp_path / "bare") as (_, uri):
        one = client(uri)
        make_words(one)
        one.drop_index("words", "vector")
        one.close()
        bench.back_up_from(MilvusSource(uri=uri))
    fresh[0].loads_without_index = False
    outcome = restored(bench, MilvusTarget(uri=fresh[1]))
    assert outcome.state == "complete"
    assert {(problem.reason, problem.lost) for problem in outcome.problems} == {("unverified", False)}
    fresh[0].loads_without_index = True
    assert len(described(fresh[1], "words")["rows"]["_default"]) == 100


@pytest.mark.rule("D7")
def test_more_shards_than_the_cluster_takes_are_clamped_and_told(tmp_path: Path, fresh: tuple[Double, str]) -> None:
    bench = Bench()
    with double(tmp_path / "sharded") as (servicer, uri):
        one = client(uri)
        make_items(one)
        one.close()
        servicer.shards["items"] = 8
        bench.back_up_from(MilvusSource(uri=uri))
    outcome = restored(bench, MilvusTarget(uri=fresh[1]))
    assert ("CreateCollection", 2) in fresh[0].calls
    assert "adjusted the server made it otherwise: shards is 1 instead of 8" in told(outcome)  # Lite has one always
    assert outcome.state == "complete"


@pytest.mark.rule("D5")
def test_users_get_new_passwords_that_are_told_once_and_the_built_in_ones_keep_theirs(
    tmp_path: Path, fresh: tuple[Double, str]
) -> None:
    bench = Bench()
    with double(tmp_path / "users") as (servicer, uri):
        for name in ("db_admin", "ann"):
            servicer.rights.users.add(user=name, password="hashed").roles.add(name="reader")
        servicer.rights.roles.add(name="reader")
        grant = servicer.rights.grants.add(object_name="items", db_name="default")
        grant.role.name, grant.object.name, grant.grantor.privilege.name = "reader", "Collection", "Query"
        servicer.rights.privilege_groups.add(group_name="watchers").privileges.add(name="Query")
        bench.back_up_from(MilvusSource(uri=uri))
    outcome = restored(bench, MilvusTarget(uri=fresh[1]))
    made = dict(fresh[0].calls)
    password = base64.b64decode(made["CreateCredential"].password).decode()
    assert made["CreateCredential"].username == "ann"
    assert [problem.lost for problem in outcome.problems if problem.reason == "password"] == [False]
    assert told(outcome).count(password) == 1
    assert len(password) >= 20
    assert "the user db_admin is every cluster's own and keeps the password" in told(outcome)
    assert made["OperatePrivilege"].entity.object_name == "items"
    assert (made["OperateUserRole"].role_name, made["OperatePrivilegeGroup"].group_name) == ("reader", "watchers")


def test_keys_that_the_server_gave_come_back_and_that_is_told(
    bench: Bench, uri: str, fresh: tuple[Double, str]
) -> None:
    one = client(uri, "archive")
    one.insert("empty", [{"vector": [float(number)] * 4} for number in range(10)])
    one.close()
    bench.back_up_from(MilvusSource(uri=uri))
    outcome = restored(bench, MilvusTarget(uri=fresh[1]))
    before, after = described(uri, "empty", "archive"), described(fresh[1], "empty", "archive")
    assert before["rows"] == after["rows"]
    assert after["described"]["auto_id"] == "False"
    assert "keys are not given by the server any more" in told(outcome)


def test_rows_that_come_back_otherwise_are_a_loss_and_the_collection_does_not_get_its_name(
    bench: Bench, fresh: tuple[Double, str]
) -> None:
    servicer, uri = fresh
    servicer.spoil_inserts = True
    outcome = restored(bench, MilvusTarget(uri=uri))
    assert outcome.state == "partial_complete"
    assert "the partition _default of items is not what was backed up: their content differs" in told(outcome)
    assert [name.startswith("_restoring_") for name in names(uri)] == [True]
    assert names(uri, "archive") == ["empty", "words"], "the others are not held up"


def test_a_damaged_chunk_loses_its_collection_and_no_other(uri: str, fresh: tuple[Double, str]) -> None:
    bench = Bench()
    one = client(uri)
    one.insert("items", items(3000, seed=5, start=500))
    make_words(one, "words")
    one.close()
    bench.back_up_from(MilvusSource(uri=uri))
    sizes = {key: len(data) for key, data in bench.objects().items() if key.startswith("packs/")}
    largest = max(sizes, key=lambda key: sizes[key])
    flip(bench, largest, sizes[largest] // 2)
    outcome = restored(bench, MilvusTarget(uri=fresh[1]))
    assert outcome.state == "partial_complete"
    lost = {problem.path for problem in outcome.problems if problem.lost}
    assert lost
    assert all(path.startswith(ITEMS.encode()) for path in lost)
    assert (names(fresh[1]), names(fresh[1], "archive")) == (["words"], ["empty", "words"])


def test_a_restore_that_runs_again_after_a_crash_ends_with_the_same(bench: Bench, fresh: tuple[Double, str]) -> None:
    target, uri = MilvusTarget(uri=fresh[1]), fresh[1]
    planner = bench.open()
    name = planner.find("latest")
    job = restore.RestoreJob(
        session=new_ulid(bench.clock()), series=name.series, point=name.point, started_at=bench.clock(), target=target
    )
    [unit] = restore.plan(planner, job, Silent(), now=bench.clock())
    dying = restore.Unit(unit.number, unit.files[:4], [], [], [], [])
    restore.work(bench.open(), job, dying, Silent())
    assert any(left.startswith("_restoring_") for left in names(uri, "archive"))
    for _ in range(2):  # the second one finds everything done, and proves it
        result = restore.work(bench.open(), job, unit, Silent())
        assert not any(problem.lost for problem in result.problems)
    assert (names(uri), names(uri, "archive")) == (["items"], ["empty", "words"])


def test_a_wrong_token_and_a_server_that_is_not_there_are_told_before_anything_is_written(tmp_path: Path) -> None:
    with double(tmp_path / "locked", locked=True) as (_, uri):
        with pytest.raises(TargetDenied, match="auth check failure"):
            MilvusTarget(uri=uri, token="root:wrong").check()
        MilvusTarget(uri=uri, token=TOKEN).check()
    with pytest.raises(TargetUnavailable):
        MilvusTarget(uri="http://127.0.0.1:1", timeout_s=2).check()


def test_rows_without_their_schema_and_files_of_another_kind_are_not_restored(
    bench: Bench, fresh: tuple[Double, str], tmp_path: Path
) -> None:
    outcome = restored(bench, MilvusTarget(uri=fresh[1]), include=(f"/{ITEMS}/rows",))
    assert "restore the collection's whole folder" in told(outcome)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/a.txt").write_text("hello")
    bench.back_up(tmp_path / "notes", series="files")
    outcome = restored(bench, MilvusTarget(uri=fresh[1]))
    assert outcome.series == "files"
    assert "is no part of a Milvus cluster's backup" in told(outcome)


def test_differences_name_the_place() -> None:
    assert differences({"a": [1, {"b": 2}]}, {"a": [1, {"b": 3}]}) == ["a[1].b is 3 instead of 2"]
    assert differences({"a": 1}, {"a": 1}) == []
    assert differences({}, {"c": 1}) == ["c is 1 instead of None"]
