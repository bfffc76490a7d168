"""What nobody notices because nothing happens: plans without a backup for long, replicas that stay behind.

One Watch row per plan and per replication, looked at when its time has come: as many as are due, never all of them.
"""

import datetime as dt
import itertools
from typing import Any

from django.conf import settings
from django.db.models import Exists, Max, OuterRef

from accounts.services import Actor, record
from jobs import alerts
from jobs.alert_models import Alert, AlertType, Severity, Watch
from policies import moments
from policies.models import Plan, PlanState
from vaults.models import LinkState, RecoveryPoint, ReplicationLink
from vaults.replication import lag_s

# A change of a plan's schedule is noticed within this time.
LOOK_AGAIN = dt.timedelta(hours=1)
LAG_EVERY = dt.timedelta(minutes=5)


def complete(*, now: dt.datetime, rows_max: int) -> None:
    """Watch over the plans and replications that nobody watches yet. Safe to call twice, and at once."""
    unwatched = Plan.objects.filter(~Exists(Watch.objects.filter(plan=OuterRef("pk"))))[:rows_max]
    rows = [Watch(plan=plan, since=_last_success(plan) or plan.created_at, look_at=now) for plan in unwatched]
    unwatched_links = ReplicationLink.objects.filter(~Exists(Watch.objects.filter(link=OuterRef("pk"))))[:rows_max]
    rows += [Watch(link=link, since=link.created_at, look_at=now) for link in unwatched_links]
    Watch.objects.bulk_create(rows, ignore_conflicts=True, batch_size=500)


def of_plan(plan: Plan, *, now: dt.datetime) -> Watch:
    """Return the watch over a plan, with a new row if nobody watches it yet. Safe to call at once."""
    values = {"since": _last_success(plan) or plan.created_at, "look_at": now}
    watch, _ = Watch.objects.select_related("plan__policy", "plan__account").get_or_create(plan=plan, defaults=values)
    return watch


def _last_success(plan: Plan) -> dt.datetime | None:
    points = RecoveryPoint.objects.filter(vault=plan.vault_id, series=str(plan.source_id))
    found: dt.datetime | None = points.aggregate(last=Max("completed_at"))["last"]
    return found


def sweep(*, now: dt.datetime, rows_max: int) -> int:
    """Look at what is due, raise and resolve its alerts, and return how many were looked at."""
    complete(now=now, rows_max=rows_max)
    due = (
        Watch.objects.filter(look_at__lte=now)
        .select_related("plan__policy", "plan__source", "plan__vault", "link__source", "link__target")
        .prefetch_related("plan__policy__rules")
    )
    looked = list(due[:rows_max])
    for watch in looked:
        _look_at_plan(watch, now) if watch.plan else _look_at_link(watch, now)
    _forget(now)
    return len(looked)


def overdue_at(watch: Watch) -> dt.datetime | None:
    """Return when the plan will have been without a backup for too long, None for never.

    By default when its schedule came round twice since the last success: that is right for any cron expression.
    """
    assert watch.plan is not None
    if watch.hours is not None:
        return watch.since + dt.timedelta(hours=watch.hours) if watch.hours else None
    runs = list(itertools.islice(moments.coming(watch.plan, after=watch.since), 2))
    return runs[1].moment if len(runs) == 2 else None


def _look_at_plan(watch: Watch, now: dt.datetime) -> None:
    plan = watch.plan
    assert plan is not None
    key = alerts.key_of(AlertType.BACKUP_OVERDUE, plan=plan.pk)
    changes: dict[str, Any] = {"look_at": now + LOOK_AGAIN}
    limit = overdue_at(watch)
    if plan.state == PlanState.PAUSED:
        changes["since"] = now  # the time counts from when it goes on
    elif limit is not None and limit > now:
        changes["look_at"] = min(limit, now + LOOK_AGAIN)
    mine = Watch.objects.filter(pk=watch.pk, look_at=watch.look_at, since=watch.since)
    if not mine.update(**changes):
        return  # another sweep looked, or a backup ended just now
    if plan.state == PlanState.PAUSED or limit is None or limit > now:
        alerts.resolve(plan.account_id, [key], now=now)
        return
    if Alert.objects.open().filter(account_id=plan.account_id, key=key).exists():
        return  # the same trouble, seen once more
    hours = int((now - watch.since).total_seconds() // 3600)
    alerts.raise_(
        plan.account_id,
        alerts.Trouble(
            type=AlertType.BACKUP_OVERDUE,
            key=key,
            severity=Severity.CRITICAL,
            title=f"No successful backup of {plan.source} to {plan.vault} for {hours} hours",
            text=f"None since {watch.since:%Y-%m-%d %H:%M} UTC. Look at its jobs, whether a worker serves the source, "
            "and whether the service ran all the time.",
            about={"plan_id": plan.pk, "source_id": plan.source_id, "vault_id": plan.vault_id},
            detail={"hours": hours},
        ),
        now=now,
    )


def _look_at_link(watch: Watch, now: dt.datetime) -> None:
    link = watch.link
    assert link is not None
    if not Watch.objects.filter(pk=watch.pk, look_at=watch.look_at).update(look_at=now + LAG_EVERY):
        return
    key = alerts.key_of(AlertType.REPLICATION_LATE, vault=link.source_id)
    limit = settings.REPLICATION_LATE_HOURS if watch.hours is None else watch.hours
    late_s = lag_s(link, now=now) if link.state == LinkState.ACTIVE and limit else 0
    if late_s <= limit * 3600:
        alerts.resolve(link.account_id, [key], now=now)
        return
    if Alert.objects.open().filter(account_id=link.account_id, key=key).exists():
        return
    alerts.raise_(
        link.account_id,
        alerts.Trouble(
            type=AlertType.REPLICATION_LATE,
            key=key,
            severity=Severity.WARNING,
            title=f"{link.target} lags {late_s // 3600} hours behind {link.source}",
            text="The oldest recovery point that is still to be copied waits for so long. Look at the replica's jobs.",
            about={"vault_id": link.source_id},
            detail={"lag_s": late_s, "target": str(link.target_id)},
        ),
        now=now,
    )


def _forget(now: dt.datetime) -> None:
    """Resolve what was about plans that are gone, and delete what was resolved long ago."""
    gone = Alert.objects.open().filter(type__in=alerts.BACKUP_TYPES, plan=None, key__contains="/plan:")
    for alert in gone[:100]:
        alerts.resolve(alert.account_id, [alert.key], now=now)
    old = Alert.objects.filter(resolved_at__lt=now - dt.timedelta(days=settings.ALERTS_KEPT_DAYS))
    Alert.objects.filter(pk__in=list(old.values_list("pk", flat=True)[:1000])).delete()


def set_hours(watch: Watch, hours: int | None, *, actor: Actor, now: dt.datetime) -> Watch:
    """Say after how many hours without a success somebody is told; None is the default, 0 never."""
    watch.hours, watch.look_at = hours, now
    if hours is not None:
        watch.clean_fields(exclude=["plan", "link"])
    watch.save(update_fields=["hours", "look_at"])
    thing = watch.plan or watch.link
    assert thing is not None
    record(actor, f"{thing._meta.model_name}.watch", thing, account=thing.account, now=now, hours=hours)
    return watch
