"""Progress on the terminal."""

import sys
import time
from typing import TYPE_CHECKING

from engine.cli.output import size
from engine.cli.stopping import Stopping

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

_EVERY_S = 0.1


class Display:
    """The Progress of a command: a bar on stderr where that is a terminal, and the order to stop. A context."""

    def __init__(self, stopping: Stopping, *, quiet: bool) -> None:
        self._stopping = stopping
        self._bar: Bar | None = None
        self._wanted = sys.stderr.isatty() and not quiet
        self._phase = ""
        self._entries = self._bytes = 0
        self._total: int | None = None
        self._drawn_s = time.monotonic()

    def __enter__(self) -> "Display":
        return self

    def __exit__(self, *exc: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def phase(self, name: str) -> None:
        self._phase = name
        self._draw()

    def total(self, *, entries: int = 0, bytes: int = 0) -> None:
        self._total = entries or None

    def add(self, *, entries: int = 0, bytes: int = 0, bytes_stored: int = 0) -> None:
        self._entries += entries
        self._bytes += bytes
        self._draw()

    def check(self) -> None:
        self._stopping.check()
        self._draw()

    def _draw(self) -> None:
        now_s = time.monotonic()
        if not self._wanted or now_s - self._drawn_s < _EVERY_S:
            return
        self._drawn_s = now_s
        if self._bar is None:
            self._bar = _bar()
        total = max(self._total, self._entries) if self._total else None
        fields = {"phase": self._phase, "read": size(self._bytes)}
        self._bar.update(self._bar.task_ids[0], completed=self._entries, total=total, **fields)  # type: ignore[arg-type] # rich's own fields are no others
        self._bar.refresh()


def _bar() -> "Bar":
    # Loading rich takes as long as a small backup: only what lasts pays for it. It draws when told to, because a
    # thread of its own would forbid the pool to fork.
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (
        SpinnerColumn(),
        TextColumn("{task.fields[phase]}"),
        BarColumn(),
        TextColumn("{task.completed:,} entries"),
        TextColumn("{task.fields[read]}"),
        TimeElapsedColumn(),
    )
    bar = Progress(*columns, console=Console(stderr=True), auto_refresh=False, transient=True)
    bar.add_task("", total=None, phase="", read="")
    bar.start()
    return bar
