"""Rules of type replication let the vaults of a policy's plans follow in another region (E9, E26).

A vault is replicated as a whole, all old and new points (E27), and has one target (E12): so a policy has one such rule,
and its vaults' replications are the same as those that are begun at a vault. What a rule asks for is a row until it is
done; a sweep makes the targets, and tries again what failed. What a person stopped is not begun again (E38).
"""

import datetime as dt
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any, NamedTuple

from django.core.exceptions import ValidationError
from django.db import models

from accounts.refusals import Refused
from accounts.services import SERVICE
from engine.errors import EngineError
from policies.kinds import TYPES
from policies.models import CopyRequest, Edition, Plan, Policy, Rule, RuleType, Source
from vaults import replication
from vaults.models import KeyProvider, LinkState, Region, ReplicationLink, Vault, VaultState, VaultType

# How a vault follows, as a policy sees it: `not_asked` goes on, or could begin, without a rule that asks for it.
STATES = ("following", "waiting", "failed", "stopped", "not_asked")
TRY_AGAIN = dt.timedelta(minutes=15)
NAME_MAX = 64
LISTED_MAX = 20


class Asked(NamedTuple):
    """What a policy asked for before a change: its rule's settings, None for no rule, and the vaults that wait."""

    settings: dict[str, Any] | None
    waiting: set[Any]


class Copy(NamedTuple):
    """How one vault of a policy follows in another region: `state` for programs, `text` for people."""

    vault: Vault
    target: Vault | None
    state: str
    text: str


def rule_of(rules: Iterable[Rule]) -> Rule | None:
    """Return the rule of type replication, if there is one."""
    return next((rule for rule in rules if rule.type == RuleType.REPLICATION), None)


def asked(policy: Policy) -> Asked:
    """Return what the stored policy asks for."""
    rule = rule_of(Rule.objects.filter(policy=policy))  # not those in memory: they may be changed already
    waiting = CopyRequest.objects.filter(rule__policy=policy).values_list("vault_id", flat=True)
    return Asked(rule.settings if rule else None, set(waiting))


def vaults_of(policy: Policy) -> models.QuerySet[Vault]:
    """Return the vaults that plans of the policy store in."""
    mine = Vault.objects.present().filter(pk__in=Plan.objects.filter(policy=policy).values("vault"))
    return mine.select_related("account", "region").order_by("name")


def _links(vaults: Sequence[Vault]) -> dict[Any, ReplicationLink]:
    """Return the vaults' links by vault: the one that goes on, else the one that ended last."""
    found = ReplicationLink.objects.filter(source__in=vaults).select_related("target__region")
    return {link.source_id: link for link in found.order_by("-state", "stopped_at")}  # the last one stands: active


def _does(link: ReplicationLink, rule: Rule) -> bool:
    """Say whether a replication that goes on is the one that the rule asks for."""
    named = rule.settings.get("vault")
    return link.target.region.name == rule.settings["region"] and named in (None, link.target.name)


def check(rule: Rule, vaults: Sequence[Vault]) -> None:
    """See that these vaults can follow as the rule says. Raises what replication.start would refuse (E10-E16, E29)."""
    region = Region.objects.get(name=rule.settings["region"])
    replication.check_region(region)
    links, need, named = _links(vaults), list[Vault](), rule.settings.get("vault")
    for vault in vaults:
        link = links.get(vault.pk)
        if link is None or link.state != LinkState.ACTIVE:
            need.append(vault)
        elif not _does(link, rule):
            raise replication.Replicated(
                f"{vault} is replicated to {link.target} in {link.target.region} already: a vault has one target. "
                "Name these in the rule, or stop that replication first."
            )
    if named and len(vaults) > 1:
        raise replication.TargetUnfit(
            f"{named} follows one vault, and plans of this policy store in {len(vaults)}: "
            f"{', '.join(map(str, vaults[:LISTED_MAX]))}. Leave the vault out of the rule: each gets one of its own."
        )
    for vault in need:
        replication.check(vault, target_for(vault, rule, region))
    if not named and len(need) > 1:
        _check_room(region, need, rule)


def _check_room(region: Region, need: list[Vault], rule: Rule) -> None:
    new = sum(target_for(vault, rule, region)._state.adding for vault in need)
    room = replication.TARGETS_MAX - replication.targets_in(need[0].account, region).count()
    if new > room:
        raise replication.TargetUnfit(
            f"{new} vaults of this policy's plans need a target each in {region}, where an account has "
            f"{replication.TARGETS_MAX} at most: room is left for {max(room, 0)}."
        )


def target_for(vault: Vault, rule: Rule, region: Region) -> Vault:
    """Return the target that the rule means for a vault: the one that it names, or one of the vault's own, stored or
    still to be made. Raises TargetUnfit where only a person can make it.
    """
    mine = Vault.objects.present().filter(account=vault.account_id).select_related("account", "region")
    targets = mine.filter(region=region, type=VaultType.REPLICATION_TARGET)
    if named := rule.settings.get("vault"):
        found = targets.filter(name=named).first()
        if found is None:
            raise replication.TargetUnfit(f"There is no replication target {named!r} in {region} any more.")
        return found
    name = f"Copy of {vault}"[:NAME_MAX]
    found = targets.filter(name=name, state=VaultState.EMPTY).first()
    if found is not None:
        return found
    if vault.key_provider != KeyProvider.KEYRING:
        raise replication.TargetUnfit(
            f"{vault} is encrypted with the {vault.get_key_provider_display().lower()}: its target needs a key of its "
            f"own there. Make a replication target in {region} with that key first, and name it in the rule.",
            code="other_encryption",
        )
    taken = set(mine.filter(name__startswith=name[: NAME_MAX - 4]).values_list("name", flat=True))
    numbered = (f"{name[: NAME_MAX - 4]} {number}" for number in range(2, len(taken) + 3))
    free = name if name not in taken else next(one for one in numbered if one not in taken)
    told = f"Made by the replication rule of the policy {rule.policy}"
    return Vault(
        account=vault.account, region=region, name=free, type=VaultType.REPLICATION_TARGET, description=told[:255]
    )


def is_new(policy: Policy, rules: list[Rule]) -> bool:
    """Say whether these rules ask for another replication than the stored ones."""
    rule = rule_of(rules)
    return rule is not None and rule.settings != asked(policy).settings


def check_policy(policy: Policy, rules: list[Rule]) -> None:
    """See that the vaults of the policy's plans, and its own, can follow as a new or changed rule says."""
    rule = rule_of(rules)
    if rule is None or not is_new(policy, rules):
        return
    vaults = [] if policy._state.adding else list(vaults_of(policy))
    if policy.vault is not None and policy.vault not in vaults:
        vaults.append(policy.vault)
    check(rule, vaults)


def follow(policy: Policy, before: Asked, *, now: dt.datetime) -> None:
    """Ask for what the policy's rule wants and nobody asked for yet. The caller holds the transaction.

    Where a person stopped a replication only another rule than `before` begins a new one.
    """
    rule = rule_of(policy.rules.all())
    if rule is None:
        return
    vaults = list(vaults_of(policy))
    links = _links(vaults)
    changed = rule.settings != before.settings
    for vault in vaults:
        if changed or vault.pk not in links or vault.pk in before.waiting:
            _ask(vault, rule, links.get(vault.pk), now=now)


def attach(plan: Plan, *, now: dt.datetime) -> None:
    """Let the vault of a plan that was bound just now follow as its policy says. Raises what `check` does.

    A plan that a rule made by tags is never refused for it: a backup without a copy is better than none, and what is
    wrong is told by the request.
    """
    rule = rule_of(plan.policy.rules.all())
    if rule is None:
        return
    others = [vault for vault in vaults_of(plan.policy) if vault.pk != plan.vault_id]
    link = _links([plan.vault]).get(plan.vault_id)
    if link is None or link.state == LinkState.ACTIVE:
        if not plan.by_tags:
            check(rule, [plan.vault, *others] if rule.settings.get("vault") else [plan.vault])
        _ask(plan.vault, rule, link, now=now)


def _ask(vault: Vault, rule: Rule, link: ReplicationLink | None, *, now: dt.datetime) -> None:
    if link and link.state == LinkState.ACTIVE and _does(link, rule):
        _take_over(link, rule)
        return
    CopyRequest.objects.update_or_create(
        vault=vault, defaults={"rule": rule, "next_try_at": now}, create_defaults={"rule": rule, "next_try_at": now}
    )


def _take_over(link: ReplicationLink, rule: Rule) -> None:
    """Note that a rule asks for a replication that goes on, unless another one's did before."""
    ReplicationLink.objects.filter(pk=link.pk, policy="").update(policy=str(rule.policy_id))


def sweep(*, now: dt.datetime, rows_max: int) -> list[CopyRequest]:
    """Begin the replications that rules ask for; return the requests that could not be met, with the reason.

    Each makes a vault in a store, which takes a second or so. A request that fails is tried again after TRY_AGAIN.
    """
    due = CopyRequest.objects.filter(next_try_at__lte=now).order_by("next_try_at")
    failed = []
    for request in due.select_related("vault__account", "vault__region", "rule__policy")[:rows_max]:
        mine = CopyRequest.objects.filter(pk=request.pk)
        if not mine.filter(next_try_at=request.next_try_at).update(next_try_at=now + TRY_AGAIN):
            continue  # another sweep has it
        try:
            _meet(request, now=now)
        except (Refused, ValidationError, EngineError, OSError) as error:
            request.error = "; ".join(error.messages) if isinstance(error, ValidationError) else str(error)
            mine.update(error=request.error)
            failed.append(request)
        else:
            mine.delete()
    return failed


def _meet(request: CopyRequest, *, now: dt.datetime) -> None:
    vault, rule = request.vault, request.rule
    if not Plan.objects.filter(vault=vault, policy=rule.policy).exists():
        return
    check(rule, [vault])
    link = _links([vault]).get(vault.pk)
    if link is None or link.state != LinkState.ACTIVE:
        region = Region.objects.get(name=rule.settings["region"])
        link = replication.start(vault, target_for(vault, rule, region), actor=SERVICE, now=now)
    _take_over(link, rule)


def told(policy: Policy) -> list[Copy]:
    """Return how each vault of the policy's plans follows, as far as this policy has to do with it."""
    rule = rule_of(policy.rules.all())
    vaults = list(vaults_of(policy))
    links = _links(vaults)
    errors = dict(CopyRequest.objects.filter(vault__in=vaults, rule__policy=policy).values_list("vault_id", "error"))
    copies = (_copy(vault, rule, links.get(vault.pk), errors.get(vault.pk), str(policy.pk)) for vault in vaults)
    return [copy for copy in copies if copy is not None]


def _copy(vault: Vault, rule: Rule | None, link: ReplicationLink | None, error: str | None, policy: str) -> Copy | None:
    goes_on = link is not None and link.state == LinkState.ACTIVE
    place = f"{link.target} in {link.target.region}" if link else ""
    target = link.target if link else None
    if goes_on and link and (rule is None or not _does(link, rule)):
        if rule is None and link.policy != policy:
            return None
        why = "no rule of this policy asks for that any more" if rule is None else "this policy's rule asks for another"
        return Copy(vault, target, "not_asked", f"{vault} goes on to {place}, and {why}. Stop it at the vault.")
    if rule is None:
        return None
    if goes_on:
        return Copy(vault, target, "following", f"{vault} is replicated to {place}.")
    if error is not None:
        wanted = rule.settings["region"]
        text = f"it failed, and is tried again every 15 minutes: {error}" if error else "it begins within a minute."
        return Copy(vault, None, "failed" if error else "waiting", f"{vault} is to be replicated to {wanted}: {text}")
    if link:
        text = f"{vault} was replicated to {place}; that was stopped, and the rule doesn't begin it again. "
        return Copy(vault, target, "stopped", text + "To begin another, take the rule out, save, and add it again.")
    return Copy(vault, None, "not_asked", f"{vault} is not replicated yet. Save the policy to begin.")


def check_at_vault(vault: Vault) -> None:
    """Refuse to begin at a vault what is begun by a policy: the replication of backups of whole hosts (E9).

    Where the edition lays the policy down, no rule can be added to it, so the vault is the place.
    """
    plans = Plan.objects.filter(vault=vault, edition=Edition.STANDARD).select_related("source", "policy")
    whole = (one for one in plans.order_by("source__name").iterator() if _is_by_policy_only(one.source))
    if found := list(islice(whole, LISTED_MAX)):
        hosts = ", ".join(sorted({str(one.source) for one in found}))
        policies = {str(one.policy_id): str(one.policy) for one in found}
        raise replication.NotReplicable(
            f"{vault} holds backups of whole hosts ({hosts}), which are replicated by their policy: add a rule of type "
            f"replication to {' or '.join(sorted(policies.values()))}. All of the vault follows then.",
            code="policy_only",
            policies=[{"id": pk, "name": name} for pk, name in policies.items()],
        )


def _is_by_policy_only(source: Source) -> bool:
    return TYPES[source.kind].policy_only(source.settings)


def warnings(policy: Policy) -> list[str]:
    """Return what a person who saved the policy should know of replications that it doesn't begin or end."""
    return [copy.text for copy in told(policy) if copy.state in ("not_asked", "stopped", "failed")]
