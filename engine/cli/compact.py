"""compact: free the space of chunks that no point needs inside packs that points need."""

import time

from engine.cli.display import Display
from engine.cli.opening import clock, opener, workers
from engine.cli.options import CompactOptions
from engine.cli.output import COMPLETE, FAILED, PARTIAL, Answer, Table, WrongUsage, plain, size
from engine.cli.stopping import Stopping
from engine.ids import new_ulid
from engine.runner import run as run_verb
from engine.verbs import compact
from engine.verbs.compact import CompactJob, Outcome

_STATES = {"complete": COMPLETE, "partial_complete": PARTIAL, "failed": FAILED}
_REASONS = {
    "sparse": "mostly dead",
    "tiny": "small, to be joined",
    "stuck": "condemned by a prune that was killed",
    "broken": "damaged or gone, and held elsewhere",
}


def run(options: CompactOptions) -> Answer:
    """Compact, and tell what a prune can free now; a dry run tells what it would do."""
    if not 0 < options.dead_share <= 1:
        raise WrongUsage("--dead-share is a part of a pack: more than 0 and at most 1, such as 0.3")
    count = workers(options.workers)
    vault = opener(options)
    now = clock()
    job = CompactJob(
        session=new_ulid(now), run=new_ulid(now), started_at=now, dead_share=options.dead_share,
        bytes_max=options.mib_max << 20, dry_run=options.dry_run,
    )  # fmt: skip
    began_s = time.monotonic()
    with Stopping() as stopping, Display(stopping, quiet=options.quiet) as display:
        outcome: Outcome = run_verb(vault, compact, job, workers=count, progress=display, clock=clock)
    return _answer(outcome, options, time.monotonic() - began_s)


def _answer(outcome: Outcome, options: CompactOptions, duration_s: float) -> Answer:
    document = {
        "command": "compact",
        "dry_run": options.dry_run,
        **plain(outcome),
        "duration_s": round(duration_s, 3),
        "problems": [f"{left.object}: {left.detail}" for left in outcome.left],
        "problems_total": len(outcome.left),
    }
    if outcome.findings:
        table = Table(["DAMAGE", "OBJECT", "DETAIL"])
        table.rows.extend([f.damage, f.object, f.detail] for f in outcome.findings)
        text = "REFUSED: not all points can be read, so nobody can say what they need. Nothing was changed; run verify."
        return Answer(document, [table, text], code=FAILED, always=True)
    choice = outcome.choice
    lines: list[str | Table] = [
        f"points need {choice.packs:,} packs ({size(choice.bytes)}), of which about {size(choice.bytes_dead)} are dead",
        *(f"  {count:,} {_REASONS[reason]}" for reason, count in choice.chosen.items()),
    ]
    if options.dry_run:
        lines.append(
            f"would read about {size(choice.bytes_read)} and let a prune free about {size(choice.bytes_freed)}: "
            "this was a dry run"
        )
    else:
        lines.append(
            f"{outcome.packs_moved:,} packs moved ({size(outcome.bytes_moved)}), {outcome.packs_written:,} written "
            f"({size(outcome.bytes_written)}), in {duration_s:.1f} s"
        )
        if outcome.packs_moved:
            lines.append("run prune: it deletes the packs that no point needs any more")
    return Answer(document, lines, _warnings(outcome), _STATES[outcome.state])


def _warnings(outcome: Outcome) -> list[str]:
    choice = outcome.choice
    warnings = [f"left alone: {left.object}: {left.detail}" for left in outcome.left]
    warnings += [f"damaged or gone, and not held elsewhere: {key}; run verify" for key in choice.lost]
    if choice.doubtful:
        warnings.append(f"{choice.doubtful:,} packs left alone: a listing or the index cannot be read; run verify")
    if choice.locked:
        warnings.append(f"{choice.locked:,} packs are locked: they can be freed when their locks have ended")
    if choice.later:
        warnings.append(f"{choice.later:,} packs more than one run may read: run compact again")
    return warnings
