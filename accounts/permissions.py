"""WHO MAY: privileges in an account (accounts.states), registered as permissions named `accounts.<privilege>`.

Three coarse ones ask for a whole ready made role: `accounts.operate` for what an operator may, `accounts.manage` for
what an administrator may; `accounts.install` is for staff: regions belong to the installation.
"""

from typing import Any

import rules
from django.contrib.auth.models import AbstractBaseUser, AnonymousUser
from django.db import models

from accounts.models import Account, Grant, GrantedSource, Member
from accounts.states import EVERYTHING, GRANTABLE, PRIVILEGES_OF, Privilege, Role

VIEW, SEE_USAGE, READ_DATA = "accounts.view", "accounts.see_usage", "accounts.read_data"
BACKUP, RESTORE, MAINTAIN = "accounts.backup", "accounts.restore", "accounts.maintain"
PAUSE_PLANS = "accounts.pause_plans"
MANAGE_SOURCES, MANAGE_POLICIES = "accounts.manage_sources", "accounts.manage_policies"
MANAGE_VAULTS, MANAGE_ALERTS = "accounts.manage_vaults", "accounts.manage_alerts"
DELETE_POINTS, SEE_AUDIT = "accounts.delete_points", "accounts.see_audit"
MANAGE_MEMBERS, OWN = "accounts.manage_members", "accounts.own"
OPERATE, MANAGE, INSTALL = "accounts.operate", "accounts.manage", "accounts.install"
NOTHING: frozenset[str] = frozenset()
Person = AbstractBaseUser | AnonymousUser


def account_of(thing: Any) -> Account | None:
    """Return the account that `thing` belongs to; None for what belongs to the installation."""
    if isinstance(thing, Account):
        return thing
    owner = thing.vault if hasattr(thing, "vault_id") and not hasattr(thing, "account_id") else thing
    account: Account | None = getattr(owner, "account", None)
    return account


def _memberships(user: Any) -> dict[Any, frozenset[str]]:
    """Return the user's privileges by account. Asks the database once per user object."""
    held: dict[Any, frozenset[str]] | None = getattr(user, "_privileges", None)
    if held is None:
        rows = Member.objects.filter(user_id=user.pk).values_list("account_id", "role", "custom_role__privileges")
        held = {key: PRIVILEGES_OF[role] if role else frozenset(own) for key, role, own in rows}
        user._privileges = held  # a per-request memo, as Django's own _perm_cache
    return held


def privileges_in(user: Person, account: Account | None) -> frozenset[str]:
    """Return what the user may do in the account: nothing for an outsider, everything for a superuser.

    The scope of the token that the user came with narrows it.
    """
    if account is None or not user.pk:
        return NOTHING
    held = EVERYTHING if getattr(user, "is_superuser", False) else _memberships(user).get(account.pk, NOTHING)
    scope = getattr(user, "scope", None)
    return scope.narrowed(held, account.pk) if scope else held


def _received(user: Person) -> Any:
    """Return the grants to the user's accounts that hold at the moment of the request; none outside of one."""
    moment = getattr(user, "asked_at", None)
    if moment is None:
        return Grant.objects.none()
    return Grant.objects.filter(grantee__in=Account.objects.visible_to(user)).valid(moment)


def granted_sources(user: Person) -> models.Q:
    """Return which sources of other accounts the user sees because those granted it (B8)."""
    received = _received(user)
    every = models.Q(account__in=received.filter(all_sources=True).values("grantor"))
    named = models.Q(account__in=received.values("grantor")) & models.Q(
        pk__in=GrantedSource.objects.filter(grant__in=received).values("source_id")
    )
    return every | named


def privileges_over(user: Person, thing: Any) -> frozenset[str]:
    """Return what the user may do with `thing`: as in its account, and what a grant lets another account do (B8)."""
    held = privileges_in(user, account_of(thing))
    if isinstance(thing, Grant):
        return held | (privileges_in(user, thing.grantee) & {Privilege.VIEW.value})
    if getattr(thing, "is_grantable", False) and not held:
        for grant in _received(user).over(thing).select_related("grantee"):
            given = {Privilege.VIEW.value, *grant.privileges} & GRANTABLE
            held |= privileges_in(user, grant.grantee) & given
    return held


def privileges_anywhere(user: Person) -> frozenset[str]:
    """Return what the user may do in one account or another."""
    if getattr(user, "is_superuser", False):
        return EVERYTHING
    return frozenset().union(*_memberships(user).values()) if user.pk else NOTHING


def accounts_where(user: Person, privilege: str) -> models.QuerySet[Account]:
    """Return the accounts in which the user has the privilege."""
    seen = Account.objects.visible_to(user)
    scope = getattr(user, "scope", None)
    if scope and privilege not in scope.privileges:
        return seen.none()
    if getattr(user, "is_superuser", False):
        return seen
    return seen.filter(pk__in=[key for key, held in _memberships(user).items() if privilege in held])


def _holds(privileges: frozenset[str], name: str) -> Any:
    def test(user: Person, thing: Any) -> bool:
        return thing is not None and privileges <= privileges_over(user, thing)

    return rules.predicate(test, name=name)


def _installs(user: Person) -> bool:
    """Say whether the user runs the installation; a token with a scope never does."""
    return bool(getattr(user, "is_staff", False)) and getattr(user, "scope", None) is None


for _privilege in Privilege:
    rules.add_perm(f"accounts.{_privilege.value}", _holds(frozenset({_privilege.value}), _privilege.value))
rules.add_perm(OPERATE, _holds(PRIVILEGES_OF[Role.OPERATOR], OPERATE))
rules.add_perm(MANAGE, _holds(PRIVILEGES_OF[Role.ADMIN], MANAGE))
rules.add_perm(INSTALL, rules.predicate(_installs))
