"""One console and one API over the regions of all branches, grouped by branch (B7)."""

import pytest
from django.test import Client

from accounts.models import User
from accounts.services import SERVICE
from jobs import services
from tests.support.api import client_of
from tests.support.console import page
from tests.support.people import T0, join, make_account, make_plan, make_policy, make_region, make_source, make_vault

pytestmark = pytest.mark.django_db


@pytest.fixture
def account():
    """An account with a source, a vault and a job in each of two branches' regions."""
    account = make_account()
    policy = make_policy(account)
    for branch, name in (("Berlin", "de-1"), ("Lima", "pe-1")):
        region = make_region(name)
        region.branch = branch
        region.save()
        source, vault = make_source(account, region, f"web-{name}"), make_vault(account, region, f"vault-{name}")
        services.request_backup(make_plan(source, policy, vault), actor=SERVICE, now=T0)
    return account


@pytest.mark.rule("B7")
def test_one_list_shows_all_regions_and_is_narrowed_to_a_branch(account):
    client = client_of(join(account, "ann"))

    def names(path: str, name: str, **query: str) -> set[str]:
        return {row[name] for row in client.get(f"/api/v1/{path}/", query).json()["results"]}

    assert names("sources", "name") == {"web-de-1", "web-pe-1"}
    assert names("sources", "name", region__branch="Lima") == {"web-pe-1"}
    assert names("vaults", "name", region__branch="Berlin") == {"vault-de-1"}
    assert names("regions", "branch") == {"Berlin", "Lima"}
    assert len(names("jobs", "id")) == 2
    assert len(names("jobs", "id", vault__region__branch="Lima")) == 1
    assert names("jobs", "id", vault__region__branch="Oslo") == set()


@pytest.mark.rule("B7")
def test_the_console_s_lists_show_all_regions_and_filter_by_branch(account):
    console = Client()
    console.force_login(User.objects.create_superuser("root"))

    def shown(model: str, **query: str) -> set[str]:
        found = console.get(page(model, "changelist"), query).context["cl"].queryset
        return {str(getattr(row, "source", row)) for row in found}

    assert shown("policies_source") == {"web-de-1", "web-pe-1"}
    assert shown("policies_source", region__branch="Lima") == {"web-pe-1"}
    assert shown("vaults_vault", region__branch="Lima") == {"vault-pe-1"}
    assert shown("jobs_job") == {"web-de-1", "web-pe-1"}
    assert shown("jobs_job", vault__region__branch="Lima") == {"web-pe-1"}
    assert "Lima" in console.get(page("policies_source", "changelist")).content.decode()
