"""The walk by several threads: the same entries in the same order, listed and asked for ahead."""

import os
import stat
from collections.abc import Generator, Iterator
from functools import partial
from typing import NamedTuple

from engine.beneath import FOLDER, open_beneath
from engine.entries import Entry, Problem, sort_key
from engine.patterns import Verdict
from engine.sources.ahead import Ahead, Loaded, Wish
from engine.sources.walk import Folder, Walk, listed

_BATCH = 32


class _Place(NamedTuple):
    """A folder to load: its path with a closing slash, the verdict on it, and the file system it lies on."""

    prefix: bytes
    verdict: Verdict
    device: int


class _Part(NamedTuple):
    """A run of a folder's names, all of which are in `names`, with what stat says of each."""

    names: list[bytes]
    statuses: list[os.stat_result | OSError]


class _Far(Folder):
    """A folder that threads have listed. It has no descriptor; stats come a batch at a time."""

    __slots__ = ("_at", "_place", "_statuses", "_walk")

    def __init__(self, walk: "WideWalk", place: _Place) -> None:
        part = walk.take(place, None, 0)
        self.fd = -1
        self.prefix, self.verdict, self.device = place
        self.single = False
        self.names = iter(part.names)
        self._walk, self._place, self._statuses = walk, place, part
        self._at = 0

    def status(self) -> os.stat_result:
        """Return what stat said of the next name. Raises its OSError."""
        at = self._at % _BATCH
        if self._at and not at:
            self._statuses = self._walk.take(self._place, self._statuses.names, self._at)
        self._at += 1
        found = self._statuses.statuses[at]
        if isinstance(found, OSError):
            raise found
        return found


class WideWalk(Walk):
    """A walk for file systems on which each call takes long. Memory: 50,000 entries beside the folders under way."""

    def walking(self, walkers: int) -> Generator[Entry | Problem, None, None]:
        """Yield what `run` yields, with so many threads at work ahead of it."""
        self._ahead: Ahead[_Part] = Ahead(walkers)
        try:
            yield from self.run()
        finally:
            self._ahead.close()

    def take(self, place: _Place, names: list[bytes] | None, at: int) -> _Part:
        """Return a part of a folder, listed before or now. Raises OSError."""
        return self._ahead.take(self._wish(place, names, at))

    def _wish(self, place: _Place, names: list[bytes] | None, at: int) -> Wish[_Part]:
        # A folder's own listing is needed right behind its entry: before anything that is in it.
        key = sort_key(place.prefix if names is None else place.prefix + names[at])
        return Wish(key, partial(self._load, self._top, place, names, at))

    def _load(self, top: tuple[int, bytes], place: _Place, names: list[bytes] | None, at: int) -> Loaded[_Part]:
        """Read a folder's names, unless they are known, and stat a batch of them. Runs on any thread."""
        descriptor, above = top
        folder = open_beneath(descriptor, place.prefix[len(above) : -1], FOLDER)
        try:
            cost = 0
            if names is None:
                names = listed(folder)
                cost = len(names)
            part = _Part(names, [_status(folder, name) for name in names[at : at + _BATCH]])
        finally:
            os.close(folder)
        following = list(self._inside(place, part, at))
        if cost:
            following += [self._wish(place, names, start) for start in range(_BATCH, len(names), _BATCH)]
        return Loaded(part, cost + len(part.statuses), following)

    def _inside(self, place: _Place, part: _Part, at: int) -> Iterator[Wish[_Part]]:
        """Yield the folders of a part that the walk will enter."""
        for name, status in zip(part.names[at : at + _BATCH], part.statuses, strict=True):
            if isinstance(status, OSError) or not stat.S_ISDIR(status.st_mode):
                continue
            path, verdict = place.prefix + name, place.verdict
            if status.st_dev != place.device and self._is_left_out(status.st_dev, path):
                continue
            if self._selection is not None:
                verdict = self._selection.step(place.verdict, path, folder=True)
                if verdict is Verdict.SKIP:
                    continue
            yield self._wish(_Place(path + b"/", verdict, status.st_dev), None, 0)

    def _stat(  # type: ignore[override]  # os.stat, which it stands for, takes more than a walk asks for
        self, name: bytes, *, dir_fd: int, follow_symlinks: bool
    ) -> os.stat_result:
        folder = self._stack[-1]
        if isinstance(folder, _Far):
            return folder.status()
        return os.stat(name, dir_fd=dir_fd, follow_symlinks=follow_symlinks)

    def _below(self, top: int, top_prefix: bytes) -> Iterator[Entry | Problem]:
        self._top = top, top_prefix
        try:
            yield from super()._below(top, top_prefix)
        finally:
            self._ahead.drain()  # the descriptor of the top is closed now

    def _entered(self, outer: Folder, name: bytes, entry: Entry, *, verdict: Verdict, device: int) -> Folder:
        return _Far(self, _Place(entry.path + b"/", verdict, device))

    def _shed(self) -> None: ...

    def _leave(self, top: int, top_prefix: bytes) -> None:
        done = self._stack.pop()
        if done.fd >= 0:
            os.close(done.fd)


def _status(folder: int, name: bytes) -> os.stat_result | OSError:
    try:
        return os.stat(name, dir_fd=folder, follow_symlinks=False)
    except OSError as error:
        return error
