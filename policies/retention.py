"""Which rules decide over a source's points in a vault, and what they say of each point (C9, C16, C30, C33-C36)."""

import datetime as dt
import uuid
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from django.db.models import Q

from engine.retention import DAYS_MAX, Rules, Verdict, Version, judge
from policies import moments
from policies.models import Plan, PlanState, Policy, Rule, RuleType, Source
from vaults.models import PointState, RecoveryPoint, Vault

OWN = (Rules(),)


@dataclass(frozen=True, slots=True)
class Judged:
    """A point's row and what becomes of it."""

    row: RecoveryPoint
    verdict: Verdict


def keeps_one(policy: Policy, *, now: dt.datetime) -> bool:
    """Say whether the policy keeps the newest point: at once when switched on (C33), a while longer after off (C34)."""
    return policy.keep_at_least_one or (policy.keep_one_until is not None and policy.keep_one_until > now)


def rules_of(
    policies: Iterable[Policy],
    *,
    now: dt.datetime,
    changed: Mapping[uuid.UUID, list[Rule]] = MappingProxyType({}),
    former: Mapping[str, int] = MappingProxyType({}),
) -> tuple[Rules, ...]:
    """Return the rules that these policies make together, one set for each time zone; OWN when there is none.

    What a rule made stays as long as that rule says; days of other points, made before the rule was known or by one
    that is gone, are the longest of all. Within a zone the largest number of each rule that counts is the same as all
    of them: what any keeps is kept. `changed` are rules to be, by their policy's id. `former` are the days of rules of
    policies that a plan had before (B20).
    """
    by_zone: dict[str, list[Policy]] = defaultdict(list)
    by_rule: dict[str, int] = {}
    for policy in policies:
        by_zone[policy.time_zone].append(policy)
        own = changed.get(policy.pk) or policy.rules.all()
        by_rule |= {str(rule.pk): moments.days_of(rule, policy) for rule in own if rule.type == RuleType.BACKUP}
    return tuple(_joined(zone, group, by_rule, former, now) for zone, group in sorted(by_zone.items())) or OWN


def _joined(
    zone: str, policies: list[Policy], by_rule: dict[str, int], former: Mapping[str, int], now: dt.datetime
) -> Rules:
    return Rules(
        days=max([*by_rule.values(), *(policy.retention_days or DAYS_MAX for policy in policies if not by_rule)]),
        last=max(policy.keep_last for policy in policies),
        daily=max(policy.keep_daily for policy in policies),
        weekly=max(policy.keep_weekly for policy in policies),
        monthly=max(policy.keep_monthly for policy in policies),
        yearly=max(policy.keep_yearly for policy in policies),
        at_least_one=any(keeps_one(policy, now=now) for policy in policies),
        zone=zone,
        by_rule={**former, **by_rule},
    )


def vault_rules(vault: Vault, *, now: dt.datetime) -> dict[str, tuple[Rules, ...]]:
    """Return the rules by series, for every source that has a plan into the vault, active or paused (C30)."""
    policies: dict[str, list[Policy]] = defaultdict(list)
    former: dict[str, dict[str, int]] = defaultdict(dict)
    for plan in Plan.objects.filter(vault=vault).select_related("policy").prefetch_related("policy__rules"):
        policies[str(plan.source_id)].append(plan.policy)
        former[str(plan.source_id)] |= plan.former_rules
    return {series: rules_of(group, now=now, former=former[series]) for series, group in policies.items()}


def source_rules(source: Source, vault: Vault, *, now: dt.datetime) -> tuple[Rules, ...]:
    """Return the rules for one source's points in one vault."""
    plans = Plan.objects.filter(vault=vault, source=source).select_related("policy").prefetch_related("policy__rules")
    former = {rule: days for plan in plans for rule, days in plan.former_rules.items()}
    return rules_of([plan.policy for plan in plans], now=now, former=former)


def vaults_of(source: Source) -> list[Vault]:
    """Return the vaults in which the source has points or plans."""
    named = Q(pk__in=RecoveryPoint.objects.filter(series=source.series).values("vault")) | Q(plans__source=source)
    return list(Vault.objects.present().filter(named, account=source.account_id).distinct())


def judge_rows(rows: Iterable[RecoveryPoint], rules: tuple[Rules, ...], *, now: dt.datetime) -> list[Judged]:
    """Return what becomes of each of these points of one series, newest first: any set of rules that keeps, keeps."""
    by_point = {row.point_id: row for row in rows}
    versions = [_version(row) for row in by_point.values()]
    found: dict[str, list[Verdict]] = defaultdict(list)
    for one in rules:
        for verdict in judge(versions, one, now):
            found[verdict.point].append(verdict)
    judged = [
        Judged(by_point[point], _shown(_together(verdicts), by_point[point])) for point, verdicts in found.items()
    ]
    return sorted(judged, key=lambda one: (one.row.completed_at, one.row.point_id), reverse=True)


def preview(vault: Vault, series: str, rules: tuple[Rules, ...], *, now: dt.datetime) -> list[Judged]:
    """Return what expiry would do now to the points of a series, newest first."""
    return judge_rows(RecoveryPoint.objects.in_series(vault, series), rules, now=now)


@dataclass(frozen=True, slots=True)
class Change:
    """What changed rules would do to one source's points in one vault: how many there are, and which go."""

    source: Source
    vault: Vault
    points: int
    going: list[Judged]


def preview_change(policy: Policy, *, rules: list[Rule] | None = None, now: dt.datetime) -> list[Change]:
    """Return what expiry would do if this policy, changed and not saved, were in force; one query a source and vault.

    `rules` are the policy's rules to be, None the stored ones.

    The grace of "keep at least one" is left out: what is told goes at the latest when it is over.
    """
    changes = []
    for plan in policy.plans.select_related("source", "vault"):
        others = Plan.objects.filter(vault=plan.vault, source=plan.source).exclude(pk=plan.pk).select_related("policy")
        together = [policy, *(other.policy for other in others.prefetch_related("policy__rules"))]
        new = {} if rules is None else {policy.pk: rules}
        former = {rule: days for one in (plan, *others) for rule, days in one.former_rules.items()}
        ruled = rules_of(together, now=now, changed=new, former=former)
        judged = preview(plan.vault, plan.source.series, ruled, now=now)
        going = [one for one in judged if not one.verdict.keep]
        changes.append(Change(plan.source, plan.vault, len(judged), going))
    return changes


def _version(row: RecoveryPoint) -> Version:
    return Version(
        point=row.point_id,
        completed_at=row.completed_at,
        retention_days=row.retention_days,
        complete=row.state == PointState.COMPLETE,
        held=row.held_at is not None,
        locked_until=row.locked_until,
        rule=row.rule,
        manual=row.manual,
    )


def _together(verdicts: list[Verdict]) -> Verdict:
    """Return the verdict of several sets of rules about one point."""
    keeping = [verdict for verdict in verdicts if verdict.keep]
    if not keeping:
        return max(verdicts, key=lambda verdict: verdict.expires_at or _NEVER)
    ends = [verdict.expires_at for verdict in keeping]
    reasons = list(dict.fromkeys(reason for verdict in keeping for reason in verdict.reasons))
    return Verdict(keeping[0].point, True, reasons, None if None in ends else max(end for end in ends if end))


_NEVER = dt.datetime.max.replace(tzinfo=dt.UTC)
# Longer than any policy but those that keep for ever.
_FOREVER = dt.timedelta(days=DAYS_MAX - 1)


def shown_end(expires_at: dt.datetime | None, completed_at: dt.datetime | None) -> dt.datetime | None:
    """Return when a point expires, None for ever, from an end that may lie a thousand years away."""
    if expires_at is None or completed_at is None or expires_at - completed_at > _FOREVER:
        return None
    return expires_at


def _shown(verdict: Verdict, row: RecoveryPoint) -> Verdict:
    """Return the verdict with "for ever" instead of a date a thousand years away."""
    if verdict.expires_at is None or shown_end(verdict.expires_at, row.completed_at):
        return verdict
    reasons = ["kept for ever" if "since completion" in reason else reason for reason in verdict.reasons]
    return Verdict(verdict.point, verdict.keep, reasons, None)


def last_point_ends(source: Source, vault: Vault, *, now: dt.datetime) -> tuple[bool, dt.datetime | None]:
    """Return whether the source's points run out by the rules as they are at `now` without new ones, and when.

    (False, None): something keeps a point for good. (True, None): there is no point even now.
    """
    judged = preview(vault, source.series, source_rules(source, vault, now=now), now=now)
    if any(one.verdict.keep and one.verdict.expires_at is None for one in judged):
        return False, None
    return True, max((one.verdict.expires_at for one in judged if one.verdict.expires_at), default=None)


def warnings_on_pause(plan: Plan, *, now: dt.datetime) -> list[str]:
    """Return what a person who pauses this plan should know: nothing while a newest point is kept for good (C17)."""
    others = Plan.objects.filter(source=plan.source, vault=plan.vault, state=PlanState.ACTIVE).exclude(pk=plan.pk)
    if others.exists():
        return []
    runs_out, end = last_point_ends(plan.source, plan.vault, now=now)
    if not runs_out:
        return []
    return [
        f"No new recovery points of {plan.source} come about in {plan.vault} while the plan is paused, and "
        f'"keep at least one" is off: {_gone(end, now)}'
    ]


def warnings_on_disable(policy: Policy, *, now: dt.datetime) -> list[str]:
    """Return what a person who switched off "keep at least one" should know, with dates (C17, C36).

    Empty once that has taken effect, and while it is on.
    """
    end = policy.keep_one_until
    if end is None:
        return []
    texts = [
        f'"Keep at least one" ends at {_moment(end)}. From then on nothing may be left when backups stop, because a '
        "plan is paused or a host stays away. Switch it on again before then and nothing changes."
    ]
    for plan in policy.plans.select_related("source", "vault"):
        runs_out, last = last_point_ends(plan.source, plan.vault, now=end)
        if runs_out:
            texts.append(f"{plan.source} in {plan.vault}, unless a backup completes before: {_gone(last, end)}")
    return texts


def _gone(end: dt.datetime | None, now: dt.datetime) -> str:
    if end is None:
        return "there is no recovery point even now."
    if end <= now:
        return f"the last recovery point outlives its retention on {_moment(end)} and goes with the next expiry."
    return f"the last recovery point expires on {_moment(end)}."


def _moment(moment: dt.datetime) -> str:
    return f"{moment.astimezone(dt.UTC):%Y-%m-%d %H:%M} UTC"
