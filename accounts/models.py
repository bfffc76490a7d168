"""WHO: people, accounts (tenants), roles, and the trail of what people did."""

import datetime as dt
import uuid
from typing import Any, ClassVar, TypeVar

import rules
from django.conf import settings
from django.contrib.auth.models import AbstractBaseUser, AbstractUser, AnonymousUser
from django.db import models

from accounts.metering import Allowance as Allowance
from accounts.metering import MeteredDay as MeteredDay
from accounts.metering import MeteringMode
from accounts.metering import Price as Price
from accounts.metering import Usage as Usage
from accounts.refusals import Refused
from accounts.states import PRIVILEGES_OF, Scope
from accounts.states import Role as Role

M = TypeVar("M", bound=models.Model)
# What the first line of the chain has in the place of a digest before it.
GENESIS = "0" * 64


class User(AbstractUser):
    """A person or a machine that logs in. Staff may use the console; a superuser runs the installation.

    `scope` is set for the length of a request that came with a token that may do less than the person, `asked_at` is
    when a request came: grants that end are judged by it.
    """

    scope: Scope | None = None
    asked_at: dt.datetime | None = None

    def has_perm(self, perm: str, obj: Any = None) -> bool:
        """Say whether the person may do something; a scope narrows a superuser, too."""
        return super().has_perm(perm, obj) if self.scope is None else bool(rules.has_perm(perm, self, obj))


class AccountQuerySet(models.QuerySet["Account"]):
    def visible_to(self, user: AbstractBaseUser | AnonymousUser) -> "AccountQuerySet":
        """Return the accounts that `user` is a member of; all of them for a superuser. A scope may leave one."""
        scope = getattr(user, "scope", None)
        seen = self.filter(pk=scope.account_id) if scope and scope.account_id else self
        if getattr(user, "is_superuser", False):
            return seen.all()
        return seen.filter(members__user_id=user.pk) if user.pk else self.none()


class Account(models.Model):
    """A tenant. Everything but regions belongs to exactly one.

    `metering` is what of its capacity is priced from the next metered day on (C45).
    """

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    name = models.CharField(max_length=64, unique=True)
    metering = models.CharField(
        max_length=20, choices=MeteringMode.choices, default=MeteringMode.STORED_BYTES, editable=False
    )
    created_at = models.DateTimeField(editable=False)

    objects = AccountQuerySet.as_manager()

    class Meta:
        ordering: ClassVar = ["name"]

    def __str__(self) -> str:
        return self.name


class CustomRole(models.Model):
    """A role that an account made for itself: named privileges (D3). Changed by accounts.services alone."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    account = models.ForeignKey(Account, on_delete=models.CASCADE, related_name="custom_roles")
    name = models.CharField(max_length=64)
    privileges = models.JSONField(default=list)
    created_at = models.DateTimeField(editable=False)

    class Meta:
        ordering: ClassVar = ["name"]
        verbose_name = "role"
        constraints: ClassVar = [models.UniqueConstraint(fields=["account", "name"], name="one_custom_role_per_name")]

    def __str__(self) -> str:
        return self.name


class Member(models.Model):
    """One person's role in one account: a ready made one, or one of the account's own, and then `role` is empty."""

    account = models.ForeignKey(Account, on_delete=models.CASCADE, related_name="members")
    user = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="memberships")
    role = models.CharField(max_length=16, choices=Role.choices, default=Role.VIEWER, blank=True)
    custom_role = models.ForeignKey(
        CustomRole, null=True, blank=True, on_delete=models.RESTRICT, related_name="members"
    )
    created_at = models.DateTimeField(editable=False)

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["account", "user"], name="one_role_per_member"),
            models.CheckConstraint(
                condition=models.Q(role="", custom_role__isnull=False)
                | (~models.Q(role="") & models.Q(custom_role=None)),
                name="ready_made_or_custom_role",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.user} ({self.role_name})"

    @property
    def role_name(self) -> str:
        """Return the role as people call it."""
        return str(self.custom_role) if self.custom_role else self.get_role_display()

    @property
    def privileges(self) -> frozenset[str]:
        """Return what the member may do."""
        return frozenset(self.custom_role.privileges) if self.custom_role else PRIVILEGES_OF[self.role]


class ApiToken(models.Model):
    """What there is to know of an API token beside its hash: what it may do, in which account, when it was used last.

    `privileges` None is everything that its owner may: a login's. Nothing of this ever changes but `last_used_at`:
    another scope is another token. Changed by accounts.tokens alone.
    """

    token = models.OneToOneField("knox.AuthToken", on_delete=models.CASCADE, related_name="api_token")
    name = models.CharField(max_length=64)
    privileges = models.JSONField(null=True)
    account = models.ForeignKey(Account, null=True, blank=True, on_delete=models.CASCADE, related_name="+")
    last_used_at = models.DateTimeField(null=True)

    class Meta:
        ordering: ClassVar = ["-token__created"]
        verbose_name = "API token"

    def __str__(self) -> str:
        return self.name

    @property
    def scope(self) -> Scope | None:
        """Return what narrows its owner while it is used."""
        return None if self.privileges is None else Scope(frozenset(self.privileges), self.account_id)


class GrantQuerySet(models.QuerySet["Grant"]):
    def valid(self, now: dt.datetime) -> "GrantQuerySet":
        """Return the grants that hold at `now`."""
        return self.filter(models.Q(expires_at=None) | models.Q(expires_at__gt=now), revoked_at=None)

    def over(self, source: models.Model) -> "GrantQuerySet":
        """Return the grants that name a source of its account, or all of them."""
        named = models.Q(all_sources=True) | models.Q(sources__source_id=source.pk)
        return self.filter(named, grantor=getattr(source, "account_id")).distinct()  # noqa: B009  # any row of one


class Grant(models.Model):
    """That an account lets another one back up named sources of its own, or all of them (B8).

    `privileges` are those of accounts.states.GRANTABLE that the grantee's members get over the sources, as far as
    their role there has them. Plans, jobs and points are the grantee's. Changed by accounts.grants alone: a grant is
    given and revoked, never changed.
    """

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    grantor = models.ForeignKey(Account, on_delete=models.CASCADE, related_name="grants_given")
    grantee = models.ForeignKey(Account, on_delete=models.CASCADE, related_name="grants_received")
    all_sources = models.BooleanField(default=False)
    privileges = models.JSONField(default=list)
    note = models.CharField(max_length=255, blank=True)
    expires_at = models.DateTimeField(null=True, blank=True)
    revoked_at = models.DateTimeField(null=True, editable=False)
    created_at = models.DateTimeField(editable=False)

    objects = GrantQuerySet.as_manager()

    class Meta:
        ordering: ClassVar = ["-created_at"]

    def __str__(self) -> str:
        return f"{self.grantor} to {self.grantee}"

    @property
    def account(self) -> Account:
        """Return who gives, and may take back."""
        return self.grantor


class GrantedSource(models.Model):
    """A source that a grant names. Its id alone: sources are made above this layer, and may go."""

    grant = models.ForeignKey(Grant, on_delete=models.CASCADE, related_name="sources")
    source_id = models.UUIDField()

    class Meta:
        constraints: ClassVar = [models.UniqueConstraint(fields=["grant", "source_id"], name="one_name_per_grant")]

    def __str__(self) -> str:
        return str(self.source_id)


class Outcome(models.TextChoices):
    """Whether what somebody asked for was done, or a rule or a missing right forbade it."""

    DONE = "done", "Done"
    REFUSED = "refused", "Refused"


class TrailFixed(Refused):
    """The audit trail only grows."""

    code = "audit_trail_fixed"


class AppendOnly(models.QuerySet[M]):
    """Rows that are added and read, never changed and never removed; accounts.guards says the same to the database."""

    def update(self, **values: Any) -> int:
        raise TrailFixed("Lines of the audit trail are never changed.")

    def bulk_update(self, *args: Any, **options: Any) -> int:
        raise TrailFixed("Lines of the audit trail are never changed.")

    def delete(self) -> tuple[int, dict[str, int]]:
        raise TrailFixed("Lines of the audit trail are never deleted.")


class AppendOnlyModel(models.Model):
    """A row that is stored once."""

    class Meta:
        abstract = True

    def save(self, *args: Any, **options: Any) -> None:
        if not self._state.adding:
            raise TrailFixed("Lines of the audit trail are never changed.")
        super().save(*args, **options)

    def delete(self, *args: Any, **options: Any) -> tuple[int, dict[str, int]]:
        raise TrailFixed("Lines of the audit trail are never deleted.")


class Event(AppendOnlyModel):
    """One line of the audit trail: who did what to which object, from where, and whether it was refused.

    Plain ids and names instead of references, so that the line stays as it is when what it tells about is gone.
    `address` is None for what the service does of itself. Its `link` puts it into the chain, a moment after it was
    stored (accounts.chain).
    """

    account_id = models.UUIDField(null=True)
    account_name = models.CharField(max_length=64, blank=True)
    user_id = models.BigIntegerField(null=True)
    user_name = models.CharField(max_length=150, blank=True)
    address = models.GenericIPAddressField(null=True)
    action = models.CharField(max_length=64)
    outcome = models.CharField(max_length=8, choices=Outcome.choices, default=Outcome.DONE)
    object_type = models.CharField(max_length=32)
    object_id = models.CharField(max_length=64, blank=True)
    object_name = models.CharField(max_length=255, blank=True)
    detail = models.JSONField(default=dict)
    happened_at = models.DateTimeField()

    objects = AppendOnly["Event"].as_manager()

    class Meta:
        ordering: ClassVar = ["-happened_at", "-id"]
        indexes: ClassVar = [
            models.Index(fields=["account_id", "-happened_at"], name="event_by_account"),
            models.Index(fields=["-happened_at"], name="event_by_time"),
        ]

    def __str__(self) -> str:
        return f"{self.action} {self.object_type} {self.object_name}"


class Link(AppendOnlyModel):
    """The place of one event in the chain: `digest` is SHA-256 of the digest before and the event's canonical row."""

    sequence = models.BigIntegerField(primary_key=True)
    event = models.OneToOneField(Event, on_delete=models.DO_NOTHING, related_name="link", db_constraint=False)
    digest = models.CharField(max_length=64)

    objects = AppendOnly["Link"].as_manager()

    class Meta:
        ordering: ClassVar = ["sequence"]

    def __str__(self) -> str:
        return f"{self.sequence} {self.digest}"


class ChainHead(models.Model):
    """The end of the chain; one row. Locked while links are added, and by nothing else.

    Events up to the id `swept_to` have their links, or never came about.
    """

    sequence = models.BigIntegerField(default=0)
    digest = models.CharField(max_length=64, default=GENESIS)
    swept_to = models.BigIntegerField(default=0)

    def __str__(self) -> str:
        return f"{self.sequence} {self.digest}"
