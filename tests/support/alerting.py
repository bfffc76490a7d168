"""Alerts, channels and a sender that only notes, for tests."""

import datetime as dt
from dataclasses import dataclass, field
from typing import Any

from accounts.models import Account
from accounts.services import SERVICE
from jobs import alerts, channels, routing
from jobs.alert_models import Alert, AlertRule, AlertType, Builtin, Channel, ChannelKind, Delivery, Severity
from jobs.senders import SendFailed, title_of
from tests.support.people import T0


@dataclass
class FakeSender:
    """Stands in for every way out. `fails` are the errors of the next sends."""

    fails: list[Exception] = field(default_factory=list)
    sent: list[tuple[str, str]] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)

    def __call__(self, delivery: Delivery, *, now: dt.datetime) -> None:
        self.ids.append(str(delivery.pk))
        if self.fails:
            raise self.fails.pop(0)
        self.sent.append((delivery.channel.name, title_of(delivery)))

    def everywhere(self) -> dict[str, "FakeSender"]:
        return dict.fromkeys(ChannelKind.values, self)


def away(text: str = "the server answered 500") -> SendFailed:
    return SendFailed(text, transient=True)


def make_channel(account: Account, name: str = "ops", **values: object) -> Channel:
    """Make an e-mail channel to an address of its own."""
    settings = {"roles": [], "addresses": [f"{name}@example.org"]}
    channel = Channel(account=account, name=name, kind=ChannelKind.EMAIL, settings=settings, **values)
    return channels.save_channel(channel, actor=SERVICE, now=T0)


def make_rule(account: Account, *to: Channel, **values: object) -> AlertRule:
    """Make a rule that sends everything to these channels."""
    rule = AlertRule(account=account, **({"name": "all", "severity_min": Severity.INFO} | values))
    return channels.save_rule(rule, list(to), actor=SERVICE, now=T0)


def only_inbox(account: Account) -> None:
    """Give the account its rules, and switch the one off that sends e-mail."""
    routing.complete_rules([account], now=T0)
    AlertRule.objects.filter(account=account, builtin=Builtin.EMAIL).update(enabled=False)


def trouble(key: str = "quota/vault:1", severity: Severity = Severity.WARNING, **values: Any) -> alerts.Trouble:
    given: dict[str, Any] = {"type": AlertType.QUOTA, "title": "The vault is nearly full"} | values
    return alerts.Trouble(key=key, severity=severity, **given)


def raise_one(account: Account, *, now: dt.datetime = T0, **values: Any) -> Alert:
    return alerts.raise_(account.pk, trouble(**values), now=now)
