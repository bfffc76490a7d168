"""A vault's page tells how far its replica is, begins the replication, and ends it once its name is typed."""

from pathlib import Path

import pytest
from django.test import Client

from accounts.models import Event, User
from accounts.services import SERVICE
from tests.support.console import page, press
from tests.support.control import Site, make_site
from tests.support.people import T0
from vaults import replication
from vaults.models import LinkState, Region, ReplicationLink, Vault, VaultState, VaultType
from vaults.services import save_region

pytestmark = pytest.mark.django_db


@pytest.fixture
def site(tmp_path: Path) -> Site:
    site = make_site(tmp_path)
    save_region(Region(name="far", url=str(tmp_path / "far")), actor=SERVICE, now=T0)
    return site


@pytest.fixture
def console(site: Site) -> Client:
    client = Client()
    client.force_login(User.objects.create_superuser("root"))
    return client


def shown(console: Client, vault: Vault) -> str:
    return console.get(page("vaults_vault", "change", vault.pk)).content.decode()


def far() -> Region:
    return Region.objects.get(name="far")


def replica(site: Site) -> Vault:
    target = Vault(account=site.account, region=far(), name="replica", type=VaultType.REPLICATION_TARGET)
    return replication.start(site.vault, target, actor=SERVICE, now=T0).target


@pytest.mark.rule("E28")
def test_a_new_target_is_made_by_the_button(console, site):
    answer = press(console, "vaults_vault", "replicate", site.vault.pk, region=str(far().pk), name="replica")
    assert "replica in far follows from now on" in answer.content.decode()
    link = ReplicationLink.objects.get()
    assert (link.source, link.target.name, link.target.state) == (site.vault, "replica", VaultState.READY)
    assert "To <a" in shown(console, site.vault)
    assert "From <a" in shown(console, link.target)


@pytest.mark.rule("E25")
def test_a_target_is_made_on_the_page_for_vaults_and_waits_for_its_source(console, site):
    values = {
        "account": site.account.pk, "region": far().pk, "name": "waiting", "type": "REPLICATION_TARGET",
        "shares": 0, "shares_needed": 0,
    }  # fmt: skip
    answer = console.post(page("vaults_vault", "add"), values, follow=True)
    assert "ecovery key:" not in answer.content.decode()
    target = Vault.objects.get(name="waiting")
    assert target.state == VaultState.EMPTY
    assert "It waits until a vault of another region" in shown(console, target)
    press(console, "vaults_vault", "replicate", site.vault.pk, target=str(target.pk))
    assert ReplicationLink.objects.get().target == target


def test_neither_a_target_nor_a_region_is_not_enough(console, site):
    press(console, "vaults_vault", "replicate", site.vault.pk, name="only a name")
    assert not ReplicationLink.objects.exists()


def test_a_refusal_is_a_message_and_in_the_trail(console, site):
    replica(site)
    answer = press(console, "vaults_vault", "replicate", site.vault.pk, region=str(far().pk), name="second")
    assert "a vault has one" in answer.content.decode()
    assert Event.objects.filter(detail__code="vault_replicated").count() == 1


@pytest.mark.rule("E35")
def test_the_page_of_either_end_tells_how_far_it_is(console, site):
    target = replica(site)
    for vault in (site.vault, target):
        assert "Every point is there." in shown(console, vault)


@pytest.mark.rule("E39")
def test_the_end_takes_the_vaults_name(console, site):
    target = replica(site)
    press(console, "vaults_vault", "stop_replication", site.vault.pk, confirmation="wrong")
    assert ReplicationLink.objects.get().state == LinkState.ACTIVE
    answer = press(console, "vaults_vault", "stop_replication", site.vault.pk, confirmation=site.vault.name)
    assert "may be made immutable, or deleted" in answer.content.decode()
    assert ReplicationLink.objects.get().state == LinkState.STOPPED
    assert "It ended on" in shown(console, target)
