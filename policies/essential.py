"""Essential host backup: each volume of a host every day, with nothing to set up (C1, C2, C8-C18, C23, C30, C31).

Every volume, a root, is a source of its own, so that a point is one volume (C23), and its plan has a policy of its own.
What a person asks for holds for all roots of the host. They are due in the same moment and run one after the other: the
jobs see to that.
"""

import datetime as dt
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from django.db import models, transaction

from accounts.models import Account
from accounts.refusals import Refused
from accounts.services import Actor, record
from policies import editions, moments, services
from policies.models import Edition, Plan, PlanState, Policy, Priority, Source, SourceKind
from vaults.models import Region, Vault, VaultState, VaultType
from vaults.services import create_vault

ROOT = "/"
NAME_MAX = 64


class EssentialEnabled(Refused):
    """The host is protected already."""

    code = "essential_enabled"


class EssentialMissing(Refused):
    """The host has no essential backup that could be changed."""

    code = "essential_missing"


class RootExcluded(Refused):
    """The folder is one that essential host backup leaves out (C50)."""

    code = "root_excluded"


@dataclass(frozen=True, slots=True)
class Wish:
    """What may be set; all of it has a default (C2, C14). `start_time` None draws a time between 00:00 and 06:00.

    `vault` None is the account's own for hosts of the region, made when there is none; no `roots` are "/" alone.
    """

    roots: tuple[str, ...] = ()
    start_time: dt.time | None = None
    priority: str = Priority.LOW
    keep_at_least_one: bool = True
    time_zone: str = "UTC"
    vault: Vault | None = None


@dataclass(frozen=True, slots=True)
class Enabled:
    """The plans that came about, one a root, and the recovery key of their vault when it was made for them."""

    plans: list[Plan]
    vault: Vault
    recovery_key: str = ""


def plans_of(account: Account, host: str) -> models.QuerySet[Plan]:
    """Return the essential plans of a host, root by root."""
    mine = Plan.objects.filter(account=account, source__host=host, edition=Edition.ESSENTIAL)
    return mine.select_related("account", "source__region", "policy", "vault__region").order_by("source__name")


def roots_of(plans: Iterable[Plan]) -> set[str]:
    """Return the roots that these plans protect."""
    return {root for plan in plans for root in plan.source.settings["roots"]}


def enable(account: Account, host: str, *, region: Region, wish: Wish, actor: Actor, now: dt.datetime) -> Enabled:
    """Protect a host; of one that is protected already, the roots that are not yet, with the settings of the others.

    Raises EssentialEnabled, RootExcluded, NotInRegion, SourceErasing, ValidationError, and what making a vault raises.
    """
    region.need("supports_host_backup")
    present = list(plans_of(account, host))
    roots = sorted(set(wish.roots or (ROOT,)) - roots_of(present))
    if present and not roots:
        raise EssentialEnabled(f"{host} is protected already: {', '.join(sorted(roots_of(present)))}.")
    for root in roots:
        if editions.is_excluded(root):
            raise RootExcluded(
                f"{root} is a folder that essential host backup leaves out. Protect it by a standard plan."
            )
    with transaction.atomic():
        vault, recovery_key = (present[0].vault, "") if present else _vault(account, region, wish, actor, now)
        sources = [_source(account, host, root, region=region, actor=actor, now=now) for root in roots]
        plans = [Plan(source=source, vault=vault, edition=Edition.ESSENTIAL) for source in sources]
        made = [_bind(plan, wish, like=present[0] if present else None, actor=actor, now=now) for plan in plans]
        for plan in made[1:]:
            plan.start_minute = made[0].start_minute
            moments.move_on(plan, after=now)
            plan.save(update_fields=["start_minute", "next_run_at", "next_rule"])
        told = {"roots": roots, "vault": str(vault.pk)}
        record(actor, "host.enable", made[0].source, account=account, now=now, host=host, **told)
    return Enabled(made, vault, recovery_key)


def _vault(account: Account, region: Region, wish: Wish, actor: Actor, now: dt.datetime) -> tuple[Vault, str]:
    """Return the vault to store in, and its recovery key when it is new (C2)."""
    if wish.vault:
        return wish.vault, ""
    name = f"Hosts in {region}"
    fit = Vault.objects.filter(
        account=account, region=region, type=VaultType.GENERAL, state=VaultState.READY, trial_started_at=None
    )
    found = fit.filter(models.Q(name=name) | models.Q(plans__edition=Edition.ESSENTIAL)).order_by("created_at").first()
    if found:
        return found, ""
    vault = Vault(account=account, region=region, name=name)
    return vault, create_vault(vault, actor=actor, now=now)


def name_of(host: str, root: str) -> str:
    """Return the name of a root's source; one that is too long loses its middle."""
    name = f"{host}:{root}"
    return name if len(name) <= NAME_MAX else f"{name[:30]}…{name[-33:]}"


def _source(account: Account, host: str, root: str, *, region: Region, actor: Actor, now: dt.datetime) -> Source:
    """Return the source of a root: the one that it had before, or a new one."""
    name = name_of(host, root)
    source = Source.objects.filter(account=account, name=name, host=host, kind=SourceKind.FILES).first()
    if source is None:
        settings: dict[str, Any] = {"roots": [root], "exclude": editions.excluded_patterns(root)}
        settings |= {"one_file_system": True, "skip_network": True}
        source = Source(account=account, region=region, name=name, host=host, settings=settings)
        services.save_source(source, actor=actor, now=now)
    return source


def _bind(plan: Plan, wish: Wish, *, like: Plan | None, actor: Actor, now: dt.datetime) -> Plan:
    """Store a root's plan with its policy; `like` is a plan of the same host whose settings it takes."""
    policy = Policy(
        account=plan.source.account,
        inline=True,
        name=f"Essential: {plan.source}"[:NAME_MAX],
        retention_days=editions.ESSENTIAL_RETENTION_DAYS,
        keep_at_least_one=like.policy.keep_at_least_one if like else wish.keep_at_least_one,
        time_zone=like.policy.time_zone if like else wish.time_zone,
    )
    plan.policy = services.save_policy(policy, rules=[editions.daily_rule()], actor=actor, now=now)
    plan.priority = like.priority if like else wish.priority
    plan.start_time = like.start_time if like else wish.start_time
    plan.clean_fields(exclude=["account", "source", "policy", "vault", "start_minute", "created_at"])
    return services.bind(plan, start_minute=like.start_minute if like else None, actor=actor, now=now)


def _present(account: Account, host: str) -> list[Plan]:
    plans = list(plans_of(account, host))
    if not plans:
        raise EssentialMissing(f"{host} has no essential backup. Enable it first.")
    return plans


@transaction.atomic
def change(
    account: Account,
    host: str,
    *,
    changes: dict[str, Any],
    actor: Actor,
    now: dt.datetime,
) -> list[Plan]:
    """Set `priority` or `keep_at_least_one` of all the host's roots, whichever are given (C11).

    A priority holds for the next run (C37), "keep at least one" as services.save_policy says (C33, C34). Raises
    EssentialMissing, ValidationError.
    """
    plans = _present(account, host)
    for plan in plans:
        if "keep_at_least_one" in changes:
            plan.policy.keep_at_least_one = changes["keep_at_least_one"]
            services.save_policy(plan.policy, actor=actor, now=now)
            plan.refresh_from_db(fields=["next_run_at", "next_rule", "next_drill_at"])
        if "priority" in changes:
            _set_priority(plan, changes["priority"], actor=actor, now=now)
    return plans


def _set_priority(plan: Plan, priority: str, *, actor: Actor, now: dt.datetime) -> None:
    before, plan.priority = plan.priority, priority
    plan.clean_fields(exclude=["account", "source", "policy", "vault", "start_minute", "created_at"])
    plan.save(update_fields=["priority"])
    record(actor, "plan.change", plan, account=plan.account, now=now, priority=[before, priority])


@transaction.atomic
def pause(account: Account, host: str, *, actor: Actor, now: dt.datetime) -> list[Plan]:
    """Stop the runs of all the host's roots; points stay, and expire as they would (C30). Raises PlanPaused."""
    plans = _present(account, host)
    active = [plan for plan in plans if plan.state == PlanState.ACTIVE]
    if not active:
        raise services.PlanPaused(f"The backup of {host} is paused already.")
    for plan in active:
        services.pause(plan, actor=actor, now=now)
    return plans


@transaction.atomic
def resume(account: Account, host: str, *, actor: Actor, now: dt.datetime) -> list[Plan]:
    """Let all the host's roots run again, when they are paused and only then (C31). Raises PlanNotPaused."""
    plans = _present(account, host)
    paused = [plan for plan in plans if plan.state == PlanState.PAUSED]
    if not paused:
        raise services.PlanNotPaused(f"The backup of {host} is not paused: only what is paused can be resumed.")
    for plan in paused:
        services.resume(plan, actor=actor, now=now)
    return plans
