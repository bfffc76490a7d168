"""Requests are limited, and a store of counts that is away limits nobody."""

import pytest
from django.core.cache import cache

from backupsite.throttles import AddressThrottle
from tests.support.api import client_of

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def fresh_counts(settings):
    settings.CACHES = {"default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}}
    cache.clear()


def login():
    return client_of().post("/api/v1/tokens/login/", {"username": "x", "password": "y"})


def test_too_many_tries_from_one_address_have_to_wait(monkeypatch):
    monkeypatch.setattr(AddressThrottle, "rate", "3/min", raising=False)
    assert [login().status_code for _ in range(4)] == [401, 401, 401, 429]


def test_without_the_store_of_counts_requests_go_on(settings, monkeypatch):
    settings.CACHES = {
        "default": {"BACKEND": "django.core.cache.backends.redis.RedisCache", "LOCATION": "redis://127.0.0.1:1/0"}
    }
    monkeypatch.setattr(AddressThrottle, "rate", "1/min", raising=False)
    assert [login().status_code for _ in range(2)] == [401, 401]
