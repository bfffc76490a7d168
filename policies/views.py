"""Endpoints of sources, policies and plans."""

from typing import Any, ClassVar

from django.utils import timezone
from drf_spectacular.utils import extend_schema
from rest_framework import mixins, status
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from accounts.permissions import MANAGE, OPERATE
from accounts.views import AccountViewSet, actor_of
from policies import services
from policies.models import Plan, Policy, Source
from policies.serializers import (
    PlanRequestSerializer,
    PlanSerializer,
    PolicySerializer,
    SourceRequestSerializer,
    SourceSerializer,
)


class SourceView(mixins.ListModelMixin, mixins.RetrieveModelMixin, AccountViewSet[Source]):
    """Sources of the caller's accounts."""

    queryset = Source.objects.select_related("region", "account")
    serializer_class = SourceSerializer
    filterset_fields: ClassVar = ["account", "region", "kind", "host"]

    def _save(self, request: Request, source: Source, values: dict[str, Any]) -> Source:
        credentials = values.pop("credentials", None)
        for name, value in values.items():
            setattr(source, name, value)
        self.need(MANAGE, source)
        return services.save_source(source, credentials=credentials, actor=actor_of(request), now=timezone.now())

    @extend_schema(request=SourceRequestSerializer, responses={201: SourceSerializer})
    def create(self, request: Request) -> Response:
        """Make a source. `warnings` in the answer tells what is worth knowing about it (B28)."""
        source = self._save(request, Source(), dict(self.checked(SourceRequestSerializer)))
        return Response(SourceSerializer(source).data, status=status.HTTP_201_CREATED)

    @extend_schema(request=SourceRequestSerializer(partial=True), responses={200: SourceSerializer})
    def partial_update(self, request: Request, pk: str) -> Response:
        """Change a source; credentials left out stay."""
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


class PolicyView(mixins.ListModelMixin, mixins.RetrieveModelMixin, AccountViewSet[Policy]):
    """Policies of the caller's accounts."""

    queryset = Policy.objects.select_related("account")
    serializer_class = PolicySerializer
    filterset_fields: ClassVar = ["account"]

    def _save(self, request: Request, policy: Policy, values: dict[str, Any]) -> Policy:
        for name, value in values.items():
            setattr(policy, name, value)
        self.need(MANAGE, policy)
        return services.save_policy(policy, actor=actor_of(request), now=timezone.now())

    @extend_schema(request=PolicySerializer, responses={201: PolicySerializer})
    def create(self, request: Request) -> Response:
        """Make a policy: a cron expression or a period, a time zone, and how long to keep."""
        policy = self._save(request, Policy(), dict(self.checked(PolicySerializer)))
        return Response(PolicySerializer(policy).data, status=status.HTTP_201_CREATED)

    @extend_schema(request=PolicySerializer(partial=True), responses={200: PolicySerializer})
    def partial_update(self, request: Request, pk: str) -> Response:
        """Change a policy; its plans get their next moment anew."""
        policy = self.get_object()
        wanted = PolicySerializer(policy, data=request.data, partial=True, context=self.get_serializer_context())
        wanted.is_valid(raise_exception=True)
        values = dict(wanted.validated_data)
        values.pop("account", None)
        return Response(PolicySerializer(self._save(request, policy, values)).data)

    @extend_schema(request=None, responses={204: None})
    def destroy(self, request: Request, pk: str) -> Response:
        """Delete a policy that no plan uses."""
        services.delete(self.get_object(), actor=actor_of(request), now=timezone.now())
        return Response(status=status.HTTP_204_NO_CONTENT)


class PlanView(mixins.ListModelMixin, mixins.RetrieveModelMixin, AccountViewSet[Plan]):
    """Plans of the caller's accounts. A plan is run by posting a backup job."""

    queryset = Plan.objects.select_related("account", "source", "policy", "vault")
    serializer_class = PlanSerializer
    filterset_fields: ClassVar = ["account", "source", "policy", "vault", "state"]
    permissions: ClassVar = {"pause": OPERATE, "resume": OPERATE}

    @extend_schema(request=PlanRequestSerializer, responses={201: PlanSerializer})
    def create(self, request: Request) -> Response:
        """Bind a source to a policy and a vault."""
        plan = Plan(**self.checked(PlanRequestSerializer))
        plan.account = plan.source.account
        self.need(MANAGE, plan)
        services.create_plan(plan, actor=actor_of(request), now=timezone.now())
        return Response(PlanSerializer(plan).data, status=status.HTTP_201_CREATED)

    @extend_schema(request=None, responses={200: PlanSerializer})
    @action(detail=True, methods=["post"])
    def pause(self, request: Request, pk: str) -> Response:
        """Stop future runs; points stay and expire as they would."""
        plan = services.pause(self.get_object(), actor=actor_of(request), now=timezone.now())
        return Response(PlanSerializer(plan).data)

    @extend_schema(request=None, responses={200: PlanSerializer})
    @action(detail=True, methods=["post"])
    def resume(self, request: Request, pk: str) -> Response:
        """Let a paused plan run again."""
        plan = services.resume(self.get_object(), actor=actor_of(request), now=timezone.now())
        return Response(PlanSerializer(plan).data)

    @extend_schema(request=None, responses={204: None})
    def destroy(self, request: Request, pk: str) -> Response:
        """Delete a plan; its points stay and keep their retention."""
        services.delete(self.get_object(), actor=actor_of(request), now=timezone.now())
        return Response(status=status.HTTP_204_NO_CONTENT)
