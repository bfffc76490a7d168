"""How fast a replica follows its source: who says so, and what is refused."""

from pathlib import Path

import pytest
from django.core.exceptions import ValidationError
from rest_framework.test import APIClient

from accounts.models import Event
from accounts.services import SERVICE
from tests.support.control import Site, make_site
from tests.support.people import T0, join, make_account
from vaults import replication
from vaults.limits import load
from vaults.models import Region, ReplicationLink, Vault, VaultType
from vaults.services import save_region

pytestmark = pytest.mark.django_db

BY_DAY = {"windows": [{"start": "08:00", "end": "18:00", "bytes_per_s": 2_000_000}], "zone": "Europe/Berlin"}
SHOWN = {
    "bytes_per_s": 0,
    "windows": [{"start": "08:00:00", "end": "18:00:00", "bytes_per_s": 2_000_000}],
    "parallel_max": 0,
    "cpu_percent": 100,
    "zone": "Europe/Berlin",
}
NONE = {"bytes_per_s": 0, "windows": [], "parallel_max": 0, "cpu_percent": 100, "zone": "UTC"}


@pytest.fixture
def site(tmp_path: Path) -> Site:
    site = make_site(tmp_path)
    save_region(Region(name="far", url=str(tmp_path / "far")), actor=SERVICE, now=T0)
    return site


def start(site: Site, **limits: object) -> ReplicationLink:
    far = Region.objects.get(name="far")
    target = Vault(account=site.account, region=far, name="replica", type=VaultType.REPLICATION_TARGET)
    return replication.start(site.vault, target, limits=limits, actor=SERVICE, now=T0)


def test_a_replication_begins_without_limits_or_with_them(site):
    assert replication.limits_into(start(site).target) == {}
    replication.stop(site.vault, confirmation=site.vault.name, actor=SERVICE, now=T0)
    Vault.objects.filter(name="replica").update(name="former")
    assert load(replication.limits_into(start(site, **BY_DAY).target)) == load(SHOWN)


def test_limits_that_are_refused_make_no_target(site):
    with pytest.raises(ValidationError, match="at least 1000"):
        start(site, bytes_per_s=10)
    assert not Vault.objects.filter(name="replica").exists()


@pytest.mark.parametrize(
    ("values", "field", "message"),
    [
        ({"bytes_per_s": 999}, "limits.bytes_per_s", "at least 1000"),
        ({"bytes_per_s": 1500}, "limits", "too few for 2 steps"),
        ({"windows": [{"start": "08:00", "end": "08:00"}]}, "limits.windows.0", "another time"),
        ({"windows": [{"start": "8 o'clock", "end": "18:00"}]}, "limits.windows.0.start", "wrong format"),
        ({"windows": [{"start": "01:00", "end": "02:00"}] * 25}, "limits.windows", "at most 24"),
        ({"zone": "Europe/Bonn"}, "limits.zone", "no time zone 'Europe/Bonn'. Use a name like"),
        ({"speed": 1}, "limits", "Unknown limits: speed"),
    ],
)
def test_bad_limits_are_refused_with_what_to_do(site, values, field, message):
    link = start(site, **BY_DAY)
    with pytest.raises(ValidationError, match=message) as caught:
        replication.limit(link, values, actor=SERVICE, now=T0)
    assert [*caught.value.message_dict] == [field]
    assert load(replication.limits_into(link.target)) == load(SHOWN)


def test_what_ended_is_not_limited(site):
    link = start(site)
    replication.stop(site.vault, confirmation=site.vault.name, actor=SERVICE, now=T0)
    with pytest.raises(replication.NotReplicated, match="replica has ended"):
        replication.limit(link, BY_DAY, actor=SERVICE, now=T0)
    assert replication.limits_into(link.target) == {}


class TestApi:
    @pytest.fixture
    def api(self, site) -> APIClient:
        client = APIClient()
        client.force_authenticate(site.owner)
        return client

    def url(self, vault: Vault) -> str:
        return f"/api/v1/vaults/{vault.pk}/replication/"

    def test_either_end_shows_the_limits_and_takes_others_and_the_trail_tells_both(self, api, site):
        link = start(site)
        assert api.get(self.url(site.vault)).json()["limits"] == NONE
        for vault, wanted, shown in ((link.source, BY_DAY, SHOWN), (link.target, {}, NONE)):
            answer = api.patch(self.url(vault), {"limits": wanted}, format="json")
            assert (answer.status_code, answer.json()["limits"]) == (200, shown)
        events = Event.objects.filter(action="vault.limit_replication").order_by("pk")
        assert [event.detail["limits"][1] for event in events] == [SHOWN, NONE]
        assert events[1].detail["limits"][0] == SHOWN

    def test_limits_may_be_given_when_it_begins(self, api, site):
        asked = {"new_target": {"region": "far", "name": "replica"}, "limits": BY_DAY}
        made = api.post(f"/api/v1/vaults/{site.vault.pk}/replicate/", asked, format="json")
        assert (made.status_code, made.json()["limits"]) == (201, SHOWN)

    def test_a_refusal_names_the_field_or_the_reason(self, api, site):
        start(site)
        bad = api.patch(self.url(site.vault), {"limits": {"zone": "Nowhere"}}, format="json")
        assert (bad.status_code, bad.data["errors"][0]["attr"]) == (400, "limits.zone")
        assert api.patch(self.url(site.vault), {}, format="json").status_code == 400
        replication.stop(site.vault, confirmation=site.vault.name, actor=SERVICE, now=T0)
        late = api.patch(self.url(site.vault), {"limits": BY_DAY}, format="json")
        assert (late.status_code, late.data["errors"][0]["code"]) == (409, "not_replicated")

    def test_who_may_not_change_vaults_may_not_and_outsiders_find_nothing(self, site):
        start(site)
        for user, status in ((join(make_account("x"), "x"), 404), (join(site.account, "o", "operator"), 403)):
            client = APIClient()
            client.force_authenticate(user)
            assert client.patch(self.url(site.vault), {"limits": BY_DAY}, format="json").status_code == status
        assert ReplicationLink.objects.get().limits == NONE

    def test_a_vault_without_replication_has_none_to_limit(self, api, site):
        assert api.patch(self.url(site.vault), {"limits": BY_DAY}, format="json").status_code == 404
