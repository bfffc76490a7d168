"""The automatic backup of a cluster: at most one, off by default, with settings of its own (D1, D10-D16, D28)."""

import datetime as dt
from dataclasses import dataclass, replace
from typing import Any

from django.db import transaction

from accounts.refusals import Refused
from accounts.services import Actor, record
from policies import moments, services
from policies.editions import TERMS
from policies.kinds import TYPES
from policies.models import Edition, Plan, PlanState, Policy, Rule, Source
from vaults.models import Vault, VaultState, VaultType

RETENTION_DAYS_MAX = TERMS[Edition.CLUSTER].days_max
EVERY_DAY = (1, 2, 3, 4, 5, 6, 7)
_DAY_MINUTES = 24 * 60


class NotACluster(Refused):
    """Only clusters have an automatic backup of their own, and manual ones beside it."""

    code = "not_a_cluster"


class RetentionOutOfRange(Refused):
    """Automatic backups of clusters stay 1 to RETENTION_DAYS_MAX days (D28)."""

    code = "retention_out_of_range"


class WindowUnfit(Refused):
    """A window begins at one time and ends at another, on the same day or the next."""

    code = "window_unfit"


class VaultUnnamed(Refused):
    """There is not exactly one vault that a cluster's backups could go to."""

    code = "vault_unnamed"


@dataclass(frozen=True, slots=True)
class Automatic:
    """When a cluster is backed up and for how long that is kept; the defaults are what people are offered (D13-D15).

    Each run starts anywhere between `start` and `end` (UTC) on the `days` (1 Monday to 7 Sunday); a window that goes
    over midnight begins on the day.
    """

    days: tuple[int, ...] = EVERY_DAY
    start: dt.time = dt.time(0)
    end: dt.time = dt.time(2)
    retention_days: int = 7

    @property
    def window_minutes(self) -> int:
        """Return how long the window is."""
        return (_minutes(self.end) - _minutes(self.start)) % _DAY_MINUTES

    def check(self) -> None:
        """Raise RetentionOutOfRange, WindowUnfit. The days are checked with the rule that they go into."""
        if not 1 <= self.retention_days <= RETENTION_DAYS_MAX:
            raise RetentionOutOfRange(
                f"Automatic backups of a cluster are kept 1 to {RETENTION_DAYS_MAX} days, not {self.retention_days}. "
                "What shall stay longer is backed up by hand."
            )
        if not self.window_minutes or not self.days:
            raise WindowUnfit("Name a day at least, and a window that ends at another time than it begins.")


def _minutes(time: dt.time) -> int:
    return time.hour * 60 + time.minute


def check(source: Source) -> None:
    """Raise NotACluster for a source of another kind."""
    if not TYPES[source.kind].is_cluster:
        raise NotACluster(f"{source} is a {source.get_kind_display()} and no cluster: it is backed up by its plans.")


def plan_of(source: Source) -> Plan | None:
    """Return the cluster's automatic plan, active or paused; None where there never was one."""
    plans = source.plans.filter(edition=Edition.CLUSTER).select_related("account", "policy", "vault__region")
    return plans.prefetch_related("policy__rules").first()


def is_enabled(plan: Plan | None) -> bool:
    """Say whether automatic backup is on (D10: it is off where nobody set it)."""
    return plan is not None and plan.state == PlanState.ACTIVE


def automatic_of(plan: Plan | None) -> Automatic:
    """Return what is set, or what is offered where nothing is."""
    if plan is None:
        return Automatic()
    rule = moments.backup_rules(plan.policy)[0]
    start = rule.start_time or dt.time(0)
    end = (_minutes(start) + rule.window_minutes) % _DAY_MINUTES
    return Automatic(
        days=tuple(sorted(rule.weekdays)) or EVERY_DAY,
        start=start,
        end=dt.time(end // 60, end % 60),
        retention_days=plan.policy.retention_days or RETENTION_DAYS_MAX,
    )


def vaults_for(source: Source) -> list[Vault]:
    """Return the vaults that the cluster can be backed up to, those of its region first."""
    fit = Vault.objects.filter(
        account=source.account_id, type=VaultType.GENERAL, state=VaultState.READY, trial_started_at=None
    )
    return sorted(fit.select_related("region"), key=lambda vault: (vault.region_id != source.region_id, vault.name))


def _only_vault(source: Source) -> Vault:
    found = [vault for vault in vaults_for(source) if vault.region_id == source.region_id]
    if len(found) != 1:
        raise VaultUnnamed(
            f"There are {len(found) or 'no'} vaults in the region {source.region} that {source} could go to. Name one."
        )
    return found[0]


@transaction.atomic
def save(
    source: Source,
    *,
    changes: dict[str, Any],
    enabled: bool | None = None,
    vault: Vault | None = None,
    actor: Actor,
    now: dt.datetime,
) -> tuple[Plan | None, bool]:
    """Set the automatic backup of a cluster; return its plan, and whether it was off and is on now.

    `changes` are values of Automatic, what is left out stays; so does `enabled` None. `vault` is needed once, when
    there is more than one to go to; another one than before ends the old plan, whose points keep the retention that
    they were made with. Safe to call twice. Raises NotACluster, RetentionOutOfRange, WindowUnfit, VaultUnnamed,
    SourceErasing, PlanUnfit, ValidationError.
    """
    check(source)
    Source.objects.select_for_update().get(pk=source.pk)  # two people who enable it at once make one plan
    plan = plan_of(source)
    wanted = replace(automatic_of(plan), **changes)
    wanted.check()
    was_on = is_enabled(plan)
    turned_on = was_on if enabled is None else enabled
    if plan is None and not turned_on and not changes and vault is None:
        return None, False
    if plan and vault and plan.vault_id != vault.pk:
        services.delete(plan, actor=actor, now=now)
        plan = None
    if plan is None:
        plan = _create(source, wanted, vault or _only_vault(source), actor=actor, now=now)
    elif changes:
        _change(plan, wanted, actor=actor, now=now)
    if turned_on and not is_enabled(plan):
        services.wake(plan, actor=actor, now=now)
    elif not turned_on and is_enabled(plan):
        services.pause(plan, actor=actor, now=now)
    return plan, turned_on and not was_on


def _create(source: Source, wanted: Automatic, vault: Vault, *, actor: Actor, now: dt.datetime) -> Plan:
    policy = Policy(account=source.account, name=f"of {source}"[:64], inline=True, retention_days=wanted.retention_days)
    services.save_policy(policy, rules=[_filled(Rule(), wanted)], actor=actor, now=now)
    plan = Plan(source=source, policy=policy, vault=vault, edition=Edition.CLUSTER)
    return services.create_plan(plan, actor=actor, now=now)


def _change(plan: Plan, wanted: Automatic, *, actor: Actor, now: dt.datetime) -> None:
    plan.policy.retention_days = wanted.retention_days
    rules = [_filled(moments.backup_rules(plan.policy)[0], wanted)]
    services.save_policy(plan.policy, rules=rules, actor=actor, now=now)
    record(actor, "plan.change", plan, account=plan.account, now=now)
    plan.refresh_from_db(fields=["next_run_at", "next_rule"])


def _filled(rule: Rule, wanted: Automatic) -> Rule:
    rule.weekdays, rule.start_time, rule.window_minutes = list(wanted.days), wanted.start, wanted.window_minutes
    return rule
