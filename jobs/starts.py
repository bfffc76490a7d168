"""Another time of day for a plan's runs: the time changes, not the date (C38-C41)."""

import datetime as dt
import zoneinfo
from dataclasses import dataclass

from django.db import transaction
from django.db.models import TextChoices

from accounts.refusals import Refused
from accounts.services import Actor, record
from jobs import due, services
from jobs.models import Job
from jobs.states import JobState
from policies import editions, moments
from policies.models import Edition, Plan, PlanState


class StartUnfit(Refused):
    """The plan's runs have no time of day that could be changed."""

    code = "start_not_daily"


class Case(TextChoices):
    """What a new time means for today, and for the run that was to come."""

    TODAY = "today", "Today's run has not happened: it comes today, at the new time."
    SKIPPED = (
        "skipped",
        "Today's run has not happened, and the new time is over: today is skipped for good.",
    )
    FOLLOWING = "following_day", "Today's run is done: the new time holds from the next day of the schedule on."
    NEXT = "next_date", "No run is due today: the next one comes on its date, at the new time."
    PAUSED = "paused", "The plan is paused: the new time holds once it is resumed."


@dataclass(frozen=True, slots=True)
class Effect:
    """What a new time does: which case it is, and when the plan runs next."""

    case: Case
    next_run_at: dt.datetime | None


def effect(plan: Plan, time: dt.time | None, *, now: dt.datetime) -> Effect:
    """Tell what `change` would do now; None is the time of the policy, or the drawn one. Sets the plan's moments.

    "Today" is that of the plan's zone. Raises StartUnfit, ScheduleFixed.
    """
    check(plan)
    plan.start_time = time
    if plan.state != PlanState.ACTIVE:
        return Effect(Case.PAUSED, None)
    zone = zoneinfo.ZoneInfo(moments.zone_of(plan))
    today = now.astimezone(zone).date()
    was = plan.next_run_at
    if ran_today(plan, now=now):
        moments.move_on(plan, after=_midnight(today + dt.timedelta(days=1), zone) - moments.MOMENT)
        return Effect(Case.FOLLOWING, plan.next_run_at)
    moments.move_on(plan, after=now)
    is_today = plan.next_run_at is not None and plan.next_run_at.astimezone(zone).date() == today
    was_today = was is not None and was.astimezone(zone).date() == today
    case = Case.TODAY if is_today else Case.SKIPPED if was_today else Case.NEXT
    return Effect(case, plan.next_run_at)


def told(plan: Plan, *, now: dt.datetime) -> list[str]:
    """Return, for people, what a new time would mean now, before they choose one."""
    zone = moments.zone_of(plan)
    clock = now.astimezone(zoneinfo.ZoneInfo(zone))
    shown = f"Times are those of {zone}, where it is {clock:%H:%M}. The time changes, not the date."
    if plan.state != PlanState.ACTIVE:
        return [shown, Case.PAUSED.label]
    if ran_today(plan, now=now):
        return [shown, Case.FOLLOWING.label]
    return [
        shown,
        f"Today's run has not happened. A time after {clock:%H:%M} lets it come today. An earlier one skips today for "
        "good; the next run is on the next day of the schedule.",
    ]


def check(plan: Plan) -> None:
    """See that the plan has a time of day of its own. Raises StartUnfit, ScheduleFixed."""
    editions.check_start(plan)
    if plan.edition == Edition.CLUSTER:
        raise StartUnfit("A cluster's automatic backup starts in a window: change that.")
    if not any(moments.has_daily_time(rule) for rule in moments.backup_rules(plan.policy)):
        raise StartUnfit(
            f"The rules of {plan.policy} start by the hour, by a cron expression or in a window. Change the policy, or "
            "choose another one for this plan."
        )


def ran_today(plan: Plan, *, now: dt.datetime) -> bool:
    """Say whether a scheduled run of today happened: one that was missed or skipped did not."""
    zone = zoneinfo.ZoneInfo(moments.zone_of(plan))
    begin = _midnight(now.astimezone(zone).date(), zone)
    runs = Job.objects.filter(plan=plan, scheduled_for__gte=begin, scheduled_for__lte=now)
    return runs.exclude(state__in=(JobState.MISSED, JobState.SKIPPED)).exists()


def _midnight(day: dt.date, zone: dt.tzinfo) -> dt.datetime:
    return dt.datetime.combine(day, dt.time(), zone).astimezone(dt.UTC)


def change(plan: Plan, time: dt.time | None, *, actor: Actor, now: dt.datetime) -> Effect:
    """Let the plan run at another time of day; None is the policy's, or the drawn one.

    What is due at this moment is dealt with before. A run that is skipped is recorded, with its moment (C40). Raises
    StartUnfit, ScheduleFixed.
    """
    check(plan)
    due.settle_plan(plan, now=now)
    with transaction.atomic():
        stored = Plan.objects.select_for_update(of=("self",), no_key=True).select_related("policy", "next_rule")
        mine = stored.get(pk=plan.pk)
        before, was, rule = mine.start_time, mine.next_run_at, mine.next_rule
        found = effect(mine, time, now=now)
        mine.save(update_fields=["start_time", "next_run_at", "next_rule"])
        if mine.next_run_at is not None:
            # Changed back: what an earlier change let be skipped comes after all.
            again = Job.objects.filter(plan=mine, scheduled_for=mine.next_run_at, state=JobState.SKIPPED)
            again.filter(error_code="start_changed").delete()
        if found.case == Case.SKIPPED:
            reason = f"Skipped: {actor.name} set the time to {_shown(time)}, which was over for the day"
            skipped = {"rule": rule, "scheduled_for": was, "error_code": "start_changed"}
            services.record_skipped(mine, reason, now=now, **skipped)
        told = {"start_time": [_shown(before), _shown(time)], "case": found.case.value}
        record(actor, "plan.start_time", mine, account=mine.account, now=now, **told)
    plan.refresh_from_db()
    return found


def _shown(time: dt.time | None) -> str:
    return f"{time:%H:%M}" if time is not None else "the policy's"
