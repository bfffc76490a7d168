"""Shapes of sources, policies and plans in the API."""

import zoneinfo
from typing import Any

from drf_spectacular.utils import PolymorphicProxySerializer, extend_schema_field
from rest_framework import serializers

from accounts import grants
from accounts.models import Account, Grant
from accounts.serializers import GrantedField, OwnField
from policies import copies, moments, retention
from policies.kinds import TYPES
from policies.models import Plan, Policy, Rule, Source
from policies.services import long_run
from vaults.limits import LimitsField
from vaults.models import PointState, Region, Vault


def _by_kind(part: str) -> dict[str, Any]:
    """Return the shapes of one part of all kinds, for the API's description."""
    return {kind: getattr(one, part) for kind, one in TYPES.items()}


SETTINGS = PolymorphicProxySerializer(
    component_name="SourceSettings", serializers=list(_by_kind("settings").values()), resource_type_field_name=None
)


CREDENTIALS = PolymorphicProxySerializer(
    component_name="SourceCredentials",
    serializers=list({one.__name__: one for one in _by_kind("credentials").values()}.values()),
    resource_type_field_name=None,
)


@extend_schema_field(SETTINGS)
class SettingsField(serializers.DictField):
    """What the source's kind says; checked when it is saved."""


@extend_schema_field(CREDENTIALS)
class CredentialsField(serializers.DictField):
    """The secrets that the source's kind takes, in the place of all that are stored."""

    child = serializers.CharField(max_length=65536, allow_blank=True)


class SourceSerializer(serializers.ModelSerializer[Source]):
    region = serializers.SlugRelatedField(slug_field="name", queryset=Region.objects.all())
    account = OwnField(queryset=Account.objects.all(), account_path="pk")
    settings = SettingsField()
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
            "tags",
            "has_credentials",
            "checked_at",
            "check_error",
            "warnings",
            "erasing_since",
            "erase_ends_at",
            "created_at",
        ]

    def get_has_credentials(self, source: Source) -> bool:
        return bool(source.credentials)


class SourceRequestSerializer(SourceSerializer):
    credentials = CredentialsField(required=False, write_only=True)
    skip_check = serializers.BooleanField(
        default=False, write_only=True, help_text="Save without trying the connection to what is read over the network"
    )

    class Meta:
        model = Source
        fields = ["account", "region", "name", "kind", "host", "settings", "tags", "credentials", "skip_check"]


class RuleSerializer(serializers.ModelSerializer[Rule]):
    """One rule. With the `id` of a rule that the policy has, that one is changed and what it made stays its own."""

    id = serializers.UUIDField(required=False)
    weekdays = serializers.ListField(
        child=serializers.IntegerField(min_value=1, max_value=7),
        required=False,
        max_length=7,
        help_text="1 Monday to 7 Sunday; empty is every day",
    )

    class Meta:
        model = Rule
        fields = [
            "id",
            "type",
            "cron",
            "every",
            "unit",
            "weekdays",
            "starts_on",
            "start_time",
            "window_minutes",
            "retention_days",
            "settings",
        ]


class PolicySerializer(serializers.ModelSerializer[Policy]):
    account = OwnField(queryset=Account.objects.all(), account_path="pk")
    vault = OwnField(queryset=Vault.objects.all(), required=False, allow_null=True)
    rules = RuleSerializer(many=True, required=False)
    limits = LimitsField(required=False)

    class Meta:
        model = Policy
        fields = [
            "id",
            "account",
            "name",
            "vault",
            "rules",
            "time_zone",
            "retention_days",
            "keep_last",
            "keep_daily",
            "keep_weekly",
            "keep_monthly",
            "keep_yearly",
            "keep_at_least_one",
            "keep_one_until",
            "limits",
            "drill_every_days",
            "drill_percent",
            "created_at",
        ]


class SavedPolicySerializer(PolicySerializer):
    """The policy after a change; needs `now` in the context."""

    warnings = serializers.SerializerMethodField()

    class Meta:
        model = Policy
        fields = [*PolicySerializer.Meta.fields, "warnings"]

    def get_warnings(self, policy: Policy) -> list[str]:
        return [*retention.warnings_on_disable(policy, now=self.context["now"]), *copies.warnings(policy)]


class CopySerializer(serializers.Serializer[Any]):
    """How one vault of a policy's plans follows in another region: `state` for programs, `text` for people."""

    vault = serializers.UUIDField(source="vault.pk")
    target = serializers.UUIDField(source="target.pk", allow_null=True, default=None)
    state = serializers.ChoiceField(choices=copies.STATES)
    text = serializers.CharField()


class VerdictSerializer(serializers.Serializer[Any]):
    """What becomes of a point: `reasons` tell why, `expires_at` is null when nothing tells a date."""

    point = serializers.UUIDField(source="row.pk")
    completed_at = serializers.DateTimeField(source="row.completed_at")
    state = serializers.ChoiceField(choices=PointState.choices, source="row.state")
    keep = serializers.BooleanField(source="verdict.keep")
    reasons = serializers.ListField(child=serializers.CharField(), source="verdict.reasons")
    expires_at = serializers.DateTimeField(source="verdict.expires_at", allow_null=True)
    held = serializers.SerializerMethodField()
    locked_until = serializers.DateTimeField(source="row.locked_until", allow_null=True)

    def get_held(self, judged: retention.Judged) -> bool:
        return judged.row.held_at is not None


class ChangePreviewSerializer(serializers.Serializer[Any]):
    """What changed rules would do to one source's points in one vault at the next expiry."""

    source = serializers.UUIDField(  # type: ignore[assignment]  # a declared field leaves the class, so it hides no attribute
        source="source.pk"
    )
    vault = serializers.UUIDField(source="vault.pk")
    points = serializers.IntegerField()
    going = VerdictSerializer(many=True)


class PlanSerializer(serializers.ModelSerializer[Plan]):
    trial_expires_at = serializers.DateTimeField(
        source="vault.trial_expires_at",
        read_only=True,
        allow_null=True,
        help_text="When the trial ends; null for a plan of none",
    )
    trial_release_at = serializers.DateTimeField(
        source="vault.trial_release_at",
        read_only=True,
        allow_null=True,
        help_text="When its vault goes unless the plan is converted",
    )

    class Meta:
        model = Plan
        fields = [
            "id",
            "account",
            "source",
            "policy",
            "vault",
            "edition",
            "state",
            "priority",
            "trial_expires_at",
            "trial_release_at",
            "time_zone",
            "start_not_before",
            "start_minute",
            "start_time",
            "catch_up",
            "last_run_at",
            "next_run_at",
            "next_rule",
            "next_drill_at",
            "created_at",
        ]


class PausedPlanSerializer(PlanSerializer):
    """The plan after it was paused; needs `now` in the context."""

    warnings = serializers.SerializerMethodField()

    class Meta:
        model = Plan
        fields = [*PlanSerializer.Meta.fields, "warnings"]

    def get_warnings(self, plan: Plan) -> list[str]:
        return retention.warnings_on_pause(plan, now=self.context["now"])


class PlanDetailSerializer(PlanSerializer):
    warnings = serializers.SerializerMethodField(help_text="What to know before the next run")

    class Meta:
        model = Plan
        fields = [*PlanSerializer.Meta.fields, "warnings"]

    def get_warnings(self, plan: Plan) -> list[str]:
        warning = long_run(plan)
        return [warning] if warning else []


class OwnRulesSerializer(serializers.ModelSerializer[Policy]):
    """What a policy says, for a plan that has none."""

    rules = RuleSerializer(many=True, required=False)

    class Meta:
        model = Policy
        fields = [
            "rules",
            "time_zone",
            "retention_days",
            "keep_last",
            "keep_daily",
            "keep_weekly",
            "keep_monthly",
            "keep_yearly",
            "keep_at_least_one",
        ]


class RunSerializer(serializers.Serializer[Any]):
    """A run to come, and the rule that says so."""

    moment = serializers.DateTimeField()
    local = serializers.SerializerMethodField(help_text="The same in the plan's time zone")
    time_zone = serializers.SerializerMethodField()
    rule = serializers.UUIDField(source="rule.pk")
    position = serializers.IntegerField(source="rule.position")

    def get_local(self, run: moments.Run) -> str:
        return run.moment.astimezone(zoneinfo.ZoneInfo(self.context["zone"])).isoformat()

    def get_time_zone(self, run: moments.Run) -> str:
        return str(self.context["zone"])


class SpanSerializer(serializers.Serializer[Any]):
    """A run to come of plans of a policy; where the start is drawn, between which moments."""

    earliest = serializers.DateTimeField()
    latest = serializers.DateTimeField()
    position = serializers.IntegerField(source="rule.position")


class UpgradeSerializer(serializers.Serializer[Any]):
    """A policy for a plan of its own rules: another one, or a name for its own (B19)."""

    policy = OwnField(queryset=Policy.objects.filter(inline=False), required=False)
    name = serializers.CharField(max_length=64, required=False)

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        if len(attrs) != 1:
            raise serializers.ValidationError("Give either a policy, or a name for the plan's own rules.")
        return attrs


class UpgradedPlanSerializer(PlanSerializer):
    """The plan after its upgrade; needs `warnings` in the context."""

    warnings = serializers.SerializerMethodField()

    class Meta:
        model = Plan
        fields = [*PlanSerializer.Meta.fields, "warnings"]

    def get_warnings(self, plan: Plan) -> list[str]:
        return list(self.context["warnings"])


class RegionSupportSerializer(serializers.Serializer[Any]):
    """Whether plans of a region's vaults take policies (B18)."""

    name = serializers.CharField()
    supports_policies = serializers.BooleanField()


class PlanRequestSerializer(serializers.Serializer[Plan]):
    """A plan needs all of source, policy and vault (B16); where the region supports no policies, rules of its own."""

    source = GrantedField(  # type: ignore[assignment]  # a declared field leaves the class, so it hides no attribute
        queryset=Source.objects.select_related("account", "region")
    )
    policy = OwnField(queryset=Policy.objects.filter(inline=False), required=False)
    own = OwnRulesSerializer(
        required=False, help_text="In place of a policy, where the vault's region supports none (B17)"
    )
    vault = OwnField(queryset=Vault.objects.select_related("account"))
    time_zone = serializers.CharField(default="", allow_blank=True, max_length=64)
    start_not_before = serializers.DateTimeField(default=None, allow_null=True)
    catch_up = serializers.BooleanField(default=False)


class GrantSerializer(serializers.ModelSerializer[Grant]):
    """What one account lets another do with its sources; needs `now` in the context. `sources` is empty for all."""

    grantor_name = serializers.CharField(source="grantor.name")
    grantee_name = serializers.CharField(source="grantee.name")
    sources = serializers.SerializerMethodField()
    privileges = serializers.ListField(child=serializers.CharField())
    state = serializers.SerializerMethodField(help_text="active, expired or revoked")

    class Meta:
        model = Grant
        fields = [
            "id",
            "grantor",
            "grantor_name",
            "grantee",
            "grantee_name",
            "all_sources",
            "sources",
            "privileges",
            "note",
            "state",
            "expires_at",
            "revoked_at",
            "created_at",
        ]

    def get_sources(self, grant: Grant) -> list[str]:
        return sorted(str(named.source_id) for named in grant.sources.all())

    def get_state(self, grant: Grant) -> str:
        return grants.state(grant, now=self.context["now"])


class GrantRequestSerializer(serializers.Serializer[Grant]):
    """A new grant: who gives what to whom. The grantee tells its id."""

    grantor = OwnField(queryset=Account.objects.all(), account_path="pk")
    grantee = serializers.PrimaryKeyRelatedField(queryset=Account.objects.all())
    all_sources = serializers.BooleanField(default=False)
    sources = OwnField(queryset=Source.objects.all(), many=True, default=list)
    privileges = serializers.ListField(child=serializers.ChoiceField(choices=grants.GIVEN), allow_empty=False)
    note = serializers.CharField(max_length=255, default="", allow_blank=True)
    expires_at = serializers.DateTimeField(default=None, allow_null=True)
