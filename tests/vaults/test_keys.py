"""Who holds a vault's key: the service unless told otherwise, tried before the vault is made, never changed."""

from pathlib import Path

import pytest
from django.core.exceptions import ValidationError

from accounts.services import SERVICE
from tests.support.control import Site, make_site
from tests.support.people import T0
from vaults import repositories, services
from vaults.models import KeyFixed, KeyProvider, Vault

pytestmark = pytest.mark.django_db


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return make_site(tmp_path)


def made(site: Site, url: str, secret: str = "") -> Vault:
    vault = Vault(account=site.account, region=site.region, name="kms", key_url=url)
    services.create_vault(vault, key_secret=secret, actor=SERVICE, now=T0)
    return vault


@pytest.mark.rule("E31")
def test_the_service_key_is_the_default(site):
    vault = Vault.objects.get()
    assert (vault.key_provider, vault.key_url, vault.key_credentials) == (KeyProvider.KEYRING, "", "")
    assert vault.stored_id == repositories.open_vault(vault).info.vault_id


@pytest.mark.rule("E34")
@pytest.mark.parametrize(
    ("url", "secret", "message"),
    [
        ("keyring:/etc/key", "", "leave address and secret empty"),
        ("recovery:", "BSRK-AAAA", "transit: or a pkcs11: address"),
        ("", "secret", "leave address and secret empty"),
        ("transit:https://kms.example.org", "token", "address of a transit key"),
        ("transit:https://kms.example.org:8200/transit/key", "", "needs its secret"),
        ("transit:http://kms.example.org:8200/transit/key", "token", "without TLS"),
        ("pkcs11:relative.so?token=a&label=b", "1234", "does not lead to a key"),
    ],
)
def test_an_address_that_leads_to_no_key_is_refused(site, url, secret, message):
    with pytest.raises(ValidationError) as refusal:
        made(site, url, secret)
    assert message in str(refusal.value).replace("Leave", "leave")
    assert Vault.objects.count() == 1


@pytest.mark.rule("E34")
@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("transit:http://127.0.0.1:9/transit/key", "does not answer"),
        ("pkcs11:/no/such/module.so?token=a&label=b", "can't be loaded"),
    ],
)
def test_a_key_that_does_not_work_makes_no_vault(site, url, message):
    with pytest.raises(services.KeyUnusable, match=message):
        made(site, url, "secret")
    assert Vault.objects.count() == 1
    assert len(list((Path(site.region.url) / "vaults").iterdir())) == 1


@pytest.mark.rule("E33")
def test_no_service_changes_the_key(site):
    vault = Vault.objects.get()
    vault.key_url = "transit:https://kms.example.org:8200/transit/key"
    with pytest.raises(KeyFixed):
        services.change_vault(vault, actor=SERVICE, now=T0)
