"""Who hears of an alert: the rules of its account, its silences, and the deliveries that come of them.

An alert is routed apart from the transaction that raised it: whatever is wrong with rules never holds up a job.
"""

import datetime as dt
import uuid
import zoneinfo
from collections.abc import Iterable

from django.conf import settings
from django.db import transaction
from django.db.models import Exists, OuterRef, QuerySet

from accounts.models import Account, Role
from jobs.alert_models import (
    Alert,
    AlertRule,
    AlertState,
    Builtin,
    Channel,
    ChannelKind,
    Delivery,
    DeliveryState,
    Severity,
    Silence,
    Told,
)

EMAIL_NAME = "E-mail to owners and administrators"
_RULES = {
    Builtin.INBOX: ("Everything, in the inbox", Severity.INFO),
    Builtin.EMAIL: ("Failed and missed backups, damage", Severity.CRITICAL),
}


def incomplete() -> QuerySet[Account]:
    """Return the accounts that lack the rules that every account has."""
    return Account.objects.filter(~Exists(AlertRule.objects.filter(account=OuterRef("pk"), builtin=Builtin.EMAIL)))


def complete_rules(accounts: Iterable[Account], *, now: dt.datetime) -> None:
    """Give each of these accounts the rules and the channel that every account has (C21). Safe to call at once."""
    for account in accounts:
        with transaction.atomic():
            who = {"roles": [Role.OWNER.value, Role.ADMIN.value], "addresses": []}
            channel, _ = Channel.objects.get_or_create(
                account=account,
                is_default=True,
                defaults={
                    "name": EMAIL_NAME,
                    "kind": ChannelKind.EMAIL,
                    "settings": who,
                    "shown": "Owners, Administrators",
                    "created_at": now,
                },
            )
            for builtin, (name, severity) in _RULES.items():
                rule, new = AlertRule.objects.get_or_create(
                    account=account,
                    builtin=builtin,
                    defaults={"name": name, "severity_min": severity, "created_at": now},
                )
                if new and builtin == Builtin.EMAIL:
                    rule.channels.add(channel)


def fits(rule: AlertRule | Silence, alert: Alert) -> bool:
    """Say whether a rule or a silence is about the alert."""
    if isinstance(rule, Silence):
        typed = rule.type in ("", alert.type)
    else:
        typed = (not rule.types or alert.type in rule.types) and alert.severity >= rule.severity_min
    narrowed = ((rule.source_id, alert.source_id), (rule.vault_id, alert.vault_id), (rule.plan_id, alert.plan_id))
    return typed and all(wanted in (None, found) for wanted, found in narrowed)


def silenced_until(alert: Alert, *, now: dt.datetime) -> dt.datetime | None:
    """Return when the last silence that is about the alert ends, None without one."""
    in_force = Silence.objects.in_force(now).filter(account_id=alert.account_id)
    return next((silence.until for silence in in_force if fits(silence, alert)), None)


@transaction.atomic
def route(alert_id: uuid.UUID, *, now: dt.datetime) -> list[Delivery]:
    """Let the rules see what changed of the alert, and return the deliveries that come of it. Safe to call at once.

    What is silenced is marked and looked at again when the silence ends: trouble that lasts is told then, what is over
    by then is not. What was raised and resolved before anybody looked is told both.
    """
    alert = Alert.objects.unrouted(now).filter(pk=alert_id).select_related("account").first()
    if alert is None:
        return []
    complete_rules(incomplete().filter(pk=alert.account_id), now=now)
    enabled = AlertRule.objects.filter(account_id=alert.account_id, enabled=True).prefetch_related("channels")
    rules = [rule for rule in enabled if fits(rule, alert)]
    until = silenced_until(alert, now=now)
    mine = Alert.objects.filter(pk=alert.pk, change=alert.change, routed=alert.routed)
    changes = {"in_inbox": alert.in_inbox or any(rule.inbox for rule in rules)}
    if until is not None:
        mine.update(**changes, silenced_until=until)
        return []
    if not mine.update(**changes, silenced_until=None, routed=alert.change):
        return []  # it changed again, or another worker routes it
    Delivery.objects.bulk_create(_deliveries(alert, rules, now), ignore_conflicts=True)
    return list(alert.deliveries.filter(created_at=now, change__gt=alert.routed, next_at__lte=now))


def _deliveries(alert: Alert, rules: list[AlertRule], now: dt.datetime) -> list[Delivery]:
    """Return the rows of what is to be told: that the trouble is there, to each channel once, and that it is over."""
    if alert.state == AlertState.OPEN:
        return _rows(alert, rules, told=Told.RAISED, change=alert.change, now=now)
    unseen = alert.routed == 0 and alert.silenced_until is None
    raised = _rows(alert, rules, told=Told.RAISED, change=alert.change - 1, now=now) if unseen else []
    heard = {row.channel_id for row in raised}
    heard |= set(
        alert.deliveries.filter(told=Told.RAISED)
        .exclude(state__in=(DeliveryState.GIVEN_UP, DeliveryState.DROPPED))
        .values_list("channel_id", flat=True)
    )
    telling = [rule for rule in rules if rule.tell_resolved]
    over = _rows(alert, telling, told=Told.RESOLVED, change=alert.change, now=now)
    return raised + [row for row in over if row.channel_id in heard]


def _rows(alert: Alert, rules: list[AlertRule], *, told: Told, change: int, now: dt.datetime) -> list[Delivery]:
    earliest: dict[Channel, dt.datetime] = {}
    for rule in rules:
        moment = now if alert.severity == Severity.CRITICAL else quiet_ends_at(rule, now=now)
        for channel in rule.channels.all():
            if _is_open(channel, alert):
                earliest[channel] = min(moment, earliest.get(channel, moment))
    return [
        Delivery(channel=channel, alert=alert, change=change, told=told, next_at=moment, created_at=now)
        for channel, moment in earliest.items()
    ]


def _is_open(channel: Channel, alert: Alert) -> bool:
    """Say whether the alert may go through the channel: not while e-mail is off, and not about the channel itself."""
    off = channel.kind == ChannelKind.EMAIL and not settings.EMAIL_ON
    return channel.enabled and not off and alert.detail.get("channel") != str(channel.pk)


def quiet_ends_at(rule: AlertRule, *, now: dt.datetime) -> dt.datetime:
    """Return when the rule's quiet hours are over, `now` outside of them."""
    if rule.quiet_from is None or rule.quiet_until is None or rule.quiet_from == rule.quiet_until:
        return now
    here = now.astimezone(zoneinfo.ZoneInfo(rule.time_zone))
    time = here.time()
    over_midnight = rule.quiet_from > rule.quiet_until
    inside = (
        time >= rule.quiet_from or time < rule.quiet_until
        if over_midnight
        else rule.quiet_from <= time < rule.quiet_until
    )
    if not inside:
        return now
    day = here.date() + dt.timedelta(days=1 if over_midnight and time >= rule.quiet_from else 0)
    return dt.datetime.combine(day, rule.quiet_until, here.tzinfo).astimezone(dt.UTC)
