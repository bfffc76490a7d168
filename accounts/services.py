"""Accounts and members come about here, and every line of the audit trail."""

import datetime as dt
from dataclasses import dataclass
from typing import Any

from django.db import models, transaction

from accounts.models import Account, Event, Member, Role, User
from accounts.refusals import Refused


@dataclass(frozen=True, slots=True)
class Actor:
    """Who asks for something, and from where; no user means the service itself (a sweep, a command)."""

    user: User | None = None
    address: str | None = None

    @property
    def name(self) -> str:
        """Return the name that the audit trail shows."""
        return self.user.get_username() if self.user else "service"


SERVICE = Actor()


class LastOwner(Refused):
    """An account without an owner could not be managed any more."""

    code = "last_owner"


def record(
    actor: Actor, action: str, thing: models.Model, *, account: Account | None, now: dt.datetime, **detail: Any
) -> Event:
    """Add a line to the audit trail. Call it inside the transaction of what it tells about. Never pass secrets."""
    return Event.objects.create(
        account=account,
        user=actor.user,
        user_name=actor.name,
        address=actor.address,
        action=action,
        object_type=thing._meta.model_name or "",
        object_id=str(thing.pk),
        object_name=str(thing)[:255],
        detail=detail,
        happened_at=now,
    )


@transaction.atomic
def create_account(*, name: str, owner: User, actor: Actor, now: dt.datetime) -> Account:
    """Open an account with its first owner."""
    account = Account.objects.create(name=name, created_at=now)
    Member.objects.create(account=account, user=owner, role=Role.OWNER, created_at=now)
    record(actor, "account.create", account, account=account, now=now, owner=owner.get_username())
    return account


@transaction.atomic
def set_role(*, account: Account, user: User, role: str, actor: Actor, now: dt.datetime) -> Member:
    """Give `user` a role in the account, or another one. Raises LastOwner."""
    if role != Role.OWNER:
        _keep_an_owner(account, user)
    member, _ = Member.objects.update_or_create(
        account=account, user=user, defaults={"role": role}, create_defaults={"role": role, "created_at": now}
    )
    record(actor, "member.role", member, account=account, now=now, role=role)
    return member


@transaction.atomic
def remove_member(member: Member, *, actor: Actor, now: dt.datetime) -> None:
    """Take the person out of the account. Raises LastOwner."""
    _keep_an_owner(member.account, member.user)
    record(actor, "member.remove", member, account=member.account, now=now)
    member.delete()


def _keep_an_owner(account: Account, leaving: User) -> None:
    owners = set(account.members.filter(role=Role.OWNER).values_list("user_id", flat=True))
    if owners == {leaving.pk}:
        raise LastOwner("An account needs an owner: make somebody else an owner first.")
