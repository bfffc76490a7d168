"""erase: delete a whole vault, once its last lock has ended."""

import time

from engine.cli.display import Display
from engine.cli.opening import clock, opener, workers
from engine.cli.options import EraseOptions
from engine.cli.output import COMPLETE, PARTIAL, Answer, WrongUsage, plain, size
from engine.cli.stopping import Stopping
from engine.runner import run as run_verb
from engine.verbs import erase
from engine.verbs.erase import EraseJob, Outcome


def run(options: EraseOptions) -> Answer:
    """Erase the vault that --vault-id names, or say until when a lock keeps it."""
    count = workers(options.workers)
    vault = opener(options)
    opened = vault.vault
    if not options.vault_id:
        raise WrongUsage(
            f"This deletes the vault and its {len(opened.points())} recovery points for good. "
            f"To go on, give --vault-id {opened.info.vault_id}"
        )
    now = clock()
    job = EraseJob(vault_id=options.vault_id, started_at=now, dry_run=options.dry_run)
    began_s = time.monotonic()
    with Stopping() as stopping, Display(stopping, quiet=options.quiet) as display:
        outcome: Outcome = run_verb(vault, erase, job, workers=count, progress=display, clock=clock)
    return _answer(outcome, options, time.monotonic() - began_s)


def _answer(outcome: Outcome, options: EraseOptions, duration_s: float) -> Answer:
    document = {
        "command": "erase",
        "dry_run": options.dry_run,
        **plain(outcome),
        "duration_s": round(duration_s, 3),
        "problems": outcome.refused,
        "problems_total": len(outcome.refused),
    }
    verb = "would be deleted" if options.dry_run else "deleted"
    text = [f"{outcome.objects_deleted:,} objects ({size(outcome.bytes_freed)}) {verb}, in {duration_s:.1f} s"]
    warnings = []
    if outcome.locked_until:
        warnings.append(f"locks keep the rest until {outcome.locked_until:%Y-%m-%d %H:%M} UTC: erase it again then")
    if outcome.waiting:
        warnings.append(f"{len(outcome.waiting)} sessions run: erase it again when they have ended")
    if outcome.state == "complete":
        text.append("this was a dry run" if options.dry_run else "nothing of the vault is left")
    return Answer(document, text, warnings, COMPLETE if outcome.state == "complete" else PARTIAL)
