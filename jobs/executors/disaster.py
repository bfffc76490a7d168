"""Disaster checks: rebuild the control plane from the bucket into a scratch database, and compare it with this one."""

import dataclasses
import datetime as dt
import time
from typing import Any

from engine import system
from engine.vault import Vault
from engine.verbs.rebuild import Outcome
from jobs import disaster, exporting
from jobs.executors import rebuild
from jobs.executors.port import PROBLEMS_SHOWN
from jobs.models import Job, SystemExport
from jobs.states import JobState

DIFFERENT = "rebuild_differs"


def _conclude(job: Job, vault: Vault, outcome: Outcome, now: dt.datetime) -> dict[str, Any]:
    """Compare row by row. A difference fails the job: after a disaster that row would be wrong or missing."""
    began_s = time.monotonic()
    problems = [f"{broken.object}: {broken.detail}" for broken in outcome.broken]
    problems += _overdue(job, now)
    exporting.export(job.vault, now=now)  # what changed in the last minutes is no difference
    found = system.newest(vault.storage, vault.keys)
    if found is None:
        problems.append("the bucket holds no export of the control plane's rows that can be read")
    else:
        problems += found.problems
        problems += disaster.compare(job.vault, vault, outcome.rows, found, now=now)
    seconds = (now - (job.started_at or now)).total_seconds() + time.monotonic() - began_s
    fields: dict[str, Any] = {
        "state": JobState.FAILED if problems else outcome.state,
        "problems_count": len(problems),
        "report": {
            "points": len(outcome.rows),
            "rows": sum(len(rows) for rows in found.export.tables.values()) if found else 0,
            "export": found.key if found else "",
            "seconds": round(seconds, 3),
            "waiting": outcome.waiting,
            "problems": [
                {"path": text.partition(":")[0], "reason": "differs", "detail": text.partition(": ")[2], "lost": True}
                for text in problems[:PROBLEMS_SHOWN]
            ],
        },
    }
    if problems:
        fields["error_code"] = DIFFERENT
        fields["error"] = (
            f"A rebuild from the bucket would not give what the database says. Differences: {len(problems)}; "
            f"the first: {problems[0]}. The report lists them. Rebuild the vault's catalogue, or look why no export "
            "is written."
        )
    return fields


def _overdue(job: Job, now: dt.datetime) -> list[str]:
    """Say that the sweep of exports does not do its work here, before this check does it."""
    kept = SystemExport.objects.filter(vault=job.vault).first()
    since = kept.exported_at if kept else None
    if (since or job.vault.created_at) > now - exporting.LATE:
        return []
    reason = f": {kept.error}" if kept and kept.error else ""
    when = f"the newest export is of {since:%Y-%m-%d %H:%M} UTC" if since else "no export was ever written"
    return [f"{when}: is a worker running, and beat?{reason}"]


EXECUTOR = dataclasses.replace(rebuild.EXECUTOR, conclude=_conclude)
