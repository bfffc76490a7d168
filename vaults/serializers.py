"""Shapes of regions, vaults and recovery points in the API. Credentials go in and never come out."""

from typing import Any

from rest_framework import serializers

from accounts.models import Account
from accounts.serializers import OwnField
from engine.entries import Kind
from vaults.models import RecoveryPoint, Region, Vault, VaultType

ENTRY_KINDS = [kind.name.lower() for kind in Kind]
REGION_FIELDS = [
    "name",
    "url",
    "endpoint",
    "store_region",
    "path_style",
    "tls_verify",
    "ca_file",
    "bytes_per_s",
    "supports_policies",
    "supports_replication",
    "redundancy",
]


class CapabilitiesSerializer(serializers.Serializer[Any]):
    """What the last probe found the store able to do."""

    readable = serializers.BooleanField()
    writable = serializers.BooleanField()
    versioned = serializers.BooleanField()
    object_lock = serializers.BooleanField()
    retention = serializers.CharField()
    problems = serializers.ListField(child=serializers.CharField())


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


class VaultSerializer(serializers.ModelSerializer[Vault]):
    region = serializers.SlugRelatedField[Region](slug_field="name", read_only=True)
    points_count = serializers.IntegerField(read_only=True)
    bytes_stored = serializers.IntegerField(read_only=True)

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
            "points_count",
            "bytes_stored",
            "created_at",
        ]


class VaultRequestSerializer(serializers.Serializer[Vault]):
    account = OwnField(queryset=Account.objects.all(), account_path="pk")
    region = serializers.SlugRelatedField(slug_field="name", queryset=Region.objects.all())
    name = serializers.CharField(min_length=1, max_length=64)
    description = serializers.CharField(max_length=255, required=False, allow_blank=True)
    type = serializers.ChoiceField(choices=VaultType.choices, default=VaultType.GENERAL)


class VaultChangeSerializer(serializers.Serializer[Vault]):
    name = serializers.CharField(min_length=1, max_length=64, required=False)
    description = serializers.CharField(max_length=255, required=False, allow_blank=True)


class NewVaultSerializer(serializers.Serializer[Any]):
    vault = VaultSerializer()
    recovery_key = serializers.CharField(help_text="Opens the vault without this service. Shown once, kept nowhere.")


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
            "expires_at",
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
