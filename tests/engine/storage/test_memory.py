"""The test double watches what the engine does with a store."""

import threading

import pytest

from engine.errors import NotFound
from engine.storage import Memory
from tests.engine.storage.conftest import NOON, HandClock


@pytest.mark.invariant(3)
@pytest.mark.parametrize("key", ["packs/ab/one", "points/s/u/root", "vault.json", "sessions/s/open"])
def test_a_key_put_twice_with_different_bytes_is_an_error_of_the_program(key: str) -> None:
    store = Memory()
    store.put(key, b"one")
    store.put(key, b"one")
    store.delete([key])
    with pytest.raises(AssertionError, match="written twice with different bytes"):
        store.put(key, b"two")


@pytest.mark.parametrize("key", ["sessions/s/beat", "staging/job/1"])
def test_a_beat_and_staged_units_may_change(key: str) -> None:
    store = Memory()
    store.put(key, b"one")
    store.put(key, b"two")
    assert store.get(key) == b"two"


def test_the_log_has_every_call_in_one_order() -> None:
    store = Memory()
    store.put("a", b"one")
    with pytest.raises(NotFound):
        store.get("b")
    list(store.scan("a"))
    store.delete(["a"])
    seen = [(call.seq, call.verb, call.key, call.outcome) for call in store.log]
    assert seen == [(1, "put", "a", "ok"), (2, "get", "b", "NotFound"), (3, "scan", "a", "1"), (4, "delete", "a", "ok")]


def test_calls_of_many_threads_are_numbered_without_gaps() -> None:
    store = Memory()

    def put_all(thread: int) -> None:
        for number in range(200):
            store.put(f"{thread}/{number}", b"")

    threads = [threading.Thread(target=put_all, args=(thread,)) for thread in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [call.seq for call in store.log] == list(range(1, 801))
    assert len(list(store.scan(""))) == 800


def test_a_plain_delete_by_a_stranger_hides_and_keeps_the_bytes() -> None:
    store = Memory(clock=HandClock())
    store.put("a", b"x", locked_until=NOON.replace(year=2031))
    store.hide("a")
    with pytest.raises(NotFound):
        store.get("a")
    assert list(store.scan("")) == []
    assert [version.data for version in store.versions("a")] == [b"x", None]
    assert [refusal.locked for refusal in store.delete(["a"])] == [True]
    assert store.get("a") == b"x"


def test_a_page_shows_one_moment_and_the_next_page_a_later_one() -> None:
    store = Memory(page_size=2)
    for key in "abcd":
        store.put(key, b"")
    scan = store.scan("")
    assert next(scan).key == "a"
    store.delete(["b", "c"])
    store.put("e", b"")
    assert [stored.key for stored in scan] == ["b", "d", "e"]
