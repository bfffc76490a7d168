"""What every storage does, whatever it is made of."""

import datetime as dt
import hashlib
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from engine.errors import Forbidden, Locked, NotFound, ShortRead
from engine.storage import Memory, Storage
from tests.engine.storage.conftest import LOCKING, UNLOCKED, Case

HOSTILE = ["", "/etc/passwd", "a/../b", "..", "a/..", "./a", "a//b", "a/", "A", "a b", "a\0b", "a\nb", "é", "a\\b"]
HOSTILE += [".tmp/x", ".locks/a", "a/.hidden", "x" * 300, "a/" * 500 + "a"]

locking = pytest.mark.parametrize("case", LOCKING, indirect=True)


def keys(store: Storage, prefix: str = "", after: str = "") -> list[str]:
    return [stored.key for stored in store.scan(prefix, after=after)]


def test_a_put_object_comes_back_whole(store: Storage) -> None:
    body = os.urandom(100_000)
    store.put("packs/ab/one", body)
    assert store.get("packs/ab/one") == body


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_any_kind_of_bytes_can_be_put(store: Storage, kind: type) -> None:
    store.put("a", kind(b"body"))
    assert store.get("a") == b"body"


def test_an_empty_object_is_an_object(store: Storage) -> None:
    store.put("sessions/s/closed", b"")
    assert store.get("sessions/s/closed") == b""
    assert [tuple(stored) for stored in store.scan("")] == [("sessions/s/closed", 0)]


def test_a_large_object_comes_back_whole(store: Storage) -> None:
    body = os.urandom(1 << 20) * 20
    store.put("packs/ab/large", body)
    assert hashlib.sha256(store.get("packs/ab/large")).digest() == hashlib.sha256(body).digest()
    assert store.get("packs/ab/large", offset=9_999_999, length=1_000_001) == body[9_999_999:11_000_000]


@pytest.mark.parametrize(
    ("offset", "length", "expected"),
    [(0, 3, b"012"), (7, 3, b"789"), (7, None, b"789"), (9, 1, b"9"), (10, None, b""), (4, 0, b""), (10, 0, b"")],
)
def test_a_range_has_exactly_the_bytes_asked_for(
    store: Storage, offset: int, length: int | None, expected: bytes
) -> None:
    store.put("a", b"0123456789")
    assert store.get("a", offset=offset, length=length) == expected


@pytest.mark.parametrize(("offset", "length"), [(5, 6), (10, 1), (11, None), (0, 11), (11, 0)])
def test_a_range_beyond_the_end_is_a_short_read(store: Storage, offset: int, length: int | None) -> None:
    store.put("a", b"0123456789")
    with pytest.raises(ShortRead):
        store.get("a", offset=offset, length=length)


@pytest.mark.parametrize(("offset", "length"), [(-1, None), (0, -1)])
def test_a_negative_range_is_refused(store: Storage, offset: int, length: int | None) -> None:
    with pytest.raises(ValueError, match="bad range"):
        store.get("a", offset=offset, length=length)


@pytest.mark.parametrize("length", [None, 0, 1])
def test_an_absent_object_is_not_found(store: Storage, length: int | None) -> None:
    store.put("a/b", b"x")
    for absent in ("a", "a/b/c", "a/c", "z"):
        with pytest.raises(NotFound):
            store.get(absent, length=length)
        with pytest.raises(NotFound):
            store.locked_until(absent)


def test_a_later_put_replaces_the_object(store: Storage) -> None:
    store.put("sessions/s/beat", b"1")
    store.put("sessions/s/beat", b"22")
    assert store.get("sessions/s/beat") == b"22"
    assert [stored.size for stored in store.scan("sessions/")] == [2]


def test_a_put_repeated_changes_nothing(store: Storage) -> None:
    store.put("a", b"same")
    store.put("a", b"same")
    assert store.get("a") == b"same"
    assert keys(store) == ["a"]


def test_a_scan_is_in_key_order_across_folders(store: Storage) -> None:
    names = ["a-b", "a.b", "a/b", "a/b-1", "a/b.1", "a/c/d", "a/c-d", "a0", "b", "b_c", "bb/a"]
    for name in names:
        store.put(name, name.encode())
    assert keys(store) == sorted(names)
    assert [stored.size for stored in store.scan("")] == [len(name) for name in sorted(names)]


def test_a_scan_shows_what_begins_with_the_prefix_and_comes_after(store: Storage) -> None:
    names = ["p/a/1", "p/a/12", "p/a/2", "p/b", "p/b.1", "p/c/d/e", "p/c/f", "q", "q.q/a"]
    for name in names:
        store.put(name, b"")
    for prefix in ("", "p", "p/", "p/a", "p/a/", "p/a/1", "p/b", "p/b.", "q", "q/", "zz/zz"):
        for after in ("", "a", "p/a", "p/a/1", "p/a/12", "p/b", "p/b/zzz", "zzz"):
            expected = [name for name in sorted(names) if name.startswith(prefix) and name > after]
            assert keys(store, prefix, after) == expected, (prefix, after)


def test_a_scan_goes_on_over_many_pages(store: Storage) -> None:
    names = [f"packs/{number % 7}/{number:05d}" for number in range(1203)]
    with ThreadPoolExecutor(8) as putters:
        list(putters.map(lambda name: store.put(name, b"x"), names))
    assert keys(store, "packs/") == sorted(names)
    assert keys(store, "packs/", "packs/3/00500") == [name for name in sorted(names) if name > "packs/3/00500"]
    assert store.delete(names[:50]) == []
    assert keys(store) == sorted(names[50:])


def test_a_hostile_key_is_refused_by_every_method(store: Storage) -> None:
    for key in HOSTILE:
        for call in (
            partial(store.put, key, b""),
            partial(store.get, key),
            partial(next, store.pieces(key)),
            partial(store.relay, key, Memory(), size=1, sha256=""),
            partial(store.delete, [key]),
            partial(store.extend_lock, key, until=dt.datetime(2040, 1, 1, tzinfo=dt.UTC)),
            partial(store.locked_until, key),
        ):
            with pytest.raises(ValueError, match="object key"):
                call()


@pytest.mark.parametrize("prefix", ["/", "../", "a/../", "a//", ".tmp/", "A", "a b", "a\0"])
def test_a_hostile_prefix_is_refused(store: Storage, prefix: str) -> None:
    with pytest.raises(ValueError, match="bad key prefix"):
        list(store.scan(prefix))


def test_a_deleted_object_is_gone_and_its_siblings_stay(store: Storage) -> None:
    for name in ("p/a", "p/a.1", "p/a-1", "p/ab", "p/b/c"):
        store.put(name, b"x")
    assert store.delete(["p/a", "p/b/c"]) == []
    assert keys(store) == ["p/a-1", "p/a.1", "p/ab"]
    with pytest.raises(NotFound):
        store.get("p/a")


def test_deleting_nothing_and_deleting_twice_are_done(store: Storage) -> None:
    store.put("p/a", b"x")
    assert store.delete([]) == []
    assert store.delete(["p/a", "q"]) == []
    assert store.delete(["p/a"]) == []


def test_a_deleted_key_can_be_put_again(store: Storage) -> None:
    store.put("p/q/a", b"x")
    store.delete(["p/q/a"])
    store.put("p/q/a", b"x")
    assert keys(store) == ["p/q/a"]


def test_an_overwritten_object_is_deleted_with_all_its_versions(store: Storage) -> None:
    for beat in (b"1", b"2", b"3"):
        store.put("sessions/s/beat", beat)
    assert store.delete(["sessions/s/beat"]) == []
    with pytest.raises(NotFound):
        store.get("sessions/s/beat")


def test_threads_putting_the_same_key_leave_one_whole_object(store: Storage) -> None:
    body = os.urandom(200_000)
    errors: list[BaseException] = []

    def put() -> None:
        try:
            for number in range(5):
                store.put(f"packs/{number}", body)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=put) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert errors == []
    assert keys(store) == [f"packs/{number}" for number in range(5)]
    assert all(store.get(f"packs/{number}") == body for number in range(5))


def test_an_object_without_a_lock_has_no_lock(store: Storage) -> None:
    store.put("a", b"x")
    assert store.locked_until("a") is None


@pytest.mark.parametrize("case", UNLOCKED, indirect=True)
def test_a_store_that_cannot_lock_says_so(case: Case) -> None:
    later = case.now() + dt.timedelta(hours=1)
    with pytest.raises(Forbidden):
        case.storage.put("a", b"x", locked_until=later)
    case.storage.put("b", b"x")
    with pytest.raises(Forbidden):
        case.storage.extend_lock("b", until=later)
    with pytest.raises(NotFound):
        case.storage.extend_lock("c", until=later)


@locking
def test_a_locked_object_is_not_deleted_and_the_others_are(case: Case) -> None:
    end = (case.now() + dt.timedelta(hours=1)).replace(microsecond=0)
    case.storage.put("p/locked", b"x", locked_until=end)
    case.storage.put("p/free", b"x")
    assert case.storage.locked_until("p/locked") == end
    refusals = case.storage.delete(["p/free", "p/locked"])
    assert [(refusal.key, refusal.locked) for refusal in refusals] == [("p/locked", True)]
    assert keys(case.storage) == ["p/locked"]
    assert case.storage.get("p/locked") == b"x"


@pytest.mark.invariant(19)
@locking
def test_a_lock_can_be_lengthened_and_never_shortened(case: Case) -> None:
    start = case.now().replace(microsecond=0)
    one, two, three = (start + dt.timedelta(hours=hours) for hours in (1, 2, 3))
    case.storage.put("p/a", b"x", locked_until=two)
    case.storage.extend_lock("p/a", until=one)
    assert case.storage.locked_until("p/a") == two
    case.storage.extend_lock("p/a", until=three)
    assert case.storage.locked_until("p/a") == three


@locking
def test_an_object_can_be_locked_after_it_was_put(case: Case) -> None:
    end = (case.now() + dt.timedelta(hours=1)).replace(microsecond=0)
    case.storage.put("p/a", b"x")
    case.storage.extend_lock("p/a", until=end)
    assert case.storage.locked_until("p/a") == end
    assert [refusal.locked for refusal in case.storage.delete(["p/a"])] == [True]
    with pytest.raises(NotFound):
        case.storage.extend_lock("p/b", until=end)


@locking
def test_a_lock_that_ended_holds_nothing(case: Case) -> None:
    case.storage.put("p/a", b"x", locked_until=case.now() + dt.timedelta(seconds=2))
    assert len(case.storage.delete(["p/a"])) == 1
    case.pass_time(3.5)
    assert case.storage.delete(["p/a"]) == []
    assert keys(case.storage) == []


@locking
def test_an_overwrite_does_not_destroy_a_locked_object(case: Case) -> None:
    case.storage.put("p/a", b"x", locked_until=case.now() + dt.timedelta(hours=1))
    if case.replaces_locked:
        case.storage.put("p/a", b"y")
    else:
        with pytest.raises(Locked, match="locked until"):
            case.storage.put("p/a", b"y")
        assert case.storage.get("p/a") == b"x"
    assert [refusal.locked for refusal in case.storage.delete(["p/a"])] == [True]


@locking
def test_a_locked_put_can_be_repeated(case: Case) -> None:
    end = (case.now() + dt.timedelta(hours=1)).replace(microsecond=0)
    case.storage.put("p/a", b"x", locked_until=end)
    case.storage.put("p/a", b"x", locked_until=end)
    assert case.storage.locked_until("p/a") == end
