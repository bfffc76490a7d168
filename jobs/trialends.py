"""The end of trials: backups stop and that is told, then the vault goes, unless the plan was converted (A8)."""

import datetime as dt

import structlog

from accounts.refusals import Refused
from engine.errors import EngineError
from jobs import services
from policies import editions, trials

log = structlog.get_logger(__name__)


def sweep(*, now: dt.datetime, rows_max: int) -> None:
    """End the trials that are over, and release the vaults whose time has come; two queries while there are none."""
    for plan in trials.ended(now=now)[:rows_max]:
        if trials.end(plan, now=now):
            services.record_skipped(plan, editions.trial_told(plan.vault, now=now), now=now, error_code="trial_ended")
    for vault in trials.to_release(now=now)[:rows_max]:
        try:
            trials.release(vault, now=now)
        except (Refused, EngineError) as error:
            # Its store is away, for instance: the next sweep asks again.
            log.warning("trial.not_released", vault=str(vault.pk), error=str(error))
