"""expire: let go of points by rules, or show what the rules would let go."""

from collections.abc import Iterable
from typing import Any

import msgspec

from engine.cli.display import Display
from engine.cli.opening import checking_input, clock, opener
from engine.cli.options import ExpireOptions
from engine.cli.output import COMPLETE, PARTIAL, Answer, Table, plain
from engine.cli.stopping import Stopping
from engine.ids import new_ulid
from engine.retention import Rules
from engine.runner import VaultOpener
from engine.runner import run as run_verb
from engine.vault import check_series
from engine.verbs import expire
from engine.verbs.expire import Decision, ExpireJob, Outcome


def run(options: ExpireOptions) -> Answer:
    """Judge the points; without --dry-run expire what no rule keeps."""
    rules = _rules(options)
    vault = opener(options)
    now = clock()
    job = ExpireJob(
        run=new_ulid(now), started_at=now, rules=dict.fromkeys(options.series, rules),
        default=None if options.series else rules, confirmed=options.confirm, dry_run=options.dry_run,
    )  # fmt: skip
    outcome = carried_out(vault, job, quiet=options.quiet)
    return _answer(outcome)


def carried_out(vault: VaultOpener, job: ExpireJob, *, quiet: bool) -> Outcome:
    """Run an expiry to its end in this process."""
    with Stopping() as stopping, Display(stopping, quiet=quiet) as display:
        outcome: Outcome = run_verb(vault, expire, job, workers=1, progress=display, clock=clock)
    return outcome


def document_of(command: str, outcome: Outcome) -> dict[str, Any]:
    """Return an outcome for JSON."""
    problems = [*(plain(one) for one in outcome.refused), *({"point": one} for one in outcome.damaged)]
    return {"command": command, **plain(outcome), "problems": problems, "problems_total": len(problems)}


def warnings_of(outcome: Outcome) -> list[str]:
    """Return what went otherwise than asked."""
    warnings = [f"not deleted: {one.point}: {one.reason}" for one in outcome.refused]
    warnings += [f"cannot be read, so it stays: {point}; delete it by its name" for point in outcome.damaged]
    warnings += [f"visible again, because it is held or locked: {point}" for point in outcome.shown]
    warnings += [
        f"expired, and still read by {', '.join(one.sessions)}: {one.point}; a later run deletes it"
        for one in outcome.waiting
    ]
    if outcome.fenced:
        warnings.append(f"sessions that gave no sign of life were fenced: {', '.join(outcome.fenced)}")
    return warnings


def _rules(options: ExpireOptions) -> Rules:
    counts = {
        "last": options.keep_last, "daily": options.keep_daily, "weekly": options.keep_weekly,
        "monthly": options.keep_monthly, "yearly": options.keep_yearly,
    }  # fmt: skip
    days = options.keep_days
    if days is None and any(counts.values()):
        days = 0
    with checking_input():
        for series in options.series:
            check_series(series)
        rules = msgspec.structs.replace(
            Rules(days=days), **counts, at_least_one=options.keep_at_least_one, zone=options.time_zone
        )
        rules.check()
    return rules


def _answer(outcome: Outcome) -> Answer:
    going = [decision for decision in outcome.decisions if not decision.keep]
    warnings = warnings_of(outcome)
    code = COMPLETE if outcome.state == "complete" else PARTIAL
    if outcome.dry_run:
        warnings += [f"would be refused without --confirm: {text}" for text in outcome.objections]
        kept = len(outcome.decisions) - len(going)
        text = f"{len(going):,} points would go, {kept:,} would stay; nothing was changed: this was a dry run"
        return Answer(document_of("expire", outcome), [_table(outcome.decisions), text], warnings, code, always=True)
    lines: list[str | Table] = [_table(going)] if going else []
    lines.append(
        f"{len(outcome.expired):,} of {outcome.visible:,} points expired, {len(outcome.deleted):,} deleted; "
        "prune frees their space"
    )
    return Answer(document_of("expire", outcome), lines, warnings, code)


def _table(decisions: Iterable[Decision]) -> Table:
    table = Table(["POINT", "SERIES", "COMPLETED", "STATE", "", "WHY"])
    for one in decisions:
        completed = one.completed_at.astimezone().strftime("%Y-%m-%d %H:%M") if one.completed_at else "?"
        verdict = "stays" if one.keep else "goes"
        table.rows.append([one.point, one.series, completed, one.state, verdict, "; ".join(one.reasons)])
    return table
