"""Plans follow a policy that changed: all of them, losing and doubling no run."""

import datetime as dt

import pytest
from django.core.exceptions import ValidationError

from accounts.services import SERVICE
from policies import moments, rescheduling, services
from policies.models import Plan, Policy, Rule
from tests.support.people import T0, make_plan, make_policy, make_source, whole_plan

pytestmark = pytest.mark.django_db
MIDNIGHT = T0.replace(hour=0)


def at(clock: str, day: int = 0) -> dt.datetime:
    hours, minutes = clock.split(":")
    return MIDNIGHT + dt.timedelta(days=day, hours=int(hours), minutes=int(minutes))


def window(start: str, minutes: int) -> Rule:
    return Rule(start_time=dt.time.fromisoformat(start), window_minutes=minutes)


def windowed(start: str, minutes: int) -> Plan:
    """Make a plan whose runs are drawn in a window; what it drew today counts from the day before."""
    plan = whole_plan()
    services.save_policy(plan.policy, rules=[window(start, minutes)], actor=SERVICE, now=at("00:00", -1))
    plan.refresh_from_db()
    plan.policy = Policy.objects.get()
    moments.move_on(plan, after=at("00:00"))
    plan.save()
    return plan


def coming(plan: Plan) -> dt.datetime:
    assert plan.next_run_at is not None
    return plan.next_run_at


def edit(plan: Plan, rule: Rule, now: dt.datetime) -> Plan:
    services.save_policy(Policy.objects.get(pk=plan.policy_id), rules=[rule], actor=SERVICE, now=now)
    return Plan.objects.get(pk=plan.pk)


def run(plan: Plan) -> None:
    """Let the plan's next run be done."""
    plan.last_run_at, plan.last_rule = plan.next_run_at, plan.next_rule
    assert plan.last_run_at is not None
    moments.move_on(plan, after=plan.last_run_at)
    plan.save()


@pytest.mark.parametrize("minutes", range(1, 12 * 60, 90))
@pytest.mark.parametrize("new", [("02:00", 600), ("00:00", 900), ("04:00", 300)])
@pytest.mark.rule("D14")
def test_an_edit_in_mid_window_neither_loses_nor_doubles_the_days_run(minutes, new):
    plan = windowed("02:00", 480)
    runs = []
    edited_at = at("00:00") + dt.timedelta(minutes=minutes)
    edited = False
    while not edited or coming(plan) < at("00:00", 2):
        if not edited and coming(plan) > edited_at:
            plan, edited = edit(plan, window(*new), edited_at), True
            continue
        runs.append(coming(plan))
        run(plan)
    open_until = at(new[0]) + dt.timedelta(minutes=new[1])
    today = [one for one in runs if one < at("00:00", 1)]
    # A window that is over already has nothing left of it in which the run could come.
    assert len(today) == (1 if today or edited_at < open_until else 0)
    assert len(runs) - len(today) == 1
    assert moments.upcoming(plan, count=1, now=edited_at)[0].moment == plan.next_run_at


def test_what_is_drawn_in_what_is_left_of_a_window_stays_when_the_policy_is_edited_again():
    plan = windowed("10:00", 120)
    first = edit(plan, window("08:00", 120), at("09:50"))
    assert at("09:50") < coming(first) <= at("10:01")
    again = edit(first, window("08:00", 121), at("09:50"))
    assert again.next_run_at == first.next_run_at


def test_a_moment_that_is_due_stays_due_when_its_policy_is_edited():
    plan = whole_plan()
    services.save_policy(plan.policy, rules=[Rule(cron="0 13 * * *")], actor=SERVICE, now=T0 + dt.timedelta(seconds=5))
    plan.refresh_from_db()
    assert plan.next_run_at == T0
    plan.catch_up = True
    services.change_plan(plan, actor=SERVICE, now=T0 + dt.timedelta(seconds=6))
    assert Plan.objects.get().next_run_at == T0


def many(count: int) -> Policy:
    plan = whole_plan()
    Plan.objects.update(next_run_at=T0 + dt.timedelta(days=1))
    sources = [make_source(plan.account, plan.vault.region, f"host{number}") for number in range(count)]
    for source in sources:
        make_plan(source, plan.policy, plan.vault, next_run_at=T0 + dt.timedelta(days=1))
    return plan.policy


@pytest.mark.parametrize("count", [1, 40])
def test_a_batch_of_plans_follows_with_the_same_number_of_queries(count, django_assert_num_queries):
    policy = many(count)
    policy.rules.update(cron="0 13 * * *")
    policy.plans.update(rules_changed_at=T0)
    with django_assert_num_queries(5):
        assert rescheduling.go_on() == count + 1
    assert set(Plan.objects.values_list("next_run_at", "rules_changed_at")) == {(T0 + dt.timedelta(hours=1), None)}


def test_plans_of_a_change_too_large_for_a_request_wait_for_the_sweep_and_run_nothing_meanwhile(monkeypatch):
    policy = many(3)
    monkeypatch.setattr(rescheduling, "BATCH", 2)
    monkeypatch.setattr(rescheduling, "AT_ONCE_MAX", 2)
    services.save_policy(policy, rules=[Rule(cron="0 13 * * *")], actor=SERVICE, now=T0)
    later = T0 + dt.timedelta(days=2)
    assert Plan.objects.due(later).count() == 2
    waiting = Plan.objects.filter(rules_changed_at=T0)
    assert [run.moment for run in moments.upcoming(waiting[0], count=1, now=T0)] == [T0 + dt.timedelta(hours=1)]
    assert rescheduling.go_on() == 2
    # From the change on, not from when the sweep came: what was due in between is not lost.
    assert set(Plan.objects.values_list("next_run_at", flat=True)) == {T0 + dt.timedelta(hours=1)}


def test_a_change_of_retention_alone_moves_no_plan():
    plan = whole_plan()
    Plan.objects.update(next_run_at=T0 + dt.timedelta(minutes=7))
    plan.policy.keep_last = 3
    services.save_policy(plan.policy, actor=SERVICE, now=T0)
    assert Plan.objects.get().next_run_at == T0 + dt.timedelta(minutes=7)


@pytest.mark.rule("C8")
def test_what_was_drawn_once_stays_through_every_edit():
    plan = whole_plan()
    Plan.objects.update(next_run_at=T0 + dt.timedelta(days=1))
    for number in range(3):
        services.save_policy(plan.policy, rules=[Rule(retention_days=number + 1)], actor=SERVICE, now=T0)
        again = Plan.objects.get()
        assert (again.start_minute, again.next_run_at) == (90, at("01:30", 1))


class TestDeletion:
    def test_a_policy_in_use_is_refused_with_its_plans(self):
        policy = many(24)
        with pytest.raises(services.InUse, match="25 plans use this policy: host0") as refusal:
            services.delete(policy, actor=SERVICE, now=T0)
        assert "and 5 more. Delete them first." in str(refusal.value)
        assert refusal.value.detail["count"] == 25
        named = refusal.value.detail["plans"]
        assert [one["name"] for one in named][:2] == ["host0 → vault (daily)", "host1 → vault (daily)"]
        assert len(named) == 20

    def test_one_without_plans_goes(self):
        policy = many(0)
        services.delete(policy.plans.get(), actor=SERVICE, now=T0)
        services.delete(policy, actor=SERVICE, now=T0)
        assert not Policy.objects.exists()


class TestPreview:
    def test_a_policys_runs_tell_the_span_in_which_each_is_drawn(self):
        policy = make_policy(whole_plan().account, "other", time_zone="Europe/Berlin")
        rules = [
            Rule(),
            Rule(start_time=dt.time(4), window_minutes=90, unit="week", weekdays=[2]),
            Rule(cron="0 12 1 * *"),
        ]
        spans = moments.preview(policy, rules, count=40, now=T0)
        assert spans[0][:2] == (at("23:00"), at("05:00", 1))
        weekly = next(span for span in spans if span.rule is rules[1])
        assert weekly[:2] == (at("03:00", 7), at("04:30", 7))
        monthly = next(span for span in spans if span.rule is rules[2])
        assert monthly.earliest == monthly.latest == dt.datetime(2026, 4, 1, 10, tzinfo=dt.UTC)
        assert [span.earliest for span in spans] == sorted(span.earliest for span in spans)

    def test_the_runs_of_a_plan_begin_with_what_is_stored_and_end_with_a_pause(self):
        plan = whole_plan()
        Plan.objects.update(next_run_at=T0 + dt.timedelta(minutes=3))
        plan = Plan.objects.get()
        runs = moments.upcoming(plan, count=3, now=T0)
        assert [run.moment for run in runs] == [T0 + dt.timedelta(minutes=3), at("01:30", 1), at("01:30", 2)]
        services.pause(plan, actor=SERVICE, now=T0)
        assert moments.upcoming(plan, count=3, now=T0) == []


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"unit": "month", "weekdays": [1]}, "Weekdays go with days or weeks"),
        ({"every": 2, "weekdays": [1]}, "choose weeks"),
        ({"unit": "hour", "window_minutes": 61}, "longer than the time from one run to the next"),
        ({"starts_on": dt.date(1900, 1, 1)}, "greater than or equal to 1970"),
    ],
)
def test_rules_that_cannot_be_followed_are_refused(values, message):
    account = whole_plan().account
    with pytest.raises(ValidationError, match=message):
        services.save_policy(Policy(account=account, name="p"), rules=[Rule(**values)], actor=SERVICE, now=T0)
