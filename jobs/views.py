"""Endpoints of jobs: everything that is done is started here and watched here."""

from typing import Any, ClassVar

from django.db import transaction
from django.utils import timezone
from drf_spectacular.utils import extend_schema
from rest_framework import exceptions, mixins, status
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.serializers import BaseSerializer

from accounts.permissions import OPERATE
from accounts.views import AccountViewSet, Pages, actor_of
from jobs import doorbell, services
from jobs.models import Job
from jobs.serializers import (
    REQUESTS,
    JobDetailSerializer,
    JobRequest,
    JobSerializer,
    RestoreRequestSerializer,
    StepSerializer,
)
from jobs.states import Kind


class StepPages(Pages):
    ordering: Any = ("-round", "pk")


class JobView(mixins.ListModelMixin, mixins.RetrieveModelMixin, AccountViewSet[Job]):
    """Jobs of the caller's accounts."""

    queryset = Job.objects.select_related("account")
    permissions: ClassVar = {"create": OPERATE, "cancel": OPERATE}
    filterset_fields: ClassVar = {
        "account": ["exact"],
        "kind": ["exact", "in"],
        "state": ["exact", "in"],
        "source": ["exact"],
        "plan": ["exact"],
        "vault": ["exact"],
        "created_at": ["gte", "lte"],
    }

    def get_serializer_class(self) -> type[BaseSerializer[Any]]:
        return JobDetailSerializer if self.action == "retrieve" else JobSerializer

    @extend_schema(request=JobRequest, responses={202: JobSerializer})
    def create(self, request: Request) -> Response:
        """Start a backup, a restore or a verification: 202 and the job; 409 and a code when a rule forbids it."""
        kind = request.data.get("kind") if isinstance(request.data, dict) else None
        if kind not in REQUESTS:
            raise exceptions.ValidationError({"kind": f"Must be one of {', '.join(REQUESTS)}."})
        wanted = REQUESTS[kind](data=request.data, context=self.get_serializer_context())
        wanted.is_valid(raise_exception=True)
        job = self._request(wanted)
        return Response(JobSerializer(job).data, status=status.HTTP_202_ACCEPTED)

    @transaction.atomic
    def _request(self, wanted: Any) -> Job:
        values, actor, now = wanted.validated_data, actor_of(self.request), timezone.now()
        subject = values.get("plan") or values.get("point") or values.get("vault")
        self.need(OPERATE, subject)
        if isinstance(wanted, RestoreRequestSerializer):
            job = services.request_restore(values["point"], wanted.selection(), actor=actor, now=now)
        elif values["kind"] == Kind.BACKUP:
            job = services.request_backup(values["plan"], deep=values["deep"], actor=actor, now=now)
        else:
            job = services.request_verify(values["vault"], level=values["level"], actor=actor, now=now)
        doorbell.ring(services.first_step(job), now=now)
        return job

    @extend_schema(request=None, responses={202: JobSerializer})
    @action(detail=True, methods=["post"])
    def cancel(self, request: Request, pk: str) -> Response:
        """Stop the job: at once what only waits, at its next check what runs."""
        job = services.request_cancel(self.get_object(), actor=actor_of(request), now=timezone.now())
        return Response(JobSerializer(job).data, status=status.HTTP_202_ACCEPTED)

    @extend_schema(responses={200: StepSerializer(many=True)}, filters=False)
    @action(detail=True, pagination_class=StepPages)
    def steps(self, request: Request, pk: str) -> Response:
        """List the job's steps, the present round first."""
        paginator = StepPages()
        page = paginator.paginate_queryset(self.get_object().steps.all(), request, view=self)
        return paginator.get_paginated_response(StepSerializer(page, many=True).data)
