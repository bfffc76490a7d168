"""Which rules an alert meets, what they make of it, and what a silence or quiet hours hold back."""

import datetime as dt

import pytest

from accounts.services import SERVICE
from jobs import alerts, channels, routing
from jobs.alert_models import (
    Alert,
    AlertRule,
    AlertType,
    Builtin,
    Channel,
    Delivery,
    DeliveryState,
    Severity,
    Silence,
    Told,
)
from tests.support.alerting import make_channel, make_rule, only_inbox, raise_one
from tests.support.people import T0, make_account, whole_plan

pytestmark = pytest.mark.django_db
HOUR = dt.timedelta(hours=1)
FAILED = AlertType.BACKUP_FAILED


@pytest.fixture(autouse=True)
def email_on(settings) -> None:
    settings.EMAIL_ON = True


@pytest.fixture
def account():
    account = make_account()
    only_inbox(account)
    return account


def told(alert: Alert) -> list[tuple[str, str, int]]:
    rows = Delivery.objects.filter(alert=alert).order_by("change", "channel__name")
    return [(one.channel.name, one.told, one.change) for one in rows]


@pytest.mark.rule("C21")
def test_by_default_failed_backups_go_to_the_inbox_and_to_the_email_of_owners_and_administrators():
    account = make_account()
    alert = raise_one(account, type=FAILED, severity=Severity.CRITICAL)
    deliveries = routing.route(alert.pk, now=T0)
    alert.refresh_from_db()
    assert alert.in_inbox
    channel = deliveries[0].channel
    assert [one.channel for one in deliveries] == [Channel.objects.get(account=account)]
    assert (channel.is_default, channel.settings["roles"]) == (True, ["owner", "admin"])


@pytest.mark.rule("C21")
def test_inbox_and_email_can_each_be_switched_off():
    account = make_account()
    routing.complete_rules([account], now=T0)
    AlertRule.objects.filter(builtin=Builtin.INBOX).update(enabled=False)
    AlertRule.objects.filter(builtin=Builtin.EMAIL).update(inbox=False)
    first = raise_one(account, type=FAILED, severity=Severity.CRITICAL)
    assert len(routing.route(first.pk, now=T0)) == 1
    assert not Alert.objects.get().in_inbox
    AlertRule.objects.update(enabled=True)
    Channel.objects.update(enabled=False)
    second = raise_one(account, key="other", severity=Severity.CRITICAL)
    assert routing.route(second.pk, now=T0) == []
    assert Alert.objects.get(pk=second.pk).in_inbox


def test_warnings_stand_in_the_inbox_and_are_not_mailed_by_default():
    alert = raise_one(make_account())
    assert routing.route(alert.pk, now=T0) == []
    assert Alert.objects.get().in_inbox


def test_rules_are_completed_once_however_often_somebody_asks():
    account = make_account()
    for _ in range(2):
        routing.complete_rules([account], now=T0)
    assert AlertRule.objects.count() == 2
    assert Channel.objects.count() == 1
    assert not routing.incomplete().exists()


def test_a_change_is_delivered_once_to_each_channel_however_many_rules_name_it(account):
    ops, boss = make_channel(account, "ops"), make_channel(account, "boss")
    make_rule(account, ops, boss)
    make_rule(account, ops, name="again")
    alert = raise_one(account)
    assert len(routing.route(alert.pk, now=T0)) == 2
    assert routing.route(alert.pk, now=T0) == []
    raise_one(account, now=T0 + HOUR)
    assert routing.route(alert.pk, now=T0 + HOUR) == []
    alerts.resolve(account.pk, [alert.key], now=T0 + 2 * HOUR)
    routing.route(alert.pk, now=T0 + 2 * HOUR)
    assert told(alert) == [
        ("boss", Told.RAISED, 1), ("ops", Told.RAISED, 1), ("boss", Told.RESOLVED, 2), ("ops", Told.RESOLVED, 2),
    ]  # fmt: skip


def test_worse_news_are_delivered_again(account):
    make_rule(account, make_channel(account))
    alert = raise_one(account)
    routing.route(alert.pk, now=T0)
    raise_one(account, severity=Severity.CRITICAL)
    routing.route(alert.pk, now=T0)
    assert told(alert) == [("ops", Told.RAISED, 1), ("ops", Told.RAISED, 2)]


def test_two_routers_at_once_make_each_delivery_once(account, monkeypatch):
    make_rule(account, make_channel(account))
    alert = raise_one(account)
    inner = routing._deliveries

    def late(*args):
        monkeypatch.setattr(routing, "_deliveries", inner)
        Alert.objects.update(routed=0)  # the other one read the row before this one wrote it
        routing.route(alert.pk, now=T0)
        return inner(*args)

    monkeypatch.setattr(routing, "_deliveries", late)
    routing.route(alert.pk, now=T0)
    assert told(alert) == [("ops", Told.RAISED, 1)]


@pytest.mark.parametrize(
    ("rule", "fits"),
    [
        ({}, True),
        ({"types": [AlertType.QUOTA]}, True),
        ({"types": [FAILED]}, False),
        ({"severity_min": Severity.CRITICAL}, False),
        ({"severity_min": Severity.WARNING}, True),
        ({"enabled": False}, False),
        ({"plan": "mine"}, True),
        ({"vault": "mine", "source": "mine"}, True),
        ({"plan": "other"}, False),
        ({"source": "other"}, False),
        ({"vault": "other"}, False),
    ],
    ids=str,
)
def test_a_rule_chooses_by_type_severity_source_vault_and_plan(rule, fits):
    mine, other = whole_plan(), whole_plan("other")
    only_inbox(mine.account)
    whose = {"mine": mine, "other": other}
    things = {name: whose[value] for name, value in rule.items() if value in ("mine", "other")}
    parts = {name: plan if name == "plan" else getattr(plan, name) for name, plan in things.items()}
    made = make_rule(mine.account, make_channel(mine.account), **{k: v for k, v in rule.items() if k not in parts})
    AlertRule.objects.filter(pk=made.pk).update(**parts)
    about = {"plan_id": mine.pk, "source_id": mine.source_id, "vault_id": mine.vault_id}
    alert = raise_one(mine.account, about=about)
    assert bool(routing.route(alert.pk, now=T0)) == fits


def test_who_does_not_want_to_hear_that_it_is_over_does_not(account):
    make_rule(account, make_channel(account), tell_resolved=False)
    alert = raise_one(account)
    routing.route(alert.pk, now=T0)
    alerts.resolve(account.pk, [alert.key], now=T0)
    assert routing.route(alert.pk, now=T0) == []


def test_a_channel_that_never_heard_of_trouble_does_not_hear_that_it_is_over(account):
    alert = raise_one(account)
    routing.route(alert.pk, now=T0)
    make_rule(account, make_channel(account))
    alerts.resolve(account.pk, [alert.key], now=T0)
    assert routing.route(alert.pk, now=T0) == []


def test_what_came_and_went_before_anybody_looked_is_told_both(account):
    make_rule(account, make_channel(account))
    alert = raise_one(account)
    alerts.resolve(account.pk, [alert.key], now=T0)
    routing.route(alert.pk, now=T0)
    assert told(alert) == [("ops", Told.RAISED, 1), ("ops", Told.RESOLVED, 2)]


def test_without_a_mail_server_nothing_waits_for_one(account, settings):
    settings.EMAIL_ON = False
    make_rule(account, make_channel(account))
    assert routing.route(raise_one(account).pk, now=T0) == []


def test_an_alert_about_a_channel_does_not_go_through_it(account):
    dead, other = make_channel(account, "dead"), make_channel(account, "other")
    make_rule(account, dead, other)
    alert = raise_one(account, type=AlertType.CHANNEL_FAILED, detail={"channel": str(dead.pk)})
    assert [one.channel.name for one in routing.route(alert.pk, now=T0)] == ["other"]


# --- Silence


def silence(account, **values) -> Silence:
    given = {"until": T0 + HOUR, "reason": "moving house"} | values
    return channels.silence(Silence(account=account, **given), actor=SERVICE, now=T0)


@pytest.mark.rule("C21")
def test_a_silenced_alert_stands_in_the_inbox_marked_and_is_not_delivered(account):
    make_rule(account, make_channel(account))
    silence(account, type=AlertType.QUOTA)
    alert = raise_one(account)
    assert routing.route(alert.pk, now=T0) == []
    alert.refresh_from_db()
    assert (alert.in_inbox, alert.silenced_until) == (True, T0 + HOUR)
    assert not Alert.objects.unheeded(T0).exists()
    other = raise_one(account, key="x", type=FAILED)
    assert len(routing.route(other.pk, now=T0)) == 1


def test_trouble_that_outlasts_its_silence_is_told_then_and_what_is_over_is_not(account):
    make_rule(account, make_channel(account))
    silence(account)
    lasting, over = raise_one(account, key="a"), raise_one(account, key="b")
    for alert in (lasting, over):
        routing.route(alert.pk, now=T0)
    alerts.resolve(account.pk, ["b"], now=T0)
    assert not Alert.objects.unrouted(T0 + HOUR / 2).exists()
    later = T0 + HOUR
    assert len(routing.route(lasting.pk, now=later)) == 1
    assert routing.route(over.pk, now=later) == []
    assert not Alert.objects.unrouted(later).exists()


def test_a_silence_holds_back_what_waits_already_and_its_early_end_lets_new_trouble_out(account):
    make_rule(account, make_channel(account))
    alert = raise_one(account)
    routing.route(alert.pk, now=T0)
    made = silence(account)
    assert Delivery.objects.get().state == DeliveryState.DROPPED
    assert Alert.objects.get().silenced_until == T0 + HOUR
    fresh = raise_one(account, key="fresh")
    routing.route(fresh.pk, now=T0)
    channels.end_silence(made, actor=SERVICE, now=T0 + HOUR / 2)
    assert Alert.objects.get(pk=alert.pk).silenced_until is None
    assert len(routing.route(fresh.pk, now=T0 + HOUR / 2)) == 1


def test_a_silence_ends_in_the_future_and_is_about_the_account_s_own_things(account):
    with pytest.raises(channels.SilencePast, match="in the future"):
        silence(account, until=T0)
    with pytest.raises(Exception, match="another account"):
        silence(account, plan=whole_plan("other"))


# --- Quiet hours


@pytest.mark.parametrize(
    ("hour", "waits_until"),
    [(21, None), (22, "2026-03-11 06:00"), (3, "2026-03-10 06:00"), (6, None)],
)
def test_in_quiet_hours_what_is_not_critical_waits_for_their_end(account, hour, waits_until):
    rule = make_rule(
        account, make_channel(account), quiet_from=dt.time(23), quiet_until=dt.time(7), time_zone="Europe/Berlin"
    )
    now = T0.replace(hour=hour)
    wanted = dt.datetime.fromisoformat(waits_until).replace(tzinfo=dt.UTC) if waits_until else now
    assert routing.quiet_ends_at(rule, now=now) == wanted
    warning = raise_one(account, now=now)
    assert bool(routing.route(warning.pk, now=now)) == (waits_until is None)
    assert Delivery.objects.get().next_at == wanted
    critical = raise_one(account, now=now, key="x", severity=Severity.CRITICAL)
    assert len(routing.route(critical.pk, now=now)) == 1


def test_quiet_hours_have_a_beginning_and_an_end(account):
    with pytest.raises(Exception, match="give both, or none"):
        make_rule(account, quiet_from=dt.time(22))


# --- What people do


def test_an_acknowledged_alert_counts_no_more_and_stays_open(account):
    alert = raise_one(account)
    routing.route(alert.pk, now=T0)
    assert Alert.objects.unheeded(T0).count() == 1
    for _ in range(2):
        channels.acknowledge(alert, actor=SERVICE, now=T0)
    assert (alert.acknowledged_by, alert.state) == ("service", "open")
    assert not Alert.objects.unheeded(T0).exists()
    alerts.resolve(account.pk, [alert.key], now=T0)
    alert.refresh_from_db()
    with pytest.raises(channels.AlertOver):
        channels.acknowledge(alert, actor=SERVICE, now=T0)


def test_what_every_account_has_is_not_deleted(account):
    things: list[AlertRule | Channel] = [*AlertRule.objects.all(), *Channel.objects.all()]
    for thing in things:
        with pytest.raises(channels.BuiltinKept, match="Switch it off"):
            channels.delete(thing, actor=SERVICE, now=T0)
    rule = make_rule(account, make_channel(account))
    channels.delete(rule.channels.get(), actor=SERVICE, now=T0)
    channels.delete(rule, actor=SERVICE, now=T0)
    assert AlertRule.objects.count() == 2


def test_a_rule_names_channels_and_things_of_its_own_account(account):
    other = make_account("other")
    with pytest.raises(Exception, match="belong to the rule's account"):
        make_rule(account, make_channel(other))
    with pytest.raises(Exception, match="another account"):
        make_rule(account, plan=whole_plan("third"))
    with pytest.raises(Exception, match="Give a list of these"):
        make_rule(account, types=["nonsense"])
