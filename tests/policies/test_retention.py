"""Which rules decide over points, what they say of each, and what a person is warned of. Time passes as `now`."""

import datetime as dt
from typing import Any

import pytest
from django.core.exceptions import ValidationError

from accounts.models import Event
from accounts.services import SERVICE
from policies import retention, services
from policies.models import Plan, PlanState, Policy
from tests.support.people import T0, make_plan, make_point, make_policy, make_source, make_vault, whole_plan
from vaults.models import PointState

pytestmark = pytest.mark.django_db
DAY = dt.timedelta(days=1)
MINUTE = dt.timedelta(minutes=1)


@pytest.fixture
def plan() -> Plan:
    """A plan with 30 days and five daily points, the newest made at T0."""
    plan = whole_plan()
    for days in range(5):
        make_point(plan.vault, plan.source, at=T0 - days * DAY, retention_days=30)
    return plan


def change(policy: Policy, *, now: dt.datetime = T0, **values: Any) -> Policy:
    for name, value in values.items():
        setattr(policy, name, value)
    return services.save_policy(policy, actor=SERVICE, now=now)


def kept(plan: Plan, *, now: dt.datetime) -> list[int]:
    """Return the ages in days at T0 of the points that stay, newest first."""
    rules = retention.source_rules(plan.source, plan.vault, now=now)
    judged = retention.preview(plan.vault, plan.source.series, rules, now=now)
    return [(T0 - one.row.completed_at).days for one in judged if one.verdict.keep]


@pytest.mark.rule("C9")
@pytest.mark.rule("C16")
def test_a_policy_keeps_thirty_days_and_the_newest_point_for_ever_unless_told_otherwise(plan):
    assert (plan.policy.retention_days, plan.policy.keep_at_least_one) == (30, True)
    assert kept(plan, now=T0 + 28 * DAY) == [0, 1]
    assert kept(plan, now=T0 + 1000 * DAY) == [0]


def test_a_new_number_holds_for_points_that_exist(plan):
    change(plan.policy, retention_days=2)
    assert kept(plan, now=T0) == [0, 1]
    change(plan.policy, retention_days=None)
    assert kept(plan, now=T0 + 10_000 * DAY) == [0, 1, 2, 3, 4]
    first = Event.objects.filter(action="policy.change").earliest("pk")
    assert first.detail["retention_days"] == [30, 2]


@pytest.mark.parametrize(
    ("rule", "ages"),
    [("keep_last", [0, 1]), ("keep_daily", [0, 1]), ("keep_weekly", [0, 1, 4]), ("keep_monthly", [0, 4])],
)
def test_rules_that_count_keep_beyond_the_days(plan, rule, ages):
    values: dict[str, Any] = {rule: 2}
    change(plan.policy, retention_days=1, **values)
    # T0 is a Tuesday: the first of its week is a day old, the week before begins with the point of four days ago.
    assert kept(plan, now=T0 + MINUTE) == ages


def test_what_any_policy_of_the_source_keeps_stays(plan):
    change(plan.policy, retention_days=1, keep_at_least_one=False, keep_one_until=None)
    Policy.objects.update(keep_one_until=None)
    other = make_policy(plan.account, "weekly", retention_days=3, time_zone="Asia/Tokyo", keep_at_least_one=False)
    make_plan(plan.source, other, plan.vault)
    assert kept(plan, now=T0 + MINUTE) == [0, 1, 2]
    assert len(retention.source_rules(plan.source, plan.vault, now=T0)) == 2


def test_policies_of_other_vaults_and_other_sources_have_no_say(plan):
    longer = make_policy(plan.account, "long", retention_days=1000)
    make_plan(plan.source, longer, make_vault(plan.account, plan.vault.region, "second"))
    make_plan(make_source(plan.account, plan.vault.region, "web2"), longer, plan.vault)
    change(plan.policy, retention_days=2)
    assert kept(plan, now=T0) == [0, 1]
    assert set(retention.vault_rules(plan.vault, now=T0)) == {p.source.series for p in plan.vault.plans.all()}


def test_points_of_a_source_without_a_plan_keep_the_retention_they_were_made_with(plan):
    plan.delete()
    assert kept(plan, now=T0 + 29 * DAY) == [0]
    assert kept(plan, now=T0 + 30 * DAY) == []


def test_a_held_and_a_locked_point_stay_whatever_the_rules_say(plan):
    change(plan.policy, retention_days=1)
    oldest, older = plan.vault.points.order_by("completed_at")[:2]
    oldest.held_at = T0
    older.locked_until = T0 + 9 * DAY
    oldest.save()
    older.save()
    assert kept(plan, now=T0 + MINUTE) == [0, 3, 4]
    rules = retention.source_rules(plan.source, plan.vault, now=T0)
    *_, second, first = retention.preview(plan.vault, plan.source.series, rules, now=T0)
    assert first.verdict.reasons == ["held"]
    assert second.verdict.expires_at == T0 + 9 * DAY


def test_a_point_kept_for_ever_has_no_date(plan):
    change(plan.policy, retention_days=None)
    rules = retention.source_rules(plan.source, plan.vault, now=T0)
    verdict = retention.preview(plan.vault, plan.source.series, rules, now=T0)[-1].verdict
    assert (verdict.keep, verdict.reasons, verdict.expires_at) == (True, ["kept for ever"], None)


def test_a_partial_newest_point_does_not_replace_the_newest_complete_one(plan):
    newest = plan.vault.points.order_by("-completed_at")[0]
    newest.state = PointState.PARTIAL_COMPLETE
    newest.save()
    assert kept(plan, now=T0 + 1000 * DAY) == [0, 1]


@pytest.mark.rule("C30")
def test_the_points_of_a_paused_plan_expire_as_they_would_and_the_last_one_stays(plan):
    services.pause(plan, actor=SERVICE, now=T0)
    assert plan.state == PlanState.PAUSED
    assert kept(plan, now=T0 + 27 * DAY) == [0, 1, 2]
    assert kept(plan, now=T0 + 400 * DAY) == [0]


@pytest.mark.rule("C33")
def test_switching_keep_at_least_one_on_holds_at_once(plan):
    Policy.objects.update(keep_at_least_one=False)
    plan.policy.refresh_from_db()
    late = T0 + 100 * DAY
    assert kept(plan, now=late) == []
    change(plan.policy, keep_at_least_one=True, now=late)
    assert kept(plan, now=late) == [0]


class TestSwitchingKeepAtLeastOneOff:
    @pytest.mark.rule("C34")
    def test_it_ends_within_the_hour_and_not_before(self, plan, settings):
        late = T0 + 100 * DAY
        change(plan.policy, keep_at_least_one=False, now=late)
        grace = dt.timedelta(seconds=settings.KEEP_ONE_GRACE_S)
        assert MINUTE < grace < 60 * MINUTE
        assert kept(plan, now=late) == [0]
        assert kept(plan, now=late + grace - MINUTE) == [0]
        assert kept(plan, now=late + grace) == []

    @pytest.mark.rule("C34")
    def test_switching_it_on_again_before_changes_nothing(self, plan):
        late = T0 + 100 * DAY
        change(plan.policy, keep_at_least_one=False, now=late)
        change(plan.policy, keep_at_least_one=True, now=late + 30 * MINUTE)
        assert services.end_keep_one(now=late + 60 * MINUTE) == []
        assert kept(plan, now=late + 60 * MINUTE) == [0]

    def test_another_change_of_the_policy_does_not_prolong_it(self, plan):
        change(plan.policy, keep_at_least_one=False)
        until = plan.policy.keep_one_until
        change(plan.policy, name="renamed", now=T0 + 20 * MINUTE)
        assert plan.policy.keep_one_until == until

    @pytest.mark.rule("C35")
    def test_its_end_names_the_vaults_whose_expiry_should_look_at_once_and_that_once(self, plan):
        change(plan.policy, keep_at_least_one=False)
        assert services.end_keep_one(now=T0 + MINUTE) == []
        assert services.end_keep_one(now=T0 + 59 * MINUTE) == [plan.vault_id]
        assert services.end_keep_one(now=T0 + 59 * MINUTE) == []


class TestWarnings:
    @pytest.mark.rule("C17")
    @pytest.mark.rule("C36")
    def test_switching_off_tells_when_the_last_point_goes(self, plan):
        change(plan.policy, keep_at_least_one=False)
        general, dated = retention.warnings_on_disable(plan.policy, now=T0)
        assert "2026-03-10 12:50 UTC" in general
        assert "nothing may be left when backups stop" in general
        assert dated == (
            "web1 in vault, unless a backup completes before: the last recovery point expires on 2026-04-09 12:00 UTC."
        )

    @pytest.mark.rule("C36")
    def test_switching_off_when_all_has_outlived_its_retention_says_that_it_goes_now(self, plan):
        late = T0 + 100 * DAY
        change(plan.policy, keep_at_least_one=False, now=late)
        assert "outlives its retention" in retention.warnings_on_disable(plan.policy, now=late)[1]

    def test_nothing_runs_out_while_another_policy_keeps_one(self, plan):
        make_plan(plan.source, make_policy(plan.account, "weekly"), plan.vault)
        change(plan.policy, keep_at_least_one=False)
        assert len(retention.warnings_on_disable(plan.policy, now=T0)) == 1

    def test_there_is_nothing_to_tell_while_it_is_on(self, plan):
        assert retention.warnings_on_disable(change(plan.policy, name="other"), now=T0) == []

    @pytest.mark.rule("C17")
    def test_pausing_warns_only_when_nothing_keeps_the_last_point(self, plan):
        assert retention.warnings_on_pause(plan, now=T0) == []
        Policy.objects.update(keep_at_least_one=False)
        (text,) = retention.warnings_on_pause(plan, now=T0)
        assert "the last recovery point expires on 2026-04-09 12:00 UTC" in text
        make_plan(plan.source, make_policy(plan.account, "weekly"), plan.vault)
        assert retention.warnings_on_pause(plan, now=T0) == []

    def test_pausing_a_plan_without_any_point_says_so(self, plan):
        plan.vault.points.all().delete()
        Policy.objects.update(keep_at_least_one=False)
        assert "there is no recovery point even now" in retention.warnings_on_pause(plan, now=T0)[0]


@pytest.mark.parametrize(
    "values",
    [
        {"keep_last": 10_001},
        {"keep_daily": -1},
        {"drill_percent": 0},
        {"drill_percent": 101},
        {"drill_every_days": 3661},
    ],
)
def test_numbers_out_of_range_are_refused(plan, values):
    with pytest.raises(ValidationError):
        change(plan.policy, **values)


def test_a_policy_says_how_often_its_sources_are_restored_on_trial(plan):
    change(plan.policy, drill_every_days=7)
    plan.refresh_from_db()
    assert T0 < plan.next_drill_at <= T0 + 7 * DAY
    change(plan.policy, drill_every_days=0)
    plan.refresh_from_db()
    assert plan.next_drill_at is None


def test_a_source_whose_backups_are_being_deleted_takes_no_plan(plan):
    plan.source.erasing_since = T0
    with pytest.raises(services.SourceErasing):
        services.create_plan(
            Plan(source=plan.source, policy=plan.policy, vault=make_vault(plan.account, plan.vault.region, "other")),
            actor=SERVICE,
            now=T0,
        )


def test_a_source_whose_backups_are_being_deleted_stays_until_they_are_gone(plan):
    source = plan.source
    plan.delete()
    source.erasing_since = T0
    with pytest.raises(services.SourceErasing, match="goes with the last of them"):
        services.delete(source, actor=SERVICE, now=T0)
