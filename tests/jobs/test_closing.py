"""An account is deleted when nothing of it is stored any more, and not while a lock protects a point of it (B6)."""

import datetime as dt
from pathlib import Path
from typing import Any

import pytest

from accounts.models import Account, Event, Role
from accounts.services import SERVICE
from jobs import services
from jobs.models import Job
from tests.support.api import client_of, error_code
from tests.support.control import Site, make_site
from tests.support.people import T0, join, make_point
from vaults.models import Vault, VaultState

pytestmark = pytest.mark.django_db


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return make_site(tmp_path)


def delete(site: Site, who: Any = None, typed: str = "acme") -> Any:
    url = f"/api/v1/accounts/{site.account.pk}/delete/"
    return client_of(who or site.owner).post(url, {"confirmation": typed})


@pytest.mark.rule("B6")
def test_locked_points_keep_their_account_and_the_date_is_told(site):
    make_point(site.vault, site.source, locked_until=dt.datetime(2098, 5, 6, 7, 8, tzinfo=dt.UTC))
    answer = delete(site)
    assert (answer.status_code, error_code(answer)) == (409, "account_locked")
    assert answer.json()["context"] == {"vaults": ["vault"], "locked_until": "2098-05-06T07:08:00+00:00"}
    Vault.objects.update(state=VaultState.DELETING)
    assert error_code(delete(site)) == "account_locked"


def test_vaults_keep_their_account(site):
    answer = delete(site)
    assert (answer.status_code, error_code(answer)) == (409, "account_in_use")
    assert answer.json()["context"]["vaults"] == ["vault"]


def test_it_takes_an_owner_and_the_accounts_name(site):
    Vault.objects.update(state=VaultState.DELETED)
    assert delete(site, join(site.account, "boss", Role.ADMIN)).status_code == 403
    assert error_code(delete(site, typed="Acme")) == "confirmation_wrong"
    assert Account.objects.exists()


def test_what_is_left_of_an_account_without_vaults_goes_and_the_audit_trail_stays(site):
    services.request_verify(site.vault, level="inventory", actor=SERVICE, now=T0)
    Vault.objects.update(state=VaultState.DELETED)
    assert delete(site).status_code == 204
    assert not Account.objects.exists()
    assert not Job.objects.exists()
    assert not Vault.objects.exists()
    assert Event.objects.filter(action="account.delete", user_name="acme-owner").count() == 1
