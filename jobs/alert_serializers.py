"""Shapes of alerts, their rules, channels and silences in the API."""

from typing import Any

from django.utils.functional import cached_property
from rest_framework import serializers

from accounts.models import Account
from accounts.serializers import OwnField
from accounts.states import Role
from jobs import channels
from jobs.alert_models import HOURS_MAX, Alert, AlertRule, AlertType, Channel, ChannelKind, Delivery, Severity, Silence
from policies.models import Plan, Source
from vaults.models import Vault

SEVERITIES = {severity.value: severity.name.lower() for severity in Severity}
_NUMBERS = {name: number for number, name in SEVERITIES.items()}


class SeverityField(serializers.ChoiceField):
    """A severity by its name."""

    def __init__(self, **kwargs: Any) -> None:
        kwargs.pop("choices", None)
        super().__init__(choices=list(_NUMBERS), **kwargs)

    def to_representation(self, value: Any) -> str:
        return SEVERITIES[int(value)]

    def to_internal_value(self, data: Any) -> Any:
        return _NUMBERS[super().to_internal_value(data)]


class AlertSerializer(serializers.ModelSerializer[Alert]):
    """`change` counts what was worth telling: raised, more severe, resolved. `silenced_until` may lie in the past."""

    severity = SeverityField()
    detail = serializers.DictField()

    class Meta:
        model = Alert
        fields = [
            "id",
            "account",
            "type",
            "severity",
            "state",
            "title",
            "text",
            "detail",
            "source",
            "vault",
            "plan",
            "job",
            "count",
            "change",
            "in_inbox",
            "silenced_until",
            "first_at",
            "last_at",
            "resolved_at",
            "acknowledged_at",
            "acknowledged_by",
        ]


class DeliverySerializer(serializers.ModelSerializer[Delivery]):
    """One change of one alert on its way through one channel; `alert` is null for a test."""

    class Meta:
        model = Delivery
        fields = ["id", "channel", "alert", "told", "state", "attempt", "next_at", "error", "created_at", "ended_at"]


class AlertDetailSerializer(AlertSerializer):
    deliveries = DeliverySerializer(many=True)

    class Meta:
        model = Alert
        fields = [*AlertSerializer.Meta.fields, "deliveries"]


class _NarrowedSerializer(serializers.Serializer[Any]):
    account = OwnField(queryset=Account.objects.all(), account_path="pk")
    source = OwnField(  # type: ignore[assignment]  # a declared field leaves the class, so it hides no attribute
        queryset=Source.objects.all(), required=False, allow_null=True
    )
    vault = OwnField(queryset=Vault.objects.all(), required=False, allow_null=True)
    plan = OwnField(queryset=Plan.objects.all(), required=False, allow_null=True)


class SilenceSerializer(_NarrowedSerializer, serializers.ModelSerializer[Silence]):
    """What is left out fits everything of the account."""

    type = serializers.ChoiceField(choices=AlertType.choices, required=False, allow_blank=True, default="")

    class Meta:
        model = Silence
        fields = [
            "id", "account", "type", "source", "vault", "plan", "until", "reason", "created_by", "created_at",
        ]  # fmt: skip


class SilenceRequestSerializer(serializers.Serializer[Any]):
    """A silence over what an alert is about: its type, and its plan, or else its source and vault."""

    until = serializers.DateTimeField()
    reason = serializers.CharField(max_length=255)


class AlertRuleSerializer(_NarrowedSerializer, serializers.ModelSerializer[AlertRule]):
    """`types` empty is all. `builtin` names a rule that every account has."""

    severity_min = SeverityField(default=Severity.WARNING.value)
    types = serializers.ListField(child=serializers.ChoiceField(choices=AlertType.choices), required=False)
    channels = OwnField(queryset=Channel.objects.all(), many=True, required=False)

    class Meta:
        model = AlertRule
        fields = [
            "id",
            "account",
            "name",
            "enabled",
            "builtin",
            "types",
            "severity_min",
            "source",
            "vault",
            "plan",
            "inbox",
            "channels",
            "tell_resolved",
            "quiet_from",
            "quiet_until",
            "time_zone",
            "created_at",
        ]


class ChannelPeopleSerializer(serializers.Serializer[Any]):
    """Whom an e-mail channel writes to: members in these roles, and addresses of its own."""

    roles = serializers.ListField(child=serializers.ChoiceField(choices=Role.choices), required=False)
    addresses = serializers.ListField(child=serializers.EmailField(), required=False)


class ChannelSerializer(serializers.ModelSerializer[Channel]):
    """`shown` is what may be seen of a sealed address; `note` what somebody should know, empty for nothing."""

    account = OwnField(queryset=Account.objects.all(), account_path="pk")
    settings = ChannelPeopleSerializer(required=False, help_text="For e-mail")
    note = serializers.SerializerMethodField()

    class Meta:
        model = Channel
        fields = [
            "id",
            "account",
            "name",
            "kind",
            "enabled",
            "settings",
            "shown",
            "is_default",
            "failures",
            "retry_at",
            "note",
            "created_at",
        ]

    def get_note(self, channel: Channel) -> str:
        return channels.note(channel, reached=self._reached)

    @cached_property
    def _reached(self) -> set[Any]:
        """Return which of the channels that are shown together have somebody to write to."""
        whole = getattr(self, "parent", None)
        rows: Any = whole.instance if whole else [self.instance]
        return channels.addressed(row for row in rows or [] if isinstance(row, Channel))


class ChannelRequestSerializer(ChannelSerializer):
    url = serializers.CharField(
        max_length=2000, write_only=True, required=False,
        help_text="Of a webhook: https://…; else as Apprise writes it, such as slack://…",
    )  # fmt: skip
    secret = serializers.CharField(
        max_length=200, write_only=True, required=False, help_text="A webhook's messages are signed with it"
    )
    kind = serializers.ChoiceField(choices=ChannelKind.choices)

    class Meta:
        model = Channel
        fields = ["account", "name", "kind", "enabled", "settings", "url", "secret"]


class WatchSerializer(serializers.Serializer[Any]):
    """After how long without a successful backup somebody is told."""

    hours = serializers.IntegerField(
        allow_null=True,
        min_value=0,
        max_value=HOURS_MAX,
        help_text="null: when the schedule came round twice since the last success; 0: never",
    )
    since = serializers.DateTimeField(read_only=True)
    overdue_at = serializers.DateTimeField(read_only=True, allow_null=True)
