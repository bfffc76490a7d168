"""Grants between accounts (B8): one account lets another back up named sources, and takes that back."""

import datetime as dt
from collections.abc import Collection
from typing import Any

from django.core.exceptions import ValidationError
from django.db import models, transaction

from accounts.models import Account, Grant, GrantedSource
from accounts.refusals import Refused
from accounts.services import Actor, check_holds, record
from accounts.states import GRANTABLE, Privilege

GIVEN = (Privilege.BACKUP.value, Privilege.RESTORE.value)


class NotGranted(Refused):
    """What belongs to another account needs its grant (B8)."""

    code = "not_granted"


class GrantRevoked(Refused):
    """A grant is revoked once."""

    code = "grant_revoked"


@transaction.atomic
def give(grant: Grant, *, sources: Collection[models.Model], actor: Actor, now: dt.datetime) -> Grant:
    """Store a new grant over these sources of the grantor, or over all when there are none and `all_sources` says so.

    Both accounts' trails tell of it. Nobody gives a privilege that they don't have. Raises ValidationError,
    PrivilegeNotHeld.
    """
    if grant.grantor_id == grant.grantee_id:
        raise ValidationError({"grantee": "An account needs no grant of its own: name another one."})
    if grant.all_sources == bool(sources):
        raise ValidationError({"sources": "Name the sources, or say all_sources."})
    if any(getattr(source, "account_id", None) != grant.grantor_id for source in sources):
        raise ValidationError({"sources": f"Only sources of {grant.grantor} can be granted by it."})
    if not grant.privileges or not set(grant.privileges) <= GRANTABLE:
        raise ValidationError({"privileges": f"Give one or more of {', '.join(GIVEN)}."})
    if grant.expires_at and grant.expires_at <= now:
        raise ValidationError({"expires_at": "This moment is over: name a later one, or none."})
    check_holds(actor, grant.grantor, grant.privileges, to="grant them to another account")
    wanted = {Privilege.VIEW.value, *grant.privileges}
    grant.privileges = [name for name in Privilege.values if name in wanted]
    grant.created_at = now
    grant.full_clean()
    grant.save(force_insert=True)
    GrantedSource.objects.bulk_create(GrantedSource(grant=grant, source_id=source.pk) for source in sources)
    ends = grant.expires_at.isoformat() if grant.expires_at else None
    told = {"sources": sorted(str(source) for source in sources) or "all", "privileges": grant.privileges}
    _record_both(actor, "grant.give", grant, now=now, expires_at=ends, **told)
    return grant


@transaction.atomic
def revoke(grant: Grant, *, actor: Actor, now: dt.datetime) -> Grant:
    """End a grant at once: from now on nothing new is started under it. Raises GrantRevoked."""
    if not Grant.objects.filter(pk=grant.pk, revoked_at=None).update(revoked_at=now):
        raise GrantRevoked("This grant was revoked before.")
    grant.refresh_from_db()
    _record_both(actor, "grant.revoke", grant, now=now)
    return grant


def _record_both(actor: Actor, action: str, grant: Grant, *, now: dt.datetime, **detail: Any) -> None:
    for account in (grant.grantor, grant.grantee):
        record(actor, action, grant, account=account, now=now, **detail)


def need(account: Account, source: Any, privilege: str, *, now: dt.datetime) -> None:
    """See that `account` may do this with `source`: it is its own, or granted now. Raises NotGranted with the reason.

    The codes are not_granted, grant_revoked and grant_expired.
    """
    if source.account_id == account.pk:
        return
    mine = Grant.objects.over(source).filter(grantee=account)
    if any(privilege in grant.privileges for grant in mine.valid(now)):
        return
    last = next((grant for grant in mine if privilege in grant.privileges), None)
    if last is None:
        raise NotGranted(f"{source} is another account's, which did not grant {account} the privilege {privilege}.")
    if last.revoked_at:
        raise NotGranted(
            f"{last.grantor} revoked the grant over {source} on {last.revoked_at:%Y-%m-%d %H:%M} UTC.",
            code="grant_revoked",
        )
    raise NotGranted(
        f"The grant of {last.grantor} over {source} ended on {last.expires_at:%Y-%m-%d %H:%M} UTC.",
        code="grant_expired",
    )


def holds(account: Account, source: Any, *, now: dt.datetime) -> bool:
    """Say whether another account backs up this source under a grant that holds."""
    return Grant.objects.over(source).filter(grantee=account).valid(now).exists()


def state(grant: Grant, *, now: dt.datetime) -> str:
    """Return whether the grant holds: active, expired or revoked."""
    if grant.revoked_at:
        return "revoked"
    return "expired" if grant.expires_at and grant.expires_at <= now else "active"
