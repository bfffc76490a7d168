"""The console in a real browser: it works under its own content policy and asks nobody else for anything."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from django.db import connection
from django.utils import timezone
from playwright.sync_api import Page, sync_playwright

from accounts.models import User
from accounts.services import SERVICE
from jobs import local, services, steps
from jobs.models import Job
from tests.support.control import Clock, Site, make_site
from tests.support.people import PASSWORD

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.slow,
]


@pytest.fixture
def site(tmp_path) -> Site:
    """One backup and an administrator, made before the browser starts: its event loop forbids the database."""
    site = make_site(tmp_path)
    clock = Clock()
    local.do(services.request_backup(site.plan, actor=SERVICE, now=clock()), clock=clock)
    User.objects.create_superuser("root", password=PASSWORD)
    return site


@pytest.fixture
def page(site, live_server, chromium) -> Iterator[Page]:
    """A page whose requests to anywhere else and whose errors fail the test."""
    wrong: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        page = browser.new_context(viewport={"width": 1400, "height": 900}, base_url=live_server.url).new_page()
        page.on(
            "request",
            lambda request: (
                None if request.url.startswith((live_server.url, "data:", "blob:")) else wrong.append(request.url)
            ),
        )
        page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        yield page
        browser.close()
    assert wrong == []


def log_in(page: Page) -> None:
    page.goto("/admin/")
    page.fill("#id_username", "root")
    page.fill("#id_password", PASSWORD)
    page.click("button[type=submit]")
    page.wait_for_selector("text=Protected sources")


def test_a_person_logs_in_looks_around_and_starts_a_backup(page):
    log_in(page)
    assert page.locator("canvas.chart").count() == 1
    for link, title in (
        ("Jobs", "job"),
        ("Recovery points", "recovery point"),
        ("Sources", "source"),
        ("Policies", "policy"),
        ("Plans", "plan"),
        ("Vaults", "vault"),
        ("Regions", "region"),
        ("Audit trail", "event"),
    ):
        page.locator(f"a:has(span:text-is('{link}'))").first.click()
        page.wait_for_load_state("networkidle")
        assert title in page.title()
    page.goto("/admin/policies/plan/")
    page.locator("table tbody a").first.click()
    page.get_by_text("Back up now").locator("visible=true").first.click()
    page.get_by_role("button", name="Start").click()
    page.wait_for_selector("text=The job is on its way.")
    page.goto("/admin/policies/source/")
    page.locator("table tbody a").first.click()
    page.get_by_text("What stays").locator("visible=true").first.click()
    page.wait_for_selector("text=the newest")
    page.goto("/admin/vaults/vault/")
    page.locator("table tbody a").first.click()
    page.get_by_text("Maintenance").locator("visible=true").first.click()
    page.locator("a:has-text('Prune')").locator("visible=true").first.click()
    page.get_by_role("button", name="Start").click()
    page.wait_for_selector("text=The job is on its way.")
    page.goto("/api/v1/docs/")
    page.wait_for_selector("#operations-tag-accounts")  # the others come as one scrolls


def choose(page: Page, menu: str, item: str) -> None:
    """Open a menu of the page's header and choose from it."""
    page.locator("li > a.cursor-pointer", has_text=menu).locator("visible=true").first.click()
    page.locator("nav a", has_text=item).locator("visible=true").first.click()


@pytest.mark.rule("B6")
def test_a_person_locks_a_vault_and_is_shown_a_new_recovery_key_once(page, site):
    log_in(page)
    page.goto(f"/admin/vaults/vault/{site.vault.pk}/change/")
    choose(page, "Lock, delete", "Make immutable")
    page.fill("#id_confirmation", "wrong name")
    page.get_by_role("button", name="Lock it for good").click()
    page.wait_for_selector("text=This is not the vault's name.")
    page.fill("#id_confirmation", "vault")
    page.get_by_role("button", name="Lock it for good").click()
    page.wait_for_selector("text=Nobody can turn this off or shorten it")
    choose(page, "Keys", "New recovery key")
    page.get_by_role("button", name="Make it and show it").click()
    page.wait_for_selector("text=Write this recovery key down now")
    key = page.locator("#dialog code").inner_text()
    assert key.startswith("BSRK-")
    page.get_by_text("I have kept it").click()
    page.wait_for_selector("text=Nobody has typed it since it was handed out")
    assert key not in page.content()
    choose(page, "Keys", "Prove recovery key")
    page.fill("#id_typed", key)
    page.get_by_role("button", name="Try it").click()
    page.wait_for_selector("text=The recovery key opens the vault.")


def test_a_person_adds_a_source_of_another_kind_and_is_told_what_is_wrong(page):
    log_in(page)
    page.goto("/admin/policies/source/add/")
    page.get_by_text("Output of a program").click()
    page.select_option("#id_account", index=1)
    page.select_option("#id_region", index=1)
    page.fill("#id_name", "shop")
    page.fill("#id_host", "db1")
    page.fill("#id_settings_argv", "pg_dump\nshop")
    page.fill("#id_settings_name", "a/b")
    page.fill("#id_credentials_environment", "PGPASSWORD=hunter2hunter2")
    page.get_by_role("button", name="Save", exact=True).click()
    page.wait_for_selector("text=Give the name of a file, without '/'.")
    page.fill("#id_settings_name", "shop.sql")
    page.get_by_role("button", name="Save and continue editing").click()
    page.wait_for_selector("text=Stored. Leave it empty to keep it")
    assert "hunter2" not in page.content()
    page.get_by_text("Test connection").locator("visible=true").first.click()
    page.wait_for_selector("text=No worker is running on db1")


@pytest.mark.rule("D23")
def test_a_jobs_page_moves_on_by_itself_and_shows_the_buttons_of_its_end(page, site):
    log_in(page)
    with ThreadPoolExecutor(1) as database:
        job = database.submit(under_way, site).result()
        page.goto(f"/admin/jobs/job/{job.pk}/change/")
        page.wait_for_selector("#job-percent >> text=25 %")
        database.submit(lambda: Job.objects.filter(pk=job.pk).update(bytes_done=75)).result()
        page.wait_for_selector("#job-percent >> text=75 %")
        assert page.locator("a:has-text('Retry')").locator("visible=true").count() == 0
        database.submit(steps.end_job, job.pk, state="failed", now=timezone.now(), error="The disk broke.").result()
        page.locator("a:has-text('Retry')").locator("visible=true").first.wait_for()
        assert page.locator("#job-live[hx-get]").count() == 0


def under_way(site: Site) -> Job:
    """Have a backup at a quarter; nobody works on it."""
    try:
        now = timezone.now()
        job = services.request_backup(site.plan, actor=SERVICE, now=now)
        steps.claim(services.first_step(job).pk, worker="w", now=now)
        Job.objects.filter(pk=job.pk).update(planned=True, bytes_total=100, bytes_done=25, phase="process")
        return job
    finally:
        connection.close()
