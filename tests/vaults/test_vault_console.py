"""The page of a vault: what it tells, and the buttons that can't be undone."""

import datetime as dt
from pathlib import Path

import pytest
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from accounts.models import User
from accounts.services import SERVICE
from engine.keyproviders.keyring import RecoveryKey
from jobs import local
from jobs import services as jobs
from tests.support.control import Clock, Site, make_site
from tests.support.people import T0, make_point
from vaults.models import Region, Vault, VaultState

pytestmark = pytest.mark.django_db


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return make_site(tmp_path)


@pytest.fixture
def console(site: Site) -> Client:
    client = Client()
    client.force_login(User.objects.create_superuser("root"))
    return client


def page(what: str, *args: object, model: str = "vaults_vault") -> str:
    return reverse(f"admin:{model}_{what}", args=args)


def shown(console: Client, site: Site) -> str:
    return console.get(page("change", site.vault.pk)).content.decode()


def press(console: Client, site: Site, button: str, **fields: object) -> str:
    answer = console.post(page(button, site.vault.pk), {"_form_submitted": "True", **fields}, follow=True)
    return answer.content.decode()


@pytest.mark.rule("B6")
def test_immutability_is_switched_on_by_typing_the_name_after_a_warning(site, console):
    asked = console.get(page("make_immutable", site.vault.pk)).content.decode()
    for told in ("undone", "paid for", "application-level retention"):
        assert told in asked
    assert "not the vault" in press(console, site, "make_immutable", days=30, confirmation="Vault")
    assert Vault.objects.get().immutable_since is None
    assert "locked for at least 30 days" in press(console, site, "make_immutable", days=30, confirmation="vault")
    assert Vault.objects.get().lock_days == 30
    text = shown(console, site)
    assert "Nobody can turn this off or shorten it" in text
    assert "Only this service refuses" in text
    refused = press(console, site, "make_immutable", days=3, confirmation="vault")
    assert "never shortened" in refused


def test_a_key_is_unproven_on_the_page_until_it_is_typed(site, console):
    assert "Unproven" in shown(console, site)
    wrong = press(console, site, "prove_recovery_key", typed=RecoveryKey(bytes(32)).text())
    assert "does not open the vault" in wrong
    assert Vault.objects.get().recovery_proven_at is None
    text = press(console, site, "prove_recovery_key", typed=f"  {site.recovery_key.lower()}\n")
    assert "opens the vault" in text
    assert "Unproven" not in shown(console, site)
    assert site.recovery_key not in text


def test_a_split_key_is_handed_out_in_shares_and_never_whole(site, console):
    fields = {
        "account": site.account.pk, "region": site.region.pk, "name": "split", "type": "GENERAL",
        "shares": "3", "shares_needed": "2",
    }  # fmt: skip
    answer = console.post(page("add"), fields)
    assert answer.content.count(b"<code") == 3
    assert b"BSRK-" not in answer.content
    assert "no-store" in answer["Cache-Control"]


@pytest.mark.rule("E34")
def test_a_key_that_does_not_work_is_told_and_makes_no_vault(site, console):
    fields = {
        "account": site.account.pk, "region": site.region.pk, "name": "kms", "type": "GENERAL",
        "key_url": "pkcs11:/no/module.so?token=a&label=b", "key_secret": "1234",
    }  # fmt: skip
    answer = console.post(page("add"), fields, follow=True)
    assert "The key cannot be used" in answer.content.decode()
    assert Vault.objects.count() == 1


@pytest.mark.rule("E41")
def test_a_vault_is_deleted_by_typing_its_name_and_tells_what_is_locked_until_when(site, console):
    assert "Delete them first: acme-web" in press(console, site, "request_deletion", confirmation="vault")
    site.plan.delete()
    until = timezone.now() + dt.timedelta(days=20)
    make_point(site.vault, site.source, locked_until=until)
    asked = console.get(page("request_deletion", site.vault.pk)).content.decode()
    assert f"Locks keep 1 of them until {until:%Y-%m-%d}" in asked
    text = press(console, site, "request_deletion", confirmation="vault")
    assert f"what is locked stays until {until:%Y-%m-%d}" in text
    assert f"Locks keep the rest until {until:%Y-%m-%d}" in shown(console, site)
    Vault.objects.update(state=VaultState.DELETED, deleted_at=T0, deletable_at=None)
    assert str(site.vault.pk) not in console.get(page("changelist")).content.decode()
    assert "Only the history of its jobs is left" in shown(console, site)


def test_a_new_recovery_key_is_shown_once_in_the_dialog_and_keys_are_rotated(site, console):
    url = page("replace_recovery_key", site.vault.pk)
    wanted = {"_form_submitted": "True", "shares": 0, "threshold": 0}
    answer = console.post(url, wanted, headers={"HX-Request": "true"})
    key = answer.context["key"]
    assert answer.content.decode().count(key) == 1
    assert (answer["HX-Retarget"], "no-store" in answer["Cache-Control"]) == ("#dialog", True)
    assert "opens the vault" in press(console, site, "prove_recovery_key", typed=key)
    assert "does not open" in press(console, site, "prove_recovery_key", typed=site.recovery_key)
    split = console.post(url, wanted | {"shares": 3, "threshold": 2})
    assert split.content.count(b"<code") == 3
    assert "Make 2 to 16 shares" in press(console, site, "replace_recovery_key", shares=1, threshold=1)
    assert "of generation 4 now" in press(console, site, "rotate_keys")


def test_damage_is_shown_with_its_points_and_files(site, console):
    clock = Clock()
    local.do(jobs.request_backup(site.plan, actor=SERVICE, now=clock()), clock=clock)
    assert "Nothing was verified yet" in shown(console, site)
    pack = next(path for path in (Path(site.region.url) / site.vault.prefix / "packs").rglob("*") if path.is_file())
    pack.write_bytes(b"rot" + pack.read_bytes()[3:])
    local.do(jobs.request_verify(site.vault, level="content", actor=SERVICE, now=clock()), clock=clock)
    text = shown(console, site)
    point = site.vault.points.get()
    for told in (pack.name, point.point_id, "photos/one.jpg", "1 point:"):
        assert told in text


def test_a_region_is_deleted_by_its_button_only_when_it_is_empty(site, console):
    url = page("delete", site.region.pk, model="vaults_region")
    console.post(url, {"post": "yes"}, follow=True)
    assert Region.objects.count() == 1
    empty = Region.objects.create(name="empty", url="/nowhere", created_at=T0)
    console.post(page("delete", empty.pk, model="vaults_region"), {"post": "yes"}, follow=True)
    assert not Region.objects.filter(name="empty").exists()
