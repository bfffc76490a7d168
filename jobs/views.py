"""Endpoints of jobs: everything that is done is started here and watched here."""

from typing import Any, ClassVar

from django.db import transaction
from django.db.models import QuerySet
from django.http import StreamingHttpResponse
from django.utils import timezone
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import exceptions, mixins, status
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.serializers import BaseSerializer

from accounts.permissions import (
    BACKUP,
    DELETE_POINTS,
    MAINTAIN,
    MANAGE_SOURCES,
    MANAGE_VAULTS,
    OWN,
    PAUSE_PLANS,
    RESTORE,
    VIEW,
)
from accounts.views import AccountView, AccountViewSet, Pages, actor_of
from jobs import closing, comparing, doorbell, maintenance, passwords, problems, removal, retrying, services, starts
from jobs.jobpage import problems_download
from jobs.models import Job
from jobs.serializers import (
    REQUESTS,
    DrillRequestSerializer,
    DutySerializer,
    ErasureSerializer,
    HoldRequestSerializer,
    IntervalsSerializer,
    JobDetailSerializer,
    JobRequest,
    JobSerializer,
    OnDemandRequestSerializer,
    PasswordsSerializer,
    RestoreRequestSerializer,
    RetryRequestSerializer,
    StartEffectSerializer,
    StartTimeSerializer,
    StepSerializer,
    TypedRequestSerializer,
    VerifyRequestSerializer,
)
from jobs.states import Kind
from policies.edition_views import ConvertiblePlanView, PlannedSourceView
from policies.serializers import SourceSerializer
from vaults import freed
from vaults.models import Vault
from vaults.serializers import ConfirmationSerializer, FreedSerializer, RecoveryPointSerializer
from vaults.views import RecoveryPointView, VaultView

# What starts and cancels jobs of a kind (D3); the rest is maintenance of a vault.
NEEDED = {Kind.BACKUP.value: BACKUP, Kind.RESTORE.value: RESTORE, Kind.COMPARE.value: RESTORE}


class StepPages(Pages):
    ordering: Any = ("-round", "pk")


class JobView(mixins.ListModelMixin, mixins.RetrieveModelMixin, AccountViewSet[Job]):
    """Jobs of the caller's accounts."""

    queryset = Job.objects.select_related("account")
    permissions: ClassVar = {
        "cancel": VIEW,
        "retry": VIEW,
        "compare": RESTORE,
        "confirm": DELETE_POINTS,
        "passwords": MANAGE_SOURCES,
    }
    filterset_fields: ClassVar = {
        "account": ["exact"],
        "kind": ["exact", "in"],
        "state": ["exact", "in"],
        "source": ["exact"],
        "plan": ["exact"],
        "vault": ["exact"],
        "vault__region": ["exact"],
        "vault__region__branch": ["exact"],
        "created_at": ["gte", "lte"],
    }

    def get_serializer_class(self) -> type[BaseSerializer[Any]]:
        return JobDetailSerializer if self.action == "retrieve" else JobSerializer

    def get_queryset(self) -> QuerySet[Job]:
        found = super().get_queryset()
        return found.defer("report", "samples") if self.action == "list" else found

    def get_serializer_context(self) -> dict[str, Any]:
        return {**super().get_serializer_context(), "now": timezone.now()}

    @extend_schema(request=JobRequest, responses={202: JobSerializer})
    def create(self, request: Request) -> Response:
        """Start a backup, a restore, or maintenance: 202 and the job; 409 and a code when a rule forbids it."""
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
        self.need(NEEDED.get(values["kind"], MAINTAIN), subject)
        if isinstance(wanted, RestoreRequestSerializer):
            if values["destination"]:
                self.need(RESTORE, values["destination"])
            if services.shows_credentials(values["point"], wanted.selection()):
                self.need(MANAGE_SOURCES, subject)
            job = services.request_restore(values["point"], wanted.selection(), actor=actor, now=now)
        elif values["kind"] == Kind.BACKUP:
            job = services.request_backup(values["plan"], deep=values["deep"], actor=actor, now=now)
        elif isinstance(wanted, VerifyRequestSerializer):
            job = services.request_verify(values["vault"], level=values["level"], actor=actor, now=now)
        elif isinstance(wanted, DrillRequestSerializer):
            self.need(MAINTAIN, values["source"])
            job = maintenance.request_drill(
                values["source"], values["vault"], percent=values["percent"], actor=actor, now=now
            )
        else:
            if values.get("confirmed"):
                self.need(DELETE_POINTS, subject)
            job = maintenance.request(values["vault"], values["kind"], wanted.wanted(), actor=actor, now=now)
        doorbell.ring(services.first_step(job), now=now)
        return job

    @extend_schema(request=None, responses={202: JobSerializer})
    @action(detail=True, methods=["post"])
    def cancel(self, request: Request, pk: str) -> Response:
        """Stop the job: at once what only waits, at its next check what runs."""
        job = self.get_object()
        self.need(NEEDED.get(job.kind, MAINTAIN), job)
        services.request_cancel(job, actor=actor_of(request), now=timezone.now())
        return Response(JobSerializer(job).data, status=status.HTTP_202_ACCEPTED)

    @extend_schema(request=RetryRequestSerializer, responses={202: JobSerializer})
    @action(detail=True, methods=["post"])
    @transaction.atomic
    def retry(self, request: Request, pk: str) -> Response:
        """Ask again for what the job did not bring about: a new job; 409 and a code when that is impossible."""
        job, now, wanted = self.get_object(), timezone.now(), self.checked(RetryRequestSerializer)
        self.need(NEEDED.get(job.kind, MAINTAIN), job)
        if job.kind == Kind.RESTORE and job.source:
            self.need(RESTORE, job.source)
        if retrying.shows_credentials(job):
            self.need(MANAGE_SOURCES, job)
        new = retrying.retry(job, actor=actor_of(request), now=now, **wanted)
        doorbell.ring(services.first_step(new), now=now)
        return Response(JobSerializer(new).data, status=status.HTTP_202_ACCEPTED)

    @extend_schema(request=None, responses={202: JobSerializer})
    @action(detail=True, methods=["post"])
    @transaction.atomic
    def compare(self, request: Request, pk: str) -> Response:
        """Compare what a restore wrote with its recovery point: a new job, whose problems are the differences."""
        job, now = self.get_object(), timezone.now()
        if job.source:
            self.need(RESTORE, job.source)
        made = comparing.request_comparison(job, actor=actor_of(request), now=now)
        doorbell.ring(services.first_step(made), now=now)
        return Response(JobSerializer(made).data, status=status.HTTP_202_ACCEPTED)

    @extend_schema(
        parameters=[OpenApiParameter("as", enum=problems.FORMATS, default="csv")],
        responses={(200, "text/csv"): OpenApiTypes.STR, (200, "application/jsonl"): OpenApiTypes.STR},
        filters=False,
    )
    @action(detail=True, pagination_class=None)
    def problems(self, request: Request, pk: str) -> StreamingHttpResponse:
        """Download every error and every skipped entry of the job, with its reason, as CSV or JSON Lines.

        The last line says how many more there are that nobody listed.
        """
        wanted = request.query_params.get("as", "csv")
        if wanted not in problems.FORMATS:
            raise exceptions.ValidationError({"as": f"Must be one of {', '.join(problems.FORMATS)}."})
        return problems_download(self.get_object(), wanted)

    @extend_schema(request=None, responses={200: PasswordsSerializer})
    @action(detail=True, methods=["post"])
    def passwords(self, request: Request, pk: str) -> Response:
        """Show the passwords that a restore made anew, this once (D5)."""
        shown = passwords.take(self.get_object(), actor=actor_of(request), now=timezone.now())
        return Response({"passwords": shown}, headers={"Cache-Control": "no-store"})

    @extend_schema(request=None, responses={202: JobSerializer})
    @action(detail=True, methods=["post"])
    @transaction.atomic
    def confirm(self, request: Request, pk: str) -> Response:
        """Run an expiry that a guard refused again, past the guards: a new job. Look at a dry run first."""
        now = timezone.now()
        job = removal.confirm_expiry(self.get_object(), actor=actor_of(request), now=now)
        doorbell.ring(services.first_step(job), now=now)
        return Response(JobSerializer(job).data, status=status.HTTP_202_ACCEPTED)

    @extend_schema(responses={200: StepSerializer(many=True)}, filters=False)
    @action(detail=True, pagination_class=StepPages)
    def steps(self, request: Request, pk: str) -> Response:
        """List the job's steps, the present round first."""
        paginator = StepPages()
        page = paginator.paginate_queryset(self.get_object().steps.all(), request, view=self)
        return paginator.get_paginated_response(StepSerializer(page, many=True).data)


class StartedPlanView(ConvertiblePlanView):
    """Plans, with the time of day at which they run."""

    permissions: ClassVar = {**ConvertiblePlanView.permissions, "start_time": PAUSE_PLANS}

    @extend_schema(request=StartTimeSerializer, responses={200: StartEffectSerializer})
    @action(detail=True, methods=["post"])
    def start_time(self, request: Request, pk: str) -> Response:
        """Let the plan run at another time of day; the date stays. `case` tells what today's run does (C38-C41)."""
        plan, wanted = self.get_object(), self.checked(StartTimeSerializer)
        found = starts.change(plan, wanted["start_time"], actor=actor_of(request), now=timezone.now())
        return Response(StartEffectSerializer(found).data)


class KeptPointView(RecoveryPointView):
    """Recovery points: listed, browsed and read; held, released and deleted."""

    permissions: ClassVar = {
        **RecoveryPointView.permissions,
        "hold": MAINTAIN,
        "release": DELETE_POINTS,
        "request_deletion": DELETE_POINTS,
    }

    @extend_schema(request=HoldRequestSerializer, responses={200: RecoveryPointSerializer})
    @action(detail=True, methods=["post"])
    def hold(self, request: Request, pk: str) -> Response:
        """Keep the point, whatever the rules say, until it is released."""
        point = self.get_object()
        reason = self.checked(HoldRequestSerializer)["reason"]
        removal.hold(point, reason=reason, actor=actor_of(request), now=timezone.now())
        return Response(RecoveryPointSerializer(point).data)

    @extend_schema(request=None, responses={200: RecoveryPointSerializer})
    @action(detail=True, methods=["post"])
    def release(self, request: Request, pk: str) -> Response:
        """End the hold of a point: the rules decide over it again."""
        point = self.get_object()
        removal.release(point, actor=actor_of(request), now=timezone.now())
        return Response(RecoveryPointSerializer(point).data)

    @extend_schema(request=TypedRequestSerializer, responses={202: JobSerializer})
    @action(detail=True, methods=["post"], url_path="delete")
    @transaction.atomic
    def request_deletion(self, request: Request, pk: str) -> Response:
        """Delete the point for good; 409 `point_held`, or `point_locked` with the date."""
        point, now = self.get_object(), timezone.now()
        typed = self.checked(TypedRequestSerializer)
        job = removal.delete_point(point, actor=actor_of(request), now=now, **typed)
        doorbell.ring(services.first_step(job), now=now)
        return Response(JobSerializer(job).data, status=status.HTTP_202_ACCEPTED)

    @extend_schema(responses={200: FreedSerializer}, filters=False)
    @action(detail=True, pagination_class=None)
    def freed(self, request: Request, pk: str) -> Response:
        """Tell what deleting this point alone would free at the next prune. 409 `too_many_points` in a large vault."""
        point = self.get_object()
        return Response(FreedSerializer(freed.by_points(point.vault, [point])).data)


class ErasableSourceView(PlannedSourceView):
    """Sources of the caller's accounts."""

    permissions: ClassVar = {**PlannedSourceView.permissions, "erase": OWN, "test": BACKUP, "backup": BACKUP}

    @extend_schema(request=OnDemandRequestSerializer, responses={202: JobSerializer})
    @action(detail=True, methods=["post"])
    @transaction.atomic
    def backup(self, request: Request, pk: str) -> Response:
        """Back up a cluster by hand into a vault, without a plan (D2). The point stays until somebody deletes it (D30).

        409 `source_busy` with the job while another backup of the cluster runs (D8); `not_a_cluster` for other kinds.
        """
        source, now = self.get_object(), timezone.now()
        wanted = self.checked(OnDemandRequestSerializer)
        job = services.request_on_demand(source, **wanted, actor=actor_of(request), now=now)
        doorbell.ring(services.first_step(job), now=now)
        return Response(JobSerializer(job).data, status=status.HTTP_202_ACCEPTED)

    @extend_schema(request=None, responses={200: SourceSerializer, 202: SourceSerializer})
    @action(detail=True, methods=["post"])
    def test(self, request: Request, pk: str) -> Response:
        """Try the connection: `checked_at` and `check_error`, empty when all is well, tell the result.

        202 for what a host reads: its worker answers within seconds, look at `checked_at` then. 409 `host_offline`
        without a worker there.
        """
        source = self.get_object()
        known = services.try_source(source, actor=actor_of(request), now=timezone.now())
        code = status.HTTP_200_OK if known else status.HTTP_202_ACCEPTED
        return Response(SourceSerializer(source).data, status=code)

    @extend_schema(responses={200: FreedSerializer(many=True)}, filters=False)
    @action(detail=True, pagination_class=None)
    def freed(self, request: Request, pk: str) -> Response:
        """Tell, vault by vault, what deleting all points of the source would free at the next prune."""
        source = self.get_object()
        vaults = freed.vaults_of(source.series, source.account_id)
        return Response(FreedSerializer(freed.by_series(source.series, vaults), many=True).data)

    @extend_schema(request=TypedRequestSerializer, responses={202: ErasureSerializer})
    @action(detail=True, methods=["post"])
    def erase(self, request: Request, pk: str) -> Response:
        """Cancel the protection of a source: its plans end at once, all its points are deleted for good (C32).

        What a lock protects goes when the lock ends; the source goes with its last point.
        """
        source, typed = self.get_object(), self.checked(TypedRequestSerializer)
        found = removal.erase(source, actor=actor_of(request), now=timezone.now(), **typed)
        return Response(ErasureSerializer(found).data, status=status.HTTP_202_ACCEPTED)


class MaintainedVaultView(VaultView):
    """Vaults of the caller's accounts."""

    permissions: ClassVar = {**VaultView.permissions, "set_maintenance": MANAGE_VAULTS}

    @extend_schema(responses={200: DutySerializer(many=True)}, filters=False)
    @action(detail=True, pagination_class=None)
    def maintenance(self, request: Request, pk: str) -> Response:
        """List what the vault needs done again and again: how often, when next, and how the last run ended."""
        return self._duties(self.get_object())

    @extend_schema(request=IntervalsSerializer, responses={200: DutySerializer(many=True)}, filters=False)
    @maintenance.mapping.patch
    def set_maintenance(self, request: Request, pk: str) -> Response:
        """Give the vault its own intervals."""
        vault = self.get_object()
        wanted = dict(self.checked(IntervalsSerializer))
        maintenance.set_intervals(vault, wanted, actor=actor_of(request), now=timezone.now())
        return self._duties(vault)

    @extend_schema(
        parameters=[OpenApiParameter("point", str, many=True, description="Ids of points; may be repeated")],
        responses={200: FreedSerializer},
        filters=False,
    )
    @action(detail=True, pagination_class=None)
    def freed(self, request: Request, pk: str) -> Response:
        """Tell what deleting these points together would free at the next prune. 409 `too_many_points`."""
        vault, asked = self.get_object(), request.query_params.getlist("point")
        points = list(vault.points.filter(pk__in=asked))
        if len(points) != len(set(asked)):
            raise exceptions.ValidationError({"point": "Give ids of points of this vault."})
        return Response(FreedSerializer(freed.by_points(vault, points)).data)

    def _duties(self, vault: Vault) -> Response:
        duties = vault.duties.select_related("vault", "last_job")
        return Response(DutySerializer(duties, many=True).data)


class ClosableAccountView(AccountView):
    """Accounts, their members and their audit trail."""

    permissions: ClassVar = {**AccountView.permissions, "request_deletion": OWN}

    @extend_schema(request=ConfirmationSerializer, responses={204: None})
    @action(detail=True, methods=["post"], url_path="delete")
    def request_deletion(self, request: Request, pk: str) -> Response:
        """Delete an account that has no vaults; 409 `account_in_use`, or `account_locked` with the date (B6)."""
        account, wanted = self.get_object(), self.checked(ConfirmationSerializer)
        closing.delete_account(account, actor=actor_of(request), now=timezone.now(), **wanted)
        return Response(status=status.HTTP_204_NO_CONTENT)
