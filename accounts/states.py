"""The privileges that there are, the roles that come ready made, and what narrows a person to less."""

import uuid
from dataclasses import dataclass

from django.db import models


class Privilege(models.TextChoices):
    """One thing that a member may do (D3). The labels are what docs/operations.md says of them."""

    VIEW = "view", "See sources, policies, plans, vaults, points and jobs; neither secrets nor what points hold"
    SEE_USAGE = "see_usage", "See usage and cost"
    READ_DATA = "read_data", "Browse points, and download files out of them"
    BACKUP = "backup", "Start and cancel backups; try the connection of a source"
    RESTORE = "restore", "Start and cancel restores"
    MAINTAIN = "maintain", "Start and cancel trial restores and vault maintenance; hold points"
    PAUSE_PLANS = "pause_plans", "Pause and resume plans"
    MANAGE_SOURCES = "manage_sources", "Make, change and delete sources; see passwords that a restore made anew"
    MANAGE_POLICIES = "manage_policies", "Make, change and delete policies and plans"
    MANAGE_VAULTS = "manage_vaults", "Make and change vaults; replicate them; set how often they are maintained"
    MANAGE_ALERTS = "manage_alerts", "Say who is told of what, and how"
    DELETE_POINTS = "delete_points", "Delete points, release held ones, let an expiry pass its guards"
    SEE_AUDIT = "see_audit", "See and export the audit trail"
    MANAGE_MEMBERS = "manage_members", "Give and take roles, make custom ones, grant other accounts to back up sources"
    OWN = "own", "What can't be undone: locks, keys, deletion of vaults, of all backups of a source, of the account"


class Role(models.TextChoices):
    """What a member may do; each role includes those after it."""

    OWNER = "owner", "Owner"
    ADMIN = "admin", "Administrator"
    OPERATOR = "operator", "Operator"
    VIEWER = "viewer", "Viewer"


_VIEWER = frozenset({Privilege.VIEW, Privilege.SEE_USAGE})
_OPERATOR = _VIEWER | {
    Privilege.READ_DATA,
    Privilege.BACKUP,
    Privilege.RESTORE,
    Privilege.MAINTAIN,
    Privilege.PAUSE_PLANS,
}
_ADMIN = _OPERATOR | {
    Privilege.MANAGE_SOURCES,
    Privilege.MANAGE_POLICIES,
    Privilege.MANAGE_VAULTS,
    Privilege.MANAGE_ALERTS,
    Privilege.DELETE_POINTS,
    Privilege.SEE_AUDIT,
}
EVERYTHING: frozenset[str] = frozenset(Privilege)
PRIVILEGES_OF: dict[str, frozenset[str]] = {
    Role.VIEWER: frozenset(_VIEWER),
    Role.OPERATOR: frozenset(_OPERATOR),
    Role.ADMIN: frozenset(_ADMIN),
    Role.OWNER: EVERYTHING,
}
# What a member of another account may be granted over sources (B8), and what a token that only reads may do.
GRANTABLE: frozenset[str] = frozenset({Privilege.VIEW, Privilege.BACKUP, Privilege.RESTORE})
READING: frozenset[str] = frozenset({Privilege.VIEW, Privilege.SEE_USAGE, Privilege.SEE_AUDIT})


@dataclass(frozen=True, slots=True)
class Scope:
    """What a request may use of the privileges of the person behind it, and in which account; None is in all."""

    privileges: frozenset[str]
    account_id: uuid.UUID | None = None

    def narrowed(self, privileges: frozenset[str], account_id: uuid.UUID) -> frozenset[str]:
        """Return what is left of a person's privileges in an account."""
        fits = self.account_id is None or self.account_id == account_id
        return privileges & self.privileges if fits else frozenset()
