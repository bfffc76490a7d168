"""What somebody should hear of: alerts, the rules that say who, the channels that carry them, and each delivery.

jobs.models names them too, so that they are rows of the app `jobs`.
"""

import datetime as dt
import uuid
from typing import ClassVar

from django.core.exceptions import ValidationError
from django.core.validators import MaxValueValidator
from django.db import models

from accounts.models import Account
from policies.models import Plan, Source
from vaults.models import ReplicationLink, Vault, validate_time_zone

HOURS_MAX = 8784


class AlertType(models.TextChoices):
    """What happened. The values are for programs and never change."""

    BACKUP_FAILED = "backup_failed", "Backup failed"
    BACKUP_MISSED = "backup_missed", "Backup missed"
    BACKUP_SKIPPED = "backup_skipped", "Backup skipped"
    BACKUP_PARTIAL = "backup_partial", "Backup partially complete"
    BACKUP_OVERDUE = "backup_overdue", "No backup for long"
    BACKUP_LARGE = "backup_large", "Large backup"
    RESTORE_FAILED = "restore_failed", "Restore failed"
    DRILL_FAILED = "drill_failed", "Trial restore failed"
    VAULT_DAMAGED = "vault_damaged", "Vault damaged"
    LOCKS_BROKEN = "locks_broken", "Locks broken"
    REPLICATION_FAILED = "replication_failed", "Replication failed"
    REPLICATION_LATE = "replication_late", "Replication is late"
    MAINTENANCE_FAILED = "maintenance_failed", "Maintenance failed"
    QUOTA = "quota", "Quota"
    CHANNEL_FAILED = "channel_failed", "Channel failed"


class Severity(models.IntegerChoices):
    INFO = 1, "Info"
    WARNING = 2, "Warning"
    CRITICAL = 3, "Critical"


class AlertState(models.TextChoices):
    OPEN = "open", "Open"
    RESOLVED = "resolved", "Resolved"


class ChannelKind(models.TextChoices):
    EMAIL = "email", "E-mail"
    WEBHOOK = "webhook", "Webhook"
    APPRISE = "apprise", "Chat and others (Apprise)"


class Channel(models.Model):
    """A way out of the console. `settings` is open, `secrets` sealed; of the latter `shown` tells what may be seen.

    E-mail: settings `roles` and `addresses`. Webhook: secrets `url`, `secret`. Apprise: secrets `url`.
    `failures` counts sends in a row that failed; while there are some, one at a time is tried, not before `retry_at`.
    The default one of an account (e-mail to owners and administrators) can be switched off, not deleted.
    """

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    account = models.ForeignKey(Account, on_delete=models.CASCADE, related_name="channels")
    name = models.CharField(max_length=64)
    kind = models.CharField(max_length=8, choices=ChannelKind.choices)
    enabled = models.BooleanField(default=True)
    settings = models.JSONField(default=dict, blank=True)
    secrets = models.TextField(blank=True, editable=False)
    shown = models.CharField(max_length=255, blank=True, editable=False)
    is_default = models.BooleanField(default=False, editable=False)
    failures = models.PositiveIntegerField(default=0, editable=False)
    retry_at = models.DateTimeField(null=True, editable=False)
    created_at = models.DateTimeField(editable=False)

    class Meta:
        ordering: ClassVar = ["name"]
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["account"], condition=models.Q(is_default=True), name="one_default_channel")
        ]

    def __str__(self) -> str:
        return self.name

    @property
    def secret_context(self) -> str:
        """Return the context that binds sealed secrets to this row."""
        return f"channel:{self.pk}"


def validate_types(value: object) -> None:
    """Refuse what is not a list of alert types."""
    if not isinstance(value, list) or not all(one in AlertType.values for one in value):
        raise ValidationError(f"Give a list of these: {', '.join(AlertType.values)}.", code="invalid_types")


class Builtin(models.TextChoices):
    """The rules that every account has: all of it into the inbox, what is critical by e-mail too (C21)."""

    INBOX = "inbox", "Inbox"
    EMAIL = "email", "E-mail"


class AlertRule(models.Model):
    """Which alerts of an account go where (C21). All rules that fit count.

    `types` empty is all; `source`, `vault` and `plan` narrow it down. `inbox` is the list in the console.
    Between `quiet_from` and `quiet_until`, wall clock in `time_zone`, deliveries of what is not critical wait.
    Those that every account has (`builtin`) can be changed and switched off, not deleted.
    """

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    account = models.ForeignKey(Account, on_delete=models.CASCADE, related_name="alert_rules")
    name = models.CharField(max_length=64)
    enabled = models.BooleanField(default=True)
    builtin = models.CharField(max_length=8, choices=Builtin.choices, blank=True, editable=False)
    types = models.JSONField(default=list, blank=True, validators=[validate_types])
    severity_min = models.PositiveSmallIntegerField(choices=Severity.choices, default=Severity.WARNING)
    source = models.ForeignKey(Source, null=True, blank=True, on_delete=models.CASCADE, related_name="+")
    vault = models.ForeignKey(Vault, null=True, blank=True, on_delete=models.CASCADE, related_name="+")
    plan = models.ForeignKey(Plan, null=True, blank=True, on_delete=models.CASCADE, related_name="+")
    inbox = models.BooleanField(default=True, help_text="Show them in the console")
    channels = models.ManyToManyField(Channel, blank=True, related_name="rules")
    tell_resolved = models.BooleanField(default=True, help_text="Tell also when the trouble is over")
    quiet_from = models.TimeField(null=True, blank=True)
    quiet_until = models.TimeField(null=True, blank=True)
    time_zone = models.CharField(max_length=64, default="UTC", validators=[validate_time_zone])
    created_at = models.DateTimeField(editable=False)

    class Meta:
        ordering: ClassVar = ["name"]
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["account", "builtin"], condition=~models.Q(builtin=""), name="one_builtin_alert_rule"
            )
        ]

    def __str__(self) -> str:
        return self.name


class SilenceQuerySet(models.QuerySet["Silence"]):
    def in_force(self, now: dt.datetime) -> "SilenceQuerySet":
        """Return the silences that last, those that end latest first."""
        return self.filter(until__gt=now).order_by("-until")


class Silence(models.Model):
    """Until when alerts of one type, source, vault or plan are not delivered, why, and who said so.

    What is empty fits everything. Ended early by moving `until`.
    """

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    account = models.ForeignKey(Account, on_delete=models.CASCADE, related_name="silences")
    type = models.CharField(max_length=20, choices=AlertType.choices, blank=True)
    source = models.ForeignKey(Source, null=True, blank=True, on_delete=models.CASCADE, related_name="+")
    vault = models.ForeignKey(Vault, null=True, blank=True, on_delete=models.CASCADE, related_name="+")
    plan = models.ForeignKey(Plan, null=True, blank=True, on_delete=models.CASCADE, related_name="+")
    until = models.DateTimeField()
    reason = models.CharField(max_length=255)
    created_by = models.CharField(max_length=150, editable=False)
    created_at = models.DateTimeField(editable=False)

    objects = SilenceQuerySet.as_manager()

    class Meta:
        ordering: ClassVar = ["-until", "-id"]
        indexes: ClassVar = [models.Index(fields=["account", "-until"], name="silence_by_account")]

    def __str__(self) -> str:
        what = [self.get_type_display() if self.type else "", *(str(one or "") for one in self.parts)]
        return ", ".join(part for part in what if part) or "everything"

    @property
    def parts(self) -> tuple[Source | None, Vault | None, Plan | None]:
        """Return what the silence is narrowed down to."""
        return self.source, self.vault, self.plan


class AlertQuerySet(models.QuerySet["Alert"]):
    def open(self) -> "AlertQuerySet":
        """Return the alerts whose trouble goes on."""
        return self.filter(state=AlertState.OPEN)

    def unheeded(self, now: dt.datetime) -> "AlertQuerySet":
        """Return the open alerts of the inbox that nobody acknowledged or silenced."""
        loud = models.Q(silenced_until=None) | models.Q(silenced_until__lte=now)
        return self.open().filter(loud, in_inbox=True, acknowledged_at=None)

    def unrouted(self, now: dt.datetime) -> "AlertQuerySet":
        """Return the alerts with a change that no rule has seen yet, and whose silence, if any, is over."""
        loud = models.Q(silenced_until=None) | models.Q(silenced_until__lte=now)
        return self.filter(loud, routed__lt=models.F("change")).order_by("last_at")


class Alert(models.Model):
    """One trouble, from its first sign until it is over. Changed by jobs.alerts and the services of alerts alone.

    `key` is what makes it the same trouble: while an alert is open, the next sign raises `count` and `last_at`.
    `change` counts what is worth telling: raised, more severe, resolved. `routed` is the last change that the rules
    have seen, `silenced_until` when they look again. `detail` is for programs. `job` is the last one concerned.
    """

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    account = models.ForeignKey(Account, on_delete=models.CASCADE, related_name="alerts")
    type = models.CharField(max_length=20, choices=AlertType.choices)
    severity = models.PositiveSmallIntegerField(choices=Severity.choices)
    state = models.CharField(max_length=8, choices=AlertState.choices, default=AlertState.OPEN)
    key = models.CharField(max_length=200)
    title = models.CharField(max_length=255)
    text = models.TextField(blank=True)
    detail = models.JSONField(default=dict)
    source = models.ForeignKey(Source, null=True, on_delete=models.SET_NULL, related_name="alerts")
    vault = models.ForeignKey(Vault, null=True, on_delete=models.SET_NULL, related_name="alerts")
    plan = models.ForeignKey(Plan, null=True, on_delete=models.SET_NULL, related_name="alerts")
    job = models.ForeignKey("jobs.Job", null=True, on_delete=models.SET_NULL, related_name="alerts")
    count = models.PositiveIntegerField(default=1)
    change = models.PositiveIntegerField(default=1)
    routed = models.PositiveIntegerField(default=0)
    in_inbox = models.BooleanField(default=False)
    silenced_until = models.DateTimeField(null=True)
    first_at = models.DateTimeField()
    last_at = models.DateTimeField()
    resolved_at = models.DateTimeField(null=True)
    acknowledged_at = models.DateTimeField(null=True)
    acknowledged_by = models.CharField(max_length=150, blank=True)

    objects = AlertQuerySet.as_manager()

    class Meta:
        ordering: ClassVar = ["-last_at", "-id"]
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["account", "key"], condition=models.Q(state=AlertState.OPEN), name="one_open_alert_per_key"
            )
        ]
        indexes: ClassVar = [
            models.Index(fields=["account", "-last_at"], name="alert_by_account"),
            models.Index(fields=["last_at"], condition=models.Q(routed__lt=models.F("change")), name="alert_unrouted"),
            models.Index(fields=["state", "resolved_at"], name="alert_by_state"),
        ]

    def __str__(self) -> str:
        return self.title


class Told(models.TextChoices):
    """What a delivery tells."""

    RAISED = "raised", "Raised"
    RESOLVED = "resolved", "Resolved"
    TEST = "test", "Test"


class DeliveryState(models.TextChoices):
    """`dropped`: silenced, or its channel was switched off, before it was sent."""

    QUEUED = "queued", "Queued"
    SENDING = "sending", "Being sent"
    SENT = "sent", "Sent"
    GIVEN_UP = "given_up", "Given up"
    DROPPED = "dropped", "Dropped"


DELIVERY_OPEN = (DeliveryState.QUEUED, DeliveryState.SENDING)


class DeliveryQuerySet(models.QuerySet["Delivery"]):
    def due(self, now: dt.datetime) -> "DeliveryQuerySet":
        """Return what waits to be sent, or whose sender died, the longest waiting first.

        What a channel was to be told before comes first, and a channel that fails is left alone for a while.
        """
        waiting = models.Q(state__in=DELIVERY_OPEN, next_at__lte=now)
        rested = models.Q(channel__retry_at=None) | models.Q(channel__retry_at__lte=now)
        rested |= models.Q(told=Told.TEST)
        before = Delivery.objects.filter(
            alert=models.OuterRef("alert"), channel=models.OuterRef("channel"), state__in=DELIVERY_OPEN
        ).filter(change__lt=models.OuterRef("change"))
        return self.filter(waiting, rested).exclude(models.Exists(before)).order_by("next_at")


class Delivery(models.Model):
    """One change of one alert on its way through one channel; a test has no alert.

    Its id is the idempotency id that receivers see. `attempt` counts claims and is the fence. `next_at` is when it may
    be claimed: after the waiting time, or when its sender's lease ran out. So a crash between sending and noting it
    sends twice.
    """

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    channel = models.ForeignKey(Channel, on_delete=models.CASCADE, related_name="deliveries")
    alert = models.ForeignKey(Alert, null=True, on_delete=models.CASCADE, related_name="deliveries")
    change = models.PositiveIntegerField(default=0)
    told = models.CharField(max_length=8, choices=Told.choices)
    state = models.CharField(max_length=8, choices=DeliveryState.choices, default=DeliveryState.QUEUED)
    attempt = models.PositiveIntegerField(default=0)
    next_at = models.DateTimeField()
    rung_at = models.DateTimeField(null=True)
    error = models.TextField(blank=True)
    created_at = models.DateTimeField()
    ended_at = models.DateTimeField(null=True)

    objects = DeliveryQuerySet.as_manager()

    class Meta:
        ordering: ClassVar = ["-created_at", "-id"]
        verbose_name_plural = "deliveries"
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["alert", "channel", "change"], name="one_delivery_per_change")
        ]
        indexes: ClassVar = [
            models.Index(fields=["next_at"], condition=models.Q(state__in=DELIVERY_OPEN), name="delivery_open"),
            models.Index(fields=["channel", "-created_at"], name="delivery_by_channel"),
        ]

    def __str__(self) -> str:
        return f"{self.get_told_display()} through {self.channel}"


class Watch(models.Model):
    """What is looked at again and again because nothing happens there: a plan without backups, a replica that lags.

    `hours` is how long that may go on: None is the default (two runs of the plan's schedule in a row;
    REPLICATION_LATE_HOURS), 0 is for ever. `since` is from when the time of a plan counts: its last success, or when it
    was made or paused. `look_at` is when to look next.
    """

    plan = models.OneToOneField(Plan, null=True, on_delete=models.CASCADE, related_name="watch")
    link = models.OneToOneField(ReplicationLink, null=True, on_delete=models.CASCADE, related_name="watch")
    hours = models.PositiveIntegerField(null=True, validators=[MaxValueValidator(HOURS_MAX)])
    since = models.DateTimeField()
    look_at = models.DateTimeField(db_index=True)

    class Meta:
        ordering: ClassVar = ["look_at"]
        verbose_name_plural = "watches"
        constraints: ClassVar = [
            models.CheckConstraint(
                condition=models.Q(plan=None, link__isnull=False) | models.Q(plan__isnull=False, link=None),
                name="watch_of_one_thing",
            )
        ]

    def __str__(self) -> str:
        return f"Watch over {self.plan or self.link}"
