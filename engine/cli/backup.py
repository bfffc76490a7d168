"""backup: make one recovery point of folders of this host."""

import hashlib
import os
import platform
import re
import time
from collections.abc import Iterable

from engine.cli.described import load
from engine.cli.display import Display
from engine.cli.opening import checking_input, clock, opener, workers
from engine.cli.options import BackupOptions
from engine.cli.output import COMPLETE, PARTIAL, Answer, WrongUsage, plain, problem_fields, problem_lines, shown, size
from engine.cli.stopping import Stopping
from engine.ids import new_ulid
from engine.patterns import Selection, literal
from engine.runner import run as run_verb
from engine.sources.files import FilesSource, files_source
from engine.sources.kinds import AnySource
from engine.storage.location import Location
from engine.vault import check_series
from engine.verbs import backup
from engine.verbs.backup import BackupJob, Outcome

_UNFIT = re.compile(r"[^a-z0-9]+")


def run(options: BackupOptions) -> Answer:
    """Back up, and tell what was found and what was left out."""
    count = workers(options.workers)
    vault = opener(options)
    source, warnings = _source(options, vault.location)
    now = clock()
    job = BackupJob(
        session=new_ulid(now),
        series=options.series or default_series(source.identity().host, _roots(source)),
        source=source,
        started_at=now,
        deep=options.deep,
    )
    with checking_input():
        check_series(job.series)
        Selection(options.include, options.exclude)
    began_s = time.monotonic()
    with Stopping() as stopping, Display(stopping, quiet=options.quiet) as display:
        outcome: Outcome = run_verb(vault, backup, job, workers=count, progress=display, clock=clock)
    return _answer(outcome, job, time.monotonic() - began_s, warnings)


def default_series(host: str, roots: Iterable[bytes]) -> str:
    """Return a series' name made of host and roots: the same roots in any order give the same one.

    `<host>-<last part of the first root>-<12 digits>`; the digits are from the SHA-256 of the host and all roots.
    """
    named = sorted(set(roots))
    digits = hashlib.sha256(b"\0".join([host.encode(), *named])).hexdigest()[:12]
    last = os.fsdecode(named[0].rstrip(b"/").split(b"/")[-1])
    readable = [_UNFIT.sub("-", part.lower()).strip("-")[:24] for part in (host, last)]
    return "-".join([part.strip("-") for part in readable if part.strip("-")] + [digits])


def _roots(source: AnySource) -> Iterable[bytes]:
    return source.roots if isinstance(source, FilesSource) else [root.encode() for root in source.identity().roots]


def _source(options: BackupOptions, place: Location) -> tuple[AnySource, list[str]]:
    """Return the source; a vault that lies inside it is left out, or each backup would hold the ones before."""
    paths = options.paths or []
    if bool(paths) == bool(options.source):
        raise WrongUsage("say what to back up: either paths, or --source FILE")
    if options.source:
        if options.include or options.exclude or options.one_file_system:
            raise WrongUsage("what to include and exclude stands in the description itself")
        described: AnySource = load(options.source, AnySource)
        return described, []
    exclude, warnings = list(options.exclude), []
    if not place.is_s3:
        folder = os.path.realpath(place.folder)
        for path in paths:
            above = os.path.realpath(path)
            if folder.startswith(above.rstrip("/") + "/"):
                inside = os.path.join(os.path.abspath(path), os.path.relpath(folder, above))
                exclude.append(literal(inside) + "/")
                warnings.append(f"note: the vault itself, {inside}, is left out")
                break
    source = files_source(
        [os.fsencode(path) for path in paths],
        host=platform.node() or "localhost",
        include=options.include,
        exclude=exclude,
        one_file_system=options.one_file_system,
    )
    return source, warnings


def _answer(outcome: Outcome, job: BackupJob, duration_s: float, warnings: list[str]) -> Answer:
    stats = outcome.stats
    is_complete = outcome.state == "complete"
    document = {
        "command": "backup",
        "state": outcome.state,
        "point": outcome.point,
        "series": outcome.series,
        "stats": plain(stats),
        "duration_s": round(duration_s, 3),
        "problems": problem_fields(outcome.problems),
        "problems_total": outcome.problems_total,
        "mounts": outcome.mounts,
        "requests": outcome.requests,
    }
    if outcome.mounts and isinstance(job.source, FilesSource):
        verb = "were left out" if job.source.one_file_system else "are part of the backup"
        warnings = [
            *warnings,
            f"note: other file systems inside {verb}:",
            *(f"  {shown(os.fsencode(one))}" for one in outcome.mounts),
        ]
    lost = f"PARTIALLY COMPLETE: some content could not be saved, {outcome.problems_total} problems are listed above"
    text = [
        f"{stats.entries_read:,} new or changed of {stats.entries:,} entries "
        f"({stats.files:,} files, {size(stats.bytes)})",
        f"{size(stats.bytes_read)} read, {size(stats.bytes_new)} new, {size(stats.bytes_stored)} stored, "
        f"in {duration_s:.1f} s",
        f"point {outcome.point} of series {outcome.series}: {'complete' if is_complete else lost}",
    ]
    warnings = [*warnings, *problem_lines(outcome.problems, outcome.problems_total)]
    return Answer(document, text, warnings, COMPLETE if is_complete else PARTIAL)
