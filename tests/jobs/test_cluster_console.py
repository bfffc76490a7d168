"""The page of a cluster: what is set, when it runs next, and the buttons that enable, disable and back up by hand."""

import re

import pytest
from django.test import Client

from accounts.models import User
from jobs.models import Job
from jobs.states import Lane
from policies.clusters import automatic_of, is_enabled, plan_of
from policies.models import Plan, Source
from tests.support.clusters import cluster_row
from tests.support.console import press
from tests.support.people import make_point, make_source

pytestmark = pytest.mark.django_db
OFFERED = {"days": ["1", "2", "3", "4", "5", "6", "7"], "start": "00:00", "end": "02:00", "retention_days": "7"}


@pytest.fixture
def cluster() -> Source:
    return cluster_row()


@pytest.fixture
def console() -> Client:
    client = Client()
    client.force_login(User.objects.create_superuser("root"))
    return client


def shown(console: Client, source: Source) -> str:
    return console.get(f"/admin/policies/source/{source.pk}/change/").content.decode()


def enable(console: Client, cluster: Source, **fields: object) -> str:
    wanted = OFFERED | {"vault": cluster.account.vaults.get().pk} | fields
    answer = press(console, "policies_source", "automatic", cluster.pk, **wanted)
    return str(answer.content.decode())


@pytest.mark.rule("D10")
@pytest.mark.rule("D13")
@pytest.mark.rule("D14")
@pytest.mark.rule("D15")
def test_a_cluster_s_page_says_that_it_is_disabled_and_what_is_offered(cluster, console):
    text = shown(console, cluster)
    assert "Disabled" in text
    assert "Not set. Offered: Daily, 00:00-02:00 UTC (08:00-10:00 UTC+08:00), kept 7 days" in text
    assert "Disable automatic backup" not in text
    other = shown(console, make_source(cluster.account, cluster.region))
    assert "Automatic backup" not in other
    assert re.search(r">\s*Backups\s*<", shown(console, cluster))
    assert not re.search(r">\s*Backups\s*<", other)


@pytest.mark.rule("D12")
@pytest.mark.rule("D24")
def test_enabled_by_its_button_it_runs_at_once_and_shows_when_next(cluster, console):
    text = enable(console, cluster)
    assert "Automatic backup is enabled." in text
    assert "The first backup is on its way." in text
    plan = plan_of(cluster)
    assert plan is not None
    assert plan.next_run_at is not None
    assert f"{plan.next_run_at:%Y-%m-%d %H:%M} UTC" in shown(console, cluster)
    assert Job.objects.get().lane == Lane.AUTOMATIC


@pytest.mark.rule("D16")
def test_all_of_it_is_adjusted_and_disabled_again(cluster, console):
    enable(console, cluster)
    enable(console, cluster, days=["1", "5"], start="02:00", end="04:00", retention_days="30")
    assert "Mon, Fri, 02:00-04:00 UTC (10:00-12:00 UTC+08:00), kept 30 days" in shown(console, cluster)
    press(console, "policies_source", "disable_automatic", cluster.pk)
    assert not is_enabled(plan_of(cluster))
    assert automatic_of(plan_of(cluster)).days == (1, 5)


@pytest.mark.rule("D28")
def test_31_days_are_refused_in_the_dialog(cluster, console):
    assert "less than or equal to 30" in enable(console, cluster, retention_days="31")
    assert "another time than it begins" in enable(console, cluster, end="00:00")
    assert not Plan.objects.exists()


@pytest.mark.rule("D2")
@pytest.mark.rule("D8")
def test_a_manual_backup_is_started_by_its_button_and_refused_while_an_automatic_one_runs(cluster, console):
    vault = cluster.account.vaults.get()
    press(console, "policies_source", "back_up", cluster.pk, vault=vault.pk)
    assert Job.objects.get().lane == Lane.MANUAL
    Job.objects.update(state="complete")
    enable(console, cluster)
    answer = press(console, "policies_source", "back_up", cluster.pk, vault=vault.pk)
    assert "is being backed up automatically already" in answer.content.decode()


@pytest.mark.rule("D30")
def test_manual_backups_are_listed_and_lead_to_where_they_are_deleted(cluster, console):
    assert "None. They stay until somebody deletes them" in shown(console, cluster)
    point = make_point(cluster.account.vaults.get(), cluster, manual=True)
    page = f"/admin/vaults/recoverypoint/{point.pk}/change/"
    assert page in shown(console, cluster)
    assert "Delete" in console.get(page).content.decode()
