"""Who holds a vault's key: the service unless told otherwise, tried before the vault is made, never changed."""

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from django.core.exceptions import ValidationError

from accounts.services import SERVICE
from engine.errors import WrongKey
from engine.vault import Vault as EngineVault
from jobs import local
from jobs import services as jobs
from jobs.states import JobState
from tests.support.control import Clock, Site, make_site
from tests.support.people import T0, make_plan
from tests.support.transit import Key, transit_double
from vaults import recovery, repositories, services
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


@pytest.fixture(params=["transit", "pkcs11"])
def held(request: pytest.FixtureRequest) -> Iterator[tuple[str, str]]:
    """The address and secret of a key that is not the service's."""
    if request.param == "transit":
        with transit_double() as double:
            double.keys["backup"] = Key()
            yield double.address("backup"), double.token()
        return
    token = request.getfixturevalue("soft_token")
    label = f"vault-{uuid.uuid4().hex[:8]}"
    token.make_key(label)
    yield token.address(label), token.pin


@pytest.mark.rule("E31")
def test_a_vault_lives_with_a_key_that_the_service_does_not_hold(site, held):
    url, secret = held
    vault = made(site, url, secret)
    assert vault.key_provider == url.partition(":")[0]
    assert secret not in vault.key_credentials
    plan = make_plan(site.source, site.policy, vault)
    clock = Clock()
    assert local.do(jobs.request_backup(plan, actor=SERVICE, now=clock()), clock=clock).state == JobState.COMPLETE
    job = jobs.request_verify(vault, level="content", actor=SERVICE, now=clock())
    assert local.do(job, clock=clock).state == JobState.COMPLETE
    holders = {holder.provider for holder in recovery.rotate_keys(vault, actor=SERVICE, now=clock()).state.holders}
    assert holders == {vault.key_provider, "recovery"}
    with pytest.raises(WrongKey):
        EngineVault.open(repositories.storage(vault), provider=repositories.keyring())
    row = Vault.objects.get(pk=vault.pk)
    assert len(repositories.open_vault(row).points()) == 1
