"""The end of an account: only when nothing of it is stored any more. Locks win over everybody (B6)."""

import datetime as dt

from django.db import transaction
from django.db.models import Max

from accounts.models import Account
from accounts.refusals import Refused
from accounts.services import Actor, record
from policies.models import Plan


class AccountUnconfirmed(Refused):
    """What can't be undone is confirmed by typing the account's name."""

    code = "confirmation_wrong"


class AccountInUse(Refused):
    """The account has vaults."""

    code = "account_in_use"


class AccountLocked(Refused):
    """The account has vaults with locked points (B6)."""

    code = "account_locked"


def delete_account(account: Account, *, confirmation: str, actor: Actor, now: dt.datetime) -> None:
    """Delete an account without vaults: its members' roles, sources, policies and jobs; the audit trail stays.

    Raises AccountUnconfirmed, AccountInUse, AccountLocked with the date.
    """
    if confirmation != account.name:
        raise AccountUnconfirmed("Type the account's name to confirm: this can't be undone.")
    vaults = account.vaults.all().present()
    names = list(vaults.values_list("name", flat=True))
    ends = vaults.aggregate(points=Max("points__locked_until"), vaults=Max("deletable_at"))
    until = max((end for end in ends.values() if end is not None and end > now), default=None)
    if until is not None:
        raise AccountLocked(
            f"Points of this account are locked: nobody can delete them before {until:%Y-%m-%d %H:%M} UTC.",
            vaults=names,
            locked_until=until.isoformat(),
        )
    if names:
        raise AccountInUse(f"The account has {len(names)} vaults. Delete them first: {', '.join(names)}.", vaults=names)
    with transaction.atomic():
        record(actor, "account.delete", account, account=account, now=now)
        for plan in Plan.objects.filter(source__account=account).exclude(account=account).select_related("account"):
            record(actor, "plan.delete", plan, account=plan.account, now=now)  # of another account, by a grant (B8)
            plan.delete()
        for rows in (account.jobs, account.plans, account.policies, account.sources, account.vaults):
            rows.all().delete()
        account.delete()
