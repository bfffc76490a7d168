"""verify: prove by reading that a vault's points can be restored."""

import time
from typing import Any

from engine.cli.display import Display
from engine.cli.opening import clock, opener, workers
from engine.cli.options import VerifyOptions
from engine.cli.output import COMPLETE, FAILED, Answer, Table, WrongUsage, path_fields, plain, shown, size
from engine.cli.stopping import Stopping
from engine.ids import new_ulid
from engine.runner import run as run_verb
from engine.verbs import verify
from engine.verbs.findings import Finding
from engine.verbs.verify import WHOLE, Outcome, VerifyJob


def run(options: VerifyOptions) -> Answer:
    """Verify; any damage is a failure."""
    if (options.days or options.mib_max) and options.level not in WHOLE:
        raise WrongUsage("--days and --mib-max spread what --level scrub and --level content read")
    count = workers(options.workers)
    vault = opener(options)
    now = clock()
    job = VerifyJob(
        session=new_ulid(now), level=options.level.value, started_at=now,
        days=options.days, bytes_max=options.mib_max << 20,
    )  # fmt: skip
    began_s = time.monotonic()
    with Stopping() as stopping, Display(stopping, quiet=options.quiet) as display:
        outcome: Outcome = run_verb(vault, verify, job, workers=count, progress=display, clock=clock)
    return _answer(outcome, time.monotonic() - began_s)


def _answer(outcome: Outcome, duration_s: float) -> Answer:
    census = outcome.census
    document = {
        "command": "verify",
        "state": outcome.state,
        "level": outcome.level,
        "stats": {"objects": outcome.objects, "bytes": outcome.bytes, "blocks": outcome.blocks, **plain(census)},
        "duration_s": round(duration_s, 3),
        "findings": [_fields(finding) for finding in outcome.findings],
        "points_affected": outcome.lost,
        "packs_damaged": outcome.damaged,
        "packs_healed": outcome.healed,
        "coverage": {**plain(outcome.coverage), "share": outcome.coverage.share} if outcome.coverage else None,
        "problems": [],
        "problems_total": len(outcome.findings),
    }
    text: list[str | Table] = [
        f"{census.points:,} points and {census.packs:,} packs at level {outcome.level}: "
        f"{outcome.objects:,} objects ({size(outcome.bytes)}) and {outcome.blocks:,} listing blocks read, "
        f"in {duration_s:.1f} s",
    ]
    text += _coverage(outcome)
    if not outcome.findings:
        return Answer(document, [*text, "nothing is wrong"], code=COMPLETE)
    table = Table(["DAMAGE", "OBJECT", ">POINTS", ">FILES", "DETAIL"])
    table.rows.extend([f.damage, f.object, str(len(f.points)), str(f.files), f.detail] for f in outcome.findings)
    advice = [f"{damage}: {text}" for damage, text in sorted({f.damage: f.advice for f in outcome.findings}.items())]
    text += [table, f"DAMAGE FOUND: {len(outcome.findings)} findings, {len(outcome.lost)} points affected:"]
    text += [f"  {point}" for point in outcome.lost] + _files(outcome) + advice
    if outcome.damaged:
        text.append(f"{len(outcome.damaged)} packs are noted as damaged: backups store again what was in them")
    return Answer(document, text, code=FAILED, always=True)


def _coverage(outcome: Outcome) -> list[str]:
    found = outcome.coverage
    if found is None:
        return []
    waiting = f"; the longest wait began {found.oldest:%Y-%m-%d}" if found.oldest else ""
    read = f"{size(found.bytes_read)} of {size(found.bytes)} ({found.share:.1%})"
    return [f"every byte read in the last {found.days} days: {read}{waiting}"]


def _files(outcome: Outcome) -> list[str]:
    """Return lines that name the first affected files of each object."""
    lines = []
    for finding in outcome.findings:
        if finding.paths:
            more = f", and {finding.files - len(finding.paths):,} more" if finding.files > len(finding.paths) else ""
            lines.append(f"files affected by {finding.object}{more}:")
            lines += [f"  {shown(path)}" for path in finding.paths]
    return lines


def _fields(finding: Finding) -> dict[str, Any]:
    return {
        "object": finding.object,
        "damage": finding.damage,
        "detail": finding.detail,
        "points": finding.points,
        "files": finding.files,
        "first_files": [path_fields(path) for path in finding.paths],
        "advice": finding.advice,
    }
