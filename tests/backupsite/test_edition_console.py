"""Editions at the console: the scheduled backup of a bucket, the conversion of a trial, the page of hosts."""

from unittest import mock

import pytest
from django.test import Client

from accounts.models import User
from policies.models import Edition, Plan, PlanState, Source
from tests.support.console import page, press
from tests.support.control import Site, make_site
from tests.support.people import PASSWORD, make_source

pytestmark = pytest.mark.django_db

BUCKET = {"endpoint": "http://127.0.0.1:9", "bucket": "shop"}


@pytest.fixture
def site(tmp_path) -> Site:
    return make_site(tmp_path)


@pytest.fixture
def console(site) -> Client:
    client = Client()
    client.force_login(User.objects.create_superuser("root", password=PASSWORD))
    return client


@pytest.fixture
def bucket(site) -> Source:
    return make_source(site.account, site.region, "shop", kind="bucket", host="", settings=BUCKET)


@pytest.mark.rule("A7", "A16", "A17", "A18", "A28")
def test_a_buckets_page_compares_the_two_plans_makes_the_trial_and_lists_it(console, bucket):
    path = page("policies_source", "scheduled_backup", bucket.pk)
    text = console.get(path).content.decode()
    assert "Production, with full control" in text
    assert "Start the trial" in text
    with mock.patch("policies.connection.check_class"):
        made = console.post(path).content.decode()
    assert "BSRK-" in made
    assert "The trial runs until" in made
    again = console.get(path).content.decode()
    assert "Start the trial" not in again
    assert "BSRK-" not in again


@pytest.mark.rule("A19")
def test_a_trial_is_converted_by_its_button_which_other_plans_lack(console, site, bucket):
    with mock.patch("policies.connection.check_class"):
        console.post(page("policies_source", "scheduled_backup", bucket.pk))
    plan = Plan.objects.get(edition=Edition.TRIAL)
    assert "Convert to a full plan" in console.get(page("policies_plan", "change", plan.pk)).content.decode()
    assert "Convert to a full plan" not in console.get(page("policies_plan", "change", site.plan.pk)).content.decode()
    assert "It is a full plan now." in press(console, "policies_plan", "convert", plan.pk).content.decode()
    plan.refresh_from_db()
    assert plan.edition == Edition.STANDARD


@pytest.mark.rule("C2", "C13", "C18", "C31", "C32", "C50")
def test_a_host_is_enabled_paused_resumed_and_canceled_on_the_page_of_hosts(console, site):
    path = page("policies_source", "hosts")

    def do(what: str, **fields: str) -> str:
        body = {"account": str(site.account.pk), "host": "web7", "do": what} | fields
        return str(console.post(path, body, follow=True).content.decode())

    assert "Many hosts keep data of their own in /srv" in console.get(path).content.decode()
    assert "BSRK-" in do("enable")
    plan = Plan.objects.get(edition=Edition.ESSENTIAL)
    for what, state in (("pause", PlanState.PAUSED), ("resume", PlanState.ACTIVE)):
        do(what)
        plan.refresh_from_db()
        assert plan.state == state
    assert "only what is paused can be resumed" in do("resume")
    assert "Type &#x27;web7&#x27; to confirm" in do("cancel", confirmation="web")
    assert "are being deleted" in do("cancel", confirmation="web7")
    assert not Plan.objects.filter(edition=Edition.ESSENTIAL).exists()
