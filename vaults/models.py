"""WHERE: regions, vaults, and the catalogue of recovery points."""

import datetime as dt
import uuid
import zoneinfo
from typing import Any, ClassVar

from django.core.exceptions import ValidationError
from django.core.validators import MinLengthValidator, RegexValidator
from django.db import models
from django.db.models.signals import pre_delete
from django.dispatch import receiver

from accounts.metering import NETWORK_CHOICES, NetworkClass
from accounts.models import Account
from accounts.refusals import Refused
from engine.storage.probe import APPLICATION_LEVEL

LOCK_DAYS_MAX = 36_500


def validate_time_zone(name: str) -> None:
    """Refuse names that the time zone database does not know."""
    try:
        zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ValidationError(
            f"There is no time zone {name!r}. Use a name like Europe/Berlin.", code="invalid_zone"
        ) from error


class ImmutabilityFixed(Refused):
    """Immutability is never turned off and never shortened (B6)."""

    code = "immutability_fixed"


class KeyFixed(Refused):
    """The key that a vault was made with stays (E33)."""

    code = "key_fixed"


class ConfirmationWrong(Refused):
    """What can't be undone is confirmed by typing the vault's name."""

    code = "confirmation_wrong"


class VaultKept(Refused):
    """Rows of vaults are not deleted: vaults are."""

    code = "vault_kept"


class NotInRegion(Refused):
    """What a region is not set up for does not work there (A6, C55)."""

    code = "not_in_region"


# What may be set up in some regions only: the flag, and how people call it.
FEATURES = {
    "supports_policies": "policies",
    "supports_replication": "replication",
    "supports_bucket_backup": "backup of buckets",
    "supports_host_backup": "backup of hosts",
}


class Redundancy(models.TextChoices):
    """What the operator declares about the store behind a region (B25)."""

    LRS = "LRS", "Locally redundant"
    ZRS = "ZRS", "Zone-redundant"


class Region(models.Model):
    """A named S3-compatible endpoint, or a local directory, where vaults live. Belongs to the installation.

    `name` is part of queue names and never changes. `credentials` is sealed (accounts.secrets). `capabilities` is what
    the last probe found the store able to do.
    """

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    name = models.CharField(
        max_length=40,
        unique=True,
        validators=[RegexValidator(r"^[a-z0-9][a-z0-9-]*$", "Use a-z, 0-9 and -, beginning with a letter or a digit.")],
    )
    url = models.CharField(max_length=500, help_text="s3://bucket/prefix, or the path of a local directory")
    endpoint = models.CharField(max_length=255, blank=True, help_text="https://host:port of the S3 service")
    store_region = models.CharField(max_length=64, blank=True, help_text="The region name that the S3 service expects")
    path_style = models.BooleanField(default=True, help_text="https://host/bucket instead of https://bucket.host")
    tls_verify = models.BooleanField(default=True)
    ca_file = models.CharField(max_length=255, blank=True, help_text="Certificates to trust besides the system's")
    bytes_per_s = models.PositiveBigIntegerField(default=0, help_text="Limit of one worker in bytes/s; 0 is none")
    credentials = models.TextField(blank=True, editable=False)
    supports_policies = models.BooleanField(default=True)
    supports_replication = models.BooleanField(default=True)
    supports_bucket_backup = models.BooleanField(default=True)
    supports_host_backup = models.BooleanField(default=True)
    branch = models.CharField(
        max_length=64, blank=True, help_text="The site or branch office that it serves; lists are filtered by it"
    )
    redundancy = models.CharField(max_length=3, choices=Redundancy.choices, default=Redundancy.LRS)
    network = models.CharField(
        max_length=8,
        choices=NETWORK_CHOICES,
        default=NetworkClass.LAN,
        help_text="How restored data reaches this region's sources, unless their worker says otherwise",
    )
    capabilities = models.JSONField(default=dict, editable=False)
    probe_error = models.TextField(blank=True, editable=False)
    probed_at = models.DateTimeField(null=True, editable=False)
    created_at = models.DateTimeField(editable=False)

    class Meta:
        ordering: ClassVar = ["name"]

    def __str__(self) -> str:
        return self.name

    def need(self, feature: str) -> None:
        """Raise NotInRegion, which names the regions where it works, unless the region has one of FEATURES."""
        if not getattr(self, feature):
            able = list(Region.objects.filter(**{feature: True}).values_list("name", flat=True))
            named = ", ".join(able) or "none"
            raise NotInRegion(
                f"The region {self} is not set up for {FEATURES[feature]}. Regions that are: {named}.", regions=able
            )

    @property
    def queue(self) -> str:
        """Return the queue of the steps that only need this region."""
        return f"region.{self.name}"

    @property
    def secret_context(self) -> str:
        """Return the context that binds sealed credentials to this row."""
        return f"region:{self.pk}"


class VaultType(models.TextChoices):
    GENERAL = "GENERAL", "General backup"
    REPLICATION_TARGET = "REPLICATION_TARGET", "Replication target"


# Names that the API still takes for a type (E5).
FORMER_TYPES = {"MIRROR": VaultType.REPLICATION_TARGET.value}


class VaultState(models.TextChoices):
    """`empty` is a replication target that no vault replicates to yet: nothing is stored of it. `deleting` takes no new
    work and waits for the last lock; `deleted` is what is left for the jobs' history.
    """

    EMPTY = "empty", "Waiting for its source"
    READY = "ready", "Ready"
    ERROR = "error", "Error"
    DELETING = "deleting", "Being deleted"
    DELETED = "deleted", "Deleted"


class KeyProvider(models.TextChoices):
    """Who holds the key that a vault's root key is wrapped with (E31)."""

    KEYRING = "keyring", "Service key"
    TRANSIT = "transit", "Key management service (transit)"
    PKCS11 = "pkcs11", "Hardware module (PKCS#11)"


class VaultQuerySet(models.QuerySet["Vault"]):
    def present(self) -> "VaultQuerySet":
        """Return the vaults that are still there, also those being deleted."""
        return self.exclude(state=VaultState.DELETED)


class Vault(models.Model):
    """A named home of recovery points in one region: one prefix, one key domain, one dedup domain.

    `stored_id` is the id that vault.json tells. Immutability (B6): `immutable_since` is set once and `lock_days` only
    grows; the database refuses anything else (vaults.guards). `key_*` never change after creation (E33): of `key_url`
    nothing is secret, `key_credentials` is sealed. `deletable_at` is when the last lock ends, as far as known.
    `coverage_*`: bytes that the points need, and how many of them were read in full within the last 30 days.

    The vault of a trial belongs to the one plan that it was made with, for ever. Until `trial_expires_at` it costs
    nothing, at `trial_release_at` it goes, unless the plan was converted at `trial_converted_at`.

    `maintenance` says, by kind of job, after how many seconds it is done again here; what is absent follows the
    installation's settings, 0 is never.
    """

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    account = models.ForeignKey(Account, on_delete=models.PROTECT, related_name="vaults")
    region = models.ForeignKey(Region, on_delete=models.PROTECT, related_name="vaults")
    name = models.CharField(max_length=64, validators=[MinLengthValidator(1)])
    description = models.CharField(max_length=255, blank=True)
    prefix = models.CharField(max_length=120, editable=False)
    type = models.CharField(max_length=20, choices=VaultType.choices, default=VaultType.GENERAL)
    state = models.CharField(max_length=12, choices=VaultState.choices, default=VaultState.READY, editable=False)
    stored_id = models.CharField(max_length=32, blank=True, editable=False)
    immutable_since = models.DateTimeField(null=True, editable=False)
    lock_days = models.PositiveIntegerField(default=0, editable=False)
    key_provider = models.CharField(max_length=8, choices=KeyProvider.choices, default=KeyProvider.KEYRING)
    key_url = models.CharField(max_length=500, blank=True, help_text="Where the key is kept; empty for the service key")
    key_credentials = models.TextField(blank=True, editable=False)
    recovery_proven_at = models.DateTimeField(null=True, editable=False)
    recovery_threshold = models.PositiveSmallIntegerField(default=0, editable=False)
    recovery_shares = models.PositiveSmallIntegerField(default=0, editable=False)
    coverage_total = models.PositiveBigIntegerField(default=0, editable=False)
    coverage_read = models.PositiveBigIntegerField(default=0, editable=False)
    coverage_at = models.DateTimeField(null=True, editable=False)
    delete_requested_at = models.DateTimeField(null=True, editable=False)
    deletable_at = models.DateTimeField(null=True, editable=False)
    deleted_at = models.DateTimeField(null=True, editable=False)
    maintenance = models.JSONField(default=dict, blank=True, editable=False)
    trial_started_at = models.DateTimeField(null=True, editable=False)
    trial_expires_at = models.DateTimeField(null=True, editable=False, db_index=True)
    trial_release_at = models.DateTimeField(null=True, editable=False)
    trial_converted_at = models.DateTimeField(null=True, editable=False)
    created_at = models.DateTimeField(editable=False)

    objects = VaultQuerySet.as_manager()

    class Meta:
        ordering: ClassVar = ["name"]
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["region", "prefix"], name="one_vault_per_prefix"),
            models.UniqueConstraint(
                fields=["account", "name"], condition=~models.Q(state=VaultState.DELETED), name="one_vault_per_name"
            ),
            models.CheckConstraint(
                condition=models.Q(immutable_since=None, lock_days=0)
                | models.Q(immutable_since__isnull=False, lock_days__gte=1, lock_days__lte=LOCK_DAYS_MAX),
                name="immutable_with_lock_days",
            ),
        ]

    def __str__(self) -> str:
        return self.name

    def save(self, *args: Any, **kwargs: Any) -> None:
        """Store the row. Raises ImmutabilityFixed for the end of immutability (B6), KeyFixed for another key (E33)."""
        stored = Vault.objects.using(kwargs.get("using") or self._state.db)
        kept = None if self._state.adding else stored.filter(pk=self.pk).first()
        eased = kept and (self.immutable_since != kept.immutable_since or self.lock_days < kept.lock_days)
        if kept and kept.immutable_since and eased:
            raise ImmutabilityFixed(f"{self} is immutable: that can neither be turned off nor shortened.")
        if kept and (self.key_provider, self.key_url) != (kept.key_provider, kept.key_url):
            raise KeyFixed(f"The key of {self} was chosen when it was made and never changes. Make another vault.")
        super().save(*args, **kwargs)

    def confirm(self, typed: str) -> None:
        """See that a person typed the vault's name. Raises ConfirmationWrong."""
        if typed != self.name:
            raise ConfirmationWrong("Type the vault's name to confirm: this can't be undone.")

    @property
    def secret_context(self) -> str:
        """Return the context that binds sealed credentials to this row."""
        return f"vault:{self.pk}"

    @property
    def is_trial(self) -> bool:
        """Say whether the vault belongs to a trial, running or over, that was not converted."""
        return self.trial_started_at is not None and self.trial_converted_at is None

    def free_at(self, moment: dt.datetime) -> bool:
        """Say whether what the vault holds at a moment costs nothing, because a trial runs (A8)."""
        began, ends = self.trial_started_at, self.trial_converted_at or self.trial_expires_at
        return began is not None and ends is not None and began <= moment < ends

    @property
    def coverage_share(self) -> float | None:
        """Return the share of the needed bytes that was read lately, None when nobody looked yet."""
        if self.coverage_at is None:
            return None
        return self.coverage_read / self.coverage_total if self.coverage_total else 1.0

    @property
    def retention_label(self) -> str:
        """Say what keeps the points: `immutable` only where the last probe proved that the store refuses deletion."""
        return str(self.region.capabilities.get("retention") or APPLICATION_LEVEL)


@receiver(pre_delete, sender=Vault)
def keep_vault(sender: Any, instance: Vault, **_: Any) -> None:
    """Let no row go whose vault is still there, whoever deletes it: the row goes after the contents."""
    if instance.state != VaultState.DELETED:
        raise VaultKept(f"{instance} holds data. Delete the vault itself: its row goes with it.")


class VaultReading(models.Model):
    """What a vault held when its store was last looked at for the metering of a day, and the look that is asked for.

    `day` is the last metered one. `bytes_needed` is what points need, `bytes_stored` all that lies there in packs.
    """

    vault = models.OneToOneField(Vault, on_delete=models.CASCADE, related_name="reading")
    day = models.DateField(null=True)
    bytes_stored = models.PositiveBigIntegerField(default=0)
    bytes_needed = models.PositiveBigIntegerField(default=0)
    read_at = models.DateTimeField(null=True)
    rung_at = models.DateTimeField(null=True)
    error = models.TextField(blank=True)

    def __str__(self) -> str:
        return f"{self.vault} {self.day}"


class Quota(models.Model):
    """How many bytes may be stored: in one vault, or in all vaults of an account.

    Above `bytes_soft` somebody is told, once, since `soft_since`; from `bytes_hard` on no backup begins.
    """

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    account = models.ForeignKey(Account, on_delete=models.CASCADE, related_name="quotas")
    vault = models.OneToOneField(Vault, null=True, blank=True, on_delete=models.CASCADE, related_name="quota")
    bytes_soft = models.PositiveBigIntegerField(null=True, blank=True)
    bytes_hard = models.PositiveBigIntegerField(null=True, blank=True)
    soft_since = models.DateTimeField(null=True, editable=False)
    created_at = models.DateTimeField(editable=False)

    class Meta:
        ordering: ClassVar = ["account", "created_at"]
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["account"], condition=models.Q(vault=None), name="one_quota_of_a_whole_account"
            )
        ]

    def __str__(self) -> str:
        return f"Quota of {self.vault or self.account}"


class LinkState(models.TextChoices):
    """Replication goes on, or was ended for good (E38)."""

    ACTIVE = "active", "Replicating"
    STOPPED = "stopped", "Stopped"


class ReplicationLinkQuerySet(models.QuerySet["ReplicationLink"]):
    def active(self) -> "ReplicationLinkQuerySet":
        """Return the links whose targets follow their sources."""
        return self.filter(state=LinkState.ACTIVE)


class ReplicationLink(models.Model):
    """That one vault is replicated to another (E1). Changed by vaults.replication and the jobs that replicate.

    `points_behind` is what the target lacked when a job looked last, at `checked_at`; `latest_at` is when the newest
    point that is there was completed. `historical_total` is how many points there were at the
    beginning, `historical_done` how many of them have come (E35). `policy` is the id of the policy whose
    rule asks for it, or asked first; empty for none (E26). `limits` is how fast it may go (vaults.limits).
    """

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    account = models.ForeignKey(Account, on_delete=models.PROTECT, related_name="links")
    source = models.ForeignKey(Vault, on_delete=models.CASCADE, related_name="links_out")
    target = models.OneToOneField(Vault, on_delete=models.CASCADE, related_name="link")
    state = models.CharField(max_length=8, choices=LinkState.choices, default=LinkState.ACTIVE)
    policy = models.CharField(max_length=36, blank=True, editable=False)
    points_behind = models.PositiveIntegerField(default=0)
    historical_total = models.PositiveIntegerField(default=0)
    historical_done = models.PositiveIntegerField(default=0)
    bytes_replicated = models.PositiveBigIntegerField(default=0)
    limits = models.JSONField(default=dict, blank=True)
    latest_at = models.DateTimeField(null=True)
    checked_at = models.DateTimeField(null=True)
    created_at = models.DateTimeField()
    stopped_at = models.DateTimeField(null=True)

    objects = ReplicationLinkQuerySet.as_manager()

    class Meta:
        ordering: ClassVar = ["-created_at"]
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["source"], condition=models.Q(state=LinkState.ACTIVE), name="one_target_per_vault"
            )
        ]

    def __str__(self) -> str:
        return f"{self.source} → {self.target}"


class PointState(models.TextChoices):
    COMPLETE = "complete", "Complete"
    PARTIAL_COMPLETE = "partial_complete", "Partially complete"


class RecoveryPointQuerySet(models.QuerySet["RecoveryPoint"]):
    def in_series(self, vault: Vault, series: str) -> "RecoveryPointQuerySet":
        """Return the points of one source in one vault, newest first."""
        return self.filter(vault=vault, series=series).order_by("-completed_at", "-point_id")

    def expired(self, now: dt.datetime) -> "RecoveryPointQuerySet":
        """Return the points whose retention ended at or before `now`."""
        return self.filter(expires_at__lte=now)


class RecoveryPoint(models.Model):
    """The catalogue row of one backed-up version of a source. The vault is the truth; rows can be rebuilt from it.

    It outlives plan, source and job, so it refers to none of them: `series` names the source's points in the vault.
    `locked_until` is the end of its lock in an immutable vault, which no rule and no person shortens.
    `rule` is the id of the policy's rule that made it, empty for none; `manual` says that a person asked for it (D2).
    `retention_days` is what the point says of itself (0: until somebody deletes it); `expires_at` is what the rules in
    force made of it when expiry looked last. A point that is held stays, whatever the rules say. `delete_due_at` is
    when a replica's copy goes of what `delete_asked_by` deleted at its source (jobs.holdback).
    """

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    vault = models.ForeignKey(Vault, on_delete=models.PROTECT, related_name="points")
    series = models.CharField(max_length=63)
    point_id = models.CharField(max_length=26)
    source_kind = models.CharField(max_length=32)
    source_name = models.CharField(max_length=64, blank=True)
    host = models.CharField(max_length=255, blank=True)
    roots = models.JSONField(default=list)
    state = models.CharField(max_length=20, choices=PointState.choices)
    started_at = models.DateTimeField()
    completed_at = models.DateTimeField()
    retention_days = models.PositiveIntegerField(default=0)
    rule = models.CharField(max_length=36, blank=True)
    manual = models.BooleanField(default=False)
    expires_at = models.DateTimeField(null=True)
    locked_until = models.DateTimeField(null=True)
    held_at = models.DateTimeField(null=True)
    held_by = models.CharField(max_length=150, blank=True)
    hold_reason = models.CharField(max_length=255, blank=True)
    delete_due_at = models.DateTimeField(null=True, editable=False, db_index=True)
    delete_asked_by = models.CharField(max_length=150, blank=True, editable=False)
    entries_count = models.PositiveBigIntegerField(default=0)
    bytes_total = models.PositiveBigIntegerField(default=0)
    bytes_stored = models.PositiveBigIntegerField(default=0)
    problems_count = models.PositiveBigIntegerField(default=0)
    stats = models.JSONField(default=dict)
    created_at = models.DateTimeField(editable=False)

    objects = RecoveryPointQuerySet.as_manager()

    class Meta:
        ordering: ClassVar = ["-completed_at", "-id"]
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["vault", "series", "point_id"], name="one_row_per_point")
        ]
        indexes: ClassVar = [
            models.Index(fields=["vault", "series", "-completed_at"], name="point_by_series"),
            models.Index(fields=["-completed_at"], name="point_by_time"),
        ]

    def __str__(self) -> str:
        return f"{self.source_name or self.series} {self.completed_at:%Y-%m-%d %H:%M}"
