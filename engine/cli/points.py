"""points: list the recovery points of a vault."""

from typing import Any

from engine.cli.opening import checking_input, opener
from engine.cli.options import PointsOptions
from engine.cli.output import Answer, Table, plain, size
from engine.vault import Listed, check_series


def run(options: PointsOptions) -> Answer:
    """List the points, oldest first; one whose root is damaged is listed as such."""
    if options.series:
        with checking_input():
            check_series(options.series)
    vault = opener(options).vault
    found = sorted(vault.catalogue(options.series or None), key=lambda listed: listed.name.point)
    table = Table(["POINT", "SERIES", "HOST", "STARTED", "STATE", ">ENTRIES", ">SIZE"])
    table.rows.extend(_row(listed) for listed in found)
    document = {"command": "points", "state": "complete", "points": [_fields(listed) for listed in found]}
    return Answer(document, [table if found else "The vault has no recovery point yet."], always=True)


def state_of(listed: Listed) -> str:
    """Return complete, partial_complete or damaged."""
    if listed.root is None:
        return "damaged"
    return "complete" if listed.root.body.complete else "partial_complete"


def _row(listed: Listed) -> list[str]:
    head = [listed.name.point, listed.name.series]
    if listed.root is None:
        return [*head, "?", "?", state_of(listed), "?", "?"]
    body = listed.root.body
    started = body.started_at.astimezone().strftime("%Y-%m-%d %H:%M:%S")
    return [*head, body.host, started, state_of(listed), f"{body.stats.entries:,}", size(body.stats.bytes)]


def _fields(listed: Listed) -> dict[str, Any]:
    fields = {"point": listed.name.point, "series": listed.name.series, "state": state_of(listed)}
    if listed.root is None:
        return {**fields, "error": str(listed.error)}
    body = listed.root.body
    return {
        **fields,
        "kind": body.kind,
        "host": body.host,
        "roots": body.roots,
        "started_at": plain(body.started_at),
        "ended_at": plain(body.ended_at),
        "stats": plain(body.stats),
        "problems_total": body.problems_total,
        "mounts": body.mounts,
    }
