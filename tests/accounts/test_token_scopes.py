"""Tokens that people make for programs: they may do less than their owner, end, and are found again by their name."""

import datetime as dt
import re
from typing import Any

import pytest
from django.conf import settings
from django.test import Client
from knox.models import AuthToken
from rest_framework.test import APIClient

from accounts import tokens
from accounts.models import ApiToken, Event, Member, Role, User
from accounts.services import SERVICE, Actor, set_role
from tests.support.api import client_of, error_code
from tests.support.console import page
from tests.support.people import (
    PASSWORD,
    T0,
    join,
    make_account,
    make_plan,
    make_point,
    make_policy,
    make_region,
    make_source,
    make_user,
    make_vault,
)

pytestmark = pytest.mark.django_db
DAY = dt.timedelta(days=1)


@pytest.fixture
def account():
    return make_account()


@pytest.fixture
def owner(account):
    return join(account, "ann")


def with_token(text: str) -> APIClient:
    client = APIClient(raise_request_exception=False)
    client.credentials(HTTP_AUTHORIZATION=f"Token {text}")
    return client


def made(user: User, **wanted: Any) -> APIClient:
    """Return a client that comes with a new token of the user's."""
    answer = client_of(User.objects.get(pk=user.pk)).post("/api/v1/tokens/", {"name": "a program"} | wanted)
    assert answer.status_code == 201, answer.content
    return with_token(answer.json()["token"])


def logged_in(name: str = "ann") -> APIClient:
    answer = APIClient().post("/api/v1/tokens/login/", {"username": name, "password": PASSWORD})
    return with_token(answer.json()["token"])


def plan_of(account):
    region = make_region()
    return make_plan(make_source(account, region), make_policy(account), make_vault(account, region))


def test_a_token_that_only_reads_changes_nothing(account, owner):
    plan = plan_of(account)
    point = make_point(plan.vault, plan.source)
    client = made(owner, read_only=True)
    assert client.get(f"/api/v1/plans/{plan.pk}/").status_code == 200
    assert client.get(f"/api/v1/accounts/{account.pk}/events/").status_code == 200
    assert client.get(f"/api/v1/recovery-points/{point.pk}/entries/").status_code == 403
    assert client.post("/api/v1/jobs/", {"kind": "backup", "plan": str(plan.pk)}).status_code == 403
    assert client.delete(f"/api/v1/plans/{plan.pk}/").status_code == 403
    assert client.post("/api/v1/policies/", {"account": str(account.pk), "name": "new"}).status_code == 403


def test_a_token_does_what_its_privileges_name_and_nothing_else(account, owner):
    plan = plan_of(account)
    client = made(owner, privileges=["backup"])
    assert client.post("/api/v1/jobs/", {"kind": "backup", "plan": str(plan.pk)}).status_code == 202
    assert client.post(f"/api/v1/plans/{plan.pk}/pause/").status_code == 403
    assert client.patch(f"/api/v1/policies/{plan.policy.pk}/", {"retention_days": 1}).status_code == 403


def test_a_token_never_does_more_than_its_owner_whose_role_may_change(account, owner):
    plan = plan_of(account)
    join(account, "second")
    client = made(owner, privileges=["backup", "pause_plans"])
    set_role(account=account, user=owner, role=Role.VIEWER, actor=SERVICE, now=T0)
    assert client.post(f"/api/v1/plans/{plan.pk}/pause/").status_code == 403
    Member.objects.filter(user=owner).delete()
    assert client.get(f"/api/v1/plans/{plan.pk}/").status_code == 404


def test_a_token_of_one_account_finds_nothing_of_another(account, owner):
    other = make_account("other")
    Member.objects.create(account=other, user=owner, role=Role.OWNER, created_at=T0)
    theirs = make_policy(other, "theirs")
    client = made(owner, privileges=["manage_policies"], account=str(account.pk))
    assert [one["name"] for one in client.get("/api/v1/accounts/").json()["results"]] == ["acme"]
    assert client.get(f"/api/v1/policies/{theirs.pk}/").status_code == 404
    assert client.post("/api/v1/policies/", {"account": str(other.pk), "name": "new"}).status_code == 400
    assert client.post("/api/v1/policies/", {"account": str(account.pk), "name": "new"}).status_code == 201


def test_a_scope_narrows_a_superuser_too(account, tmp_path):
    root = User.objects.create_superuser("root")
    plan = plan_of(account)
    reads = made(root, read_only=True)
    assert reads.get(f"/api/v1/plans/{plan.pk}/").status_code == 200
    assert reads.post(f"/api/v1/plans/{plan.pk}/pause/").status_code == 403
    assert reads.post("/api/v1/accounts/", {"name": "new"}).status_code == 403
    assert reads.post("/api/v1/regions/", {"name": "new", "url": str(tmp_path / "new")}).status_code == 403
    assert reads.get("/api/v1/events/chain/").status_code == 403
    backs_up = made(root, privileges=["backup"])
    assert backs_up.get("/api/v1/events/").json()["results"] == []
    other = make_account("other")
    assert made(root, read_only=True, account=str(other.pk)).get(f"/api/v1/plans/{plan.pk}/").status_code == 404


def test_a_login_s_token_has_no_scope(account, owner):
    client = logged_in()
    assert client.post("/api/v1/policies/", {"account": str(account.pk), "name": "new"}).status_code == 201
    (listed,) = client.get("/api/v1/tokens/").json()
    assert (listed["name"], listed["privileges"], listed["expiry"]) == ("Login", None, None)


def test_a_token_with_a_scope_manages_no_tokens_but_ends_itself(account, owner):
    client = made(owner, privileges=["own", "manage_members"])
    key = AuthToken.objects.get().token_key
    assert client.post("/api/v1/tokens/", {"name": "wider", "privileges": ["backup"]}).status_code == 403
    assert client.get("/api/v1/tokens/").status_code == 403
    assert client.delete(f"/api/v1/tokens/{key}/").status_code == 403
    assert client.post("/api/v1/tokens/logout/").status_code == 204
    assert not ApiToken.objects.exists()


def test_a_scope_never_changes(account, owner):
    made(owner, read_only=True)
    key = AuthToken.objects.get().token_key
    for method in ("patch", "put"):
        answer = getattr(client_of(owner), method)(f"/api/v1/tokens/{key}/", {"privileges": ["own"]})
        assert answer.status_code == 405


class TestLife:
    def test_it_ends_after_the_installation_s_default_unless_told(self, account, owner):
        own, _ = tokens.create("a", privileges=[], account=None, life=None, actor=Actor(owner), now=T0)
        assert own.token.expiry == T0 + settings.TOKEN_DAYS * DAY
        own, _ = tokens.create("b", privileges=[], account=None, life=2 * DAY, actor=Actor(owner), now=T0)
        assert AuthToken.objects.get(pk=own.token.pk).expiry == T0 + 2 * DAY

    def test_what_has_ended_is_refused(self, account, owner):
        _, text = tokens.create("a", privileges=[], account=None, life=DAY, actor=Actor(owner), now=T0)
        AuthToken.objects.update(expiry=dt.datetime(2020, 1, 1, tzinfo=dt.UTC))
        assert with_token(text).get("/api/v1/accounts/").status_code == 401

    def test_one_that_would_live_too_long_is_refused(self, owner):
        wanted = {"name": "a", "read_only": True, "expires_in": f"{settings.TOKEN_DAYS_MAX + 1} 00:00:00"}
        answer = client_of(owner).post("/api/v1/tokens/", wanted)
        assert (answer.status_code, error_code(answer)) == (409, "expiry_too_long")
        assert answer.json()["context"] == {"days_max": settings.TOKEN_DAYS_MAX}

    def test_its_last_use_is_noted_once_a_minute(self, owner):
        own, _ = tokens.create("a", privileges=[], account=None, life=None, actor=Actor(owner), now=T0)
        seen = []
        for seconds in (0, 30, 61):
            tokens.use(owner, own.token, now=T0 + dt.timedelta(seconds=seconds))
            own.refresh_from_db()
            assert own.last_used_at is not None
            seen.append((own.last_used_at - T0).total_seconds())
        assert seen == [0, 0, 61]


class TestRefusals:
    def test_a_privilege_that_the_owner_lacks(self, account):
        viewer = join(account, "vera", Role.VIEWER)
        wanted = {"name": "a", "privileges": ["backup", "view"]}
        answer = client_of(viewer).post("/api/v1/tokens/", wanted)
        assert (answer.status_code, error_code(answer)) == (409, "privilege_not_held")
        assert answer.json()["context"] == {"privileges": ["backup"]}

    def test_a_privilege_that_the_owner_has_in_another_account_alone(self, account):
        person = join(account, "vera", Role.VIEWER)
        Member.objects.create(account=make_account("other"), user=person, role=Role.OWNER, created_at=T0)
        wanted = {"name": "a", "privileges": ["backup"]}
        assert client_of(person).post("/api/v1/tokens/", wanted | {"account": str(account.pk)}).status_code == 409
        assert client_of(person).post("/api/v1/tokens/", wanted).status_code == 201

    @pytest.mark.parametrize(
        ("wanted", "attr"),
        [
            ({"read_only": True}, "name"),
            ({"name": " ", "read_only": True}, "name"),
            ({"name": "a"}, None),
            ({"name": "a", "read_only": True, "privileges": ["backup"]}, None),
            ({"name": "a", "privileges": ["fly"]}, "privileges.0"),
            ({"name": "a", "read_only": True, "expires_in": "00:00:00"}, "expires_in"),
            ({"name": "a", "read_only": True, "account": "6f1ed002-ab59-4c3d-8d3e-3a4f4a2c8e0b"}, "account"),
        ],
    )
    def test_what_is_no_sound_request_names_the_field(self, owner, wanted, attr):
        answer = client_of(owner).post("/api/v1/tokens/", wanted)
        assert answer.status_code == 400
        assert answer.json()["errors"][0]["attr"] in (attr, "non_field_errors")

    def test_more_than_so_many(self, owner, settings):
        settings.TOKENS_MAX = 1
        made(owner, read_only=True)
        answer = client_of(owner).post("/api/v1/tokens/", {"name": "b", "read_only": True})
        assert (answer.status_code, error_code(answer)) == (409, "too_many_tokens")


def test_tokens_are_listed_without_text_and_revoked_and_both_are_kept_in_the_trail(account, owner):
    client = client_of(owner)
    wanted = {"name": "nightly", "privileges": ["backup"], "account": str(account.pk)}
    answer = client.post("/api/v1/tokens/", wanted)
    text = answer.json()["token"]
    assert answer["Cache-Control"] == "no-store"
    listed = client.get("/api/v1/tokens/")
    assert text not in listed.content.decode()
    assert [(one["name"], one["privileges"], one["account"]) for one in listed.json()] == [
        ("nightly", ["view", "backup"], str(account.pk))
    ]
    assert client.delete(f"/api/v1/tokens/{listed.json()[0]['token_key']}/").status_code == 204
    assert with_token(text).get("/api/v1/accounts/").status_code == 401
    told = Event.objects.filter(account_id=account.pk).order_by("pk")
    assert [(one.action, one.detail["name"]) for one in told] == [
        ("token.create", "nightly"),
        ("token.revoke", "nightly"),
    ]
    assert told[0].detail["privileges"] == ["view", "backup"]
    assert text not in str([one.detail for one in told])


def test_a_token_ends_with_its_account_and_its_owner(account, owner):
    made(owner, read_only=True, account=str(account.pk))
    owner.delete()
    assert not ApiToken.objects.exists()


def test_an_inactive_owner_s_token_opens_nothing(owner):
    client = made(owner, read_only=True)
    User.objects.update(is_active=False)
    assert client.get("/api/v1/accounts/").status_code == 401


def test_who_is_nobody_makes_no_token():
    make_user("ann")
    assert client_of().post("/api/v1/tokens/", {"name": "a", "read_only": True}).status_code == 401


class TestConsole:
    @pytest.fixture
    def console(self):
        console = Client()
        console.force_login(User.objects.create_superuser("root"))
        return console

    def test_a_person_makes_a_token_sees_its_text_once_and_revokes_it(self, account, console):
        wanted = {"name": "nightly", "privileges": ["backup"], "days": "7", "account": str(account.pk)}
        shown = console.post(page("accounts_apitoken", "add"), wanted)
        text = re.search(r"bs_\w+", shown.content.decode())
        assert text is not None
        assert "no-store" in shown["Cache-Control"]
        assert with_token(text[0]).get("/api/v1/accounts/").json()["results"][0]["privileges"] == ["view", "backup"]
        own = ApiToken.objects.get()
        listed = console.get(page("accounts_apitoken", "changelist")).content.decode()
        assert "nightly" in listed
        assert text[0] not in listed
        assert text[0] not in console.get(page("accounts_apitoken", "change", own.pk)).content.decode()
        console.post(page("accounts_apitoken", "delete", own.pk), {"post": "yes"})
        assert with_token(text[0]).get("/api/v1/accounts/").status_code == 401
        assert Event.objects.filter(action="token.revoke", account_id=account.pk).exists()

    def test_ticking_nothing_makes_one_that_only_reads(self, console):
        console.post(page("accounts_apitoken", "add"), {"name": "monitor", "days": "7"})
        assert ApiToken.objects.get().privileges == ["view", "see_usage", "see_audit"]

    def test_one_that_would_live_too_long_is_refused_and_the_page_says_why(self, console):
        answer = console.post(page("accounts_apitoken", "add"), {"name": "long", "days": "4000"}, follow=True)
        assert "days at most" in answer.content.decode()
        assert not ApiToken.objects.exists()

    def test_nobody_sees_or_revokes_another_s(self, owner, console):
        made(owner, read_only=True)
        own = ApiToken.objects.get()
        assert "a program" not in console.get(page("accounts_apitoken", "changelist")).content.decode()
        console.post(page("accounts_apitoken", "delete", own.pk), {"post": "yes"})
        assert ApiToken.objects.exists()

    def test_whoever_may_use_the_console_has_tokens(self):
        console = Client()
        console.force_login(make_user("staff", staff=True))
        assert console.get(page("accounts_apitoken", "changelist")).status_code == 200
