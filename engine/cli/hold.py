"""hold, release, holds: keep points from every expiry and deletion, let go of them, list them."""

from functools import singledispatch
from typing import Any

from engine.cli import options
from engine.cli.naming import named_point
from engine.cli.opening import checking_input, clock, opener
from engine.cli.output import COMPLETE, FAILED, Answer, Table, plain
from engine.verbs import hold as verb
from engine.verbs.hold import Held

_DAMAGED = "its note is damaged or forged; it holds all the same"


@singledispatch
def run(given: object) -> Answer:
    """Run the command whose options were given."""
    raise TypeError(f"no command takes {type(given).__name__}")


@run.register
def _hold(given: options.HoldOptions) -> Answer:
    """Hold a point."""
    vault = opener(given).vault
    name = named_point(vault, given.point, series=given.series)
    with checking_input():
        note = verb.hold(vault, name, reason=given.reason, now=clock())
    document = {"command": "hold", "state": "complete", **plain(note)}
    return Answer(document, [f"held until it is released: {name.series}/{name.point}"])


@run.register
def _release(given: options.ReleaseOptions) -> Answer:
    """Let go of a point."""
    vault = opener(given).vault
    name = named_point(vault, given.point, series=given.series)
    count = verb.release(vault, name)
    document = {"command": "release", "state": "complete" if count else "failed", "holds": count}
    document |= {"series": name.series, "point": name.point}
    if not count:
        return Answer(document, [f"not held: {name.series}/{name.point}"], code=FAILED, always=True)
    return Answer(document, [f"released ({count} holds): {name.series}/{name.point}"], code=COMPLETE)


@run.register
def _holds(given: options.HoldsOptions) -> Answer:
    """List what is held."""
    found = list(verb.holds(opener(given).vault))
    table = Table(["POINT", "SERIES", "SINCE", "REASON"])
    table.rows.extend(_row(held) for held in found)
    document = {"command": "holds", "state": "complete", "holds": [_fields(held) for held in found]}
    return Answer(document, [table if found else "No point is held."], always=True)


def _row(held: Held) -> list[str]:
    since = held.hold.at.astimezone().strftime("%Y-%m-%d %H:%M") if held.hold else "?"
    return [held.name.point, held.name.series, since, held.hold.reason if held.hold else _DAMAGED]


def _fields(held: Held) -> dict[str, Any]:
    fields = {"series": held.name.series, "point": held.name.point}
    return {**fields, **(plain(held.hold) if held.hold else {"error": _DAMAGED})}
