"""The fault injector fails as it was told, and only then."""

import datetime as dt
from collections.abc import Callable

import pytest

from engine.errors import Forbidden, NotFound, ShortRead, StorageFull, Unavailable
from engine.ids import digest_name
from engine.storage import Memory, Storage
from engine.storage.faulty import Fault, Faulty, Mode
from tests.engine.storage.conftest import HandClock, HandTime

LATER = dt.datetime(2040, 1, 1, tzinfo=dt.UTC)


def other() -> Memory:
    """Return a store that has what is to be relayed."""
    memory = Memory()
    memory.put("new", b"x")
    return memory


VERBS: dict[str, Callable[[Storage], object]] = {
    "put": lambda store: store.put("new", b"x"),
    "get": lambda store: store.get("a"),
    "pieces": lambda store: list(store.pieces("a")),
    "relay": lambda store: store.relay("new", other(), size=1, sha256=digest_name(b"x")),
    "scan": lambda store: list(store.scan("")),
    "delete": lambda store: store.delete(["a"]),
    "extend_lock": lambda store: store.extend_lock("a", until=LATER),
    "locked_until": lambda store: store.locked_until("a"),
}
# What passes through is a get or a put to the plan and to the store below.
UNDERLYING = {"pieces": "get", "relay": "put"}


@pytest.fixture
def inner() -> Memory:
    memory = Memory(clock=HandClock())
    memory.put("a", b"body")
    memory.log.clear()
    return memory


@pytest.mark.parametrize("verb", VERBS)
def test_an_error_before_the_effect_keeps_the_call_from_the_store(inner: Memory, verb: str) -> None:
    faulty = Faulty(inner, [Fault(1, Mode.BEFORE)])
    with pytest.raises(Unavailable, match="before"):
        VERBS[verb](faulty)
    assert inner.log == []
    VERBS[verb](faulty)
    assert [call.verb for call in inner.log] == [UNDERLYING.get(verb, verb)]


@pytest.mark.parametrize("verb", VERBS)
def test_an_error_after_the_effect_lets_the_call_reach_the_store(inner: Memory, verb: str) -> None:
    faulty = Faulty(inner, [Fault(1, Mode.AFTER)])
    with pytest.raises(Unavailable):
        VERBS[verb](faulty)
    assert [call.verb for call in inner.log] == [UNDERLYING.get(verb, verb)]
    assert len(faulty.fired) == 1


def test_a_delayed_effect_comes_with_a_later_call(inner: Memory) -> None:
    faulty = Faulty(inner, [Fault(1, Mode.DELAYED, verb="put", later=2)])
    with pytest.raises(Unavailable, match="later"):
        faulty.put("new", b"x")
    with pytest.raises(NotFound):
        faulty.get("new")
    assert faulty.get("new") == b"x"


def test_a_delayed_effect_comes_when_it_is_settled(inner: Memory) -> None:
    faulty = Faulty(inner, [Fault(1, Mode.DELAYED, verb="delete", later=1000)])
    with pytest.raises(Unavailable):
        faulty.delete(["a"])
    assert faulty.get("a") == b"body"
    faulty.settle()
    with pytest.raises(NotFound):
        faulty.get("a")


def test_a_delayed_put_keeps_the_bytes_it_was_given(inner: Memory) -> None:
    faulty = Faulty(inner, [Fault(1, Mode.DELAYED)])
    buffer = bytearray(b"first")
    with pytest.raises(Unavailable):
        faulty.put("new", buffer)
    buffer[:] = b"other"
    faulty.settle()
    assert inner.get("new") == b"first"


def test_a_short_read_and_wrong_bytes_hit_gets(inner: Memory) -> None:
    faulty = Faulty(inner, [Fault(1, Mode.SHORT), Fault(2, Mode.WRONG)])
    with pytest.raises(ShortRead):
        faulty.get("a")
    wrong = faulty.get("a")
    assert sum((one ^ other).bit_count() for one, other in zip(wrong, b"body", strict=True)) == 1
    assert faulty.get("a") == b"body"


def test_a_mode_without_meaning_for_the_verb_leaves_the_call_alone(inner: Memory) -> None:
    faulty = Faulty(inner, [Fault(1, Mode.SHORT, times=0)])
    faulty.put("new", b"x")
    assert faulty.fired == []
    with pytest.raises(ShortRead):
        faulty.get("new")


def test_a_slow_answer_is_right_and_late(inner: Memory) -> None:
    time = HandTime()
    faulty = Faulty(inner, [Fault(1, Mode.SLOW, seconds=90)], sleep=time.sleep)
    assert faulty.get("a") == b"body"
    assert time.seconds == 90


def test_a_fault_counts_calls_of_its_verb_and_prefix_only(inner: Memory) -> None:
    faulty = Faulty(inner, [Fault(2, Mode.BEFORE, verb="put", prefix="packs/")])
    faulty.put("index/1", b"x")
    faulty.put("packs/1", b"x")
    faulty.get("packs/1")
    faulty.put("index/2", b"x")
    with pytest.raises(Unavailable):
        faulty.put("packs/2", b"x")
    faulty.put("packs/3", b"x")


def test_a_fault_lasts_as_often_as_it_says(inner: Memory) -> None:
    faulty = Faulty(inner, [Fault(2, Mode.BEFORE, times=2)])
    outcomes = []
    for _ in range(4):
        try:
            outcomes.append(faulty.get("a"))
        except Unavailable:
            outcomes.append(b"failed")
    assert outcomes == [b"body", b"failed", b"failed", b"body"]


@pytest.mark.parametrize("error", [Forbidden, StorageFull])
def test_a_permanent_flavour_is_not_transient(inner: Memory, error: type[Forbidden]) -> None:
    with pytest.raises(error) as raised:
        Faulty(inner, [Fault(1, Mode.BEFORE, error=error)]).get("a")
    assert not raised.value.transient


def test_an_empty_plan_counts(inner: Memory) -> None:
    faulty = Faulty(inner)
    for call in VERBS.values():
        try:
            call(faulty)
        except NotFound:
            pass
    assert [seen.verb for seen in faulty.calls] == [UNDERLYING.get(verb, verb) for verb in VERBS]
    assert (faulty.count(), faulty.count("get"), faulty.count("put", "ne"), faulty.count("put", "a")) == (8, 2, 2, 0)
