"""API tokens: shown once, kept hashed, revoked at once."""

import pytest
from django.conf import settings
from knox.models import AuthToken
from rest_framework.test import APIClient

from accounts.models import Event
from tests.support.people import PASSWORD, make_user

pytestmark = pytest.mark.django_db


@pytest.fixture
def user():
    return make_user("ann")


def login(password: str = PASSWORD):
    return APIClient().post("/api/v1/tokens/login/", {"username": "ann", "password": password})


def with_token(text: str) -> APIClient:
    client = APIClient()
    client.credentials(HTTP_AUTHORIZATION=f"Token {text}")
    return client


def test_a_name_and_a_password_give_a_token_that_works(user):
    answer = login()
    assert answer.status_code == 201
    client = with_token(answer.json()["token"])
    assert client.get("/api/v1/accounts/").status_code == 200


def test_the_token_is_kept_as_a_digest_and_listed_without_its_text(user):
    text = login().json()["token"]
    row = AuthToken.objects.get()
    assert text not in (row.digest, row.token_key)
    listed = with_token(text).get("/api/v1/tokens/")
    assert text not in listed.content.decode()
    assert row.digest not in listed.content.decode()


def test_a_wrong_password_gives_nothing_and_too_many_lock_the_name(user):
    for _ in range(settings.AXES_FAILURE_LIMIT):
        assert login("wrong").status_code in (401, 403, 429)
    assert login().status_code in (401, 403, 429)
    assert not AuthToken.objects.exists()


def test_logging_out_revokes_the_token_at_once(user):
    client = with_token(login().json()["token"])
    assert client.post("/api/v1/tokens/logout/").status_code == 204
    assert set(Event.objects.values_list("action", "user_name")) == {("token.create", "ann"), ("token.revoke", "ann")}
    assert client.get("/api/v1/accounts/").status_code == 401


def test_a_token_of_somebody_else_is_not_found(user):
    login()
    other = APIClient()
    other.force_authenticate(make_user("bob"))
    key = AuthToken.objects.get().token_key
    assert other.get("/api/v1/tokens/").json() == []
    assert other.delete(f"/api/v1/tokens/{key}/").status_code == 404
    mine = with_token(login().json()["token"])
    assert mine.delete(f"/api/v1/tokens/{key}/").status_code == 204
