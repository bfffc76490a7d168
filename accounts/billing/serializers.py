"""Shapes of usage, reports, prices and allowances in the API. Amounts are decimals written as text."""

from typing import Any

from rest_framework import serializers

from accounts.metering import PRICE_DECIMALS, PRICE_DIGITS, Meter, MeteringMode
from accounts.models import Account, Allowance, Price, Usage
from accounts.pricing import LINE_DECIMALS, TOTAL_DECIMALS
from accounts.serializers import OwnField

_SUBJECT = ["region", "vault", "vault_name", "source", "source_name", "host", "variant"]


class UsageSerializer(serializers.ModelSerializer[Usage]):
    class Meta:
        model = Usage
        fields = ["account", "day", "meter", *_SUBJECT, "quantity", "estimated", "trial"]


class AmountSerializer(serializers.Serializer[Any]):
    currency = serializers.CharField()
    amount = serializers.DecimalField(max_digits=40, decimal_places=LINE_DECIMALS)


class TotalSerializer(serializers.Serializer[Any]):
    currency = serializers.CharField()
    amount = serializers.DecimalField(max_digits=40, decimal_places=TOTAL_DECIMALS)


class LineSerializer(serializers.Serializer[Any]):
    """What one subject used in the month. `quantity` of a level is a sum over days, of bytes and days."""

    meter = serializers.ChoiceField(choices=Meter.choices)
    unit = serializers.CharField(help_text="What the price is for")
    region = serializers.CharField()
    vault = serializers.CharField()
    vault_name = serializers.CharField()
    # A declared field leaves the class, so it hides no attribute of it.
    source = serializers.CharField()  # type: ignore[assignment]  # see above
    source_name = serializers.CharField()
    host = serializers.CharField()
    variant = serializers.CharField(help_text="Verb of requests, network class of restores, source vault of a replica")
    trial = serializers.BooleanField(help_text="Used by a trial: costs nothing")
    days = serializers.IntegerField()
    days_estimated = serializers.IntegerField(help_text="Days that nobody measured in time")
    quantity = serializers.IntegerField()
    average = serializers.IntegerField(allow_null=True, help_text="Of a level, over the metered days of the month")
    free = serializers.IntegerField(help_text="Of the quantity, what the free allowance covers")
    prepaid = serializers.IntegerField(help_text="Of the quantity, what is prepaid")
    priced = serializers.IntegerField()
    amounts = AmountSerializer(many=True)


class SourcePartSerializer(serializers.Serializer[Any]):
    """A source's part of a vault, on average: bytes for it alone, its fair part of shared ones, and of the costs."""

    source = serializers.CharField()  # type: ignore[assignment]  # as in a line
    source_name = serializers.CharField()
    region = serializers.CharField()
    vault = serializers.CharField()
    vault_name = serializers.CharField()
    unique = serializers.IntegerField()
    shared = serializers.IntegerField()
    amounts = AmountSerializer(many=True)


class DaySerializer(serializers.Serializer[Any]):
    day = serializers.DateField()
    vault_bytes = serializers.IntegerField()
    replica_bytes = serializers.IntegerField()
    protected_bytes = serializers.IntegerField()
    attached_bytes = serializers.IntegerField()


class ReportSerializer(serializers.Serializer[Any]):
    account = serializers.UUIDField()
    account_name = serializers.CharField()
    month = serializers.CharField()
    closed = serializers.BooleanField(help_text="Nothing of the month changes any more")
    days_metered = serializers.IntegerField()
    days_estimated = serializers.IntegerField()
    totals = TotalSerializer(many=True)
    lines = LineSerializer(many=True)
    sources = SourcePartSerializer(many=True)
    days = DaySerializer(many=True)


class PriceSerializer(serializers.ModelSerializer[Price]):
    """`account` empty is every account without a price of its own."""

    account = OwnField(queryset=Account.objects.all(), account_path="pk", allow_null=True, default=None)
    price = serializers.DecimalField(max_digits=PRICE_DIGITS, decimal_places=PRICE_DECIMALS, min_value=0)

    class Meta:
        model = Price
        fields = ["id", "account", "meter", "variant", "price", "currency", "valid_from", "created_at"]
        read_only_fields = ["created_at"]
        validators: list[Any] = []  # the service says it better


class AllowanceSerializer(serializers.ModelSerializer[Allowance]):
    """`account` empty is every account; only a free allowance may be for all."""

    account = OwnField(queryset=Account.objects.all(), account_path="pk", allow_null=True, default=None)
    meter = serializers.CharField(max_length=24, allow_blank=True, default="", help_text="Of what is prepaid")

    class Meta:
        model = Allowance
        fields = ["id", "account", "kind", "meter", "bytes", "starts_on", "ends_on", "note", "created_at"]
        read_only_fields = ["created_at"]


class EndSerializer(serializers.Serializer[Any]):
    ends_on = serializers.DateField(help_text="The last day on which it holds")


class ModeSerializer(serializers.Serializer[Any]):
    account = OwnField(queryset=Account.objects.all(), account_path="pk")
    mode = serializers.ChoiceField(choices=MeteringMode.choices)
