"""What was used, and what it costs: rows of usage, days that are done, prices and allowances.

Subjects are plain ids with the names of that day, not references: a row tells the same when vault or source is gone.
"""

import uuid
from typing import ClassVar

from django.core.validators import MinValueValidator
from django.db import models

# Twelve digits before the point and twelve behind: a byte's price per day in any currency.
PRICE_DIGITS, PRICE_DECIMALS = 24, 12


class Meter(models.TextChoices):
    """What is measured. Levels are those of the end of the day, flows are sums over it."""

    VAULT_BYTES = "vault_bytes", "Stored in vaults"
    REPLICA_BYTES = "replica_bytes", "Stored in replicas"
    SOURCE_BYTES_UNIQUE = "source_bytes_unique", "Stored for a source alone"
    SOURCE_BYTES_SHARED = "source_bytes_shared", "Fair part of what sources share"
    PROTECTED_BYTES = "protected_bytes", "Protected"
    ATTACHED_BYTES = "attached_bytes", "Disks attached to hosts"
    CLIENTS = "clients", "Clients"
    REQUESTS = "requests", "Requests to sources"
    RESTORE_BYTES = "restore_bytes", "Restored"
    REPLICATION_BYTES = "replication_bytes", "Replicated"


FLOWS = (Meter.REQUESTS, Meter.RESTORE_BYTES, Meter.REPLICATION_BYTES)
LEVELS = tuple(meter for meter in Meter if meter not in FLOWS)
# Fair parts say whose a vault's bytes are; the vault's own meter is what is priced.
PARTS = (Meter.SOURCE_BYTES_UNIQUE, Meter.SOURCE_BYTES_SHARED)
PRICED = tuple(meter for meter in Meter if meter not in PARTS)
PRICED_CHOICES = [(one.value, one.label) for one in PRICED]
# What an allowance may cover: capacity, never traffic (E43).
CAPACITY = (Meter.VAULT_BYTES, Meter.REPLICA_BYTES, Meter.ATTACHED_BYTES)


class NetworkClass(models.TextChoices):
    """How restored data travels; only the Internet is priced (B27). `REGION` is from a replica to its region (E44)."""

    LAN = "LAN", "Local network"
    VPN = "VPN", "VPN or leased line"
    INTERNET = "INTERNET", "Internet"
    REGION = "REGION", "Replica to its own region"


# What a person may declare of a region or a worker.
NETWORK_CHOICES = [(one.value, one.label) for one in NetworkClass if one != NetworkClass.REGION]


class MeteringMode(models.TextChoices):
    """What of an account's capacity is priced (C45); both are always measured."""

    STORED_BYTES = "STORED_BYTES", "Bytes stored in vaults"
    ATTACHED_CAPACITY = "ATTACHED_CAPACITY", "Capacity of the disks attached to hosts"


class Usage(models.Model):
    """How much of one meter was used on one day (UTC) by one subject. Stored once, never changed.

    `variant` is the verb of requests, the network class of what was restored, the source vault of what was replicated.
    `estimated` is what nobody measured on that day: made up later from what was known before or is known now. `trial`
    is what a trial used: recorded, and priced zero (A8).
    """

    account = models.ForeignKey("accounts.Account", on_delete=models.CASCADE, related_name="usage")
    day = models.DateField()
    meter = models.CharField(max_length=24, choices=Meter.choices)
    region = models.CharField(max_length=40, blank=True)
    vault = models.CharField(max_length=36, blank=True)
    source = models.CharField(max_length=63, blank=True)
    host = models.CharField(max_length=255, blank=True)
    variant = models.CharField(max_length=64, blank=True)
    vault_name = models.CharField(max_length=64, blank=True)
    source_name = models.CharField(max_length=64, blank=True)
    quantity = models.PositiveBigIntegerField()
    estimated = models.BooleanField(default=False)
    trial = models.BooleanField(default=False)
    created_at = models.DateTimeField(editable=False)

    class Meta:
        ordering: ClassVar = ["-day", "meter", "pk"]
        verbose_name_plural = "usage"
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["account", "day", "meter", "region", "vault", "source", "host", "variant"],
                name="one_row_of_usage",
            )
        ]
        indexes: ClassVar = [models.Index(fields=["meter", "vault", "-day"], name="usage_by_vault")]

    def __str__(self) -> str:
        return f"{self.day} {self.meter} {self.quantity}"


class MeteredDay(models.Model):
    """A day of an account that is metered, and how its capacity is priced on that day (C45)."""

    account = models.ForeignKey("accounts.Account", on_delete=models.CASCADE, related_name="metered_days")
    day = models.DateField()
    mode = models.CharField(max_length=20, choices=MeteringMode.choices, default=MeteringMode.STORED_BYTES)
    created_at = models.DateTimeField(editable=False)

    class Meta:
        ordering: ClassVar = ["-day"]
        constraints: ClassVar = [models.UniqueConstraint(fields=["account", "day"], name="one_metered_day")]

    def __str__(self) -> str:
        return f"{self.account} {self.day}"


class Price(models.Model):
    """What one unit of a meter costs from a day on, until a later price; for one account, or for all without their own.

    The unit is the meter's (accounts.pricing). `variant` empty is any. `currency` is a label: nothing is converted.
    """

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    account = models.ForeignKey(
        "accounts.Account", null=True, blank=True, on_delete=models.CASCADE, related_name="prices"
    )
    meter = models.CharField(max_length=24, choices=PRICED_CHOICES)
    variant = models.CharField(max_length=64, blank=True)
    price = models.DecimalField(
        max_digits=PRICE_DIGITS, decimal_places=PRICE_DECIMALS, validators=[MinValueValidator(0)]
    )
    currency = models.CharField(max_length=8, default="EUR")
    valid_from = models.DateField()
    created_at = models.DateTimeField(editable=False)

    class Meta:
        ordering: ClassVar = ["meter", "variant", "-valid_from"]
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["account", "meter", "variant", "valid_from"],
                condition=models.Q(account__isnull=False),
                name="one_price_per_day",
            ),
            models.UniqueConstraint(
                fields=["meter", "variant", "valid_from"],
                condition=models.Q(account=None),
                name="one_default_price_per_day",
            ),
            models.CheckConstraint(condition=models.Q(price__gte=0), name="price_not_negative"),
        ]

    def __str__(self) -> str:
        return f"{self.meter} {self.price.normalize():f} {self.currency} from {self.valid_from}"


class AllowanceKind(models.TextChoices):
    """The free allowance is one pool for what is priced of the capacity (C46); a prepaid one is for one meter (C47)."""

    FREE = "free", "Free"
    PREPAID = "prepaid", "Prepaid"


class Allowance(models.Model):
    """So many bytes of capacity on each day from `starts_on` to `ends_on` are not priced.

    Of the free ones the account's newest counts, or else the newest of the installation (no account), or else what
    accounts.pricing says; prepaid ones add up. Never for traffic (E43).
    """

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    account = models.ForeignKey(
        "accounts.Account", null=True, blank=True, on_delete=models.CASCADE, related_name="allowances"
    )
    kind = models.CharField(max_length=8, choices=AllowanceKind.choices, default=AllowanceKind.PREPAID)
    meter = models.CharField(
        max_length=24, choices=[(one.value, one.label) for one in CAPACITY], default=Meter.VAULT_BYTES, blank=True
    )
    bytes = models.PositiveBigIntegerField()
    starts_on = models.DateField()
    ends_on = models.DateField(null=True, blank=True, help_text="The last day; empty for no end")
    note = models.CharField(max_length=255, blank=True)
    created_at = models.DateTimeField(editable=False)

    class Meta:
        ordering: ClassVar = ["-starts_on", "-created_at"]
        constraints: ClassVar = [
            models.CheckConstraint(
                condition=models.Q(kind="free") | models.Q(account__isnull=False), name="prepaid_of_an_account"
            ),
            models.CheckConstraint(
                condition=models.Q(ends_on=None) | models.Q(ends_on__gte=models.F("starts_on")),
                name="allowance_ends_after_it_starts",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.kind} {self.bytes} bytes from {self.starts_on}"
