"""How a job reads on its page and in the list: where it is now, what it counted, what went wrong."""

import datetime as dt
from collections import Counter
from typing import Any

from django.http import StreamingHttpResponse
from django.template.loader import render_to_string
from django.urls import reverse
from django.utils.html import format_html, format_html_join

from accounts.console import human_bytes
from jobs import course, problems
from jobs.models import Job
from jobs.states import JobState, Kind, Stage, StepState
from policies.kinds import TYPES
from policies.kinds.port import UNITS

# What stands elsewhere on a job's page, or is for programs.
_ELSEWHERE = ("problems", "mounts", "requests", "stats", "census", "decisions", "dry_run")
_COUNTED = ("entries", "files", "bytes", "skipped")
DECISIONS_ON_PAGE = 200
PROBLEMS_ON_PAGE = 50
EVENTS_ON_PAGE = 5
POLL_S = 2
VARIANTS: dict[str, str] = {
    JobState.COMPLETE: "success",
    JobState.PARTIAL_COMPLETE: "warning",
    JobState.FAILED: "danger",
    JobState.MISSED: "danger",
    JobState.QUEUED: "info",
    JobState.RUNNING: "info",
    JobState.CANCELING: "warning",
}
# What the engine calls a phase, and what goes on in it (B11).
PHASES = {
    "scan": "Scan: looking for what changed",
    "process": "Process: reading, deduplicating, compressing",
    "upload": "Upload: storing what is new",
    "commit": "Commit: writing the recovery point",
    "restore": "Restore: writing what was selected",
    "compare": "Compare: reading back what was restored",
    "flush": "Flush: making what was written durable",
    "copy": "Copy: bringing what the replica lacks",
}
_BASIS = {course.BY_SPEED: "at this speed", course.BY_LAST_RUN: "as the last run took"}


def span(seconds: float) -> str:
    """Return a duration as people say it."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 2 * 3600:
        return f"{seconds / 60:.0f} min"
    hours, rest = divmod(round(seconds / 60), 60)
    return f"{hours} h {rest} min" if hours < 48 else f"{hours / 24:.1f} days"


def live(job: Job, *, now: dt.datetime) -> str:
    """Return the part of a job's page that asks for itself anew until the job has ended."""
    seen = course.look(job, now=now)
    return render_to_string(
        "admin/job_live.html",
        {
            "job": job,
            "poll_url": "" if job.ended else reverse("admin:jobs_job_live", args=[job.pk]),
            "poll_s": POLL_S,
            "percent": None if seen.share is None or job.ended else int(seen.share * 100),
            "variant": VARIANTS.get(job.state, ""),
            "phase": _phase(job),
            "figures": _figures(job, seen),
            "counts": count_cells(job),
            "events": list(job.events.order_by("-happened_at", "-pk")[:EVENTS_ON_PAGE])[::-1],
        },
    )


def _phase(job: Job) -> str:
    if job.ended:
        return ""
    if job.state == JobState.CANCELING:
        return "Waiting for the workers to stop"
    if job.state != JobState.RUNNING:
        return "Waiting for a worker"
    return PHASES.get(job.phase, job.phase.capitalize() or job.get_stage_display())


def _figures(job: Job, seen: course.Course) -> list[str]:
    """Return speed, remaining and elapsed time, and how many units are done, as far as they are known."""
    told = []
    if seen.bytes_per_s is not None and seen.entries_per_s is not None:
        told.append(f"{human_bytes(seen.bytes_per_s)}/s, {seen.entries_per_s:,.0f} entries/s")
    if seen.left_s is not None:
        told.append(f"about {span(seen.left_s)} left {_BASIS[seen.basis]}")
    if seen.elapsed_s is not None:
        told.append(f"{'took' if job.ended else 'for'} {span(seen.elapsed_s)}")
        if job.units_total or not job.ended:
            told.append(done_so_far(job))
    return told


_COUNTS = (
    ("Size", "bytes_logical"),
    ("Processed", "bytes_processed"),
    ("New", "bytes_new"),
    ("Stored", "bytes_stored"),
    ("Files", "files_total"),
    ("Files done", "files_done"),
    ("Files new", "files_new"),
    ("Files changed", "files_changed"),
    ("Files unchanged", "files_unchanged"),
    ("Files deleted", "files_deleted"),
    ("Entries", "entries_total"),
    ("Entries done", "entries_done"),
)


def count_cells(job: Job) -> list[tuple[str, str]]:
    """Return what the job counted: words and figures."""
    counted = course.statistics(job)
    return [
        (label, human_bytes(counted[name]) if name.startswith("bytes") else f"{counted[name]:,}")
        for label, name in _COUNTS
        if counted[name] is not None
    ]


def outcome(job: Job, *, now: dt.datetime) -> str:
    """Return in a line for the list how far the job is, or how it ended. No query."""
    if not job.ended:
        seen = course.course(job, now=now)
        parts = [] if seen.share is None else [f"{seen.share:.0%}"]
        parts += [f"{human_bytes(seen.bytes_per_s)}/s"] if seen.bytes_per_s else []
        parts += [f"{span(seen.left_s)} left"] if seen.left_s is not None else []
        return ", ".join(parts) or _phase(job).partition(":")[0]
    if job.error:
        return job.error if len(job.error) <= 100 else f"{job.error[:99]}…"
    if job.problems_count:
        return f"{job.problems_count:,} problem{'s' * (job.problems_count != 1)}"
    return "–"


def problem_lines_and_files(job: Job) -> str:
    """Return the first problems, what was left out by reason, and where to download all of them."""
    if not job.problems_count and not job.report.get("problems"):
        left_out = job.statistics.get("skipped", {})
        return ", ".join(f"{reason}: {count:,}" for reason, count in sorted(left_out.items())) or "–"
    links = format_html_join(
        " ",
        '<a class="font-medium text-primary-600 underline dark:text-primary-500" href="{}">{}</a>',
        (
            (reverse("admin:jobs_job_problems", args=[job.pk, format]), text)
            for format, text in ((problems.CSV, "Download all as CSV"), (problems.JSON_LINES, "as JSON Lines"))
        ),
    )
    return format_html('{}<div class="mt-2">{}</div>', problem_lines(job), links)


def problems_download(job: Job, format: str) -> StreamingHttpResponse:
    """Return all errors and skipped entries of a job as a file."""
    name = f"{job.kind}-{str(job.pk)[:8]}-problems.{format}"
    return StreamingHttpResponse(
        problems.lines(job, format=format),
        content_type=problems.CONTENT_TYPES[format],
        headers={"Content-Disposition": f'attachment; filename="{name}"', "Cache-Control": "no-store"},
    )


def report_lines(job: Job) -> str:
    """Return the figures of a job's report, one a line."""
    shown = [
        (name.replace("_", " "), _figure(name, value))
        for name, value in job.report.items()
        if _is_told(name, value) and not (job.statistics and name in _COUNTED)
    ]
    if job.report.get("dry_run"):
        shown.insert(0, ("dry run", "nothing was changed"))
    return (
        format_html_join(
            "",
            '<div><span class="inline-block text-font-subtle-light w-48 dark:text-font-subtle-dark">{}</span>{}</div>',
            shown,
        )
        or "–"
    )


def done_so_far(job: Job) -> str:
    """Return how many of a job's units are done; of a source that is read as streams, how many streams."""
    kind = job.source.kind if job.kind == Kind.BACKUP and job.source else ""
    word = TYPES[kind].parts if kind else UNITS
    done, total = job.units_done, job.units_total
    if word != UNITS:  # its other units hold what needs no reading
        read = job.steps.filter(round=job.round, stage=Stage.WORK)
        done, total = read.filter(state=StepState.COMPLETE).count(), read.count()
    return f"{done} of {total} {word}" if job.planned else f"{done} {word}, planning"


def problem_lines(job: Job) -> str:
    """Return how many entries had which problem, and the first of them; what is lost in the point stands out."""
    found = job.report.get("problems", [])
    if not found:
        return "–"
    known = job.statistics.get("skipped")
    counts = Counter(known if known else (one["reason"] for one in found))
    more = f" (of the first {len(found)})" if job.problems_count > len(found) and not known else ""
    told = ", ".join(f"{reason.replace('-', ' ')}: {count:,}" for reason, count in counts.most_common())
    shown = format_html_join(
        "",
        '<div><span class="font-semibold inline-block w-32 {}">{}</span>{} <span class="{}">{}</span></div>',
        (
            (
                "text-red-700 dark:text-red-400" if one["lost"] else "text-orange-700 dark:text-orange-400",
                one["reason"].replace("-", " "),
                one["path"],
                "text-font-subtle-light dark:text-font-subtle-dark",
                one["detail"],
            )
            for one in found[:PROBLEMS_ON_PAGE]
        ),
    )
    return format_html('<div class="mb-2">{}{}</div>{}', told, more, shown)


def decision_lines(job: Job) -> str:
    """Return what an expiry decided of each point, one a line."""
    found = job.report.get("decisions", [])
    line = (
        '<div><span class="font-semibold inline-block w-12 {}">{}</span>'
        '<span class="inline-block w-36" title="{}">{}</span>{}</div>'
    )
    shown = format_html_join(
        "",
        line,
        (
            (
                "text-green-700 dark:text-green-400" if one["keep"] else "text-red-700 dark:text-red-400",
                "stays" if one["keep"] else "goes",
                one["point"],
                one.get("completed_at") or one["point"].rpartition("/")[2],
                one["text"].partition(": ")[2],
            )
            for one in found[:DECISIONS_ON_PAGE]
        ),
    )
    return shown or "–"


def _is_told(name: str, value: Any) -> bool:
    return name not in _ELSEWHERE and value not in (None, "", [], {}) and not isinstance(value, dict)


def _figure(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return human_bytes(value) if name.startswith("bytes") else f"{value:,}"
    if isinstance(value, list):
        return ", ".join(str(one) for one in value[:10]) + (f" and {len(value) - 10} more" if len(value) > 10 else "")
    return str(value)
