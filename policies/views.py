"""Endpoints of sources, policies and plans."""

from typing import Any, ClassVar

from django.db import models
from django.utils import timezone
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import exceptions, mixins, serializers, status
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.serializers import BaseSerializer

from accounts import grants
from accounts.models import Account, Grant, User
from accounts.permissions import (
    BACKUP,
    MANAGE_MEMBERS,
    MANAGE_POLICIES,
    MANAGE_SOURCES,
    MANAGE_VAULTS,
    PAUSE_PLANS,
    granted_sources,
)
from accounts.views import AccountViewSet, actor_of, user_of
from policies import copies, inline, moments, retention, services
from policies.models import Plan, Policy, Source
from policies.serializers import (
    ChangePreviewSerializer,
    CopySerializer,
    GrantRequestSerializer,
    GrantSerializer,
    PausedPlanSerializer,
    PlanDetailSerializer,
    PlanRequestSerializer,
    PlanSerializer,
    PolicySerializer,
    RegionSupportSerializer,
    RunSerializer,
    SavedPolicySerializer,
    SourceRequestSerializer,
    SourceSerializer,
    SpanSerializer,
    UpgradedPlanSerializer,
    UpgradeSerializer,
    VerdictSerializer,
)
from vaults import condition
from vaults.models import Region, Vault
from vaults.serializers import DrillSerializer

RUNS_SHOWN = 10


class SourceView(mixins.ListModelMixin, mixins.RetrieveModelMixin, AccountViewSet[Source]):
    """Sources of the caller's accounts."""

    queryset = Source.objects.select_related("region", "account")
    serializer_class = SourceSerializer
    filterset_fields: ClassVar = ["account", "region", "region__branch", "kind", "host"]
    permissions: ClassVar = {"partial_update": MANAGE_SOURCES, "destroy": MANAGE_SOURCES}

    def seen_by(self, user: User) -> models.Q:
        """Return which sources exist for the user: also those that other accounts granted (B8)."""
        return super().seen_by(user) | granted_sources(user)

    def _save(self, request: Request, source: Source, values: dict[str, Any]) -> Source:
        asked = {"credentials": values.pop("credentials", None), "skip_check": values.pop("skip_check", False)}
        for name, value in values.items():
            setattr(source, name, value)
        self.need(MANAGE_SOURCES, source)
        return services.save_source(source, **asked, actor=actor_of(request), now=timezone.now())

    @extend_schema(request=SourceRequestSerializer, responses={201: SourceSerializer})
    def create(self, request: Request) -> Response:
        """Make a source. `warnings` in the answer tells what is worth knowing about it (B28).

        What is read over the network is tried before (A30): 409 `source_unreachable` tells what is wrong.
        """
        source = self._save(request, Source(), dict(self.checked(SourceRequestSerializer)))
        return Response(SourceSerializer(source).data, status=status.HTTP_201_CREATED)

    @extend_schema(request=SourceRequestSerializer(partial=True), responses={200: SourceSerializer})
    def partial_update(self, request: Request, pk: str) -> Response:
        """Change a source; credentials left out stay. Its kind never changes."""
        source = self.get_object()
        wanted = SourceRequestSerializer(source, data=request.data, partial=True, context=self.get_serializer_context())
        wanted.is_valid(raise_exception=True)
        values = dict(wanted.validated_data)
        values.pop("account", None)
        return Response(SourceSerializer(self._save(request, source, values)).data)

    @extend_schema(request=None, responses={204: None})
    def destroy(self, request: Request, pk: str) -> Response:
        """Delete a source that no plan uses; its points stay."""
        services.delete(self.get_object(), actor=actor_of(request), now=timezone.now())
        return Response(status=status.HTTP_204_NO_CONTENT)

    @extend_schema(responses={200: DrillSerializer(many=True)}, filters=False)
    @action(detail=True, pagination_class=None)
    def drills(self, request: Request, pk: str) -> Response:
        """List the last trial restores of the source's points, newest first."""
        mine = self.get_object().jobs.filter(account__in=Account.objects.visible_to(user_of(request)))
        return Response(DrillSerializer(condition.drills(mine), many=True).data)

    @extend_schema(
        parameters=[OpenApiParameter("vault", OpenApiTypes.UUID, required=True, description="The vault's id")],
        responses={200: VerdictSerializer(many=True)},
        filters=False,
    )
    @action(detail=True, pagination_class=None)
    def retention(self, request: Request, pk: str) -> Response:
        """Tell of each of the source's points in a vault, newest first, why it stays or goes, and when."""
        source = self.get_object()
        wanted = serializers.UUIDField().run_validation(request.query_params.get("vault", ""))
        vault = Vault.objects.filter(pk=wanted, account__in=Account.objects.visible_to(user_of(request))).first()
        if vault is None:
            raise exceptions.NotFound
        now = timezone.now()
        rules = retention.source_rules(source, vault, now=now)
        judged = retention.preview(vault, source.series, rules, now=now)
        return Response(VerdictSerializer(judged, many=True).data)


class PolicyView(mixins.ListModelMixin, mixins.RetrieveModelMixin, AccountViewSet[Policy]):
    """Policies of the caller's accounts."""

    queryset = Policy.objects.filter(inline=False).select_related("account").prefetch_related("rules")
    serializer_class = PolicySerializer
    filterset_fields: ClassVar = ["account"]
    permissions: ClassVar = {
        "partial_update": MANAGE_POLICIES,
        "preview": MANAGE_POLICIES,
        "destroy": MANAGE_POLICIES,
    }

    def _save(self, request: Request, policy: Policy, values: dict[str, Any]) -> Policy:
        listed = values.pop("rules", None)
        for name, value in values.items():
            setattr(policy, name, value)
        self.need(MANAGE_POLICIES, policy)
        rules = None if listed is None else services.rules_from(policy, listed)
        if rules is not None and copies.is_new(policy, rules):
            self.need(MANAGE_VAULTS, policy)
        return services.save_policy(policy, rules=rules, actor=actor_of(request), now=timezone.now())

    def _shown(self, policy: Policy, **options: Any) -> Response:
        return Response(SavedPolicySerializer(policy, context={"now": timezone.now()}).data, **options)

    def _changes(self, request: Request, policy: Policy) -> dict[str, Any]:
        wanted = PolicySerializer(policy, data=request.data, partial=True, context=self.get_serializer_context())
        wanted.is_valid(raise_exception=True)
        return {name: value for name, value in wanted.validated_data.items() if name != "account"}

    @extend_schema(request=PolicySerializer, responses={201: SavedPolicySerializer})
    def create(self, request: Request) -> Response:
        """Make a policy: 1 to 10 rules that say when, a time zone, and how long to keep. Without rules: daily."""
        policy = self._save(request, Policy(), dict(self.checked(PolicySerializer)))
        return self._shown(policy, status=status.HTTP_201_CREATED)

    @extend_schema(request=PolicySerializer(partial=True), responses={200: SavedPolicySerializer})
    def partial_update(self, request: Request, pk: str) -> Response:
        """Change a policy; its plans get their next moment anew, and the rules hold for points that exist.

        `warnings` tells what may be lost once "keep at least one" is off (C17, C36).
        """
        policy = self.get_object()
        return self._shown(self._save(request, policy, self._changes(request, policy)))

    @extend_schema(
        request=PolicySerializer(partial=True), responses={200: ChangePreviewSerializer(many=True)}, filters=False
    )
    @action(detail=True, methods=["post"], pagination_class=None)
    def preview(self, request: Request, pk: str) -> Response:
        """Tell which points would go if the policy were changed like this. Changes nothing."""
        policy = self.get_object()
        wanted = self._changes(request, policy)
        listed = wanted.pop("rules", None)
        for name, value in wanted.items():
            setattr(policy, name, value)
        rules = None if listed is None else services.rules_from(policy, listed)
        changes = retention.preview_change(policy, rules=rules, now=timezone.now())
        return Response(ChangePreviewSerializer(changes, many=True).data)

    @extend_schema(request=PolicySerializer(partial=True), responses={200: SpanSerializer(many=True)}, filters=False)
    @action(detail=True, methods=["post"], pagination_class=None)
    def runs(self, request: Request, pk: str) -> Response:
        """List the next ten runs that plans would have if the policy were changed like this. Changes nothing."""
        policy = self.get_object()
        wanted = self._changes(request, policy)
        listed = wanted.pop("rules", None)
        for name, value in wanted.items():
            setattr(policy, name, value)
        rules = list(policy.rules.all()) if listed is None else services.rules_from(policy, listed)
        services.check_rules(policy, rules)
        return Response(
            SpanSerializer(moments.preview(policy, rules, count=RUNS_SHOWN, now=timezone.now()), many=True).data
        )

    @extend_schema(responses={200: CopySerializer(many=True)}, filters=False)
    @action(detail=True, pagination_class=None)
    def copies(self, request: Request, pk: str) -> Response:
        """Tell of each vault of the policy's plans whether it follows in another region as the policy says (E26)."""
        return Response(CopySerializer(copies.told(self.get_object()), many=True).data)

    @extend_schema(responses={200: RegionSupportSerializer(many=True)}, filters=False)
    @action(detail=False, pagination_class=None)
    def regions(self, request: Request) -> Response:
        """List the regions and whether they support policies (B18)."""
        return Response(RegionSupportSerializer(Region.objects.all(), many=True).data)

    @extend_schema(request=None, responses={204: None})
    def destroy(self, request: Request, pk: str) -> Response:
        """Delete a policy that no plan uses; 409 `in_use` names the plans that do."""
        services.delete(self.get_object(), actor=actor_of(request), now=timezone.now())
        return Response(status=status.HTTP_204_NO_CONTENT)


class PlanView(mixins.ListModelMixin, mixins.RetrieveModelMixin, AccountViewSet[Plan]):
    """Plans of the caller's accounts. A plan is run by posting a backup job."""

    queryset = Plan.objects.select_related("account", "source", "policy", "vault")
    serializer_class = PlanSerializer
    filterset_fields: ClassVar = ["account", "source", "policy", "vault", "state"]
    permissions: ClassVar = {
        "pause": PAUSE_PLANS,
        "resume": PAUSE_PLANS,
        "destroy": MANAGE_POLICIES,
        "upgrade": MANAGE_POLICIES,
    }

    def get_serializer_class(self) -> type[BaseSerializer[Any]]:
        return PlanDetailSerializer if self.action == "retrieve" else PlanSerializer

    @extend_schema(request=PlanRequestSerializer, responses={201: PlanSerializer})
    def create(self, request: Request) -> Response:
        """Bind a source to a policy and a vault. A source of another account needs its grant (B8).

        409 `policy_needed` where a plan can't have rules of its own (B17).
        """
        values = dict(self.checked(PlanRequestSerializer))
        own = dict(values.pop("own", {}))
        plan = Plan(**values)
        plan.account = plan.vault.account
        self.need(MANAGE_POLICIES, plan)
        if plan.source.account_id != plan.account_id:
            self.need(BACKUP, plan.source)
        actor, now = actor_of(request), timezone.now()
        if "policy" in values:
            services.create_plan(plan, actor=actor, now=now)
        else:
            listed = own.pop("rules", None)
            policy = Policy(**own)
            rules = None if listed is None else services.rules_from(policy, listed)
            if copies.rule_of(rules or []):
                self.need(MANAGE_VAULTS, plan)
            inline.create(plan, policy, rules, actor=actor, now=now)
        return Response(PlanSerializer(plan).data, status=status.HTTP_201_CREATED)

    @extend_schema(request=None, responses={200: PausedPlanSerializer})
    @action(detail=True, methods=["post"])
    def pause(self, request: Request, pk: str) -> Response:
        """Stop future runs; points stay and expire as they would. `warnings` tells when the last one goes (C17)."""
        now = timezone.now()
        plan = services.pause(self.get_object(), actor=actor_of(request), now=now)
        return Response(PausedPlanSerializer(plan, context={"now": now}).data)

    @extend_schema(request=None, responses={200: PlanSerializer})
    @action(detail=True, methods=["post"])
    def resume(self, request: Request, pk: str) -> Response:
        """Let a paused plan run again."""
        plan = services.resume(self.get_object(), actor=actor_of(request), now=timezone.now())
        return Response(PlanSerializer(plan).data)

    @extend_schema(responses={200: RunSerializer(many=True)}, filters=False)
    @action(detail=True, pagination_class=None)
    def runs(self, request: Request, pk: str) -> Response:
        """List the plan's next ten runs, in UTC and in its time zone; none while it is paused."""
        plan = self.get_object()
        runs = moments.upcoming(plan, count=RUNS_SHOWN, now=timezone.now())
        return Response(RunSerializer(runs, many=True, context={"zone": moments.zone_of(plan)}).data)

    @extend_schema(request=UpgradeSerializer, responses={200: UpgradedPlanSerializer})
    @action(detail=True, methods=["post"])
    def upgrade(self, request: Request, pk: str) -> Response:
        """Give a plan of its own rules a policy (B19): history and vault stay. `warnings`: see B21."""
        plan = self.get_object()
        values = self.checked(UpgradeSerializer)
        warnings = inline.upgrade(plan, **values, actor=actor_of(request), now=timezone.now())
        return Response(UpgradedPlanSerializer(plan, context={"warnings": warnings}).data)

    @extend_schema(request=None, responses={204: None})
    def destroy(self, request: Request, pk: str) -> Response:
        """Delete a plan; its points stay and keep their retention."""
        services.delete(self.get_object(), actor=actor_of(request), now=timezone.now())
        return Response(status=status.HTTP_204_NO_CONTENT)


class GrantView(mixins.ListModelMixin, mixins.RetrieveModelMixin, AccountViewSet[Grant]):
    """Grants that the caller's accounts gave and received (B8). A grant never changes: revoke it and give another."""

    queryset = Grant.objects.select_related("grantor", "grantee").prefetch_related("sources")
    serializer_class = GrantSerializer
    filterset_fields: ClassVar = ["grantor", "grantee"]
    permissions: ClassVar = {"revoke": MANAGE_MEMBERS}

    def seen_by(self, user: User) -> models.Q:
        """Return which grants exist for the user: from either side."""
        visible = Account.objects.visible_to(user)
        return models.Q(grantor__in=visible) | models.Q(grantee__in=visible)

    def get_serializer_context(self) -> dict[str, Any]:
        return {**super().get_serializer_context(), "now": timezone.now()}

    @extend_schema(request=GrantRequestSerializer, responses={201: GrantSerializer})
    def create(self, request: Request) -> Response:
        """Let another account back up sources of yours, and restore to them if you say so. It tells you its id."""
        wanted = self.checked(GrantRequestSerializer)
        sources = wanted.pop("sources")
        grant = Grant(**wanted)
        self.need(MANAGE_MEMBERS, grant.grantor)
        grants.give(grant, sources=sources, actor=actor_of(request), now=timezone.now())
        return Response(self.get_serializer(grant).data, status=status.HTTP_201_CREATED)

    @extend_schema(request=None, responses={200: GrantSerializer})
    @action(detail=True, methods=["post"])
    def revoke(self, request: Request, pk: str) -> Response:
        """End the grant at once: plans under it are skipped, new jobs refused. Points that were made stay."""
        grant = grants.revoke(self.get_object(), actor=actor_of(request), now=timezone.now())
        return Response(self.get_serializer(grant).data)
