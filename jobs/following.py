"""Begin the replications that rules of policies ask for, and tell where that fails (E26)."""

import datetime as dt

from django.db.models import Exists, OuterRef

from jobs import alerts
from jobs.alert_models import Alert, AlertType, Severity
from policies import copies
from policies.models import CopyRequest

BY_RULE = "/rule"


def sweep(*, now: dt.datetime, rows_max: int) -> None:
    """Begin what is asked for; raise an alert for each vault where that fails, and resolve those that are over."""
    for request in copies.sweep(now=now, rows_max=rows_max):
        vault, region = request.vault, request.rule.settings["region"]
        alerts.raise_(
            vault.account_id,
            alerts.Trouble(
                type=AlertType.REPLICATION_FAILED,
                key=alerts.key_of(AlertType.REPLICATION_FAILED, vault=vault.pk) + BY_RULE,
                severity=Severity.WARNING,
                title=f"{vault} is not replicated to {region}, as the policy {request.rule.policy} says",
                text=f"{request.error} It is tried again every 15 minutes. Change the rule if it can't be met.",
                about={"vault_id": vault.pk},
                detail={"policy": str(request.rule.policy_id)},
            ),
            now=now,
        )
    standing = CopyRequest.objects.filter(vault=OuterRef("vault")).exclude(error="")
    mine = Alert.objects.open().filter(type=AlertType.REPLICATION_FAILED, key__endswith=BY_RULE)
    for alert in mine.exclude(Exists(standing))[:rows_max]:
        alerts.resolve(alert.account_id, [alert.key], now=now)
