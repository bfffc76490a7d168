"""Shapes of accounts, members, events and tokens in the API."""

from typing import Any

from django.db import models
from knox.models import AuthToken
from rest_framework import serializers

from accounts.models import Account, Event, Member, Role, User


class OwnField(serializers.PrimaryKeyRelatedField[Any]):
    """A reference to a row of an account that the user is a member of; what is not visible does not exist."""

    def __init__(self, *, account_path: str = "account", **kwargs: Any) -> None:
        self._account_path = account_path
        super().__init__(**kwargs)

    def get_queryset(self) -> models.QuerySet[Any]:
        queryset = super().get_queryset()
        assert queryset is not None
        request = self.context.get("request")
        if request is None:
            return queryset.none()
        return queryset.filter(**{f"{self._account_path}__in": Account.objects.visible_to(request.user)})


class AccountSerializer(serializers.ModelSerializer[Account]):
    class Meta:
        model = Account
        fields = ["id", "name", "created_at"]


class AccountRequestSerializer(serializers.Serializer[Account]):
    name = serializers.CharField(max_length=64)
    owner = serializers.SlugRelatedField(slug_field="username", queryset=User.objects.all(), required=False)

    def validate_name(self, name: str) -> str:
        if Account.objects.filter(name=name).exists():
            raise serializers.ValidationError("There is an account of this name already.", code="unique")
        return name


class MemberSerializer(serializers.ModelSerializer[Member]):
    user = serializers.CharField(source="user.username")

    class Meta:
        model = Member
        fields = ["user", "role", "created_at"]


class MemberRequestSerializer(serializers.Serializer[Member]):
    user = serializers.SlugRelatedField(slug_field="username", queryset=User.objects.filter(is_active=True))
    role = serializers.ChoiceField(choices=Role.choices)


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
    class Meta:
        model = AuthToken
        fields = ["token_key", "created", "expiry"]


class NewTokenSerializer(serializers.Serializer[Any]):
    token = serializers.CharField()
    token_key = serializers.CharField()
    expiry = serializers.DateTimeField(allow_null=True)
