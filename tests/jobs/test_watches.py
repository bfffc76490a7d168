"""Plans without a backup for long, and replicas that stay behind: noticed because nothing happens."""

import datetime as dt

import pytest
from django.core.exceptions import ValidationError
from django.db import connection
from django.test.utils import CaptureQueriesContext

from accounts.models import Event
from accounts.services import SERVICE
from jobs import alerts, watches
from jobs.alert_models import Alert, AlertType, Severity, Watch
from jobs.models import Job
from jobs.states import JobState, Kind
from policies.models import Plan, PlanState
from tests.support.people import (
    T0,
    make_plan,
    make_point,
    make_policy,
    make_region,
    make_source,
    make_vault,
    whole_plan,
)
from vaults.models import ReplicationLink

pytestmark = pytest.mark.django_db
HOUR, DAY = dt.timedelta(hours=1), dt.timedelta(days=1)


def sweep(now: dt.datetime) -> None:
    """Sweep often enough up to `now`, as beat does."""
    for _ in range(2):
        Watch.objects.filter(look_at__gt=now).update(look_at=now)
        watches.sweep(now=now, rows_max=100)


def succeed(plan: Plan, *, now: dt.datetime) -> None:
    job = Job.objects.create(
        account=plan.account, kind=Kind.BACKUP, state=JobState.COMPLETE, vault=plan.vault, source=plan.source,
        plan=plan, created_at=now, queue_work="q", queue_finish="q",
    )  # fmt: skip
    alerts.job_ended(job.pk, now=now)


def overdue() -> Alert | None:
    return Alert.objects.open().filter(type=AlertType.BACKUP_OVERDUE).first()


@pytest.mark.rule("C21")
def test_a_daily_plan_without_a_success_for_two_runs_is_overdue_until_one_succeeds():
    plan = whole_plan()  # at 01:30, made at T0, which is noon
    sweep(T0)
    succeed(plan, now=T0)
    sweep(T0 + 37 * HOUR)
    assert overdue() is None
    sweep(T0 + 38 * HOUR)
    alert = overdue()
    assert alert
    assert (alert.severity, alert.plan, alert.count) == (Severity.CRITICAL, plan, 1)
    assert alert.title == "No successful backup of web1 to vault for 38 hours"
    sweep(T0 + 60 * HOUR)
    assert Alert.objects.get().count == 1
    succeed(plan, now=T0 + 61 * HOUR)
    assert overdue() is None
    sweep(T0 + 62 * HOUR)
    assert overdue() is None


def test_a_plan_that_runs_on_weekdays_is_not_overdue_on_sunday():
    plan = whole_plan()
    plan.policy.rules.update(cron="0 2 * * 1-5")
    friday = dt.datetime(2026, 3, 13, 2, 10, tzinfo=dt.UTC)
    sweep(T0)
    succeed(plan, now=friday)
    sweep(friday + 3 * DAY)
    assert overdue() is None
    sweep(friday + 4 * DAY)
    assert overdue()


def test_a_number_of_hours_of_the_plan_s_own_counts_and_0_is_never():
    whole_plan()
    sweep(T0)
    watch = Watch.objects.get()
    watches.set_hours(watch, 3, actor=SERVICE, now=T0)
    assert Event.objects.get().detail == {"hours": 3}
    sweep(T0 + 2 * HOUR)
    assert overdue() is None
    sweep(T0 + 3 * HOUR)
    assert overdue()
    watches.set_hours(watch, 0, actor=SERVICE, now=T0)
    sweep(T0 + 300 * DAY)
    assert overdue() is None
    with pytest.raises(ValidationError):
        watches.set_hours(watch, 100_000, actor=SERVICE, now=T0)


def test_a_paused_plan_is_not_overdue_and_its_time_begins_when_it_goes_on():
    whole_plan()
    sweep(T0)
    sweep(T0 + 10 * DAY)
    assert overdue()
    Plan.objects.update(state=PlanState.PAUSED)
    sweep(T0 + 20 * DAY)
    assert overdue() is None
    Plan.objects.update(state=PlanState.ACTIVE)
    sweep(T0 + 21 * DAY)
    assert overdue() is None
    sweep(T0 + 23 * DAY)
    assert overdue()


def test_a_plan_that_comes_under_watch_late_counts_from_its_newest_point():
    plan = whole_plan()
    make_point(plan.vault, plan.source, at=T0 + 5 * DAY)
    sweep(T0 + 6 * DAY)
    assert overdue() is None
    assert Watch.objects.get().since == T0 + 5 * DAY


def test_a_new_schedule_is_noticed_within_the_hour():
    plan = whole_plan()
    plan.policy.rules.update(unit="year")
    sweep(T0)
    assert Watch.objects.get().look_at <= T0 + HOUR


def test_alerts_about_a_plan_that_was_deleted_are_over():
    plan = whole_plan()
    sweep(T0)
    sweep(T0 + 10 * DAY)
    plan.delete()
    sweep(T0 + 11 * DAY)
    assert not Alert.objects.open().exists()


def test_two_sweeps_at_once_raise_one_alert():
    plan = whole_plan()
    sweep(T0)
    stale = Watch.objects.select_related("plan__policy", "plan__source", "plan__vault").get()
    watches.sweep(now=T0 + 10 * DAY, rows_max=100)
    watches._look_at_plan(stale, T0 + 10 * DAY)
    assert (Alert.objects.get().count, plan.pk) == (1, Alert.objects.get().plan_id)


def test_a_replica_that_lags_raises_a_warning_until_it_caught_up(settings):
    settings.REPLICATION_LATE_HOURS = 6
    plan = whole_plan()
    replica = make_vault(plan.account, make_region("far"), "replica", type="REPLICATION_TARGET")
    ReplicationLink.objects.create(account=plan.account, source=plan.vault, target=replica, created_at=T0)
    point = make_point(plan.vault, plan.source)
    Watch.objects.filter(plan__isnull=False).delete()
    sweep(T0 + 6 * HOUR)
    assert not Alert.objects.exists()
    sweep(T0 + 8 * HOUR)
    alert = Alert.objects.get()
    assert (alert.type, alert.severity, alert.vault) == (AlertType.REPLICATION_LATE, Severity.WARNING, plan.vault)
    assert alert.title == "replica lags 8 hours behind vault"
    make_point(replica, plan.source)
    replica.points.update(point_id=point.point_id)
    sweep(T0 + 9 * HOUR)
    assert not Alert.objects.open().exists()


def test_what_was_over_long_ago_is_forgotten(settings):
    plan = whole_plan()
    sweep(T0)
    sweep(T0 + 10 * DAY)
    succeed(plan, now=T0 + 10 * DAY)
    sweep(T0 + 11 * DAY)
    assert Alert.objects.count() == 1
    watches._forget(T0 + 10 * DAY + (settings.ALERTS_KEPT_DAYS + 1) * DAY)
    assert not Alert.objects.exists()


def test_a_sweep_with_nothing_due_takes_the_same_few_queries_however_many_plans_there_are():
    plan = whole_plan()
    sweep(T0)
    counts = []
    for number in range(2):
        with CaptureQueriesContext(connection) as queries:
            watches.sweep(now=T0, rows_max=100)
        counts.append(len(queries))
        source = make_source(plan.account, plan.vault.region, f"web{number + 2}")
        make_plan(source, make_policy(plan.account, f"p{number}"), plan.vault)
        sweep(T0)
    assert counts[0] == counts[1] <= 6
