"""Alerts, rules, channels and silences over the API: who sees what, who may change what, and what is never shown."""

import datetime as dt

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from accounts.models import Event, Role
from jobs import alerts, routing
from jobs.alert_models import Alert, AlertType, Delivery, Severity
from tests.support.alerting import make_channel, make_rule, raise_one
from tests.support.api import client_of, error_code
from tests.support.people import T0, join, make_account, whole_plan

pytestmark = pytest.mark.django_db
SECRET = "a-secret-of-24-characters"
LATER = "2100-01-01T00:00:00Z"


@pytest.fixture
def plan():
    return whole_plan()


@pytest.fixture
def owner(plan):
    return client_of(join(plan.account, "ann", Role.OWNER))


def about(plan) -> dict[str, object]:
    return {"plan_id": plan.pk, "source_id": plan.source_id, "vault_id": plan.vault_id}


def test_alerts_are_listed_filtered_shown_and_acknowledged(plan, owner):
    failed = raise_one(
        plan.account, key="a", type=AlertType.BACKUP_FAILED, severity=Severity.CRITICAL, about=about(plan)
    )
    raise_one(plan.account, key="b", now=T0 + dt.timedelta(hours=1))
    assert [one["type"] for one in owner.get("/api/v1/alerts/").json()["results"]] == ["quota", "backup_failed"]
    for query in ("severity=critical", "type=backup_failed", f"plan={plan.pk}", "type__in=backup_failed,drill_failed"):
        assert [one["id"] for one in owner.get(f"/api/v1/alerts/?{query}").json()["results"]] == [str(failed.pk)]
    assert owner.get("/api/v1/alerts/?severity=nonsense").status_code == 400
    answer = owner.post(f"/api/v1/alerts/{failed.pk}/acknowledge/")
    assert (answer.status_code, answer.json()["acknowledged_by"], answer.json()["severity"]) == (200, "ann", "critical")
    assert len(owner.get("/api/v1/alerts/?acknowledged=true").json()["results"]) == 1
    alerts.resolve(plan.account_id, ["a"], now=T0)
    refused = owner.post(f"/api/v1/alerts/{failed.pk}/acknowledge/")
    assert (refused.status_code, error_code(refused)) == (409, "alert_resolved")
    assert owner.get(f"/api/v1/alerts/{failed.pk}/").json()["deliveries"] == []
    assert Event.objects.filter(action="alert.acknowledge", user_name="ann").count() == 1


def test_silence_is_given_seen_and_ended(plan, owner):
    alert = raise_one(plan.account, about=about(plan))
    wanted = {"until": LATER, "reason": "moving house"}
    made = owner.post(f"/api/v1/alerts/{alert.pk}/silence/", wanted).json()
    assert (made["type"], made["plan"], made["source"], made["created_by"]) == ("quota", str(plan.pk), None, "ann")
    routing.route(alert.pk, now=T0)
    assert owner.get(f"/api/v1/alerts/{alert.pk}/").json()["silenced_until"].startswith("2100-01-01")
    assert owner.post(f"/api/v1/silences/{made['id']}/end/").status_code == 200
    assert Alert.objects.get().silenced_until is None
    past = owner.post("/api/v1/silences/", {"account": plan.account_id, "until": "2020-01-01T00:00Z", "reason": "r"})
    assert (past.status_code, error_code(past)) == (409, "silence_past")
    fresh = owner.post(
        "/api/v1/silences/", {"account": plan.account_id, "vault": plan.vault_id, "until": LATER, "reason": "r"}
    )
    assert (fresh.status_code, len(owner.get("/api/v1/silences/").json()["results"])) == (201, 2)


@pytest.mark.rule("C21")
def test_every_account_has_rules_for_inbox_and_email_that_can_be_switched_off(plan, owner):
    rules = owner.get("/api/v1/alert-rules/").json()["results"]
    assert {one["builtin"]: (one["enabled"], one["inbox"], len(one["channels"])) for one in rules} == {
        "inbox": (True, True, 0),
        "email": (True, True, 1),
    }
    address = f"/api/v1/alert-rules/{rules[0]['id']}/"
    assert owner.patch(address, {"enabled": False}).json()["enabled"] is False
    refused = owner.delete(address)
    assert (refused.status_code, error_code(refused)) == (409, "builtin_kept")


def test_rules_are_made_changed_and_deleted(plan, owner):
    channel = make_channel(plan.account)
    wanted = {
        "account": plan.account_id, "name": "night", "types": ["backup_failed"], "severity_min": "info",
        "plan": plan.pk, "inbox": False, "channels": [channel.pk], "quiet_from": "22:00", "quiet_until": "06:00",
        "time_zone": "Europe/Berlin",
    }  # fmt: skip
    made = owner.post("/api/v1/alert-rules/", wanted).json()
    assert (made["severity_min"], made["channels"], made["plan"]) == ("info", [str(channel.pk)], str(plan.pk))
    address = f"/api/v1/alert-rules/{made['id']}/"
    assert owner.patch(address, {"severity_min": "critical"}).json()["severity_min"] == "critical"
    for wrong in ({"quiet_until": None}, {"types": ["nonsense"]}, {"time_zone": "Mars"}, {"severity_min": "3"}):
        assert owner.patch(address, wrong).status_code == 400
    assert owner.delete(address).status_code == 204


def test_channels_are_made_tested_and_never_show_their_secrets(plan, owner):
    url = "https://no-such-host.invalid/token-in-here"
    wanted = {"account": plan.account_id, "name": "hook", "kind": "webhook", "url": url, "secret": SECRET}
    answer = owner.post("/api/v1/channels/", wanted)
    made = answer.json()
    assert (answer.status_code, made["shown"]) == (201, "https://no-such-host.invalid/…")
    address = f"/api/v1/channels/{made['id']}/"
    assert owner.patch(address, {"name": "renamed"}).json()["name"] == "renamed"
    for text in (answer.content, owner.get(address).content, owner.get("/api/v1/channels/").content):
        assert b"token-in-here" not in text
        assert SECRET.encode() not in text
    test = owner.post(f"{address}test/")
    assert (test.status_code, test.json()["told"], test.json()["state"]) == (202, "test", "queued")
    Delivery.objects.update(state="given_up", error="The server answered 500")
    assert owner.get(f"{address}deliveries/").json()["results"][0]["error"] == "The server answered 500"
    inside = owner.patch(address, {"url": "http://127.0.0.1/", "secret": SECRET})
    assert (inside.status_code, error_code(inside)) == (409, "address_refused")
    assert owner.patch(address, {"url": "ftp://x"}).status_code == 400
    assert owner.patch(address, {"kind": "email"}).status_code == 400
    mail = {"account": plan.account_id, "name": "mail", "kind": "email", "settings": {"addresses": ["a@example.org"]}}
    assert owner.post("/api/v1/channels/", mail).json()["settings"] == {"roles": [], "addresses": ["a@example.org"]}
    assert owner.delete(address).status_code == 204


def test_a_plan_tells_when_it_is_overdue_and_takes_hours_of_its_own(plan, owner):
    address = f"/api/v1/plans/{plan.pk}/watch/"
    assert owner.get(address).json() == {
        "hours": None, "since": "2026-03-10T12:00:00Z", "overdue_at": "2026-03-12T01:30:00Z",
    }  # fmt: skip
    assert owner.patch(address, {"hours": 6}).json()["overdue_at"] == "2026-03-10T18:00:00Z"
    assert owner.patch(address, {"hours": 0}).json()["overdue_at"] is None
    assert owner.patch(address, {"hours": -1}).status_code == 400


def test_outsiders_find_nothing_and_viewers_change_nothing(plan, owner):
    alert, channel = raise_one(plan.account, about=about(plan)), make_channel(plan.account)
    rule = make_rule(plan.account, channel)
    silence = owner.post(f"/api/v1/alerts/{alert.pk}/silence/", {"until": LATER, "reason": "r"}).json()["id"]
    outsider = client_of(join(make_account("other"), "mallory", Role.OWNER))
    viewer = client_of(join(plan.account, "eve", Role.VIEWER))
    shown = (f"alerts/{alert.pk}", f"channels/{channel.pk}", f"alert-rules/{rule.pk}", f"silences/{silence}")
    for one in shown:
        assert outsider.get(f"/api/v1/{one}/").status_code == 404
        assert viewer.get(f"/api/v1/{one}/").status_code == 200
    changes = (
        f"alerts/{alert.pk}/acknowledge", f"alerts/{alert.pk}/silence", f"channels/{channel.pk}/test",
        f"silences/{silence}/end",
    )  # fmt: skip
    for one in changes:
        assert outsider.post(f"/api/v1/{one}/", {"until": LATER, "reason": "r"}).status_code == 404
        assert viewer.post(f"/api/v1/{one}/", {"until": LATER, "reason": "r"}).status_code == 403
    for one in shown[1:3]:
        assert viewer.patch(f"/api/v1/{one}/", {"enabled": False}).status_code == 403
        assert viewer.delete(f"/api/v1/{one}/").status_code == 403
    for who in (viewer, outsider):
        made = who.post("/api/v1/silences/", {"account": plan.account_id, "until": LATER, "reason": "r"})
        assert made.status_code == (403 if who is viewer else 400)
    assert viewer.patch(f"/api/v1/plans/{plan.pk}/watch/", {"hours": 1}).status_code == 403
    assert outsider.get(f"/api/v1/plans/{plan.pk}/watch/").status_code == 404


@pytest.mark.parametrize("path", ["alerts", "channels", "alert-rules"])
def test_lists_take_the_same_queries_however_long_they_are(plan, owner, path, settings):
    settings.EMAIL_ON = True
    counts = []
    for number in range(3):
        raise_one(plan.account, key=str(number), about=about(plan))
        make_rule(plan.account, make_channel(plan.account, f"c{number}"))
        with CaptureQueriesContext(connection) as queries:
            assert owner.get(f"/api/v1/{path}/").status_code == 200
        counts.append(len(queries))
    assert counts[1] == counts[2]
