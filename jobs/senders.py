"""How a delivery leaves: by e-mail, as a webhook, through Apprise. Called in a worker's task, never in a job's step."""

import base64
import binascii
import datetime as dt
import hashlib
import hmac
import json
import smtplib
import subprocess
import sys
from collections.abc import Mapping
from typing import Any, Protocol
from urllib.parse import urlsplit

from django.conf import settings
from django.core.mail import EmailMessage, get_connection
from django.urls import reverse

from accounts import secrets
from accounts.models import User
from jobs.alert_models import Alert, Channel, ChannelKind, Delivery, Severity, Told

VERSION = 1
EMAIL_OFF = "E-mail is off until whoever runs this installation sets EMAIL_URL"
# The program that sends webhooks and chat messages is ended after so long.
OUTGOING_S = 30.0


class SendFailed(Exception):
    """It was not delivered; `transient` when another attempt may help. The text is for people."""

    def __init__(self, text: str, *, transient: bool) -> None:
        super().__init__(text)
        self.transient = transient


class Sender(Protocol):
    """Sends one delivery. Raises SendFailed."""

    def __call__(self, delivery: Delivery, *, now: dt.datetime) -> None: ...


def title_of(delivery: Delivery) -> str:
    """Return the line that a message begins with."""
    if delivery.alert is None:
        return f"Test of the channel {delivery.channel}"
    if delivery.told == Told.RESOLVED:
        return f"Over: {delivery.alert.title}"
    return f"{delivery.alert.get_severity_display()}: {delivery.alert.title}"


def text_of(delivery: Delivery) -> str:
    """Return what a message says."""
    alert, channel = delivery.alert, delivery.channel
    if alert is None:
        return (
            f"This channel of the account {channel.account} works. Alerts that its rules send here will look like this."
        )
    times = f", {alert.count} times" if alert.count > 1 else ""
    lines = [alert.text, ""] if alert.text and delivery.told != Told.RESOLVED else []
    lines += [f"Account: {channel.account}", f"Since: {_moment(alert.first_at)}{times}"]
    if delivery.told == Told.RESOLVED and alert.resolved_at:
        lines.append(f"Over since: {_moment(alert.resolved_at)}")
    if alert.job_id:
        lines.append(f"Job: {settings.SITE_URL}{reverse('admin:jobs_job_change', args=[alert.job_id])}")
    return "\n".join([*lines, f"Alert: {_address(alert)}"])


def _moment(moment: dt.datetime) -> str:
    return f"{moment.astimezone(dt.UTC):%Y-%m-%d %H:%M} UTC"


def _address(alert: Alert) -> str:
    return f"{settings.SITE_URL}{reverse('admin:jobs_alert_change', args=[alert.pk])}"


def is_email_on() -> bool:
    """Say whether there is a mail server to hand messages to."""
    return bool(settings.EMAIL_ON)


def recipients(channel: Channel) -> list[str]:
    """Return whom an e-mail channel writes to now: members of its roles who have an address, and its own addresses."""
    people = User.objects.filter(
        memberships__account=channel.account_id, memberships__role__in=channel.settings.get("roles", []), is_active=True
    )
    found = [*people.exclude(email="").values_list("email", flat=True), *channel.settings.get("addresses", [])]
    return sorted(set(found))


def send_email(delivery: Delivery, *, now: dt.datetime) -> None:
    """Write to all recipients at once. The Message-ID is the delivery's: a second one of it can be told apart."""
    if not is_email_on():
        raise SendFailed(EMAIL_OFF, transient=False)
    to = recipients(delivery.channel)
    if not to:
        raise SendFailed("Nobody to write to: no member of these roles has an e-mail address", transient=False)
    host = urlsplit(settings.SITE_URL).hostname or "localhost"
    headers = {"Message-ID": f"<{delivery.pk}@{host}>", "Auto-Submitted": "auto-generated"}
    if delivery.alert_id:
        headers["References"] = f"<{delivery.alert_id}@{host}>"  # raised and over stand together
    subject = " ".join(f"[Backupsite] {title_of(delivery)}".split())
    message = EmailMessage(subject, text_of(delivery), settings.DEFAULT_FROM_EMAIL, to, headers=headers)
    message.connection = get_connection()
    try:
        message.send()
    except (smtplib.SMTPException, OSError) as error:
        raise SendFailed(f"The mail server did not take it: {error}"[:500], transient=True) from error


def body_of(delivery: Delivery, *, now: dt.datetime) -> dict[str, Any]:
    """Return what a webhook carries (docs/operations.md)."""
    alert, account = delivery.alert, delivery.channel.account
    return {
        "version": VERSION,
        "id": str(delivery.pk),
        "type": "test" if alert is None else f"alert.{delivery.told}",
        "sent_at": now.isoformat(),
        "account": {"id": str(account.pk), "name": account.name},
        "alert": None if alert is None else _shape(alert),
    }


def _shape(alert: Alert) -> dict[str, Any]:
    times = {name: getattr(alert, name) for name in ("first_at", "last_at", "resolved_at")}
    return {
        "id": str(alert.pk),
        "type": alert.type,
        "severity": Severity(alert.severity).name.lower(),
        "state": alert.state,
        "title": alert.title,
        "text": alert.text,
        "count": alert.count,
        **{name: moment.isoformat() if moment else None for name, moment in times.items()},
        "source": {"id": str(alert.source.pk), "name": alert.source.name} if alert.source else None,
        "vault": {"id": str(alert.vault.pk), "name": alert.vault.name} if alert.vault else None,
        "plan": str(alert.plan_id) if alert.plan_id else None,
        "job": str(alert.job_id) if alert.job_id else None,
        "url": _address(alert),
    }


def signature(secret: str, *, name: str, timestamp: int, body: str) -> str:
    """Return a webhook's signature as standardwebhooks.com says; a secret that begins with whsec_ is base64."""
    try:
        key = base64.b64decode(secret.removeprefix("whsec_")) if secret.startswith("whsec_") else secret.encode()
    except binascii.Error:
        key = secret.encode()
    digest = hmac.new(key, f"{name}.{timestamp}.{body}".encode(), hashlib.sha256).digest()
    return f"v1,{base64.b64encode(digest).decode()}"


def _kept(channel: Channel) -> dict[str, Any]:
    try:
        return secrets.unseal(channel.secrets, context=channel.secret_context)
    except secrets.SecretUnreadable as error:
        raise SendFailed(str(error), transient=False) from error


def send_webhook(delivery: Delivery, *, now: dt.datetime) -> None:
    """Post the alert as JSON, signed. The receiver sees a second one of the same delivery by its `webhook-id`."""
    kept = _kept(delivery.channel)
    body = json.dumps(body_of(delivery, now=now))
    name, timestamp = str(delivery.pk), int(now.timestamp())
    headers = {
        "content-type": "application/json",
        "user-agent": "Backupsite",
        "webhook-id": name,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": signature(kept["secret"], name=name, timestamp=timestamp, body=body),
    }
    outgoing({"do": "webhook", "url": kept["url"], "headers": headers, "body": body})


def send_apprise(delivery: Delivery, *, now: dt.datetime) -> None:
    """Send a title and a text to whatever the address means."""
    severity = Severity(delivery.alert.severity).name.lower() if delivery.alert else "info"
    order = {
        "do": "apprise",
        "url": _kept(delivery.channel)["url"],
        "title": title_of(delivery),
        "body": text_of(delivery),
        "severity": "resolved" if delivery.told == Told.RESOLVED else severity,
    }
    outgoing(order)


def outgoing(order: dict[str, Any], *, timeout_s: float = OUTGOING_S) -> dict[str, Any]:
    """Let the program jobs.outgoing carry an order out; return the outcome. Raises SendFailed.

    Secrets go through its standard input: everybody on the machine can read a command line.
    """
    text = json.dumps(order | {"networks": [str(network) for network in settings.SOURCE_NETWORKS]})
    argv = [sys.executable, "-X", "utf8", "-m", "jobs.outgoing"]
    try:
        done = subprocess.run(
            argv, input=text.encode(), capture_output=True, timeout=timeout_s, cwd=settings.BASE_DIR, env={}, check=True
        )
        outcome: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired as error:
        raise SendFailed(f"No answer within {timeout_s:g} s", transient=True) from error
    except (subprocess.CalledProcessError, OSError, IndexError, ValueError) as error:
        raise SendFailed(f"The program that sends did not end well ({type(error).__name__})", transient=True) from error
    if outcome["error"]:
        raise SendFailed(_sentence(outcome["error"]), transient=not outcome.get("permanent"))
    return outcome


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


SENDERS: Mapping[str, Sender] = {
    ChannelKind.EMAIL: send_email,
    ChannelKind.WEBHOOK: send_webhook,
    ChannelKind.APPRISE: send_apprise,
}
