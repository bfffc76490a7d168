"""Plans of their own rules where a region has no policies, and their upgrade (B17-B21)."""

import datetime as dt
from typing import Any

import pytest

from accounts.models import Event
from accounts.services import SERVICE
from jobs.models import Job
from policies import inline, retention, services
from policies.models import Edition, Plan, Policy, Rule
from tests.support.api import client_of, error_code
from tests.support.people import (
    T0,
    join,
    make_account,
    make_point,
    make_policy,
    make_region,
    make_source,
    make_vault,
    whole_plan,
)
from vaults.models import Region

pytestmark = pytest.mark.django_db
DAY = dt.timedelta(days=1)


@pytest.fixture
def old() -> Region:
    region = make_region("old")
    Region.objects.filter(name="old").update(supports_policies=False)
    return Region.objects.get(pk=region.pk)


@pytest.fixture
def plan(old: Region) -> Plan:
    account = make_account()
    plan = Plan(source=make_source(account, old), vault=make_vault(account, old))
    rules = [Rule(start_time=dt.time(3), retention_days=90), Rule(unit="year", start_time=dt.time(3))]
    return inline.create(plan, Policy(retention_days=400), rules, actor=SERVICE, now=T0)


def upgrade(plan: Plan, **how: Any) -> list[str]:
    return inline.upgrade(plan, **how, actor=SERVICE, now=T0)


@pytest.mark.rule("B17")
def test_where_a_region_supports_policies_a_plan_takes_one():
    old = whole_plan()
    wanted = Plan(source=make_source(old.account, old.vault.region, "web2"), vault=old.vault)
    with pytest.raises(inline.PolicyNeeded, match="The region main supports policies"):
        inline.create(wanted, Policy(), None, actor=SERVICE, now=T0)
    assert Policy.objects.count() == Plan.objects.count() == 1


@pytest.mark.rule("B17", "B16")
def test_a_plan_of_its_own_rules_follows_them_and_takes_them_with_it(plan):
    assert plan.next_run_at == T0.replace(hour=3) + DAY
    assert plan.policy.inline
    assert [rule.retention_days for rule in plan.policy.rules.all()] == [90, None]
    make_point(plan.vault, plan.source)
    services.delete(plan, actor=SERVICE, now=T0)
    assert not Policy.objects.exists()
    assert plan.vault.points.count() == 1


@pytest.mark.rule("B19", "B20")
def test_an_upgrade_leaves_vault_points_and_jobs_and_the_days_that_points_were_made_with(plan):
    daily, yearly = plan.policy.rules.all()
    Policy.objects.filter(pk=plan.policy_id).update(keep_at_least_one=False)
    points = [make_point(plan.vault, plan.source, rule=str(rule.pk), at=T0 - 100 * DAY) for rule in (daily, yearly)]
    job = Job.objects.create(
        account=plan.account, kind="backup", state="complete", vault=plan.vault, plan=plan, created_at=T0
    )
    vault = plan.vault
    policy = make_policy(plan.account, "new", retention_days=1000, keep_at_least_one=False, start_time=dt.time(5))
    assert upgrade(plan, policy=policy) == []
    plan = Plan.objects.get()
    assert (plan.policy, plan.vault, plan.next_run_at) == (policy, vault, T0.replace(hour=5) + DAY)
    assert Policy.objects.get() == policy
    job.refresh_from_db()
    assert job.plan == plan
    rules = retention.source_rules(plan.source, vault, now=T0)
    verdicts = {one.row.pk: one.verdict for one in retention.preview(vault, plan.source.series, rules, now=T0)}
    assert [verdicts[point.pk].keep for point in points] == [False, True]
    assert verdicts[points[1].pk].expires_at == T0 + 300 * DAY
    assert rules == retention.vault_rules(vault, now=T0)[plan.source.series]
    assert Event.objects.get(action="plan.upgrade").detail["name"] == "new"


@pytest.mark.rule("B21")
def test_a_policy_with_another_vault_warns_and_the_plan_stays_in_its_own(plan):
    other = make_vault(plan.account, plan.vault.region, "other")
    [warning] = upgrade(plan, policy=make_policy(plan.account, "new", vault=other))
    assert "This plan goes on into vault, where its history is" in warning
    assert Plan.objects.get().vault == plan.vault


@pytest.mark.rule("B19", "B20")
def test_its_own_rules_can_become_a_named_policy(plan):
    rules, moment = set(plan.policy.rules.values_list("pk", flat=True)), plan.next_run_at
    assert upgrade(plan, name="nightly") == []
    policy = Policy.objects.get(inline=False, name="nightly")
    plan = Plan.objects.get()
    assert (plan.policy, plan.next_run_at, plan.former_rules) == (policy, moment, {})
    assert set(policy.rules.values_list("pk", flat=True)) == rules


def test_a_plan_that_has_a_policy_or_an_edition_is_not_upgraded(plan):
    with pytest.raises(inline.UpgradeUnfit, match="has a policy, or one"):
        upgrade(whole_plan("other"), name="new")
    plan.edition = Edition.ESSENTIAL
    with pytest.raises(inline.UpgradeUnfit, match="its edition lays down"):
        upgrade(plan, name="new")


def test_a_policy_of_another_account_is_refused(plan):
    with pytest.raises(services.PlanUnfit, match="the plan's account"):
        upgrade(plan, policy=whole_plan("other").policy)


@pytest.mark.rule("B17", "B18", "B19")
def test_the_whole_way_through_the_api(old):
    account = make_account()
    make_region("new")
    owner = client_of(join(account, "olga"))
    source, vault = make_source(account, old), make_vault(account, old)
    shown = {one["name"]: one["supports_policies"] for one in owner.get("/api/v1/policies/regions/").json()}
    assert shown == {"old": False, "new": True}
    wanted = {"source": str(source.pk), "vault": str(vault.pk)}
    own = {"rules": [{"start_time": "04:00", "retention_days": 9}], "time_zone": "Europe/Berlin"}
    made = owner.post("/api/v1/plans/", wanted | {"own": own})
    assert made.status_code == 201
    plan = Plan.objects.get()
    assert (plan.policy.inline, plan.policy.time_zone, plan.policy.rules.get().retention_days) == (
        True,
        "Europe/Berlin",
        9,
    )
    assert owner.get("/api/v1/policies/").json()["results"] == []
    named = owner.post(f"/api/v1/plans/{plan.pk}/upgrade/", {"name": "nightly"})
    assert (named.status_code, named.json()["warnings"]) == (200, [])
    assert [one["name"] for one in owner.get("/api/v1/policies/").json()["results"]] == ["nightly"]
    both = owner.post(f"/api/v1/plans/{plan.pk}/upgrade/", {})
    assert (both.status_code, error_code(both)) == (400, "invalid")
    Region.objects.update(supports_policies=True)
    refused = owner.post("/api/v1/plans/", wanted | {"own": own})
    assert (refused.status_code, error_code(refused)) == (409, "policy_needed")


def test_a_policy_being_edited_shows_its_next_runs(old):
    account = make_account()
    policy = make_policy(account, start_time=dt.time(2))
    owner = client_of(join(account, "olga"))
    wanted = {"rules": [{"start_time": "04:00", "window_minutes": 30}], "time_zone": "Asia/Tokyo"}
    runs = owner.post(f"/api/v1/policies/{policy.pk}/runs/", wanted).json()
    assert len(runs) == 10
    assert runs[0]["earliest"].endswith("T19:00:00Z")
    assert runs[0]["latest"].endswith("T19:30:00Z")
    assert policy.rules.get().start_time == dt.time(2)
    bad = owner.post(f"/api/v1/policies/{policy.pk}/runs/", {"rules": [{"unit": "month", "weekdays": [1]}]})
    assert bad.status_code == 400
    assert "Weekdays go with days or weeks" in bad.content.decode()
