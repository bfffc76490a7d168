"""Endpoints of quotas."""

from typing import Any, ClassVar

from django.utils import timezone
from drf_spectacular.utils import extend_schema
from rest_framework import mixins, serializers, status
from rest_framework.request import Request
from rest_framework.response import Response

from accounts.models import Account
from accounts.permissions import INSTALL, MANAGE_VAULTS, VIEW
from accounts.serializers import OwnField
from accounts.views import AccountViewSet, actor_of
from vaults import quotas
from vaults.models import Quota, Vault


class QuotaSerializer(serializers.ModelSerializer[Quota]):
    """`vault` empty is all vaults of the account."""

    account = OwnField(queryset=Account.objects.all(), account_path="pk")
    vault = OwnField(queryset=Vault.objects.present(), allow_null=True, default=None)
    bytes_used = serializers.SerializerMethodField()

    class Meta:
        model = Quota
        fields = ["id", "account", "vault", "bytes_soft", "bytes_hard", "bytes_used", "soft_since", "created_at"]
        read_only_fields = ["soft_since", "created_at"]
        validators: list[Any] = []  # one that is there is replaced

    def get_bytes_used(self, quota: Quota) -> int:
        """Ask for all rows of a list at once."""
        kept: dict[str, Any] = self.context  # type: ignore[assignment]  # a dictionary of the root's own
        if "bytes_used" not in kept:
            rows = getattr(self.parent, "instance", None)
            kept["bytes_used"] = quotas.stored_of([quota] if rows is None else list(rows))
        return int(kept["bytes_used"][quota.pk])


class QuotaView(mixins.ListModelMixin, mixins.RetrieveModelMixin, AccountViewSet[Quota]):
    """Limits of what may be stored: of a whole account, set by staff, and of one vault."""

    queryset = Quota.objects.select_related("account", "vault")
    serializer_class = QuotaSerializer
    permissions: ClassVar = {"destroy": VIEW}  # then what its kind needs
    filterset_fields: ClassVar = ["account", "vault"]

    @extend_schema(request=QuotaSerializer, responses={201: QuotaSerializer})
    def create(self, request: Request) -> Response:
        """Set the limits of an account or a vault, in the place of those it had."""
        wanted = Quota(**self.checked(QuotaSerializer))
        self._may_set(wanted)
        quota = quotas.set_quota(wanted, actor=actor_of(request), now=timezone.now())
        return Response(QuotaSerializer(quota, context=self.get_serializer_context()).data, status=201)

    @extend_schema(request=None, responses={204: None})
    def destroy(self, request: Request, pk: str) -> Response:
        """Take the limits away."""
        quota = self.get_object()
        self._may_set(quota)
        quotas.remove_quota(quota, actor=actor_of(request), now=timezone.now())
        return Response(status=status.HTTP_204_NO_CONTENT)

    def _may_set(self, quota: Quota) -> None:
        """Let staff limit an account, and who manages its vaults limit one of them."""
        if quota.vault is None:
            self.need(INSTALL, None)
        else:
            self.need(MANAGE_VAULTS, quota.vault)
