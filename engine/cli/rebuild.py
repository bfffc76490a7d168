"""rebuild: read the catalogue back from the bucket, and mend the index."""

import time

from engine.cli.display import Display
from engine.cli.opening import clock, opener, workers
from engine.cli.options import RebuildOptions
from engine.cli.output import COMPLETE, PARTIAL, Answer, plain
from engine.cli.stopping import Stopping
from engine.ids import new_ulid
from engine.runner import run as run_verb
from engine.verbs import rebuild
from engine.verbs.rebuild import Outcome, RebuildJob


def run(options: RebuildOptions) -> Answer:
    """Rebuild, and tell what was found and what could not be read."""
    count = workers(options.workers)
    vault = opener(options)
    now = clock()
    job = RebuildJob(session=new_ulid(now), started_at=now)
    began_s = time.monotonic()
    with Stopping() as stopping, Display(stopping, quiet=options.quiet) as display:
        outcome: Outcome = run_verb(vault, rebuild, job, workers=count, progress=display, clock=clock)
    return _answer(outcome, time.monotonic() - began_s)


def _answer(outcome: Outcome, duration_s: float) -> Answer:
    series = sorted({row.series for row in outcome.rows})
    is_complete = outcome.state == "complete"
    document = {
        "command": "rebuild",
        "state": outcome.state,
        "stats": {
            "points": len(outcome.rows),
            "series": len(series),
            "packs_listed": outcome.packs_listed,
            "segments_written": outcome.segments_written,
            "segments_replaced": len(outcome.replaced),
        },
        "duration_s": round(duration_s, 3),
        "points": [plain(row) for row in outcome.rows],
        "problems": [plain(broken) for broken in outcome.broken],
        "problems_total": len(outcome.broken),
        "waiting": outcome.waiting,
    }
    warnings = [f"cannot be read: {broken.object}: {broken.detail}" for broken in outcome.broken]
    if outcome.waiting:
        warnings.append(f"{len(outcome.waiting)} sessions are open: run rebuild again when they have ended")
    text = [
        f"{len(outcome.rows):,} points in {len(series):,} series, in {duration_s:.1f} s",
        *(f"  {name}: {sum(row.series == name for row in outcome.rows):,}" for name in series),
        f"index: {outcome.packs_listed:,} packs listed anew, {len(outcome.replaced):,} segments replaced",
        "complete" if is_complete else "PARTIALLY COMPLETE: what could not be read or must wait is listed above",
    ]
    return Answer(document, text, warnings, COMPLETE if is_complete else PARTIAL)
