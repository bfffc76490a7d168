"""Backups of clusters: the automatic one, which begins as it is enabled, and manual ones beside it."""

import datetime as dt
from typing import Any

from django.db import transaction

from accounts.services import Actor
from jobs import services
from jobs.models import Job
from policies import clusters
from policies.models import Plan, Source
from vaults.models import Vault


@transaction.atomic
def set_automatic(
    source: Source,
    *,
    changes: dict[str, Any],
    enabled: bool | None = None,
    vault: Vault | None = None,
    actor: Actor,
    now: dt.datetime,
) -> tuple[Plan | None, Job | None]:
    """Set the automatic backup of a cluster (policies.clusters.save); return its plan and the job that enabling starts.

    The first backup begins at once (D12), unless one that began before it was disabled still runs. The caller rings
    the doorbell. Raises what policies.clusters.save raises, and VaultUnfit.
    """
    plan, woken = clusters.save(source, changes=changes, enabled=enabled, vault=vault, actor=actor, now=now)
    if plan is None or not woken:
        return plan, None
    try:
        return plan, services.request_run(plan, actor=actor, now=now)
    except services.SourceBusy:
        return plan, None
