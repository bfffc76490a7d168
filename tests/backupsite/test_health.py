"""Health answers say whether a request can be served, and no more."""

import pytest
from django.db import DatabaseError, connection
from django.test import Client

from backupsite import health


def test_a_process_that_answers_is_live():
    assert Client().get("/healthz/live").json() == {"status": "ok"}


@pytest.mark.django_db
def test_without_a_broker_the_service_is_degraded_and_still_ready():
    answer = Client().get("/healthz")
    assert answer.status_code == 200
    assert answer.json() == {"status": "degraded", "database": True, "broker": False}


@pytest.mark.django_db
def test_without_a_database_nothing_is_ready(monkeypatch):
    def refuse(*args: object) -> None:
        raise DatabaseError("gone")

    monkeypatch.setattr(connection, "cursor", refuse)
    monkeypatch.setattr(health, "BROKER_TIMEOUT_S", 1)
    assert Client().get("/healthz/ready").status_code == 503
