"""Another time of day: what becomes of today's run (C38-C41)."""

import datetime as dt

import pytest
from django.test import Client

from accounts.models import Event, User
from accounts.services import SERVICE
from jobs import due, presence, starts
from jobs.models import Job
from jobs.states import JobState
from policies import services
from policies.models import Edition, Plan, Rule
from tests.support.api import client_of, error_code
from tests.support.console import page, press
from tests.support.control import make_site
from tests.support.people import online, whole_plan

pytestmark = pytest.mark.django_db
BERLIN = "Europe/Berlin"


def at(text: str) -> dt.datetime:
    return dt.datetime.fromisoformat(f"{text}+00:00")


def planned(now: dt.datetime, *, start: str = "02:00", zone: str = "UTC", **rule: object) -> Plan:
    """Make a plan whose next moment is the first after `now`."""
    plan = whole_plan()
    plan.policy.time_zone = zone
    Plan.objects.update(next_run_at=now + dt.timedelta(days=3650))
    rules = [Rule(start_time=dt.time.fromisoformat(start), **rule)]
    services.save_policy(plan.policy, rules=rules, actor=SERVICE, now=now)
    return Plan.objects.select_related("account", "source", "policy", "vault").get()


def settle(now: dt.datetime, *, served: bool = True) -> None:
    online("host.web1", at=now if served else now - dt.timedelta(days=1))
    due.settle(now=now, served=presence.queues(now=now))
    Job.objects.filter(state=JobState.QUEUED).update(state=JobState.COMPLETE)


def change(plan: Plan, time: str | None, now: dt.datetime) -> starts.Effect:
    return starts.change(plan, dt.time.fromisoformat(time) if time else None, actor=SERVICE, now=now)


@pytest.mark.rule("C38", "C39")
def test_a_later_time_before_todays_run_lets_it_come_today_at_that_time():
    plan = planned(at("2026-05-04 00:30"))
    found = change(plan, "14:30", at("2026-05-04 01:00"))
    assert (found.case, plan.next_run_at) == (starts.Case.TODAY, at("2026-05-04 14:30"))
    assert plan.start_time == dt.time(14, 30)
    assert not Job.objects.exists()
    told = Event.objects.get(action="plan.start_time").detail
    assert told == {"start_time": ["the policy's", "14:30"], "case": "today"}


@pytest.mark.rule("C40")
def test_a_time_that_is_over_skips_today_for_good_and_that_is_recorded_with_its_moment():
    plan = planned(at("2026-05-04 00:30"), start="18:00")
    found = change(plan, "09:00", at("2026-05-04 12:00"))
    assert (found.case, plan.next_run_at) == (starts.Case.SKIPPED, at("2026-05-05 09:00"))
    skipped = Job.objects.get()
    assert (skipped.state, skipped.error_code) == (JobState.SKIPPED, "start_changed")
    assert (skipped.scheduled_for, skipped.rule) == (at("2026-05-04 18:00"), plan.policy.rules.get())
    assert "09:00, which was over for the day" in skipped.error
    settle(at("2026-05-04 18:00"))
    settle(at("2026-05-05 09:00"))
    assert [job.scheduled_for for job in Job.objects.filter(state=JobState.COMPLETE)] == [at("2026-05-05 09:00")]


@pytest.mark.rule("C40")
def test_who_changes_the_time_back_has_todays_run_again():
    plan = planned(at("2026-05-04 00:30"), start="18:00")
    change(plan, "09:00", at("2026-05-04 12:00"))
    assert change(plan, "18:00", at("2026-05-04 12:01")).case == starts.Case.TODAY
    settle(at("2026-05-04 18:00"))
    assert [job.state for job in Job.objects.all()] == [JobState.COMPLETE]


@pytest.mark.rule("C41")
@pytest.mark.parametrize("time", ["01:00", "23:00"])
def test_after_todays_run_the_change_holds_from_the_following_day(time):
    plan = planned(at("2026-05-04 00:30"))
    settle(at("2026-05-04 02:00"))
    found = change(plan, time, at("2026-05-04 12:00"))
    assert (found.case, plan.next_run_at) == (starts.Case.FOLLOWING, at(f"2026-05-05 {time}"))
    assert Job.objects.count() == 1


@pytest.mark.rule("C39")
def test_a_run_that_was_missed_has_not_happened():
    plan = planned(at("2026-05-04 00:30"))
    settle(at("2026-05-04 02:00"), served=False)
    assert change(plan, "14:00", at("2026-05-04 12:00")).case == starts.Case.TODAY
    assert plan.next_run_at == at("2026-05-04 14:00")


def test_what_is_due_at_this_moment_is_dealt_with_before():
    plan = planned(at("2026-05-04 00:30"))
    online("host.web1", at=at("2026-05-04 02:00"))
    assert change(plan, "14:00", at("2026-05-04 02:00")).case == starts.Case.FOLLOWING
    assert Job.objects.get().state == JobState.QUEUED


@pytest.mark.rule("C38")
def test_the_date_of_a_weekly_run_stays():
    plan = planned(at("2026-05-04 12:00"), unit="week", weekdays=[4])
    found = change(plan, "06:00", at("2026-05-05 12:00"))
    assert (found.case, plan.next_run_at) == (starts.Case.NEXT, at("2026-05-07 06:00"))


@pytest.mark.rule("C38", "C39", "C40")
@pytest.mark.parametrize(
    ("now", "time", "case", "following"),
    [
        # 23:30 of the 4th in Berlin: today ends in half an hour, though in UTC it is 21:30.
        ("2026-05-04 21:30", "23:45", "today", "2026-05-04 21:45"),
        ("2026-05-04 22:15", "23:45", "today", "2026-05-05 21:45"),
        ("2026-05-04 22:15", "00:10", "skipped", "2026-05-05 22:10"),
        # The clock jumps from 02:00 to 03:00: 02:30 comes at 03:00, and is over at 03:10.
        ("2026-03-29 00:30", "02:30", "today", "2026-03-29 01:00"),
        ("2026-03-29 01:10", "02:30", "skipped", "2026-03-30 00:30"),
        # 02:30 comes twice: at its first coming, and is over at the second.
        ("2026-10-25 00:10", "02:30", "today", "2026-10-25 00:30"),
        ("2026-10-25 01:10", "02:30", "skipped", "2026-10-26 01:30"),
    ],
)
def test_today_is_that_of_the_plans_zone_also_when_clocks_change(now, time, case, following):
    plan = planned(at(now) - dt.timedelta(hours=2), start="23:58", zone=BERLIN)
    found = change(plan, time, at(now))
    assert (found.case, plan.next_run_at) == (case, at(following))


def test_a_paused_plan_takes_the_time_and_follows_it_when_resumed():
    plan = planned(at("2026-05-04 00:30"))
    services.pause(plan, actor=SERVICE, now=at("2026-05-04 01:00"))
    assert change(plan, "14:00", at("2026-05-04 01:10")) == starts.Effect(starts.Case.PAUSED, None)
    services.resume(plan, actor=SERVICE, now=at("2026-05-04 01:20"))
    assert plan.next_run_at == at("2026-05-04 14:00")


def test_no_time_follows_the_policy_again():
    plan = planned(at("2026-05-04 00:30"))
    change(plan, "14:00", at("2026-05-04 01:00"))
    change(plan, None, at("2026-05-04 01:01"))
    assert (plan.start_time, plan.next_run_at) == (None, at("2026-05-04 02:00"))


@pytest.mark.parametrize(
    "rule",
    [{"unit": "hour", "every": 6}, {"cron": "0 2 * * *"}, {"window_minutes": 60}],
    ids=["hours", "cron", "window"],
)
def test_what_has_no_time_of_day_is_refused_with_what_to_do(rule):
    plan = planned(at("2026-05-04 00:30"), **rule)
    with pytest.raises(starts.StartUnfit, match="Change the policy, or choose another one"):
        change(plan, "14:00", at("2026-05-04 01:00"))


def test_a_clusters_window_is_not_a_time_of_day():
    plan = planned(at("2026-05-04 00:30"))
    plan.edition = Edition.CLUSTER
    with pytest.raises(starts.StartUnfit, match="starts in a window"):
        change(plan, "14:00", at("2026-05-04 01:00"))


def test_the_api_changes_the_time_and_tells_the_case(tmp_path):
    site = make_site(tmp_path)
    owner = client_of(site.owner)
    Plan.objects.update(next_run_at=at("2126-01-01 00:00"))
    answer = owner.post(f"/api/v1/plans/{site.plan.pk}/start_time/", {"start_time": "04:15"})
    assert answer.status_code == 200
    assert set(answer.json()) == {"case", "text", "next_run_at"}
    runs = owner.get(f"/api/v1/plans/{site.plan.pk}/runs/").json()
    assert len(runs) == 10
    assert runs[0]["moment"] == answer.json()["next_run_at"]
    assert {run["local"][11:16] for run in runs} == {"04:15"}
    site.policy.rules.update(cron="0 1 * * *")
    refused = owner.post(f"/api/v1/plans/{site.plan.pk}/start_time/", {"start_time": "04:15"})
    assert (refused.status_code, error_code(refused)) == (409, "start_not_daily")


def test_the_console_tells_the_case_before_and_after(tmp_path):
    site = make_site(tmp_path)
    root = User.objects.create_superuser("root", password="x")
    console = Client()
    console.force_login(root)
    Plan.objects.update(next_run_at=at("2126-01-01 00:00"))
    dialog = console.get(page("policies_plan", "start_time", site.plan.pk)).content.decode()
    assert "The time changes, not the date" in dialog
    assert "An earlier one skips today for good" in dialog
    shown = press(console, "policies_plan", "start_time", site.plan.pk, start_time="04:15").content.decode()
    assert starts.ran_today(site.plan, now=at("2126-01-01 00:00")) is False
    assert "04:15, set for this plan" in shown
    assert shown.count("04:15 UTC, by rule 1") == 10
    policy = console.get(page("policies_policy", "change", site.policy.pk)).content.decode()
    assert policy.count("00:00 UTC to 06:00 UTC, by rule 1") == 10
    site.policy.rules.update(cron="0 1 * * *")
    refused = press(console, "policies_plan", "start_time", site.plan.pk, start_time="05:15").content.decode()
    assert "start by the hour, by a cron expression or in a window" in refused
