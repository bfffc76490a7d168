"""API tokens come about here, narrow their owner while they are used, and end. Their text is kept nowhere."""

import datetime as dt
from collections.abc import Collection

from django.conf import settings
from django.core.exceptions import ValidationError
from django.db import models, transaction
from knox.models import AuthToken

from accounts.models import Account, ApiToken, User
from accounts.permissions import privileges_anywhere, privileges_in
from accounts.refusals import Refused
from accounts.services import Actor, PrivilegeNotHeld, record
from accounts.states import READING, Privilege

LOGIN = "Login"
# How much later than it says a token may have been used: each use would be a write otherwise.
_SEEN_EVERY = dt.timedelta(seconds=60)


class ExpiryTooLong(Refused):
    """A token that a person makes for a program ends one day."""

    code = "expiry_too_long"


class TooManyTokens(Refused):
    """A person has so many tokens, and no more."""

    code = "too_many_tokens"


@transaction.atomic
def create(
    name: str,
    *,
    privileges: Collection[str],
    account: Account | None,
    life: dt.timedelta | None,
    actor: Actor,
    now: dt.datetime,
) -> tuple[ApiToken, str]:
    """Make a token of the actor's, and return it with its text, this once.

    It may do what `privileges` say, as far as its owner may, in `account` or in all; `view` is always among them. None
    at all make a token that only reads. It ends after `life`, or after the installation's default. Raises
    ValidationError, PrivilegeNotHeld, ExpiryTooLong, TooManyTokens.
    """
    assert actor.user is not None
    if not name.strip():
        raise ValidationError({"name": "Name what the token is for: it is how you find it again to revoke it."})
    unknown = sorted(set(privileges) - set(Privilege.values))
    if unknown:
        raise ValidationError({"privileges": f"There is no {', '.join(unknown)}. Use {', '.join(Privilege.values)}."})
    held = privileges_in(actor.user, account) if account else privileges_anywhere(actor.user)
    privileges = privileges or READING & held
    if lacking := sorted(set(privileges) - held):
        raise PrivilegeNotHeld(f"A token can't do more than you: {', '.join(lacking)}.", privileges=lacking)
    _check_life(life)
    if _alive(actor.user, now).count() >= settings.TOKENS_MAX:
        raise TooManyTokens(f"You have {settings.TOKENS_MAX} tokens. Revoke those that nothing uses any more.")
    wanted = {Privilege.VIEW.value, *privileges}
    ordered = [one for one in Privilege.values if one in wanted]
    ends_at = now + (life or dt.timedelta(days=settings.TOKEN_DAYS))
    return _store(actor, name.strip(), account=account, privileges=ordered, ends_at=ends_at, now=now)


def _check_life(life: dt.timedelta | None) -> None:
    if life is not None and life <= dt.timedelta():
        raise ValidationError({"expires_in": "Give a time after which the token ends."})
    if life is not None and life > dt.timedelta(days=settings.TOKEN_DAYS_MAX):
        raise ExpiryTooLong(
            f"A token lives {settings.TOKEN_DAYS_MAX} days at most. Make another one before it ends.",
            days_max=settings.TOKEN_DAYS_MAX,
        )


@transaction.atomic
def log_in(user: User, *, life: dt.timedelta | None, actor: Actor, now: dt.datetime) -> tuple[ApiToken, str]:
    """Make a token for somebody who gave a password: it may do what the person may, and needs no end."""
    return _store(actor, LOGIN, account=None, privileges=None, ends_at=now + life if life else None, now=now)


def _store(
    actor: Actor,
    name: str,
    *,
    account: Account | None,
    privileges: list[str] | None,
    ends_at: dt.datetime | None,
    now: dt.datetime,
) -> tuple[ApiToken, str]:
    token, text = AuthToken.objects.create(user=actor.user)
    AuthToken.objects.filter(pk=token.pk).update(expiry=ends_at)
    token.expiry = ends_at
    own = ApiToken.objects.create(token=token, name=name, account=account, privileges=privileges)
    told = {"key": token.token_key, "privileges": privileges, "expires_at": ends_at.isoformat() if ends_at else None}
    record(actor, "token.create", token.user, account=account, now=now, name=name, **told)
    return own, text


@transaction.atomic
def revoke(token: AuthToken, *, actor: Actor, now: dt.datetime) -> None:
    """End a token at once."""
    own = ApiToken.objects.filter(token=token).select_related("account").first()
    record(
        actor,
        "token.revoke",
        token.user,
        account=own.account if own else None,
        now=now,
        key=token.token_key,
        name=own.name if own else "",
    )
    token.delete()


def use(user: User, token: AuthToken, *, now: dt.datetime) -> None:
    """Let the token narrow the person for this request, and note that it was used."""
    own = ApiToken.objects.filter(token=token).first()
    if own is None:
        return  # of before tokens had scopes: a login's
    user.scope = own.scope
    stale = models.Q(last_used_at=None) | models.Q(last_used_at__lte=now - _SEEN_EVERY)
    if own.last_used_at is None or own.last_used_at <= now - _SEEN_EVERY:
        ApiToken.objects.filter(stale, pk=own.pk).update(last_used_at=now)


def _alive(user: User, now: dt.datetime) -> "models.QuerySet[AuthToken]":
    tokens: models.QuerySet[AuthToken] = AuthToken.objects.filter(user=user)
    return tokens.filter(models.Q(expiry=None) | models.Q(expiry__gt=now))
