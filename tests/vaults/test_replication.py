"""Who may replicate what to where, and how it ends: each refusal of the rules E10-E16, E22-E24, E29, E32-E34, E38."""

from pathlib import Path

import pytest
from rest_framework.test import APIClient

from accounts.models import Event
from accounts.services import SERVICE
from engine.keyproviders.keyring import Keyring
from policies import services as policies
from policies.models import Plan
from tests.support.control import Site, make_site
from tests.support.people import T0, join, make_account, make_policy
from vaults import deletion, replication, repositories, services
from vaults.models import (
    ConfirmationWrong,
    KeyProvider,
    LinkState,
    Region,
    ReplicationLink,
    Vault,
    VaultState,
    VaultType,
)

pytestmark = pytest.mark.django_db


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return make_site(tmp_path)


@pytest.fixture
def far(tmp_path: Path) -> Region:
    return region(tmp_path, "far")


def region(folder: Path, name: str) -> Region:
    made = Region(name=name, url=str(folder / name))
    return services.save_region(made, actor=SERVICE, now=T0)


def new(site: Site, where: Region, name: str = "replica", **values: object) -> Vault:
    """Return a target that is not stored yet."""
    return Vault(account=site.account, region=where, name=name, type=VaultType.REPLICATION_TARGET, **values)


def waiting(site: Site, where: Region, name: str = "replica", **values: object) -> Vault:
    """Return a target that waits for its source."""
    vault = new(site, where, name, **values)
    services.create_vault(vault, actor=SERVICE, now=T0)
    return vault


def start(site: Site, target: Vault) -> ReplicationLink:
    return replication.start(site.vault, target, actor=SERVICE, now=T0)


@pytest.mark.rule("E1", "E28", "E30")
def test_a_target_is_made_in_the_same_step(site, far):
    link = start(site, new(site, far, description="for the bad day"))
    assert (link.source, link.target.region, link.target.type) == (site.vault, far, VaultType.REPLICATION_TARGET)
    assert (link.target.state, link.target.description) == (VaultState.READY, "for the bad day")
    assert repositories.open_vault(link.target).info == repositories.open_vault(site.vault).info
    assert Event.objects.filter(action="vault.replicate").count() == 1


@pytest.mark.rule("E25", "E28")
def test_a_target_that_was_made_before_waits_with_nothing_stored_until_it_is_chosen(site, far):
    target = waiting(site, far)
    assert (target.state, target.stored_id) == (VaultState.EMPTY, "")
    assert list(repositories.storage(target, create=True).scan("")) == []
    link = start(site, target)
    target.refresh_from_db()
    assert (link.target, target.state, target.stored_id) == (target, VaultState.READY, site.vault.stored_id)


def test_asking_again_after_a_crash_goes_on_with_what_is_there(site, far):
    target = waiting(site, far)
    repositories.create_replica(site.vault, target, now=T0)
    assert start(site, target).target == target


@pytest.mark.rule("E1", "E29")
def test_the_target_is_in_another_region(site):
    with pytest.raises(replication.TargetUnfit, match="choose another region"):
        start(site, new(site, site.region))


@pytest.mark.rule("E1")
def test_the_target_belongs_to_the_same_account(site, far):
    other = make_account("other")
    target = Vault(account=other, region=far, name="theirs", type=VaultType.REPLICATION_TARGET)
    with pytest.raises(replication.TargetUnfit, match="one account"):
        start(site, target)


@pytest.mark.rule("E24")
def test_the_target_is_of_the_type_for_targets(site, far):
    general = Vault(account=site.account, region=far, name="general")
    services.create_vault(general, actor=SERVICE, now=T0)
    with pytest.raises(replication.TargetUnfit, match="general vault"):
        start(site, general)


@pytest.mark.rule("E10", "E23")
def test_replicas_are_not_replicated_on(site, far, tmp_path):
    link = start(site, new(site, far))
    further = new(site, region(tmp_path, "further"), "third")
    with pytest.raises(replication.NotReplicable, match="replicas are not replicated on"):
        replication.start(link.target, further, actor=SERVICE, now=T0)


@pytest.mark.rule("E10")
@pytest.mark.parametrize("state", [VaultState.ERROR, VaultState.DELETING, VaultState.DELETED])
def test_a_vault_with_an_error_is_not_replicated(site, far, state):
    Vault.objects.filter(pk=site.vault.pk).update(state=state)
    site.vault.refresh_from_db()
    with pytest.raises(replication.NotReplicable):
        start(site, new(site, far))


@pytest.mark.rule("E11")
def test_an_account_has_at_most_five_targets_in_a_region(site, far):
    for number in range(5):
        waiting(site, far, f"target {number}")
    with pytest.raises(replication.TargetUnfit, match="5 replication targets in far already"):
        start(site, new(site, far, "sixth"))
    assert start(site, Vault.objects.get(name="target 4")).target.name == "target 4"


@pytest.mark.rule("E12")
def test_a_vault_has_one_target(site, far, tmp_path):
    start(site, new(site, far))
    with pytest.raises(replication.Replicated, match="a vault has one"):
        start(site, new(site, region(tmp_path, "further"), "second"))
    assert ReplicationLink.objects.count() == 1


@pytest.mark.rule("E16", "E32")
def test_the_target_uses_the_same_method_of_encryption(site, far, soft_token):
    target = new(site, far, key_url=soft_token.address("replica"))
    with pytest.raises(replication.TargetUnfit, match="same method"):
        replication.start(site.vault, target, key_secret=soft_token.pin, actor=SERVICE, now=T0)
    assert not Vault.objects.filter(name="replica").exists()


@pytest.mark.rule("E31")
def test_the_service_key_is_the_default(site, far):
    assert start(site, new(site, far)).target.key_provider == KeyProvider.KEYRING


@pytest.mark.parametrize("end", ["source", "target"])
def test_both_regions_must_be_set_up_for_replication(site, far, end):
    region = site.region if end == "source" else far
    Region.objects.filter(pk=region.pk).update(supports_replication=False)
    site.vault.refresh_from_db()
    with pytest.raises(replication.NotReplicable, match=f"{region.name} is not set up"):
        start(site, new(site, Region.objects.get(pk=far.pk)))


@pytest.mark.rule("E14")
def test_no_plan_sends_backups_to_a_target_whether_replication_goes_on_or_ended(site, far):
    link = start(site, new(site, far))
    for _ in range(2):
        plan = Plan(source=site.source, policy=make_policy(site.account, f"p{_}"), vault=link.target)
        with pytest.raises(policies.PlanUnfit, match="takes no new plans"):
            policies.create_plan(plan, actor=SERVICE, now=T0)
        if _ == 0:
            stop(site)


def stop(site: Site) -> ReplicationLink:
    return replication.stop(site.vault, confirmation=site.vault.name, actor=SERVICE, now=T0)


@pytest.mark.rule("E22")
def test_neither_end_is_deleted_while_replication_goes_on(site, far):
    link = start(site, new(site, far))
    site.plan.delete()
    for vault in (site.vault, link.target):
        with pytest.raises(deletion.VaultLinked, match="Stop it first"):
            deletion.request(vault, confirmation=vault.name, actor=SERVICE, now=T0)
    stop(site)
    deletion.request(site.vault, confirmation=site.vault.name, actor=SERVICE, now=T0)
    link.target.refresh_from_db()
    assert link.target.state == VaultState.READY


@pytest.mark.rule("E6", "E39", "E42")
def test_an_end_is_typed_and_the_target_stays_with_all_ways_open(site, far):
    link = start(site, new(site, far))
    with pytest.raises(ConfirmationWrong):
        replication.stop(site.vault, confirmation="replica", actor=SERVICE, now=T0)
    link = stop(site)
    assert (link.state, link.stopped_at) == (LinkState.STOPPED, T0)
    link.target.refresh_from_db()
    assert link.target.state == VaultState.READY
    assert services.make_immutable(link.target, days=1, confirmation="replica", actor=SERVICE, now=T0).lock_days == 1
    with pytest.raises(replication.NotReplicated):
        stop(site)


@pytest.mark.rule("E38")
def test_what_ended_is_never_resumed(site, far, tmp_path):
    link = start(site, new(site, far))
    stop(site)
    link.target.refresh_from_db()
    with pytest.raises(replication.TargetUnfit, match="never resumed"):
        start(site, link.target)
    assert start(site, new(site, region(tmp_path, "further"), "another")).state == LinkState.ACTIVE


@pytest.mark.rule("E38")
def test_the_end_needs_nothing_of_a_region_that_is_lost(site, far, tmp_path):
    link = start(site, new(site, far))
    (tmp_path / "store").rename(tmp_path / "lost")
    assert stop(site).state == LinkState.STOPPED
    assert repositories.open_vault(link.target).points() == []


@pytest.mark.rule("E34")
def test_a_key_that_does_not_wrap_makes_no_target(site, far, soft_token, monkeypatch):
    Vault.objects.filter(pk=site.vault.pk).update(key_provider=KeyProvider.PKCS11)
    site.vault.refresh_from_db()
    target = new(site, far, key_url=soft_token.address("no-such-key"))
    with pytest.raises(services.KeyUnusable):
        replication.start(site.vault, target, key_secret=soft_token.pin, actor=SERVICE, now=T0)


def test_a_region_that_is_away_makes_no_target(site, far, tmp_path):
    target = new(site, far)
    (tmp_path / "far").rename(tmp_path / "gone")
    (tmp_path / "far").write_text("no folder")
    with pytest.raises(services.RegionUnusable):
        start(site, target)
    assert not ReplicationLink.objects.exists()


class TestApi:
    @pytest.fixture
    def api(self, site) -> APIClient:
        client = APIClient()
        client.force_authenticate(site.owner)
        return client

    def url(self, vault: Vault, what: str) -> str:
        return f"/api/v1/vaults/{vault.pk}/{what}/"

    @pytest.mark.rule("E28")
    def test_a_vault_is_replicated_shown_and_stopped(self, api, site, far):
        asked = {"new_target": {"region": "far", "name": "replica"}}
        made = api.post(self.url(site.vault, "replicate"), asked, format="json")
        assert made.status_code == 201, made.data
        assert (made.data["state"], made.data["lag_s"], made.data["points_behind"]) == ("active", 0, 0)
        target = Vault.objects.get(pk=made.data["target"])
        for vault in (site.vault, target):
            assert api.get(self.url(vault, "replication")).data["id"] == made.data["id"]
        wrong = api.post(self.url(site.vault, "stop-replication"), {"confirmation": "x"}, format="json")
        assert (wrong.status_code, wrong.data["errors"][0]["code"]) == (409, "confirmation_wrong")
        ended = api.post(self.url(site.vault, "stop-replication"), {"confirmation": site.vault.name}, format="json")
        assert ended.data["state"] == "stopped"

    @pytest.mark.rule("E5")
    def test_the_former_name_of_a_target_is_taken_and_the_present_one_given(self, api, site, far):
        asked = {"account": str(site.account.pk), "region": "far", "name": "old", "type": "MIRROR"}
        made = api.post("/api/v1/vaults/", asked, format="json")
        assert made.status_code == 201, made.data
        assert made.data["vault"]["type"] == "REPLICATION_TARGET"
        for name in ("MIRROR", "REPLICATION_TARGET"):
            assert [v["name"] for v in api.get("/api/v1/vaults/", {"type": name}).data["results"]] == ["old"]
        assert api.get("/api/v1/vaults/", {"type": "GENERALS"}).status_code == 400
        assert api.post("/api/v1/vaults/", asked | {"name": "x", "type": "MIRRORS"}, format="json").status_code == 400

    @pytest.mark.rule("E46")
    def test_targets_are_listed_over_all_regions_and_by_region(self, api, site, far, tmp_path):
        waiting(site, far, "a")
        other = region(tmp_path, "other")
        waiting(site, other, "b")

        def names(**wanted: object) -> set[str]:
            return {v["name"] for v in api.get("/api/v1/vaults/", wanted).data["results"]}

        assert names(type="REPLICATION_TARGET") == {"a", "b"}
        assert names(type="REPLICATION_TARGET", region=other.pk) == {"b"}

    @pytest.mark.rule("E50")
    @pytest.mark.parametrize("declared", ["LRS", "ZRS"])
    def test_a_region_tells_whether_it_stores_in_several_zones(self, api, far, declared):
        Region.objects.filter(pk=far.pk).update(redundancy=declared)
        assert api.get("/api/v1/regions/far/").data["redundancy"] == declared

    def test_a_vault_without_replication_has_none_to_show(self, api, site):
        assert api.get(self.url(site.vault, "replication")).status_code == 404

    @pytest.mark.parametrize("asked", [{}, {"new_target": {"region": "far", "name": "r"}, "target": "both"}])
    def test_one_target_is_named(self, api, site, far, asked):
        if "target" in asked:
            asked = asked | {"target": str(waiting(site, far, "other").pk)}
        assert api.post(self.url(site.vault, "replicate"), asked, format="json").status_code == 400

    def test_outsiders_find_nothing_and_viewers_may_not(self, site, far):
        asked = {"new_target": {"region": "far", "name": "replica"}}
        for user, status in ((join(make_account("x"), "x"), 404), (join(site.account, "v", "viewer"), 403)):
            client = APIClient()
            client.force_authenticate(user)
            assert client.post(self.url(site.vault, "replicate"), asked, format="json").status_code == status
        assert not ReplicationLink.objects.exists()


def test_a_replica_has_a_key_of_its_own_when_the_keyrings_differ(site, far, settings):
    link = start(site, new(site, far))
    settings.KEYRING = Keyring.generate().text()
    with pytest.raises(Exception, match="does not open"):
        repositories.open_vault(link.target)
