"""Shapes of regions, vaults and recovery points in the API. Credentials go in and never come out."""

from typing import Any

from rest_framework import serializers

from accounts.models import Account
from accounts.serializers import OwnField
from engine.entries import Kind
from vaults import replication
from vaults.limits import ReplicationLimitsField
from vaults.models import FEATURES, FORMER_TYPES, RecoveryPoint, Region, ReplicationLink, Vault, VaultReading, VaultType

ENTRY_KINDS = [kind.name.lower() for kind in Kind]
REGION_FIELDS = [
    "name",
    "branch",
    "url",
    "endpoint",
    "store_region",
    "path_style",
    "tls_verify",
    "ca_file",
    "bytes_per_s",
    *FEATURES,
    "redundancy",
    "network",
]


class CapabilitiesSerializer(serializers.Serializer[Any]):
    """What the last probe found the store able to do; nothing when it could not be reached."""

    readable = serializers.BooleanField(required=False)
    writable = serializers.BooleanField(required=False)
    versioned = serializers.BooleanField(required=False)
    object_lock = serializers.BooleanField(required=False)
    retention = serializers.CharField(required=False)
    problems = serializers.ListField(child=serializers.CharField(), required=False)


class RegionSerializer(serializers.ModelSerializer[Region]):
    capabilities = CapabilitiesSerializer()
    has_credentials = serializers.SerializerMethodField()

    class Meta:
        model = Region
        fields = ["id", *REGION_FIELDS, "has_credentials", "capabilities", "probe_error", "probed_at", "created_at"]

    def get_has_credentials(self, region: Region) -> bool:
        return bool(region.credentials)


class RegionRequestSerializer(serializers.ModelSerializer[Region]):
    access_key = serializers.CharField(max_length=256, write_only=True, required=False)
    secret_key = serializers.CharField(max_length=256, write_only=True, required=False)

    class Meta:
        model = Region
        fields = [*REGION_FIELDS, "access_key", "secret_key"]


class CoverageSerializer(serializers.Serializer[Vault]):
    """How much of what the points need was read in full, and found whole, within the last 30 days."""

    bytes = serializers.IntegerField(source="coverage_total")
    bytes_read = serializers.IntegerField(source="coverage_read")
    share = serializers.FloatField(source="coverage_share", allow_null=True, help_text="0 to 1; null: never looked")
    at = serializers.DateTimeField(source="coverage_at", allow_null=True)


class ReadingSerializer(serializers.ModelSerializer[VaultReading]):
    """What lies in the vault's packs, as of the last look for metering; what no point needs waits for a prune."""

    class Meta:
        model = VaultReading
        fields = ["day", "bytes_stored", "bytes_needed", "read_at"]


class FreedSerializer(serializers.Serializer[Any]):
    """What the next prune would free once so many points are deleted."""

    vault = serializers.UUIDField(source="vault.pk")
    vault_name = serializers.CharField(source="vault.name")
    points = serializers.IntegerField()
    bytes = serializers.IntegerField()
    as_of = serializers.DateField(allow_null=True, help_text="The metered day it is of; null: it was read now")


class VaultSerializer(serializers.ModelSerializer[Vault]):
    redundancy = serializers.CharField(
        source="region.redundancy", read_only=True, help_text="What its region declares: LRS or ZRS"
    )
    reading = ReadingSerializer(read_only=True, default=None, allow_null=True)
    region = serializers.SlugRelatedField[Region](slug_field="name", read_only=True)
    points_count = serializers.IntegerField(read_only=True)
    bytes_stored = serializers.IntegerField(read_only=True)
    retention_label = serializers.CharField(
        read_only=True, help_text="`immutable` where the store proved that it refuses deletion"
    )
    coverage = CoverageSerializer(source="*", read_only=True)

    class Meta:
        model = Vault
        fields = [
            "id",
            "account",
            "region",
            "name",
            "description",
            "type",
            "state",
            "immutable_since",
            "lock_days",
            "retention_label",
            "key_provider",
            "key_url",
            "recovery_proven_at",
            "recovery_threshold",
            "recovery_shares",
            "coverage",
            "trial_started_at",
            "trial_expires_at",
            "trial_release_at",
            "trial_converted_at",
            "points_count",
            "bytes_stored",
            "redundancy",
            "reading",
            "delete_requested_at",
            "deletable_at",
            "deleted_at",
            "created_at",
        ]


class VaultTypeField(serializers.ChoiceField):
    """A type of vault; a replication target goes by its former name, MIRROR, too (E5)."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"choices": VaultType.choices} | options)

    def to_internal_value(self, data: Any) -> Any:
        return super().to_internal_value(FORMER_TYPES.get(data, data) if isinstance(data, str) else data)


class VaultRequestSerializer(serializers.Serializer[Vault]):
    account = OwnField(queryset=Account.objects.all(), account_path="pk")
    region = serializers.SlugRelatedField(slug_field="name", queryset=Region.objects.all())
    name = serializers.CharField(min_length=1, max_length=64)
    description = serializers.CharField(max_length=255, required=False, allow_blank=True)
    type = VaultTypeField(default=VaultType.GENERAL)
    key_url = serializers.CharField(
        max_length=500,
        default="",
        allow_blank=True,
        help_text="Where the key is kept, `transit:` or `pkcs11:`; empty for the service key. Never changes (E33)",
    )
    key_secret = serializers.CharField(
        max_length=4096, write_only=True, default="", allow_blank=True, help_text="Token, secret id or PIN for it"
    )
    recovery_threshold = serializers.IntegerField(
        min_value=0, max_value=16, default=0, help_text="Shares that are needed together; 0 hands the key out whole"
    )
    recovery_shares = serializers.IntegerField(min_value=0, max_value=16, default=0)


class VaultChangeSerializer(serializers.Serializer[Vault]):
    name = serializers.CharField(min_length=1, max_length=64, required=False)
    description = serializers.CharField(max_length=255, required=False, allow_blank=True)


class NewVaultSerializer(serializers.Serializer[Any]):
    vault = VaultSerializer()
    recovery_key = serializers.CharField(
        allow_blank=True, help_text="Opens the vault without this service. Shown once, kept nowhere."
    )
    recovery_shares = serializers.ListField(
        child=serializers.CharField(), help_text="In place of the key, when it was asked for in shares."
    )


class RecoveryKeyRequestSerializer(serializers.Serializer[Any]):
    """How the new recovery key is handed out: whole, or in shares."""

    threshold = serializers.IntegerField(min_value=0, max_value=16, default=0)
    shares = serializers.IntegerField(min_value=0, max_value=16, default=0)


class HolderSerializer(serializers.Serializer[Any]):
    provider = serializers.CharField()
    key_id = serializers.CharField()


class RemainingSerializer(serializers.Serializer[Any]):
    """A replaced key set that the store keeps for now."""

    key = serializers.CharField()
    reason = serializers.CharField()
    until = serializers.DateTimeField(allow_null=True)


class RotatedSerializer(serializers.Serializer[Any]):
    """What a rotation did, and which keys open the vault now."""

    generation = serializers.IntegerField()
    holders = HolderSerializer(many=True, source="state.holders")
    revoked = HolderSerializer(many=True)
    remaining = RemainingSerializer(many=True)


class ConfirmationSerializer(serializers.Serializer[Any]):
    confirmation = serializers.CharField(max_length=64, help_text="Its name, typed")


class ImmutabilityRequestSerializer(ConfirmationSerializer):
    """Asks for what can't be undone."""

    days = serializers.IntegerField(help_text="Every point is locked for at least so many days from its completion")


class ReplicationLinkSerializer(serializers.ModelSerializer[ReplicationLink]):
    """How far a replica has come. Historical are the points of before the link, the others are new (E35)."""

    lag_s = serializers.SerializerMethodField(
        help_text="Seconds from the oldest point that is still to come, 0 when none is"
    )
    limits = ReplicationLimitsField()

    class Meta:
        model = ReplicationLink
        fields = [
            "id",
            "source",
            "target",
            "state",
            "policy",
            "points_behind",
            "lag_s",
            "historical_total",
            "historical_done",
            "bytes_replicated",
            "limits",
            "latest_at",
            "checked_at",
            "created_at",
            "stopped_at",
        ]

    def get_lag_s(self, link: ReplicationLink) -> int:
        return replication.lag_s(link, now=self.context["now"])


class NewTargetSerializer(serializers.Serializer[Vault]):
    """A replication target that is made in the same step (E28-E31)."""

    region = serializers.SlugRelatedField(slug_field="name", queryset=Region.objects.all())
    name = serializers.CharField(min_length=1, max_length=64)
    description = serializers.CharField(max_length=255, default="", allow_blank=True)
    key_url = serializers.CharField(
        max_length=500, default="", allow_blank=True, help_text="As of a vault: the same method as the source's (E16)"
    )
    key_secret = serializers.CharField(max_length=4096, write_only=True, default="", allow_blank=True)


class ReplicationRequestSerializer(serializers.Serializer[Any]):
    """Where to replicate to: a target that waits for its source, or a new one."""

    target = OwnField(queryset=Vault.objects.select_related("region", "account"), required=False)
    new_target = NewTargetSerializer(required=False)
    limits = ReplicationLimitsField(required=False)

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        if ("target" in attrs) == ("new_target" in attrs):
            raise serializers.ValidationError("Give target or new_target.")
        return attrs


class ReplicationChangeSerializer(serializers.Serializer[Any]):
    """How fast the replica may follow from its next job on; takes the place of all limits that it had."""

    limits = ReplicationLimitsField()


class RecoveryProofSerializer(serializers.Serializer[Any]):
    """The recovery key, or as many of its shares as are needed. Not stored."""

    recovery_key = serializers.CharField(max_length=400, required=False, write_only=True)
    shares = serializers.ListField(
        child=serializers.CharField(max_length=400), required=False, write_only=True, max_length=16
    )

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        if ("recovery_key" in attrs) == ("shares" in attrs):
            raise serializers.ValidationError("Give recovery_key or shares.")
        return attrs


class WorkSerializer(serializers.Serializer[Any]):
    """One kind of upkeep: how it ended last, and when it is due next."""

    kind = serializers.CharField()
    state = serializers.CharField(allow_blank=True, help_text="Of the last job that ended; empty: there was none")
    job = serializers.UUIDField(allow_null=True)
    ended_at = serializers.DateTimeField(allow_null=True)
    summary = serializers.CharField(allow_blank=True)
    due_at = serializers.DateTimeField(allow_null=True, help_text="null: not by itself")


class DamageSerializer(serializers.Serializer[Any]):
    """One damaged or missing object, and what it touches."""

    object = serializers.CharField()
    damage = serializers.CharField()
    detail = serializers.CharField(allow_blank=True)
    points = serializers.ListField(child=serializers.CharField())
    files = serializers.IntegerField()
    first_files = serializers.ListField(child=serializers.CharField())
    advice = serializers.CharField(allow_blank=True)


class SystemExportSerializer(serializers.Serializer[Any]):
    """The last export of the control plane's rows into the vault: what a rebuild from the bucket starts with."""

    key = serializers.CharField(help_text="Its object in the bucket")
    exported_at = serializers.DateTimeField(allow_null=True)
    looked_at = serializers.DateTimeField(help_text="When it was last seen whether anything changed")
    error = serializers.CharField(allow_blank=True, help_text="Why the last attempt failed")


class DrillSerializer(serializers.Serializer[Any]):
    """One trial restore: how much came out of the vault, how fast, and in what it differed from what went in."""

    job = serializers.UUIDField()
    state = serializers.ChoiceField(choices=["complete", "failed", "canceled", "partial_complete"])
    vault = serializers.UUIDField()
    point = serializers.UUIDField(allow_null=True)
    ended_at = serializers.DateTimeField()
    summary = serializers.CharField()
    percent = serializers.IntegerField(allow_null=True)
    seed = serializers.IntegerField(allow_null=True, help_text="Draws the same files again")
    files = serializers.IntegerField(allow_null=True)
    bytes = serializers.IntegerField(allow_null=True)
    streamed = serializers.IntegerField(allow_null=True, help_text="Files too large for the scratch folder")
    differences = serializers.IntegerField(allow_null=True)
    seconds = serializers.FloatField(allow_null=True)
    bytes_per_s = serializers.FloatField(allow_null=True)


class ConditionSerializer(serializers.Serializer[Any]):
    """How a vault is: what was read of it, what is damaged, what was done last and comes next."""

    coverage = CoverageSerializer()
    verified_at = serializers.DateTimeField(allow_null=True)
    damaged = DamageSerializer(many=True)
    damaged_total = serializers.IntegerField()
    work = WorkSerializer(many=True)
    export = SystemExportSerializer(allow_null=True)


class RecoveryPointSerializer(serializers.ModelSerializer[RecoveryPoint]):
    class Meta:
        model = RecoveryPoint
        fields = [
            "id",
            "vault",
            "series",
            "point_id",
            "source_kind",
            "source_name",
            "host",
            "roots",
            "state",
            "started_at",
            "completed_at",
            "retention_days",
            "rule",
            "manual",
            "delete_due_at",
            "expires_at",
            "locked_until",
            "held_at",
            "held_by",
            "hold_reason",
            "entries_count",
            "bytes_total",
            "bytes_stored",
            "problems_count",
            "stats",
        ]


class EntrySerializer(serializers.Serializer[Any]):
    """One entry of a folder. `path_base64` holds the raw bytes, which need not be UTF-8; `path` is for people."""

    name = serializers.CharField()
    path = serializers.CharField()
    path_base64 = serializers.CharField()
    kind = serializers.ChoiceField(choices=ENTRY_KINDS)
    size = serializers.IntegerField()
    mode = serializers.CharField(help_text="Octal permissions")
    owner = serializers.CharField()
    group = serializers.CharField()
    modified_at = serializers.DateTimeField()
    target = serializers.CharField(help_text="Where a symbolic link leads")


class EntryPageSerializer(serializers.Serializer[Any]):
    path = serializers.CharField()
    next = serializers.CharField(allow_null=True, help_text="Give it as cursor for the next page")
    entries = EntrySerializer(many=True)
