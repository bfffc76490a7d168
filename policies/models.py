"""WHAT, WHEN, HOW LONG: sources, policies, and the plans that bind them to a vault."""

import datetime as dt
import uuid
import zoneinfo
from typing import ClassVar

from django.core.exceptions import ValidationError
from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models

from accounts.models import Account
from policies import schedule
from vaults.models import Region, Vault, VaultState

RETENTION_DAYS_MAX = 364_635
KEPT_MAX = 10_000


def _kept(text: str) -> models.PositiveSmallIntegerField[int, int]:
    """Return the field of a rule that counts points or periods; 0 keeps nothing."""
    return models.PositiveSmallIntegerField(default=0, validators=[MaxValueValidator(KEPT_MAX)], help_text=text)


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

    `settings` and `credentials`, the latter sealed, are what its kind says (policies.kinds).
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
    warnings = models.JSONField(default=list, editable=False)
    checked_at = models.DateTimeField(null=True, editable=False)
    check_error = models.TextField(blank=True, editable=False)
    erasing_since = models.DateTimeField(null=True, editable=False)
    erase_next_at = models.DateTimeField(null=True, editable=False, db_index=True)
    erase_ends_at = models.DateTimeField(null=True, editable=False)
    created_at = models.DateTimeField(editable=False)

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


def validate_time_zone(name: str) -> None:
    """Refuse names that the time zone database does not know."""
    try:
        zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ValidationError(
            f"There is no time zone {name!r}. Use a name like Europe/Berlin.", code="invalid_zone"
        ) from error


class Unit(models.TextChoices):
    """The period units of a schedule (B4)."""

    HOUR = "hour", "Hours"
    DAY = "day", "Days"
    WEEK = "week", "Weeks"
    MONTH = "month", "Months"
    YEAR = "year", "Years"


class Policy(models.Model):
    """Reusable rules: when to back up, how long to keep, how often to prove that a restore works.

    The schedule is either `cron`, or every `every` `unit`s since `starts_on` at `start_time`; without a start time each
    plan draws its own between 00:00 and 06:00, once (C8). All in `time_zone`. `retention_days` None keeps for ever.
    A point stays while any rule of any policy that its source has in its vault keeps it. `keep_at_least_one` keeps the
    newest point and the newest complete one (C9); switched off, it still counts until `keep_one_until` (C34).
    """

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    account = models.ForeignKey(Account, on_delete=models.PROTECT, related_name="policies")
    name = models.CharField(max_length=64)
    cron = models.CharField(max_length=120, blank=True, validators=[validate_cron])
    every = models.PositiveSmallIntegerField(default=1, validators=[MinValueValidator(1), MaxValueValidator(1000)])
    unit = models.CharField(max_length=8, choices=Unit.choices, default=Unit.DAY)
    starts_on = models.DateField(default=dt.date(2024, 1, 1))
    start_time = models.TimeField(null=True, blank=True)
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
    options = models.JSONField(default=dict, blank=True)
    created_at = models.DateTimeField(editable=False)

    class Meta:
        ordering: ClassVar = ["name"]
        verbose_name_plural = "policies"
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["account", "name"], name="one_policy_per_name"),
            models.CheckConstraint(
                condition=models.Q(retention_days=None)
                | models.Q(retention_days__gte=1, retention_days__lte=RETENTION_DAYS_MAX),
                name="retention_days_in_range",
            ),
        ]

    def __str__(self) -> str:
        return self.name


class PlanState(models.TextChoices):
    ACTIVE = "active", "Active"
    PAUSED = "paused", "Paused"


class PlanQuerySet(models.QuerySet["Plan"]):
    def due(self, now: dt.datetime) -> "PlanQuerySet":
        """Return the active plans whose moment has come, the longest waiting first."""
        return self.filter(state=PlanState.ACTIVE, next_run_at__lte=now).order_by("next_run_at")

    def drill_due(self, now: dt.datetime) -> "PlanQuerySet":
        """Return the plans, also paused ones, whose newest point is to be restored on trial."""
        return self.filter(next_drill_at__lte=now, vault__state=VaultState.READY).order_by("next_drill_at")


class Plan(models.Model):
    """The binding source x policy x vault (B16). `next_run_at` is when it becomes due; None while paused.

    `start_minute` is the minute after midnight drawn for this plan, used when its policy has no start time.
    `catch_up` runs a missed moment late instead of recording it as missed. `next_drill_at` is when the newest point is
    restored on trial.
    """

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    account = models.ForeignKey(Account, on_delete=models.PROTECT, related_name="plans")
    source = models.ForeignKey(Source, on_delete=models.PROTECT, related_name="plans")
    policy = models.ForeignKey(Policy, on_delete=models.PROTECT, related_name="plans")
    vault = models.ForeignKey(Vault, on_delete=models.PROTECT, related_name="plans")
    state = models.CharField(max_length=8, choices=PlanState.choices, default=PlanState.ACTIVE)
    start_minute = models.PositiveSmallIntegerField(editable=False)
    catch_up = models.BooleanField(default=False)
    next_run_at = models.DateTimeField(null=True, db_index=True, editable=False)
    next_drill_at = models.DateTimeField(null=True, db_index=True, editable=False)
    created_at = models.DateTimeField(editable=False)

    objects = PlanQuerySet.as_manager()

    class Meta:
        ordering: ClassVar = ["-created_at"]
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["source", "policy", "vault"], name="one_plan_per_binding")
        ]

    def __str__(self) -> str:
        return f"{self.source} → {self.vault} ({self.policy})"
