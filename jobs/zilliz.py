"""The policy endpoint of clusters as Zilliz Cloud has it, so that scripts made for it work unchanged (D17-D25).

Its paths, its token header and the envelope of its answers are theirs; everything else of the product is in /api/v1/.
"""

import datetime as dt
import re
import uuid
from collections.abc import Callable
from typing import Any, ClassVar

from django.db import transaction
from django.utils import timezone
from drf_spectacular.utils import extend_schema
from rest_framework import exceptions, serializers
from rest_framework.request import Request
from rest_framework.response import Response

from accounts.authentication import TokenAuthentication
from accounts.permissions import BACKUP, VIEW
from accounts.refusals import Refused
from accounts.serializers import OwnField
from accounts.views import AccountViewSet, actor_of
from jobs import clusters, doorbell, services
from policies.clusters import Automatic, RetentionOutOfRange, automatic_of, is_enabled, plan_of
from policies.kinds import TYPES
from policies.models import Plan, Source
from vaults.models import Vault

CLUSTER_KINDS = [kind for kind, one in TYPES.items() if one.is_cluster]
_WINDOW = re.compile(r"([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-3]):([0-5]\d)")


class ClusterAmbiguous(Refused):
    """Several sources were given the same cluster id."""

    code = "cluster_ambiguous"


class BearerAuthentication(TokenAuthentication):
    """Takes the API's tokens from `Authorization: Bearer`, as scripts for Zilliz Cloud send them (D17)."""

    def authenticate_header(self, request: Request) -> str:
        return "Bearer"


class FrequencyField(serializers.CharField):
    """Days as "1,2,3,5": 1 Monday to 7 Sunday, each at most once (D18)."""

    default_error_messages: ClassVar = {
        "invalid_frequency": 'Give different days from 1, Monday, to 7, Sunday, with commas between: "1,2,3,5".'
    }

    def to_internal_value(self, data: Any) -> Any:
        parts = [part.strip() for part in str(super().to_internal_value(data)).split(",")]
        if not all(re.fullmatch("[1-7]", part) for part in parts) or len(set(parts)) != len(parts):
            self.fail("invalid_frequency")
        return tuple(sorted(int(part) for part in parts))

    def to_representation(self, value: Any) -> str:
        return ",".join(str(day) for day in value)


class WindowField(serializers.CharField):
    """A window of the day as "02:00-04:00", in UTC; one that ends before it begins goes over midnight (D19)."""

    default_error_messages: ClassVar = {
        "invalid_window": 'Give a window of the day in UTC as HH:MM-HH:MM, "02:00-04:00", that ends at another time.'
    }

    def to_internal_value(self, data: Any) -> Any:
        found = _WINDOW.fullmatch(str(super().to_internal_value(data)))
        if found is None:
            self.fail("invalid_window")
        hours, minutes, end_hours, end_minutes = (int(number) for number in found.groups())
        start, end = dt.time(hours, minutes), dt.time(end_hours, end_minutes)
        if start == end:
            self.fail("invalid_window")
        return start, end

    def to_representation(self, value: Any) -> str:
        return "-".join(f"{time:%H:%M}" for time in value)


def _in_range(days: int) -> None:
    try:
        Automatic(retention_days=days).check()
    except RetentionOutOfRange as refusal:
        raise serializers.ValidationError(str(refusal), code=refusal.code) from refusal


class ClusterPolicySerializer(serializers.Serializer[Any]):
    """What a script sets; `vaultId` is ours, for accounts with several vaults."""

    frequency = FrequencyField(required=False)
    startTime = WindowField(required=False)
    retentionDays = serializers.IntegerField(required=False, validators=[_in_range])
    enabled = serializers.BooleanField(required=False)
    vaultId = OwnField(queryset=Vault.objects.select_related("region"), required=False)

    def validate(self, values: dict[str, Any]) -> dict[str, Any]:
        if unknown := sorted(set(self.initial_data) - set(self.fields)):
            raise serializers.ValidationError({name: f"Unknown. Known: {', '.join(self.fields)}." for name in unknown})
        return values

    def changes(self) -> dict[str, Any]:
        """Return what is to change, as policies.clusters has it."""
        given = self.validated_data
        names = {"frequency": "days", "retentionDays": "retention_days"}
        changes = {ours: given[theirs] for theirs, ours in names.items() if theirs in given}
        if "startTime" in given:
            changes["start"], changes["end"] = given["startTime"]
        return changes


@extend_schema(exclude=True)  # another product's shape: it is described in docs/api.md
class ClusterPolicyView(AccountViewSet[Source]):
    """The automatic backup of one cluster."""

    queryset = Source.objects.filter(kind__in=CLUSTER_KINDS).select_related("account", "region")
    serializer_class = ClusterPolicySerializer
    authentication_classes = [BearerAuthentication]
    permissions: ClassVar = {"retrieve": VIEW, "set": BACKUP}

    def get_exception_handler(self) -> Callable[..., Response | None]:
        """Put errors, too, into the envelope."""
        handler = super().get_exception_handler()

        def handle(error: Exception, context: Any) -> Response | None:
            answer: Response | None = handler(error, context)
            if answer is not None:
                answer.data = _enveloped(answer)
            return answer

        return handle

    def retrieve(self, request: Request, cluster: str) -> Response:
        """Tell when the cluster is backed up (D24)."""
        plan = plan_of(self._source(cluster))
        found = automatic_of(plan)
        shape = ClusterPolicySerializer().fields
        return _answer(
            cluster,
            plan,
            startTime=shape["startTime"].to_representation((found.start, found.end)),
            frequency=shape["frequency"].to_representation(found.days),
            retentionDays=found.retention_days,
        )

    @transaction.atomic
    def set(self, request: Request, cluster: str) -> Response:
        """Set what is given, and leave the rest; enabling starts a backup at once (D12, D25)."""
        source, now = self._source(cluster), timezone.now()
        wanted = ClusterPolicySerializer(data=request.data, context=self.get_serializer_context())
        wanted.is_valid(raise_exception=True)
        given = wanted.validated_data
        plan, job = clusters.set_automatic(
            source,
            changes=wanted.changes(),
            enabled=given.get("enabled"),
            vault=given.get("vaultId"),
            actor=actor_of(request),
            now=now,
        )
        if job is not None:
            doorbell.ring(services.first_step(job), now=now)
        return _answer(cluster, plan)

    def _source(self, cluster: str) -> Source:
        """Return the source by its id or by the cluster id that the operator gave it."""
        mine = self.get_queryset()
        try:
            found = list(mine.filter(pk=uuid.UUID(cluster)))
        except ValueError:
            found = list(mine.filter(settings__cluster_id=cluster)[:2])
        if not found:
            raise exceptions.NotFound(f"There is no cluster {cluster!r}.")
        if len(found) > 1:
            raise ClusterAmbiguous(f"Several sources have the cluster id {cluster!r}. Use a source's own id.")
        self.check_object_permissions(self.request, found[0])
        return found[0]


def _answer(cluster: str, plan: Plan | None, **more: Any) -> Response:
    """Answer as the other product does (D22)."""
    status = "ENABLED" if is_enabled(plan) else "DISABLED"
    return Response({"code": 0, "data": {"clusterId": cluster, "status": status, **more}})


def _enveloped(answer: Response) -> dict[str, Any]:
    """Return an error as the envelope tells it: `code` is the status, `reason` the name that the API has for it."""
    first = answer.data["errors"][0]
    named = f"{first['attr']}: " if first.get("attr") not in (None, "non_field_errors") else ""
    told = {"code": answer.status_code, "message": f"{named}{first['detail']}", "reason": first["code"]}
    return told | ({"context": answer.data["context"]} if "context" in answer.data else {})
