"""Plans without a named policy, where a region has none (B17), and their way to one (B19-B21)."""

import datetime as dt

from django.db import IntegrityError, transaction

from accounts.refusals import Refused
from accounts.services import Actor, record
from policies import copies, moments, services
from policies.models import Edition, Plan, PlanState, Policy, Rule


class PolicyNeeded(Refused):
    """Where a region supports policies a plan takes one (B17)."""

    code = "policy_needed"


class UpgradeUnfit(Refused):
    """Only a standard plan with rules of its own can be given a policy."""

    code = "upgrade_unfit"


def create(plan: Plan, policy: Policy, rules: list[Rule] | None, *, actor: Actor, now: dt.datetime) -> Plan:
    """Make a plan with rules of its own, in `policy`, which comes and goes with it. Raises PolicyNeeded, and what
    services.create_plan and services.save_policy raise.
    """
    policy.inline, policy.account = True, plan.vault.account
    policy.name = f"{plan.source} to {plan.vault}"[:64]
    plan.policy, region = policy, plan.vault.region
    if region.supports_policies:
        raise PolicyNeeded(
            f"The region {region} supports policies: a plan there takes one. Name it, or make it first.",
            region=region.name,
        )
    with transaction.atomic():
        plan.policy = services.save_policy(policy, rules=rules, actor=actor, now=now)
        return services.create_plan(plan, actor=actor, now=now)


@transaction.atomic
def upgrade(plan: Plan, *, policy: Policy | None = None, name: str = "", actor: Actor, now: dt.datetime) -> list[str]:
    """Give a plan with rules of its own a policy: another one, or its own under a `name` (B19). Return what to know.

    Its vault, points and jobs stay; the points keep the days that their rules gave them (B20). Raises UpgradeUnfit,
    PlanUnfit, PlanExists, ValidationError.
    """
    own = plan.policy
    if not own.inline or plan.edition != Edition.STANDARD:
        raise UpgradeUnfit(
            f"{plan} has a policy, or one that its edition lays down. Only a plan of its own rules has none."
        )
    if policy is None:
        own.inline, own.name = False, name
        services.save_policy(own, actor=actor, now=now)
        record(actor, "plan.upgrade", plan, account=plan.account, now=now, policy=str(own.pk), name=name)
        return []
    if policy.account_id != plan.account_id or policy.inline:
        raise services.PlanUnfit("Choose a policy of the plan's account.")
    _move(plan, own, policy, now=now)
    record(actor, "plan.upgrade", plan, account=plan.account, now=now, policy=str(policy.pk), name=policy.name)
    if policy.vault_id in (None, plan.vault_id):
        return []
    return [
        f"The policy's own vault is {policy.vault}. This plan goes on into {plan.vault}, where its history is: "
        f"a new plan into {policy.vault} would begin without it."
    ]


def _move(plan: Plan, own: Policy, policy: Policy, *, now: dt.datetime) -> None:
    days = {str(rule.pk): moments.days_of(rule, own) for rule in moments.backup_rules(own)}
    plan.former_rules = plan.former_rules | days
    plan.policy = policy
    plan.next_drill_at = moments.next_drill_at(plan, policy, after=now)
    if plan.state == PlanState.ACTIVE:
        moments.follow(plan, changed_at=now)
    try:
        with transaction.atomic():
            plan.save(update_fields=["policy", "former_rules", "next_run_at", "next_rule", "next_drill_at"])
    except IntegrityError as error:
        raise services.PlanExists("There is a plan for this source, policy and vault already.") from error
    copies.attach(plan, now=now)
    own.delete()
    plan.refresh_from_db()
