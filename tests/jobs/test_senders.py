"""What leaves the house: real mail to a real server, signed webhooks, and nothing to internal addresses."""

import base64
import datetime as dt
import hashlib
import hmac
import json
from ipaddress import ip_network

import pytest
from django.core.exceptions import ValidationError

from accounts.models import Event, Role
from accounts.services import SERVICE
from jobs import channels, delivery, routing, senders
from jobs.alert_models import Alert, AlertType, Channel, ChannelKind, Delivery, DeliveryState, Severity
from policies.addresses import AddressRefused
from tests.support.alerting import make_channel, make_rule, only_inbox, raise_one
from tests.support.mail import mail_server, receiver
from tests.support.people import T0, join, make_account, whole_plan

pytestmark = pytest.mark.django_db
SECRET = "a-secret-of-24-characters"
LOOPBACK = [ip_network("127.0.0.0/8")]


@pytest.fixture
def account():
    account = make_account()
    only_inbox(account)
    return account


def webhook(account, url: str, secret: str = SECRET, **values) -> Channel:
    channel = Channel(account=account, name="hook", kind=ChannelKind.WEBHOOK, **values)
    return channels.save_channel(channel, {"url": url, "secret": secret}, actor=SERVICE, now=T0)


def chat(account, url: str) -> Channel:
    channel = Channel(account=account, name="chat", kind=ChannelKind.APPRISE)
    return channels.save_channel(channel, {"url": url}, actor=SERVICE, now=T0)


def routed(account, *to: Channel, **values) -> Delivery:
    make_rule(account, *to)
    alert = raise_one(account, **values)
    return routing.route(alert.pk, now=T0)[0]


def send(one: Delivery, now: dt.datetime = T0) -> Delivery:
    return delivery.deliver(one.pk, clock=lambda: now)


@pytest.mark.rule("C21")
def test_a_failed_backup_reaches_owners_and_administrators_by_mail(settings):
    plan = whole_plan()
    for name, role in (("ann", Role.OWNER), ("bob", Role.ADMIN), ("eve", Role.VIEWER)):
        user = join(plan.account, name, role)
        user.email = f"{name}@example.org"
        user.save()
    mallory = join(make_account("other"), "mallory")
    mallory.email = "mallory@example.org"
    mallory.save()
    with mail_server() as (port, took):
        settings.EMAIL_ON, settings.EMAIL_PORT, settings.EMAIL_HOST = True, port, "127.0.0.1"
        settings.EMAIL_BACKEND = "django.core.mail.backends.smtp.EmailBackend"
        settings.SITE_URL = "https://backup.example.org"
        about = {"plan_id": plan.pk, "source_id": plan.source_id, "vault_id": plan.vault_id}
        alert = raise_one(
            plan.account, type=AlertType.BACKUP_FAILED, severity=Severity.CRITICAL, about=about,
            title="The backup of web1 to vault failed", text="The disk is gone.",
        )  # fmt: skip
        (one,) = routing.route(alert.pk, now=T0)
        assert send(one).state == DeliveryState.SENT
    ((recipients, message),) = took
    assert sorted(recipients) == ["ann@example.org", "bob@example.org"]
    assert message["Subject"] == "[Backupsite] Critical: The backup of web1 to vault failed"
    assert message["Message-ID"] == f"<{one.pk}@backup.example.org>"
    assert message["Auto-Submitted"] == "auto-generated"
    text = message.get_payload()
    for shown in ("The disk is gone.", "Account: acme", f"https://backup.example.org/admin/jobs/alert/{alert.pk}/"):
        assert shown in text


def test_a_mail_server_that_is_away_is_tried_again(account, settings):
    settings.EMAIL_ON, settings.EMAIL_PORT, settings.EMAIL_HOST = True, 9, "127.0.0.1"
    settings.EMAIL_BACKEND = "django.core.mail.backends.smtp.EmailBackend"
    found = send(routed(account, make_channel(account)))
    assert (found.state, "The mail server did not take it" in found.error) == (DeliveryState.QUEUED, True)


def test_mail_needs_a_server_and_somebody_to_write_to(account, settings):
    settings.EMAIL_ON = True
    one = routed(account, Channel.objects.get(account=account))
    found = send(one)
    assert (found.state, "Nobody to write to" in found.error) == (DeliveryState.GIVEN_UP, True)
    settings.EMAIL_ON = False
    found = send(channels.send_test(make_channel(account), actor=SERVICE, now=T0))
    assert (found.state, found.error) == (DeliveryState.GIVEN_UP, senders.EMAIL_OFF)


def test_a_name_with_a_line_break_makes_no_header(account, settings, mailoutbox):
    settings.EMAIL_ON = True
    send(routed(account, make_channel(account), title="web1\nBcc: all@example.org"))
    assert mailoutbox[0].subject == "[Backupsite] Warning: web1 Bcc: all@example.org"


@pytest.mark.rule("C21")
def test_a_webhook_carries_a_versioned_body_an_id_and_a_signature_and_is_tried_again(account, settings):
    settings.SOURCE_NETWORKS = LOOPBACK
    with receiver() as server:
        server.answers = [500]
        one = routed(account, webhook(account, f"{server.url}/hooks/1?team=a"))
        failed = send(one)
        assert (failed.state, failed.error) == (DeliveryState.QUEUED, "The server answered 500 Internal Server Error")
        assert send(one, failed.next_at).state == DeliveryState.SENT
    (_, first, _), (path, headers, body) = server.took
    assert path == "/hooks/1?team=a"
    assert first["webhook-id"] == headers["webhook-id"] == str(one.pk)
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.{body.decode()}".encode()
    digest = base64.b64encode(hmac.new(SECRET.encode(), signed, hashlib.sha256).digest()).decode()
    assert headers["webhook-signature"] == f"v1,{digest}"
    told = json.loads(body)
    assert (told["version"], told["type"], told["account"]["name"]) == (1, "alert.raised", "acme")
    assert (told["alert"]["severity"], told["alert"]["title"]) == ("warning", "The vault is nearly full")
    assert told["alert"]["id"] == str(Alert.objects.get().pk)


def test_a_chat_address_gets_title_and_text_and_no_redirect_leads_it_inside(account, settings):
    settings.SOURCE_NETWORKS = LOOPBACK
    with receiver() as server, receiver() as inside:
        channel = chat(account, server.url.replace("http://", "json://") + "/token-in-here")
        assert channel.shown == "JSON"
        assert send(routed(account, channel, text="Make room.")).state == DeliveryState.SENT
        told = json.loads(server.took[0][2])
        assert (told["title"], told["type"]) == ("Warning: The vault is nearly full", "warning")
        assert told["message"].startswith("Make room.")
        server.answers = [503, inside.url.replace("127.0.0.1", "[::1]")]
        refused = send(channels.send_test(channel, actor=SERVICE, now=T0))
        led = send(channels.send_test(channel, actor=SERVICE, now=T0))
        assert inside.took == []
    assert refused.state == led.state == DeliveryState.GIVEN_UP
    assert "503" in refused.error
    assert "token-in-here" not in refused.error
    assert "::1 is an internal address" in led.error


def test_a_webhook_follows_no_redirect(account, settings):
    settings.SOURCE_NETWORKS = LOOPBACK
    with receiver() as inside, receiver() as server:
        server.answers = [inside.url]
        found = send(channels.send_test(webhook(account, server.url), actor=SERVICE, now=T0))
        assert "307" in found.error
        assert inside.took == []


@pytest.mark.parametrize("url", ["http://127.0.0.1/x", "https://169.254.169.254/latest", "http://[::1]:8000/"])
def test_a_webhook_to_an_internal_address_is_refused(account, url):
    with pytest.raises(AddressRefused, match="internal address"):
        webhook(account, url)
    assert not Channel.objects.filter(kind=ChannelKind.WEBHOOK).exists()


def test_a_name_that_leads_inside_later_is_refused_when_it_is_sent(account, settings):
    settings.SOURCE_NETWORKS = LOOPBACK
    with receiver() as server:
        one = routed(account, webhook(account, server.url))
        settings.SOURCE_NETWORKS = []
        found = send(one)
        assert (found.state, "127.0.0.1 is an internal address" in found.error) == (DeliveryState.GIVEN_UP, True)
        assert server.took == []


@pytest.mark.parametrize(
    ("order", "error"),
    [
        ({"do": "check", "url": "syslog://"}, "own machine"),
        ({"do": "check", "url": "nonsense://x"}, "no address that Apprise knows"),
    ],
    ids=["local", "unknown"],
)
def test_the_program_that_sends_reaches_nothing_on_this_machine(order, error, settings):
    settings.SOURCE_NETWORKS = []
    with pytest.raises(senders.SendFailed, match=error) as refused:
        senders.outgoing(order)
    assert not refused.value.transient


def test_a_receiver_that_never_answers_costs_its_time_and_no_more():
    with pytest.raises(senders.SendFailed, match=r"No answer within 0\.01 s") as failed:
        senders.outgoing({"do": "check", "url": "x"}, timeout_s=0.01)
    assert failed.value.transient


@pytest.mark.parametrize(
    ("given", "wrong"),
    [
        ({"url": "ftp://example.org", "secret": SECRET}, "https:// or http://"),
        ({"url": "https://", "secret": SECRET}, "https:// or http://"),
        ({"url": "https://example.org:99999/", "secret": SECRET}, "no web address"),
        ({"url": "https://user:pass@example.org/", "secret": SECRET}, "without a user's name"),
        ({"url": "https://example.org/a b", "secret": SECRET}, "others as %XX"),
        ({"url": "https://example.org/x", "secret": "short"}, "at least 16"),
        ({}, "https:// or http://"),
    ],
)
def test_a_webhook_that_can_t_work_is_refused_with_what_to_do(account, given, wrong):
    channel = Channel(account=account, name="hook", kind=ChannelKind.WEBHOOK)
    with pytest.raises(ValidationError, match=wrong):
        channels.save_channel(channel, given, actor=SERVICE, now=T0)


@pytest.mark.parametrize(
    ("settings_", "wrong"),
    [
        ({"roles": ["boss"]}, "list of these: owner"),
        ({"addresses": "ann@example.org"}, "list of e-mail addresses"),
        ({"addresses": ["ann"]}, "no e-mail address"),
        ({}, "Say whom to write to"),
    ],
)
def test_an_email_channel_that_can_t_work_is_refused(account, settings_, wrong):
    channel = Channel(account=account, name="m", kind=ChannelKind.EMAIL, settings=settings_)
    with pytest.raises(ValidationError, match=wrong):
        channels.save_channel(channel, actor=SERVICE, now=T0)


def test_a_chat_address_needs_a_scheme_and_the_kind_of_a_channel_stays(account):
    with pytest.raises(ValidationError, match="slack://"):
        chat(account, "slack")
    channel = make_channel(account)
    channel.kind = ChannelKind.WEBHOOK
    with pytest.raises(ValidationError, match="never changes"):
        channels.save_channel(channel, {}, actor=SERVICE, now=T0)


def test_secrets_are_sealed_never_in_the_audit_trail_and_stay_when_none_are_given(account):
    url = "https://no-such-host.invalid/token-in-here"
    channel = webhook(account, url)
    assert channel.shown == "https://no-such-host.invalid/…"
    channel.name = "renamed"
    channels.save_channel(channel, actor=SERVICE, now=T0)
    stored = Channel.objects.get(pk=channel.pk)
    assert senders._kept(stored) == {"url": url, "secret": SECRET}
    for text in (stored.secrets, *map(str, Event.objects.values_list("detail", flat=True))):
        assert "token-in-here" not in text
        assert SECRET not in text


def test_secrets_of_a_lost_key_are_not_sent_for_ever(account, settings):
    channel = webhook(account, "https://no-such-host.invalid/x")
    settings.FIELD_KEYS = ["11" * 32]
    found = send(routed(account, channel))
    assert (found.state, "cannot be decrypted" in found.error) == (DeliveryState.GIVEN_UP, True)


def test_what_is_worth_knowing_about_a_channel_is_told(account, settings):
    def note() -> str:
        return channels.note(channel, reached=channels.addressed([channel]))

    settings.EMAIL_ON = False
    channel = Channel.objects.get(account=account)
    assert note() == senders.EMAIL_OFF
    settings.EMAIL_ON = True
    assert "Nobody to write to" in note()
    user = join(account, "ann", Role.OWNER)
    user.email = "ann@example.org"
    user.save()
    assert note() == ""
    assert senders.recipients(channel) == ["ann@example.org"]
    channel.failures = 2
    assert note() == "Failing: 2 attempts in a row"
    channel.enabled = False
    assert note() == "Switched off"
