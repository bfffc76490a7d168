"""Kind of job -> executor; run one step of a job, clean up after an ended one."""

from typing import Any

import structlog

from engine.entries import Problem
from engine.errors import EngineError, NotFound
from engine.vault import Vault
from jobs.executors import (
    audit,
    backup,
    compact,
    compare,
    disaster,
    drill,
    erase,
    expire,
    prune,
    rebuild,
    replicate,
    restore,
    stages,
    staging,
    verify,
)
from jobs.executors.port import PROBLEMS_SHOWN, Clock, Executor, shown
from jobs.executors.stages import worker_name
from jobs.models import Job, Step
from jobs.states import ACROSS, JobState, Kind, Stage
from vaults import repositories
from vaults.models import VaultState

__all__ = ["clean", "run", "worker_name"]

log = structlog.get_logger(__name__)

EXECUTORS: dict[str, Executor[Any, Any, Any, Any]] = {
    Kind.BACKUP: backup.EXECUTOR,
    Kind.RESTORE: restore.EXECUTOR,
    Kind.VERIFY: verify.EXECUTOR,
    Kind.PRUNE: prune.EXECUTOR,
    Kind.EXPIRE: expire.EXECUTOR,
    Kind.ERASE: erase.EXECUTOR,
    Kind.COMPACT: compact.EXECUTOR,
    Kind.AUDIT: audit.EXECUTOR,
    Kind.REBUILD: rebuild.EXECUTOR,
    Kind.DISASTER: disaster.EXECUTOR,
    Kind.DRILL: drill.EXECUTOR,
    Kind.REPLICATE: replicate.EXECUTOR,
    Kind.COMPARE: compare.EXECUTOR,
}


def run(step: Step, *, clock: Clock) -> None:
    """Do one claimed step."""
    stages.run(EXECUTORS[step.job.kind], step, clock=clock)


def clean(job: Job, *, clock: Clock) -> bool:
    """Close the sessions of an ended job and empty its staging area. False when the store did not let us: try later.

    A session whose commit may have been sent is left to the vault's own judgement (it stands in the root). A vault that
    was deleted took all of it along.
    """
    executor = EXECUTORS[job.kind]
    try:
        if job.vault.state == VaultState.DELETED:
            return bool(Job.objects.filter(pk=job.pk).update(cleaned=True))
        vault = repositories.open_vault(job.vault, across=job.kind in ACROSS)
        if job.stage != Stage.FINISH:
            _close_sessions(executor, job, vault, clock)
        _keep_problems(executor, job, vault)
        staging.remove(vault, job.pk)
    except (EngineError, OSError) as error:
        log.warning("job.not_cleaned", job=str(job.pk), error=str(error))
        return False
    Job.objects.filter(pk=job.pk).update(cleaned=True)
    return True


def _keep_problems(executor: Executor[Any, Any, Any, Any], job: Job, vault: Vault) -> None:
    """Put the first problems that a job met before it failed, or was canceled, into its report."""
    if job.state not in (JobState.FAILED, JobState.CANCELED) or "problems" in job.report:
        return
    found: list[Problem] = []
    for result in staging.Staging(vault, job.pk, job.round).results_there(executor.result):
        found += getattr(result, "problems", [])
        if len(found) > PROBLEMS_SHOWN:
            break
    if found:
        report = job.report | {"problems": shown(found)}
        Job.objects.filter(pk=job.pk).update(report=report, problems_count=len(found))


def _close_sessions(executor: Executor[Any, Any, Any, Any], job: Job, vault: Vault, clock: Clock) -> None:
    for round_ in range(1, job.round + 1):
        try:
            order = staging.Staging(vault, job.pk, round_).order(executor.order)
        except NotFound:
            continue  # the planner of this round never got so far
        if name := executor.session(order):
            for session in vault.sessions(name):
                session.close("aborted", clock())
