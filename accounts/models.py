"""WHO: people, accounts (tenants), roles, and the trail of what people did."""

import uuid
from typing import ClassVar

from django.conf import settings
from django.contrib.auth.models import AbstractBaseUser, AbstractUser, AnonymousUser
from django.db import models


class User(AbstractUser):
    """A person or a machine that logs in. Staff may use the console; a superuser runs the installation."""


class AccountQuerySet(models.QuerySet["Account"]):
    def visible_to(self, user: AbstractBaseUser | AnonymousUser) -> "AccountQuerySet":
        """Return the accounts that `user` is a member of; all of them for a superuser."""
        if getattr(user, "is_superuser", False):
            return self.all()
        return self.filter(members__user_id=user.pk) if user.pk else self.none()


class Account(models.Model):
    """A tenant. Everything but regions belongs to exactly one."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    name = models.CharField(max_length=64, unique=True)
    created_at = models.DateTimeField(editable=False)

    objects = AccountQuerySet.as_manager()

    class Meta:
        ordering: ClassVar = ["name"]

    def __str__(self) -> str:
        return self.name


class Role(models.TextChoices):
    """What a member may do; each role includes those after it."""

    OWNER = "owner", "Owner"
    ADMIN = "admin", "Administrator"
    OPERATOR = "operator", "Operator"
    VIEWER = "viewer", "Viewer"


class Member(models.Model):
    """One person's role in one account."""

    account = models.ForeignKey(Account, on_delete=models.CASCADE, related_name="members")
    user = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="memberships")
    role = models.CharField(max_length=16, choices=Role.choices, default=Role.VIEWER)
    created_at = models.DateTimeField(editable=False)

    class Meta:
        constraints: ClassVar = [models.UniqueConstraint(fields=["account", "user"], name="one_role_per_member")]

    def __str__(self) -> str:
        return f"{self.user} ({self.get_role_display()})"


class Event(models.Model):
    """One line of the audit trail: who did what to which object, from where. Never changed, never deleted.

    Names are kept beside the ids, so that the line still reads when its object is gone.
    """

    account = models.ForeignKey(Account, null=True, on_delete=models.SET_NULL, related_name="events")
    user = models.ForeignKey(settings.AUTH_USER_MODEL, null=True, on_delete=models.SET_NULL, related_name="+")
    user_name = models.CharField(max_length=150, blank=True)
    address = models.GenericIPAddressField(null=True)
    action = models.CharField(max_length=64)
    object_type = models.CharField(max_length=32)
    object_id = models.CharField(max_length=64)
    object_name = models.CharField(max_length=255, blank=True)
    detail = models.JSONField(default=dict)
    happened_at = models.DateTimeField()

    class Meta:
        ordering: ClassVar = ["-happened_at", "-id"]
        indexes: ClassVar = [models.Index(fields=["account", "-happened_at"], name="event_by_account")]

    def __str__(self) -> str:
        return f"{self.action} {self.object_type} {self.object_name}"
