"""A vault's page tells how far its replica is, begins the replication, and ends it once its name is typed."""

import datetime as dt
from pathlib import Path

import pytest
from django.test import Client

from accounts.models import Event, User
from accounts.services import SERVICE
from tests.support.console import page, press
from tests.support.control import Site, make_site
from tests.support.people import T0
from vaults import replication
from vaults.console import rate_of, rate_text
from vaults.limits import Limits, Window, load
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


def limited(console: Client, vault: Vault, **fields: object) -> str:
    asked = {"windows": "", "rate": "", "zone": "UTC", "parallel_max": 0} | fields
    text: str = press(console, "vaults_vault", "limit_replication", vault.pk, **asked).content.decode()
    return text


def test_the_speed_is_entered_as_people_write_it_and_shown_on_both_pages(console, site):
    target = replica(site)
    assert "As fast as it goes." in shown(console, target)
    typed = "08:00-18:00 2 MB/s\n\n22:30 to 4:00  no limit\n"
    answer = limited(console, target, windows=typed, rate="1.5 MiB/s", zone="Europe/Berlin", parallel_max=4)
    assert "The next replication keeps to these limits." in answer
    kept = load(ReplicationLink.objects.get().limits)
    by_day, night = Window(dt.time(8), dt.time(18), 2_000_000), Window(dt.time(22, 30), dt.time(4))
    assert kept == Limits(bytes_per_s=3 << 19, windows=(by_day, night), zone="Europe/Berlin", parallel_max=4)
    for vault in (site.vault, target):
        for text in (
            "08:00-18:00 2 MB/s",
            "22:30-04:00 no limit",
            "at all other times 1572.864 kB/s",
            "by the clock of Europe/Berlin",
        ):
            assert f"<div>{text}</div>" in shown(console, vault)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rate": "fast"}, "&#x27;fast&#x27; is no rate. Write it like 2 MB/s"),
        ({"rate": "2 Ti"}, "is no rate"),
        ({"rate": "10"}, "at least 1000"),
        ({"rate": "1500", "parallel_max": 2}, "too few for 2 steps"),
        ({"windows": "8 to 18: slow"}, "is no window. Write it like 08:00-18:00 2 MB/s"),
        ({"windows": "08:00-08:00 1 MB/s"}, "ends at another time"),
        ({"windows": "08:00-27:00 1 MB/s"}, "wrong format"),
        ({"zone": "Europe/Bonn"}, "no time zone"),
    ],
)
def test_what_is_no_limit_is_told_in_the_dialog_and_changes_nothing(console, site, fields, message):
    replica(site)
    assert message in limited(console, site.vault, **fields)
    assert not load(ReplicationLink.objects.get().limits).is_limited


def test_a_vault_that_is_not_replicated_has_no_speed_to_limit(console, site):
    assert "there is nothing to limit" in limited(console, site.vault, rate="1 MB/s")
    replica(site)
    replication.stop(site.vault, confirmation=site.vault.name, actor=SERVICE, now=T0)
    assert "has ended" in limited(console, site.vault, rate="1 MB/s")


@pytest.mark.parametrize(
    ("rate", "text"),
    [
        (0, "no limit"),
        (1000, "1 kB/s"),
        (1001, "1.001 kB/s"),
        (2_500_000_000, "2.5 GB/s"),
        (1_234_567, "1234.567 kB/s"),
    ],
)
def test_a_rate_is_written_so_that_it_reads_back_the_same(rate, text):
    assert (rate_text(rate), rate_of(text)) == (text, rate)


@pytest.mark.rule("E39")
def test_the_end_takes_the_vaults_name(console, site):
    target = replica(site)
    press(console, "vaults_vault", "stop_replication", site.vault.pk, confirmation="wrong")
    assert ReplicationLink.objects.get().state == LinkState.ACTIVE
    answer = press(console, "vaults_vault", "stop_replication", site.vault.pk, confirmation=site.vault.name)
    assert "may be made immutable, or deleted" in answer.content.decode()
    assert ReplicationLink.objects.get().state == LinkState.STOPPED
    assert "It ended on" in shown(console, target)
