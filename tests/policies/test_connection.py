"""What is read over the network is tried before it is saved, and what was given for one server stays with it."""

import socket
import threading
import time
from collections.abc import Iterator
from ipaddress import ip_network

import pytest
from django.core.exceptions import ValidationError

from accounts.services import SERVICE
from engine.errors import SourceUnavailable
from policies import addresses, connection, reading, services
from policies.models import Source
from tests.support.people import T0, make_account, make_region

pytestmark = pytest.mark.django_db
SECRET = "hunter2hunter2"
KEYS = {"access_key": "somebody", "secret_key": SECRET}


@pytest.fixture
def loopback(settings) -> None:
    """Let sources lie on this machine, as the operator may."""
    settings.SOURCE_NETWORKS = [ip_network("127.0.0.0/8")]


@pytest.fixture
def silent(loopback) -> Iterator[str]:
    """A server that takes connections and never answers; its address."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def gone(loopback) -> str:
    """The address of a server that is not there."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"http://127.0.0.1:{server.getsockname()[1]}"


def bucket(endpoint: str) -> Source:
    settings = {"endpoint": endpoint, "bucket": "shop"}
    return Source(account=make_account(), region=make_region(), name="shop", kind="bucket", settings=settings)


def save(source: Source, **options: object) -> Source:
    return services.save_source(source, actor=SERVICE, now=T0, **options)  # type: ignore[arg-type]  # as the test says


@pytest.mark.rule("A30")
def test_a_source_that_cannot_be_reached_is_not_saved_unless_told(gone):
    source = bucket(gone)
    with pytest.raises(connection.SourceUnreachable, match="Nothing was saved"):
        save(source, credentials=KEYS)
    assert not Source.objects.exists()
    save(source, credentials=KEYS, skip_check=True)
    assert (source.checked_at, source.check_error) == (None, "")


def test_a_change_of_the_name_alone_tries_nothing(gone):
    source = save(bucket(gone), credentials=KEYS, skip_check=True)
    source.name = "renamed"
    save(source)
    source.settings["prefix"] = "2026/"
    with pytest.raises(connection.SourceUnreachable):
        save(source)


def test_a_server_that_hangs_is_given_up_in_time(silent, settings):
    settings.SOURCE_CHECK_S = 0.3
    started = time.monotonic()
    with pytest.raises(connection.SourceUnreachable, match="nothing answered within"):
        save(bucket(silent), credentials=KEYS)
    assert time.monotonic() - started < 5


def test_not_more_than_a_few_trials_wait_for_servers_that_hang(silent, settings, monkeypatch):
    settings.SOURCE_CHECK_S = 0.1
    monkeypatch.setattr(connection, "_trials", threading.BoundedSemaphore(1))
    source = save(bucket(silent), credentials=KEYS, skip_check=True)
    connection.note(source, now=T0)
    with pytest.raises(connection.TooManyTrials):
        connection.check(source)


def test_an_internal_address_is_refused_even_without_the_check(db):
    with pytest.raises(addresses.AddressRefused):
        save(bucket("http://127.0.0.1:9000"), credentials=KEYS, skip_check=True)
    assert not Source.objects.exists()


def test_an_address_that_became_internal_is_refused_when_a_job_would_read_it(gone, settings):
    source = save(bucket(gone), credentials=KEYS, skip_check=True)
    settings.SOURCE_NETWORKS = []
    with pytest.raises(addresses.AddressRefused):
        reading.engine_source(source)
    with pytest.raises(addresses.AddressRefused):
        reading.engine_target(source, kind="bucket", to="")


def test_a_name_that_only_workers_know_can_be_saved_without_the_check(db):
    source = save(bucket("https://store.invalid"), credentials=KEYS, skip_check=True)
    with pytest.raises(SourceUnavailable, match="can't be looked up"):
        reading.engine_source(source)
    assert "can't be looked up" in connection.check(source)


def test_stored_credentials_are_never_shown_to_another_server(gone, silent):
    source = save(bucket(gone), credentials=KEYS, skip_check=True)
    source.settings["endpoint"] = silent
    with pytest.raises(ValidationError, match="former server"):
        save(source, skip_check=True)
    with pytest.raises(ValidationError, match="belong together"):
        services.check_source(source, credentials={"access_key": "other"}, over=True)
    save(source, credentials={"access_key": "other", "secret_key": "secret of the other"}, skip_check=True)
    assert reading.reading(source).credentials["access_key"] == "other"


def test_an_error_never_repeats_a_secret(loopback):
    source = Source(account=make_account(), region=make_region(), name="dump", kind="command", host="db1")
    source.settings = {"argv": [f"/opt/{SECRET}/dump"]}
    save(source, credentials={"environment": f"TOKEN={SECRET}\nUSER=x"})
    assert SECRET not in connection.check(source)
    assert "/opt/***/dump" in connection.check(source)


def test_credentials_that_no_key_opens_are_told(loopback, settings, gone):
    source = save(bucket(gone), credentials=KEYS, skip_check=True)
    settings.FIELD_KEYS = ["11" * 32]
    assert "BACKUPSITE_FIELD_KEYS" in connection.check(source)
