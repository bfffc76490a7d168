"""Shapes of sources, policies and plans in the API."""

from typing import Any

from rest_framework import serializers

from accounts.models import Account
from accounts.serializers import OwnField
from policies.models import Plan, Policy, Source
from vaults.models import Region, Vault


class FileSettingsSerializer(serializers.Serializer[Any]):
    """How to read a file source."""

    roots = serializers.ListField(child=serializers.CharField(max_length=4096), min_length=1)
    include = serializers.ListField(child=serializers.CharField(max_length=4096), required=False)
    exclude = serializers.ListField(child=serializers.CharField(max_length=4096), required=False)
    one_file_system = serializers.BooleanField(required=False)


class SourceSerializer(serializers.ModelSerializer[Source]):
    region = serializers.SlugRelatedField(slug_field="name", queryset=Region.objects.all())
    account = OwnField(queryset=Account.objects.all(), account_path="pk")
    settings = FileSettingsSerializer()
    warnings = serializers.ListField(child=serializers.CharField(), read_only=True)
    has_credentials = serializers.SerializerMethodField()

    class Meta:
        model = Source
        fields = [
            "id",
            "account",
            "region",
            "name",
            "kind",
            "host",
            "settings",
            "has_credentials",
            "warnings",
            "created_at",
        ]

    def get_has_credentials(self, source: Source) -> bool:
        return bool(source.credentials)


class SourceRequestSerializer(SourceSerializer):
    credentials = serializers.DictField(child=serializers.CharField(max_length=4096), required=False, write_only=True)

    class Meta:
        model = Source
        fields = ["account", "region", "name", "kind", "host", "settings", "credentials"]


class PolicySerializer(serializers.ModelSerializer[Policy]):
    account = OwnField(queryset=Account.objects.all(), account_path="pk")

    class Meta:
        model = Policy
        fields = [
            "id",
            "account",
            "name",
            "cron",
            "every",
            "unit",
            "starts_on",
            "start_time",
            "time_zone",
            "retention_days",
            "created_at",
        ]


class PlanSerializer(serializers.ModelSerializer[Plan]):
    class Meta:
        model = Plan
        fields = [
            "id",
            "account",
            "source",
            "policy",
            "vault",
            "state",
            "start_minute",
            "catch_up",
            "next_run_at",
            "created_at",
        ]


class PlanRequestSerializer(serializers.Serializer[Plan]):
    """A plan needs all of source, policy and vault (B16)."""

    source = OwnField(  # type: ignore[assignment]  # a declared field leaves the class, so it hides no attribute
        queryset=Source.objects.select_related("account")
    )
    policy = OwnField(queryset=Policy.objects.all())
    vault = OwnField(queryset=Vault.objects.all())
    catch_up = serializers.BooleanField(default=False)
