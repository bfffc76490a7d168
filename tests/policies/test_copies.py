"""A policy's rule of type replication lets the vaults of its plans follow in another region (E9, E26)."""

import datetime as dt
from pathlib import Path

import pytest
from django.utils import timezone
from rest_framework.test import APIClient

from accounts.models import Account, CustomRole, Event, User
from accounts.services import SERVICE, save_custom_role, set_role
from accounts.states import Privilege
from jobs import following
from jobs.alert_models import Alert, AlertState
from policies import copies, places, services, tagging
from policies.models import CopyRequest, Plan, Policy, Rule, Source
from tests.support.control import Site, make_site
from tests.support.people import T0, make_plan, make_policy, make_source, make_user
from vaults import replication
from vaults.models import KeyProvider, LinkState, Region, ReplicationLink, Vault, VaultState, VaultType
from vaults.services import create_vault, save_region

pytestmark = pytest.mark.django_db
LATER = T0 + dt.timedelta(hours=1)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return make_site(tmp_path)


@pytest.fixture
def far(tmp_path: Path) -> Region:
    return save_region(Region(name="far", url=str(tmp_path / "far")), actor=SERVICE, now=T0)


def copying(**settings: str) -> Rule:
    return Rule(type="replication", settings=settings or {"region": "far"})


def save(policy: Policy, *rules: Rule, now: dt.datetime = T0) -> Policy:
    policy = Policy.objects.get(pk=policy.pk)
    return services.save_policy(policy, rules=[Rule(), *rules], actor=SERVICE, now=now)


def sweep(now: dt.datetime = T0) -> None:
    following.sweep(now=now, rows_max=20)


def second_vault(site: Site, name: str = "second", *, policy: Policy | None = None) -> Vault:
    vault = Vault(account=site.account, region=site.region, name=name)
    create_vault(vault, actor=SERVICE, now=T0)
    make_plan(site.source, policy or site.policy, vault)
    return vault


def links() -> set[tuple[str, str, str]]:
    found = ReplicationLink.objects.select_related("source", "target")
    return {(link.source.name, link.target.name, link.state) for link in found}


def states(policy: Policy) -> list[str]:
    return [copy.state for copy in copies.told(Policy.objects.get(pk=policy.pk))]


class TestBeginning:
    @pytest.mark.rule("E26")
    def test_a_rule_lets_each_vault_of_the_policys_plans_follow_in_its_region(self, site, far):
        second_vault(site)
        policy = save(site.policy, copying())
        assert states(policy) == ["waiting", "waiting"]
        sweep()
        assert links() == {("vault", "Copy of vault", "active"), ("second", "Copy of second", "active")}
        assert states(policy) == ["following", "following"]
        assert set(ReplicationLink.objects.values_list("policy", flat=True)) == {str(policy.pk)}
        assert set(ReplicationLink.objects.values_list("target__region__name", flat=True)) == {"far"}
        assert Event.objects.filter(action="vault.replicate").count() == 2
        assert not CopyRequest.objects.exists()

    @pytest.mark.rule("E26")
    def test_a_plan_that_is_bound_to_such_a_policy_lets_its_vault_follow(self, site, far):
        policy = save(make_policy(site.account, "copied"), copying())
        sweep()
        assert links() == set()
        services.create_plan(Plan(source=site.source, policy=policy, vault=site.vault), actor=SERVICE, now=T0)
        sweep()
        assert links() == {("vault", "Copy of vault", "active")}

    @pytest.mark.rule("E26")
    def test_what_was_begun_at_the_vault_is_what_the_rule_asks_for(self, site, far):
        target = Vault(account=site.account, region=far, name="mine", type=VaultType.REPLICATION_TARGET)
        link = replication.start(site.vault, target, actor=SERVICE, now=T0)
        policy = save(site.policy, copying())
        sweep()
        link.refresh_from_db()
        assert (links(), link.policy) == ({("vault", "mine", "active")}, str(policy.pk))
        assert states(policy) == ["following"]

    def test_a_rule_may_name_a_target_that_waits(self, site, far):
        target = Vault(account=site.account, region=far, name="mine", type=VaultType.REPLICATION_TARGET)
        create_vault(target, actor=SERVICE, now=T0)
        save(site.policy, copying(region="far", vault="mine"))
        sweep()
        assert links() == {("vault", "mine", "active")}

    def test_a_name_that_is_taken_gets_a_number(self, site, far):
        create_vault(Vault(account=site.account, region=far, name="Copy of vault"), actor=SERVICE, now=T0)
        save(site.policy, copying())
        sweep()
        assert links() == {("vault", "Copy of vault 2", "active")}

    def test_two_sweeps_at_once_begin_it_once(self, site, far, monkeypatch):
        save(site.policy, copying())
        meet = copies._meet

        def beside(request: CopyRequest, *, now: dt.datetime) -> None:
            monkeypatch.setattr(copies, "_meet", meet)
            sweep()
            assert links() == set()
            meet(request, now=now)

        monkeypatch.setattr(copies, "_meet", beside)
        sweep()
        assert links() == {("vault", "Copy of vault", "active")}

    def test_a_vault_that_no_plan_of_the_policy_uses_any_more_is_left_alone(self, site, far):
        save(site.policy, copying())
        services.delete(site.plan, actor=SERVICE, now=T0)
        sweep()
        assert (links(), CopyRequest.objects.count()) == (set(), 0)


class TestRefusals:
    """What can't be replicated is refused when the policy is saved, or the plan is bound; nothing is stored then."""

    def refused(self, site: Site, error: type[Exception], match: str, rule: Rule | None = None) -> None:
        with pytest.raises(error, match=match):
            save(site.policy, rule or copying())
        assert not CopyRequest.objects.exists()
        assert not Rule.objects.filter(type="replication").exists()

    @pytest.mark.rule("E10")
    def test_a_vault_with_an_error(self, site, far):
        Vault.objects.filter(pk=site.vault.pk).update(state=VaultState.ERROR)
        self.refused(site, replication.NotReplicable, "mend it first")

    @pytest.mark.rule("E29")
    def test_the_region_that_a_vault_lies_in(self, site, far):
        self.refused(site, replication.TargetUnfit, "choose another region", copying(region=site.region.name))

    def test_a_region_that_is_not_set_up_for_it_even_without_plans(self, site, far):
        Region.objects.filter(name="far").update(supports_replication=False)
        with pytest.raises(replication.NotReplicable, match="far is not set up"):
            save(make_policy(site.account, "other"), copying())

    @pytest.mark.rule("E12")
    def test_a_vault_that_is_replicated_elsewhere(self, site, far, tmp_path):
        other = save_region(Region(name="other", url=str(tmp_path / "other")), actor=SERVICE, now=T0)
        target = Vault(account=site.account, region=other, name="mine", type=VaultType.REPLICATION_TARGET)
        replication.start(site.vault, target, actor=SERVICE, now=T0)
        self.refused(site, replication.Replicated, "to mine in other already")
        policy = save(make_policy(site.account, "copied"), copying())
        with pytest.raises(replication.Replicated, match="to mine in other already"):
            services.create_plan(Plan(source=site.source, policy=policy, vault=site.vault), actor=SERVICE, now=T0)
        assert not Plan.objects.filter(policy=policy).exists()

    @pytest.mark.rule("E12")
    def test_two_rules_of_one_policy(self, site, far):
        with pytest.raises(places.PlaceUnfit, match="one rule of type replication"):
            save(site.policy, copying(), copying())

    def test_one_target_for_two_vaults(self, site, far):
        second_vault(site)
        target = Vault(account=site.account, region=far, name="mine", type=VaultType.REPLICATION_TARGET)
        create_vault(target, actor=SERVICE, now=T0)
        self.refused(site, replication.TargetUnfit, "follows one vault", copying(region="far", vault="mine"))

    @pytest.mark.rule("E11")
    def test_more_vaults_than_a_region_takes(self, site, far):
        for number in range(5):
            second_vault(site, f"v{number}")
        self.refused(site, replication.TargetUnfit, "room is left for 5")

    @pytest.mark.rule("E16")
    def test_a_vault_whose_key_only_a_person_can_match(self, site, far):
        Vault.objects.filter(pk=site.vault.pk).update(key_provider=KeyProvider.PKCS11)
        self.refused(site, replication.TargetUnfit, "with that key first, and name it in the rule")

    @pytest.mark.rule("E48", "E15")
    @pytest.mark.parametrize(
        "values", [{"cron": "0 1 * * *"}, {"every": 2}, {"start_time": dt.time(3)}, {"retention_days": 7}]
    )
    def test_a_replication_has_neither_a_schedule_nor_a_retention(self, site, far, values):
        with pytest.raises(Exception, match=r"no schedule|as long as their points"):
            save(site.policy, Rule(type="replication", settings={"region": "far"}, **values))


class TestLater:
    def test_what_fails_is_told_tried_again_and_over_once_it_works(self, site, far):
        policy = save(site.policy, copying())
        Vault.objects.filter(pk=site.vault.pk).update(state=VaultState.ERROR)
        sweep()
        assert (links(), states(policy)) == (set(), ["failed"])
        alert = Alert.objects.get()
        assert (alert.type, alert.vault_id, alert.state) == ("replication_failed", site.vault.pk, AlertState.OPEN)
        assert "vault is not replicated to far" in alert.title
        assert "mend it first" in alert.text
        Vault.objects.filter(pk=site.vault.pk).update(state=VaultState.READY)
        sweep(T0 + dt.timedelta(minutes=1))
        assert links() == set()
        sweep(LATER)
        alert.refresh_from_db()
        assert (states(policy), alert.state) == (["following"], AlertState.RESOLVED)

    def test_an_alert_ends_with_the_rule_that_asked(self, site, far):
        save(site.policy, copying())
        Vault.objects.filter(pk=site.vault.pk).update(state=VaultState.ERROR)
        sweep()
        save(site.policy)
        sweep()
        assert Alert.objects.get().state == AlertState.RESOLVED
        assert not CopyRequest.objects.exists()

    def test_a_rule_that_goes_stops_nothing_and_says_so(self, site, far):
        policy = save(site.policy, copying())
        sweep()
        save(policy)
        sweep(LATER)
        assert links() == {("vault", "Copy of vault", "active")}
        assert copies.warnings(Policy.objects.get(pk=policy.pk)) == [
            "vault goes on to Copy of vault in far, and no rule of this policy asks for that any more. "
            "Stop it at the vault."
        ]

    @pytest.mark.rule("E38")
    def test_what_a_person_stopped_no_rule_begins_again_until_it_is_asked_anew(self, site, far):
        policy = save(site.policy, copying())
        sweep()
        replication.stop(site.vault, confirmation=site.vault.name, actor=SERVICE, now=T0)
        policy = save(policy, copying())
        make_plan(make_source(site.account, site.region, "b"), policy, site.vault)
        sweep(LATER)
        assert (links(), states(policy)) == ({("vault", "Copy of vault", "stopped")}, ["stopped"])
        save(save(policy), copying())
        sweep(LATER)
        assert ("vault", "Copy of vault 2", "active") in links()
        assert ReplicationLink.objects.filter(state=LinkState.ACTIVE).count() == 1

    def test_sources_that_are_bound_by_tags_are_backed_up_even_where_no_copy_can_be_made(self, site, far):
        Plan.objects.all().delete()
        policy = site.policy
        policy.vault = site.vault
        tags = Rule(type="tag", settings={"tags": {"team": "web"}})
        services.save_policy(policy, rules=[Rule(), tags, copying()], actor=SERVICE, now=T0)
        Region.objects.filter(name="far").update(supports_replication=False)
        make_source(site.account, site.region, "tagged", tags={"team": "web"})
        tagging.sweep(now=T0)
        sweep()
        assert Plan.objects.get().by_tags
        assert states(policy) == ["failed"]


@pytest.mark.rule("E9")
@pytest.mark.parametrize("roots", [["/"], ["/home", "//"], ["/../"]])
def test_a_vault_with_backups_of_whole_hosts_is_replicated_by_their_policy_and_not_at_the_vault(site, far, roots):
    Source.objects.update(settings=Source.objects.get().settings | {"roots": roots})
    asked = {"new_target": {"region": "far", "name": "replica"}}
    url = f"/api/v1/vaults/{site.vault.pk}/replicate/"
    api = client(site.owner)
    refused = api.post(url, asked, format="json")
    assert (refused.status_code, refused.data["errors"][0]["code"]) == (409, "policy_only")
    assert "add a rule of type replication to daily" in refused.data["errors"][0]["detail"]
    assert links() == set()
    save(site.policy, copying())
    sweep()
    assert links() == {("vault", "Copy of vault", "active")}


@pytest.mark.rule("E9", "E26")
def test_a_vault_with_folders_of_a_host_and_other_sources_is_replicated_at_the_vault_too(site, far):
    smb = make_source(site.account, site.region, "share", kind="smb", host="")
    make_plan(smb, site.policy, site.vault)
    asked = {"new_target": {"region": "far", "name": "replica"}}
    assert (
        client(site.owner).post(f"/api/v1/vaults/{site.vault.pk}/replicate/", asked, format="json").status_code == 201
    )
    assert links() == {("vault", "replica", "active")}


def planner(account: Account) -> User:
    """Return a member who may change policies, and nothing else."""
    privileges = [Privilege.VIEW, Privilege.MANAGE_POLICIES]
    role = CustomRole(account=account, name="planner", privileges=[one.value for one in privileges])
    user = make_user("planner")
    set_role(account=account, user=user, role=save_custom_role(role, actor=SERVICE, now=T0), actor=SERVICE, now=T0)
    return user


def client(user: User) -> APIClient:
    found = APIClient()
    found.force_authenticate(user)
    return found


class TestApi:
    def test_a_rule_is_set_and_its_copies_are_told(self, site, far):
        api, url = client(site.owner), f"/api/v1/policies/{site.policy.pk}/"
        rules = [{"type": "backup"}, {"type": "replication", "settings": {"region": "far"}}]
        saved = api.patch(url, {"rules": rules}, format="json")
        assert (saved.status_code, saved.data["warnings"]) == (200, [])
        sweep(timezone.now())
        target = Vault.objects.get(name="Copy of vault")
        told = "vault is replicated to Copy of vault in far."
        assert api.get(f"{url}copies/").data == [
            {"vault": str(site.vault.pk), "target": str(target.pk), "state": "following", "text": told}
        ]
        ended = api.patch(url, {"rules": rules[:1]}, format="json")
        assert "Stop it at the vault" in ended.data["warnings"][0]

    def test_who_may_not_manage_vaults_asks_for_no_new_copies(self, site, far):
        operator = planner(site.account)
        rules = [{"type": "backup"}, {"type": "replication", "settings": {"region": "far"}}]
        api, url = client(operator), f"/api/v1/policies/{site.policy.pk}/"
        assert api.patch(url, {"rules": rules}, format="json").status_code == 403
        assert api.patch(url, {"rules": rules[:1]}, format="json").status_code == 200
        assert client(site.owner).patch(url, {"rules": rules}, format="json").status_code == 200
        assert api.patch(url, {"rules": rules}, format="json").status_code == 200
