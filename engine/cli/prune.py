"""prune: delete the packs that no point needs."""

import time

from engine.cli.display import Display
from engine.cli.opening import clock, workers
from engine.cli.options import PruneOptions
from engine.cli.output import COMPLETE, FAILED, PARTIAL, Answer, Table, plain, size
from engine.cli.replica import following
from engine.cli.stopping import Stopping
from engine.ids import new_ulid
from engine.runner import VaultOpener
from engine.runner import run as run_verb
from engine.verbs import prune
from engine.verbs.prune import Outcome, PruneJob

_AGAIN_S = 5.0
_STATES = {"complete": COMPLETE, "partial_complete": PARTIAL, "failed": FAILED}


def run(options: PruneOptions) -> Answer:
    """Prune, and tell what was freed and what waits; with --wait, again until nothing waits any more."""
    count = workers(options.workers)
    began_s = time.monotonic()
    freed = packs = 0
    vault = following(options, options.source)
    with Stopping() as stopping, Display(stopping, quiet=options.quiet) as display:
        while True:
            outcome = _once(vault, options, count, display)
            freed, packs = freed + outcome.bytes_freed, packs + outcome.packs_deleted
            if not (options.wait and outcome.waiting and outcome.state != "failed"):
                break
            _pause(display)
    outcome.bytes_freed, outcome.packs_deleted = freed, packs
    return _answer(outcome, options, time.monotonic() - began_s)


def _once(vault: VaultOpener, options: PruneOptions, count: int, display: Display) -> Outcome:
    now = clock()
    job = PruneJob(run=new_ulid(now), started_at=now, dry_run=options.dry_run)
    outcome: Outcome = run_verb(vault, prune, job, workers=count, progress=display, clock=clock)
    return outcome


def _pause(display: Display) -> None:
    until_s = time.monotonic() + _AGAIN_S
    while time.monotonic() < until_s:
        display.check()
        time.sleep(0.1)


def _answer(outcome: Outcome, options: PruneOptions, duration_s: float) -> Answer:
    document = {
        "command": "prune",
        "dry_run": options.dry_run,
        **plain(outcome),
        "duration_s": round(duration_s, 3),
        "problems": outcome.refused,
        "problems_total": len(outcome.refused),
    }
    if outcome.findings:
        return _refused(document, outcome)
    text: list[str | Table] = [
        f"{outcome.packs:,} packs ({size(outcome.bytes)}), of which no point needs "
        f"{outcome.packs_unneeded:,} ({size(outcome.bytes_unneeded)})",
        "nothing was changed: this was a dry run"
        if options.dry_run
        else f"{outcome.packs_deleted:,} packs deleted, {size(outcome.bytes_freed)} freed, in {duration_s:.1f} s",
    ]
    if outcome.resolved.committed:
        text.append(f"points of dead backups that turned out complete: {', '.join(outcome.resolved.committed)}")
    return Answer(document, text, _warnings(outcome), _STATES[outcome.state])


def _warnings(outcome: Outcome) -> list[str]:
    warnings = [f"not deleted: {refused}" for refused in outcome.refused]
    if outcome.packs_waiting:
        warnings.append(f"{outcome.packs_waiting:,} packs may belong to sessions that run: a later prune looks again")
    if outcome.waiting:
        warnings.append(f"waiting for {len(outcome.waiting)} sessions: run prune again when they have ended, or --wait")
    if outcome.locked_until:
        warnings.append(
            f"{outcome.locked:,} packs are locked, the last until {outcome.locked_until:%Y-%m-%d %H:%M} UTC"
        )
    if outcome.fenced:
        warnings.append(
            f"{len(outcome.fenced)} sessions gave no sign of life and were fenced: they commit nothing more"
        )
    if outcome.stuck:
        warnings.append(f"runs whose process was killed while it decided: {', '.join(outcome.stuck)}; compact rewrites")
    return warnings


def _refused(document: dict[str, object], outcome: Outcome) -> Answer:
    table = Table(["DAMAGE", "OBJECT", "DETAIL"])
    table.rows.extend([f.damage, f.object, f.detail] for f in outcome.findings)
    text = "REFUSED: the vault is not whole, and a prune could make it worse. Nothing was deleted; run verify."
    return Answer(document, [table, text], code=FAILED, always=True)
