"""Shapes of jobs, steps and events in the API."""

from typing import Any

from drf_spectacular.utils import PolymorphicProxySerializer
from rest_framework import serializers

from accounts.serializers import OwnField
from jobs.models import Job, JobEvent, Step
from jobs.services import VERIFY_LEVELS, Selection
from jobs.states import Kind
from policies.models import Plan, Source
from vaults.models import RecoveryPoint, Vault

JOB_FIELDS = [
    "id",
    "account",
    "kind",
    "state",
    "trigger",
    "vault",
    "source",
    "plan",
    "point",
    "scheduled_for",
    "settings",
    "stage",
    "phase",
    "units_total",
    "units_done",
    "entries_total",
    "entries_done",
    "bytes_total",
    "bytes_done",
    "bytes_stored",
    "problems_count",
    "error",
    "error_code",
    "created_at",
    "started_at",
    "ended_at",
]


class JobSerializer(serializers.ModelSerializer[Job]):
    class Meta:
        model = Job
        fields = JOB_FIELDS


class StepSerializer(serializers.ModelSerializer[Step]):
    class Meta:
        model = Step
        fields = [
            "id",
            "round",
            "stage",
            "number",
            "state",
            "attempt",
            "queue",
            "worker",
            "error",
            "entries_done",
            "bytes_done",
            "bytes_stored",
            "started_at",
            "ended_at",
        ]


class JobEventSerializer(serializers.ModelSerializer[JobEvent]):
    class Meta:
        model = JobEvent
        fields = ["happened_at", "level", "text"]


class JobDetailSerializer(JobSerializer):
    report = serializers.DictField()
    events = JobEventSerializer(many=True)

    class Meta:
        model = Job
        fields = [*JOB_FIELDS, "report", "events"]


class BackupRequestSerializer(serializers.Serializer[Any]):
    kind = serializers.ChoiceField(choices=[Kind.BACKUP.value])
    plan = OwnField(queryset=Plan.objects.select_related("account", "source", "vault__region", "policy"))
    deep = serializers.BooleanField(default=False, help_text="Read everything again, changed or not")


class RestoreRequestSerializer(serializers.Serializer[Any]):
    kind = serializers.ChoiceField(choices=[Kind.RESTORE.value])
    point = OwnField(
        queryset=RecoveryPoint.objects.select_related("vault__account", "vault__region"), account_path="vault__account"
    )
    mode = serializers.ChoiceField(choices=["all", "include", "exclude"], default="all")
    patterns = serializers.ListField(child=serializers.CharField(max_length=4096), default=list)
    to = serializers.CharField(
        max_length=4096, default="", allow_blank=True, help_text="An existing folder; empty is the original path"
    )
    destination = OwnField(
        queryset=Source.objects.select_related("region"),
        default=None,
        allow_null=True,
        help_text="The source whose host to restore to; left out, the original one",
    )
    same_name = serializers.ChoiceField(choices=["skip", "overwrite"], default="skip")
    overwrite_confirmed = serializers.BooleanField(default=False)

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        if attrs["to"] and (not attrs["to"].startswith("/") or ".." in attrs["to"].split("/")):
            raise serializers.ValidationError({"to": "Give an absolute path without '..'."})
        if (attrs["mode"] == "all") == bool(attrs["patterns"]):
            raise serializers.ValidationError({"patterns": "include and exclude need patterns, all takes none."})
        return attrs

    def selection(self) -> Selection:
        """Return what was asked for as the service takes it."""
        wanted = {name: value for name, value in self.validated_data.items() if name not in ("kind", "point")}
        return Selection(**wanted)


class VerifyRequestSerializer(serializers.Serializer[Any]):
    kind = serializers.ChoiceField(choices=[Kind.VERIFY.value])
    vault = OwnField(queryset=Vault.objects.select_related("account", "region"))
    level = serializers.ChoiceField(choices=VERIFY_LEVELS, default="structure")


REQUESTS: dict[str, type[serializers.Serializer[Any]]] = {
    Kind.BACKUP.value: BackupRequestSerializer,
    Kind.RESTORE.value: RestoreRequestSerializer,
    Kind.VERIFY.value: VerifyRequestSerializer,
}
JobRequest = PolymorphicProxySerializer(
    component_name="JobRequest", serializers=dict(REQUESTS), resource_type_field_name="kind"
)
