"""The names of PostgreSQL's write-ahead log files: which follow which, which are missing."""

import itertools
import re
from collections.abc import Iterable

SEGMENT = re.compile(r"[0-9A-F]{24}")
BESIDE = re.compile(r"[0-9A-F]{8}\.history|[0-9A-F]{24}\.[0-9A-F]{8}\.backup")  # small files that belong to the log
_FILE = 1 << 32  # the bytes of log that the middle part of a name counts


def number(name: str, size: int) -> int:
    """Return which segment of `size` bytes a name means, counted from the log's beginning, on any timeline."""
    return int(name[8:16], 16) * (_FILE // size) + int(name[16:], 16)


def name_of(timeline: str, segment: int, size: int) -> str:
    """Return the name of a segment; the timeline is the first eight letters."""
    return f"{timeline}{segment // (_FILE // size):08X}{segment % (_FILE // size):08X}"


def position(text: str) -> int:
    """Return a log position such as 1A/2B3C as a number."""
    high, _, low = text.partition("/")
    return (int(high, 16) << 32) + int(low, 16)


def gaps(names: Iterable[str], size: int) -> list[tuple[str, str]]:
    """Return the first and last name of every run of segments that is missing between others."""
    found: list[tuple[str, str]] = []
    # On a new timeline the log goes on from a segment that the old one may have begun too.
    segments = sorted({number(name, size): name[:8] for name in sorted(names)}.items())
    for (before, timeline), (after, _) in itertools.pairwise(segments):
        if after > before + 1:
            found.append((name_of(timeline, before + 1, size), name_of(timeline, after - 1, size)))
    return found
