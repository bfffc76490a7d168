"""The inbox and its buttons, the number in the sidebar, and the forms of rules, channels and silences."""

import pytest
from django.test import Client
from django.utils import timezone

from accounts.models import User
from jobs import routing, senders
from jobs.alert_models import Alert, AlertRule, AlertType, Channel, Delivery, Severity, Silence, Watch
from jobs.senders import EMAIL_OFF
from tests.support.alerting import make_rule, raise_one
from tests.support.console import page, press
from tests.support.people import whole_plan

pytestmark = pytest.mark.django_db
SECRET = "a-secret-of-24-characters"


@pytest.fixture
def plan():
    return whole_plan()


@pytest.fixture
def console() -> Client:
    client = Client()
    client.force_login(User.objects.create_superuser("root"))
    return client


def told(plan, key: str = "a", **values) -> Alert:
    """Raise an alert now, and let the rules see it."""
    about = {"plan_id": plan.pk, "source_id": plan.source_id, "vault_id": plan.vault_id}
    values = {"type": AlertType.BACKUP_FAILED, "severity": Severity.CRITICAL, "title": "It failed"} | values
    alert = raise_one(plan.account, key=key, now=timezone.now(), about=about, **values)
    routing.route(alert.pk, now=timezone.now())
    return alert


def shown(console: Client, model: str, what: str = "changelist", *args: object) -> str:
    return console.get(page(model, what, *args)).content.decode()


@pytest.mark.rule("C21")
def test_a_failed_backup_stands_in_the_inbox_and_counts_in_the_sidebar_until_somebody_heeds_it(plan, console):
    alert = told(plan)
    text = shown(console, "jobs_alert")
    assert "It failed" in text
    assert "Open" in text
    assert Alert.objects.unheeded(timezone.now()).count() == 1
    assert "ml-2 px-1 relative" in text
    press(console, "jobs_alert", "acknowledge", alert.pk)
    text = shown(console, "jobs_alert")
    assert "Acknowledged" in text
    assert "ml-2 px-1 relative" not in text
    again = press(console, "jobs_alert", "acknowledge", alert.pk)
    assert again.status_code == 200
    assert "Acknowledged by root" in shown(console, "jobs_alert", "change", alert.pk)


def test_an_alert_is_silenced_by_its_button_and_the_silence_ended(plan, console):
    alert = told(plan)
    press(console, "jobs_alert", "silence", alert.pk, hours="24", reason="moving house")
    silence = Silence.objects.get()
    assert (silence.plan, silence.created_by, silence.reason) == (plan, "root", "moving house")
    assert "Silenced" in shown(console, "jobs_alert")
    assert "In force" in shown(console, "jobs_silence")
    press(console, "jobs_silence", "end", silence.pk)
    assert "Over" in shown(console, "jobs_silence")
    assert "Open" in shown(console, "jobs_alert")


def test_what_no_rule_wants_in_the_inbox_is_not_listed_there(plan, console):
    routing.complete_rules([plan.account], now=timezone.now())
    AlertRule.objects.update(inbox=False)
    told(plan)
    assert "It failed" not in shown(console, "jobs_alert")


def test_without_a_mail_server_one_line_says_so(plan, console, settings):
    settings.EMAIL_ON = False
    assert EMAIL_OFF in shown(console, "jobs_alert")
    assert EMAIL_OFF in shown(console, "jobs_channel")
    settings.EMAIL_ON = True
    assert EMAIL_OFF not in shown(console, "jobs_alert")


def test_a_webhook_is_made_with_its_form_tested_and_does_not_show_its_secrets(plan, console):
    fields = {
        "account": plan.account_id, "name": "hook", "kind": "webhook", "enabled": "on", "secret": SECRET,
        "url": "https://no-such-host.invalid/token-in-here",
    }  # fmt: skip
    console.post(page("jobs_channel", "add"), fields)
    channel = Channel.objects.get(name="hook")
    press(console, "jobs_channel", "test", channel.pk)
    assert Delivery.objects.get().told == "test"
    text = shown(console, "jobs_channel", "change", channel.pk)
    assert "https://no-such-host.invalid/…" in text
    assert "token-in-here" not in text
    fields = {"name": "renamed", "enabled": "on", "deliveries-TOTAL_FORMS": "0", "deliveries-INITIAL_FORMS": "0"}
    console.post(page("jobs_channel", "change", channel.pk), fields)
    channel.refresh_from_db()
    assert channel.name == "renamed"
    assert senders._kept(channel)["secret"] == SECRET


@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        ({"kind": "email", "roles": [], "addresses": "ann"}, "is no e-mail address"),
        ({"kind": "email"}, "Say whom to write to"),
        ({"kind": "webhook"}, "Give the address"),
        ({"kind": "webhook", "url": "https://example.invalid/", "secret": "short"}, "at least 16"),
        ({"kind": "webhook", "url": "http://127.0.0.1/", "secret": SECRET}, "internal address"),
    ],
)
def test_a_channel_that_can_t_work_is_refused_on_its_form(plan, console, fields, wrong):
    fields = {"account": plan.account_id, "name": "c", "enabled": "on"} | fields
    answer = console.post(page("jobs_channel", "add"), fields, follow=True)
    assert wrong in answer.content.decode()
    assert not Channel.objects.filter(name="c").exists()


def test_a_rule_is_made_and_what_every_account_has_stays(plan, console):
    shown(console, "jobs_alertrule")
    channel = Channel.objects.get()
    fields = {
        "account": plan.account_id, "name": "mine", "enabled": "on", "severity_min": "1", "types": ["quota"],
        "inbox": "on", "channels": [channel.pk], "tell_resolved": "on", "time_zone": "UTC", "plan": plan.pk,
    }  # fmt: skip
    console.post(page("jobs_alertrule", "add"), fields)
    rule = AlertRule.objects.get(name="mine")
    assert (rule.types, rule.channels.get(), rule.plan) == (["quota"], channel, plan)
    console.post(page("jobs_alertrule", "delete", rule.pk), {"post": "yes"})
    for one in AlertRule.objects.all():
        answer = console.post(page("jobs_alertrule", "delete", one.pk), {"post": "yes"}, follow=True)
        assert "Switch it off instead" in answer.content.decode()
    assert AlertRule.objects.count() == 2


def test_a_silence_is_made_with_its_form_and_ends_in_the_future(plan, console):
    fields = {"account": plan.account_id, "type": "quota", "reason": "r", "until_0": "2100-01-01", "until_1": "00:00"}
    console.post(page("jobs_silence", "add"), fields)
    assert Silence.objects.get().type == "quota"
    answer = console.post(page("jobs_silence", "add"), fields | {"until_0": "2020-01-01"}, follow=True)
    assert "in the future" in answer.content.decode()


def test_a_plan_s_button_says_when_it_is_overdue(plan, console):
    press(console, "policies_plan", "watch", plan.pk, hours="6")
    assert Watch.objects.get().hours == 6
    press(console, "policies_plan", "watch", plan.pk, hours="")
    assert Watch.objects.get().hours is None
    assert "Nobody is told" in press(console, "policies_plan", "watch", plan.pk, hours="0").content.decode()


def test_the_inbox_takes_the_same_queries_however_long_it_is(plan, console, django_assert_max_num_queries):
    make_rule(plan.account)
    for number in range(12):
        told(plan, str(number))
    with django_assert_max_num_queries(25):
        shown(console, "jobs_alert")
