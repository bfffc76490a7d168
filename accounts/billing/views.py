"""Endpoints of usage, the monthly report, prices and allowances."""

import datetime as dt
from typing import Any, ClassVar

from django.core.exceptions import ValidationError
from django.db import models
from django.http import StreamingHttpResponse
from django.utils import timezone
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import exceptions, mixins, status, viewsets
from rest_framework.decorators import action
from rest_framework.permissions import IsAuthenticated
from rest_framework.renderers import JSONRenderer
from rest_framework.request import Request
from rest_framework.response import Response

from accounts import chargeback, pricebook
from accounts.billing.serializers import (
    AllowanceSerializer,
    EndSerializer,
    ModeSerializer,
    PriceSerializer,
    ReportSerializer,
    UsageSerializer,
)
from accounts.chargeback import Month
from accounts.models import Account, Allowance, Price, Usage
from accounts.permissions import INSTALL, SEE_USAGE, accounts_where
from accounts.states import Privilege
from accounts.views import AccountViewSet, AnyRenderer, Pages, actor_of, user_of

FORMS = ("json", "csv")


class TableRenderer(AnyRenderer):
    """Lets a client ask for a table; errors are still JSON."""

    media_type = "text/csv"
    format = "csv"


class UsagePages(Pages):
    ordering: Any = ("-day", "-pk")


class UsageView(mixins.ListModelMixin, AccountViewSet[Usage]):
    """What was used, day by day, of the accounts whose usage the caller may see."""

    queryset = Usage.objects.all()
    serializer_class = UsageSerializer
    pagination_class = UsagePages
    permissions: ClassVar = {"report": SEE_USAGE, "mode": INSTALL}
    filterset_fields: ClassVar = {
        "account": ["exact"],
        "day": ["exact", "gte", "lte"],
        "meter": ["exact"],
        "vault": ["exact"],
        "source": ["exact"],
        "host": ["exact"],
        "region": ["exact"],
        "variant": ["exact"],
        "estimated": ["exact"],
        "trial": ["exact"],
    }

    def get_queryset(self) -> models.QuerySet[Usage]:
        usage = super().get_queryset()
        if getattr(self, "swagger_fake_view", False):
            return usage
        return usage.filter(account__in=accounts_where(user_of(self.request), Privilege.SEE_USAGE))

    @extend_schema(
        parameters=[
            OpenApiParameter("account", str, description="May be left out by who sees one account only"),
            OpenApiParameter("month", str, description="Such as 2026-11; the present one unless told"),
            OpenApiParameter("as", str, enum=FORMS, description="json unless told"),
        ],
        responses={200: ReportSerializer},
        filters=False,
    )
    @action(detail=False, pagination_class=None, renderer_classes=[JSONRenderer, TableRenderer, AnyRenderer])
    def report(self, request: Request) -> Response | StreamingHttpResponse:
        """Tell what a month's usage costs; as CSV too, a line for each subject and for each source's part."""
        now = timezone.now()
        account = self._account(request.query_params.get("account", ""))
        self.need(SEE_USAGE, account)
        asked = request.query_params.get("month", "")
        month = Month.parse(asked) if asked else Month.of(now.date())
        form = request.query_params.get("as", "json")
        if form not in FORMS:
            raise exceptions.ValidationError({"as": f"Must be one of {', '.join(FORMS)}."})
        found = chargeback.report(account, month, now=now)
        if form == "json":
            return Response(ReportSerializer(found).data)
        answer = StreamingHttpResponse(chargeback.table(found), content_type="text/csv; charset=utf-8")
        answer["Content-Disposition"] = f'attachment; filename="usage-{month}.csv"'
        return answer

    def _account(self, asked: str) -> Account:
        """Return the account that is asked for, or the only one that the caller sees."""
        visible = Account.objects.visible_to(user_of(self.request))
        if asked:
            try:
                return visible.get(pk=asked)
            except (Account.DoesNotExist, ValidationError) as error:  # the latter for what is no id
                raise exceptions.NotFound from error
        few = list(visible[:2])
        if not few:
            raise exceptions.NotFound
        if len(few) > 1:
            raise exceptions.ValidationError({"account": "You see several accounts: name one."})
        return few[0]

    @extend_schema(request=ModeSerializer, responses={200: ModeSerializer}, filters=False)
    @action(detail=False, methods=["post"], pagination_class=None)
    def mode(self, request: Request) -> Response:
        """Say what of an account's capacity is priced, from the next metered day on; for staff."""
        self.need(INSTALL, None)
        wanted = self.checked(ModeSerializer)
        account = pricebook.set_metering(wanted["account"], wanted["mode"], actor=actor_of(request), now=timezone.now())
        return Response(ModeSerializer({"account": account, "mode": account.metering}).data)


class _InstallationView(mixins.ListModelMixin, mixins.RetrieveModelMixin, viewsets.GenericViewSet[Any]):
    """Rows that staff makes: those of the installation, which everybody sees, and of accounts, for their members."""

    permission_classes = [IsAuthenticated]
    pagination_class = Pages

    def get_queryset(self) -> models.QuerySet[Any]:
        rows = super().get_queryset()
        if getattr(self, "swagger_fake_view", False):
            return rows.none()
        seen = accounts_where(user_of(self.request), Privilege.SEE_USAGE)
        return rows.filter(models.Q(account=None) | models.Q(account__in=seen))

    def _staff(self, request: Request) -> None:
        if not request.user.has_perm(INSTALL):
            raise exceptions.PermissionDenied

    def _checked(self, serializer: Any) -> dict[str, Any]:
        wanted = serializer(data=self.request.data, context=self.get_serializer_context())
        wanted.is_valid(raise_exception=True)
        values: dict[str, Any] = wanted.validated_data
        return values


class PriceView(_InstallationView):
    """What things cost, and from when on."""

    queryset = Price.objects.all()
    serializer_class = PriceSerializer
    filterset_fields: ClassVar = ["account", "meter", "currency"]

    @extend_schema(request=PriceSerializer, responses={201: PriceSerializer})
    def create(self, request: Request) -> Response:
        """Set a price from a day on; for staff. Months that are over keep theirs: 409."""
        self._staff(request)
        price = pricebook.set_price(
            Price(**self._checked(PriceSerializer)), actor=actor_of(request), now=timezone.now()
        )
        return Response(PriceSerializer(price).data, status=status.HTTP_201_CREATED)

    @extend_schema(request=None, responses={204: None})
    def destroy(self, request: Request, pk: str) -> Response:
        """Take back a price that no month which is over was charged by; for staff."""
        self._staff(request)
        pricebook.withdraw_price(self.get_object(), actor=actor_of(request), now=timezone.now())
        return Response(status=status.HTTP_204_NO_CONTENT)


class AllowanceView(_InstallationView):
    """What is free, and what is prepaid."""

    queryset = Allowance.objects.all()
    serializer_class = AllowanceSerializer
    filterset_fields: ClassVar = ["account", "kind", "meter"]

    @extend_schema(request=AllowanceSerializer, responses={201: AllowanceSerializer})
    def create(self, request: Request) -> Response:
        """Add an allowance; for staff. Traffic is never covered: 409."""
        self._staff(request)
        allowance = pricebook.add_allowance(
            Allowance(**self._checked(AllowanceSerializer)), actor=actor_of(request), now=timezone.now()
        )
        return Response(AllowanceSerializer(allowance).data, status=status.HTTP_201_CREATED)

    @extend_schema(request=EndSerializer, responses={200: AllowanceSerializer})
    @action(detail=True, methods=["post"], url_path="end")
    def end(self, request: Request, pk: str) -> Response:
        """Let an allowance hold for the last time on a day; for staff."""
        self._staff(request)
        last: dt.date = self._checked(EndSerializer)["ends_on"]
        allowance = pricebook.end_allowance(self.get_object(), on=last, actor=actor_of(request), now=timezone.now())
        return Response(AllowanceSerializer(allowance).data)
