"""The API's ground: pages, permissions by role, the actor of a request; and the endpoints of accounts and tokens."""

from typing import Any, ClassVar, TypeVar

from django.conf import settings
from django.contrib.auth import authenticate
from django.db import models
from django.utils import timezone
from drf_spectacular.utils import extend_schema
from knox.auth import TokenAuthentication
from knox.models import AuthToken
from rest_framework import exceptions, mixins, status, viewsets
from rest_framework.decorators import action
from rest_framework.pagination import CursorPagination
from rest_framework.permissions import AllowAny, BasePermission, IsAuthenticated
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.serializers import BaseSerializer

from accounts import services
from accounts.models import Account, Event, Member, User
from accounts.permissions import INSTALL, MANAGE, OWN, VIEW
from accounts.serializers import (
    AccountRequestSerializer,
    AccountSerializer,
    EventSerializer,
    LoginSerializer,
    MemberRequestSerializer,
    MemberSerializer,
    NewTokenSerializer,
    TokenSerializer,
)

M = TypeVar("M", bound=models.Model)


class Pages(CursorPagination):
    """Pages that stay right while rows come and go."""

    ordering: Any = ("-created_at", "-pk")
    page_size = 50
    page_size_query_param = "page_size"
    max_page_size = 500


def user_of(request: Request) -> User:
    """Return the person behind an authenticated request."""
    assert isinstance(request.user, User)
    return request.user


def actor_of(request: Request) -> services.Actor:
    """Return who asks, and from where: the address that the outermost trusted proxy saw."""
    address = request.META.get("REMOTE_ADDR") or None
    proxies = settings.REST_FRAMEWORK["NUM_PROXIES"]
    forwarded = [one.strip() for one in request.META.get("HTTP_X_FORWARDED_FOR", "").split(",") if one.strip()]
    if proxies and forwarded:
        address = forwarded[-min(proxies, len(forwarded))]
    return services.Actor(user=user_of(request), address=address)


class RolePermission(BasePermission):
    """Ask the predicates of accounts.permissions about the object. What one may not see is not found instead."""

    def has_object_permission(self, request: Request, view: Any, obj: Any) -> bool:
        return user_of(request).has_perm(view.permission_needed(), obj)


class AccountViewSet(viewsets.GenericViewSet[M]):
    """Rows of the accounts that the user is a member of. An outsider's request finds nothing: 404."""

    permission_classes = [IsAuthenticated, RolePermission]
    pagination_class: Any = Pages
    account_path: ClassVar[str] = "account"
    permissions: ClassVar[dict[str, str]] = {}

    def permission_needed(self) -> str:
        """Return the permission for the present action: reading needs VIEW, the rest MANAGE unless stated."""
        default = VIEW if self.request.method in ("GET", "HEAD", "OPTIONS") else MANAGE
        return self.permissions.get(self.action or "", default)

    def get_queryset(self) -> models.QuerySet[M]:
        if getattr(self, "swagger_fake_view", False):
            return super().get_queryset().none()
        visible = Account.objects.visible_to(user_of(self.request))
        return super().get_queryset().filter(**{f"{self.account_path}__in": visible})

    def need(self, permission: str, thing: Any) -> None:
        """Raise PermissionDenied unless the user has the permission for `thing`."""
        if not user_of(self.request).has_perm(permission, thing):
            raise exceptions.PermissionDenied

    def checked(self, serializer: type[BaseSerializer[Any]], **options: Any) -> Any:
        """Return the request's validated data."""
        wanted = serializer(data=self.request.data, context=self.get_serializer_context(), **options)
        wanted.is_valid(raise_exception=True)
        return wanted.validated_data


class AccountView(mixins.ListModelMixin, mixins.RetrieveModelMixin, AccountViewSet[Account]):
    """Accounts, their members and their audit trail."""

    queryset = Account.objects.all()
    serializer_class = AccountSerializer
    account_path = "pk"
    permissions: ClassVar = {"events": MANAGE, "set_role": OWN, "remove_member": OWN}

    @extend_schema(request=AccountRequestSerializer, responses={201: AccountSerializer})
    def create(self, request: Request) -> Response:
        """Open an account; for staff. The caller becomes its owner unless another user is named."""
        self.need(INSTALL, None)
        wanted = self.checked(AccountRequestSerializer)
        account = services.create_account(
            name=wanted["name"],
            owner=wanted.get("owner") or user_of(request),
            actor=actor_of(request),
            now=timezone.now(),
        )
        return Response(AccountSerializer(account).data, status=status.HTTP_201_CREATED)

    @extend_schema(responses={200: MemberSerializer(many=True)}, filters=False)
    @action(detail=True, pagination_class=None)
    def members(self, request: Request, pk: str) -> Response:
        """List the members."""
        members = self.get_object().members.select_related("user").order_by("user__username")
        return Response(MemberSerializer(members, many=True).data)

    @extend_schema(request=MemberRequestSerializer, responses={200: MemberSerializer})
    @members.mapping.post
    def set_role(self, request: Request, pk: str) -> Response:
        """Give a user a role in the account, or another role."""
        account = self.get_object()
        wanted = self.checked(MemberRequestSerializer)
        member = services.set_role(
            account=account, user=wanted["user"], role=wanted["role"], actor=actor_of(request), now=timezone.now()
        )
        return Response(MemberSerializer(member).data)

    @extend_schema(request=None, responses={204: None})
    @action(detail=True, methods=["delete"], url_path=r"members/(?P<username>[\w.@+-]+)")
    def remove_member(self, request: Request, pk: str, username: str) -> Response:
        """Take a user out of the account."""
        member = Member.objects.filter(account=self.get_object(), user__username=username).first()
        if member is None:
            raise exceptions.NotFound
        services.remove_member(member, actor=actor_of(request), now=timezone.now())
        return Response(status=status.HTTP_204_NO_CONTENT)

    @extend_schema(responses={200: EventSerializer(many=True)}, filters=False)
    @action(detail=True)
    def events(self, request: Request, pk: str) -> Response:
        """List the audit trail, newest first."""
        events = Event.objects.filter(account=self.get_object())
        paginator = Pages()
        paginator.ordering = ("-happened_at", "-pk")
        page = paginator.paginate_queryset(events, request, view=self)
        return paginator.get_paginated_response(EventSerializer(page, many=True).data)


class TokenView(viewsets.GenericViewSet[AuthToken]):
    """API tokens of the caller. A token's text is shown once, when it is made."""

    queryset = AuthToken.objects.all()
    serializer_class = TokenSerializer
    pagination_class = None
    lookup_field = "token_key"
    lookup_value_regex = r"[\w-]+"

    def get_queryset(self) -> models.QuerySet[AuthToken]:
        if getattr(self, "swagger_fake_view", False):
            return super().get_queryset().none()
        return super().get_queryset().filter(user=user_of(self.request)).order_by("-created")

    @extend_schema(responses={200: TokenSerializer(many=True)})
    def list(self, request: Request) -> Response:
        """List the caller's tokens without their text."""
        return Response(TokenSerializer(self.get_queryset(), many=True).data)

    @extend_schema(request=None, responses={204: None})
    def destroy(self, request: Request, token_key: str) -> Response:
        """Revoke a token of the caller at once."""
        self._revoke(request, self.get_object())
        return Response(status=status.HTTP_204_NO_CONTENT)

    def _revoke(self, request: Request, token: AuthToken) -> None:
        token.delete()
        user = user_of(request)
        services.record(actor_of(request), "token.revoke", user, account=None, now=timezone.now(), key=token.token_key)

    @extend_schema(request=LoginSerializer, responses={201: NewTokenSerializer}, auth=[])
    @action(
        detail=False,
        methods=["post"],
        permission_classes=[AllowAny],
        authentication_classes=[TokenAuthentication],  # answers 401 with the scheme to use
    )
    def login(self, request: Request) -> Response:
        """Exchange a user name and a password for a token."""
        wanted = LoginSerializer(data=request.data)
        wanted.is_valid(raise_exception=True)
        user = authenticate(
            request._request, username=wanted.validated_data["username"], password=wanted.validated_data["password"]
        )
        if user is None:
            raise exceptions.AuthenticationFailed("The user name or the password is wrong.")
        token, text = AuthToken.objects.create(user=user, expiry=wanted.validated_data.get("expires_in"))
        request.user = user
        services.record(actor_of(request), "token.create", user, account=None, now=timezone.now(), key=token.token_key)
        return Response(
            NewTokenSerializer({"token": text, "token_key": token.token_key, "expiry": token.expiry}).data,
            status=status.HTTP_201_CREATED,
        )

    @extend_schema(request=None, responses={204: None})
    @action(detail=False, methods=["post"])
    def logout(self, request: Request) -> Response:
        """Revoke the token that this request was made with."""
        if not isinstance(request.auth, AuthToken):
            raise exceptions.ValidationError("This request was not made with a token.")
        self._revoke(request, request.auth)
        return Response(status=status.HTTP_204_NO_CONTENT)
