"""Users, roles and what they may do, made again in a Milvus cluster. Passwords were never kept (D5)."""

import base64
import secrets
from typing import Any

from engine.connections.milvus import Client, Refused
from engine.connections.milvus_documents import Document
from engine.entries import Problem

_BUILT_IN_USERS = frozenset({"root", "db_admin"})
_BUILT_IN_ROLES = frozenset({"admin", "public", "db_admin"})


def restore_rights(client: Client, path: bytes, document: Document) -> list[Problem]:
    """Make groups, roles, users and grants; what is there already stays.

    Each new user gets a new password, told in a problem `password`, which is no loss: the only place where it is.
    """
    making = _Making(client, path)
    for group in document.get("privilege_groups", []):
        name, privileges = group["group_name"], group.get("privileges", [])
        if making.tried(f"the privilege group {name}", "CreatePrivilegeGroup", group_name=name):
            making.tried(
                f"the privileges of {name}", "OperatePrivilegeGroup", group_name=name, privileges=privileges, type=0
            )
    for role in document.get("roles", []):
        if role["name"] not in _BUILT_IN_ROLES:
            making.tried(f"the role {role['name']}", "CreateRole", entity=role)
    for user in document.get("users", []):
        making.user(user["user"], [role["name"] for role in user.get("roles", [])])
    for grant in document.get("grants", []):
        name = f"a right of the role {grant.get('role', {}).get('name', '')}"
        making.tried(name, "OperatePrivilege", entity=grant, type=0)
    return making.problems


class _Making:
    """Makes one thing after the other, and notes what the server refuses."""

    def __init__(self, client: Client, path: bytes) -> None:
        self._client, self._path = client, path
        self.problems: list[Problem] = []

    def tried(self, what: str, verb: str, **fields: Any) -> bool:
        """Make it; say whether the server did."""
        try:
            self._client.call(verb, retry=False, **fields)
        except Refused as refused:
            self.problems.append(Problem(self._path, "adjusted", f"{what} is left as it is: {refused}", lost=False))
            return False
        return True

    def user(self, name: str, roles: list[str]) -> None:
        if name in _BUILT_IN_USERS:
            told = f"the user {name} is every cluster's own and keeps the password it has here"
            self.problems.append(Problem(self._path, "adjusted", told, lost=False))
        else:
            password = secrets.token_urlsafe(18)
            encoded = base64.b64encode(password.encode()).decode()
            if self.tried(f"the user {name}", "CreateCredential", username=name, password=encoded):
                told = f"the user {name} has the new password {password} : it is told only here, so have it changed"
                self.problems.append(Problem(self._path, "password", told, lost=False))
        for role in roles:
            self.tried(f"the role {role} of {name}", "OperateUserRole", username=name, role_name=role, type=0)
