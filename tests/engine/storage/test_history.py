"""What stands below the newest versions: seen, read, and deleted by version id alone."""

import datetime as dt
import random
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path

import pytest
from minio import Minio
from minio.versioningconfig import VersioningConfig

from engine.errors import Forbidden, NotFound, Unavailable
from engine.storage import Directory, Memory, Retrying, Storage
from engine.storage.faulty import Fault, Faulty, Mode
from engine.storage.memory import MemoryHistory
from engine.storage.port import History, StoredVersion, history_of
from engine.storage.s3 import S3Storage
from tests.engine.storage.conftest import LOCKING, SERVED, Case, admin, location, new_bucket
from tests.engine.storage.test_s3 import answering, at, http
from tests.services import S3

VERSIONED = [name for name in LOCKING if "directory" not in str(name)]
versioned = pytest.mark.parametrize("case", VERSIONED, indirect=True)
servers = pytest.mark.parametrize("server", ["minio_service", "radosgw_service"])


def history(storage: Storage) -> History:
    found = history_of(storage)
    assert found is not None
    return found


def hide(storage: Storage, key: str) -> None:
    """Do what a foreign client's plain DELETE does."""
    while not isinstance(storage, S3Storage | Memory):
        storage = storage.inner  # type: ignore[attr-defined] # only wrappers are left
    if isinstance(storage, Memory):
        storage.hide(key)
    else:
        storage._client().remove_object(storage._bucket, storage._prefix + key)


def bodies(storage: Storage, key: str) -> set[bytes]:
    seen = history(storage)
    return {
        seen.get_version(key, found.version_id) for found in seen.versions(key) if found.key == key and not found.marker
    }


@versioned
def test_overwritten_and_hidden_versions_are_seen_and_read(case: Case) -> None:
    case.storage.put("p/a", b"one")
    case.storage.put("p/a", b"three")
    case.storage.put("p/b", b"x")
    hide(case.storage, "p/b")
    found = list(history(case.storage).versions("p/"))
    assert [key for key, _ in groupby(found, lambda version: version.key)] == ["p/a", "p/b"]
    assert sorted((v.key, v.size, v.newest) for v in found if not v.marker) == [
        ("p/a", 3, False), ("p/a", 5, True), ("p/b", 1, False)
    ]  # fmt: skip
    assert [(v.key, v.newest) for v in found if v.marker] == [("p/b", True)]
    assert bodies(case.storage, "p/a") == {b"one", b"three"}
    assert bodies(case.storage, "p/b") == {b"x"}
    with pytest.raises(NotFound):
        case.storage.get("p/b")


@versioned
def test_versions_are_listed_after_a_key_and_over_many_pages(case: Case) -> None:
    names = [f"p/{number:02d}" for number in range(12)]
    for name in names:
        case.storage.put(name, b"1")
        case.storage.put(name, b"2")
    seen = history(case.storage)
    assert [v.key for v in seen.versions("p/") if v.newest] == names
    assert [v.key for v in seen.versions("p/", after="p/07")] == [name for name in names[8:] for _ in range(2)]
    assert list(seen.versions("q/")) == []


@pytest.mark.invariant(20)
@versioned
def test_deleting_a_marker_or_a_newer_version_brings_back_what_was_below(case: Case) -> None:
    case.storage.put("p/hidden", b"right")
    hide(case.storage, "p/hidden")
    case.storage.put("p/covered", b"right")
    case.storage.put("p/covered", b"wrong")
    seen = history(case.storage)
    for key in ("p/hidden", "p/covered"):
        assert seen.delete_versions(key, [v.version_id for v in seen.versions(key) if v.newest]) == []
        assert case.storage.get(key) == b"right"
    assert seen.delete_versions("p/covered", []) == []


@pytest.mark.invariant(20)
@versioned
def test_a_locked_version_is_refused_and_the_one_over_it_goes(case: Case) -> None:
    end = (case.now() + dt.timedelta(hours=1)).replace(microsecond=0)
    case.storage.put("p/a", b"right", locked_until=end)
    case.storage.put("p/a", b"wrong")
    seen = history(case.storage)
    below = next(v for v in seen.versions("p/a") if not v.newest)
    above = next(v for v in seen.versions("p/a") if v.newest)
    assert seen.version_locked_until("p/a", below.version_id) == end
    assert seen.version_locked_until("p/a", above.version_id) is None
    refusals = seen.delete_versions("p/a", [above.version_id, below.version_id])
    assert [(refusal.key, refusal.locked) for refusal in refusals] == [("p/a", True)]
    assert case.storage.get("p/a") == b"right"


def test_stores_without_versions_have_no_history(tmp_path: Path) -> None:
    for store in (Directory(tmp_path), Memory(), Retrying(Memory()), Faulty(Memory())):
        assert history_of(store) is None


@SERVED
@servers
def test_a_bucket_has_a_history_from_the_moment_that_it_keeps_versions(
    server: str, request: pytest.FixtureRequest
) -> None:
    service: S3 = request.getfixturevalue(server)
    bucket = new_bucket(service)
    store = Retrying(S3Storage(location(service, bucket)))
    store.put("a", b"unversioned")
    assert history_of(store) is None
    for status in ("Enabled", "Suspended"):
        admin(service).set_bucket_versioning(bucket, VersioningConfig(status))
        assert bodies(S3Storage(location(service, bucket)), "a") == {b"unversioned"}
        assert bodies(store, "a") == {b"unversioned"}


def test_a_store_without_versions_of_its_own_is_none() -> None:
    with answering(http(501, "NotImplemented")) as port:
        assert history_of(at(f"http://127.0.0.1:{port}")) is None
    with answering(http(403, "AccessDenied")) as port, pytest.raises(Forbidden):
        history_of(at(f"http://127.0.0.1:{port}"))


def test_a_list_of_versions_goes_on_after_an_error_in_its_middle() -> None:
    class Breaking(MemoryHistory):
        left = 3

        def versions(self, prefix: str, *, after: str = "") -> Iterator[StoredVersion]:
            for number, found in enumerate(super().versions(prefix, after=after)):
                if number == 3 and Breaking.left:
                    Breaking.left -= 1
                    raise Unavailable("slow down")
                yield found

    class Broken(Memory):
        def history(self) -> MemoryHistory:
            return Breaking(self)

    store = Broken(versioned=True, write_once=False)
    for name in ("a", "b", "c", "d"):
        store.put(name, b"1")
        store.put(name, b"2")
    seen = history(Retrying(store, sleep=lambda _: None))
    assert [found.key for found in seen.versions("")] == ["a", "a", "b", "b", "c", "c", "d", "d"]
    assert Breaking.left == 0


def test_the_injector_fails_calls_of_the_history() -> None:
    faulty = Faulty(Memory(versioned=True), [Fault(1, Mode.BEFORE, verb="delete_versions")])
    faulty.put("a", b"x")
    seen = history(faulty)
    with pytest.raises(Unavailable):
        seen.delete_versions("a", ["v1"])
    assert faulty.get("a") == b"x"


class Counting:
    """Counts the requests that a store sends, by kind."""

    def __init__(self, store: S3Storage, monkeypatch: pytest.MonkeyPatch) -> None:
        self.lists = 0
        client: Minio = store._client()
        execute: Callable[..., object] = client._execute

        def counted(method: str, *args: object, **named: dict[str, str]) -> object:
            self.lists += "versions" in (named.get("query_params") or {})
            return execute(method, *args, **named)

        monkeypatch.setattr(client, "_execute", counted)


@pytest.mark.invariant(20)
@servers
@SERVED
def test_many_keys_under_one_prefix_are_deleted_with_few_lists(
    server: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    service: S3 = request.getfixturevalue(server)
    store = S3Storage(location(service, new_bucket(service, object_lock=True), "deep/vault"))
    names = [f"packs/{number % 4:02x}/{number:04d}" for number in range(600)]
    for name in names:
        store.put(name, b"x")
    for name in names[::50]:
        store.put(name, b"other bytes")
        hide(store, names[7])
    locked = names[100]
    store.extend_lock(locked, until=dt.datetime.now(dt.UTC) + dt.timedelta(minutes=1))
    kept = set(random.Random(1).sample(names, 200))
    sent = Counting(store, monkeypatch)
    doomed = [name for name in names if name not in kept] + ["packs/zz/absent"]
    refusals = store.delete(doomed)
    assert sent.lists <= 12
    assert [(refusal.key, refusal.locked) for refusal in refusals] == ([(locked, True)] if locked in doomed else [])
    assert [stored.key for stored in store.scan("")] == sorted((kept - {names[7]}) | {locked})


@SERVED
@servers
def test_scattered_keys_cost_no_more_lists_than_one_each(
    server: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    service: S3 = request.getfixturevalue(server)
    bucket = new_bucket(service, object_lock=True)
    store = S3Storage(location(service, bucket))
    monkeypatch.setattr("engine.storage.s3versions.PAGE", 5)
    names = [f"packs/{number:03d}" for number in range(100)]
    for name in names:
        store.put(name, b"x")
    for _ in range(12):
        store.put("packs/050", b"more versions than a page holds")
    sent = Counting(store, monkeypatch)
    doomed = ["packs/003", "packs/050", "packs/050.1", "packs/051", "packs/097"]
    assert store.delete(doomed) == []
    assert sent.lists <= 12
    assert {stored.key for stored in store.scan("")} == set(names) - set(doomed)
    left = admin(service).list_objects(bucket, prefix="vault/packs/050", recursive=True, include_version=True)
    assert list(left) == []
