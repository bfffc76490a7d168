"""The console shows everything, changes only through services, and tells refusals instead of breaking."""

from pathlib import Path

import pytest
from django.contrib import admin
from django.test import Client

from accounts.models import Event, User
from accounts.services import SERVICE
from jobs import local, services
from jobs.models import Job
from jobs.states import JobState
from policies.models import Plan, PlanState, Policy
from tests.support.console import page, press
from tests.support.control import Clock, Site, make_site
from tests.support.people import T0, make_point
from vaults import deletion, recovery
from vaults.models import RecoveryPoint, Vault

pytestmark = pytest.mark.django_db
OURS = [model for model in admin.site._registry if model._meta.app_label in ("accounts", "vaults", "policies", "jobs")]


@pytest.fixture
def site(tmp_path) -> Site:
    return make_site(tmp_path)


@pytest.fixture
def console(site) -> Client:
    client = Client()
    client.force_login(User.objects.create_superuser("root"))
    return client


@pytest.mark.parametrize("model", OURS, ids=lambda model: model.__name__)
def test_every_list_and_every_page_renders(site, console, model):
    clock = Clock()
    local.do(services.request_backup(site.plan, actor=SERVICE, now=clock()), clock=clock)
    name = f"{model._meta.app_label}_{model._meta.model_name}"
    assert console.get(page(name, "changelist")).status_code == 200
    for row in model.objects.all()[:1]:
        assert console.get(page(name, "change", row.pk)).status_code == 200
    if admin.site._registry[model].has_add_permission(console.get("/admin/").wsgi_request):
        assert console.get(page(name, "add")).status_code == 200


def test_the_overview_shows_sources_jobs_and_stored_bytes(site, console):
    clock = Clock()
    local.do(services.request_backup(site.plan, actor=SERVICE, now=clock()), clock=clock)
    text = console.get("/admin/").content.decode()
    for shown in ("Protected sources", "1 of 1", "Last jobs", "acme-web", "No worker is running"):
        assert shown in text


def test_the_overview_names_vaults_that_need_somebody(site, console):
    assert "nobody has proven that the recovery key is at hand" in console.get("/admin/").content.decode()
    recovery.prove(site.vault, [site.recovery_key], actor=SERVICE, now=T0)
    assert "Needs attention" not in console.get("/admin/").content.decode()
    clock = Clock()
    local.do(services.request_backup(site.plan, actor=SERVICE, now=clock()), clock=clock)
    pack = next(path for path in (Path(site.region.url) / site.vault.prefix / "packs").rglob("*") if path.is_file())
    pack.unlink()
    local.do(services.request_verify(site.vault, level="inventory", actor=SERVICE, now=clock()), clock=clock)
    Vault.objects.update(coverage_total=100, coverage_read=60, coverage_at=T0)
    text = console.get("/admin/").content.decode()
    for shown in ("1 damaged object", "only 60 % was read within 30 days"):
        assert shown in text
    site.plan.delete()
    deletion.request(site.vault, confirmation="vault", actor=SERVICE, now=T0)
    assert "is being deleted" in console.get("/admin/").content.decode()


def test_the_login_page_is_for_everybody_and_the_rest_for_staff(site):
    assert Client().get("/admin/login/").status_code == 200
    client = Client()
    client.force_login(site.owner)
    assert client.get("/admin/", follow=True).redirect_chain[-1][0].startswith("/admin/login/")


def test_jobs_points_and_the_audit_trail_cannot_be_made_changed_or_deleted(site, console):
    point = make_point(site.vault, site.source)
    job = services.request_backup(site.plan, actor=SERVICE, now=T0)
    event = Event.objects.first()
    assert event is not None
    for model, row in (("vaults_recoverypoint", point), ("jobs_job", job), ("accounts_event", event)):
        assert console.get(page(model, "add")).status_code == 403
        assert console.post(page(model, "change", row.pk), {}).status_code == 403
        assert console.post(page(model, "delete", row.pk), {"post": "yes"}).status_code == 403
    bulk = {"action": "delete_selected", "_selected_action": [str(point.pk)], "post": "yes"}
    console.post(page("vaults_recoverypoint", "changelist"), bulk)
    assert RecoveryPoint.objects.filter(pk=point.pk).exists()


def test_a_new_vault_shows_its_recovery_key_on_that_page_alone(site, console):
    fields = {"account": site.account.pk, "region": site.region.pk, "name": "second", "type": "GENERAL"}
    answer = console.post(page("vaults_vault", "add"), fields)
    assert b"BSRK-" in answer.content
    assert "no-store" in answer["Cache-Control"]
    assert "BSRK-" not in str(console.cookies)
    vault = Vault.objects.get(name="second")
    assert b"BSRK-" not in console.get(page("vaults_vault", "change", vault.pk)).content


def test_a_used_policy_cannot_be_deleted(site, console):
    console.post(page("policies_policy", "delete", site.policy.pk), {"post": "yes"}, follow=True)
    assert Policy.objects.filter(pk=site.policy.pk).exists()


def test_a_plan_is_run_paused_and_resumed_by_its_buttons(site, console):
    press(console, "policies_plan", "run_now", site.plan.pk)
    assert Job.objects.get().requested_by == User.objects.get(username="root")
    again = press(console, "policies_plan", "run_now", site.plan.pk)
    assert "is being backed up already" in again.content.decode()
    press(console, "policies_plan", "pause", site.plan.pk)
    assert Plan.objects.get().state == PlanState.PAUSED
    assert "paused already" in press(console, "policies_plan", "pause", site.plan.pk).content.decode()
    press(console, "policies_plan", "resume", site.plan.pk)
    assert Plan.objects.get().state == PlanState.ACTIVE


def test_opening_a_button_only_asks(site, console):
    assert console.get(page("policies_plan", "run_now", site.plan.pk)).status_code == 200
    assert not Job.objects.exists()


@pytest.mark.rule("C43")
def test_a_job_is_canceled_by_its_button(site, console):
    job = services.request_backup(site.plan, actor=SERVICE, now=T0)
    press(console, "jobs_job", "cancel", job.pk)
    job.refresh_from_db()
    assert job.state == JobState.CANCELED


def test_a_vault_is_verified_by_its_button(site, console):
    press(console, "vaults_vault", "verify", site.vault.pk, level="inventory")
    assert Job.objects.get().settings == {"level": "inventory"}


def test_a_point_is_restored_by_its_button(site, console, settings):
    settings.WORKER_SEEN_S = 10**9
    point = make_point(site.vault, site.source)
    press(console, "vaults_recoverypoint", "restore", point.pk, mode="all", same_name="skip", to="/restore")
    assert Job.objects.get().settings == {"mode": "all", "patterns": [], "to": "/restore", "same_name": "skip"}


def test_a_restore_that_is_refused_says_why(site, console):
    point = make_point(site.vault, site.source)
    answer = press(console, "vaults_recoverypoint", "restore", point.pk, mode="all", same_name="skip")
    assert "No worker is running on acme-web" in answer.content.decode()


def test_pages_carry_a_policy_that_lets_nothing_in_from_elsewhere(console):
    header = console.get("/admin/")["Content-Security-Policy"]
    assert "default-src 'self'" in header
    assert "http" not in header
