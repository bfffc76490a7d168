"""Sources, policies and plans: what is accepted, what is refused and why."""

import datetime as dt

import pytest
from django.core.exceptions import ObjectDoesNotExist, ValidationError
from django.db import IntegrityError, transaction

from accounts.models import Event
from accounts.refusals import Refused
from accounts.services import SERVICE
from policies import reading, services
from policies.models import RETENTION_DAYS_MAX, Plan, PlanState, Policy, Rule, Source
from tests.support.people import T0, make_account, make_policy, make_region, make_source, make_vault, whole_plan
from vaults.models import VaultType

pytestmark = pytest.mark.django_db


@pytest.fixture
def account():
    return make_account()


@pytest.fixture
def region():
    return make_region()


def new_source(account, region, **settings) -> Source:
    return Source(account=account, region=region, name="web1", host="web1", settings=settings)


def program(account, region) -> Source:
    return Source(account=account, region=region, name="dump", kind="command", host="web1", settings={"argv": ["true"]})


def test_a_source_is_stored_with_complete_settings_and_an_audit_line(account, region):
    source = services.save_source(new_source(account, region, roots=["/srv"]), actor=SERVICE, now=T0)
    source.refresh_from_db()
    assert source.settings["roots"] == ["/srv"]
    assert (source.settings["include"], source.settings["exclude"]) == ([], [])
    assert source.settings["one_file_system"] is False
    assert Event.objects.get().action == "source.create"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "settings.roots.*required"),
        ({"roots": "/srv"}, "settings.roots.*list of items"),
        ({"roots": []}, "settings.roots.*at least 1"),
        ({"roots": ["srv"]}, "not an absolute path"),
        ({"roots": ["/srv/../etc"]}, "not an absolute path"),
        ({"roots": ["/srv"], "exclude": "*.tmp"}, "settings.exclude.*list of items"),
        ({"roots": ["/srv"], "follow": True}, "Unknown settings: follow"),
    ],
)
def test_bad_file_settings_are_refused_with_what_to_do(account, region, settings, message):
    with pytest.raises(ValidationError, match=message):
        services.save_source(new_source(account, region, **settings), actor=SERVICE, now=T0)
    assert not Source.objects.exists()


@pytest.mark.rule("B28")
def test_saving_a_source_warns_about_file_systems_mounted_inside(account, region, settings):
    settings.HOST_NAME = "web1"
    warned = services.save_source(new_source(account, region, roots=["/"]), actor=SERVICE, now=T0)
    assert any("mounted at /proc" in warning for warning in warned.warnings)
    warned.settings["one_file_system"] = True
    assert services.save_source(warned, actor=SERVICE, now=T0).warnings == []


def test_credentials_are_kept_sealed_and_stay_when_not_given(account, region):
    source = program(account, region)
    services.save_source(source, credentials={"environment": "PGPASSWORD=hunter2hunter2"}, actor=SERVICE, now=T0)
    kept = Source.objects.get().credentials
    assert kept.startswith("v1.")
    assert "hunter2" not in kept
    services.save_source(source, actor=SERVICE, now=T0)
    assert Source.objects.get().credentials == kept


@pytest.mark.parametrize(
    ("credentials", "message"),
    [
        ({"password": "x"}, "Unknown credentials: password"),
        ({"environment": "no equals sign"}, "credentials.environment.*NAME=value"),
    ],
)
def test_bad_credentials_are_refused_with_what_to_do(account, region, credentials, message):
    with pytest.raises(ValidationError, match=message):
        services.save_source(program(account, region), credentials=credentials, actor=SERVICE, now=T0)
    assert not Source.objects.exists()


def test_a_host_is_named_for_what_a_host_reads(account, region):
    source = program(account, region)
    source.host = ""
    with pytest.raises(ValidationError, match="Name the host"):
        services.save_source(source, actor=SERVICE, now=T0)


def test_the_kind_of_a_source_never_changes(account, region):
    source = services.save_source(new_source(account, region, roots=["/srv"]), actor=SERVICE, now=T0)
    source.kind, source.settings = "command", {"argv": ["true"]}
    with pytest.raises(ValidationError, match="never changes"):
        services.save_source(source, actor=SERVICE, now=T0)


def test_settings_that_a_kind_learned_later_have_their_defaults(account, region):
    source = make_source(account, region, settings={"roots": ["/srv"]})
    found = reading.reading(source)
    assert (found.settings["roots"], found.settings["exclude"]) == (["/srv"], [])
    assert reading.engine_source(source).options()["exclude"] == []


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"retention_days": 0}, "greater than or equal to 1"),
        ({"retention_days": RETENTION_DAYS_MAX + 1}, "less than or equal to 364635"),
        ({"time_zone": "Mars/Olympus"}, "no time zone"),
    ],
)
def test_bad_policies_are_refused_with_what_to_do(account, values, message):
    with pytest.raises(ValidationError, match=message):
        services.save_policy(Policy(account=account, name="p", **values), actor=SERVICE, now=T0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"cron": "61 * * * *"}, "not a cron expression"),
        ({"every": 0}, "greater than or equal to 1"),
        ({"unit": "fortnight"}, "not a valid choice"),
        ({"weekdays": [8]}, "from 1, Monday, to 7"),
        ({"weekdays": [1, 1]}, "different days"),
        ({"weekdays": "1"}, "different days"),
        ({"window_minutes": 1441}, "less than or equal to 1440"),
        ({"retention_days": 0}, "greater than or equal to 1"),
    ],
)
def test_bad_rules_are_refused_with_their_place_and_what_to_do(account, values, message):
    rules = [Rule(), Rule(**values)]
    with pytest.raises(ValidationError, match=message) as caught:
        services.save_policy(Policy(account=account, name="p"), rules=rules, actor=SERVICE, now=T0)
    assert [*caught.value.message_dict] == [f"rules.1.{next(iter(values))}"]
    assert not Policy.objects.exists()


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ([], "1 to 10 rules, not 0"),
        ([Rule() for _ in range(11)], "1 to 10 rules, not 11"),
        ([Rule(type="tag", settings={"tags": {"team": "web"}})], "needs a rule of type backup"),
    ],
)
def test_a_policy_has_one_to_ten_rules_and_one_that_makes_points(account, rules, message):
    with pytest.raises(services.RulesUnfit, match=message):
        services.save_policy(Policy(account=account, name="p"), rules=rules, actor=SERVICE, now=T0)
    assert not Policy.objects.exists()


def test_rules_that_stay_keep_their_ids_wherever_they_stand(account):
    daily, monthly = Rule(), Rule(unit="month", retention_days=365)
    policy = services.save_policy(Policy(account=account, name="p"), rules=[daily, monthly], actor=SERVICE, now=T0)
    services.save_policy(policy, rules=[monthly, Rule(unit="year")], actor=SERVICE, now=T0)
    first, second = policy.rules.all()
    assert (first.pk, first.retention_days, second.unit) == (monthly.pk, 365, "year")
    assert first.pk != daily.pk


def test_the_database_itself_refuses_a_retention_out_of_range(account):
    with pytest.raises(IntegrityError), transaction.atomic():
        make_policy(account, retention_days=0)


@pytest.mark.rule("B16")
@pytest.mark.parametrize("missing", ["source", "policy", "vault"])
def test_a_plan_needs_source_policy_and_vault(missing):
    plan = whole_plan()
    parts = {"source": plan.source, "policy": plan.policy, "vault": plan.vault}
    plan.delete()
    del parts[missing]
    with pytest.raises(ObjectDoesNotExist), transaction.atomic():
        services.create_plan(Plan(**parts), actor=SERVICE, now=T0)
    assert not Plan.objects.exists()


@pytest.mark.rule("B16", "C8")
def test_a_new_plan_draws_its_start_and_knows_its_next_moment(account, region):
    plan = Plan(source=make_source(account, region), policy=make_policy(account), vault=make_vault(account, region))
    services.create_plan(plan, actor=SERVICE, now=T0)
    midnight = dt.datetime(2026, 3, 11, tzinfo=dt.UTC)
    assert plan.next_run_at == midnight + dt.timedelta(minutes=plan.start_minute)
    assert plan.start_minute < 360


def test_the_same_binding_twice_is_refused():
    plan = whole_plan()
    with pytest.raises(services.PlanExists):
        services.create_plan(Plan(source=plan.source, policy=plan.policy, vault=plan.vault), actor=SERVICE, now=T0)


def test_parts_of_two_accounts_make_no_plan():
    plan, other = whole_plan("acme"), whole_plan("other")
    with pytest.raises(services.PlanUnfit, match="one account"):
        services.create_plan(Plan(source=plan.source, policy=plan.policy, vault=other.vault), actor=SERVICE, now=T0)


def test_what_starts_its_backups_itself_takes_no_plan(account, region):
    hana = make_source(account, region, "hana", kind="backint", settings={"database": "SYSTEMDB@HDB"})
    plan = Plan(source=hana, policy=make_policy(account), vault=make_vault(account, region))
    with pytest.raises(services.PlanUnfit, match="starts its backups itself"):
        services.create_plan(plan, actor=SERVICE, now=T0)


def test_a_replication_target_takes_no_plan(account, region):
    target = make_vault(account, region, type=VaultType.REPLICATION_TARGET)
    plan = Plan(source=make_source(account, region), policy=make_policy(account), vault=target)
    with pytest.raises(services.PlanUnfit, match="replication target"):
        services.create_plan(plan, actor=SERVICE, now=T0)


@pytest.mark.rule("C30", "C31")
def test_only_a_paused_plan_can_be_resumed_and_only_an_active_one_paused():
    plan = whole_plan()
    with pytest.raises(services.PlanNotPaused):
        services.resume(plan, actor=SERVICE, now=T0)
    services.pause(plan, actor=SERVICE, now=T0)
    assert (plan.state, plan.next_run_at) == (PlanState.PAUSED, None)
    with pytest.raises(services.PlanPaused):
        services.pause(plan, actor=SERVICE, now=T0)
    services.resume(plan, actor=SERVICE, now=T0)
    assert plan.state == PlanState.ACTIVE
    assert plan.next_run_at == dt.datetime(2026, 3, 11, 1, 30, tzinfo=dt.UTC)


def test_a_changed_policy_moves_its_active_plans():
    plan = whole_plan()
    Plan.objects.update(next_run_at=T0 + dt.timedelta(hours=5))
    services.save_policy(plan.policy, rules=[Rule(cron="0 13 * * *")], actor=SERVICE, now=T0)
    plan.refresh_from_db()
    assert plan.next_run_at == dt.datetime(2026, 3, 10, 13, 0, tzinfo=dt.UTC)


def test_a_source_that_a_plan_uses_cannot_be_deleted():
    plan = whole_plan()
    with pytest.raises(Refused, match="1 plan uses this source: web1"):
        services.delete(plan.source, actor=SERVICE, now=T0)
    services.delete(plan, actor=SERVICE, now=T0)
    services.delete(plan.source, actor=SERVICE, now=T0)
    assert not Source.objects.exists()
