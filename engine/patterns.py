"""Which entries are meant: the include and exclude patterns of backup and restore.

The rules are those of gitignore files, on absolute paths:

- `*` matches any run of characters but `/`, `?` one of them, `[a-z]` one of a set, `[!a-z]` one not of the set;
  `**/` any number of folders, `/**` everything inside. A backslash takes the next character literally.
- A pattern that begins with `/` is anchored at the root of the file system: `/home/x/*.log`. Any other pattern
  matches at every depth, also when it has a `/` in the middle: `cache/*.tmp` means `**/cache/*.tmp`.
- A pattern that ends with `/` matches folders only. A matched folder means all that is below it.
- Of several patterns in one list the last that matches decides, and `!` in front takes a match back. Below an
  excluded folder nothing can be taken back: it is not looked into.
- `#` is an ordinary character. Letter case matters. Trailing spaces count only behind a backslash.
- An entry is meant when the includes are empty, or match it or a folder above it; and the excludes match
  neither it nor a folder above it. Folders that lead to an included entry are kept, as folders.
- In a backup the excludes are tried on what is below the roots: a root that a person named is never excluded by a
  pattern that fits the root itself or a folder above it.

Names that are not UTF-8 are matched byte by byte for the bytes that do not decode.
"""

import enum
import os
import re
from collections.abc import Iterable, Sequence

from engine.errors import EngineError

_FOLDER_OR_END = "(?:(?P<ps_d>/)|$)"
_FOLDER = "(?P<ps_d>/)"
_SPECIAL = re.compile(r"([*?\[\]\\!])")
_GLOB = re.compile(r"[*?\[\\]")


class BadPattern(EngineError):
    """An include or exclude pattern means nothing."""

    advice = "Write it like a line of a gitignore file, for example *.log, cache/ or /home/x/*.iso"


def literal(path: str) -> str:
    """Return the pattern that means this path (absolute) and what is below it, whatever characters are in it."""
    escaped = _SPECIAL.sub(r"\\\1", path)
    return escaped[:-1] + "\\ " if escaped.endswith(" ") else escaped


class Verdict(enum.IntEnum):
    """What the patterns say of one entry: LOOK is a folder that is kept only for what is found inside."""

    SKIP = 0
    LOOK = 1
    KEEP = 2


def _anchored(pattern: str) -> str:
    """Rewrite one of our patterns as one line of a gitignore file."""
    sign = "!" if pattern.startswith("!") else ""
    body = pattern[len(sign) :]
    if not body.strip() or not body.strip("/"):
        raise BadPattern(f"the pattern {pattern!r} matches nothing")
    if body.startswith("#"):
        return sign + "\\" + body
    if "/" in body.rstrip("/") and not body.startswith(("/", "**/")):
        return f"{sign}**/{body}"
    return sign + body


def _expression(pattern: str) -> tuple[bool, str]:
    """Return (adds, regular expression) of a pattern, to be matched at the start of a path without leading slash."""
    # Loaded where there are patterns: most runs have none, and start sooner.
    from pathspec.patterns.gitignore.base import GitIgnorePatternError
    from pathspec.patterns.gitignore.spec import GitIgnoreSpecPattern

    try:
        compiled = GitIgnoreSpecPattern(_anchored(pattern))
    except GitIgnorePatternError as error:
        raise BadPattern(f"the pattern {pattern!r} is malformed") from error
    if compiled.regex is None or compiled.include is None:
        raise BadPattern(f"the pattern {pattern!r} matches nothing")
    text = str(compiled.regex.pattern)
    if text.endswith("/"):
        text += "."  # what is inside, not the folder itself
    # Only the path itself counts, not one above it: folders are asked on the way down. `$` would also match
    # before a newline that ends the name.
    text = text.replace(_FOLDER_OR_END, r"/?\Z").replace(_FOLDER, r"/\Z")
    return bool(compiled.include), text


class _Rules:
    """One list of patterns: the last that matches decides."""

    def __init__(self, patterns: Iterable[str]) -> None:
        runs: list[tuple[bool, list[str]]] = []
        for pattern in patterns:
            adds, text = _expression(pattern)
            if runs and runs[-1][0] == adds:
                runs[-1][1].append(text)
            else:
                runs.append((adds, [text]))
        # Neighbours of one sign become one expression: one search per entry, however many patterns.
        self._runs = [(adds, re.compile("|".join(texts), re.DOTALL)) for adds, texts in reversed(runs)]

    def match(self, path: str) -> bool:
        """Say whether the list means `path` itself; a folder's path ends with a slash."""
        for adds, expression in self._runs:
            if expression.match(path):
                return adds
        return False


def _literal_start(pattern: str) -> str | None:
    """Return the folders that an anchored pattern certainly begins with; None when it may match anywhere."""
    if not pattern.startswith("/"):
        return None
    glob = _GLOB.search(pattern)
    literal = pattern[1 : glob.start()] if glob else pattern[1:].rstrip("/") + "/"
    return literal[: literal.rfind("/") + 1]


class Selection:
    """The compiled include and exclude lists. Raises BadPattern."""

    def __init__(self, include: Sequence[str], exclude: Sequence[str]) -> None:
        self._include = _Rules(include) if include else None
        self._exclude = _Rules(exclude) if exclude else None
        starts = [_literal_start(pattern) for pattern in include if not pattern.startswith("!")]
        self._starts = None if None in starts else [start for start in starts if start is not None]
        self._memo: tuple[bytes, Verdict] = (b"", self.top())

    @property
    def everything(self) -> bool:
        """Say whether no pattern was given."""
        return self._include is None and self._exclude is None

    @property
    def starts(self) -> list[bytes] | None:
        """Return the folders outside of which no include can match; None when it may match anywhere."""
        if self._include is None or self._starts is None:
            return None
        return [os.fsencode(start) for start in self._starts]

    def top(self) -> Verdict:
        """Return the verdict on the root of the file system."""
        return Verdict.LOOK if self._include else Verdict.KEEP

    def step(self, above: Verdict, path: bytes, *, folder: bool, root: bool = False) -> Verdict:
        """Return the verdict on `path`, given that on the folder above it (never SKIP); a `root` is never excluded."""
        text = os.fsdecode(path) + "/" if folder else os.fsdecode(path)
        if not root and self._exclude is not None and self._exclude.match(text):
            return Verdict.SKIP
        if above is Verdict.KEEP or self._include is None or self._include.match(text):
            return Verdict.KEEP
        return Verdict.LOOK if folder and self._may_lead(text) else Verdict.SKIP

    def _may_lead(self, folder: str) -> bool:
        if self._starts is None:
            return True
        return any(start.startswith(folder) or folder.startswith(start) for start in self._starts)

    def above_root(self, path: bytes) -> Verdict:
        """Return the verdict on the folder that holds the root `path`: excludes do not apply up there."""
        verdict = self.top()
        end = path.find(b"/")
        while end >= 0 and verdict is not Verdict.SKIP:
            verdict = self.step(verdict, path[:end], folder=True, root=True)
            end = path.find(b"/", end + 1)
        return verdict

    def verdict(self, path: bytes, *, folder: bool) -> Verdict:
        """Return the verdict on any path, from the top; cheap when neighbours are asked one after another."""
        parent = path.rpartition(b"/")[0]
        above = self._above(parent)
        return above if above is Verdict.SKIP else self.step(above, path, folder=folder)

    def _above(self, parent: bytes) -> Verdict:
        if not parent:
            return self.top()
        known, verdict = self._memo
        if known == parent:
            return verdict
        verdict = self.verdict_of_folder(parent)
        self._memo = (parent, verdict)
        return verdict

    def verdict_of_folder(self, path: bytes) -> Verdict:
        """Return the verdict on a folder, from the top."""
        verdict = self.top()
        end = path.find(b"/")
        while verdict is not Verdict.SKIP:
            verdict = self.step(verdict, path if end < 0 else path[:end], folder=True)
            if end < 0:
                break
            end = path.find(b"/", end + 1)
        return verdict
