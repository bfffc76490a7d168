"""Compare a restored folder with the one it came from, entry by entry and byte by byte."""

import datetime as dt
import filecmp
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

DIFFERENCES_SHOWN = 20


@dataclass(slots=True)
class Comparison:
    """What was compared. `changed_meanwhile` are entries that changed in the source since its backup."""

    entries: int = 0
    files: int = 0
    bytes: int = 0
    changed_meanwhile: int = 0
    differences: list[str] = field(default_factory=list)

    @property
    def equal(self) -> bool:
        """Say whether everything restored is as it was."""
        return not self.differences and self.files > 0

    @property
    def verdict(self) -> str:
        """Return the outcome in a few words."""
        if not self.equal:
            return "they differ"
        return "all equal" + (f", {self.changed_meanwhile} changed since the backup" if self.changed_meanwhile else "")

    def differ(self, path: Path, why: str) -> None:
        """Note a difference."""
        if len(self.differences) < DIFFERENCES_SHOWN:
            self.differences.append(f"{path}: {why}")


def compare(source: Path, restored: Path, *, since: dt.datetime) -> Comparison:
    """Compare everything at and below `restored` with its original: kind, content, link target, permissions, time.

    What changed in the source after `since` may differ; it is counted and not compared.
    """
    filecmp.clear_cache()  # it would trust an earlier look at files of the same size and time
    found = Comparison()
    pairs = [(source, restored)]
    for folder, folders, files in os.walk(restored):
        paths = [Path(folder, name) for name in (*folders, *files)]
        pairs += [(source / path.relative_to(restored), path) for path in paths]
    since_ns = int(since.timestamp() * 10**9)
    for original, copy in pairs:
        found.entries += 1
        _compare(original, copy, found, since_ns)
    return found


def _compare(source: Path, restored: Path, found: Comparison, since_ns: int) -> None:
    have = restored.lstat()
    try:
        want = source.lstat()
    except FileNotFoundError:
        found.changed_meanwhile += 1
        return
    regular = stat.S_ISREG(want.st_mode)
    if want.st_ctime_ns >= since_ns:
        found.changed_meanwhile += 1
    elif want.st_mode != have.st_mode:
        found.differ(source, "another kind or other permissions")
    elif stat.S_ISLNK(want.st_mode) and source.readlink() != restored.readlink():
        found.differ(source, "another link target")
    elif want.st_mtime_ns != have.st_mtime_ns:
        found.differ(source, "another time of change")
    elif regular and not filecmp.cmp(source, restored, shallow=False):
        found.differ(source, "other content")
    elif regular:
        found.files += 1
        found.bytes += have.st_size
