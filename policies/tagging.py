"""Rules of type tag bind sources to the policy's vault by themselves, and take back what they bound.

A source that has all the tags of such a rule gets a plan; what a rule made goes when it fits no more, and the points
stay. Plans that people made are left alone. What changes marks the policy; a sweep goes through its sources and takes
the mark off when there is nothing left to do, so a crash loses nothing.
"""

import datetime as dt

import structlog
from django.core.exceptions import ValidationError
from django.db import models, transaction
from django.db.models.fields.json import KeyTransform

from accounts.refusals import Refused
from accounts.services import SERVICE
from policies import services
from policies.kinds import TYPES
from policies.models import Plan, Policy, RuleType, Source
from vaults.models import VaultState

log = structlog.get_logger(__name__)
BATCH = 500


def sweep(*, now: dt.datetime) -> int:
    """Go on with a batch of each marked policy; return how many plans came and went."""
    marked = Policy.objects.filter(tags_changed_at__isnull=False).order_by("tags_changed_at")
    return sum(_go_on(policy, now=now) for policy in marked.select_related("vault").prefetch_related("rules"))


@transaction.atomic
def _go_on(policy: Policy, *, now: dt.datetime) -> int:
    gone, made = _unbind(policy, now=now), _bind(policy, now=now)
    if gone < BATCH and made < BATCH:
        Policy.objects.filter(pk=policy.pk, tags_changed_at=policy.tags_changed_at).update(tags_changed_at=None)
    return gone + made


def wanted(policy: Policy) -> models.QuerySet[Source]:
    """Return the sources that the policy's rules of type tag fit: each has all the tags of one of them."""
    fits = models.Q(pk__in=[])
    found = Source.objects.filter(account=policy.account_id, erasing_since=None)
    for number, rule in enumerate(policy.rules.all()):
        if rule.type == RuleType.TAG:
            tags = {f"tag_{number}_{place}": name for place, name in enumerate(rule.settings["tags"])}
            found = found.alias(**{alias: KeyTransform(name, "tags") for alias, name in tags.items()})
            fits |= models.Q(**{alias: rule.settings["tags"][name] for alias, name in tags.items()})
    return found.filter(fits).exclude(kind__in=[name for name, kind in TYPES.items() if kind.starts_itself])


def _bind(policy: Policy, *, now: dt.datetime) -> int:
    """Make a batch of plans; return how many sources were looked at."""
    vault = policy.vault
    if vault is None or vault.state in (VaultState.DELETING, VaultState.DELETED):
        return 0
    bound = Plan.objects.filter(policy=policy, vault=vault, source=models.OuterRef("pk"))
    free = wanted(policy).exclude(models.Exists(bound)).select_related("account", "region").order_by("pk")
    sources = list(free[:BATCH])
    refused = 0
    for source in sources:
        try:
            services.create_plan(Plan(source=source, policy=policy, vault=vault, by_tags=True), actor=SERVICE, now=now)
        except (Refused, ValidationError) as refusal:
            refused += 1
            log.warning("tagging.refused", source=str(source.pk), policy=str(policy.pk), reason=str(refusal))
    return 0 if refused == len(sources) else len(sources)


def _unbind(policy: Policy, *, now: dt.datetime) -> int:
    mine = Plan.objects.filter(policy=policy, by_tags=True)
    fitting = mine.filter(source__in=wanted(policy).values("pk"), vault=policy.vault_id)
    over = mine.exclude(pk__in=fitting.values("pk")).select_related("account", "source", "policy", "vault")
    gone = list(over.order_by("pk")[:BATCH])
    for plan in gone:
        services.remove_plan(plan, actor=SERVICE, now=now, why="its source has no longer the tags of a rule")
    return len(gone)
