"""When plans run: the schedules of a policy's rules, seen by one plan. Asks no clock."""

import datetime as dt
import heapq
import itertools
from collections.abc import Iterator
from typing import NamedTuple

from policies import schedule
from policies.models import RETENTION_DAYS_MAX, Plan, Policy, Rule, RuleType, Unit

MOMENT = dt.timedelta(microseconds=1)


class Run(NamedTuple):
    """A moment at which a plan is due, UTC, and the rule that says so."""

    moment: dt.datetime
    rule: Rule


def backup_rules(policy: Policy) -> list[Rule]:
    """Return the rules that make points, in their order."""
    return [rule for rule in policy.rules.all() if rule.type == RuleType.BACKUP]


def days_of(rule: Rule, policy: Policy) -> int:
    """Return for how many days what the rule makes stays; RETENTION_DAYS_MAX is for ever."""
    return rule.retention_days or policy.retention_days or RETENTION_DAYS_MAX


def longest_rule(policy: Policy) -> Rule | None:
    """Return the backup rule that keeps its points longest: a run that serves several goes by it, as one by hand."""
    return max(backup_rules(policy), key=lambda rule: (days_of(rule, policy), -rule.position), default=None)


def zone_of(plan: Plan) -> str:
    """Return the time zone of the plan's times of day."""
    return plan.time_zone or plan.policy.time_zone


def schedule_of(rule: Rule, plan: Plan) -> schedule.Schedule:
    """Return a rule's schedule as the plan runs it: in its zone, at its own time of day (C38)."""
    drawn = dt.time(plan.start_minute // 60, plan.start_minute % 60)
    own = plan.start_time if rule.unit != Unit.HOUR else None
    return schedule.Schedule(
        zone=zone_of(plan),
        cron=rule.cron,
        every=rule.every,
        unit=rule.unit,
        starts_on=rule.starts_on,
        start=own or rule.start_time or drawn,
        weekdays=tuple(rule.weekdays),
        window_s=rule.window_minutes * 60,
        seed=str(plan.pk),
    )


def coming(plan: Plan, *, after: dt.datetime) -> Iterator[Run]:
    """Yield the plan's runs later than `after`, without end. Rules that fall together make one run, of the longest."""
    if plan.start_not_before is not None:
        after = max(after, plan.start_not_before - MOMENT)
    streams = [_runs(rule, plan, after) for rule in backup_rules(plan.policy)]
    merged = heapq.merge(*streams, key=lambda run: run.moment)
    for _, together in itertools.groupby(merged, key=lambda run: run.moment):
        yield max(together, key=lambda run: (days_of(run.rule, plan.policy), -run.rule.position))


def _runs(rule: Rule, plan: Plan, after: dt.datetime) -> Iterator[Run]:
    wanted = schedule_of(rule, plan)
    while True:
        after = schedule.next_after(wanted, after)
        yield Run(after, rule)


def next_run(plan: Plan, *, after: dt.datetime) -> Run | None:
    """Return the plan's first run later than `after`; None when no rule makes points."""
    return next(coming(plan, after=after), None)


def move_on(plan: Plan, *, after: dt.datetime) -> None:
    """Set the plan's next moment and its rule (not saved): the first later than `after`."""
    run = next_run(plan, after=after)
    plan.next_run_at, plan.next_rule = run or (None, None)


def next_drill_at(plan: Plan, policy: Policy, *, after: dt.datetime) -> dt.datetime | None:
    """Return when the plan's newest point is next restored on trial, None for never."""
    if not policy.drill_every_days:
        return None
    return schedule.spread(f"{plan.pk}/drill", policy.drill_every_days * 86_400, after=after)
