"""Accounts and members come about here, and every line of the audit trail."""

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from django.conf import settings
from django.db import models, transaction

from accounts import chain
from accounts.models import Account, Event, Member, Outcome, Role, User
from accounts.permissions import account_of
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


def address_of(meta: Mapping[str, Any]) -> str | None:
    """Return where a request came from: the address that the outermost trusted proxy saw."""
    proxies = settings.REST_FRAMEWORK["NUM_PROXIES"]
    forwarded = [one.strip() for one in meta.get("HTTP_X_FORWARDED_FOR", "").split(",") if one.strip()]
    address: str = forwarded[-min(proxies, len(forwarded))] if proxies and forwarded else meta.get("REMOTE_ADDR", "")
    return address or None


class LastOwner(Refused):
    """An account without an owner could not be managed any more."""

    code = "last_owner"


def record(
    actor: Actor, action: str, thing: models.Model, *, account: Account | None, now: dt.datetime, **detail: Any
) -> Event:
    """Add a line to the audit trail. Call it inside the transaction of what it tells about. Never pass secrets."""
    values = {"object_type": thing._meta.model_name or "", "object_id": str(thing.pk), "object_name": str(thing)[:255]}
    return _store(actor, action, account=account, now=now, values=values | {"detail": detail})


def record_refusal(
    actor: Actor, action: str, thing: models.Model | None, *, now: dt.datetime, code: str, reason: str
) -> Event:
    """Add to the audit trail that a rule or a missing right forbade something. Call it outside the failed transaction.

    `thing` is what it was asked of, None when that is not known.
    """
    values: dict[str, Any] = {"outcome": Outcome.REFUSED, "detail": {"code": code, "reason": reason}}
    if thing is not None:
        values |= {"object_type": thing._meta.model_name, "object_id": str(thing.pk), "object_name": str(thing)[:255]}
    return _store(actor, action, account=account_of(thing), now=now, values=values)


def record_failed_login(name: str, *, address: str | None, now: dt.datetime) -> Event:
    """Add to the audit trail that somebody tried to be `name`."""
    values = {"outcome": Outcome.REFUSED, "object_type": "user", "object_name": name[:255], "user_name": ""}
    return _store(Actor(address=address), "login", account=None, now=now, values=values)


def _store(actor: Actor, action: str, *, account: Account | None, now: dt.datetime, values: dict[str, Any]) -> Event:
    """Store an event; its link follows when the transaction around it is committed."""
    event = Event.objects.create(
        **{
            "account_id": account.pk if account else None,
            "account_name": account.name if account else "",
            "user_id": actor.user.pk if actor.user else None,
            "user_name": actor.name,
            "address": actor.address,
            "action": action[:64],
            "happened_at": now,
        }
        | values
    )
    transaction.on_commit(partial(chain.seal, [event.pk]), robust=True)
    return event


@transaction.atomic
def create_account(*, name: str, owner: User, actor: Actor, now: dt.datetime) -> Account:
    """Open an account with its first owner."""
    account = Account.objects.create(name=name, created_at=now)
    Member.objects.create(account=account, user=owner, role=Role.OWNER, created_at=now)
    record(actor, "account.create", account, account=account, now=now, owner=owner.get_username())
    return account


@transaction.atomic
def rename_account(account: Account, *, actor: Actor, now: dt.datetime) -> None:
    """Give the account another name."""
    account.save(update_fields=["name"])
    record(actor, "account.rename", account, account=account, now=now)


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
