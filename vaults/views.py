"""Endpoints of regions, vaults and recovery points."""

import base64
import binascii
from typing import Any, ClassVar
from urllib.parse import quote

import django_filters
from django.db.models import Count, Q, QuerySet, Sum
from django.db.models.functions import Coalesce
from django.http import StreamingHttpResponse
from django.utils import timezone
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import exceptions, mixins, status, viewsets
from rest_framework.decorators import action
from rest_framework.permissions import IsAuthenticated
from rest_framework.renderers import JSONRenderer
from rest_framework.request import Request
from rest_framework.response import Response

from accounts.permissions import INSTALL, MANAGE_VAULTS, OWN, READ_DATA
from accounts.views import AccountViewSet, AnyRenderer, Pages, actor_of
from vaults import browsing, condition, deletion, recovery, replication, services
from vaults.models import FORMER_TYPES, RecoveryPoint, Region, ReplicationLink, Vault, VaultState, VaultType
from vaults.serializers import (
    ConditionSerializer,
    ConfirmationSerializer,
    DrillSerializer,
    EntryPageSerializer,
    ImmutabilityRequestSerializer,
    NewVaultSerializer,
    RecoveryKeyRequestSerializer,
    RecoveryPointSerializer,
    RecoveryProofSerializer,
    RegionRequestSerializer,
    RegionSerializer,
    ReplicationChangeSerializer,
    ReplicationLinkSerializer,
    ReplicationRequestSerializer,
    RotatedSerializer,
    VaultChangeSerializer,
    VaultRequestSerializer,
    VaultSerializer,
)

PATH = [
    OpenApiParameter("path", str, description="Absolute path inside the point, UTF-8; empty is the top"),
    OpenApiParameter("path_base64", str, description="The same as base64 of raw bytes, for names that are not UTF-8"),
]


class RegionView(mixins.ListModelMixin, mixins.RetrieveModelMixin, viewsets.GenericViewSet[Region]):
    """Regions belong to the installation: every user sees them, staff makes and changes them."""

    queryset = Region.objects.all()
    serializer_class = RegionSerializer
    permission_classes = [IsAuthenticated]
    pagination_class = Pages
    lookup_field = "name"

    def _staff(self, request: Request) -> None:
        if not request.user.has_perm(INSTALL):
            raise exceptions.PermissionDenied

    def _save(self, request: Request, region: Region, *, partial: bool) -> Response:
        self._staff(request)
        wanted = RegionRequestSerializer(None if region._state.adding else region, data=request.data, partial=partial)
        wanted.is_valid(raise_exception=True)
        values: dict[str, Any] = dict(wanted.validated_data)
        given: dict[str, str] = {name: values.pop(name) for name in ("access_key", "secret_key") if name in values}
        for name, value in values.items():
            setattr(region, name, value)
        new = region._state.adding
        services.save_region(
            region, credentials=given if given or new else None, actor=actor_of(request), now=timezone.now()
        )
        return Response(RegionSerializer(region).data, status=201 if new else 200)

    @extend_schema(request=RegionRequestSerializer, responses={201: RegionSerializer})
    def create(self, request: Request) -> Response:
        """Make a region after probing its store; 409 when the store is unfit."""
        return self._save(request, Region(), partial=False)

    @extend_schema(request=RegionRequestSerializer(partial=True), responses={200: RegionSerializer})
    def partial_update(self, request: Request, name: str) -> Response:
        """Change a region's options or credentials; its name and address never change."""
        self._staff(request)
        return self._save(request, self.get_object(), partial=True)

    @extend_schema(request=None, responses={200: RegionSerializer})
    @action(detail=True, methods=["post"])
    def probe(self, request: Request, name: str) -> Response:
        """Find out again what the store can do."""
        self._staff(request)
        region = services.probe_region(self.get_object(), actor=actor_of(request), now=timezone.now())
        return Response(RegionSerializer(region).data)

    @extend_schema(request=None, responses={204: None})
    def destroy(self, request: Request, name: str) -> Response:
        """Forget a region in which nothing is left."""
        self._staff(request)
        services.delete_region(self.get_object(), actor=actor_of(request), now=timezone.now())
        return Response(status=status.HTTP_204_NO_CONTENT)


class VaultFilter(django_filters.FilterSet):
    """Vaults by what they are; `type` takes a former name too (E5)."""

    type = django_filters.ChoiceFilter(
        choices=[*VaultType.choices, *((name, name.title()) for name in FORMER_TYPES)], method="of_type"
    )

    class Meta:
        model = Vault
        fields: ClassVar = ["account", "region", "region__branch", "type", "state"]

    def of_type(self, queryset: QuerySet[Vault], name: str, value: str) -> QuerySet[Vault]:
        return queryset.filter(type=FORMER_TYPES.get(value, value))


class VaultView(mixins.ListModelMixin, mixins.RetrieveModelMixin, AccountViewSet[Vault]):
    """Vaults of the caller's accounts."""

    queryset = Vault.objects.select_related("region", "account", "reading")
    serializer_class = VaultSerializer
    filterset_class = VaultFilter
    permissions: ClassVar = {
        "make_immutable": OWN,
        "request_deletion": OWN,
        "replace_recovery_key": OWN,
        "rotate_keys": OWN,
        "partial_update": MANAGE_VAULTS,
        "prove_recovery_key": MANAGE_VAULTS,
        "replicate": MANAGE_VAULTS,
        "limit_replication": MANAGE_VAULTS,
        "stop_replication": OWN,
    }

    def get_queryset(self) -> QuerySet[Vault]:
        return (
            super()
            .get_queryset()
            .annotate(points_count=Count("points"), bytes_stored=Coalesce(Sum("points__bytes_stored"), 0))
        )

    def filter_queryset(self, queryset: Any) -> Any:
        """Leave out what was deleted, unless it is asked for."""
        if self.action == "list" and "state" not in self.request.query_params:
            queryset = queryset.exclude(state=VaultState.DELETED)
        return super().filter_queryset(queryset)

    def _shown(self, vault: Vault, *, status_code: int = status.HTTP_200_OK) -> Response:
        return Response(VaultSerializer(self.get_queryset().get(pk=vault.pk)).data, status=status_code)

    def _handed_out(self, vault: Vault, key: str, *, status_code: int) -> Response:
        shares = recovery.shares_of(vault, key)
        shown = self.get_queryset().get(pk=vault.pk)
        answer = {"vault": shown, "recovery_key": "" if shares else key, "recovery_shares": shares}
        return Response(NewVaultSerializer(answer).data, status=status_code, headers={"Cache-Control": "no-store"})

    @extend_schema(request=VaultRequestSerializer, responses={201: NewVaultSerializer})
    def create(self, request: Request) -> Response:
        """Make a vault. The answer shows its recovery key, or the shares of it, this once."""
        values = self.checked(VaultRequestSerializer)
        secret = values.pop("key_secret")
        vault = Vault(**values)
        self.need(MANAGE_VAULTS, vault)
        key = services.create_vault(vault, key_secret=secret, actor=actor_of(request), now=timezone.now())
        return self._handed_out(vault, key, status_code=status.HTTP_201_CREATED)

    @extend_schema(request=VaultChangeSerializer(partial=True), responses={200: VaultSerializer})
    def partial_update(self, request: Request, pk: str) -> Response:
        """Change the name or the description."""
        vault = self.get_object()
        for name, value in self.checked(VaultChangeSerializer, partial=True).items():
            setattr(vault, name, value)
        services.change_vault(vault, actor=actor_of(request), now=timezone.now())
        return self._shown(vault)

    @extend_schema(request=ImmutabilityRequestSerializer, responses={200: VaultSerializer})
    @action(detail=True, methods=["post"], url_path="make-immutable")
    def make_immutable(self, request: Request, pk: str) -> Response:
        """Lock every point for at least `days` from its completion, or lengthen that (B6). It can't be undone."""
        vault = self.get_object()
        wanted = self.checked(ImmutabilityRequestSerializer)
        services.make_immutable(vault, actor=actor_of(request), now=timezone.now(), **wanted)
        return self._shown(vault)

    @extend_schema(responses={200: ReplicationLinkSerializer})
    @action(detail=True)
    def replication(self, request: Request, pk: str) -> Response:
        """Tell how far the replication from or to this vault has come (E35). 404 where there is none."""
        return self._linked(self._link())

    @extend_schema(request=ReplicationChangeSerializer, responses={200: ReplicationLinkSerializer})
    @replication.mapping.patch
    def limit_replication(self, request: Request, pk: str) -> Response:
        """Say how fast the replica may follow, from its next job on, by time of day; of either end."""
        link, wanted = self._link(), self.checked(ReplicationChangeSerializer)
        return self._linked(replication.limit(link, wanted["limits"], actor=actor_of(request), now=timezone.now()))

    def _link(self) -> ReplicationLink:
        vault = self.get_object()
        ends = ReplicationLink.objects.filter(Q(source=vault) | Q(target=vault))
        link = ends.select_related("source", "target", "account").first()
        if link is None:
            raise exceptions.NotFound
        return link

    @extend_schema(request=ReplicationRequestSerializer, responses={201: ReplicationLinkSerializer})
    @action(detail=True, methods=["post"])
    def replicate(self, request: Request, pk: str) -> Response:
        """Replicate this vault to a target in another region: all points that it has, and each new one (E27)."""
        source = self.get_object()
        wanted = self.checked(ReplicationRequestSerializer)
        target, secret = wanted.get("target"), ""
        if target is None:
            values = dict(wanted["new_target"])
            secret = values.pop("key_secret")
            target = Vault(account=source.account, type=VaultType.REPLICATION_TARGET, **values)
        self.need(MANAGE_VAULTS, target)
        link = replication.start_at_vault(
            source,
            target,
            key_secret=secret,
            limits=wanted.get("limits"),
            actor=actor_of(request),
            now=timezone.now(),
        )
        return self._linked(link, status_code=status.HTTP_201_CREATED)

    @extend_schema(request=ConfirmationSerializer, responses={200: ReplicationLinkSerializer})
    @action(detail=True, methods=["post"], url_path="stop-replication")
    def stop_replication(self, request: Request, pk: str) -> Response:
        """End the replication from this vault for good (E38). Its target stays, and lives by itself."""
        vault, wanted = self.get_object(), self.checked(ConfirmationSerializer)
        return self._linked(replication.stop(vault, actor=actor_of(request), now=timezone.now(), **wanted))

    def _linked(self, link: ReplicationLink, *, status_code: int = status.HTTP_200_OK) -> Response:
        shown = ReplicationLinkSerializer(link, context={"now": timezone.now()})
        return Response(shown.data, status=status_code)

    @extend_schema(request=ConfirmationSerializer, responses={202: VaultSerializer})
    @action(detail=True, methods=["post"], url_path="delete")
    def request_deletion(self, request: Request, pk: str) -> Response:
        """Delete the vault and all in it (E41). What is locked stays until `deletable_at`; nothing new comes in."""
        vault = self.get_object()
        wanted = self.checked(ConfirmationSerializer)
        deletion.request(vault, actor=actor_of(request), now=timezone.now(), **wanted)
        return self._shown(vault, status_code=status.HTTP_202_ACCEPTED)

    @extend_schema(request=RecoveryProofSerializer, responses={200: VaultSerializer})
    @action(detail=True, methods=["post"], url_path="prove-recovery-key")
    def prove_recovery_key(self, request: Request, pk: str) -> Response:
        """Prove that the recovery key, or enough shares of it, is at hand. It is tried, and kept nowhere."""
        vault = self.get_object()
        wanted = self.checked(RecoveryProofSerializer)
        typed = wanted.get("shares", [wanted.get("recovery_key", "")])
        recovery.prove(vault, typed, actor=actor_of(request), now=timezone.now())
        return self._shown(vault)

    @extend_schema(request=RecoveryKeyRequestSerializer, responses={200: NewVaultSerializer})
    @action(detail=True, methods=["post"], url_path="replace-recovery-key")
    def replace_recovery_key(self, request: Request, pk: str) -> Response:
        """Make a new recovery key in the place of every earlier one. The answer shows it, this once; it is unproven."""
        vault = self.get_object()
        wanted = self.checked(RecoveryKeyRequestSerializer)
        key = recovery.replace(vault, actor=actor_of(request), now=timezone.now(), **wanted)
        return self._handed_out(vault, key, status_code=status.HTTP_200_OK)

    @extend_schema(request=None, responses={200: RotatedSerializer})
    @action(detail=True, methods=["post"], url_path="rotate-keys")
    def rotate_keys(self, request: Request, pk: str) -> Response:
        """Wrap the vault's keys anew, revoke the provider's earlier keys, begin a new data key. Rewrites no data."""
        rotated = recovery.rotate_keys(self.get_object(), actor=actor_of(request), now=timezone.now())
        return Response(RotatedSerializer(rotated).data)

    @extend_schema(responses={200: ConditionSerializer}, filters=False)
    @action(detail=True, pagination_class=None)
    def condition(self, request: Request, pk: str) -> Response:
        """Tell what was read of the vault, what is damaged, what was done last and what comes next."""
        return Response(ConditionSerializer(condition.of(self.get_object())).data)


class PointPages(Pages):
    ordering: Any = ("-completed_at", "-pk")


class RecoveryPointView(mixins.ListModelMixin, mixins.RetrieveModelMixin, AccountViewSet[RecoveryPoint]):
    """Recovery points: listed, browsed and read, never changed here."""

    queryset = RecoveryPoint.objects.select_related("vault__account", "vault__region")
    serializer_class = RecoveryPointSerializer
    pagination_class = PointPages
    account_path = "vault__account"
    permissions: ClassVar = {"entries": READ_DATA, "file": READ_DATA}
    filterset_fields: ClassVar = {
        "vault": ["exact"],
        "series": ["exact"],
        "host": ["exact"],
        "state": ["exact"],
        "manual": ["exact"],
        "completed_at": ["gte", "lte"],
    }

    @extend_schema(
        parameters=[
            *PATH,
            OpenApiParameter("cursor", str, description="`next` of the page before"),
            OpenApiParameter("limit", int, description="1 to 1000 entries a page; 200 unless told"),
        ],
        responses={200: EntryPageSerializer},
        filters=False,
    )
    @action(detail=True, pagination_class=None)
    def entries(self, request: Request, pk: str) -> Response:
        """List a folder of the point, a page at a time, without restoring anything (B22)."""
        try:
            limit = min(max(int(request.query_params.get("limit", 200)), 1), 1000)
            after = _decoded(request.query_params.get("cursor", ""))
        except (ValueError, binascii.Error) as error:
            raise exceptions.ValidationError("limit must be a number, cursor the `next` of a page.") from error
        page = browsing.folder(self.get_object(), _path(request), after=after, limit=limit)
        return Response(EntryPageSerializer(page).data)

    @extend_schema(responses={200: DrillSerializer(many=True)}, filters=False)
    @action(detail=True, pagination_class=None)
    def drills(self, request: Request, pk: str) -> Response:
        """List the last trial restores of the point, newest first."""
        return Response(DrillSerializer(condition.drills(self.get_object().jobs), many=True).data)

    @extend_schema(parameters=PATH, responses={(200, "application/octet-stream"): OpenApiTypes.BINARY}, filters=False)
    @action(detail=True, pagination_class=None, renderer_classes=[JSONRenderer, AnyRenderer])
    def file(self, request: Request, pk: str) -> StreamingHttpResponse:
        """Stream one file out of the point (B22, C1)."""
        entry, parts = browsing.file(self.get_object(), _path(request))
        answer = StreamingHttpResponse(parts, content_type="application/octet-stream")
        answer["Content-Length"] = str(entry.size)
        name = entry.path.rpartition(b"/")[2]
        answer["Content-Disposition"] = f"attachment; filename*=UTF-8''{quote(name, safe='')}"
        answer["X-Content-Type-Options"] = "nosniff"
        return answer


def _decoded(text: str) -> bytes:
    return base64.b64decode(text.encode(), altchars=b"-_", validate=True)


def _path(request: Request) -> bytes:
    """Return the wanted path as the engine names it: raw bytes without slashes at the ends."""
    given = request.query_params.get("path_base64", "")
    try:
        path = _decoded(given) if given else request.query_params.get("path", "").encode()
    except (ValueError, binascii.Error) as error:
        raise exceptions.ValidationError({"path_base64": "This is not base64."}) from error
    if b"\0" in path or b".." in path.split(b"/"):
        raise exceptions.ValidationError({"path": "A path has no '..' and no zero bytes."})
    return path.strip(b"/")
