"""Endpoints of alerts: the inbox, who hears of what, and through which channel."""

from typing import Any, ClassVar

import django_filters
from django.utils import timezone
from drf_spectacular.utils import extend_schema
from rest_framework import mixins, status
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.serializers import BaseSerializer

from accounts.models import Account
from accounts.permissions import MANAGE_ALERTS
from accounts.views import AccountViewSet, Pages, actor_of, user_of
from jobs import channels, watches
from jobs.alert_models import Alert, AlertRule, Channel, Silence, Watch
from jobs.alert_serializers import (
    SEVERITIES,
    AlertDetailSerializer,
    AlertRuleSerializer,
    AlertSerializer,
    ChannelRequestSerializer,
    ChannelSerializer,
    DeliverySerializer,
    SilenceRequestSerializer,
    SilenceSerializer,
    WatchSerializer,
)
from jobs.views import StartedPlanView

_ALERT = Alert.objects.select_related("account")


class AlertPages(Pages):
    ordering: Any = ("-last_at", "-pk")


class AlertFilter(django_filters.FilterSet):
    severity = django_filters.ChoiceFilter(
        choices=[(name, name) for name in SEVERITIES.values()], method="by_severity", label="This severity, or worse"
    )
    acknowledged = django_filters.BooleanFilter(field_name="acknowledged_at", lookup_expr="isnull", exclude=True)

    class Meta:
        model = Alert
        fields: ClassVar = {
            "account": ["exact"],
            "type": ["exact", "in"],
            "state": ["exact"],
            "in_inbox": ["exact"],
            "source": ["exact"],
            "vault": ["exact"],
            "plan": ["exact"],
            "job": ["exact"],
            "last_at": ["gte", "lte"],
        }

    def by_severity(self, queryset: Any, name: str, value: str) -> Any:
        number = next(number for number, text in SEVERITIES.items() if text == value)
        return queryset.filter(severity__gte=number)


class AlertView(mixins.ListModelMixin, mixins.RetrieveModelMixin, AccountViewSet[Alert]):
    """Alerts of the caller's accounts, the latest first."""

    queryset = _ALERT
    pagination_class = AlertPages
    filterset_class = AlertFilter
    permissions: ClassVar = {"acknowledge": MANAGE_ALERTS, "silence": MANAGE_ALERTS}

    def get_serializer_class(self) -> type[BaseSerializer[Any]]:
        return AlertDetailSerializer if self.action == "retrieve" else AlertSerializer

    @extend_schema(request=None, responses={200: AlertSerializer})
    @action(detail=True, methods=["post"])
    def acknowledge(self, request: Request, pk: str) -> Response:
        """Say that somebody takes care; 409 `alert_resolved` when it is over."""
        alert = channels.acknowledge(self.get_object(), actor=actor_of(request), now=timezone.now())
        return Response(AlertSerializer(alert).data)

    @extend_schema(request=SilenceRequestSerializer, responses={201: SilenceSerializer})
    @action(detail=True, methods=["post"])
    def silence(self, request: Request, pk: str) -> Response:
        """Silence what this alert is about until a moment; 409 `silence_past`."""
        wanted = channels.alike(self.get_object())
        for name, value in self.checked(SilenceRequestSerializer).items():
            setattr(wanted, name, value)
        made = channels.silence(wanted, actor=actor_of(request), now=timezone.now())
        return Response(SilenceSerializer(made).data, status=status.HTTP_201_CREATED)


class SilenceView(mixins.ListModelMixin, mixins.RetrieveModelMixin, AccountViewSet[Silence]):
    """Silences of the caller's accounts, also those that are over."""

    queryset = Silence.objects.select_related("account")
    serializer_class = SilenceSerializer
    filterset_fields: ClassVar = {"account": ["exact"], "until": ["gte", "lte"]}
    permissions: ClassVar = {"end": MANAGE_ALERTS}

    @extend_schema(request=SilenceSerializer, responses={201: SilenceSerializer})
    def create(self, request: Request) -> Response:
        """Deliver nothing of a type, a source, a vault or a plan until a moment, and say why."""
        wanted = Silence(**self.checked(SilenceSerializer))
        self.need(MANAGE_ALERTS, wanted)
        made = channels.silence(wanted, actor=actor_of(request), now=timezone.now())
        return Response(SilenceSerializer(made).data, status=status.HTTP_201_CREATED)

    @extend_schema(request=None, responses={200: SilenceSerializer})
    @action(detail=True, methods=["post"])
    def end(self, request: Request, pk: str) -> Response:
        """End the silence now; trouble that goes on is told then."""
        ended = channels.end_silence(self.get_object(), actor=actor_of(request), now=timezone.now())
        return Response(SilenceSerializer(ended).data)


class _ManagedView(mixins.ListModelMixin, mixins.RetrieveModelMixin, AccountViewSet[Any]):
    permissions: ClassVar = dict.fromkeys(("partial_update", "destroy", "test"), MANAGE_ALERTS)

    def filter_queryset(self, queryset: Any) -> Any:
        """Let every account have its own rules and channel before somebody looks."""
        seen = Account.objects.visible_to(user_of(self.request))
        channels.of_accounts(seen, now=timezone.now())
        return super().filter_queryset(queryset)

    @extend_schema(request=None, responses={204: None})
    def destroy(self, request: Request, pk: str) -> Response:
        """Delete it; 409 `builtin_kept` for what every account has."""
        channels.delete(self.get_object(), actor=actor_of(request), now=timezone.now())
        return Response(status=status.HTTP_204_NO_CONTENT)


class AlertRuleView(_ManagedView):
    """Rules of the caller's accounts: which alerts go where."""

    queryset = AlertRule.objects.select_related("account").prefetch_related("channels")
    serializer_class = AlertRuleSerializer
    filterset_fields: ClassVar = ["account", "enabled"]

    def _save(self, request: Request, rule: AlertRule, values: dict[str, Any]) -> AlertRule:
        chosen = values.pop("channels", None)
        for name, value in values.items():
            setattr(rule, name, value)
        self.need(MANAGE_ALERTS, rule)
        return channels.save_rule(rule, chosen, actor=actor_of(request), now=timezone.now())

    @extend_schema(request=AlertRuleSerializer, responses={201: AlertRuleSerializer})
    def create(self, request: Request) -> Response:
        """Make a rule."""
        rule = self._save(request, AlertRule(), dict(self.checked(AlertRuleSerializer)))
        return Response(AlertRuleSerializer(rule).data, status=status.HTTP_201_CREATED)

    @extend_schema(request=AlertRuleSerializer(partial=True), responses={200: AlertRuleSerializer})
    def partial_update(self, request: Request, pk: str) -> Response:
        """Change a rule, or switch it off."""
        rule = self.get_object()
        wanted = AlertRuleSerializer(rule, data=request.data, partial=True, context=self.get_serializer_context())
        wanted.is_valid(raise_exception=True)
        values = {name: value for name, value in wanted.validated_data.items() if name != "account"}
        return Response(AlertRuleSerializer(self._save(request, rule, values)).data)


class ChannelView(_ManagedView):
    """Channels of the caller's accounts: the ways out of the console."""

    queryset = Channel.objects.select_related("account")
    serializer_class = ChannelSerializer
    filterset_fields: ClassVar = ["account", "kind", "enabled"]

    def _save(self, request: Request, channel: Channel, values: dict[str, Any]) -> Response:
        given: dict[str, str] = {name: values.pop(name) for name in ("url", "secret") if name in values}
        new = channel._state.adding
        for name, value in values.items():
            setattr(channel, name, value)
        self.need(MANAGE_ALERTS, channel)
        channels.save_channel(channel, given or None, actor=actor_of(request), now=timezone.now())
        return Response(ChannelSerializer(channel).data, status=201 if new else 200)

    @extend_schema(request=ChannelRequestSerializer, responses={201: ChannelSerializer})
    def create(self, request: Request) -> Response:
        """Make a channel; its address and secret are never shown again. 409 `address_refused` for an internal one."""
        return self._save(request, Channel(), dict(self.checked(ChannelRequestSerializer)))

    @extend_schema(request=ChannelRequestSerializer(partial=True), responses={200: ChannelSerializer})
    def partial_update(self, request: Request, pk: str) -> Response:
        """Change a channel, or switch it off. Another address needs its secret again; its kind never changes."""
        channel = self.get_object()
        wanted = ChannelRequestSerializer(
            channel, data=request.data, partial=True, context=self.get_serializer_context()
        )
        wanted.is_valid(raise_exception=True)
        values = {name: value for name, value in wanted.validated_data.items() if name != "account"}
        return self._save(request, channel, values)

    @extend_schema(request=None, responses={202: DeliverySerializer})
    @action(detail=True, methods=["post"])
    def test(self, request: Request, pk: str) -> Response:
        """Send a test: 202 and its delivery, whose `state` and `error` tell the result within seconds."""
        delivery = channels.send_test(self.get_object(), actor=actor_of(request), now=timezone.now())
        return Response(DeliverySerializer(delivery).data, status=status.HTTP_202_ACCEPTED)

    @extend_schema(responses={200: DeliverySerializer(many=True)}, filters=False)
    @action(detail=True)
    def deliveries(self, request: Request, pk: str) -> Response:
        """List what went through the channel, and what waits, newest first."""
        paginator = Pages()
        page: Any = paginator.paginate_queryset(self.get_object().deliveries.all(), request, view=self)
        return paginator.get_paginated_response(DeliverySerializer(page, many=True).data)


class WatchedPlanView(StartedPlanView):
    """Plans of the caller's accounts. A plan is run by posting a backup job."""

    permissions: ClassVar = {**StartedPlanView.permissions, "set_watch": MANAGE_ALERTS}

    @extend_schema(responses={200: WatchSerializer}, filters=False)
    @action(detail=True)
    def watch(self, request: Request, pk: str) -> Response:
        """Tell after how long without a successful backup somebody is told, and when that is."""
        return self._shown(watches.of_plan(self.get_object(), now=timezone.now()))

    @extend_schema(request=WatchSerializer, responses={200: WatchSerializer}, filters=False)
    @watch.mapping.patch
    def set_watch(self, request: Request, pk: str) -> Response:
        """Say after how many hours that is."""
        watch = watches.of_plan(self.get_object(), now=timezone.now())
        hours = self.checked(WatchSerializer)["hours"]
        return self._shown(watches.set_hours(watch, hours, actor=actor_of(request), now=timezone.now()))

    def _shown(self, watch: Watch) -> Response:
        shown = {"hours": watch.hours, "since": watch.since, "overdue_at": watches.overdue_at(watch)}
        return Response(WatchSerializer(shown).data)
