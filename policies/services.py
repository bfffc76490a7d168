"""Sources, policies and plans come about, change, pause and resume here."""

import contextlib
import datetime as dt
from typing import Any

from django.conf import settings
from django.core.exceptions import ValidationError
from django.db import IntegrityError, models, transaction

from accounts import grants
from accounts.refusals import Refused
from accounts.services import Actor, record
from accounts.shapes import checked
from accounts.states import Privilege
from engine.errors import EngineError
from engine.sources.mounts import mounts_inside
from policies import addresses, connection, copies, editions, moments, places, reading, rescheduling, schedule
from policies.kinds import TYPES
from policies.models import Edition, Plan, PlanState, Policy, Rule, RuleType, Source, SourceKind
from vaults.limits import LimitsSerializer
from vaults.models import RecoveryPoint, VaultState, VaultType


class PlanExists(Refused):
    """The same source, policy and vault are bound already."""

    code = "plan_exists"


class PlanNotPaused(Refused):
    """Only a paused plan can be resumed (C31)."""

    code = "plan_not_paused"


class PlanPaused(Refused):
    """A paused plan cannot be paused."""

    code = "plan_paused"


class SourceErasing(Refused):
    """What is being deleted takes no plans any more (C32)."""

    code = "source_erasing"


class ClusterBackedUp(Refused):
    """A cluster's automatic backups go with it, for good: that takes its name, typed (D29)."""

    code = "cluster_backed_up"


class InUse(Refused):
    """What plans use stays; the refusal tells which."""

    code = "in_use"


class RulesUnfit(Refused):
    """A policy has 1 to RULES_MAX rules, one of them for backups at least."""

    code = "rules_unfit"


class PlanUnfit(Refused):
    """The parts of a plan don't fit together."""

    code = "plan_unfit"


_HOST_WRONG = {
    True: "A source of this kind is read over the network, by any worker of its region: leave the host empty.",
    False: "Name the host whose worker reads this source.",
}
_CLUSTER_ALONE = "is a cluster: set its automatic backup, which covers all of it, or start a manual one."
RULES_MAX = 10
LISTED_MAX = 20
# What of a policy, beside its rules, says when its plans do something.
OF_MOMENTS = ("time_zone", "retention_days", "drill_every_days")
# What a region must be set up for to protect sources of these kinds (A6, C55).
FEATURE_OF: dict[str, str] = {SourceKind.BUCKET: "supports_bucket_backup", SourceKind.FILES: "supports_host_backup"}
AUDITED_RULES = (
    "retention_days",
    "keep_last",
    "keep_daily",
    "keep_weekly",
    "keep_monthly",
    "keep_yearly",
    "keep_at_least_one",
    "limits",
)


def _warnings(source: Source) -> list[str]:
    """Return what a person should know about the source (B28). Only the host itself can look at its mounts."""
    if source.kind != SourceKind.FILES or source.host != settings.HOST_NAME or source.settings["one_file_system"]:
        return []
    return [
        f"Another file system{f' ({mount.fs_type})' if mount.fs_type else ''} is mounted at "
        f"{mount.path.decode('utf-8', 'replace')}: it will be read too, which may cost requests. "
        "Set one_file_system to leave it out."
        for mount in mounts_inside(source.settings["roots"])
    ]


def check_source(source: Source, *, credentials: dict[str, str] | None = None, over: bool = False) -> bool:
    """Check and complete a source, new or changed; say whether its connection should be tried before it is stored.

    `credentials` None leaves the stored ones; others take their place, or go `over` them one by one. What is stored is
    never shown to another server than it was given for. A name that can't be looked up from here is no reason to
    refuse: the worker that reads the source looks it up again. Raises ValidationError by field, AddressRefused.
    """
    kept = None if source._state.adding else Source.objects.get(pk=source.pk)
    if kept and kept.kind != source.kind:
        raise ValidationError({"kind": "The kind of a source never changes: its points are of this kind."})
    own = TYPES[source.kind]
    source.settings = reading.check_settings(source.kind, source.settings)
    if own.on_host != bool(source.host):
        raise ValidationError({"host": _HOST_WRONG[bool(source.host)]})
    moved = kept is not None and _servers(kept) != _servers(source)
    if credentials is not None or kept is None:
        stored = reading.stored_credentials(source) if over and not moved else {}
        reading.seal_credentials(source, stored | (credentials or {}))
    elif source.credentials and moved:
        raise ValidationError({"credentials": "They belong to the former server: give those of the new one."})
    with contextlib.suppress(EngineError):
        addresses.check(own.endpoints(source.settings))
    if kept and source.plans.filter(edition=Edition.TRIAL).exists():
        editions.check_scope(source.settings)
    if kept and credentials is None and kept.settings == source.settings:
        return False
    source.checked_at, source.check_error = None, ""
    return not own.on_host


def _servers(source: Source) -> list[Any]:
    """Return to whom a source's credentials are shown, by whichever names its kind tells them."""
    settings = reading.completed(source)
    named = [settings.get(name) for name in ("server", "port", "socket")]
    return [source.host, *named, *TYPES[source.kind].endpoints(settings)]


def try_source(source: Source, *, now: dt.datetime) -> None:
    """Try the connection to a checked source that is read over the network (A30). Raises SourceUnreachable."""
    source.checked_at, source.check_error = now, connection.check(source)
    if source.check_error:
        raise connection.SourceUnreachable(
            f"{source.check_error}. Nothing was saved: mend that, or ask to save without the check."
        )


def save_source(
    source: Source,
    *,
    credentials: dict[str, str] | None = None,
    skip_check: bool = False,
    actor: Actor,
    now: dt.datetime,
) -> Source:
    """Check and store a source, new or changed; `credentials` None leaves the stored ones.

    What is read over the network is tried before, when it is new or is to be read in another way, unless `skip_check`.
    Raises ValidationError, AddressRefused, SourceUnreachable.
    """
    if check_source(source, credentials=credentials) and not skip_check:
        try_source(source, now=now)
    return store_source(source, actor=actor, now=now)


@transaction.atomic
def store_source(source: Source, *, actor: Actor, now: dt.datetime) -> Source:
    """Store a source that was checked. Raises ValidationError."""
    new = source._state.adding
    if new:
        source.created_at = now
    source.warnings = _warnings(source)
    source.full_clean()
    source.save()
    record(actor, "source.create" if new else "source.change", source, account=source.account, now=now)
    # Which plans come and go by the source's tags, the next sweep says.
    Policy.objects.filter(account=source.account_id, rules__type=RuleType.TAG).update(tags_changed_at=now)
    return source


@transaction.atomic
def save_policy(policy: Policy, *, rules: list[Rule] | None = None, actor: Actor, now: dt.datetime) -> Policy:
    """Check and store a policy, new or changed, with its rules; its plans get their next moments anew.

    `rules` None leaves the stored ones; a new policy has one then, a daily backup. Rules that are stored already keep
    their ids, so that what they made is known as theirs; stored ones that are not among `rules` go.

    Rules on how long to keep hold for all points of the plans' sources at the next expiry, with one exception: "keep at
    least one" ends a while after it was switched off (C34), and is back at once when switched on (C33). Ask
    retention.warnings_on_disable what to tell the person then (C17, C36). Raises ValidationError, RulesUnfit.
    """
    new = policy._state.adding
    kept = None if new else Policy.objects.get(pk=policy.pk)
    if new:
        policy.created_at = now
        rules = [Rule()] if rules is None else rules
    if kept and kept.keep_at_least_one and not policy.keep_at_least_one:
        policy.keep_one_until = now + dt.timedelta(seconds=settings.KEEP_ONE_GRACE_S)
    elif policy.keep_at_least_one:
        policy.keep_one_until = None
    found = checked("limits", LimitsSerializer, policy.limits)
    policy.limits = LimitsSerializer(found).data
    policy.full_clean()
    for edition in [] if new else policy.plans.values_list("edition", flat=True).distinct():
        editions.check_policy(edition, policy, policy.rules.all() if rules is None else rules)
    asked = copies.asked(policy)
    policy.save()
    changes = _changes(kept, policy) if kept else {}
    if rules is not None:
        changes |= _store_rules(policy, rules)
    if "rules" in changes or (kept and any(getattr(kept, name) != getattr(policy, name) for name in OF_MOMENTS)):
        rescheduling.begin(policy, now=now)
    copies.follow(policy, asked, now=now)
    Policy.objects.filter(pk=policy.pk, inline=False).update(tags_changed_at=now)
    record(actor, "policy.create" if new else "policy.change", policy, account=policy.account, now=now, **changes)
    return policy


def rules_from(policy: Policy, listed: list[dict[str, Any]]) -> list[Rule]:
    """Return rules, not saved, from the values of their fields: those with the id of a rule that is there change it."""
    mine = {} if policy._state.adding else {rule.pk: rule for rule in policy.rules.all()}
    rules = []
    for values in listed:
        rule = mine.pop(values["id"], None) if "id" in values else None
        rule = rule or Rule()
        for name, value in values.items():
            if name != "id":
                setattr(rule, name, value)
        rules.append(rule)
    return rules


def check_rules(policy: Policy, rules: list[Rule]) -> None:
    """See that these can be the policy's rules. Raises RulesUnfit, ValidationError by the rule's place and field."""
    if not 1 <= len(rules) <= RULES_MAX:
        raise RulesUnfit(f"A policy has 1 to {RULES_MAX} rules, not {len(rules)}.")
    if not any(rule.type == RuleType.BACKUP for rule in rules):
        raise RulesUnfit("A policy needs a rule of type backup: without one nothing is ever backed up.")
    for place, rule in enumerate(rules, 1):
        rule.policy, rule.position = policy, place
        try:
            rule.full_clean(exclude=["policy"], validate_unique=False, validate_constraints=False)
        except ValidationError as error:
            raise ValidationError(
                {f"rules.{place - 1}.{name}": texts for name, texts in error.message_dict.items()}
            ) from error
    places.check(policy, rules)
    copies.check_policy(policy, rules)


def _store_rules(policy: Policy, rules: list[Rule]) -> dict[str, Any]:
    """Make these the policy's rules, in this order; return what the audit trail should tell."""
    check_rules(policy, rules)
    mine = {rule.pk: rule for rule in policy.rules.all()}
    for place, rule in enumerate(rules, 1):
        if rule.pk not in mine:
            rule._state.adding = True
        rule.policy, rule.position = policy, place
    before = [_told(rule) for rule in mine.values()]
    policy.rules.exclude(pk__in=[rule.pk for rule in rules]).delete()
    # Out of the way first: two rules may change places.
    policy.rules.update(position=models.F("position") + 2 * RULES_MAX)
    for rule in rules:
        rule.save()
    policy.refresh_from_db(fields=[])  # forgets the rules as they were
    after = [_told(rule) for rule in rules]
    return {"rules": [before, after]} if before != after else {}


def _told(rule: Rule) -> dict[str, Any]:
    """Return a rule as the audit trail shows it: what differs from the defaults."""
    told: dict[str, Any] = {"type": rule.type}
    for field in Rule._meta.fields:
        value = getattr(rule, field.name)
        if field.name not in ("id", "policy", "position", "type") and value != field.get_default():
            told[field.name] = value if isinstance(value, (int, str, list, dict)) else str(value)
    return told


def _changes(before: Policy, after: Policy) -> dict[str, Any]:
    """Return the rules of a policy that change, as [before, after]."""
    pairs = ((name, getattr(before, name), getattr(after, name)) for name in AUDITED_RULES)
    return {name: [old, new] for name, old, new in pairs if old != new}


def end_keep_one(*, now: dt.datetime) -> list[Any]:
    """Let "keep at least one" end where its time is over (C34); return the vaults whose expiry should look at once."""
    over = list(Policy.objects.filter(keep_one_until__lte=now).values_list("pk", flat=True))
    if not over:
        return []
    Policy.objects.filter(pk__in=over, keep_one_until__lte=now).update(keep_one_until=None)
    return list(Plan.objects.filter(policy__in=over).values_list("vault_id", flat=True).distinct())


def create_plan(plan: Plan, *, actor: Actor, now: dt.datetime) -> Plan:
    """Bind a source to a policy and a vault (B16). Raises ArchiveRefused (A3), and what `bind` raises."""
    _check_plan(plan, now=now)
    connection.check_class(plan.source)
    return bind(plan, actor=actor, now=now)


def _check_plan(plan: Plan, *, now: dt.datetime) -> None:
    if plan.source.erasing_since:
        raise SourceErasing(f"The backups of {plan.source} are being deleted. Make a new source to protect it again.")
    if plan.policy.account_id != plan.vault.account_id:
        raise PlanUnfit("Policy and vault must belong to one account.")
    grants.need(plan.vault.account, plan.source, Privilege.BACKUP, now=now)
    if TYPES[plan.source.kind].starts_itself:
        raise PlanUnfit(f"{plan.source} starts its backups itself: it takes no plans.", code="source_starts_itself")
    if TYPES[plan.source.kind].is_cluster != (plan.edition == Edition.CLUSTER):
        raise PlanUnfit(f"{plan.source} {_CLUSTER_ALONE}", code="cluster_policy_only")
    if plan.vault.type != VaultType.GENERAL:
        raise PlanUnfit(f"{plan.vault} is a replication target and takes no new plans.", code="vault_read_only")
    if plan.vault.state in (VaultState.DELETING, VaultState.DELETED):
        raise PlanUnfit(f"{plan.vault} is being deleted. Choose another vault.", code="vault_not_ready")
    if plan.vault.trial_started_at and (plan.edition != Edition.TRIAL or plan.vault.plans.exists()):
        raise PlanUnfit(f"{plan.vault} is of a trial's plan alone. Choose another vault.", code="vault_of_a_trial")
    if feature := FEATURE_OF.get(plan.source.kind):
        plan.source.region.need(feature)
    editions.check_policy(plan.edition, plan.policy, plan.policy.rules.all())


def bind(plan: Plan, *, start_minute: int | None = None, actor: Actor, now: dt.datetime) -> Plan:
    """Store a plan whose source was looked at. Raises PlanUnfit, PlanExists, SourceErasing, NotInRegion, NotGranted,
    and what the plan's edition forbids.

    A source of another account needs its grant; the plan, its jobs and points belong to the vault's account (B8). The
    start between 00:00 and 06:00 is drawn here, once (C8), unless the caller drew it.
    """
    _check_plan(plan, now=now)
    plan.account_id = plan.vault.account_id
    plan.start_minute = schedule.draw_start() if start_minute is None else start_minute
    moments.move_on(plan, after=now)
    plan.next_drill_at = moments.next_drill_at(plan, plan.policy, after=now)
    plan.created_at = now
    try:
        with transaction.atomic():
            plan.save(force_insert=True)
            copies.attach(plan, now=now)
            for account in {plan.account, plan.source.account}:
                record(actor, "plan.create", plan, account=account, now=now, edition=plan.edition)
    except IntegrityError as error:
        raise PlanExists("There is a plan for this source, policy and vault already.") from error
    return plan


def long_run(plan: Plan) -> str:
    """Return what a person should know before the plan's next run, by the size of its newest point (C53); else empty.

    At most one query.
    """
    if plan.edition != Edition.ESSENTIAL:
        return ""
    newest = RecoveryPoint.objects.in_series(plan.vault, plan.source.series).values_list("bytes_total", flat=True)
    return editions.long_run_warning(plan, bytes_total=newest.first() or 0)


@transaction.atomic
def change_plan(plan: Plan, *, actor: Actor, now: dt.datetime) -> Plan:
    """Store whether missed moments are made up for, the zone, the earliest start; what a plan binds never changes."""
    _check_not_cluster(plan)
    plan.clean_fields(exclude=["account", "source", "policy", "vault"])
    fields = ["catch_up", "time_zone", "start_not_before"]
    stored = Plan.objects.select_for_update(of=("self",), no_key=True).get(pk=plan.pk)
    plan.state, plan.next_run_at, plan.next_rule = stored.state, stored.next_run_at, stored.next_rule
    if plan.state == PlanState.ACTIVE:
        moments.follow(plan, changed_at=now)
    plan.save(update_fields=[*fields, "next_run_at", "next_rule"])
    told = {"time_zone": plan.time_zone, "start_not_before": plan.start_not_before and str(plan.start_not_before)}
    record(actor, "plan.change", plan, account=plan.account, now=now, catch_up=plan.catch_up, **told)
    return plan


@transaction.atomic
def pause(plan: Plan, *, actor: Actor, now: dt.datetime) -> Plan:
    """Stop future runs; points stay, and expire as they would (C30). Raises PlanPaused.

    Ask retention.warnings_on_pause what to tell the person (C17).
    """
    active = Plan.objects.filter(pk=plan.pk, state=PlanState.ACTIVE)
    changed = active.update(state=PlanState.PAUSED, next_run_at=None, next_rule=None)
    if not changed:
        raise PlanPaused("The plan is paused already.")
    record(actor, "plan.pause", plan, account=plan.account, now=now)
    plan.refresh_from_db()
    return plan


def _check_not_cluster(plan: Plan) -> None:
    """See that the plan is not a cluster's automatic backup, which has settings of its own (policies.clusters)."""
    if plan.edition == Edition.CLUSTER:
        raise PlanUnfit(f"{plan.source} {_CLUSTER_ALONE}", code="cluster_policy_only")


def resume(plan: Plan, *, actor: Actor, now: dt.datetime) -> Plan:
    """Let a paused plan run again from its next moment on (C31). Raises PlanNotPaused, TrialEnded, PlanUnfit."""
    _check_not_cluster(plan)
    return wake(plan, actor=actor, now=now)


@transaction.atomic
def wake(plan: Plan, *, actor: Actor, now: dt.datetime) -> Plan:
    """Let any paused plan run again. Raises PlanNotPaused, TrialEnded."""
    editions.check_running(plan.vault, now=now)
    moments.move_on(plan, after=now)
    changed = Plan.objects.filter(pk=plan.pk, state=PlanState.PAUSED).update(
        state=PlanState.ACTIVE,
        next_run_at=plan.next_run_at,
        next_rule=plan.next_rule,
        next_drill_at=moments.next_drill_at(plan, plan.policy, after=now),
        rules_changed_at=None,
    )
    if not changed:
        raise PlanNotPaused("Only a paused plan can be resumed.")
    record(actor, "plan.resume", plan, account=plan.account, now=now)
    plan.refresh_from_db()
    return plan


def _automatic_points(source: Source) -> models.QuerySet[RecoveryPoint]:
    return RecoveryPoint.objects.filter(series=source.series, vault__account=source.account_id, manual=False)


@transaction.atomic
def remove_plan(plan: Plan, *, actor: Actor, now: dt.datetime, **why: str) -> None:
    """Delete a plan, with its policy when that is its own. Points stay and keep the retention they were made with."""
    record(actor, "plan.delete", plan, account=plan.account, now=now, **why)
    policy = plan.policy
    plan.delete()
    if policy.inline:
        policy.delete()


@transaction.atomic
def delete(thing: Source | Policy | Plan, *, actor: Actor, now: dt.datetime) -> None:
    """Delete a plan, or a source or policy that no plan uses. Points stay. Raises InUse, SourceErasing.

    A policy of the plan's own goes with it. A cluster whose automatic backups would go with it (D29) is erased instead.
    Plans of other accounts, whose grant has ended, go with the source; while one holds the source stays.
    """
    if isinstance(thing, Plan):
        remove_plan(thing, actor=actor, now=now)
        return
    name = thing._meta.model_name
    if isinstance(thing, Source) and thing.erasing_since:
        raise SourceErasing(f"The backups of {thing} are being deleted, and it goes with the last of them.")
    if isinstance(thing, Source) and TYPES[thing.kind].is_cluster and _automatic_points(thing).exists():
        raise ClusterBackedUp(
            f"The automatic backups of {thing} go with it. Delete its backups, with its name typed: manual ones stay."
        )
    if isinstance(thing, Source):
        _let_go(thing, actor=actor, now=now)
    _check_unused(thing, name or "")
    record(actor, f"{name}.delete", thing, account=thing.account, now=now)
    try:
        thing.delete()
    except models.ProtectedError as error:
        raise InUse(f"A plan uses this {name} since a moment ago. Delete the plan first.") from error


def _check_unused(thing: Source | Policy, name: str) -> None:
    """Raise InUse with the names of the first plans that use the thing, and how many there are."""
    count = thing.plans.count()
    if not count:
        return
    first = thing.plans.select_related("source", "policy", "vault").order_by("source__name", "vault__name")[:LISTED_MAX]
    told = [str(plan) for plan in first]
    more = f" and {count - len(told)} more" if count > len(told) else ""
    use = "1 plan uses" if count == 1 else f"{count} plans use"
    raise InUse(
        f"{use} this {name}: {', '.join(told)}{more}. Delete {'it' if count == 1 else 'them'} first.",
        count=count,
        plans=[{"id": str(plan.pk), "name": text} for plan, text in zip(first, told, strict=True)],
    )


def _let_go(source: Source, *, actor: Actor, now: dt.datetime) -> None:
    for plan in source.plans.exclude(account=source.account_id).select_related("account", "policy"):
        if grants.holds(plan.account, source, now=now):
            raise InUse(f"{plan.account} backs {source} up by your grant. Revoke it first.")
        remove_plan(plan, actor=actor, now=now)
