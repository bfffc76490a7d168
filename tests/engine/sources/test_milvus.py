"""A Milvus cluster as a source: on Milvus Lite, and on a double for what Lite lacks."""

import contextlib
import datetime as dt
import json
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from engine.connections.milvus_documents import SCHEMA, collection_path, component, meaning
from engine.connections.milvus_rows import Batches
from engine.entries import Entry, Kind, Problem
from engine.errors import ExtraMissing, SourceDenied, SourceError, SourceIncomplete, SourceUnavailable, UnsafePath
from engine.sources.milvus import MilvusSource
from engine.sources.port import Reader
from tests.services import Milvus
from tests.support.milvus import client, empty, fill, items, make_items, make_words
from tests.support.milvus_double import SNAPSHOT_TS, TOKEN, Double, double
from tests.support.runs import backup_job, run_backup
from tests.support.vaults import Bench

pytestmark = pytest.mark.services  # Milvus Lite

ITEMS = b"databases/default/collections/items"
WORDS = b"databases/archive/collections/words"


@pytest.fixture
def uri(milvus_service: Milvus) -> Iterator[str]:
    empty(milvus_service.uri)
    fill(milvus_service.uri, rows=40)
    yield milvus_service.uri
    empty(milvus_service.uri)


@pytest.fixture
def beyond(tmp_path: Path) -> Iterator[tuple[Double, str]]:
    """Give a double with the collection `items` of 300 rows."""
    with double(tmp_path / "double") as (servicer, address):
        one = client(address)
        make_items(one)
        one.insert("items", items(300))
        one.close()
        yield servicer, address


def entries(source: MilvusSource) -> dict[bytes, Entry]:
    return {entry.path: entry for entry in source.walk() if isinstance(entry, Entry)}


def opened(source: MilvusSource, entry: Entry) -> Reader:
    reader = source.open(entry)
    assert not isinstance(reader, Problem), reader
    return reader


def content(reader: Reader) -> bytes:
    data, view = b"", memoryview(bytearray(50_000))
    while count := reader.readinto(view, len(data)):
        data += bytes(view[:count])
    return data


def read(source: MilvusSource, path: bytes) -> bytes:
    with opened(source, entries(source)[path]) as reader:
        data = content(reader)
        assert not reader.changed()
    return data


def batches(data: bytes) -> list[bytes]:
    """Return the messages of an Arrow stream's batches."""
    apart, found = Batches(), []
    for batch in apart.add(memoryview(data)):
        found.append(batch.serialize().to_pybytes())
    apart.prove()
    return found


def loaded(uri: str, database: str, name: str) -> bool:
    one = client(uri, database)
    state = one.get_load_state(name)["state"].name
    one.close()
    return bool(state == "Loaded")


def test_the_walk_is_in_listing_order_which_is_the_order_that_a_restore_needs(uri: str) -> None:
    found = list(MilvusSource(uri=uri).walk())
    assert all(isinstance(entry, Entry) for entry in found)
    paths = [entry.path for entry in found]
    assert [entry.sort_key for entry in found if isinstance(entry, Entry)] == sorted(
        path.replace(b"/", b"\0") for path in paths
    )
    files = [
        path for path, entry in zip(paths, found, strict=True) if isinstance(entry, Entry) and entry.kind == Kind.FILE
    ]
    assert files[:2] == [b"cluster.json", b"databases/archive/0-database.json"]
    assert files[-4:] == [
        ITEMS + b"/0-schema.json",
        ITEMS + b"/rows/_default/rows.arrow",
        ITEMS + b"/rows/north/rows.arrow",
        ITEMS + b"/z-finish.json",
    ]


@pytest.mark.parametrize("name", ["plain", "a/b", "..", ".", "ü %", "\0", "a.b"])
def test_any_name_becomes_one_component_of_a_path_and_comes_back(name: str) -> None:
    part = component(name)
    assert part not in (b"", b".", b"..")
    assert not {b"/", b"\0"} & {part[at : at + 1] for at in range(len(part))}
    assert meaning(collection_path("d", name) + b"/" + SCHEMA).collection == name


@pytest.mark.parametrize("path", [b"etc/passwd", b"databases/x/1-database.json", b"cluster.json/x", b"databases"])
def test_a_path_that_is_none_of_a_clusters_is_refused(path: bytes) -> None:
    with pytest.raises(UnsafePath):
        meaning(path)


def test_documents_tell_what_there_is_and_are_carried_over_while_nothing_changes(uri: str) -> None:
    source = MilvusSource(uri=uri)
    before = entries(source)
    schema = json.loads(read(source, ITEMS + b"/0-schema.json"))
    finish = json.loads(read(source, ITEMS + b"/z-finish.json"))
    assert schema["partitions"] == ["_default", "north"]
    assert schema["properties"] == {"collection.ttl.seconds": "864000"}
    assert (finish["aliases"], finish["loaded"]) == (["goods"], True)
    assert json.loads(read(source, WORDS + b"/z-finish.json"))["loaded"] is False
    assert "as it is then, while writing goes on" in json.loads(read(source, b"cluster.json"))["consistency"]
    after = entries(source)
    documents = [path for path in before if path.endswith(b".json")]
    assert [(before[path].size, before[path].inode) for path in documents] == [
        (after[path].size, after[path].inode) for path in documents
    ]


def test_the_same_rows_make_the_same_bytes_however_the_server_pages_them(beyond: tuple[Double, str]) -> None:
    servicer, uri = beyond
    found = set()
    for rows in (7, 100, 1 << 30):
        servicer.page_rows = rows
        found.add(read(MilvusSource(uri=uri), ITEMS + b"/rows/_default/rows.arrow"))
    assert len(found) == 1


def test_a_row_in_the_middle_changes_one_batch(beyond: tuple[Double, str]) -> None:
    _, uri = beyond
    one = client(uri)
    one.insert("items", items(3000, seed=2, start=1000))
    before = batches(read(MilvusSource(uri=uri), ITEMS + b"/rows/_default/rows.arrow"))
    one.delete("items", filter="id in [2000]")
    after = batches(read(MilvusSource(uri=uri), ITEMS + b"/rows/_default/rows.arrow"))
    one.close()
    assert len(before) > 5
    assert len(set(after) - set(before)) == 1


def test_a_stream_that_is_cut_off_or_changed_is_not_taken_for_whole(beyond: tuple[Double, str]) -> None:
    data = read(MilvusSource(uri=beyond[1]), ITEMS + b"/rows/_default/rows.arrow")
    apart = Batches()
    apart.add(memoryview(data)[: len(data) // 2])
    with pytest.raises(ValueError, match="ends before its end"):
        apart.prove()
    at = data.index(b"item 7")
    apart = Batches()
    apart.add(memoryview(data[:at] + b"I" + data[at + 1 :]))
    with pytest.raises(ValueError, match="is not what its end says"):
        apart.prove()
    with pytest.raises(ValueError, match="ends before its end"):
        Batches().prove()


def test_keys_that_are_hard_to_quote_are_all_read(uri: str) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    data = read(MilvusSource(uri=uri), WORDS + b"/rows/_default/rows.arrow")
    keys = pyarrow.ipc.open_stream(data).read_all()["key"].to_pylist()
    assert len(keys) == 100
    assert keys == sorted(keys)
    assert {'"', "\\", '\\"', "a\nb", "日本"} <= set(keys)


def test_pages_behind_the_first_are_read_as_of_the_servers_snapshot(beyond: tuple[Double, str]) -> None:
    servicer, uri = beyond
    servicer.page_rows = 100
    source = MilvusSource(uri=uri)
    entry = entries(source)[ITEMS + b"/rows/_default/rows.arrow"]
    servicer.timestamps.clear()
    with opened(source, entry) as reader:
        content(reader)
    assert servicer.timestamps == [0, *[SNAPSHOT_TS] * 4]
    assert "as of one moment" in json.loads(read(source, b"cluster.json"))["consistency"]


def test_rows_out_of_order_are_refused_because_paging_would_lose_some(beyond: tuple[Double, str]) -> None:
    servicer, uri = beyond
    servicer.backwards = True
    with pytest.raises(SourceIncomplete, match="out of the order of their keys"):
        read(MilvusSource(uri=uri), ITEMS + b"/rows/_default/rows.arrow")


def test_a_collection_that_is_not_loaded_is_released_again_also_after_an_error(uri: str) -> None:
    source = MilvusSource(uri=uri)
    read(source, WORDS + b"/rows/_default/rows.arrow")
    assert not loaded(uri, "archive", "words")
    one = client(uri)
    one.release_collection("items")
    one.close()
    entry = entries(source)[ITEMS + b"/rows/_default/rows.arrow"]  # not the last one, which releases in any case
    with contextlib.suppress(KeyError), opened(source, entry) as reader:
        reader.readinto(memoryview(bytearray(10)), 0)
        assert loaded(uri, "default", "items")
        raise KeyError
    assert not loaded(uri, "default", "items")


def test_a_worker_that_outlives_the_one_that_releases_loads_the_collection_again(uri: str) -> None:
    one = client(uri)
    one.release_collection("items")
    source = MilvusSource(uri=uri)
    walked = entries(source)
    with opened(source, walked[ITEMS + b"/rows/_default/rows.arrow"]) as slow:
        with opened(source, walked[ITEMS + b"/rows/north/rows.arrow"]) as last:
            content(last)
            assert not last.changed()
        assert not loaded(uri, "default", "items")
        assert content(slow)
        assert not slow.changed()
    assert not loaded(uri, "default", "items")
    one.close()


@pytest.mark.rule("D27")
def test_a_schema_that_changes_during_the_backup_is_reported_and_a_dropped_collection_is_a_loss(uri: str) -> None:
    bench, one, source = Bench(), client(uri), MilvusSource(uri=uri)
    adding = iter([lambda: one.create_partition("items", "south")])
    outcome = run_backup(bench, backup_job(bench, source), between=lambda: [act() for act in adding].clear())
    assert outcome.state == "complete"
    assert {(problem.path.split(b"/")[3], problem.reason, problem.lost) for problem in outcome.problems} == {
        (b"items", "changed", False)
    }
    dropping = iter([lambda: one.drop_alias("goods"), lambda: one.drop_collection("items")])
    outcome = run_backup(bench, backup_job(bench, source), between=lambda: [act() for act in dropping].clear())
    assert outcome.state == "partial_complete"
    assert {problem.reason for problem in outcome.problems} == {"vanished"}
    one.close()


def test_a_field_that_cannot_be_kept_loses_the_rows_and_says_so(beyond: tuple[Double, str]) -> None:
    servicer, uri = beyond
    servicer.has_decimals = True
    problems = [found for found in MilvusSource(uri=uri).walk() if isinstance(found, Problem)]
    assert [(problem.path, problem.lost) for problem in problems] == [(ITEMS + b"/rows", True)]
    assert "the field small has the type 30" in problems[0].detail


def test_a_busy_server_is_waited_for_and_too_large_a_page_is_asked_for_in_parts(beyond: tuple[Double, str]) -> None:
    servicer, uri = beyond
    path = ITEMS + b"/rows/_default/rows.arrow"
    before = read(MilvusSource(uri=uri), path)
    source = MilvusSource(uri=uri)
    entry = entries(source)[path]
    servicer.busy, servicer.largest = 1, 90
    with opened(source, entry) as reader:
        assert content(reader) == before
    servicer.busy, hasty = 1 << 30, MilvusSource(uri=uri, timeout_s=0.6)
    with pytest.raises(SourceUnavailable, match="rate limit exceeded"), opened(hasty, entry) as reader:
        content(reader)


def test_a_collection_that_cannot_be_loaded_is_told_as_unreadable(beyond: tuple[Double, str]) -> None:
    servicer, uri = beyond
    one = client(uri)
    make_words(one)
    one.drop_index("words", "vector")
    one.close()
    servicer.released.add("words")  # Lite takes every collection without an index for loaded
    servicer.loads_without_index = False
    source = MilvusSource(uri=uri)
    problem = source.open(entries(source)[b"databases/default/collections/words/rows/_default/rows.arrow"])
    assert isinstance(problem, Problem)
    assert (problem.reason, problem.lost) == ("unreadable", True)
    assert "index not found" in problem.detail


def test_an_encrypted_connection_takes_only_a_certificate_that_is_trusted(tmp_path: Path) -> None:
    key, certificate = self_signed()
    with double(tmp_path / "double", tls=(key, certificate)) as (_, uri):
        MilvusSource(uri=uri, ca=certificate.decode()).check()
        with pytest.raises(SourceUnavailable):
            MilvusSource(uri=uri, timeout_s=2).check()


def self_signed() -> tuple[bytes, bytes]:
    """Return a key and its certificate for localhost, in PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    encoding, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    return key.private_bytes(encoding, pkcs8, serialization.NoEncryption()), made.public_bytes(encoding)


@pytest.mark.parametrize("token", ["", "root:wrong"])
def test_a_wrong_token_is_refused_before_anything_is_read(tmp_path: Path, token: str) -> None:
    with double(tmp_path / "double", locked=True) as (_, uri):
        with pytest.raises(SourceDenied, match="auth check failure"):
            MilvusSource(uri=uri, token=token).check()
        MilvusSource(uri=uri, token=TOKEN).check()


def test_users_and_roles_are_kept_without_passwords_unless_they_are_left_out(beyond: tuple[Double, str]) -> None:
    servicer, uri = beyond
    servicer.rights.users.add(user="ann", password="hashed secret").roles.add(name="reader")
    servicer.rights.roles.add(name="reader")
    source = MilvusSource(uri=uri)
    kept = read(source, b"zz-rbac.json")
    assert json.loads(kept) == {
        "users": [{"user": "ann", "roles": [{"name": "reader"}]}],
        "roles": [{"name": "reader"}],
    }
    assert b"secret" not in kept
    assert b"zz-rbac.json" not in entries(MilvusSource(uri=uri, rbac=False))


def test_a_server_that_is_not_there_and_an_address_that_is_none_are_told() -> None:
    with pytest.raises(SourceUnavailable, match=r"127\.0\.0\.1:1 can't be used"):
        MilvusSource(uri="http://127.0.0.1:1", timeout_s=2).check()
    with pytest.raises(SourceError, match="must be like http"):
        MilvusSource(uri="milvus.example.com").check()


def test_missing_packages_are_told_with_the_way_to_get_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pymilvus.grpc_gen", None)
    with pytest.raises(ExtraMissing, match="pip install pymilvus=="):
        MilvusSource(uri="http://127.0.0.1:1").check()


def test_a_source_travels_and_never_shows_its_token(uri: str) -> None:
    source = MilvusSource(uri=uri, token=TOKEN)
    source.check()
    for other in (
        pickle.loads(pickle.dumps(source)),
        msgspec.json.decode(msgspec.json.encode(source), type=MilvusSource),
    ):
        assert other == source
    assert TOKEN not in f"{source!r} {source.identity()} {source.options()}"


def test_an_empty_collection_and_one_with_texts_as_keys_are_streams_with_an_ending(uri: str) -> None:
    one = client(uri)
    make_words(one, "other")
    one.close()
    source = MilvusSource(uri=uri)
    assert batches(read(source, b"databases/archive/collections/empty/rows/_default/rows.arrow")) == []
    assert len(batches(read(source, b"databases/default/collections/other/rows/_default/rows.arrow"))) == 1
