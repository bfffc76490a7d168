"""All errors and skipped entries of a job, one a line, for a person's spreadsheet or a program."""

import csv
import io
import json
from collections.abc import Iterable, Iterator
from typing import Any

from engine.entries import Problem
from engine.errors import EngineError
from engine.vault import PointName
from jobs.models import Job
from jobs.states import Kind
from vaults import repositories

CSV, JSON_LINES = "csv", "jsonl"
FORMATS = (CSV, JSON_LINES)
CONTENT_TYPES = {CSV: "text/csv; charset=utf-8", JSON_LINES: "application/jsonl"}
COLUMNS = ("path", "reason", "detail", "lost")
NOT_LISTED = "not-listed"
# What a spreadsheet would take for a formula.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
_LINES_AT_ONCE = 500


def row(problem: Problem) -> dict[str, Any]:
    """Return a problem of the engine as reports tell it; bytes that are no UTF-8 are written as \\xNN."""
    return {
        "path": "/" + problem.path.decode("utf-8", "backslashreplace"),
        "reason": problem.reason,
        "detail": problem.detail,
        "lost": problem.lost,
    }


def listed(job: Job) -> tuple[Iterable[dict[str, Any]], int]:
    """Return what is known by path, and how many more there are.

    A backup's are in its recovery point, up to 100,000 of them; those of other jobs, and of a backup whose point is
    gone or can't be read now, are the first of them, in the job's row.
    """
    if job.kind == Kind.BACKUP and job.point is not None:
        try:
            vault = repositories.open_vault(job.vault)
            body = vault.root(PointName(job.point.series, job.point.point_id)).body
        except (EngineError, OSError):
            pass
        else:
            return (row(problem) for problem in body.problems), body.problems_total - len(body.problems)
    kept = job.report.get("problems", [])
    return kept, max(job.problems_count - len(kept), 0)


def lines(job: Job, *, format: str) -> Iterator[str]:
    """Yield the report in one of FORMATS, some hundred lines at once. The vault is read before the first is yielded."""
    known, more = listed(job)
    return _written(_all(known, more), format)


def _all(known: Iterable[dict[str, Any]], more: int) -> Iterator[dict[str, Any]]:
    yield from known
    if more:
        yield {"path": "", "reason": NOT_LISTED, "detail": f"{more} more are counted, but not listed", "lost": False}


def _written(rows: Iterator[dict[str, Any]], format: str) -> Iterator[str]:
    buffer = io.StringIO()
    table = csv.writer(buffer)
    if format == CSV:
        table.writerow(COLUMNS)
    for number, one in enumerate(rows, 1):
        values = {name: one.get(name, "") for name in COLUMNS}
        if format == CSV:
            table.writerow([_harmless(value) for value in values.values()])
        else:
            buffer.write(json.dumps(values, ensure_ascii=False) + "\n")
        if number % _LINES_AT_ONCE == 0:
            yield buffer.getvalue()
            buffer.seek(0)
            buffer.truncate()
    yield buffer.getvalue()


def _harmless(value: object) -> str:
    text = ("yes" if value else "no") if isinstance(value, bool) else str(value)
    return f"'{text}" if text.startswith(_FORMULA) else text
