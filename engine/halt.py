"""The order to stop, for what waits where no Progress reaches: pauses before retries, limited sends, silent programs.

Whoever runs a verb puts an order here for as long as it runs; threads that a verb starts take it over. Nothing is
stopped where there is none. The other way goes a sign of life: a limited rate can make one object take an hour.
"""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar

# Raises Canceled once the work must stop. Called from any thread, and often: it has to be cheap.
Order = Callable[[], None]
STEP_S = 0.5

_order: ContextVar[Order | None] = ContextVar("halt", default=None)
_flowing: ContextVar[Callable[[], None] | None] = ContextVar("flowing", default=None)


@contextmanager
def heard(order: Order, *, flowing: Callable[[], None] | None = None) -> Iterator[None]:
    """Let `check` obey the order inside the block, in this thread and in the `threads` made there.

    `flowing` is called, from any thread, whenever bytes were let through by a limit.
    """
    tokens = _order.set(order), _flowing.set(flowing)
    try:
        yield
    finally:
        _order.reset(tokens[0])
        _flowing.reset(tokens[1])


def check() -> None:
    """Raise Canceled when the work of this thread must stop."""
    order = _order.get()
    if order is not None:
        order()


def flowed() -> None:
    """Tell whoever runs the verb that bytes flow, if slowly: this thread is not stuck."""
    told = _flowing.get()
    if told is not None:
        told()


def sleep(seconds: float) -> None:
    """Sleep, and hear an order to stop meanwhile. Raises Canceled."""
    end_s = time.monotonic() + seconds
    while True:
        check()
        left_s = end_s - time.monotonic()
        if left_s <= 0:
            return
        time.sleep(min(left_s, STEP_S))


def threads(count: int, name: str) -> ThreadPoolExecutor:
    """Return a pool of threads that hear what this thread hears."""
    return ThreadPoolExecutor(count, name, initializer=_take_over, initargs=(_order.get(), _flowing.get()))


def _take_over(order: Order | None, flowing: Callable[[], None] | None) -> None:
    _order.set(order)
    _flowing.set(flowing)
