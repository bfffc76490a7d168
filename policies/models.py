"""WHAT, WHEN, HOW LONG: sources, policies, and the plans that bind them to a vault."""

import datetime as dt
import uuid
from typing import Any, ClassVar

from django.core.exceptions import ValidationError
from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models
from django.db.models.signals import post_delete
from django.dispatch import receiver

from accounts.models import Account
from accounts.refusals import Refused
from policies import schedule
from vaults.models import Region, Vault, VaultState
from vaults.models import validate_time_zone as validate_time_zone  # migrations look for it here

RETENTION_DAYS_MAX = 364_635
KEPT_MAX = 10_000
TAGS_MAX = 20
TAG_CHARS_MAX = 64
STARTS_ON = (dt.date(1970, 1, 1), dt.date(2999, 12, 31))


def _kept(text: str) -> models.PositiveSmallIntegerField[int, int]:
    """Return the field of a rule that counts points or periods; 0 keeps nothing."""
    return models.PositiveSmallIntegerField(default=0, validators=[MaxValueValidator(KEPT_MAX)], help_text=text)


class VaultFixed(Refused):
    """A plan that began as a trial keeps its vault for ever (A12)."""

    code = "vault_fixed"


def validate_tags(tags: Any) -> None:
    """Refuse what is not a mapping of a few short names to short texts."""
    pairs = [*tags, *tags.values()] if isinstance(tags, dict) else [None]
    if any(not isinstance(text, str) or not 0 < len(text) <= TAG_CHARS_MAX for text in pairs) or len(tags) > TAGS_MAX:
        raise ValidationError(
            f"Give at most {TAGS_MAX} tags as names and values, each a text of 1 to {TAG_CHARS_MAX} characters.",
            code="invalid_tags",
        )
    if numbers := [name for name in tags if name.lstrip("-").isdecimal()]:
        raise ValidationError(f"The name of a tag has a letter: {', '.join(numbers)}.", code="invalid_tags")


class SourceKind(models.TextChoices):
    """What can be protected; policies.kinds says how each is read."""

    FILES = "files", "Files of a host"
    SMB = "smb", "SMB share"
    BUCKET = "bucket", "Bucket (S3, OSS)"
    POSTGRES = "postgres", "PostgreSQL"
    MARIADB = "mariadb", "MariaDB or MySQL"
    MILVUS = "milvus", "Milvus cluster"
    TABLESTORE = "tablestore", "Tablestore instance"
    DYNAMODB = "dynamodb", "DynamoDB tables"
    COMMAND = "command", "Output of a program"
    BACKINT = "backint", "SAP HANA (Backint)"


class Source(models.Model):
    """A thing to protect and how to read it.

    `settings` and `credentials`, the latter sealed, are what its kind says (policies.kinds). `tags` are free pairs of
    name and value, by which rules of policies choose sources.
    `host` names the machine whose worker reads it, empty when any worker of the region does; `region` is the region
    that the machine, or the service behind it, belongs to (C25).
    `warnings` is what the last save found worth knowing, e.g. other file systems mounted inside (B28).
    `checked_at` and `check_error` are when the connection was tried last, and what was wrong, empty for nothing.
    `erasing_since` is set once a person asked to delete all its points (C32): it takes no plans any more and goes with
    its last point. `erase_next_at` is when to look again, `erase_ends_at` when the last lock ends, as far as known.
    """

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    account = models.ForeignKey(Account, on_delete=models.PROTECT, related_name="sources")
    region = models.ForeignKey(Region, on_delete=models.PROTECT, related_name="sources")
    name = models.CharField(max_length=64)
    kind = models.CharField(max_length=32, choices=SourceKind.choices, default=SourceKind.FILES)
    host = models.CharField(max_length=255, blank=True)
    settings = models.JSONField(default=dict)
    credentials = models.TextField(blank=True, editable=False)
    tags = models.JSONField(default=dict, blank=True, validators=[validate_tags])
    warnings = models.JSONField(default=list, editable=False)
    checked_at = models.DateTimeField(null=True, editable=False)
    check_error = models.TextField(blank=True, editable=False)
    erasing_since = models.DateTimeField(null=True, editable=False)
    erase_next_at = models.DateTimeField(null=True, editable=False, db_index=True)
    erase_ends_at = models.DateTimeField(null=True, editable=False)
    created_at = models.DateTimeField(editable=False)

    # Another account may be granted to back it up (B8).
    is_grantable: ClassVar[bool] = True

    class Meta:
        ordering: ClassVar = ["name"]
        constraints: ClassVar = [models.UniqueConstraint(fields=["account", "name"], name="one_source_per_name")]

    def __str__(self) -> str:
        return self.name

    @property
    def series(self) -> str:
        """Return the name of this source's points in any vault."""
        return str(self.pk)

    @property
    def queue(self) -> str:
        """Return the queue that the worker on the source's host serves, or all workers of its region."""
        return f"host.{self.host}" if self.host else self.region.queue


def validate_cron(text: str) -> None:
    """Refuse what is not a five-field cron expression."""
    try:
        schedule.check_cron(text)
    except ValueError as error:
        raise ValidationError(str(error), code="invalid_cron") from error


def validate_weekdays(days: Any) -> None:
    """Refuse what is not a list of different days, 1 Monday to 7 Sunday."""
    listed = days if isinstance(days, list) else [None]
    if any(type(day) is not int or not 1 <= day <= 7 for day in listed) or len(set(listed)) != len(listed):
        raise ValidationError("Give different days from 1, Monday, to 7, Sunday.", code="invalid_weekdays")


class Unit(models.TextChoices):
    """The period units of a schedule (B4)."""

    HOUR = "hour", "Hours"
    DAY = "day", "Days"
    WEEK = "week", "Weeks"
    MONTH = "month", "Months"
    YEAR = "year", "Years"


class Policy(models.Model):
    """Reusable rules: when to back up (its `rules`), how long to keep, how often to prove that a restore works.

    All times of day are in `time_zone`. `retention_days` None keeps for ever; a rule may keep what it makes for another
    time. Beyond that a point stays while a count of any policy of its source in its vault keeps it. `keep_at_least_one`
    keeps the newest point and the newest complete one (C9); switched off, it still counts until `keep_one_until` (C34).
    One that is `inline` belongs to one plan, comes and goes with it, and stands in no list (B17, B19). `limits` say
    how fast backups run (vaults.limits). `vault` is where sources go that a rule binds by their tags;
    `tags_changed_at` is since when it may be that they are not bound yet as the rules say (policies.tagging).
    """

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    account = models.ForeignKey(Account, on_delete=models.PROTECT, related_name="policies")
    name = models.CharField(max_length=64)
    inline = models.BooleanField(default=False, editable=False)
    vault = models.ForeignKey(Vault, null=True, blank=True, on_delete=models.PROTECT, related_name="policies")
    time_zone = models.CharField(max_length=64, default="UTC", validators=[validate_time_zone])
    retention_days = models.PositiveIntegerField(
        null=True,
        blank=True,
        default=30,
        validators=[MinValueValidator(1), MaxValueValidator(RETENTION_DAYS_MAX)],
        help_text="Days from completion; empty keeps the points until a person deletes them",
    )
    keep_last = _kept("Newest points to keep")
    keep_daily = _kept("Days of which the first complete point is kept")
    keep_weekly = _kept("Weeks of which the first complete point is kept")
    keep_monthly = _kept("Months of which the first complete point is kept")
    keep_yearly = _kept("Years of which the first complete point is kept")
    keep_at_least_one = models.BooleanField(
        default=True, help_text="The newest point is never deleted, even when its retention is over"
    )
    keep_one_until = models.DateTimeField(null=True, editable=False, db_index=True)
    tags_changed_at = models.DateTimeField(null=True, editable=False)
    drill_every_days = models.PositiveSmallIntegerField(
        default=0,
        validators=[MaxValueValidator(3660)],
        help_text="Days between two trial restores of the newest point; 0 is never",
    )
    drill_percent = models.PositiveSmallIntegerField(
        default=100,
        validators=[MinValueValidator(1), MaxValueValidator(100)],
        help_text="Share of the point's files that a trial restore takes",
    )
    limits = models.JSONField(default=dict, blank=True)
    created_at = models.DateTimeField(editable=False)

    class Meta:
        ordering: ClassVar = ["name"]
        verbose_name_plural = "policies"
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["account", "name"], condition=models.Q(inline=False), name="one_policy_per_name"
            ),
            models.CheckConstraint(
                condition=models.Q(retention_days=None)
                | models.Q(retention_days__gte=1, retention_days__lte=RETENTION_DAYS_MAX),
                name="retention_days_in_range",
            ),
        ]
        indexes: ClassVar = [
            models.Index(
                fields=["tags_changed_at"],
                condition=models.Q(tags_changed_at__isnull=False),
                name="policy_to_bind",
            )
        ]

    def __str__(self) -> str:
        return self.name


class RuleType(models.TextChoices):
    """What a rule of a policy says: when to back up, where copies go, which sources the policy takes by itself."""

    BACKUP = "backup", "Backup"
    REPLICATION = "replication", "Replication"
    TAG = "tag", "Tags"


class Rule(models.Model):
    """One rule of a policy; one of type backup at least.

    A backup rule's schedule is either `cron`, or every `every` `unit`s since `starts_on` at `start_time`, on `weekdays`
    (1 Monday to 7 Sunday) when there are some; without a start time each plan draws its own between 00:00 and 06:00,
    once (C8). With `window_minutes` the start is drawn anew for each run, inside the window that begins then (D14).
    `retention_days` is for what this rule makes, None is as the policy says. `settings` are what other types say: of a
    rule of type tag the `tags` that a source must have, all of them; of a replication, which has nothing else, the
    `region` that copies go to, and the `vault` there by its name, if one is chosen already (policies.copies).
    """

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    policy = models.ForeignKey(Policy, on_delete=models.CASCADE, related_name="rules")
    position = models.PositiveSmallIntegerField(default=1)
    type = models.CharField(max_length=12, choices=RuleType.choices, default=RuleType.BACKUP)
    cron = models.CharField(max_length=120, blank=True, validators=[validate_cron])
    every = models.PositiveSmallIntegerField(default=1, validators=[MinValueValidator(1), MaxValueValidator(1000)])
    unit = models.CharField(max_length=8, choices=Unit.choices, default=Unit.DAY)
    weekdays = models.JSONField(default=list, blank=True, validators=[validate_weekdays])
    starts_on = models.DateField(
        default=dt.date(2024, 1, 1),
        validators=[MinValueValidator(STARTS_ON[0]), MaxValueValidator(STARTS_ON[1])],
    )
    start_time = models.TimeField(null=True, blank=True)
    window_minutes = models.PositiveSmallIntegerField(default=0, validators=[MaxValueValidator(schedule.DAY_MINUTES)])
    retention_days = models.PositiveIntegerField(
        null=True,
        blank=True,
        validators=[MinValueValidator(1), MaxValueValidator(RETENTION_DAYS_MAX)],
        help_text="Days from completion for what this rule makes; empty is what the policy says",
    )
    settings = models.JSONField(default=dict, blank=True)

    class Meta:
        ordering: ClassVar = ["policy", "position"]
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["policy", "position"], name="one_rule_per_position"),
            models.CheckConstraint(
                condition=models.Q(retention_days=None)
                | models.Q(retention_days__gte=1, retention_days__lte=RETENTION_DAYS_MAX),
                name="rule_retention_days_in_range",
            ),
        ]

    def __str__(self) -> str:
        return f"Rule {self.position} of {self.policy}"

    def clean(self) -> None:
        """Refuse parts that don't fit together. Raises ValidationError by field."""
        if self.type == RuleType.TAG:
            if set(self.settings) != {"tags"} or not self.settings["tags"]:
                raise ValidationError({"settings": 'Name the tags that sources must have: {"tags": {"team": "web"}}.'})
            try:
                validate_tags(self.settings["tags"])
            except ValidationError as error:
                raise ValidationError({"settings": error.messages}) from error
        elif self.type == RuleType.REPLICATION:
            named = [self.settings.get("region"), self.settings.get("vault", "any")]
            if set(self.settings) - {"region", "vault"} or not all(isinstance(name, str) and name for name in named):
                raise ValidationError({"settings": 'Name the region to copy to: {"region": "far", "vault": "copies"}.'})
            self._check_continuous()
        elif not self.cron:
            self._check_calendar()

    def _check_continuous(self) -> None:
        """Refuse a replication that says when (E48), or how long its copies stay (E15)."""
        blank = Rule()
        for name in ("cron", "every", "unit", "weekdays", "start_time", "window_minutes"):
            if getattr(self, name) != getattr(blank, name):
                raise ValidationError({name: "A replication has no schedule: each point goes once it is there."})
        if self.retention_days is not None:
            told = "Copies stay as long as their points at the source: leave it empty."
            raise ValidationError({"retention_days": told})

    def _check_calendar(self) -> None:
        if self.weekdays and self.unit not in (Unit.DAY, Unit.WEEK):
            raise ValidationError({"weekdays": "Weekdays go with days or weeks: choose one of these as the unit."})
        if self.weekdays and self.unit == Unit.DAY and self.every != 1:
            raise ValidationError({"weekdays": "Weekdays go with every day, or every so many weeks: choose weeks."})
        if self.unit == Unit.HOUR and self.window_minutes > self.every * 60:
            raise ValidationError({"window_minutes": "The window is longer than the time from one run to the next."})


class CopyRequest(models.Model):
    """That a rule asks for a vault to be replicated, until that has begun (policies.copies).

    `error` is what was wrong at the last try, empty before the first.
    """

    vault = models.OneToOneField(Vault, on_delete=models.CASCADE, related_name="copy_request")
    rule = models.ForeignKey(Rule, on_delete=models.CASCADE, related_name="copy_requests")
    next_try_at = models.DateTimeField(db_index=True)
    error = models.TextField(blank=True)

    def __str__(self) -> str:
        return f"{self.vault}: {self.rule}"


class Edition(models.TextChoices):
    """The kinds of plans that users know: which rules are fixed, and within which limits the others lie."""

    STANDARD = "standard", "Standard"
    ESSENTIAL = "essential", "Essential host backup"
    TRIAL = "trial", "Trial of a bucket"
    CLUSTER = "cluster", "Automatic backup of a cluster"


class Priority(models.TextChoices):
    """How much of a host a backup may take; policies.editions says how much that is (C10, C15)."""

    LOW = "low", "Low"
    HIGH = "high", "High"


class PlanState(models.TextChoices):
    ACTIVE = "active", "Active"
    PAUSED = "paused", "Paused"


class PlanQuerySet(models.QuerySet["Plan"]):
    def due(self, now: dt.datetime) -> "PlanQuerySet":
        """Return the active plans whose moment has come, the longest waiting first; none whose rules just changed."""
        found = self.filter(state=PlanState.ACTIVE, next_run_at__lte=now, rules_changed_at=None)
        return found.order_by("next_run_at", "pk")

    def drill_due(self, now: dt.datetime) -> "PlanQuerySet":
        """Return the plans, also paused ones, whose newest point is to be restored on trial."""
        return self.filter(next_drill_at__lte=now, vault__state=VaultState.READY).order_by("next_drill_at")


class Plan(models.Model):
    """The binding source x policy x vault (B16). `next_run_at` is when it is due, by `next_rule`; None while paused.

    `start_minute` is the minute after midnight drawn for this plan, used when a rule has no start time; `start_time`
    takes the place of both (C38). `time_zone` empty is the policy's. No run lies before `start_not_before`.
    `last_run_at` is the moment that was due last, by `last_rule`, whatever became of it. `priority` counts in editions
    that have one. `rules_changed_at` is since when the plan waits for its next moment by other rules
    (policies.rescheduling): it starts nothing meanwhile.
    `by_tags` says that a rule of the policy made the plan and takes it back. `former_rules` tells, by the id of each
    rule of the policy that it had before, for how many days what that made stays (B20).
    `catch_up` runs a missed moment late instead of recording it as missed. `next_drill_at` is when the newest point is
    restored on trial.
    """

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    account = models.ForeignKey(Account, on_delete=models.PROTECT, related_name="plans")
    source = models.ForeignKey(Source, on_delete=models.PROTECT, related_name="plans")
    policy = models.ForeignKey(Policy, on_delete=models.PROTECT, related_name="plans")
    vault = models.ForeignKey(Vault, on_delete=models.PROTECT, related_name="plans")
    edition = models.CharField(max_length=12, choices=Edition.choices, default=Edition.STANDARD, editable=False)
    state = models.CharField(max_length=8, choices=PlanState.choices, default=PlanState.ACTIVE)
    priority = models.CharField(max_length=4, choices=Priority.choices, default=Priority.LOW, editable=False)
    time_zone = models.CharField(max_length=64, blank=True, validators=[validate_time_zone])
    start_not_before = models.DateTimeField(null=True, blank=True)
    start_time = models.TimeField(null=True, blank=True, editable=False)
    start_minute = models.PositiveSmallIntegerField(editable=False)
    catch_up = models.BooleanField(default=False)
    next_run_at = models.DateTimeField(null=True, db_index=True, editable=False)
    next_rule = models.ForeignKey(Rule, null=True, on_delete=models.SET_NULL, related_name="+", editable=False)
    last_run_at = models.DateTimeField(null=True, editable=False)
    last_rule = models.ForeignKey(Rule, null=True, on_delete=models.SET_NULL, related_name="+", editable=False)
    rules_changed_at = models.DateTimeField(null=True, editable=False)
    by_tags = models.BooleanField(default=False, editable=False)
    former_rules = models.JSONField(default=dict, editable=False)
    next_drill_at = models.DateTimeField(null=True, db_index=True, editable=False)
    created_at = models.DateTimeField(editable=False)

    objects = PlanQuerySet.as_manager()

    class Meta:
        ordering: ClassVar = ["-created_at"]
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["source", "policy", "vault"], name="one_plan_per_binding"),
            models.UniqueConstraint(
                fields=["source"], condition=models.Q(edition=Edition.TRIAL), name="one_trial_per_source"
            ),
            models.UniqueConstraint(
                fields=["source"], condition=models.Q(edition=Edition.ESSENTIAL), name="one_essential_plan_per_source"
            ),
            models.UniqueConstraint(
                fields=["source"], condition=models.Q(edition=Edition.CLUSTER), name="one_automatic_plan_per_cluster"
            ),
        ]
        indexes: ClassVar = [
            models.Index(
                fields=["rules_changed_at"],
                condition=models.Q(rules_changed_at__isnull=False),
                name="plan_to_reschedule",
            )
        ]

    def __str__(self) -> str:
        return f"{self.source} → {self.vault} ({self.policy})"

    def save(self, *args: Any, **kwargs: Any) -> None:
        """Store the row. Raises VaultFixed for another vault than the one that a trial made for it (A12)."""
        fields = kwargs.get("update_fields")
        if not self._state.adding and (fields is None or "vault" in fields):
            kept = Vault.objects.filter(plans=self.pk).exclude(pk=self.vault_id).first()
            if kept and kept.trial_started_at:
                raise VaultFixed(
                    f"{kept} was made for this plan's trial and stays its vault for ever. To store in another vault, "
                    "make another plan."
                )
        super().save(*args, **kwargs)


@receiver(post_delete, sender=Plan)
def drop_own_policy(sender: Any, instance: Plan, **_: Any) -> None:
    """Let a policy that belongs to one plan go with it (B17)."""
    Policy.objects.filter(pk=instance.policy_id, inline=True).delete()
