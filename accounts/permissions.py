"""WHO MAY: predicates over roles, registered as permissions. Each role includes those after it.

accounts.view      viewer     see everything of the account but secrets
accounts.operate   operator   start and cancel jobs, pause and resume plans, read files out of points
accounts.manage    admin      sources, policies, plans, vaults
accounts.own       owner      the account, its members, and what can't be undone: locks, deletions, keys
accounts.install   staff      regions: they belong to the installation
"""

from typing import Any

import rules
from django.contrib.auth.models import AbstractBaseUser, AnonymousUser

from accounts.models import Account, Member, Role

VIEW, OPERATE, MANAGE, OWN = "accounts.view", "accounts.operate", "accounts.manage", "accounts.own"
INSTALL = "accounts.install"

_FROM = {
    VIEW: (Role.VIEWER, Role.OPERATOR, Role.ADMIN, Role.OWNER),
    OPERATE: (Role.OPERATOR, Role.ADMIN, Role.OWNER),
    MANAGE: (Role.ADMIN, Role.OWNER),
    OWN: (Role.OWNER,),
}


def account_of(thing: Any) -> Account | None:
    """Return the account that `thing` belongs to; None for what belongs to the installation."""
    if isinstance(thing, Account):
        return thing
    owner = thing.vault if hasattr(thing, "vault_id") and not hasattr(thing, "account_id") else thing
    account: Account | None = getattr(owner, "account", None)
    return account


def role_in(user: AbstractBaseUser | AnonymousUser, account: Account | None) -> str | None:
    """Return the user's role in the account, None for an outsider. Asks the database once per user object."""
    if account is None or not user.pk:
        return None
    roles: dict[Any, str] | None = getattr(user, "_roles", None)
    if roles is None:
        roles = dict(Member.objects.filter(user_id=user.pk).values_list("account_id", "role"))
        user._roles = roles  # type: ignore[union-attr]  # a per-request memo, as Django's own _perm_cache
    return roles.get(account.pk)


def _at_least(roles: tuple[Role, ...], name: str) -> Any:
    def test(user: AbstractBaseUser | AnonymousUser, thing: Any) -> bool:
        return thing is not None and role_in(user, account_of(thing)) in roles

    return rules.predicate(test, name=name)


for _permission, _roles in _FROM.items():
    rules.add_perm(_permission, _at_least(_roles, _permission))
rules.add_perm(INSTALL, rules.is_staff)
