"""The console's buttons of maintenance: they do what the services do, tell refusals, and warn before."""

import datetime as dt

import pytest
from django.test import Client

from accounts.models import User
from accounts.services import SERVICE
from jobs import maintenance, removal
from jobs.models import Job
from jobs.states import JobState, Kind
from policies.models import Plan, PlanState, Policy, Source
from tests.support.console import page, press, rules_of
from tests.support.people import T0, make_point
from tests.support.story import Story
from vaults.models import RecoveryPoint, Vault

pytestmark = pytest.mark.django_db


@pytest.fixture
def story(tmp_path) -> Story:
    return Story(tmp_path)


@pytest.fixture
def console(story) -> Client:
    client = Client()
    client.force_login(User.objects.create_superuser("root"))
    return client


def text(answer) -> str:
    return str(answer.content.decode())


@pytest.mark.parametrize("button", ["expire", "prune", "compact", "audit", "rebuild"])
def test_a_vault_is_maintained_by_its_buttons(story, console, button):
    press(console, "vaults_vault", button, story.site.vault.pk)
    job = Job.objects.get()
    assert (job.kind, job.settings, job.requested_by) == (button, {}, User.objects.get(username="root"))
    assert "has a job of this kind already" in text(press(console, "vaults_vault", button, story.site.vault.pk))


def test_a_dry_run_is_asked_for_by_its_switch_and_told_on_the_jobs_page(story, console, settings):
    settings.MAINTENANCE_EVERY_S = dict.fromkeys(settings.MAINTENANCE_EVERY_S, 0) | {"expire": 3600}
    for _ in range(4):
        story.backup()
        story.pass_days(1)
    story.change_policy(retention_days=1)
    press(console, "vaults_vault", "expire", story.site.vault.pk, dry_run="on")
    job = story.do(Job.objects.filter(kind=Kind.EXPIRE).latest("created_at"))
    assert job.settings == {"dry_run": True}
    shown = text(console.get(page("jobs_job", "change", job.pk)))
    for told in ("nothing was changed", "goes", "stays", "the newest", "more than a fifth"):
        assert told in shown


def test_how_often_a_vault_is_maintained_is_told_in_hours(story, console):
    path = page("vaults_vault", "intervals", story.site.vault.pk)
    assert "Prune: hours (empty: 24, 0: never)" in text(console.get(path))
    press(console, "vaults_vault", "intervals", story.site.vault.pk, prune="0.5", compact="0")
    assert Vault.objects.get().maintenance == {"prune": 1800, "compact": 0}
    refused = press(console, "vaults_vault", "intervals", story.site.vault.pk, prune="0.001")
    assert "0 for never" in text(refused)


def test_only_an_expiry_that_was_refused_can_be_let_pass(story, console):
    job = maintenance.request(story.site.vault, Kind.EXPIRE, {}, actor=SERVICE, now=T0)
    assert "Let it pass" not in text(console.get(page("jobs_job", "change", job.pk)))
    Job.objects.update(state=JobState.FAILED, error_code=removal.EXPIRY_REFUSED, error="4 of 5 would go")
    assert "Let it pass" in text(console.get(page("jobs_job", "change", job.pk)))
    assert "4 of 5 would go" in text(console.get(page("jobs_job", "confirm", job.pk)))
    press(console, "jobs_job", "confirm", job.pk)
    assert Job.objects.active().get().settings == {"confirmed": True}


def test_a_point_is_held_released_and_deleted_by_its_buttons(story, console):
    point = story.backup()
    press(console, "vaults_recoverypoint", "hold", point.pk, reason="court case")
    shown = text(console.get(page("vaults_recoverypoint", "change", point.pk)))
    assert "by root: court case" in shown
    assert page("vaults_recoverypoint", "release", point.pk) in shown
    assert page("vaults_recoverypoint", "hold", point.pk) not in shown
    assert "It is held" in text(console.get(page("vaults_recoverypoint", "request_deletion", point.pk)))
    refused = press(console, "vaults_recoverypoint", "request_deletion", point.pk, confirmation="acme-web")
    assert "root holds this point" in text(refused)
    press(console, "vaults_recoverypoint", "release", point.pk)
    assert RecoveryPoint.objects.get().held_at is None
    wrong = press(console, "vaults_recoverypoint", "request_deletion", point.pk, confirmation="acme")
    assert "Type &#x27;acme-web&#x27; to confirm" in text(wrong)
    press(console, "vaults_recoverypoint", "request_deletion", point.pk, confirmation="acme-web")
    story.do(Job.objects.get(kind=Kind.EXPIRE))
    assert not RecoveryPoint.objects.exists()


@pytest.mark.rule("C32")
def test_deleting_all_backups_tells_before_what_is_locked_and_until_when(story, console):
    make_point(story.site.vault, story.site.source, locked_until=dt.datetime(2100, 1, 1, tzinfo=dt.UTC))
    asked = text(console.get(page("policies_source", "erase", story.site.source.pk)))
    assert "1 recovery point of acme-web, all there are in any vault" in asked
    assert "2100-01-01" in asked
    answer = press(console, "policies_source", "erase", story.site.source.pk, confirmation="acme-web")
    assert "Locked: 1, the last until 2100-01-01 00:00" in text(answer)
    assert not Plan.objects.exists()
    assert "locks keep some until 2100-01-01" in text(
        console.get(page("policies_source", "change", story.site.source.pk))
    )


@pytest.mark.rule("C17")
@pytest.mark.rule("C36")
def test_switching_keep_at_least_one_off_warns_and_so_does_pausing_then(story, console):
    make_point(story.site.vault, story.site.source, at=T0, retention_days=30)
    policy = story.site.policy
    fields = {
        "account": policy.account_id, "name": policy.name, **rules_of({"id": policy.rules.get().pk}, stored=1),
        "time_zone": "UTC", "retention_days": 364_000, "keep_last": 0, "keep_daily": 0, "keep_weekly": 0,
        "keep_monthly": 0, "keep_yearly": 0, "drill_every_days": 0, "drill_percent": 100,
    }  # fmt: skip
    answer = console.post(page("policies_policy", "change", policy.pk), fields, follow=True)
    assert "nothing may be left when backups stop" in text(answer)
    assert "the last recovery point expires on" in text(answer)
    Policy.objects.update(keep_one_until=None)
    assert "the last recovery point expires on" in text(console.get(page("policies_plan", "pause", story.site.plan.pk)))
    press(console, "policies_plan", "pause", story.site.plan.pk)
    assert Plan.objects.get().state == PlanState.PAUSED


def test_saving_rules_tells_how_many_points_go(story, console):
    for days in (0, 5):
        make_point(story.site.vault, story.site.source, at=T0 - dt.timedelta(days=days))
    policy = story.site.policy
    fields = {
        "account": policy.account_id, "name": policy.name, **rules_of({"id": policy.rules.get().pk}, stored=1),
        "time_zone": "UTC", "retention_days": 1, "keep_last": 0, "keep_daily": 0, "keep_weekly": 0,
        "keep_monthly": 0, "keep_yearly": 0, "keep_at_least_one": "on", "drill_every_days": 0, "drill_percent": 100,
    }  # fmt: skip
    answer = console.post(page("policies_policy", "change", policy.pk), fields, follow=True)
    assert "1 of 2 recovery points go with the next expiries" in text(answer)


def test_the_page_of_what_stays_tells_of_each_point_why(story, console):
    make_point(story.site.vault, story.site.source, at=T0)
    make_point(story.site.vault, story.site.source, at=T0 - dt.timedelta(days=90))
    shown = text(console.get(page("policies_source", "retention", story.site.source.pk)))
    for told in ("30 days, at least one", "the newest", "goes", "stays", "30 days since completion were over"):
        assert told in shown


def test_a_trial_restore_is_started_by_its_button(story, console):
    point = make_point(story.site.vault, story.site.source)
    press(console, "policies_source", "drill", story.site.source.pk, vault=str(story.site.vault.pk), percent="10")
    job = Job.objects.get()
    assert (job.kind, job.point, job.settings) == (Kind.DRILL, point, {"percent": 10})
    assert Source.objects.count() == 1
