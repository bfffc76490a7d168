"""The recovery key: handed out whole or in shares, proven by typing it, kept nowhere."""

from pathlib import Path

import pytest
from django.core.exceptions import ValidationError
from django.db import connection

from accounts.models import Event
from accounts.services import SERVICE
from engine.errors import WrongKey
from engine.keyproviders.keyring import Keyring, RecoveryKey
from tests.support.control import Site, make_site
from tests.support.people import T0
from vaults import recovery, repositories, services
from vaults.models import Vault, VaultState

pytestmark = pytest.mark.django_db


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return make_site(tmp_path)


def split_vault(site: Site) -> tuple[Vault, list[str]]:
    vault = Vault(account=site.account, region=site.region, name="split", recovery_threshold=2, recovery_shares=3)
    key = services.create_vault(vault, actor=SERVICE, now=T0)
    return vault, recovery.shares_of(vault, key)


def test_a_key_is_unproven_until_somebody_types_it(site):
    assert Vault.objects.get().recovery_proven_at is None
    recovery.prove(site.vault, [site.recovery_key.lower()], actor=SERVICE, now=T0)
    assert Vault.objects.get().recovery_proven_at == T0
    assert Event.objects.filter(action="vault.recovery_proven").count() == 1


def test_enough_shares_prove_it_too_and_too_few_do_not(site):
    vault, shares = split_vault(site)
    assert len(shares) == 3
    with pytest.raises(recovery.RecoveryKeyWrong, match="add more"):
        recovery.prove(vault, [shares[0], shares[0]], actor=SERVICE, now=T0)
    recovery.prove(vault, [shares[2], shares[0]], actor=SERVICE, now=T0)
    assert Vault.objects.get(pk=vault.pk).recovery_proven_at == T0


def test_a_key_that_is_handed_out_whole_has_no_shares(site):
    assert recovery.shares_of(site.vault, site.recovery_key) == []


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["BSRK-AAAA"], "not a recovery key"),
        (["hello"], "not a recovery key"),
        ([RecoveryKey(bytes(32)).text()], "does not open"),
        ([], "not a recovery key"),
    ],
)
def test_another_key_proves_nothing(site, typed, message):
    with pytest.raises(recovery.RecoveryKeyWrong, match=message):
        recovery.prove(site.vault, typed, actor=SERVICE, now=T0)
    assert Vault.objects.get().recovery_proven_at is None


@pytest.mark.parametrize(("needed", "shares"), [(1, 3), (4, 3), (2, 17), (0, 3), (2, 0)])
def test_splits_that_make_no_sense_are_refused_before_anything_is_made(site, needed, shares):
    vault = Vault(account=site.account, region=site.region, name="s", recovery_threshold=needed, recovery_shares=shares)
    with pytest.raises(ValidationError, match="at least 2"):
        services.create_vault(vault, actor=SERVICE, now=T0)
    assert Vault.objects.count() == 1


def test_neither_the_database_nor_the_service_keeps_it(site, tmp_path):
    vault, shares = split_vault(site)
    recovery.prove(vault, shares, actor=SERVICE, now=T0)
    recovery.prove(site.vault, [site.recovery_key], actor=SERVICE, now=T0)
    with connection.cursor() as cursor:
        cursor.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        rows = [cursor.execute(f'SELECT * FROM "{name}"').fetchall() for (name,) in cursor.fetchall()]
    text = repr(rows).lower()
    for secret in (site.recovery_key, site.recovery_key[5:20], *shares, " ".join(shares[0].split()[5:9])):
        assert secret.lower() not in text
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or site.recovery_key.encode() not in path.read_bytes()


def test_a_new_recovery_key_takes_the_place_of_the_old_one_and_is_unproven(site):
    recovery.prove(site.vault, [site.recovery_key], actor=SERVICE, now=T0)
    key = recovery.replace(site.vault, actor=SERVICE, now=T0)
    assert Vault.objects.get().recovery_proven_at is None
    with pytest.raises(recovery.RecoveryKeyWrong, match="does not open"):
        recovery.prove(site.vault, [site.recovery_key], actor=SERVICE, now=T0)
    recovery.prove(site.vault, [key], actor=SERVICE, now=T0)
    assert Event.objects.filter(action="vault.recovery_key_replaced").count() == 1


def test_a_new_recovery_key_may_be_handed_out_in_shares(site):
    key = recovery.replace(site.vault, threshold=2, shares=2, actor=SERVICE, now=T0)
    recovery.prove(site.vault, recovery.shares_of(site.vault, key), actor=SERVICE, now=T0)
    with pytest.raises(ValidationError, match="at least 2"):
        recovery.replace(site.vault, threshold=3, shares=2, actor=SERVICE, now=T0)
    assert Vault.objects.values_list("recovery_threshold", "recovery_shares").get() == (2, 2)


def test_a_rotation_takes_the_service_key_in_force_and_revokes_earlier_ones(site, settings, tmp_path):
    old = Keyring.load(Path(settings.KEYRING_FILE))
    settings.KEYRING_FILE = path = tmp_path / "service.key"
    old.save(path)
    rotated = recovery.rotate_keys(site.vault, actor=SERVICE, now=T0)
    assert (rotated.generation, rotated.revoked) == (2, [])
    new = Keyring.generate()
    path.write_text(new.text() + old.text())
    rotated = recovery.rotate_keys(site.vault, actor=SERVICE, now=T0)
    assert [holder.key_id for holder in rotated.revoked] == [old.key_id]
    path.write_text(new.text())
    assert repositories.open_vault(site.vault).points() == []
    path.write_text(old.text())
    with pytest.raises(WrongKey):
        repositories.open_vault(site.vault)
    events = Event.objects.filter(action="vault.keys_rotated").order_by("pk")
    assert [event.detail["revoked"] for event in events] == [[], [old.key_id]]


def test_a_vault_that_was_deleted_has_no_keys(site):
    site.vault.state = VaultState.DELETED
    with pytest.raises(recovery.VaultGone):
        recovery.rotate_keys(site.vault, actor=SERVICE, now=T0)
    with pytest.raises(recovery.VaultGone):
        recovery.replace(site.vault, actor=SERVICE, now=T0)
