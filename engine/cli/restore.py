"""restore: write a point, or what is chosen of it, into a folder."""

import os
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

from engine.cli.described import load
from engine.cli.display import Display
from engine.cli.looking import find_point
from engine.cli.opening import checking_input, clock, opener, workers
from engine.cli.options import RestoreOptions, SameName
from engine.cli.output import (
    COMPLETE,
    PARTIAL,
    Answer,
    WrongUsage,
    path_fields,
    problem_fields,
    problem_lines,
    shown,
    size,
    warn,
)
from engine.cli.stopping import Stopping
from engine.entries import sort_key
from engine.ids import new_ulid
from engine.patterns import Selection
from engine.runner import VaultOpener
from engine.runner import run as run_verb
from engine.targets.files import FilesTarget
from engine.targets.kinds import AnyTarget
from engine.verbs import restore
from engine.verbs.restore import Outcome, RestoreJob

_LOST_FOR_GOOD = "warning: --same-name overwrite replaces what stands there now; the present content is lost for good"


def run(options: RestoreOptions) -> Answer:
    """Restore, or with --dry-run say what that would do."""
    count = workers(options.workers)
    target = _target(options)
    with checking_input():
        Selection(options.include, options.exclude)
    target.check()
    vault = opener(options)
    name = find_point(vault.vault, point=options.point, series=options.series)
    now = clock()
    job = RestoreJob(
        session=new_ulid(now),
        series=name.series,
        point=name.point,
        target=target,
        started_at=now,
        include=tuple(options.include),
        exclude=tuple(options.exclude),
        same_name=options.same_name.value,
        dry_run=options.dry_run,
    )
    began_s = time.monotonic()
    with Stopping() as stopping, Display(stopping, quiet=options.quiet) as display:
        if options.dry_run:
            return _dry_run(vault, job, display)
        if options.same_name is SameName.OVERWRITE:
            warn(_LOST_FOR_GOOD)
        outcome: Outcome = run_verb(vault, restore, job, workers=count, progress=display, clock=clock)
    return _answer(outcome, job, time.monotonic() - began_s)


def _target(options: RestoreOptions) -> AnyTarget:
    if [bool(options.to), options.original, bool(options.target)].count(True) != 1:
        raise WrongUsage("say where to: either --to DIR, --original for the place it came from, or --target FILE")
    if options.target:
        described: AnyTarget = load(options.target, AnyTarget)
        return described
    return FilesTarget(root=os.fsencode(os.path.abspath(options.to or "/")))


def _dry_run(opener: VaultOpener, job: RestoreJob, display: Display) -> Answer:
    vault = opener.vault
    counts: Counter[str] = Counter()
    listed: list[tuple[str, bytes]] = []
    try:
        for unit in restore.plan(vault, job, display, now=clock()):
            display.check()
            listed.extend(_planned(unit))
    finally:
        vault.join_session(job.session).close("done", clock())
    counts.update(what for what, _ in listed)
    document = {
        **_head(job),
        "state": "complete",
        "dry_run": True,
        "stats": dict(counts),
        "entries": [{"action": what, **path_fields(path)} for what, path in listed],
        "problems": [],
        "problems_total": 0,
    }
    total = ", ".join(f"{count:,} to {what}" for what, count in sorted(counts.items())) or "nothing to do"
    lines = [*(f"{what:<5} /{shown(path)}" for what, path in listed), f"dry run, nothing was written: {total}"]
    return Answer(document, lines, always=True)


def _planned(unit: restore.Unit) -> Iterator[tuple[str, bytes]]:
    """Yield what a unit would do: write a file, make a folder, link or device, skip what is there, refuse a path."""
    found = [("write", entry.path) for entry in unit.files]
    found += [("make", entry.path) for entry in unit.others]
    found += [("make", after.entry.path) for after in unit.after]
    found += [("skip", path) for path in unit.skipped]
    found += [("refuse", problem.path) for problem in unit.problems]
    yield from sorted(found, key=lambda one: sort_key(one[1]))


def _head(job: RestoreJob) -> dict[str, Any]:
    return {"command": "restore", "point": job.point, "series": job.series, "target": job.target.where()}


def _answer(outcome: Outcome, job: RestoreJob, duration_s: float) -> Answer:
    is_complete = outcome.state == "complete"
    document = {
        **_head(job),
        "state": outcome.state,
        "dry_run": False,
        "stats": {
            "entries": outcome.entries,
            "files": outcome.files,
            "bytes": outcome.bytes,
            "skipped": outcome.skipped,
        },
        "duration_s": round(duration_s, 3),
        "problems": problem_fields(outcome.problems),
        "problems_total": outcome.problems_total,
    }
    lost = f"PARTIALLY COMPLETE: some entries could not be restored, {outcome.problems_total} problems are listed above"
    text = [
        f"{outcome.entries:,} entries written to {job.target.where()} "
        f"({outcome.files:,} files, {size(outcome.bytes)}), in {duration_s:.1f} s",
        f"{outcome.skipped:,} skipped, because something of that name is there already",
        f"restore of point {outcome.point}: {'complete' if is_complete else lost}",
    ]
    warnings = problem_lines(outcome.problems, outcome.problems_total)
    return Answer(document, text, warnings, COMPLETE if is_complete else PARTIAL)
