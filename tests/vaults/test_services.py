"""Regions and vaults: probed before they are stored, unique, and honest about what a store can do."""

import pytest
from django.core.exceptions import ValidationError

from accounts.models import Event
from accounts.services import SERVICE
from tests.support.people import T0, make_account
from vaults import repositories, services
from vaults.models import Region, Vault

pytestmark = pytest.mark.django_db


@pytest.fixture
def region(tmp_path) -> Region:
    return services.save_region(Region(name="main", url=str(tmp_path / "store")), actor=SERVICE, now=T0)


def test_a_new_region_is_probed_and_says_what_its_store_can_do(region):
    region.refresh_from_db()
    assert (region.probed_at, region.probe_error) == (T0, "")
    assert region.capabilities["writable"]
    assert region.capabilities["retention"] == "application-level retention"
    assert Event.objects.get().action == "region.create"


def test_a_region_that_cannot_hold_vaults_is_not_stored(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(services.RegionUnusable):
        services.save_region(Region(name="main", url=str(tmp_path / "file")), actor=SERVICE, now=T0)
    assert not Region.objects.exists()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "Main Site", "url": "/x"}, "Use a-z, 0-9 and -"),
        ({"name": "main", "url": "relative/folder"}, "is not an address"),
        ({"name": "main", "url": "s3://bucket/prefix"}, "is not an endpoint"),
        ({"name": "main", "url": "s3://b", "endpoint": "https://h"}, "is not a bucket's name"),
    ],
)
def test_bad_addresses_are_refused_with_what_to_do(values, message):
    with pytest.raises(ValidationError, match=message):
        services.save_region(Region(**values), actor=SERVICE, now=T0)


@pytest.mark.parametrize("field", ["name", "url"])
def test_a_regions_name_and_address_never_change(region, field):
    setattr(region, field, "other" if field == "name" else "/other")
    with pytest.raises(services.NameFixed):
        services.save_region(region, actor=SERVICE, now=T0)


def test_probing_again_keeps_what_was_found_good_or_bad(region, tmp_path):
    (tmp_path / "store").rename(tmp_path / "away")
    (tmp_path / "store").write_text("in its place")
    services.probe_region(region, actor=SERVICE, now=T0)
    region.refresh_from_db()
    assert region.probe_error
    (tmp_path / "store").unlink()
    (tmp_path / "away").rename(tmp_path / "store")
    assert services.probe_region(region, actor=SERVICE, now=T0).probe_error == ""


def test_a_vault_is_made_in_its_region_and_opens_with_the_service_key(region):
    vault = Vault(account=make_account(), region=region, name="first")
    key = services.create_vault(vault, actor=SERVICE, now=T0)
    assert key.startswith("BSRK-")
    assert repositories.open_vault(Vault.objects.get()).points() == []


@pytest.mark.parametrize("values", [{"name": ""}, {"name": "x" * 65}, {"name": "ok", "description": "x" * 256}])
def test_names_and_descriptions_have_limits(region, values):
    with pytest.raises(ValidationError):
        services.create_vault(Vault(account=make_account(), region=region, **values), actor=SERVICE, now=T0)
    assert not Vault.objects.exists()


def test_a_vaults_name_is_unique_in_its_account(region):
    account = make_account()
    first, second = (Vault(account=account, region=region, name=name) for name in ("one", "two"))
    services.create_vault(first, actor=SERVICE, now=T0)
    services.create_vault(second, actor=SERVICE, now=T0)
    with pytest.raises(services.VaultTaken):
        services.create_vault(Vault(account=account, region=region, name="one"), actor=SERVICE, now=T0)
    second.name = "one"
    with pytest.raises(services.VaultTaken):
        services.change_vault(second, actor=SERVICE, now=T0)


def test_a_store_that_fails_makes_no_vault(region, tmp_path):
    (tmp_path / "store").rename(tmp_path / "away")
    (tmp_path / "store").write_text("in its place")
    with pytest.raises(services.RegionUnusable):
        services.create_vault(Vault(account=make_account(), region=region, name="first"), actor=SERVICE, now=T0)
    assert not Vault.objects.exists()
