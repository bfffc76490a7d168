"""Ctrl-C and SIGTERM: the first asks the work to stop, the second one ends the program at once."""

import os
import signal
import threading
from types import FrameType

from engine.errors import Canceled


class Stopping:
    """A context in which SIGINT and SIGTERM only ask; `check` raises Canceled when one did."""

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[int, object] = {}

    def __enter__(self) -> "Stopping":
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type] # what signal() returned fits signal()

    def check(self) -> None:
        """Raise Canceled after the first signal."""
        if self.asked:
            raise Canceled("canceled; nothing was committed")

    def halt(self) -> None:
        """Do so in threads beside the main one, which hears it by `check` and then has to tidy up undisturbed."""
        if threading.current_thread() is not threading.main_thread():
            self.check()

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        # A second one takes the usual way; workers notice that the parent is gone and end.
        signal.signal(number, signal.SIG_DFL)
        # Not through sys.stderr: the signal may have come in the middle of a write to it.
        os.write(2, b"stopping; once more ends it at once\n")
