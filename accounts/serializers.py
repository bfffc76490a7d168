"""Shapes of accounts, members, events and tokens in the API."""

from typing import Any, ClassVar

from django.db import models
from knox.models import AuthToken
from rest_framework import serializers

from accounts.models import Account, CustomRole, Event, Member, Role, User
from accounts.permissions import granted_sources, privileges_in
from accounts.states import Privilege


class OwnField(serializers.PrimaryKeyRelatedField[Any]):
    """A reference to a row of an account that the user is a member of; what is not visible does not exist."""

    def __init__(self, *, account_path: str = "account", **kwargs: Any) -> None:
        self._account_path = account_path
        super().__init__(**kwargs)

    def get_queryset(self) -> models.QuerySet[Any]:
        queryset = super().get_queryset()
        assert queryset is not None
        request = self.context.get("request")
        return queryset.none() if request is None else queryset.filter(self.seen_by(request.user))

    def seen_by(self, user: Any) -> models.Q:
        """Return which rows exist for the user."""
        return models.Q(**{f"{self._account_path}__in": Account.objects.visible_to(user)})


class GrantedField(OwnField):
    """A reference to a source of one of the user's accounts, or to one that another account granted (B8)."""

    def seen_by(self, user: Any) -> models.Q:
        return super().seen_by(user) | granted_sources(user)


class AccountSerializer(serializers.ModelSerializer[Account]):
    """An account, and what the caller may do in it; needs the request in the context for that."""

    privileges = serializers.SerializerMethodField()

    class Meta:
        model = Account
        fields = ["id", "name", "privileges", "created_at"]

    def get_privileges(self, account: Account) -> list[str]:
        held = privileges_in(self.context["request"].user, account)
        return [name for name in Privilege.values if name in held]


class CustomRoleSerializer(serializers.ModelSerializer[CustomRole]):
    account = OwnField(queryset=Account.objects.all(), account_path="pk")
    privileges = serializers.ListField(child=serializers.ChoiceField(choices=Privilege.choices))

    class Meta:
        model = CustomRole
        fields = ["id", "account", "name", "privileges", "created_at"]
        # The service tells of a name that is taken: 409.
        validators: ClassVar[list[Any]] = []


class AccountRequestSerializer(serializers.Serializer[Account]):
    name = serializers.CharField(max_length=64)
    owner = serializers.SlugRelatedField(slug_field="username", queryset=User.objects.all(), required=False)

    def validate_name(self, name: str) -> str:
        if Account.objects.filter(name=name).exists():
            raise serializers.ValidationError("There is an account of this name already.", code="unique")
        return name


class MemberSerializer(serializers.ModelSerializer[Member]):
    """A member: `role` is a ready made one, or empty where `custom_role` is one of the account's own."""

    user = serializers.CharField(source="user.username")

    class Meta:
        model = Member
        fields = ["user", "role", "custom_role", "role_name", "created_at"]


class MemberRequestSerializer(serializers.Serializer[Member]):
    user = serializers.SlugRelatedField(slug_field="username", queryset=User.objects.filter(is_active=True))
    role = serializers.ChoiceField(choices=Role.choices, required=False)
    custom_role = OwnField(queryset=CustomRole.objects.all(), required=False, help_text="In the place of `role`")

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        if ("role" in attrs) == ("custom_role" in attrs):
            raise serializers.ValidationError("Give role or custom_role.")
        return {"user": attrs["user"], "role": attrs.get("role") or attrs["custom_role"]}


class EventSerializer(serializers.ModelSerializer[Event]):
    """`sequence` and `digest` are the line's place in the chain; null in the moment before it is linked."""

    sequence = serializers.IntegerField(source="link.sequence", default=None, read_only=True, allow_null=True)
    digest = serializers.CharField(source="link.digest", default=None, read_only=True, allow_null=True)

    class Meta:
        model = Event
        fields = [
            "id",
            "sequence",
            "digest",
            "happened_at",
            "account_id",
            "account_name",
            "user_name",
            "address",
            "action",
            "outcome",
            "object_type",
            "object_id",
            "object_name",
            "detail",
        ]


class ChainSerializer(serializers.Serializer[Any]):
    """Where the chain of the audit trail ends, and what a verification found."""

    sequence = serializers.IntegerField()
    digest = serializers.CharField()
    guarded = serializers.BooleanField(help_text="The database refuses to change or delete lines")
    intact = serializers.BooleanField()
    broken_at = serializers.IntegerField(allow_null=True)
    problem = serializers.CharField(allow_blank=True)


class LoginSerializer(serializers.Serializer[AuthToken]):
    username = serializers.CharField(max_length=150)
    password = serializers.CharField(max_length=128, write_only=True, trim_whitespace=False)
    expires_in = serializers.DurationField(required=False, help_text="Life of the token; left out, it never ends")


class TokenSerializer(serializers.ModelSerializer[AuthToken]):
    """A token without its text. `privileges` null: everything that its owner may; `account` null: in every account."""

    name = serializers.CharField(
        source="api_token.name", default=None, read_only=True, allow_null=True, help_text="Null: made by a login"
    )
    privileges = serializers.ListField(
        child=serializers.ChoiceField(choices=Privilege.choices),
        source="api_token.privileges",
        default=None,
        read_only=True,
        allow_null=True,
    )
    account = serializers.UUIDField(source="api_token.account_id", default=None, read_only=True, allow_null=True)
    last_used_at = serializers.DateTimeField(
        source="api_token.last_used_at", default=None, read_only=True, allow_null=True, help_text="To the minute"
    )

    class Meta:
        model = AuthToken
        fields = ["token_key", "name", "privileges", "account", "created", "expiry", "last_used_at"]
        extra_kwargs = {"token_key": {"read_only": True}, "expiry": {"read_only": True, "allow_null": True}}


class TokenRequestSerializer(serializers.Serializer[Any]):
    """What a new token may do: only read, or what named privileges say; `view` is always among them."""

    name = serializers.CharField(max_length=64, help_text="What it is for")
    read_only = serializers.BooleanField(  # type: ignore[assignment]  # declared fields leave the class
        default=False, help_text="It sees, and changes nothing"
    )
    privileges = serializers.ListField(
        child=serializers.ChoiceField(choices=Privilege.choices), required=False, allow_empty=False
    )
    account = OwnField(
        queryset=Account.objects.all(), account_path="pk", default=None, allow_null=True, help_text="Only in this one"
    )
    expires_in = serializers.DurationField(
        default=None, allow_null=True, help_text="Life of the token; left out, the installation's default"
    )

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        if attrs.pop("read_only") == ("privileges" in attrs):
            raise serializers.ValidationError("Give read_only or privileges.")
        life = attrs.pop("expires_in")
        return {"privileges": []} | attrs | {"life": life}


class NewTokenSerializer(serializers.Serializer[Any]):
    token = serializers.CharField(help_text="Its text. Shown once, kept nowhere.")
    token_key = serializers.CharField()
    expiry = serializers.DateTimeField(allow_null=True)
