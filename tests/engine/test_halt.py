"""The order to stop reaches what waits: pauses before retries, limited sends, programs that are silent."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future

import pytest

from engine import halt
from engine.connections.process import Input, Output
from engine.errors import Canceled
from engine.storage import Memory
from engine.storage.faulty import Fault, Faulty, Mode
from engine.storage.retry import Retrying
from engine.storage.s3client import PacedBody
from engine.storage.throttle import Budget, unpaced

SOON_S = 1.5


class Order:
    """An order to stop that is given after a while."""

    def __init__(self) -> None:
        self.given = threading.Event()
        threading.Timer(0.2, self.given.set).start()

    def __call__(self) -> None:
        if self.given.is_set():
            raise Canceled("stop")


@pytest.fixture
def order() -> Iterator[Order]:
    order = Order()
    with halt.heard(order):
        yield order
    order.given.wait()


def stops_soon(call: Callable[[], object]) -> None:
    began_s = time.monotonic()
    with pytest.raises(Canceled):
        call()
    assert time.monotonic() - began_s < SOON_S


def dead() -> Retrying:
    return Retrying(Faulty(Memory(), [Fault(1, Mode.BEFORE, times=0)]), first_s=30, longest_s=30, attempts=100)


def test_a_pause_before_a_retry_ends(order: Order):
    stops_soon(lambda: [dead().get("a") for _ in range(3)])


def test_a_send_that_is_limited_ends(order: Order):
    stops_soon(lambda: Budget(1000).take(100_000))


def test_a_large_body_ends_between_two_pieces(order: Order):
    body = PacedBody([bytes(8 << 20)], 8 << 20, unpaced)
    assert len(body.read()) == 1 << 20
    order.given.wait()
    stops_soon(body.read)


def test_threads_of_a_verb_hear_it_too(order: Order):
    with halt.threads(1, "pack") as executor:
        put: Future[bytes] = executor.submit(dead().get, "a")
        stops_soon(put.result)


def test_reading_from_a_silent_program_ends(order: Order):
    output = Output([sys.executable, "-c", "import time; time.sleep(60)"])
    stops_soon(lambda: output.readinto(memoryview(bytearray(100))))
    output.close()


def test_writing_to_a_program_that_takes_nothing_ends(order: Order):
    taker = Input([sys.executable, "-c", "import time; time.sleep(60)"])
    stops_soon(lambda: taker.write(bytes(1 << 20)))
    taker.close()


def test_without_an_order_nothing_stops():
    halt.check()
    began_s = time.monotonic()
    halt.sleep(0.01)
    assert time.monotonic() - began_s >= 0.01


def test_who_flows_slowly_tells_so_from_every_thread_and_nobody_hears_it_afterwards():
    told: list[str] = []
    budget = Budget(1000, sleep=lambda seconds: None)
    with halt.heard(lambda: None, flowing=lambda: told.append(threading.current_thread().name)):
        budget.take(200)
        with halt.threads(1, "copy") as executor:
            executor.submit(budget.take, 300).result()
    assert [name.partition("_")[0] for name in told] == ["MainThread"] * 2 + ["copy"] * 3
    budget.take(100)
    assert len(told) == 5
