"""What raises an alert, what makes it the same trouble, and what ends it."""

import datetime as dt
from pathlib import Path

import pytest

from accounts.services import SERVICE
from jobs import alerts, due, local, services, steps
from jobs.alert_models import AlertState, AlertType, Severity
from jobs.models import Alert, Job
from jobs.states import JobState, Kind
from policies.models import Edition, Plan, Priority
from tests.support.alerting import raise_one, trouble
from tests.support.control import Clock, make_site
from tests.support.people import T0, make_account, online, whole_plan
from vaults.models import Vault

pytestmark = pytest.mark.django_db
HOUR = dt.timedelta(hours=1)


def run(plan, *, state, now=T0, kind=Kind.BACKUP, **outcome) -> Job:
    """Let a job come and go."""
    job = Job.objects.create(
        account=plan.account, kind=kind, state=JobState.RUNNING, vault=plan.vault, source=plan.source,
        plan=plan if kind == Kind.BACKUP else None, created_at=now, queue_work="q", queue_finish="q",
        settings=outcome.pop("settings", {}),
    )  # fmt: skip
    steps.end_job(job.pk, state=state, now=now, **outcome)
    return job


def open_types() -> list[str]:
    return sorted(Alert.objects.open().values_list("type", flat=True))


@pytest.mark.rule("C21")
def test_a_failed_backup_raises_an_alert_that_says_what_failed_and_why():
    plan = whole_plan()
    job = run(plan, state=JobState.FAILED, error="The disk is gone.", error_code="os_error")
    alert = Alert.objects.get()
    assert (alert.type, alert.severity, alert.account, alert.plan) == (
        AlertType.BACKUP_FAILED, Severity.CRITICAL, plan.account, plan,
    )  # fmt: skip
    assert (alert.source, alert.vault, alert.job) == (plan.source, plan.vault, job)
    assert alert.title == "The backup of web1 to vault failed"
    assert alert.text == "The disk is gone."


def test_the_same_trouble_is_one_alert_whose_count_and_time_go_up():
    plan = whole_plan()
    for hours in range(3):
        last = run(plan, state=JobState.FAILED, now=T0 + hours * HOUR, error=f"error {hours}")
    alert = Alert.objects.get()
    assert (alert.count, alert.first_at, alert.last_at, alert.change) == (3, T0, T0 + 2 * HOUR, 1)
    assert (alert.text, alert.job) == ("error 2", last)


def test_the_next_success_resolves_it_and_trouble_after_that_is_a_new_alert():
    plan = whole_plan()
    run(plan, state=JobState.FAILED)
    run(plan, state=JobState.COMPLETE, now=T0 + HOUR)
    first = Alert.objects.get()
    assert (first.state, first.resolved_at, first.change) == (AlertState.RESOLVED, T0 + HOUR, 2)
    run(plan, state=JobState.FAILED, now=T0 + 2 * HOUR)
    assert Alert.objects.open().get() != first


def test_a_partial_backup_ends_a_failure_and_is_an_alert_itself():
    plan = whole_plan()
    run(plan, state=JobState.FAILED)
    run(plan, state=JobState.PARTIAL_COMPLETE, problems_count=7)
    alert = Alert.objects.open().get()
    assert (alert.type, alert.severity) == (AlertType.BACKUP_PARTIAL, Severity.WARNING)
    assert "7 entries could not be read" in alert.text
    run(plan, state=JobState.COMPLETE)
    assert open_types() == []


@pytest.mark.rule("C21")
def test_a_missed_backup_raises_an_alert():
    plan = whole_plan()
    due.settle_plan(plan, now=T0 + HOUR / 2)
    alert = Alert.objects.get()
    assert (alert.type, alert.severity) == (AlertType.BACKUP_MISSED, Severity.CRITICAL)
    assert "No worker was running on web1" in alert.text


def test_a_skipped_backup_raises_a_warning():
    plan = whole_plan()
    online(plan.source.queue)
    services.request_backup(plan, actor=SERVICE, now=T0)
    due.settle_plan(plan, now=T0)
    alert = Alert.objects.get()
    assert (alert.type, alert.severity) == (AlertType.BACKUP_SKIPPED, Severity.WARNING)


def test_a_job_that_a_person_canceled_tells_nothing():
    plan = whole_plan()
    job = services.request_backup(plan, actor=SERVICE, now=T0)
    services.request_cancel(job, actor=SERVICE, now=T0)
    run(plan, state=JobState.CANCELED)
    assert not Alert.objects.exists()


@pytest.mark.parametrize(
    ("kind", "type_", "severity"),
    [
        (Kind.RESTORE, AlertType.RESTORE_FAILED, Severity.WARNING),
        (Kind.DRILL, AlertType.DRILL_FAILED, Severity.CRITICAL),
        (Kind.REPLICATE, AlertType.REPLICATION_FAILED, Severity.WARNING),
        (Kind.PRUNE, AlertType.MAINTENANCE_FAILED, Severity.WARNING),
        (Kind.VERIFY, AlertType.MAINTENANCE_FAILED, Severity.WARNING),
        (Kind.AUDIT, AlertType.MAINTENANCE_FAILED, Severity.WARNING),
    ],
)
def test_other_jobs_that_fail_raise_what_their_kind_says_and_their_success_resolves_it(kind, type_, severity):
    plan = whole_plan()
    run(plan, kind=kind, state=JobState.FAILED, error="why")
    alert = Alert.objects.get()
    assert (alert.type, alert.severity, alert.vault, alert.text) == (type_, severity, plan.vault, "why")
    run(plan, kind=Kind.EXPIRE, state=JobState.COMPLETE)
    assert open_types() == [type_]
    run(plan, kind=kind, state=JobState.COMPLETE)
    assert open_types() == []


def test_broken_locks_are_critical_until_an_audit_finds_them_whole():
    plan = whole_plan()
    run(plan, kind=Kind.AUDIT, state=JobState.FAILED, error_code="locks_broken", error="2 objects")
    assert (Alert.objects.get().type, Alert.objects.get().severity) == (AlertType.LOCKS_BROKEN, Severity.CRITICAL)
    run(plan, kind=Kind.AUDIT, state=JobState.FAILED, error_code="store_unavailable")
    assert open_types() == [AlertType.LOCKS_BROKEN, AlertType.MAINTENANCE_FAILED]
    run(plan, kind=Kind.AUDIT, state=JobState.COMPLETE)
    assert open_types() == []


def test_damage_is_over_only_when_a_verification_as_deep_finds_no_damaged_pack_left():
    plan = whole_plan()
    damaged = {"kind": Kind.VERIFY, "state": JobState.FAILED, "error_code": "vault_damaged"}
    run(plan, **damaged, settings={"level": "scrub"})
    whole = {"kind": Kind.VERIFY, "state": JobState.COMPLETE}
    run(plan, **whole, settings={"level": "structure"}, report={"damaged_packs": 0})
    run(plan, **whole, settings={"level": "scrub"}, report={"damaged_packs": 1})
    assert open_types() == [AlertType.VAULT_DAMAGED]
    run(plan, **whole, settings={"level": "content"}, report={"damaged_packs": 0})
    assert open_types() == []


def test_a_vault_that_lost_a_pack_is_told_by_the_verification_that_finds_it(tmp_path):
    site, clock = make_site(tmp_path), Clock()
    local.do(services.request_backup(site.plan, actor=SERVICE, now=clock()), clock=clock)
    pack = next(path for path in (Path(site.region.url) / site.vault.prefix / "packs").rglob("*") if path.is_file())
    pack.unlink()
    local.do(services.request_verify(site.vault, level="inventory", actor=SERVICE, now=clock()), clock=clock)
    alert = Alert.objects.get()
    assert (alert.type, alert.title) == (AlertType.VAULT_DAMAGED, "vault is damaged")
    assert "Keep the vault as it is" in alert.text


def test_worse_news_of_the_same_trouble_count_as_a_change_and_undo_the_acknowledgement():
    account = make_account()
    alert = raise_one(account)
    Alert.objects.update(acknowledged_at=T0, acknowledged_by="ann")
    worse = raise_one(account, severity=Severity.CRITICAL)
    assert (worse.pk, worse.change, worse.count, worse.acknowledged_at) == (alert.pk, 2, 2, None)
    eased = raise_one(account, severity=Severity.WARNING)
    assert (eased.change, eased.count, eased.severity) == (2, 3, Severity.WARNING)


def test_accounts_don_t_share_a_trouble():
    one, other = make_account("one"), make_account("other")
    raise_one(one)
    raise_one(other)
    assert alerts.resolve(one.pk, ["quota/vault:1"], now=T0) == 1
    assert Alert.objects.open().get().account == other


def test_an_alert_that_cannot_be_raised_does_not_keep_the_job_from_ending(monkeypatch):
    plan = whole_plan()

    def broken(*args, **options):
        Vault.objects.get(name="no such vault")

    monkeypatch.setattr(alerts, "raise_", broken)
    job = run(plan, state=JobState.FAILED, error="why")
    job.refresh_from_db()
    assert (job.state, Alert.objects.count()) == (JobState.FAILED, 0)


def test_a_long_name_does_not_break_an_alert():
    alert = alerts.raise_(make_account().pk, trouble(title="x" * 400), now=T0)
    assert len(alert.title) == 255


@pytest.mark.rule("C53")
@pytest.mark.parametrize(("priority", "limit"), [(Priority.LOW, 600 << 30), (Priority.HIGH, 2 << 40)])
def test_a_host_too_large_for_a_day_at_its_priority_warns_once_and_a_smaller_one_resolves_it(priority, limit):
    plan = whole_plan()
    Plan.objects.update(edition=Edition.ESSENTIAL, priority=priority)
    job = services.request_backup(Plan.objects.get(), actor=SERVICE, now=T0)
    step = steps.claim(services.first_step(job).pk, worker="w", now=T0)
    steps.estimate(step, entries=1, bytes=limit, now=T0)
    assert not Alert.objects.exists()
    for _ in range(2):
        steps.estimate(step, entries=1, bytes=3 << 40, now=T0)
    alert = Alert.objects.get()
    assert (alert.type, alert.count, alert.severity) == (AlertType.BACKUP_LARGE, 1, Severity.WARNING)
    assert "3.0 TiB" in alert.text
    steps.end_job(job.pk, state=JobState.COMPLETE, now=T0)
    assert open_types() == [AlertType.BACKUP_LARGE]
    run(plan, state=JobState.COMPLETE, bytes_total=1 << 30)
    assert open_types() == []


def test_a_plan_without_a_priority_has_no_size_to_be_warned_of():
    job = services.request_backup(whole_plan(), actor=SERVICE, now=T0)
    step = steps.claim(services.first_step(job).pk, worker="w", now=T0)
    steps.estimate(step, entries=1, bytes=9 << 40, now=T0)
    assert not Alert.objects.exists()
