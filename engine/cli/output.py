"""What commands say: text for people, one JSON document for programs."""

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from engine.entries import Problem

COMPLETE, FAILED, USAGE, PARTIAL = 0, 1, 2, 3
_SHOWN = 20
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


class WrongUsage(Exception):
    """The command line itself is wrong: exit 2."""


@dataclass
class Table:
    """Rows to line up; columns whose heading begins with > stand to the right."""

    headings: Sequence[str]
    rows: list[Sequence[str]] = field(default_factory=list)


@dataclass
class Answer:
    """How a command ended. `document` is the JSON; `text` is for people; `warnings` go to stderr, quiet or not."""

    document: dict[str, Any]
    text: Iterable[str | Table] = ()
    warnings: Iterable[str] = ()
    code: int = COMPLETE
    always: bool = False  # show `text` even when quiet: it is what the command is for


def show(answer: Answer, *, as_json: bool, quiet: bool) -> None:
    """Write an answer to stdout and stderr."""
    if as_json:
        write_json(answer.document)
        return
    for warning in answer.warnings:
        warn(warning)
    if quiet and not answer.always:
        return
    for part in answer.text:
        if isinstance(part, Table):
            _show_table(part)
        else:
            sys.stdout.write(part + "\n")
    sys.stdout.flush()


def warn(text: str) -> None:
    """Write a line to stderr."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def write_json(document: dict[str, Any]) -> None:
    """Write one document to stdout, ASCII only."""
    json.dump(document, sys.stdout, indent=2)
    sys.stdout.write("\n")
    sys.stdout.flush()


def plain(value: object) -> Any:
    """Return a struct as what JSON knows: times as RFC 3339, bytes as base64."""
    return msgspec.to_builtins(value)


def path_fields(path: bytes) -> dict[str, str]:
    """Return a path for JSON: `path`, and `path_base64` when it isn't UTF-8 or holds what `path` had to escape."""
    text = "/" + path.decode("utf-8", "backslashreplace")
    if text.encode() == b"/" + path:
        return {"path": text}
    # Paid for by the few names that need it.
    import base64

    return {"path": text, "path_base64": base64.b64encode(b"/" + path).decode()}


def problem_fields(problems: Sequence[Problem]) -> list[dict[str, Any]]:
    """Return problems for JSON."""
    return [{**path_fields(one.path), "reason": one.reason, "detail": one.detail, "lost": one.lost} for one in problems]


def shown(path: bytes) -> str:
    """Return a path for people: no name can move the cursor or fake a line."""
    text = path.decode("utf-8", "backslashreplace")
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def problem_lines(problems: Sequence[Problem], total: int) -> list[str]:
    """Return a few lines that name the problems, and how many are not named."""
    lines = []
    for one in problems[:_SHOWN]:
        kind = "lost" if one.lost else "note"
        lines.append(f"{kind}: /{shown(one.path)}: {one.reason}" + (f" ({one.detail})" if one.detail else ""))
    if total > _SHOWN:
        lines.append(f"... and {total - _SHOWN} more; --json names them")
    return lines


def size(count: int) -> str:
    """Return bytes as people read them."""
    number, unit = float(count), 0
    while number >= 1024 and unit + 1 < len(_UNITS):
        number, unit = number / 1024, unit + 1
    return f"{number:.1f} {_UNITS[unit]}" if unit else f"{count} B"


def _show_table(table: Table) -> None:
    # Loading rich takes longer than most commands: only a table or a progress bar pays for it.
    from rich.console import Console
    from rich.table import Table as RichTable

    console = Console(markup=False, emoji=False, highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = 10_000  # a program reads along: nothing may be cut or wrapped
    grid = RichTable(box=None, pad_edge=False, header_style="bold")
    for heading in table.headings:
        right = heading.startswith(">")
        grid.add_column(heading.lstrip(">"), justify="right" if right else "left", overflow="fold")
    for row in table.rows:
        grid.add_row(*row)
    console.print(grid)
