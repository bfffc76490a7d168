"""Each delivery leaves once, is tried again when that failed, and holds nobody else up."""

import datetime as dt
from typing import Any

import pytest
from celery import current_app
from django.utils import timezone
from kombu.exceptions import OperationalError

from accounts.services import SERVICE
from jobs import alerts, channels, delivery, doorbell, routing, senders, tasks
from jobs.alert_models import Alert, AlertType, Channel, Delivery, DeliveryState, Severity
from jobs.senders import SendFailed
from tests.support.alerting import FakeSender, away, make_channel, make_rule, only_inbox, raise_one
from tests.support.people import T0, make_account

pytestmark = pytest.mark.django_db
SECOND, HOUR, DAY = dt.timedelta(seconds=1), dt.timedelta(hours=1), dt.timedelta(days=1)


@pytest.fixture(autouse=True)
def email_on(settings, monkeypatch) -> None:
    settings.EMAIL_ON = True
    monkeypatch.setattr(doorbell, "_away_until_s", 0.0)


@pytest.fixture
def account():
    account = make_account()
    only_inbox(account)
    return account


@pytest.fixture
def sender() -> FakeSender:
    return FakeSender()


def queued(account, *names: str, key: str = "quota/vault:1") -> list[Delivery]:
    """Make a rule with channels of these names, raise an alert, and return its deliveries in the names' order."""
    if not Channel.objects.filter(name=names[0]).exists():
        make_rule(account, *(make_channel(account, name) for name in names))
    alert = raise_one(account, key=key)
    routing.route(alert.pk, now=T0)
    return [Delivery.objects.get(alert=alert, channel__name=name) for name in names]


def send(one: Delivery, sender: FakeSender, now: dt.datetime = T0) -> Delivery:
    return delivery.deliver(one.pk, clock=lambda: now, using=sender.everywhere())


@pytest.mark.rule("C21")
def test_a_delivery_is_sent_once_however_often_it_is_rung_for(account, sender):
    (one,) = queued(account, "ops")
    assert send(one, sender).state == DeliveryState.SENT
    with pytest.raises(delivery.NotClaimable):
        send(one, sender)
    assert sender.sent == [("ops", "Warning: The vault is nearly full")]


def test_two_workers_that_come_at_once_send_it_once(account, sender):
    (one,) = queued(account, "ops")
    found = delivery.claim(one.pk, now=T0)
    with pytest.raises(delivery.NotClaimable):
        send(one, sender)
    assert (found.attempt, sender.sent) == (1, [])


def test_a_sender_that_was_killed_is_replaced_when_its_lease_is_over_and_counts_no_more(account, sender):
    (one,) = queued(account, "ops")
    killed = delivery.claim(one.pk, now=T0)
    with pytest.raises(delivery.NotClaimable):
        send(one, sender, T0 + delivery.LEASE - SECOND)
    assert send(one, sender, T0 + delivery.LEASE).state == DeliveryState.SENT
    delivery._failed(killed, away(), now=T0 + delivery.LEASE)
    assert Delivery.objects.get().state == DeliveryState.SENT
    assert sender.ids == [str(one.pk)]


@pytest.mark.rule("C21")
def test_what_failed_is_tried_again_under_the_same_id_after_growing_waits(account, sender):
    (one,) = queued(account, "ops")
    sender.fails = [away(), away("no answer")]
    first = send(one, sender)
    assert (first.state, first.error, first.next_at) == (
        DeliveryState.QUEUED, "the server answered 500", T0 + 15 * SECOND,
    )  # fmt: skip
    with pytest.raises(delivery.NotClaimable):
        send(one, sender, T0 + 14 * SECOND)
    second = send(one, sender, T0 + 15 * SECOND)
    assert second.next_at == T0 + 75 * SECOND
    assert send(one, sender, T0 + 75 * SECOND).state == DeliveryState.SENT
    assert sender.ids == [str(one.pk)] * 3
    assert (Channel.objects.get(name="ops").failures, Channel.objects.get(name="ops").retry_at) == (0, None)


def test_after_a_day_it_is_given_up_and_the_inbox_says_so_until_the_channel_works(account, sender):
    (one,) = queued(account, "ops")
    sender.fails = [away(), away("still 500")]
    send(one, sender)
    assert send(one, sender, T0 + DAY).state == DeliveryState.GIVEN_UP
    alert = Alert.objects.get(type=AlertType.CHANNEL_FAILED)
    assert alert.title == "An alert could not be delivered through ops"
    assert "still 500" in alert.text
    routing.route(alert.pk, now=T0 + DAY)
    assert Alert.objects.get(pk=alert.pk).in_inbox
    channel = Channel.objects.get(name="ops")
    send(channels.send_test(channel, actor=SERVICE, now=T0 + DAY), sender, T0 + DAY)
    assert Alert.objects.get(pk=alert.pk).state == "resolved"


def test_what_trying_again_cannot_mend_is_given_up_at_once(account, sender):
    (one,) = queued(account, "ops")
    sender.fails = [SendFailed("10.0.0.1 is an internal address", transient=False)]
    assert send(one, sender).state == DeliveryState.GIVEN_UP
    assert Alert.objects.filter(type=AlertType.CHANNEL_FAILED).exists()


def test_an_error_of_the_program_is_tried_again_and_its_text_is_not_shown(account, sender):
    (one,) = queued(account, "ops")
    sender.fails = [ValueError("secret in here")]
    found = send(one, sender)
    assert (found.state, "secret" in found.error, "ValueError" in found.error) == (DeliveryState.QUEUED, False, True)


def test_a_dead_channel_is_tried_by_one_at_a_time_and_holds_up_no_other(account, sender):
    dead, alive = queued(account, "dead", "alive")
    more, _ = queued(account, "dead", "alive", key="second")
    sender.fails = [away()]
    send(dead, sender)
    with pytest.raises(delivery.NotClaimable):
        send(more, sender)
    assert send(alive, sender).state == DeliveryState.SENT
    later = T0 + 20 * SECOND
    probe = delivery.claim(more.pk, now=later)
    with pytest.raises(delivery.NotClaimable):
        send(dead, sender, later)
    delivery._sent(probe, now=later)
    assert send(dead, sender, later).state == DeliveryState.SENT


def test_what_a_channel_was_to_hear_first_comes_first(account, sender):
    (raised,) = queued(account, "ops")
    assert raised.alert
    alerts.resolve(account.pk, [raised.alert.key], now=T0)
    routing.route(raised.alert.pk, now=T0 + SECOND)
    over = Delivery.objects.get(told="resolved")
    with pytest.raises(delivery.NotClaimable):
        send(over, sender, T0 + SECOND)
    send(raised, sender, T0 + SECOND)
    send(over, sender, T0 + SECOND)
    assert [title for _, title in sender.sent] == [
        "Warning: The vault is nearly full", "Over: The vault is nearly full",
    ]  # fmt: skip


def test_what_was_silenced_or_switched_off_meanwhile_is_dropped(account, sender):
    one, other = queued(account, "ops", "boss")
    Channel.objects.filter(name="ops").update(enabled=False)
    assert send(one, sender).state == DeliveryState.DROPPED
    account.silences.create(until=T0 + HOUR, reason="r", created_by="ann", created_at=T0)
    dropped = send(other, sender)
    assert (dropped.state, dropped.error) == (DeliveryState.DROPPED, "Silenced until 2026-03-10 13:00 UTC")
    assert sender.sent == []


def test_a_test_is_tried_once_and_tells_the_result(account, sender):
    channel = make_channel(account)
    Channel.objects.update(failures=3, retry_at=T0 + HOUR)
    channel.refresh_from_db()
    sender.fails = [away()]
    failed = send(channels.send_test(channel, actor=SERVICE, now=T0), sender)
    assert (failed.state, failed.error) == (DeliveryState.GIVEN_UP, "the server answered 500")
    assert not Alert.objects.exists()
    worked = send(channels.send_test(channel, actor=SERVICE, now=T0), sender)
    assert worked.state == DeliveryState.SENT
    assert Channel.objects.get(pk=channel.pk).failures == 0


def test_the_sweep_rings_for_what_waits_once_in_a_while_and_for_a_failing_channel_once(account):
    queued(account, "ops", "boss")
    queued(account, "ops", "boss", key="second")

    def waiting(*, rung_before: dt.datetime = T0 - HOUR) -> int:
        return len(list(delivery.waiting(now=T0, rung_before=rung_before, rows_max=10)))

    assert waiting() == 4
    Channel.objects.filter(name="ops").update(failures=1, retry_at=T0)
    assert waiting() == 3
    Delivery.objects.update(rung_at=T0)
    assert waiting() == 0
    assert waiting(rung_before=T0) == 3


def test_without_a_broker_nothing_is_lost_and_the_next_sweep_sends_it(
    account, sender, monkeypatch, django_capture_on_commit_callbacks
):
    def no_broker(*args, **options):
        raise OperationalError("connection refused")

    monkeypatch.setattr(current_app, "send_task", no_broker)
    make_rule(account, make_channel(account))
    with django_capture_on_commit_callbacks(execute=True):
        alert = raise_one(account, severity=Severity.CRITICAL)
    assert Alert.objects.get(pk=alert.pk).routed == 0
    monkeypatch.setattr(doorbell, "_away_until_s", 0.0)
    rung: list[str] = []
    monkeypatch.setattr(current_app, "send_task", lambda task, args, **options: rung.append(args[0]))
    monkeypatch.setattr(timezone, "now", lambda: T0 + SECOND)
    with django_capture_on_commit_callbacks(execute=True):
        tasks.sweep_alerts()
    one = Delivery.objects.get()
    assert (rung, one.rung_at) == ([str(one.pk)], T0 + SECOND)
    assert send(one, sender, T0 + SECOND).state == DeliveryState.SENT


def test_the_tasks_route_and_send(account, monkeypatch, django_capture_on_commit_callbacks, sender):
    monkeypatch.setattr(senders, "SENDERS", sender.everywhere())
    monkeypatch.setattr(timezone, "now", lambda: T0)
    run: dict[str, Any] = {doorbell.ROUTE_ALERT: tasks.route_alert, doorbell.SEND_DELIVERY: tasks.send_delivery}
    monkeypatch.setattr(current_app, "send_task", lambda task, args, **options: run[task](*args))
    make_rule(account, make_channel(account))
    with django_capture_on_commit_callbacks(execute=True):
        raise_one(account)
    assert sender.sent == [("ops", "Warning: The vault is nearly full")]
    tasks.send_delivery(str(Delivery.objects.get().pk))
    assert len(sender.sent) == 1


def test_a_broker_that_is_away_is_asked_once_in_a_while(account, monkeypatch, django_capture_on_commit_callbacks):
    asked: list[str] = []

    def no_broker(task, **options):
        asked.append(task)
        raise OperationalError("connection refused")

    monkeypatch.setattr(current_app, "send_task", no_broker)
    with django_capture_on_commit_callbacks(execute=True):
        for number in range(5):
            raise_one(account, key=str(number))
    assert asked == [doorbell.ROUTE_ALERT]
