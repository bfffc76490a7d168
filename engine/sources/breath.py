"""Show that a walk goes on while its source still looks: what takes long runs in a thread (Source.walk)."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait

BREATH_S = 1.0


def breathing(call: Callable[[], object], *, stop: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Run `call` in a thread, yielding about every second, and raise what it raises.

    `stop` is called at the end, also when the walk is closed before it: it should make `call` return soon, because
    closing waits for that. No thread is left.
    """
    with ThreadPoolExecutor(1, "looking") as executor:
        running = executor.submit(call)
        try:
            while wait([running], BREATH_S).not_done:
                yield None
        finally:
            stop()
    running.result()
