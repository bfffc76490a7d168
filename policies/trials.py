"""Trials of buckets: 30 days free, into a vault of their own, and what becomes of them (A7-A12, A18, A19, A24-A27)."""

import datetime as dt
from dataclasses import dataclass
from typing import Any

from django.db import IntegrityError, models, transaction

from accounts.refusals import Refused
from accounts.services import SERVICE, Actor, record
from policies import connection, copies, editions, moments, services
from policies.models import Edition, Plan, PlanState, Policy, Source, SourceKind
from vaults import deletion
from vaults.models import Vault, VaultState
from vaults.services import create_vault

NAME_MAX = 64


class TrialUnfit(Refused):
    """Only a bucket can be tried."""

    code = "trial_for_buckets"


class TrialExists(Refused):
    """A source has one trial at a time."""

    code = "trial_exists"


class NotATrial(Refused):
    """Only a trial is converted."""

    code = "not_a_trial"


class ConversionUnconfirmed(Refused):
    """From the conversion on the plan costs, and there is no way back: that is confirmed (A19)."""

    code = "conversion_unconfirmed"


class TrialReleased(Refused):
    """The trial's vault is gone, or going."""

    code = "trial_released"


@dataclass(frozen=True, slots=True)
class Trial:
    """A trial that was just made, and the recovery key of its vault, which is shown this once."""

    plan: Plan
    recovery_key: str


def create(source: Source, *, actor: Actor, now: dt.datetime) -> Trial:
    """Try the backup of a bucket: a plan, a policy and a vault come about together, or none of them (A11, A18).

    Raises TrialUnfit, TrialExists, ScopeFixed, ArchiveRefused, and what making a vault or a plan raises. Crash: leaves
    at most an empty vault in the store that no row names.
    """
    check(source)
    connection.check_class(source)
    with transaction.atomic():
        return _make(source, actor=actor, now=now)


def register(
    source: Source,
    *,
    credentials: dict[str, str] | None = None,
    skip_check: bool = False,
    actor: Actor,
    now: dt.datetime,
) -> Trial:
    """Store a new bucket with its trial, in one transaction: either of them fails for both (A24-A27)."""
    services.check_source(source, credentials=credentials)
    check(source)
    if not skip_check:
        services.try_source(source, now=now)
    connection.check_class(source)
    with transaction.atomic():
        services.store_source(source, actor=actor, now=now)
        return _make(source, actor=actor, now=now)


def check(source: Source) -> None:
    """Raise TrialUnfit, ScopeFixed, NotInRegion for what can't be tried."""
    if source.kind != SourceKind.BUCKET:
        raise TrialUnfit(f"A trial is for buckets, and {source} is none. Take a full plan.")
    source.region.need(services.FEATURE_OF[source.kind])
    editions.check_scope(source.settings)


def _make(source: Source, *, actor: Actor, now: dt.datetime) -> Trial:
    if source.plans.filter(vault__trial_started_at__isnull=False).exists():
        raise TrialExists(f"{source} is on trial, or was. Take a full plan.")
    expires_at = now + dt.timedelta(days=editions.TRIAL_DAYS)
    vault = Vault(
        account=source.account,
        region=source.region,
        name=_free_name(source),
        trial_started_at=now,
        trial_expires_at=expires_at,
        trial_release_at=expires_at + dt.timedelta(days=editions.TRIAL_RELEASE_DAYS),
    )
    recovery_key = create_vault(vault, actor=actor, now=now)
    policy = Policy(
        account=source.account,
        inline=True,
        name=f"Trial of {source}"[:NAME_MAX],
        retention_days=editions.TRIAL_RETENTION_DAYS,
        keep_at_least_one=False,
    )
    services.save_policy(policy, rules=[editions.daily_rule()], actor=actor, now=now)
    plan = Plan(source=source, policy=policy, vault=vault, edition=Edition.TRIAL)
    try:
        with transaction.atomic():
            services.bind(plan, actor=actor, now=now)
    except IntegrityError as error:
        raise TrialExists(f"{source} is on trial already.") from error
    return Trial(plan, recovery_key)


def _free_name(source: Source) -> str:
    """Return a name for the trial's vault that no vault of the account has."""
    name = f"Trial of {source}"[:NAME_MAX]
    taken = set(Vault.objects.present().filter(account=source.account).values_list("name", flat=True))
    number = 2
    while name in taken:
        name, number = f"{f'Trial of {source}'[: NAME_MAX - 6]} {number}", number + 1
    return name


def convert(plan: Plan, *, policy: Policy | None, confirmed: bool, actor: Actor, now: dt.datetime) -> Plan:
    """Make a full plan of a trial, also of one that is over (A12, A19): it keeps its vault, and goes on.

    `policy` None leaves the one it has, which can be changed from now on. Raises NotATrial, ConversionUnconfirmed,
    TrialReleased, PlanUnfit.
    """
    if plan.edition != Edition.TRIAL:
        raise NotATrial("Only a trial can be converted, and this plan is none.")
    if not confirmed:
        raise ConversionUnconfirmed(
            "A full plan costs by use, never becomes a trial again, and keeps its vault for ever. "
            "Confirm it with confirmed."
        )
    if plan.vault.state != VaultState.READY:
        raise TrialReleased(f"{plan.vault} is {plan.vault.get_state_display().lower()}. Make a new plan.")
    if policy and policy.account_id != plan.account_id:
        raise services.PlanUnfit("The policy must belong to the plan's account.")
    with transaction.atomic():
        kept = Vault.objects.filter(pk=plan.vault_id, state=VaultState.READY, trial_converted_at=None)
        if not kept.update(trial_converted_at=now):
            raise TrialReleased(f"{plan.vault} is being deleted. Make a new plan.")
        own, plan.policy = plan.policy, policy or plan.policy
        plan.edition, plan.state = Edition.STANDARD, PlanState.ACTIVE
        moments.move_on(plan, after=now)
        plan.next_drill_at = moments.next_drill_at(plan, plan.policy, after=now)
        plan.save()
        if policy:
            plan.vault.refresh_from_db()
            copies.attach(plan, now=now)
        if policy and own.inline:
            own.delete()
        record(actor, "plan.convert", plan, account=plan.account, now=now, policy=str(plan.policy_id))
    plan.vault.refresh_from_db()
    return plan


def ended(*, now: dt.datetime) -> models.QuerySet[Plan]:
    """Return the trials that are over and still due."""
    over = Plan.objects.filter(edition=Edition.TRIAL, state=PlanState.ACTIVE, vault__trial_expires_at__lte=now)
    return over.select_related("account", "source__region", "policy", "vault__region", "next_rule")


def end(plan: Plan, *, now: dt.datetime) -> bool:
    """Stop the backups of a trial that is over; its points go as they would. False when another sweep was first."""
    mine = Plan.objects.filter(pk=plan.pk, edition=Edition.TRIAL, state=PlanState.ACTIVE)
    if not mine.update(state=PlanState.PAUSED, next_run_at=None, next_rule=None):
        return False
    ends: Any = plan.vault.trial_expires_at
    record(SERVICE, "plan.trial_end", plan, account=plan.account, now=now, expired_at=ends.isoformat())
    return True


def to_release(*, now: dt.datetime) -> models.QuerySet[Vault]:
    """Return the vaults of trials that nobody converted in time and nobody holds points of."""
    over = Vault.objects.filter(trial_release_at__lte=now, trial_converted_at=None, state=VaultState.READY)
    return over.exclude(points__held_at__isnull=False).select_related("account", "region")


def release(vault: Vault, *, now: dt.datetime) -> Vault:
    """Let the vault of a trial go, with its plan: what a lock protects goes when the lock ends. Safe to call twice.

    Raises what the store raises when it can't tell its locks: the next call goes on.
    """
    for plan in vault.plans.filter(edition=Edition.TRIAL).select_related("account", "policy", "source", "vault"):
        services.delete(plan, actor=SERVICE, now=now)
    return deletion.request(vault, confirmation=vault.name, actor=SERVICE, now=now)
