"""EVERY RUN: jobs, their steps and events, and the workers seen lately."""

import datetime as dt
import uuid
from typing import ClassVar

from django.conf import settings
from django.db import models

from accounts.models import Account
from jobs.alert_models import Alert, AlertRule, Channel, Delivery, Silence, Watch
from jobs.states import ACTIVE, DUTY_CHOICES, MAINTENANCE, STEP_OPEN, JobState, Kind, Lane, Stage, StepState, Trigger
from policies.models import Plan, Rule, Source
from vaults.models import RecoveryPoint, Vault, VaultState

__all__ = [
    "Alert",
    "AlertRule",
    "BeatLease",
    "Channel",
    "Delivery",
    "Duty",
    "Job",
    "JobEvent",
    "Silence",
    "Step",
    "SystemExport",
    "Watch",
    "Worker",
]


class JobQuerySet(models.QuerySet["Job"]):
    def active(self) -> "JobQuerySet":
        """Return the jobs that have not ended."""
        return self.filter(state__in=ACTIVE)


class Job(models.Model):
    """One run of one kind. Changed by jobs.services alone.

    `round` counts how often the job was planned: a planner that died is replaced in a new round, and the steps, units
    and results of earlier rounds count for nothing. `units_total` is known once `planned`; `units_done` of them have a
    result. `rule` is the policy's rule that asked for a backup. `settings` is what the person or the plan asked for, by
    kind (jobs.executors), `limits` how fast it may run (vaults.limits). `host` is the machine whose files a backup
    reads, empty for other work. `lane` says which other backups of its source a backup waits for. `passwords` is
    sealed: what a restore made anew, until somebody was shown it (D5).
    `frozen_at` is when its host was brought to rest, `thaw_due_at` when that ends at the latest (jobs.freezing).
    `samples` are the last looks at the counters, [seconds since 1970, entries, bytes], of which the speed is made
    (jobs.pace). `statistics` is what the job's end counted (jobs.course).
    """

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    account = models.ForeignKey(Account, on_delete=models.PROTECT, related_name="jobs")
    kind = models.CharField(max_length=12, choices=Kind.choices)
    state = models.CharField(max_length=20, choices=JobState.choices, default=JobState.CREATED)
    trigger = models.CharField(max_length=10, choices=Trigger.choices, default=Trigger.MANUAL)
    vault = models.ForeignKey(Vault, on_delete=models.PROTECT, related_name="jobs")
    source = models.ForeignKey(Source, null=True, on_delete=models.SET_NULL, related_name="jobs")
    plan = models.ForeignKey(Plan, null=True, on_delete=models.SET_NULL, related_name="jobs")
    rule = models.ForeignKey(Rule, null=True, on_delete=models.SET_NULL, related_name="+")
    point = models.ForeignKey(RecoveryPoint, null=True, on_delete=models.SET_NULL, related_name="jobs")
    requested_by = models.ForeignKey(settings.AUTH_USER_MODEL, null=True, on_delete=models.SET_NULL, related_name="+")
    scheduled_for = models.DateTimeField(null=True)
    settings = models.JSONField(default=dict)
    limits = models.JSONField(default=dict)
    host = models.CharField(max_length=255, blank=True)
    lane = models.CharField(max_length=10, choices=Lane.choices, default=Lane.ALL, blank=True)
    queue_work = models.CharField(max_length=300)
    queue_finish = models.CharField(max_length=300)

    round = models.PositiveIntegerField(default=0)
    stage = models.CharField(max_length=8, choices=Stage.choices, default=Stage.PLAN)
    planned = models.BooleanField(default=False)
    units_total = models.PositiveIntegerField(default=0)
    units_done = models.PositiveIntegerField(default=0)
    phase = models.CharField(max_length=32, blank=True)
    entries_total = models.PositiveBigIntegerField(default=0)
    bytes_total = models.PositiveBigIntegerField(default=0)
    entries_done = models.PositiveBigIntegerField(default=0)
    bytes_done = models.PositiveBigIntegerField(default=0)
    bytes_stored = models.PositiveBigIntegerField(default=0)
    problems_count = models.PositiveBigIntegerField(default=0)
    report = models.JSONField(default=dict)
    statistics = models.JSONField(default=dict)
    samples = models.JSONField(default=list)
    retry_of = models.ForeignKey("self", null=True, on_delete=models.SET_NULL, related_name="retries")
    passwords = models.TextField(blank=True, editable=False)
    error = models.TextField(blank=True)
    error_code = models.CharField(max_length=64, blank=True)
    frozen_at = models.DateTimeField(null=True, editable=False)
    thaw_due_at = models.DateTimeField(null=True, editable=False, db_index=True)
    thawed_at = models.DateTimeField(null=True, editable=False)
    cleaned = models.BooleanField(default=False)
    created_at = models.DateTimeField()
    started_at = models.DateTimeField(null=True)
    ended_at = models.DateTimeField(null=True)

    objects = JobQuerySet.as_manager()

    class Meta:
        ordering: ClassVar = ["-created_at", "-id"]
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["source", "lane"],
                condition=models.Q(kind=Kind.BACKUP, state__in=ACTIVE),
                name="one_active_backup_per_source",
            ),
            models.UniqueConstraint(
                fields=["account", "host"],
                condition=models.Q(kind=Kind.BACKUP, state__in=ACTIVE) & ~models.Q(host=""),
                name="one_active_backup_per_host",
            ),
            models.UniqueConstraint(
                fields=["plan", "scheduled_for"],
                condition=models.Q(scheduled_for__isnull=False),
                name="one_job_per_scheduled_moment",
            ),
            models.UniqueConstraint(
                fields=["vault", "kind"],
                condition=models.Q(state__in=ACTIVE)
                & (models.Q(kind__in=MAINTENANCE) | models.Q(kind=Kind.VERIFY, trigger=Trigger.SCHEDULED)),
                name="one_active_maintenance_per_kind",
            ),
            models.UniqueConstraint(
                fields=["source", "vault"],
                condition=models.Q(kind=Kind.DRILL, state__in=ACTIVE),
                name="one_active_drill_per_source",
            ),
        ]
        indexes: ClassVar = [
            models.Index(fields=["account", "-created_at"], name="job_by_account"),
            models.Index(fields=["state"], condition=models.Q(state__in=ACTIVE), name="job_active"),
            models.Index(fields=["cleaned", "state"], condition=models.Q(cleaned=False), name="job_uncleaned"),
            models.Index(
                fields=["ended_at"],
                condition=models.Q(state=JobState.COMPLETE, trigger=Trigger.SCHEDULED, plan=None),
                name="job_of_routine",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.get_kind_display()} {str(self.pk)[:8]}"

    @property
    def ended(self) -> bool:
        """Say whether nothing will change the job any more."""
        return self.state not in ACTIVE


class DutyQuerySet(models.QuerySet["Duty"]):
    def due(self, now: dt.datetime) -> "DutyQuerySet":
        """Return what is due in vaults that are ready, the longest waiting first."""
        return self.filter(due_at__lte=now, vault__state=VaultState.READY).order_by("due_at")


class Duty(models.Model):
    """What one vault needs done again and again: one kind of maintenance, when it is due next, and the last run.

    `due_at` None is never. `waiting` names the engine sessions that the last prune waited for; while there are some it
    is due again within minutes. Changed by jobs.maintenance alone.
    """

    vault = models.ForeignKey(Vault, on_delete=models.CASCADE, related_name="duties")
    kind = models.CharField(max_length=12, choices=DUTY_CHOICES)
    due_at = models.DateTimeField(null=True, db_index=True)
    last_job = models.ForeignKey(Job, null=True, on_delete=models.SET_NULL, related_name="+")
    waiting = models.JSONField(default=list)

    objects = DutyQuerySet.as_manager()

    class Meta:
        ordering: ClassVar = ["vault", "kind"]
        verbose_name_plural = "duties"
        constraints: ClassVar = [models.UniqueConstraint(fields=["vault", "kind"], name="one_duty_per_kind")]

    def __str__(self) -> str:
        return f"{self.get_kind_display()} of {self.vault}"


class StepQuerySet(models.QuerySet["Step"]):
    def open(self) -> "StepQuerySet":
        """Return the steps that are queued or running."""
        return self.filter(state__in=STEP_OPEN)

    def unclaimed(self, *, now: dt.datetime, rung_before: dt.datetime) -> "StepQuerySet":
        """Return the queued steps whose doorbell seems lost, and those whose waiting time after an error is over."""
        waited = models.Q(not_before__lte=now) & (models.Q(rung_at=None) | models.Q(rung_at__lt=models.F("not_before")))
        return self.filter(state=StepState.QUEUED, job__state__in=ACTIVE).filter(
            models.Q(not_before=None) & (models.Q(rung_at=None) | models.Q(rung_at__lte=rung_before))
            | waited
            | models.Q(not_before__lte=now, rung_at__lte=rung_before)
        )

    def stalled(self, now: dt.datetime) -> "StepQuerySet":
        """Return the running steps whose worker let the lease run out."""
        return self.filter(state=StepState.RUNNING, lease_until__lt=now)


class Step(models.Model):
    """One unit of a job's work, claimed by one worker at a time.

    `attempt` counts claims and is the fence: a worker that comes back late changes nothing. The work itself lies in the
    vault's storage under the job's staging prefix; the row carries only its number.
    """

    job = models.ForeignKey(Job, on_delete=models.CASCADE, related_name="steps")
    round = models.PositiveIntegerField()
    stage = models.CharField(max_length=8, choices=Stage.choices)
    number = models.PositiveIntegerField(default=0)
    state = models.CharField(max_length=10, choices=StepState.choices, default=StepState.QUEUED)
    queue = models.CharField(max_length=300)
    attempt = models.PositiveIntegerField(default=0)
    lease_until = models.DateTimeField(null=True)
    not_before = models.DateTimeField(null=True)
    rung_at = models.DateTimeField(null=True)
    worker = models.CharField(max_length=255, blank=True)
    error = models.TextField(blank=True)
    entries_done = models.PositiveBigIntegerField(default=0)
    bytes_done = models.PositiveBigIntegerField(default=0)
    bytes_stored = models.PositiveBigIntegerField(default=0)
    created_at = models.DateTimeField()
    started_at = models.DateTimeField(null=True)
    ended_at = models.DateTimeField(null=True)

    objects = StepQuerySet.as_manager()

    class Meta:
        ordering: ClassVar = ["job", "round", "id"]
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["job", "round", "stage", "number"], name="one_step_per_number")
        ]
        indexes: ClassVar = [
            models.Index(fields=["state", "lease_until"], condition=models.Q(state__in=STEP_OPEN), name="step_open")
        ]

    def __str__(self) -> str:
        return f"{self.stage} {self.number}"

    def rung_in_vain(self, rung_before: dt.datetime) -> bool:
        """Say whether a doorbell is due for this stalled step: none rang since its lease ran out, or long ago."""
        lost = self.lease_until is not None and self.rung_at is not None and self.rung_at < self.lease_until
        return self.rung_at is None or lost or self.rung_at <= rung_before


class JobEvent(models.Model):
    """One line of a job's story, for people."""

    job = models.ForeignKey(Job, on_delete=models.CASCADE, related_name="events")
    happened_at = models.DateTimeField()
    level = models.CharField(max_length=8, default="info")
    text = models.TextField()

    class Meta:
        ordering: ClassVar = ["happened_at", "id"]

    def __str__(self) -> str:
        return self.text


class Worker(models.Model):
    """A Celery worker that was seen, and the queues it serves: how the service knows that a host is running (C26).

    `volumes` are where the volumes of its machine are mounted (C23).
    """

    name = models.CharField(max_length=255, unique=True)
    queues = models.JSONField(default=list)
    volumes = models.JSONField(default=list)
    seen_at = models.DateTimeField()

    class Meta:
        ordering: ClassVar = ["name"]

    def __str__(self) -> str:
        return self.name


class HostDay(models.Model):
    """That a host's worker ran on a day (UTC), and how many bytes the disks attached to it hold (B23, C45)."""

    host = models.CharField(max_length=255)
    day = models.DateField()
    bytes_attached = models.PositiveBigIntegerField()

    class Meta:
        ordering: ClassVar = ["-day", "host"]
        constraints: ClassVar = [models.UniqueConstraint(fields=["host", "day"], name="one_row_per_host_and_day")]

    def __str__(self) -> str:
        return f"{self.host} {self.day}"


class BeatLease(models.Model):
    """Which beat process ticks: two may run, one is active."""

    name = models.CharField(max_length=32, unique=True)
    holder = models.CharField(max_length=255, blank=True)
    expires_at = models.DateTimeField()

    def __str__(self) -> str:
        return f"{self.name}: {self.holder}"


class SystemExport(models.Model):
    """What a vault's bucket was last told of the control plane's rows (jobs.system).

    `digest` is that of the rows and secrets as exported; `seen_event` the newest line of the audit trail when they were
    last looked at: without a newer one of the account's, nothing can have changed.
    """

    vault = models.OneToOneField(Vault, on_delete=models.CASCADE, related_name="system_export")
    key = models.CharField(max_length=64, blank=True)
    digest = models.CharField(max_length=64, blank=True)
    seen_event = models.BigIntegerField(default=0)
    looked_at = models.DateTimeField()
    exported_at = models.DateTimeField(null=True)
    error = models.TextField(blank=True)

    def __str__(self) -> str:
        return f"{self.vault}: {self.key}"
