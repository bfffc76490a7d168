"""The order to stop, for what waits where no Progress reaches: pauses before retries, limited sends, silent programs.

Whoever runs a verb puts an order here for as long as it runs; threads that a verb starts take it over. Nothing is
stopped where there is none.
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


@contextmanager
def heard(order: Order) -> Iterator[None]:
    """Let `check` obey the order inside the block, in this thread and in the `threads` made there."""
    token = _order.set(order)
    try:
        yield
    finally:
        _order.reset(token)


def check() -> None:
    """Raise Canceled when the work of this thread must stop."""
    order = _order.get()
    if order is not None:
        order()


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
    return ThreadPoolExecutor(count, name, initializer=_order.set, initargs=(_order.get(),))
