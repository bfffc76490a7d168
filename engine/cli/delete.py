"""delete: delete points that are named, for good."""

import sys

from engine.cli.expire import carried_out, document_of, warnings_of
from engine.cli.naming import named_point
from engine.cli.opening import clock, opener
from engine.cli.options import DeleteOptions
from engine.cli.output import COMPLETE, FAILED, PARTIAL, Answer, WrongUsage, warn
from engine.ids import new_ulid
from engine.verbs.expire import ExpireJob
from engine.verbs.reap import shown_name


def run(options: DeleteOptions) -> Answer:
    """Delete the points, after the person typed what goes; held and locked ones stay, and it says until when."""
    vault = opener(options)
    names = list(dict.fromkeys(named_point(vault.vault, text, series=options.series) for text in options.points))
    points = [shown_name(name) for name in names]
    if not options.yes:
        _confirm(points)
    now = clock()
    job = ExpireJob(
        run=new_ulid(now), started_at=now, points=tuple(points), reason=options.reason, confirmed=options.confirm
    )
    outcome = carried_out(vault, job, quiet=options.quiet)
    document = document_of("delete", outcome)
    gone = len(outcome.expired) + len(outcome.missing)
    code = COMPLETE if outcome.state == "complete" else PARTIAL
    if outcome.refused and not gone:
        document["state"], code = "failed", FAILED
    lines = [f"deleted: {point}" for point in outcome.expired]
    lines += [f"is not there: {point}" for point in outcome.missing]
    if outcome.expired:
        lines.append("prune frees the space that no other point needs")
    return Answer(document, lines, warnings_of(outcome), code)


def _confirm(points: list[str]) -> None:
    """Let the person type what goes. Raises WrongUsage."""
    expected = points[0].rpartition("/")[2] if len(points) == 1 else f"delete {len(points)} points"
    given = ""
    if sys.stdin is not None and sys.stdin.isatty():
        for point in points:
            warn(point)
        warn(f"What is deleted cannot be brought back. To go on, type: {expected}")
        given = sys.stdin.readline().strip()
    if given != expected:
        raise WrongUsage("nothing was deleted: type what is asked for, or give --yes")
