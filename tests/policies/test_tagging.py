"""Rules of type tag bind sources by themselves; rules of type replication name a place."""

import pytest
from django.core.exceptions import ValidationError

from accounts.models import Account, Event
from accounts.services import SERVICE
from policies import places, services, tagging
from policies.models import Plan, Policy, Rule, Source
from tests.support.people import T0, make_account, make_plan, make_region, make_source, make_vault
from vaults.models import Region, Vault, VaultType

pytestmark = pytest.mark.django_db
WEB = {"team": "web"}


@pytest.fixture
def account() -> Account:
    return make_account()


@pytest.fixture
def region() -> Region:
    return make_region()


@pytest.fixture
def vault(account, region) -> Vault:
    return make_vault(account, region)


def tag(**tags: str) -> Rule:
    return Rule(type="tag", settings={"tags": tags})


def save(account: Account, vault: Vault | None, *rules: Rule, name: str = "tagged") -> Policy:
    policy = Policy.objects.filter(name=name).first() or Policy(account=account, name=name)
    policy.vault = vault
    return services.save_policy(policy, rules=[Rule(), *rules], actor=SERVICE, now=T0)


def bound() -> list[str]:
    tagging.sweep(now=T0)
    return sorted(Plan.objects.filter(by_tags=True).values_list("source__name", flat=True))


def retag(source: Source, **tags: str) -> None:
    source.tags = tags
    services.save_source(source, actor=SERVICE, now=T0)


def test_sources_with_all_the_tags_of_a_rule_are_bound_to_the_policys_vault(account, region, vault):
    for name, tags in {
        "a": {"team": "web"},
        "b": {"team": "web", "stage": "live"},
        "c": {"team": "db", "stage": "live"},
        "d": {},
        "e": {"stage": "live", "tier": "gold"},
    }.items():
        make_source(account, region, name, tags=tags)
    make_source(make_account("other"), region, "theirs", tags=WEB)
    save(account, vault, tag(team="web", stage="live"), tag(tier="gold"))
    assert bound() == ["b", "e"]
    assert set(Plan.objects.values_list("vault", "policy__name")) == {(vault.pk, "tagged")}
    assert Event.objects.filter(action="plan.create").count() == 2
    assert Plan.objects.exclude(next_run_at=None).count() == 2


def test_a_source_that_is_saved_comes_and_goes_with_its_tags(account, region, vault):
    save(account, vault, tag(**WEB))
    source = make_source(account, region)
    assert bound() == []
    retag(source, team="web", odd_name__x="1")
    assert bound() == ["web1"]
    retag(source, team="db")
    assert bound() == []
    assert Event.objects.get(action="plan.delete").detail == {"why": "its source has no longer the tags of a rule"}


def test_a_rule_that_changes_binds_others_and_another_vault_takes_over(account, region, vault):
    make_source(account, region, "a", tags=WEB)
    make_source(account, region, "b", tags={"team": "db"})
    save(account, vault, tag(**WEB))
    assert bound() == ["a"]
    save(account, vault, tag(team="db"))
    assert bound() == ["b"]
    other = make_vault(account, region, "second")
    save(account, other, tag(team="db"))
    assert bound() == ["b"]
    assert Plan.objects.get().vault == other
    save(account, other)
    assert bound() == []


def test_plans_that_people_made_are_left_alone(account, region, vault):
    policy = save(account, vault, tag(**WEB))
    source = make_source(account, region, tags=WEB)
    make_plan(source, policy, vault)
    assert bound() == []
    retag(source)
    assert bound() == []
    assert Plan.objects.count() == 1


def test_many_sources_are_bound_batch_by_batch_and_a_mark_tells_that_some_are_left(account, region, vault, monkeypatch):
    monkeypatch.setattr(tagging, "BATCH", 2)
    for number in range(5):
        make_source(account, region, f"host{number}", tags=WEB)
    save(account, vault, tag(**WEB))
    counts = []
    while Policy.objects.filter(tags_changed_at__isnull=False).exists():
        tagging.sweep(now=T0)
        counts.append(Plan.objects.count())
    assert counts == [2, 4, 5]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "Name the tags"),
        ({"tags": {}}, "Name the tags"),
        ({"tags": WEB, "more": 1}, "Name the tags"),
        ({"tags": {"team": 5}}, "at most 20 tags"),
        ({"tags": {"5": "web"}}, "The name of a tag has a letter: 5"),
    ],
)
def test_bad_tags_of_a_rule_are_refused_with_what_to_do(account, vault, settings, message):
    with pytest.raises(ValidationError, match=message):
        save(account, vault, Rule(type="tag", settings=settings))


def test_bad_tags_of_a_source_are_refused(account, region):
    with pytest.raises(ValidationError, match="at most 20 tags"):
        retag(make_source(account, region), **{f"t{number}": "x" for number in range(21)})


def test_a_rule_of_type_tag_needs_a_general_vault_of_the_account(account, region, vault):
    with pytest.raises(places.PlaceUnfit, match="Name the policy's vault"):
        save(account, None, tag(**WEB))
    with pytest.raises(places.PlaceUnfit, match="another account"):
        save(account, make_vault(make_account("other"), region), tag(**WEB))
    with pytest.raises(places.PlaceUnfit, match="Choose a general vault"):
        save(account, make_vault(account, region, "copies", type=VaultType.REPLICATION_TARGET), tag(**WEB))


class TestReplication:
    def rule(self, **settings: object) -> Rule:
        return Rule(type="replication", settings=settings)

    def test_a_rule_names_a_region_and_perhaps_a_target_there(self, account, vault):
        far = make_region("far")
        make_vault(account, far, "copies", type=VaultType.REPLICATION_TARGET, state="empty")
        for wanted in ({"region": "far"}, {"region": "far", "vault": "copies"}):
            policy = save(account, vault, self.rule(**wanted))
            assert [rule.settings for rule in policy.rules.filter(type="replication")] == [wanted]

    @pytest.mark.parametrize(
        ("settings", "error", "message"),
        [
            ({}, ValidationError, "Name the region"),
            ({"region": "far", "days": 3}, ValidationError, "Name the region"),
            ({"region": "nowhere"}, places.PlaceUnfit, "no region 'nowhere'"),
            ({"region": "main"}, places.PlaceUnfit, "lies in main itself"),
            ({"region": "far", "vault": "nothing"}, places.PlaceUnfit, "no replication target 'nothing' in far"),
        ],
    )
    def test_what_names_no_place_is_refused(self, account, vault, settings, error, message):
        make_region("far")
        with pytest.raises(error, match=message):
            save(account, vault, self.rule(**settings))
