"""A host that is too large for a day at its priority: its plan and its jobs say so, before and at the start (C53)."""

import pytest
from django.test import Client

from accounts.models import User
from accounts.services import SERVICE
from jobs import local, services
from jobs.due import settle_plan
from jobs.models import Job
from policies import editions
from policies.models import Edition, Plan, Priority
from tests.support.api import client_of
from tests.support.console import page
from tests.support.control import Clock, Site, make_site
from tests.support.people import T0, make_point

pytestmark = [pytest.mark.django_db, pytest.mark.rule("C53")]
GIB = 1 << 30


@pytest.fixture
def site(tmp_path) -> Site:
    site = make_site(tmp_path)
    site.plan.edition = Edition.ESSENTIAL
    site.plan.save()
    return site


def warnings(job: Job) -> list[str]:
    return [event.text for event in job.events.filter(level="warning") if "longer than 24 hours" in event.text]


@pytest.mark.parametrize(
    ("priority", "gib", "warned"),
    [(Priority.LOW, 600, 0), (Priority.LOW, 601, 1), (Priority.HIGH, 2048, 0), (Priority.HIGH, 2049, 1)],
)
def test_the_size_of_the_newest_point_warns_at_the_start(site, priority, gib, warned):
    Plan.objects.update(priority=priority)
    site.plan.refresh_from_db()
    make_point(site.vault, site.source, bytes_total=gib * GIB)
    assert len(warnings(services.request_backup(site.plan, actor=SERVICE, now=T0))) == warned
    told = client_of(site.owner).get(f"/api/v1/plans/{site.plan.pk}/").json()["warnings"]
    assert len(told) == warned


def test_a_scheduled_run_is_warned_of_too_and_the_plans_page_shows_it(site):
    make_point(site.vault, site.source, bytes_total=700 * GIB)
    job = settle_plan(site.plan, now=T0)
    assert job is not None
    assert len(warnings(job)) == 1
    console = Client()
    console.force_login(User.objects.create_superuser("root"))
    assert (
        "may take longer than 24 hours" in console.get(page("policies_plan", "change", site.plan.pk)).content.decode()
    )


def test_the_first_run_warns_once_the_walk_has_shown_the_size(site, monkeypatch):
    small = editions.SPEEDS[Priority.LOW]._replace(day_bytes=1000)
    monkeypatch.setitem(editions.SPEEDS, Priority.LOW, small)
    clock = Clock()
    first = local.do(services.request_backup(site.plan, actor=SERVICE, now=clock()), clock=clock)
    assert len(warnings(first)) == 1
    second = local.do(services.request_backup(site.plan, actor=SERVICE, now=clock()), clock=clock)
    assert len(warnings(second)) == 1


def test_other_editions_have_no_priority_and_no_warning(site):
    Plan.objects.update(edition=Edition.STANDARD)
    site.plan.refresh_from_db()
    make_point(site.vault, site.source, bytes_total=10_000 * GIB)
    assert warnings(services.request_backup(site.plan, actor=SERVICE, now=T0)) == []
