"""The API's ground: pages, permissions by role, the actor of a request; and the endpoints of accounts and tokens."""

from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

import structlog
from django.contrib.auth import authenticate
from django.db import DatabaseError, models
from django.http import StreamingHttpResponse
from django.utils import timezone
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, extend_schema
from knox.auth import TokenAuthentication
from knox.models import AuthToken
from rest_framework import exceptions, mixins, status, viewsets
from rest_framework.decorators import action
from rest_framework.pagination import CursorPagination
from rest_framework.permissions import AllowAny, BasePermission, IsAuthenticated
from rest_framework.renderers import BaseRenderer, JSONRenderer
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.serializers import BaseSerializer

from accounts import chain, exports, services, tokens
from accounts.models import Account, ApiToken, CustomRole, Event, Member, User
from accounts.permissions import INSTALL, MANAGE, MANAGE_MEMBERS, SEE_AUDIT, VIEW, accounts_where
from accounts.serializers import (
    AccountRequestSerializer,
    AccountSerializer,
    ChainSerializer,
    CustomRoleSerializer,
    EventSerializer,
    LoginSerializer,
    MemberRequestSerializer,
    MemberSerializer,
    NewTokenSerializer,
    TokenRequestSerializer,
    TokenSerializer,
)
from accounts.states import Privilege

log = structlog.get_logger(__name__)

M = TypeVar("M", bound=models.Model)


class Pages(CursorPagination):
    """Pages that stay right while rows come and go."""

    ordering: Any = ("-created_at", "-pk")
    page_size = 50
    page_size_query_param = "page_size"
    max_page_size = 500


class EventPages(Pages):
    ordering: Any = ("-happened_at", "-pk")


class AnyRenderer(BaseRenderer):
    """Lets a client ask for a file with any Accept header; errors are still JSON."""

    media_type = "application/octet-stream"
    format = "bin"

    def render(self, data: Any, *args: Any, **kwargs: Any) -> bytes:
        return JSONRenderer().render(data)


def user_of(request: Request) -> User:
    """Return the person behind an authenticated request."""
    assert isinstance(request.user, User)
    return request.user


def actor_of(request: Request) -> services.Actor:
    """Return who asks, and from where."""
    return services.Actor(user=user_of(request), address=services.address_of(request.META))


def note_refusal(context: Mapping[str, Any], *, code: str, reason: str) -> None:
    """Put into the audit trail what the API refused to somebody it knows; an unknown caller's requests are not kept.

    `context` is the exception handler's: `request` and `view`. A database that is away must not hide the refusal from
    the caller: it is logged instead.
    """
    request, view = context.get("request"), context.get("view")
    if request is None or not isinstance(request.user, User):
        return
    asked = f"{getattr(view, 'basename', 'api')}.{getattr(view, 'action', None) or (request.method or '').lower()}"
    thing = getattr(view, "subject", None)
    try:
        services.record_refusal(actor_of(request), f"api.{asked}", thing, now=timezone.now(), code=code, reason=reason)
    except DatabaseError:
        log.exception("audit.refusal_not_recorded", asked=asked, code=code)


class RolePermission(BasePermission):
    """Ask the predicates of accounts.permissions about the object. What one may not see is not found instead."""

    def has_object_permission(self, request: Request, view: Any, obj: Any) -> bool:
        view.subject = obj
        return user_of(request).has_perm(view.permission_needed(), obj)


class AccountViewSet(viewsets.GenericViewSet[M]):
    """Rows of the accounts that the user is a member of. An outsider's request finds nothing: 404.

    `subject` is what the request turned out to be about: the audit trail names it when the request is refused.
    """

    subject: models.Model | None = None

    permission_classes = [IsAuthenticated, RolePermission]
    pagination_class: Any = Pages
    account_path: ClassVar[str] = "account"
    permissions: ClassVar[dict[str, str]] = {}

    def permission_needed(self) -> str:
        """Return the permission for the present action: reading needs VIEW, the rest MANAGE unless stated."""
        default = VIEW if self.request.method in ("GET", "HEAD", "OPTIONS") else MANAGE
        return self.permissions.get(self.action or "", default)

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        """Note when the request came: a grant that has an end is judged by it."""
        super().initial(request, *args, **kwargs)
        user_of(request).asked_at = timezone.now()

    def get_queryset(self) -> models.QuerySet[M]:
        if getattr(self, "swagger_fake_view", False):
            return super().get_queryset().none()
        return super().get_queryset().filter(self.seen_by(user_of(self.request)))

    def seen_by(self, user: User) -> models.Q:
        """Return which rows exist for the user: those of the user's accounts."""
        return models.Q(**{f"{self.account_path}__in": Account.objects.visible_to(user)})

    def need(self, permission: str, thing: Any) -> None:
        """Raise PermissionDenied unless the user has the permission for `thing`."""
        self.subject = thing
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
    permissions: ClassVar = {"events": SEE_AUDIT, "set_role": MANAGE_MEMBERS, "remove_member": MANAGE_MEMBERS}

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
        shown = AccountSerializer(account, context=self.get_serializer_context())
        return Response(shown.data, status=status.HTTP_201_CREATED)

    @extend_schema(responses={200: MemberSerializer(many=True)}, filters=False)
    @action(detail=True, pagination_class=None)
    def members(self, request: Request, pk: str) -> Response:
        """List the members."""
        members = self.get_object().members.select_related("user", "custom_role").order_by("user__username")
        return Response(MemberSerializer(members, many=True).data)

    @extend_schema(request=MemberRequestSerializer, responses={200: MemberSerializer})
    @members.mapping.post
    def set_role(self, request: Request, pk: str) -> Response:
        """Give a user a role in the account, or another role. Nobody gives privileges that they don't have: 409."""
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
        events = Event.objects.filter(account_id=self.get_object().pk).select_related("link")
        paginator = EventPages()
        page = paginator.paginate_queryset(events, request, view=self)
        return paginator.get_paginated_response(EventSerializer(page, many=True).data)


class RoleView(mixins.ListModelMixin, mixins.RetrieveModelMixin, AccountViewSet[CustomRole]):
    """Roles that accounts made for themselves, of named privileges (D3)."""

    queryset = CustomRole.objects.select_related("account")
    serializer_class = CustomRoleSerializer
    filterset_fields: ClassVar = ["account"]
    permissions: ClassVar = {"partial_update": MANAGE_MEMBERS, "destroy": MANAGE_MEMBERS}

    def _save(self, role: CustomRole, values: dict[str, Any]) -> Response:
        for name, value in values.items():
            setattr(role, name, value)
        new = role._state.adding
        self.need(MANAGE_MEMBERS, role)
        services.save_custom_role(role, actor=actor_of(self.request), now=timezone.now())
        return Response(CustomRoleSerializer(role).data, status=201 if new else 200)

    @extend_schema(request=CustomRoleSerializer, responses={201: CustomRoleSerializer})
    def create(self, request: Request) -> Response:
        """Make a role. `view` is always among its privileges; nobody gives privileges that they don't have: 409."""
        return self._save(CustomRole(), dict(self.checked(CustomRoleSerializer)))

    @extend_schema(request=CustomRoleSerializer(partial=True), responses={200: CustomRoleSerializer})
    def partial_update(self, request: Request, pk: str) -> Response:
        """Change a role's name or privileges; its members have the changed ones at once."""
        role = self.get_object()
        wanted = self.checked(CustomRoleSerializer, partial=True)
        return self._save(role, {name: value for name, value in wanted.items() if name != "account"})

    @extend_schema(request=None, responses={204: None})
    def destroy(self, request: Request, pk: str) -> Response:
        """Delete a role that no member has; 409 `role_in_use`."""
        services.delete_custom_role(self.get_object(), actor=actor_of(request), now=timezone.now())
        return Response(status=status.HTTP_204_NO_CONTENT)


class EventView(mixins.ListModelMixin, viewsets.GenericViewSet[Event]):
    """The audit trail: of the accounts that the caller administers; all of it for a superuser."""

    queryset = Event.objects.select_related("link")
    serializer_class = EventSerializer
    pagination_class = EventPages
    filterset_fields: ClassVar = {
        "account_id": ["exact"],
        "user_name": ["exact"],
        "action": ["exact", "startswith"],
        "outcome": ["exact"],
        "object_type": ["exact"],
        "object_id": ["exact"],
        "happened_at": ["gte", "lte"],
    }

    def get_queryset(self) -> models.QuerySet[Event]:
        events = super().get_queryset()
        if getattr(self, "swagger_fake_view", False):
            return events.none()
        user = user_of(self.request)
        if user.is_superuser and user.scope is None:
            return events
        seen = models.Q(account_id__in=accounts_where(user, Privilege.SEE_AUDIT).values("pk"))
        return events.filter(seen | models.Q(account_id=None) if user.has_perm(INSTALL) else seen)

    @extend_schema(
        parameters=[OpenApiParameter("as", str, enum=list(exports.TYPES), description="jsonl unless told")],
        responses={(200, media): OpenApiTypes.BINARY for media in exports.TYPES.values()},
    )
    @action(detail=False, pagination_class=None, renderer_classes=[JSONRenderer, AnyRenderer])
    def export(self, request: Request) -> StreamingHttpResponse:
        """Stream the chained events, oldest first, with what an outside script needs to check each digest."""
        form = request.query_params.get("as", "jsonl")
        if form not in exports.TYPES:
            raise exceptions.ValidationError({"as": f"Must be one of {', '.join(exports.TYPES)}."})
        chain.sweep(now=timezone.now())
        answer = StreamingHttpResponse(
            exports.stream(self.filter_queryset(self.get_queryset()), form=form), content_type=exports.TYPES[form]
        )
        answer["Content-Disposition"] = f'attachment; filename="audit-trail.{form}"'
        return answer

    @extend_schema(
        parameters=[OpenApiParameter("verify", bool, description="Derive every digest anew; takes a while")],
        responses={200: ChainSerializer},
        filters=False,
    )
    @action(detail=False, pagination_class=None)
    def chain(self, request: Request) -> Response:
        """Tell where the chain ends; with `verify`, whether every line is what it was. For staff."""
        if not request.user.has_perm(INSTALL):
            raise exceptions.PermissionDenied
        chain.sweep(now=timezone.now())
        found = chain.verify_chain() if request.query_params.get("verify") in ("1", "true") else chain.state()
        return Response(ChainSerializer(found).data)


class TokenView(viewsets.GenericViewSet[AuthToken]):
    """API tokens of the caller. A token's text is shown once, when it is made."""

    queryset = AuthToken.objects.all()
    serializer_class = TokenSerializer
    pagination_class = None
    lookup_field = "token_key"
    lookup_value_regex = r"[\w-]+"

    def check_permissions(self, request: Request) -> None:
        """Let a token with a scope end itself, and nothing more: it could make one without."""
        super().check_permissions(request)
        if getattr(request.user, "scope", None) is not None and self.action != "logout":
            raise exceptions.PermissionDenied("A token with a scope manages no tokens: log in with the password.")

    def get_queryset(self) -> models.QuerySet[AuthToken]:
        if getattr(self, "swagger_fake_view", False):
            return super().get_queryset().none()
        mine = super().get_queryset().filter(user=user_of(self.request))
        return mine.select_related("api_token").order_by("-created")

    @extend_schema(responses={200: TokenSerializer(many=True)})
    def list(self, request: Request) -> Response:
        """List the caller's tokens without their text."""
        return Response(TokenSerializer(self.get_queryset(), many=True).data)

    @extend_schema(request=TokenRequestSerializer, responses={201: NewTokenSerializer})
    def create(self, request: Request) -> Response:
        """Make a token that may do less than its owner, and ends. Its scope never changes; the text is shown once.

        409 `privilege_not_held`, `expiry_too_long` with `days_max`, `too_many_tokens`.
        """
        asked = TokenRequestSerializer(data=request.data, context=self.get_serializer_context())
        asked.is_valid(raise_exception=True)
        return self._shown(*tokens.create(**asked.validated_data, actor=actor_of(request), now=timezone.now()))

    def _shown(self, own: ApiToken, text: str) -> Response:
        shown = NewTokenSerializer({"token": text, "token_key": own.token.token_key, "expiry": own.token.expiry})
        return Response(shown.data, status=status.HTTP_201_CREATED, headers={"Cache-Control": "no-store"})

    @extend_schema(request=None, responses={204: None})
    def destroy(self, request: Request, token_key: str) -> Response:
        """Revoke a token of the caller at once."""
        tokens.revoke(self.get_object(), actor=actor_of(request), now=timezone.now())
        return Response(status=status.HTTP_204_NO_CONTENT)

    @extend_schema(request=LoginSerializer, responses={201: NewTokenSerializer}, auth=[])
    @action(
        detail=False,
        methods=["post"],
        permission_classes=[AllowAny],
        authentication_classes=[TokenAuthentication],  # answers 401 with the scheme to use
    )
    def login(self, request: Request) -> Response:
        """Exchange a user name and a password for a token that may do what the person may."""
        wanted = LoginSerializer(data=request.data)
        wanted.is_valid(raise_exception=True)
        user = authenticate(
            request._request, username=wanted.validated_data["username"], password=wanted.validated_data["password"]
        )
        if user is None:
            raise exceptions.AuthenticationFailed("The user name or the password is wrong.")
        request.user = user
        life = wanted.validated_data.get("expires_in")
        return self._shown(*tokens.log_in(user_of(request), life=life, actor=actor_of(request), now=timezone.now()))

    @extend_schema(request=None, responses={204: None})
    @action(detail=False, methods=["post"])
    def logout(self, request: Request) -> Response:
        """Revoke the token that this request was made with."""
        if not isinstance(request.auth, AuthToken):
            raise exceptions.ValidationError("This request was not made with a token.")
        tokens.revoke(request.auth, actor=actor_of(request), now=timezone.now())
        return Response(status=status.HTTP_204_NO_CONTENT)
