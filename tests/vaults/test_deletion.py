"""Deleting a vault stops its work at once and waits for its last lock (E41, Settled 1)."""

import datetime as dt
from pathlib import Path

import pytest

from accounts.models import Event
from accounts.services import SERVICE
from tests.support.control import Site, make_site
from tests.support.people import T0, make_point
from vaults import deletion, services
from vaults.models import ConfirmationWrong, RecoveryPoint, Region, Vault, VaultState

pytestmark = [pytest.mark.django_db, pytest.mark.rule("E41")]
DAY = dt.timedelta(days=1)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return make_site(tmp_path)


def requested(site: Site, typed: str = "vault") -> Vault:
    return deletion.request(site.vault, confirmation=typed, actor=SERVICE, now=T0)


def test_plans_that_use_it_are_named_and_nothing_changes(site):
    with pytest.raises(deletion.VaultInUse, match="acme-web → vault") as refusal:
        requested(site)
    assert refusal.value.detail["plans"] == ["acme-web → vault (daily)"]
    assert Vault.objects.get().state == VaultState.READY


def test_it_takes_the_vaults_name(site):
    site.plan.delete()
    with pytest.raises(ConfirmationWrong):
        requested(site, "Vault")
    assert Vault.objects.get().state == VaultState.READY


def test_without_locks_it_may_go_at_once(site):
    site.plan.delete()
    assert requested(site).deletable_at is None
    vault = Vault.objects.get()
    assert (vault.state, vault.delete_requested_at) == (VaultState.DELETING, T0)
    assert Event.objects.filter(action="vault.delete").count() == 1
    requested(site)
    assert Event.objects.filter(action="vault.delete").count() == 1


@pytest.mark.rule("B6")
def test_the_lock_wins_and_its_date_is_told(site):
    site.plan.delete()
    make_point(site.vault, site.source, locked_until=T0 + 3 * DAY)
    make_point(site.vault, site.source, locked_until=T0 + 9 * DAY)
    make_point(site.vault, site.source, locked_until=T0 - DAY)
    assert requested(site).deletable_at == T0 + 9 * DAY


@pytest.mark.rule("B6")
def test_the_vaults_own_lock_counts_when_the_catalogue_knows_of_none(site):
    site.plan.delete()
    services.make_immutable(site.vault, days=30, confirmation="vault", actor=SERVICE, now=T0)
    until = requested(site).deletable_at
    assert until is not None
    assert T0 + 30 * DAY < until <= T0 + 40 * DAY


def test_a_vault_that_is_gone_leaves_its_name_and_its_region_free(site):
    site.plan.delete()
    make_point(site.vault, site.source)
    requested(site)
    with pytest.raises(services.RegionInUse, match="1 vaults"):
        services.delete_region(site.region, actor=SERVICE, now=T0)
    deletion.conclude(site.vault, now=T0 + DAY)
    deletion.conclude(site.vault, now=T0 + 2 * DAY)
    vault = Vault.objects.get()
    assert (vault.state, vault.deleted_at, RecoveryPoint.objects.count()) == (VaultState.DELETED, T0 + DAY, 0)
    assert Event.objects.filter(action="vault.deleted").count() == 1
    services.create_vault(Vault(account=site.account, region=site.region, name="vault"), actor=SERVICE, now=T0)


def test_a_region_goes_when_nothing_is_left_in_it(site):
    site.plan.delete()
    requested(site)
    deletion.conclude(site.vault, now=T0)
    with pytest.raises(services.RegionInUse, match="1 sources"):
        services.delete_region(site.region, actor=SERVICE, now=T0)
    site.source.delete()
    services.delete_region(site.region, actor=SERVICE, now=T0)
    assert not Region.objects.exists()
    assert not Vault.objects.exists()


def test_only_a_vault_that_is_being_deleted_is_concluded(site):
    make_point(site.vault, site.source)
    deletion.conclude(site.vault, now=T0)
    deletion.postpone(site.vault, until=T0)
    vault = Vault.objects.get()
    assert (vault.state, vault.deletable_at, RecoveryPoint.objects.count()) == (VaultState.READY, None, 1)
