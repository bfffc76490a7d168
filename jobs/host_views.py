"""Endpoints of hosts and their essential backup."""

from typing import Any, ClassVar

from django.utils import timezone
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import exceptions, serializers, status
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from accounts.models import Account
from accounts.permissions import MANAGE_POLICIES, MANAGE_SOURCES, MANAGE_VAULTS, OWN, PAUSE_PLANS
from accounts.serializers import OwnField
from accounts.views import AccountViewSet, Pages, actor_of, user_of
from jobs import hosts, starts
from jobs.serializers import ErasureSerializer
from policies import essential
from policies.models import Plan, Priority
from policies.serializers import PlanSerializer
from vaults.models import Region, Vault

KEY = "[0-9a-f-]{36}:[^/]+"


class HostPages(Pages):
    ordering: Any = ("host", "account")


class HostSerializer(serializers.Serializer[hosts.Host]):
    """A host; `plans` are those of its essential backup, one a volume. Needs `now` in the context."""

    id = serializers.CharField(source="pk", help_text="Its account and its name, with a colon between them")
    account = serializers.UUIDField(source="account.pk")
    host = serializers.CharField(source="name")
    region = serializers.CharField(allow_blank=True)
    status = serializers.ChoiceField(choices=hosts.HostStatus.choices)
    online = serializers.BooleanField(help_text="Whether a worker of the host was seen lately")
    next_run_at = serializers.DateTimeField(allow_null=True)
    plans = PlanSerializer(many=True)
    volumes = serializers.ListField(child=serializers.CharField(), help_text="What its worker tells")
    unprotected = serializers.ListField(child=serializers.CharField())


class HostDetailSerializer(HostSerializer):
    warnings = serializers.SerializerMethodField()

    def get_warnings(self, host: hosts.Host) -> list[str]:
        return hosts.warnings(host, now=self.context["now"])


class HostSettingsSerializer(serializers.Serializer[Any]):
    """What may be set at any time (C11)."""

    start_time = serializers.TimeField(
        required=False,
        allow_null=True,
        help_text="In the plans' time zone; null is a time drawn between 00:00 and 06:00",
    )
    priority = serializers.ChoiceField(choices=Priority.choices, required=False)
    keep_at_least_one = serializers.BooleanField(required=False)


class EnableSerializer(HostSettingsSerializer):
    """A host to protect. Beside account and name nothing has to be said."""

    account = OwnField(queryset=Account.objects.all(), account_path="pk")
    host = serializers.RegexField("^[^/:]+$", max_length=255)
    region = serializers.SlugRelatedField(slug_field="name", queryset=Region.objects.all(), required=False)
    vault = OwnField(queryset=Vault.objects.all(), required=False)
    roots = serializers.ListField(
        child=serializers.CharField(max_length=4096), required=False, help_text="Left out: all volumes of the host"
    )
    time_zone = serializers.CharField(max_length=64, required=False)


class EnabledSerializer(serializers.Serializer[Any]):
    host = HostDetailSerializer()
    recovery_key = serializers.CharField(
        allow_blank=True, help_text="Of a vault that was made for it. Shown once, kept nowhere"
    )


class HostConfirmationSerializer(serializers.Serializer[Any]):
    confirmation = serializers.CharField(max_length=255, help_text="The host's name, typed")


class HostView(AccountViewSet[Plan]):
    """Hosts of the caller's accounts and their essential backup (C1, C2)."""

    queryset = Plan.objects.all()
    serializer_class: Any = HostSerializer
    lookup_value_regex = KEY
    pagination_class = HostPages
    filter_backends: Any = ()
    permissions: ClassVar = {
        "pause": PAUSE_PLANS,
        "resume": PAUSE_PLANS,
        "cancel": OWN,
        "partial_update": MANAGE_POLICIES,
    }

    def _host(self) -> hosts.Host:
        """Return the host that the address names. One of an account that the caller does not see does not exist."""
        found = hosts.split(self.kwargs["pk"])
        account = found and Account.objects.visible_to(user_of(self.request)).filter(pk=found[0]).first()
        if not found or not account:
            raise exceptions.NotFound
        self.check_object_permissions(self.request, account)
        return hosts.get(account, found[1], now=timezone.now())

    def _shown(self, account: Account, name: str) -> Response:
        now = timezone.now()
        return Response(HostDetailSerializer(hosts.get(account, name, now=now), context={"now": now}).data)

    @extend_schema(
        parameters=[
            OpenApiParameter("account", OpenApiTypes.UUID),
            OpenApiParameter("status", str, enum=hosts.HostStatus.values),
        ],
        responses={200: HostSerializer(many=True)},
    )
    def list(self, request: Request) -> Response:
        """List the hosts that sources name. `?status=inactive` are those that no active plan protects (C13)."""
        accounts = Account.objects.visible_to(user_of(request))
        if account := request.query_params.get("account"):
            accounts = accounts.filter(pk=serializers.UUIDField().run_validation(account))
        rows = hosts.listed(accounts)
        if wanted := request.query_params.get("status"):
            rows = rows.filter(status=serializers.ChoiceField(hosts.HostStatus.choices).run_validation(wanted))
        page = self.paginate_queryset(rows)
        found = hosts.filled(page or [], now=timezone.now())
        shown: Any = HostSerializer
        return self.get_paginated_response(shown(found, many=True).data)

    @extend_schema(responses={200: HostDetailSerializer})
    def retrieve(self, request: Request, pk: str) -> Response:
        """Tell how a host stands, and what a person should know of it."""
        host = self._host()
        return self._shown(host.account, host.name)

    @extend_schema(request=EnableSerializer, responses={201: EnabledSerializer})
    def create(self, request: Request) -> Response:
        """Protect a host, with nothing else to set up: every volume, daily, for 30 days. Once more for new volumes.

        409 `essential_enabled` when all of it is protected, `root_excluded`, `not_in_region`, `source_erasing`.
        """
        wanted = dict(self.checked(EnableSerializer))
        account, name, region = wanted.pop("account"), wanted.pop("host"), wanted.pop("region", None)
        for privilege in (MANAGE_SOURCES, MANAGE_POLICIES, MANAGE_VAULTS):
            self.need(privilege, account)
        now = timezone.now()
        roots = tuple(wanted.pop("roots", ()))
        made = hosts.enable(
            hosts.get(account, name, now=now),
            region=region,
            wish=essential.Wish(roots=roots, **wanted),
            actor=actor_of(request),
            now=now,
        )
        found = {"host": hosts.get(account, name, now=now), "recovery_key": made.recovery_key}
        answer = EnabledSerializer(found, context={"now": now})
        return Response(answer.data, status=status.HTTP_201_CREATED, headers={"Cache-Control": "no-store"})

    @extend_schema(request=HostSettingsSerializer, responses={200: HostDetailSerializer})
    def partial_update(self, request: Request, pk: str) -> Response:
        """Change start, priority or "keep at least one" of all volumes; `warnings` tells what may be lost."""
        host, changes = self._host(), dict(self.checked(HostSettingsSerializer))
        actor, now = actor_of(request), timezone.now()
        plans = essential.change(host.account, host.name, changes=changes, actor=actor, now=now)
        for plan in plans if "start_time" in changes else []:
            starts.change(plan, changes["start_time"], actor=actor, now=now)
        return self._shown(host.account, host.name)

    @extend_schema(request=None, responses={200: HostDetailSerializer})
    @action(detail=True, methods=["post"])
    def pause(self, request: Request, pk: str) -> Response:
        """Stop the runs of all the host's volumes; points stay, and expire as they would (C30)."""
        host = self._host()
        essential.pause(host.account, host.name, actor=actor_of(request), now=timezone.now())
        return self._shown(host.account, host.name)

    @extend_schema(request=None, responses={200: HostDetailSerializer})
    @action(detail=True, methods=["post"])
    def resume(self, request: Request, pk: str) -> Response:
        """Let a paused host run again; 409 `plan_not_paused` for any other (C31)."""
        host = self._host()
        essential.resume(host.account, host.name, actor=actor_of(request), now=timezone.now())
        return self._shown(host.account, host.name)

    @extend_schema(request=HostConfirmationSerializer, responses={202: ErasureSerializer})
    @action(detail=True, methods=["post"])
    def cancel(self, request: Request, pk: str) -> Response:
        """Cancel a host's essential backup: no run any more, all its points are deleted for good (C32).

        What a lock protects goes when the lock ends: `ends_at` tells when the last one does.
        """
        host, typed = self._host(), self.checked(HostConfirmationSerializer)
        found = hosts.cancel(host, actor=actor_of(request), now=timezone.now(), **typed)
        return Response(ErasureSerializer(found).data, status=status.HTTP_202_ACCEPTED)
