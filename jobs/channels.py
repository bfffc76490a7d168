"""What people do with alerts: acknowledge and silence them, make rules and channels, send tests."""

import contextlib
import datetime as dt
import uuid
from collections.abc import Collection, Iterable
from typing import Any
from urllib.parse import urlsplit

from django.core.exceptions import ValidationError
from django.core.validators import validate_email
from django.db import models, transaction

from accounts import secrets
from accounts.models import Member, Role
from accounts.refusals import Refused
from accounts.services import Actor, record
from engine.errors import EngineError
from jobs import doorbell, routing, senders
from jobs.alert_models import (
    Alert,
    AlertRule,
    AlertState,
    Channel,
    ChannelKind,
    Delivery,
    DeliveryState,
    Silence,
    Told,
)
from policies import addresses

SECRET_CHARS_MIN = 16
CHECK_S = 20.0
_PARTS = ("source", "vault", "plan")


class AlertOver(Refused):
    """What is over needs no acknowledgement."""

    code = "alert_resolved"


class BuiltinKept(Refused):
    """Every account keeps the rules and the channel it was made with (C21)."""

    code = "builtin_kept"


class SilencePast(Refused):
    """A silence ends in the future."""

    code = "silence_past"


@transaction.atomic
def acknowledge(alert: Alert, *, actor: Actor, now: dt.datetime) -> Alert:
    """Say that somebody takes care: the alert stays in the inbox and counts no more. Safe to call twice.

    Raises AlertOver.
    """
    if alert.state == AlertState.RESOLVED:
        raise AlertOver("This trouble is over already: there is nothing to acknowledge.")
    mine = Alert.objects.open().filter(pk=alert.pk, acknowledged_at=None)
    if mine.update(acknowledged_at=now, acknowledged_by=actor.name):
        record(actor, "alert.acknowledge", alert, account=alert.account, now=now)
    alert.refresh_from_db()
    return alert


@transaction.atomic
def silence(wanted: Silence, *, actor: Actor, now: dt.datetime) -> Silence:
    """Deliver nothing of what the silence is about until it ends; the inbox shows it, marked. Raises SilencePast."""
    if wanted.until <= now:
        raise SilencePast("Give a moment in the future at which the silence ends.")
    _check_parts(wanted)
    wanted.created_at, wanted.created_by = now, actor.name
    wanted.full_clean(exclude=["account"])
    wanted.save()
    for alert in _about(wanted):
        changed = Alert.objects.open().filter(pk=alert.pk).exclude(silenced_until__gt=wanted.until)
        changed.update(silenced_until=wanted.until)
        waiting = alert.deliveries.filter(state=DeliveryState.QUEUED)
        waiting.update(state=DeliveryState.DROPPED, ended_at=now, error=f"Silenced by {actor.name}: {wanted.reason}")
    record(actor, "silence.create", wanted, account=wanted.account, now=now, until=wanted.until.isoformat(),
           reason=wanted.reason)  # fmt: skip
    return wanted


@transaction.atomic
def end_silence(wanted: Silence, *, actor: Actor, now: dt.datetime) -> Silence:
    """Let the silence end now. Trouble that began in it and goes on is told then. Safe to call twice."""
    if Silence.objects.in_force(now).filter(pk=wanted.pk).update(until=now):
        wanted.until = now
        for alert in _about(wanted):
            until = routing.silenced_until(alert, now=now)
            Alert.objects.filter(pk=alert.pk).update(silenced_until=until)
            if until is None and alert.routed < alert.change:
                doorbell.ring_alert(alert)
        record(actor, "silence.end", wanted, account=wanted.account, now=now)
    return wanted


def _about(wanted: Silence) -> list[Alert]:
    narrowed = {f"{name}_id": pk for name in _PARTS if (pk := getattr(wanted, f"{name}_id"))}
    narrowed |= {"type": wanted.type} if wanted.type else {}
    return list(Alert.objects.open().filter(account_id=wanted.account_id, **narrowed))


def _check_parts(wanted: AlertRule | Silence) -> None:
    """See that what a rule is narrowed down to belongs to its account. Raises ValidationError by field."""
    for name in _PARTS:
        part = getattr(wanted, name)
        if part is not None and part.account_id != wanted.account_id:
            raise ValidationError({name: "It belongs to another account."})


@transaction.atomic
def save_rule(rule: AlertRule, channels: list[Channel] | None, *, actor: Actor, now: dt.datetime) -> AlertRule:
    """Check and store a rule, new or changed; `channels` None leaves them. Raises ValidationError."""
    new = rule._state.adding
    if new:
        rule.created_at = now
    _check_parts(rule)
    if (rule.quiet_from is None) != (rule.quiet_until is None):
        raise ValidationError({"quiet_until": "Quiet hours have a beginning and an end: give both, or none."})
    if any(channel.account_id != rule.account_id for channel in channels or []):
        raise ValidationError({"channels": "They must belong to the rule's account."})
    rule.full_clean()
    rule.save()
    if channels is not None:
        rule.channels.set(channels)
    record(actor, "alert_rule.create" if new else "alert_rule.change", rule, account=rule.account, now=now)
    return rule


@transaction.atomic
def delete(thing: AlertRule | Channel, *, actor: Actor, now: dt.datetime) -> None:
    """Delete a rule or a channel that a person made. Raises BuiltinKept."""
    if (isinstance(thing, AlertRule) and thing.builtin) or (isinstance(thing, Channel) and thing.is_default):
        raise BuiltinKept(f"Every account has “{thing}”. Switch it off instead.")
    name = "channel" if isinstance(thing, Channel) else "alert_rule"
    record(actor, f"{name}.delete", thing, account=thing.account, now=now)
    thing.delete()


@transaction.atomic
def save_channel(channel: Channel, given: dict[str, str] | None = None, *, actor: Actor, now: dt.datetime) -> Channel:
    """Check and store a channel, new or changed; `given` secrets, None leaves the stored ones.

    Another address needs its secret again. Raises ValidationError by field, AddressRefused.
    """
    new = channel._state.adding
    if new:
        channel.created_at = now
    elif Channel.objects.get(pk=channel.pk).kind != channel.kind:
        raise ValidationError({"kind": "The kind of a channel never changes: make another one."})
    _check_channel(channel, given, new=new)
    channel.full_clean()
    channel.failures, channel.retry_at = 0, None
    channel.save()
    record(actor, "channel.create" if new else "channel.change", channel, account=channel.account, now=now)
    return channel


def _check_channel(channel: Channel, given: dict[str, str] | None, *, new: bool) -> None:
    if channel.kind == ChannelKind.EMAIL:
        channel.settings = _checked_people(channel.settings)
        channel.shown = ", ".join([*(f"{Role(one).label}s" for one in channel.settings["roles"]),
                                   *channel.settings["addresses"]])[:255]  # fmt: skip
        return
    channel.settings = {}
    if given is None and not new:
        return
    check = _checked_webhook if channel.kind == ChannelKind.WEBHOOK else _checked_apprise
    kept, channel.shown = check({name: text.strip() for name, text in (given or {}).items()})
    channel.secrets = secrets.seal(kept, context=channel.secret_context)


def _checked_people(wanted: dict[str, Any]) -> dict[str, Any]:
    roles, mails = wanted.get("roles", []), wanted.get("addresses", [])
    if not isinstance(roles, list) or not all(one in Role.values for one in roles):
        raise ValidationError({"settings": f"`roles` is a list of these: {', '.join(Role.values)}."})
    if not isinstance(mails, list) or not all(isinstance(one, str) for one in mails):
        raise ValidationError({"settings": "`addresses` is a list of e-mail addresses."})
    for one in mails:
        try:
            validate_email(one)
        except ValidationError as error:
            raise ValidationError({"settings": f"{one!r} is no e-mail address."}) from error
    if not roles and not mails:
        raise ValidationError({"settings": "Say whom to write to: `roles`, `addresses`, or both."})
    return {"roles": roles, "addresses": mails}


def _checked_webhook(given: dict[str, str]) -> tuple[dict[str, str], str]:
    url, secret = given.get("url", ""), given.get("secret", "")
    try:
        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError as error:
        raise ValidationError({"url": f"This is no web address: {error}."}) from error
    if parts.scheme not in ("https", "http") or not parts.hostname or parts.username:
        raise ValidationError({"url": "Give an address that begins with https:// or http://, without a user's name."})
    if not url.isascii() or not url.isprintable() or " " in url:
        raise ValidationError({"url": "Write the address with the letters that web addresses have, others as %XX."})
    if len(secret) < SECRET_CHARS_MIN:
        raise ValidationError({"secret": f"Give at least {SECRET_CHARS_MIN} characters: with it messages are signed."})
    # A name that can't be looked up from here is no reason to refuse: the worker that sends looks it up again.
    with contextlib.suppress(EngineError):
        addresses.check([(parts.hostname, port)])
    return {"url": url, "secret": secret}, f"{parts.scheme}://{parts.netloc}/…"[:255]


def _checked_apprise(given: dict[str, str]) -> tuple[dict[str, str], str]:
    url = given.get("url", "")
    if "://" not in url:
        raise ValidationError({"url": "Give an address as Apprise writes them, such as slack://… or tgram://…"})
    try:
        outcome = senders.outgoing({"do": "check", "url": url}, timeout_s=CHECK_S)
    except senders.SendFailed as error:
        raise ValidationError({"url": str(error)}) from error
    return {"url": url}, str(outcome["service"])[:255]


@transaction.atomic
def send_test(channel: Channel, *, actor: Actor, now: dt.datetime) -> Delivery:
    """Let a worker send a test through the channel; the delivery tells the result within seconds."""
    delivery = Delivery.objects.create(channel=channel, told=Told.TEST, next_at=now, created_at=now)
    record(actor, "channel.test", channel, account=channel.account, now=now)
    doorbell.ring_delivery(delivery, now=now)
    return delivery


def addressed(found: Iterable[Channel]) -> set[uuid.UUID]:
    """Return which of these e-mail channels have somebody to write to, with two queries."""
    rows = [channel for channel in found if channel.kind == ChannelKind.EMAIL]
    held = Member.objects.filter(account__in={row.account_id for row in rows}, user__is_active=True)
    roles = set(held.exclude(user__email="").values_list("account_id", "role"))
    return {
        row.pk
        for row in rows
        if row.settings.get("addresses")
        or any((row.account_id, role) in roles for role in row.settings.get("roles", []))
    }


def note(channel: Channel, *, reached: Collection[uuid.UUID]) -> str:
    """Return what a person should know of the channel's state, empty for nothing. `reached` is from `addressed`."""
    if not channel.enabled:
        return "Switched off"
    if channel.kind == ChannelKind.EMAIL:
        if not senders.is_email_on():
            return senders.EMAIL_OFF
        if channel.pk not in reached:
            return "Nobody to write to: no member of these roles has an e-mail address"
    if channel.failures:
        return f"Failing: {channel.failures} attempts in a row"
    return ""


def alike(alert: Alert) -> Silence:
    """Return a silence, not stored, over what the alert is about: its type, and its plan, or its source and vault."""
    parts: dict[str, Any] = {"plan": alert.plan} if alert.plan else {"source": alert.source, "vault": alert.vault}
    return Silence(account=alert.account, type=alert.type, **parts)


def of_accounts(queryset: models.QuerySet[Any], *, now: dt.datetime) -> None:
    """Complete the rules of the accounts among these that lack them, before somebody looks at them."""
    routing.complete_rules(routing.incomplete().filter(pk__in=queryset.values("pk")), now=now)
