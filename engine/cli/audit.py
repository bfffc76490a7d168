"""audit: prove that what is locked stays locked, and undo what somebody did behind the vault's back."""

import time

from engine.cli.display import Display
from engine.cli.opening import clock, opener, workers
from engine.cli.options import AuditOptions
from engine.cli.output import COMPLETE, FAILED, PARTIAL, Answer, Table, plain
from engine.cli.stopping import Stopping
from engine.ids import new_ulid
from engine.runner import VaultOpener
from engine.runner import run as run_verb
from engine.verbs import audit, uncover
from engine.verbs.audit import AuditJob, Outcome

_STATES = {"complete": COMPLETE, "partial_complete": PARTIAL, "failed": FAILED}


def run(options: AuditOptions) -> Answer:
    """Audit; what was found is shown even when it is right again."""
    count = workers(options.workers)
    vault = opener(options)
    began_s = time.monotonic()
    with Stopping() as stopping, Display(stopping, quiet=options.quiet) as display:
        outcome = audited(vault, count, display)
    document = {
        "command": "audit",
        **plain(outcome),
        "duration_s": round(time.monotonic() - began_s, 3),
        "problems": [],
        "problems_total": len(outcome.findings),
    }
    return Answer(document, lines(outcome), code=_STATES[outcome.state], always=bool(outcome.findings))


def audited(vault: VaultOpener, count: int, display: Display) -> Outcome:
    """Run an audit, the vault's entrance first."""
    entrance = tuple(uncover.entrance(vault.storage(), vault.provider()))
    now = clock()
    job = AuditJob(session=new_ulid(now), started_at=now, entrance=entrance)
    outcome: Outcome = run_verb(vault, audit, job, workers=count, progress=display, clock=clock)
    return outcome


def lines(outcome: Outcome) -> list[str | Table]:
    """Return an outcome for people."""
    text: list[str | Table] = [_head(outcome)]
    if outcome.days:
        until = f", the last until {outcome.furthest:%Y-%m-%d}" if outcome.furthest else ""
        text.append(
            f"{outcome.points:,} points, {outcome.objects:,} objects have to be locked{until}; "
            f"{outcome.lengthened:,} locks were made longer"
        )
    if not outcome.findings:
        return [*text, "nothing is wrong"]
    table = Table(["FOUND", "NOW", "OBJECT", "DETAIL"])
    table.rows.extend([f.kind, "repaired" if f.repaired else "WRONG", f.object, f.detail] for f in outcome.findings)
    wrong = sum(not finding.repaired for finding in outcome.findings)
    last = f"{wrong} things are still wrong" if wrong else "everything is right again; find out who did this"
    return [*text, table, last]


def _head(outcome: Outcome) -> str:
    if not outcome.days:
        return "The vault is not locked."
    proof = ": today's canary could not be destroyed" if outcome.is_proven else ""
    return f"Locked for {outcome.days} days, {outcome.level}{proof}."
