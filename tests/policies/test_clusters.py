"""The automatic backup of a cluster: one, off by default, whole, 1 to 30 days; what is offered and what refused."""

import datetime as dt
from typing import Any

import pytest
from django.core.exceptions import ValidationError
from django.db import IntegrityError, transaction

from accounts.models import Event
from accounts.services import SERVICE
from policies import clusters, moments, services
from policies.clusters import Automatic
from policies.models import Edition, Plan, PlanState, Policy, Source
from tests.support.clusters import cluster_row
from tests.support.people import T0, make_plan, make_point, make_policy, make_source, make_vault
from tests.support.sources import source_of

pytestmark = pytest.mark.django_db


@pytest.fixture
def cluster() -> Source:
    """A cluster in an account with one vault."""
    return cluster_row()


def save(cluster: Source, *, enabled: bool | None = True, vault=None, at: dt.datetime = T0, **changes):
    return clusters.save(cluster, changes=changes, enabled=enabled, vault=vault, actor=SERVICE, now=at)


def enabled_plan(cluster: Source, **changes) -> Any:
    plan, _ = save(cluster, **changes)
    assert plan is not None
    return plan


@pytest.mark.rule("D10", "D11")
def test_nobody_s_cluster_is_backed_up_automatically_until_somebody_wants_it(cluster):
    assert clusters.plan_of(cluster) is None
    assert not clusters.is_enabled(None)
    other = source_of("milvus", cluster.account, cluster.region)
    other.name = "another"
    other.save()
    save(cluster)
    assert clusters.plan_of(other) is None


@pytest.mark.rule("D13")
@pytest.mark.rule("D14")
@pytest.mark.rule("D15")
def test_what_is_offered_is_daily_between_8_and_10_in_utc_plus_8_kept_for_7_days(cluster):
    plan = enabled_plan(cluster)
    east = dt.timezone(dt.timedelta(hours=8))
    runs = [plan.next_run_at]
    for _ in range(29):
        run = moments.next_run(plan, after=runs[-1])
        assert run is not None
        runs.append(run.moment)
    local = [run.astimezone(east) for run in runs]
    assert [run.date() for run in local] == [local[0].date() + dt.timedelta(days=day) for day in range(30)]
    assert all(dt.time(8) <= run.time() < dt.time(10) for run in local)
    assert len({run.time() for run in local}) > 20  # a window, and no instant
    assert moments.days_of(moments.backup_rules(plan.policy)[0], plan.policy) == 7


@pytest.mark.rule("D11", "D16")
def test_days_window_and_retention_are_changed_each_without_the_others(cluster):
    enabled_plan(cluster)
    plan = enabled_plan(cluster, days=(1, 2, 3, 5))
    assert clusters.automatic_of(plan) == Automatic(days=(1, 2, 3, 5))
    plan = enabled_plan(cluster, start=dt.time(23), end=dt.time(1))
    plan = enabled_plan(cluster, retention_days=30)
    found = clusters.plan_of(cluster)
    assert clusters.automatic_of(found) == Automatic((1, 2, 3, 5), dt.time(23), dt.time(1), 30)
    assert plan.next_run_at.isoweekday() in (1, 2, 3, 4, 5, 6)
    assert plan.next_run_at.hour in (23, 0)


def test_a_window_over_midnight_begins_on_its_day(cluster):
    plan = enabled_plan(cluster, days=(7,), start=dt.time(23), end=dt.time(1))
    for _ in range(40):
        run = moments.next_run(plan, after=plan.next_run_at)
        assert run is not None
        plan.next_run_at = run.moment
        assert (run.moment - dt.timedelta(hours=1)).isoweekday() == 7


def test_a_rule_that_is_changed_stays_the_rule_of_the_points_that_it_made(cluster):
    before = enabled_plan(cluster).policy.rules.get().pk
    assert enabled_plan(cluster, retention_days=9).policy.rules.get().pk == before


@pytest.mark.rule("D28")
@pytest.mark.parametrize("days", [1, 30])
def test_automatic_backups_are_kept_1_to_30_days(cluster, days):
    assert enabled_plan(cluster, retention_days=days).policy.retention_days == days


@pytest.mark.rule("D28")
@pytest.mark.parametrize("days", [0, 31, 365])
def test_other_days_are_refused_by_name_and_change_nothing(cluster, days):
    with pytest.raises(clusters.RetentionOutOfRange, match="1 to 30 days"):
        save(cluster, retention_days=days)
    assert not Plan.objects.exists()
    assert not Policy.objects.exists()


@pytest.mark.parametrize("changes", [{"days": ()}, {"start": dt.time(2), "end": dt.time(2)}])
def test_no_day_and_a_window_without_length_are_refused(cluster, changes):
    with pytest.raises(clusters.WindowUnfit):
        save(cluster, **changes)


def test_days_that_are_none_are_refused(cluster):
    with pytest.raises(ValidationError):
        save(cluster, days=(1, 8))


def test_enabling_twice_makes_one_plan_and_says_once_that_it_was_off(cluster):
    plan, woken = save(cluster)
    assert woken
    again, woken = save(cluster)
    assert (again, woken) == (plan, False)
    assert Plan.objects.get().edition == Edition.CLUSTER
    assert Policy.objects.get().inline


def test_disabling_keeps_the_settings_and_ends_the_runs(cluster):
    enabled_plan(cluster, days=(3,), retention_days=5)
    plan, woken = save(cluster, enabled=False)
    assert (plan.state, plan.next_run_at, woken) == (PlanState.PAUSED, None, False)
    assert clusters.automatic_of(plan) == Automatic(days=(3,), retention_days=5)
    plan, woken = save(cluster, enabled=True)
    assert (woken, plan.state) == (True, PlanState.ACTIVE)
    assert clusters.automatic_of(plan).days == (3,)


def test_disabling_what_was_never_enabled_makes_nothing(cluster):
    assert save(cluster, enabled=False) == (None, False)
    assert not Plan.objects.exists()


def test_settings_of_what_is_off_are_kept_and_stay_off(cluster):
    plan, woken = save(cluster, enabled=None, retention_days=3)
    assert (plan.state, woken) == (PlanState.PAUSED, False)
    assert clusters.automatic_of(clusters.plan_of(cluster)).retention_days == 3


def test_the_vault_is_chosen_where_there_are_several(cluster):
    second = make_vault(cluster.account, cluster.region, "second")
    with pytest.raises(clusters.VaultUnnamed, match="2 vaults"):
        save(cluster)
    plan, _ = save(cluster, vault=second)
    assert plan.vault == second
    first = cluster.account.vaults.get(name="vault")
    moved, woken = save(cluster, vault=first, days=(2,))
    assert (moved.vault, woken) == (first, False)
    assert clusters.plan_of(cluster) == moved
    assert Policy.objects.count() == 1


def test_without_a_vault_there_is_nothing_to_enable(cluster):
    cluster.account.vaults.update(type="replication_target")
    with pytest.raises(clusters.VaultUnnamed, match="no vaults"):
        save(cluster)


def test_the_database_itself_holds_one_automatic_plan_per_cluster(cluster):
    plan = enabled_plan(cluster)
    other = make_policy(cluster.account)
    with pytest.raises(IntegrityError), transaction.atomic():
        make_plan(cluster, other, plan.vault, edition=Edition.CLUSTER)


@pytest.mark.rule("D1")
def test_a_cluster_takes_no_plan_but_its_automatic_backup_and_no_other_kind_takes_that(cluster):
    vault = cluster.account.vaults.get()
    plan = Plan(source=cluster, policy=make_policy(cluster.account), vault=vault)
    with pytest.raises(services.PlanUnfit) as refusal:
        services.create_plan(plan, actor=SERVICE, now=T0)
    assert refusal.value.code == "cluster_policy_only"
    host = make_source(cluster.account, cluster.region)
    with pytest.raises(clusters.NotACluster):
        save(host)


def test_a_cluster_s_plan_is_changed_and_resumed_through_the_cluster_alone(cluster):
    plan = enabled_plan(cluster)
    with pytest.raises(services.PlanUnfit):
        services.change_plan(plan, actor=SERVICE, now=T0)
    services.pause(plan, actor=SERVICE, now=T0)
    with pytest.raises(services.PlanUnfit):
        services.resume(plan, actor=SERVICE, now=T0)


def test_a_policy_of_a_plan_s_own_goes_with_it(cluster):
    services.delete(enabled_plan(cluster), actor=SERVICE, now=T0)
    assert not Policy.objects.exists()


@pytest.mark.rule("D29")
def test_a_cluster_with_automatic_backups_is_not_removed_without_its_name_typed(cluster):
    vault = cluster.account.vaults.get()
    point = make_point(vault, cluster)
    with pytest.raises(services.ClusterBackedUp):
        services.delete(cluster, actor=SERVICE, now=T0)
    point.delete()
    make_point(vault, cluster, manual=True)
    services.delete(cluster, actor=SERVICE, now=T0)
    assert vault.points.get().manual


def test_each_change_is_in_the_audit_trail(cluster):
    enabled_plan(cluster)
    enabled_plan(cluster, retention_days=9)
    save(cluster, enabled=False)
    save(cluster, enabled=True)
    told = [event.action for event in Event.objects.order_by("id")]
    assert told == [
        "policy.create",
        "plan.create",
        "policy.change",
        "plan.change",
        "plan.pause",
        "plan.resume",
    ]
