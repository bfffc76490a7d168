"""The walk over a share: folders listed ahead over several connections, entries in listing order."""

import errno
from collections.abc import Callable, Generator, Iterator
from functools import partial
from typing import TYPE_CHECKING

from engine.connections.smb import Facts, Shares, to_smb
from engine.entries import Entry, Kind, Problem, sort_key
from engine.errors import SourceUnavailable
from engine.patterns import Selection, Verdict
from engine.sources.ahead import Ahead, Loaded, Wish

if TYPE_CHECKING:
    from engine.connections.smb_messages import Listed

_LEADS_ELSEWHERE = "it stands for something elsewhere (a link or a junction): it is neither kept nor followed"
_LOOP = "it is one of the folders above it once more: it is not followed"
_NO_NAME = "the server told a name that no file can have"


class _Level:
    """A folder being walked: the names still to come, and its number on the server."""

    __slots__ = ("ident", "names", "prefix", "verdict")

    def __init__(self, prefix: bytes, verdict: Verdict, names: "list[Listed]", ident: int) -> None:
        self.prefix, self.verdict, self.names, self.ident = prefix, verdict, iter(names), ident


class SmbWalk:
    """One pass over the folder `root` (its path in the share, empty for the top).

    Raises SourceUnavailable when the root is another folder at the end than at the beginning, or is gone.
    """

    def __init__(
        self,
        shares: Shares,
        root: bytes,
        selection: Selection | None,
        *,
        entry_of: Callable[[bytes, Facts], Entry],
    ) -> None:
        self._shares, self._root, self._selection, self._entry_of = shares, root, selection, entry_of
        self._stack: list[_Level] = []
        # Folders that are kept only if something inside is: not yielded yet.
        self._pending: list[Entry] = []

    def run(self, walkers: int) -> Generator[Entry | Problem, None, None]:
        """Yield entries and problems."""
        facts = self._standing()
        self._ahead: Ahead[list[Listed]] = Ahead(walkers)
        try:
            verdict = self._verdict_of_root()
            if verdict is not Verdict.SKIP:
                yield from self._begin(verdict, facts)
                yield from self._below()
        finally:
            self._ahead.close()
        if self._standing().ident != facts.ident:
            raise SourceUnavailable("the folder that was backed up is another one now: was the share replaced?")

    def _standing(self) -> Facts:
        with self._shares.borrowed() as share:
            try:
                return share.facts(to_smb(self._root))
            except OSError as error:
                raise SourceUnavailable(
                    f"the folder {self._root.decode('utf-8', 'replace')!r} went away: {error.strerror}"
                ) from error

    def _verdict_of_root(self) -> Verdict:
        if self._selection is None:
            return Verdict.KEEP
        if not self._root:
            return self._selection.top()
        above = self._selection.above_root(self._root)
        return above if above is Verdict.SKIP else self._selection.step(above, self._root, folder=True, root=True)

    def _begin(self, verdict: Verdict, facts: Facts) -> Iterator[Entry]:
        if self._root:
            entry = self._entry_of(self._root, facts)
            if verdict is Verdict.LOOK:
                self._pending.append(entry)
            else:
                yield entry
        prefix = self._root + b"/" if self._root else b""
        try:
            names = self._ahead.take(self._wish(prefix, verdict))
        except OSError as error:
            raise SourceUnavailable(f"the top folder can't be listed: {error.strerror}") from error
        self._stack.append(_Level(prefix, verdict, names, facts.ident))

    def _below(self) -> Iterator[Entry | Problem]:
        while self._stack:
            level = self._stack[-1]
            for name, facts in level.names:
                path, verdict = level.prefix + name, level.verdict
                if not _is_name(name):
                    yield Problem(path, "unsafe-path", _NO_NAME)
                    continue
                if self._selection is not None:
                    verdict = self._selection.step(level.verdict, path, folder=facts.is_folder)
                    if verdict is Verdict.SKIP:
                        continue
                    yield from self._leading_to(path, verdict)
                if facts.is_link:
                    yield Problem(path, "link", _LEADS_ELSEWHERE, lost=False)
                    continue
                entry = self._entry_of(path, facts)
                if verdict is Verdict.LOOK:
                    self._pending.append(entry)
                else:
                    yield entry
                if entry.kind == Kind.DIRECTORY:
                    problem = self._descend(path, verdict, facts.ident)
                    if problem is None:
                        break
                    yield problem
            else:
                self._stack.pop()

    def _descend(self, path: bytes, verdict: Verdict, ident: int) -> Problem | None:
        if ident and any(level.ident == ident for level in self._stack):
            return Problem(path, "link", _LOOP, lost=False)
        prefix = path + b"/"
        try:
            names = self._ahead.take(self._wish(prefix, verdict))
        except OSError as error:
            if error.errno == errno.ENOENT:
                return Problem(path, "vanished", str(error.strerror), lost=False)
            return Problem(path, "unreadable", str(error.strerror))
        self._stack.append(_Level(prefix, verdict, names, ident))
        return None

    def _leading_to(self, path: bytes, verdict: Verdict) -> Iterator[Entry]:
        """Yield the pending folders above a kept `path`; forget those that led nowhere."""
        pending = self._pending
        while pending and not path.startswith(pending[-1].path + b"/"):
            pending.pop()
        if verdict is Verdict.KEEP and pending:
            yield from pending
            pending.clear()

    def _wish(self, prefix: bytes, verdict: Verdict) -> "Wish[list[Listed]]":
        return Wish(sort_key(prefix), partial(self._load, prefix, verdict))

    def _load(self, prefix: bytes, verdict: Verdict) -> "Loaded[list[Listed]]":
        """List one folder. Runs on any thread."""
        with self._shares.borrowed() as share:
            names = sorted(share.list(to_smb(prefix[:-1])))
        return Loaded(names, len(names), list(self._inside(prefix, verdict, names)))

    def _inside(self, prefix: bytes, verdict: Verdict, names: "list[Listed]") -> "Iterator[Wish[list[Listed]]]":
        for name, facts in names:
            if not facts.is_folder or facts.is_link or not _is_name(name):
                continue
            below = verdict
            if self._selection is not None:
                below = self._selection.step(verdict, prefix + name, folder=True)
                if below is Verdict.SKIP:
                    continue
            yield self._wish(prefix + name + b"/", below)


def _is_name(name: bytes) -> bool:
    return bool(name) and name not in (b".", b"..") and not set(name) & set(b"/\\\0")
