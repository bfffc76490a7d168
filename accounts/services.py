"""Accounts, members and their roles come about here, and every line of the audit trail."""

import datetime as dt
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from django.conf import settings
from django.core.exceptions import ValidationError
from django.db import models, transaction

from accounts import chain
from accounts.models import Account, CustomRole, Event, Member, Outcome, Role, User
from accounts.permissions import account_of, privileges_in
from accounts.refusals import Refused
from accounts.states import PRIVILEGES_OF, Privilege


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


class PrivilegeNotHeld(Refused):
    """Nobody gives what they don't have, and nobody takes it from who has more (D3)."""

    code = "privilege_not_held"


class RoleInUse(Refused):
    """A custom role stays as long as members have it."""

    code = "role_in_use"


class RoleExists(Refused):
    """A custom role's name is unique in its account."""

    code = "role_exists"


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


def check_holds(actor: Actor, account: Account, privileges: Collection[str], *, to: str) -> None:
    """See that the actor has all these privileges in the account. Raises PrivilegeNotHeld."""
    if actor.user is None:
        return
    if lacking := sorted(set(privileges) - privileges_in(actor.user, account)):
        named = ", ".join(Privilege(name).value for name in lacking)
        raise PrivilegeNotHeld(f"Only who has these privileges may {to}: {named}.", privileges=lacking)


@transaction.atomic
def set_role(*, account: Account, user: User, role: str | CustomRole, actor: Actor, now: dt.datetime) -> Member:
    """Give `user` a role in the account, or another one; ready made, or one of the account's own.

    Raises PrivilegeNotHeld, LastOwner, ValidationError for another account's role.
    """
    custom = role if isinstance(role, CustomRole) else None
    if custom and custom.account_id != account.pk:
        raise ValidationError({"custom_role": f"{custom} is not a role of {account}."})
    member = Member.objects.filter(account=account, user=user).select_related("custom_role").first()
    if member:
        check_holds(actor, account, member.privileges, to=f"change the role of {user}")
    given = custom.privileges if custom else PRIVILEGES_OF[str(role)]
    check_holds(actor, account, given, to=f"give the role {custom or Role(str(role)).label}")
    if custom or role != Role.OWNER:
        _keep_an_owner(account, user)
    member = member or Member(account=account, user=user, created_at=now)
    member.role, member.custom_role = "" if custom else str(role), custom
    member.save()
    record(actor, "member.role", member, account=account, now=now, role=str(custom or role))
    return member


@transaction.atomic
def remove_member(member: Member, *, actor: Actor, now: dt.datetime) -> None:
    """Take the person out of the account. Raises PrivilegeNotHeld, LastOwner."""
    check_holds(actor, member.account, member.privileges, to=f"remove {member.user}")
    _keep_an_owner(member.account, member.user)
    record(actor, "member.remove", member, account=member.account, now=now)
    member.delete()


def _keep_an_owner(account: Account, leaving: User) -> None:
    owners = set(account.members.filter(role=Role.OWNER).values_list("user_id", flat=True))
    if owners == {leaving.pk}:
        raise LastOwner("An account needs an owner: make somebody else an owner first.")


@transaction.atomic
def save_custom_role(role: CustomRole, *, actor: Actor, now: dt.datetime) -> CustomRole:
    """Check and store a custom role, new or changed; its members have the changed privileges at once (D3).

    Whoever is a member sees the account, so `view` is always among the privileges. Raises ValidationError,
    RoleExists, PrivilegeNotHeld.
    """
    unknown = sorted(set(role.privileges) - set(Privilege.values))
    if unknown:
        raise ValidationError({"privileges": f"There is no {', '.join(unknown)}. Use {', '.join(Privilege.values)}."})
    new = role._state.adding
    if CustomRole.objects.filter(account=role.account, name=role.name).exclude(pk=role.pk).exists():
        raise RoleExists(f"{role.account} has a role of the name {role.name} already.")
    kept = None if new else CustomRole.objects.get(pk=role.pk)
    wanted = {Privilege.VIEW.value, *role.privileges}
    role.privileges = [name for name in Privilege.values if name in wanted]
    had = kept.privileges if kept else []
    check_holds(actor, role.account, {*role.privileges, *had}, to="make or change a role with them")
    if new:
        role.created_at = now
    role.full_clean()
    role.save()
    detail = {"privileges": [had, role.privileges] if kept else role.privileges}
    record(actor, "role.create" if new else "role.change", role, account=role.account, now=now, **detail)
    return role


@transaction.atomic
def delete_custom_role(role: CustomRole, *, actor: Actor, now: dt.datetime) -> None:
    """Delete a custom role that no member has. Raises RoleInUse, PrivilegeNotHeld."""
    check_holds(actor, role.account, role.privileges, to=f"delete the role {role}")
    if names := list(role.members.order_by("user__username").values_list("user__username", flat=True)[:10]):
        raise RoleInUse(f"Members have the role {role}. Give them another first: {', '.join(names)}.", members=names)
    record(actor, "role.delete", role, account=role.account, now=now)
    role.delete()
