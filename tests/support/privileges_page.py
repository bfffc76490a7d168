"""The table of privileges as docs/operations.md shows it."""

from accounts.states import PRIVILEGES_OF, Privilege, Role

HEAD = ["| privilege | lets a member | viewer | operator | administrator | owner |", "|---|---|---|---|---|---|"]


def table() -> list[str]:
    """Return the lines of the table."""
    roles = list(reversed(Role))
    rows = []
    for one in Privilege:
        held = " | ".join("yes" if one in PRIVILEGES_OF[role] else "" for role in roles)
        label = str(one.label)
        rows.append(" ".join(f"| `{one.value}` | {label[0].lower()}{label[1:]} | {held} |".split()))
    return [*HEAD, *rows]
