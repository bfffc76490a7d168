"""Shapes of jobs, steps and events in the API."""

from typing import Any

from drf_spectacular.utils import PolymorphicProxySerializer, extend_schema_field
from rest_framework import serializers

from accounts.serializers import GrantedField, OwnField
from jobs import starts
from jobs.course import look, statistics
from jobs.maintenance import every_s
from jobs.models import Duty, Job, JobEvent, Step
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
    "statistics",
    "error",
    "error_code",
    "retry_of",
    "created_at",
    "started_at",
    "ended_at",
]


class StatisticsSerializer(serializers.Serializer[Any]):
    """What a job counted; null is what does not apply to its kind, or is known only at its end."""

    bytes_logical = serializers.IntegerField(allow_null=True, help_text="Size of the recovery point")
    bytes_processed = serializers.IntegerField(allow_null=True, help_text="Read, or written by a restore")
    bytes_new = serializers.IntegerField(allow_null=True, help_text="Of what was read, what the vault did not hold")
    bytes_stored = serializers.IntegerField(allow_null=True, help_text="Compressed and encrypted, as stored for it")
    files_total = serializers.IntegerField(allow_null=True, help_text="Found in the source")
    files_done = serializers.IntegerField(allow_null=True, help_text="In the point, or restored")
    files_new = serializers.IntegerField(allow_null=True)
    files_changed = serializers.IntegerField(allow_null=True)
    files_unchanged = serializers.IntegerField(allow_null=True)
    files_deleted = serializers.IntegerField(allow_null=True, help_text="In the point before, and not found any more")
    entries_total = serializers.IntegerField(allow_null=True, help_text="Files, folders, links, ...")
    entries_done = serializers.IntegerField(allow_null=True)
    skipped = serializers.DictField(child=serializers.IntegerField(), help_text="What was left out, by reason")


class CourseSerializer(serializers.Serializer[Any]):
    """A moment of a running job; null is what is not known yet."""

    stage = serializers.CharField()
    phase = serializers.CharField(help_text="scan, process, upload, commit, restore, ...: what goes on now")
    share = serializers.FloatField(allow_null=True, help_text="How much is done, of 1")
    bytes_per_s = serializers.FloatField(allow_null=True, help_text="Over about the last 30 s")
    entries_per_s = serializers.FloatField(allow_null=True, help_text="Over about the last 30 s")
    elapsed_s = serializers.FloatField(allow_null=True)
    left_s = serializers.FloatField(allow_null=True, help_text="Remaining time")
    basis = serializers.CharField(help_text="What left_s is made of: speed, or last_run")


class JobSerializer(serializers.ModelSerializer[Job]):
    statistics = serializers.SerializerMethodField()

    class Meta:
        model = Job
        fields = JOB_FIELDS

    @extend_schema_field(StatisticsSerializer)
    def get_statistics(self, job: Job) -> dict[str, Any]:
        return statistics(job)


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
    progress = serializers.SerializerMethodField()

    class Meta:
        model = Job
        fields = [*JOB_FIELDS, "progress", "report", "events"]

    @extend_schema_field(CourseSerializer)
    def get_progress(self, job: Job) -> dict[str, Any]:
        return look(job, now=self.context["now"])._asdict()


class RetryRequestSerializer(serializers.Serializer[Any]):
    failed_only = serializers.BooleanField(default=False, help_text="Of a restore: only what failed")


class BackupRequestSerializer(serializers.Serializer[Any]):
    kind = serializers.ChoiceField(choices=[Kind.BACKUP.value])
    plan = OwnField(queryset=Plan.objects.select_related("account", "source", "vault__region", "policy"))
    deep = serializers.BooleanField(default=False, help_text="Read everything again, changed or not")


class OnDemandRequestSerializer(serializers.Serializer[Any]):
    """What a manual backup of a cluster needs."""

    vault = OwnField(queryset=Vault.objects.select_related("account", "region"))
    deep = serializers.BooleanField(default=False, help_text="Read everything again, changed or not")


class RestoreRequestSerializer(serializers.Serializer[Any]):
    kind = serializers.ChoiceField(choices=[Kind.RESTORE.value])
    point = OwnField(
        queryset=RecoveryPoint.objects.select_related("vault__account", "vault__region"), account_path="vault__account"
    )
    mode = serializers.ChoiceField(choices=["all", "include", "exclude"], default="all")
    patterns = serializers.ListField(child=serializers.CharField(max_length=4096), default=list)
    to = serializers.CharField(
        max_length=4096,
        default="",
        allow_blank=True,
        help_text="An existing folder, a bucket, a database, ... as the destination's kind says; empty is the original",
    )
    destination = GrantedField(
        queryset=Source.objects.select_related("region"),
        default=None,
        allow_null=True,
        help_text="The source whose host, bucket, server, ... to restore to; left out, the original one",
    )
    same_name = serializers.ChoiceField(choices=["skip", "overwrite"], default="skip")
    overwrite_confirmed = serializers.BooleanField(default=False)

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
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


class _MaintenanceRequestSerializer(serializers.Serializer[Any]):
    vault = OwnField(queryset=Vault.objects.select_related("account", "region"))

    def wanted(self) -> dict[str, Any]:
        """Return what was asked for as the job's settings keep it."""
        return {name: value for name, value in self.validated_data.items() if name not in ("kind", "vault") and value}


class ExpireRequestSerializer(_MaintenanceRequestSerializer):
    kind = serializers.ChoiceField(choices=[Kind.EXPIRE.value])
    dry_run = serializers.BooleanField(default=False, help_text="Only tell, in the job's report, what would go and why")
    confirmed = serializers.BooleanField(
        default=False, help_text="Expire more than a fifth of the points, or by a clock that jumped"
    )


class PruneRequestSerializer(_MaintenanceRequestSerializer):
    kind = serializers.ChoiceField(choices=[Kind.PRUNE.value])
    dry_run = serializers.BooleanField(default=False, help_text="Only tell what would be freed")


class CompactRequestSerializer(_MaintenanceRequestSerializer):
    kind = serializers.ChoiceField(choices=[Kind.COMPACT.value])
    dry_run = serializers.BooleanField(default=False, help_text="Only tell what would be rewritten")


class AuditRequestSerializer(_MaintenanceRequestSerializer):
    kind = serializers.ChoiceField(choices=[Kind.AUDIT.value])


class RebuildRequestSerializer(_MaintenanceRequestSerializer):
    kind = serializers.ChoiceField(choices=[Kind.REBUILD.value])


class DisasterRequestSerializer(_MaintenanceRequestSerializer):
    kind = serializers.ChoiceField(choices=[Kind.DISASTER.value])


class DrillRequestSerializer(_MaintenanceRequestSerializer):
    kind = serializers.ChoiceField(choices=[Kind.DRILL.value])
    source = OwnField(  # type: ignore[assignment]  # a declared field leaves the class, so it hides no attribute
        queryset=Source.objects.select_related("account"), help_text="Whose newest point in the vault is restored"
    )
    percent = serializers.IntegerField(
        default=100, min_value=1, max_value=100, help_text="Share of the point's files that is restored"
    )


REQUESTS: dict[str, type[serializers.Serializer[Any]]] = {
    Kind.BACKUP.value: BackupRequestSerializer,
    Kind.RESTORE.value: RestoreRequestSerializer,
    Kind.VERIFY.value: VerifyRequestSerializer,
    Kind.EXPIRE.value: ExpireRequestSerializer,
    Kind.PRUNE.value: PruneRequestSerializer,
    Kind.COMPACT.value: CompactRequestSerializer,
    Kind.AUDIT.value: AuditRequestSerializer,
    Kind.REBUILD.value: RebuildRequestSerializer,
    Kind.DRILL.value: DrillRequestSerializer,
    Kind.DISASTER.value: DisasterRequestSerializer,
}
JobRequest = PolymorphicProxySerializer(
    component_name="JobRequest", serializers=dict(REQUESTS), resource_type_field_name="kind"
)


class PasswordsSerializer(serializers.Serializer[Any]):
    """What a restore made anew, one line each. Shown once, then kept nowhere."""

    passwords = serializers.ListField(child=serializers.CharField())


class HoldRequestSerializer(serializers.Serializer[Any]):
    reason = serializers.CharField(max_length=255, help_text="Why nobody may delete the point, for people")


class TypedRequestSerializer(serializers.Serializer[Any]):
    confirmation = serializers.CharField(max_length=64, help_text="The source's name, typed")


class ErasureSerializer(serializers.Serializer[Any]):
    """What the deletion of a source's backups met; locked points go when their locks end, held ones once released."""

    points = serializers.IntegerField()
    held = serializers.IntegerField()
    locked = serializers.IntegerField()
    ends_at = serializers.DateTimeField(allow_null=True, help_text="When the last lock ends, null without one")


class DutySerializer(serializers.ModelSerializer[Duty]):
    """One kind of maintenance of a vault, and how it went last. `waiting` are the sessions that a prune waits for."""

    every_s = serializers.SerializerMethodField()
    is_own = serializers.SerializerMethodField(help_text="Whether the interval is the vault's own")
    last_job = JobSerializer(allow_null=True)
    waiting = serializers.ListField(child=serializers.CharField())

    class Meta:
        model = Duty
        fields = ["kind", "every_s", "is_own", "due_at", "waiting", "last_job"]

    def get_every_s(self, duty: Duty) -> int:
        return every_s(duty.vault, duty.kind)

    def get_is_own(self, duty: Duty) -> bool:
        return duty.kind in duty.vault.maintenance


def _interval() -> serializers.IntegerField:
    return serializers.IntegerField(
        required=False, allow_null=True, help_text="Seconds; 0 is never, null follows the installation"
    )


class IntervalsSerializer(serializers.Serializer[Any]):
    """How often a vault needs each kind of maintenance; what is left out stays."""

    expire = _interval()
    prune = _interval()
    compact = _interval()
    verify = _interval()
    audit = _interval()
    disaster = _interval()


class StartTimeSerializer(serializers.Serializer[Any]):
    start_time = serializers.TimeField(
        allow_null=True, help_text="In the plan's time zone; null is the policy's time, or the drawn one"
    )


class StartEffectSerializer(serializers.Serializer[Any]):
    """What a new time of day means for today's run."""

    case = serializers.ChoiceField(choices=starts.Case.choices)
    text = serializers.CharField(source="case.label")
    next_run_at = serializers.DateTimeField(allow_null=True)
