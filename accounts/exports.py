"""The audit trail as a file: JSON lines, or a table for a spreadsheet; both carry the chain."""

import csv
from collections.abc import Iterator
from typing import Any

from accounts import chain

# A spreadsheet would take a text that begins so for a formula.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
TYPES = {"jsonl": "application/x-ndjson", "csv": "text/csv; charset=utf-8"}
COLUMNS = (
    "sequence",
    "happened_at",
    "account_name",
    "user_name",
    "address",
    "action",
    "outcome",
    "object_type",
    "object_id",
    "object_name",
    "previous",
    "digest",
    "row",
)


class Echo:
    """A file that gives back what is written to it."""

    def write(self, text: str) -> str:
        return text


def stream(events: Any, *, form: str) -> Iterator[str]:
    """Yield the chained ones of `events`, oldest first, as lines of `jsonl` or `csv`.

    JSON lines: `digest`, `previous` (the digest before it) and `row`, written canonically: the digest is SHA-256 of
    `previous`, a newline, and the text of `row`. In a table the last column holds that text.
    """
    if form == "jsonl":
        for line in chain.lines(events):
            yield chain.canonical(line) + "\n"
        return
    writer = csv.writer(Echo())
    yield writer.writerow(COLUMNS)
    for line in chain.lines(events):
        shown = line | line["row"] | {"row": chain.canonical(line["row"])}
        yield writer.writerow([plain(shown[name]) for name in COLUMNS])


def plain(value: Any) -> str:
    """Return a value as a cell of a table; nothing that a spreadsheet would take for a formula."""
    text = "" if value is None else str(value)
    return f"'{text}" if text.startswith(_FORMULA) else text
