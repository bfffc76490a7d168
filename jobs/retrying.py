"""Ask again for what a job did not bring about: a new job of the same request."""

import datetime as dt
from typing import Any

from django.db import transaction

from accounts.refusals import Refused
from accounts.services import Actor, record
from engine.patterns import literal
from jobs import comparing, maintenance, services
from jobs.models import Job
from jobs.services import Selection
from jobs.states import JobState, Kind, Lane

RETRIED = (JobState.FAILED, JobState.PARTIAL_COMPLETE, JobState.CANCELED, JobState.MISSED, JobState.SKIPPED)
# Nobody asks for these: they come again by themselves, or go with the deletion that they are part of.
_BY_THEMSELVES = (Kind.REPLICATE, Kind.ERASE)


class NotRetryable(Refused):
    """There is nothing to ask for again, or it can't be asked for any more."""

    code = "not_retryable"


class RetryRuns(Refused):
    """Somebody asked for it again already."""

    code = "retry_runs"


def offered(job: Job) -> bool:
    """Say whether the job's page has a button for it: what ended otherwise than it should."""
    return job.state in RETRIED and job.kind not in _BY_THEMSELVES


def selection_of(job: Job, *, failed_only: bool = False) -> Selection:
    """Return what a restore job was asked for, or of that only what failed. Raises NotRetryable."""
    wanted = job.settings
    mode, patterns = wanted["mode"], wanted["patterns"]
    if failed_only:
        lost = [one["path"] for one in job.report.get("problems", []) if one["lost"]]
        if not lost:
            raise NotRetryable("This restore tells of nothing that failed. Retry all of it.", code="nothing_failed")
        if job.problems_count > len(job.report["problems"]) or any("\\x" in path for path in lost):
            raise NotRetryable(
                "Not all that failed is known by its path. Retry all of it: what was restored is skipped.",
                code="failed_paths_unknown",
            )
        mode, patterns = "include", [literal(path) for path in lost]
    return Selection(
        mode=mode,
        patterns=patterns,
        to=wanted["to"],
        same_name=wanted["same_name"],
        overwrite_confirmed=True,  # whoever asked first did confirm it
        destination=job.source,
    )


def shows_credentials(job: Job) -> bool:
    """Say whether a retried restore would show the destination's stored credentials to a server that it names."""
    if job.kind != Kind.RESTORE or job.point is None or job.source is None:
        return False
    return services.shows_credentials(job.point, selection_of(job))


@transaction.atomic
def retry(job: Job, *, failed_only: bool = False, actor: Actor, now: dt.datetime) -> Job:
    """Start a new job of the same request. Raises NotRetryable, RetryRuns, and what refuses the request itself.

    `failed_only` restores only what failed.
    """
    job = Job.objects.select_for_update(of=("self",)).select_related("account").get(pk=job.pk)
    if not job.ended:
        raise NotRetryable("The job has not ended. Wait for it, or cancel it.", code="job_active")
    if not offered(job):
        raise NotRetryable(
            f"A {job.get_kind_display().lower()} that ended as {job.get_state_display().lower()} is not retried."
        )
    if failed_only and job.kind != Kind.RESTORE:
        raise NotRetryable("Only a restore can be retried for what failed: a backup reads what it lacks anyway.")
    if running := job.retries.active().first():
        raise RetryRuns("It is being done again already. Wait for that job, or cancel it.", job=str(running.pk))
    new = _ask(job, failed_only=failed_only, actor=actor, now=now)
    Job.objects.filter(pk=new.pk).update(retry_of=job)
    new.retry_of = job
    record(actor, "job.retry", new, account=job.account, now=now, retried=str(job.pk), failed_only=failed_only)
    return new


def _ask(job: Job, *, failed_only: bool, **who: Any) -> Job:
    if job.kind == Kind.BACKUP:
        if job.lane == Lane.MANUAL and job.source:
            return services.request_on_demand(job.source, job.vault, deep=bool(job.settings.get("deep")), **who)
        if job.lane == Lane.AUTOMATIC and job.plan:
            return services.request_run(job.plan, **who)
        if job.plan is None:
            raise NotRetryable("The plan of this backup was deleted. Make a plan for the source.", code="plan_gone")
        return services.request_backup(job.plan, deep=bool(job.settings.get("deep")), **who)
    if job.kind == Kind.RESTORE:
        if job.point is None:
            raise NotRetryable("The recovery point expired, or was deleted. Restore another one.", code="point_gone")
        return services.request_restore(job.point, selection_of(job, failed_only=failed_only), **who)
    if job.kind == Kind.COMPARE:
        restore = Job.objects.filter(pk=job.settings["restore"]).select_related("account").first()
        if restore is None:
            raise NotRetryable("The restore that was checked is not known any more.", code="restore_gone")
        return comparing.request_comparison(restore, **who)
    if job.kind == Kind.DRILL:
        if job.source is None:
            raise NotRetryable("The source of this trial restore was deleted.", code="source_gone")
        return maintenance.request_drill(job.source, job.vault, percent=job.settings["percent"], **who)
    if job.kind == Kind.VERIFY:
        return services.request_verify(job.vault, level=job.settings["level"], **who)
    if set(job.settings) - {"dry_run", "confirmed"}:
        raise NotRetryable("Ask for this deletion again on the page of the point.", code="ask_at_point")
    # A confirmation counts for one run: the guards look again.
    wanted = {"dry_run": True} if job.settings.get("dry_run") else {}
    return maintenance.request(job.vault, job.kind, wanted, **who)
