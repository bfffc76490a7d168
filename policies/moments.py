"""When plans run: the schedules of a policy's rules, seen by one plan. Asks no clock."""

import datetime as dt
import heapq
import itertools
import zoneinfo
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from policies import schedule
from policies.models import RETENTION_DAYS_MAX, Plan, PlanState, Policy, Rule, RuleType, Unit

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
    own = plan.start_time if has_daily_time(rule) else None
    found = _schedule(rule, zone_of(plan), own if own is not None else rule.start_time or drawn)
    return replace(found, seed=str(plan.pk))


def has_daily_time(rule: Rule) -> bool:
    """Say whether the rule's runs have a time of day that is the same each time, so that a plan may have its own."""
    return not rule.cron and rule.unit != Unit.HOUR and not rule.window_minutes


def _schedule(rule: Rule, zone: str, start: dt.time) -> schedule.Schedule:
    return schedule.Schedule(
        zone=zone,
        cron=rule.cron,
        every=rule.every,
        unit=rule.unit,
        starts_on=rule.starts_on,
        start=start,
        weekdays=tuple(rule.weekdays),
        window_s=rule.window_minutes * 60,
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
    done = _done(rule, plan, wanted)
    while True:
        try:
            after = schedule.next_after(wanted, after)
        except OverflowError:
            return  # never again
        if after != done:
            yield Run(after, rule)


def _done(rule: Rule, plan: Plan, wanted: schedule.Schedule) -> dt.datetime | None:
    """Return the moment drawn in a window that had its run already, at another place: its rule changed meanwhile."""
    if not wanted.window_s or plan.last_run_at is None or plan.last_rule_id not in (None, rule.pk):
        return None
    try:
        opened = schedule.next_begin(wanted, plan.last_run_at - dt.timedelta(seconds=wanted.window_s))
    except OverflowError:
        return None
    return _drawn(wanted, opened) if opened <= plan.last_run_at else None


def _drawn(wanted: schedule.Schedule, opened: dt.datetime) -> dt.datetime:
    return opened + dt.timedelta(seconds=schedule.drawn(wanted, opened))


def next_run(plan: Plan, *, after: dt.datetime) -> Run | None:
    """Return the plan's first run later than `after`; None when no rule makes points."""
    return next(coming(plan, after=after), None)


def move_on(plan: Plan, *, after: dt.datetime) -> None:
    """Set the plan's next moment and its rule (not saved): the first later than `after`."""
    run = next_run(plan, after=after)
    plan.next_run_at, plan.next_rule = run or (None, None)


def follow(plan: Plan, *, changed_at: dt.datetime) -> None:
    """Set the next moment of an active plan (not saved) after its rules, its zone or its start changed.

    A moment that was due already stays due. Of a window that is open the run is neither lost nor doubled: once it was,
    the next window counts; was it still to come that day, and is its new place over, it comes in what is left.
    """
    was = plan.next_run_at
    if was is not None and was <= changed_at:
        return
    runs = [run for rule in backup_rules(plan.policy) if (run := _following(rule, plan, was, changed_at))]
    first = min((run.moment for run in runs), default=None)
    together = [run for run in runs if run.moment == first]
    best = max(together, key=lambda run: (days_of(run.rule, plan.policy), -run.rule.position), default=None)
    plan.next_run_at, plan.next_rule = best or (None, None)


def _following(rule: Rule, plan: Plan, was: dt.datetime | None, changed_at: dt.datetime) -> Run | None:
    """Return the first run of one rule after it changed."""
    first = max(changed_at, (plan.start_not_before or changed_at) - MOMENT)
    run = next(_runs(rule, plan, first), None)
    if run is None or not rule.window_minutes or first != changed_at:
        return run
    wanted = schedule_of(rule, plan)
    length = dt.timedelta(seconds=wanted.window_s)
    opened = schedule.next_begin(wanted, changed_at - length)
    zone = zoneinfo.ZoneInfo(wanted.zone)
    day, ran = opened.astimezone(zone).date(), plan.last_run_at
    drawn = _drawn(wanted, opened)
    if ran and plan.last_rule_id in (None, rule.pk) and (ran >= opened or ran.astimezone(zone).date() == day):
        return next(_runs(rule, plan, drawn), None) if drawn > changed_at else run
    if opened > changed_at:
        return run
    if was is not None and was < opened + length and plan.next_rule_id in (None, rule.pk):
        return Run(was, rule)
    if drawn > changed_at or was is None or was.astimezone(zone).date() != day:
        return run
    left = max(int((opened + length - changed_at).total_seconds()), 1)
    return Run(changed_at + dt.timedelta(seconds=1 + schedule.place(f"{plan.pk}/{opened:%Y-%m-%d}", left)), rule)


def upcoming(plan: Plan, *, count: int, now: dt.datetime) -> list[Run]:
    """Return the plan's next runs, fewer when they end; none of a paused plan."""
    if plan.state != PlanState.ACTIVE:
        return []
    if plan.rules_changed_at is not None:
        follow(plan, changed_at=plan.rules_changed_at)
    rule = plan.next_rule or longest_rule(plan.policy)
    if plan.next_run_at is None or rule is None:
        return []
    first = Run(plan.next_run_at, rule)
    return [first, *itertools.islice(coming(plan, after=max(first.moment, now)), count - 1)]


class Span(NamedTuple):
    """Between which moments a run of a policy starts, by which rule; the same moment when nothing is drawn."""

    earliest: dt.datetime
    latest: dt.datetime
    rule: Rule


def preview(policy: Policy, rules: list[Rule], *, count: int, now: dt.datetime) -> list[Span]:
    """Return the next runs that plans of a policy would have by these rules, saved or not. Raises what a bad zone does.

    Where each plan draws its own time, or each run one in a window, the span is told.
    """
    streams = [_spans(rule, policy, now) for rule in rules if rule.type == RuleType.BACKUP]
    return list(itertools.islice(heapq.merge(*streams, key=lambda span: span.earliest), count))


def _spans(rule: Rule, policy: Policy, now: dt.datetime) -> Iterator[Span]:
    wanted = replace(_schedule(rule, policy.time_zone, rule.start_time or dt.time()), window_s=0)
    seconds = rule.window_minutes * 60
    if rule.start_time is None and not rule.cron:
        seconds += schedule.DRAWN_START_MINUTES * 60
    begin = now - dt.timedelta(seconds=seconds)
    while True:
        try:
            begin = schedule.next_begin(wanted, begin)
        except OverflowError:
            return
        yield Span(begin, begin + dt.timedelta(seconds=seconds), rule)


def next_drill_at(plan: Plan, policy: Policy, *, after: dt.datetime) -> dt.datetime | None:
    """Return when the plan's newest point is next restored on trial, None for never."""
    if not policy.drill_every_days:
        return None
    return schedule.spread(f"{plan.pk}/drill", policy.drill_every_days * 86_400, after=after)
