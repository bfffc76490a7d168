"""The probe finds out what a store can do and says what it cannot."""

import datetime as dt
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from engine.errors import Unavailable
from engine.storage import APPLICATION_LEVEL, IMMUTABLE, Directory, Memory, Refusal, clean_up, probe
from engine.storage.faulty import Fault, Faulty, Mode
from engine.storage.port import Broken, Claims
from engine.storage.s3 import S3Storage
from tests.engine.storage.conftest import NOON, HandClock, location, new_bucket
from tests.services import S3


def utc_now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


class Boasting(Memory):
    """Claims object lock and lets its locks be broken in the ways given."""

    broken = Broken(False, False, False, False)
    server_time = NOON

    def describe(self) -> Claims:
        return Claims(True, True, self.server_time)

    def attack_lock(self, key: str, *, earlier: dt.datetime) -> Broken:
        return self.broken


def boasting(*broken: bool) -> Boasting:
    store = Boasting(clock=HandClock(), write_once=False)
    store.broken = Broken(*broken) if broken else store.broken
    return store


def test_a_directory_is_usable_and_its_retention_is_the_applications(tmp_path: Path) -> None:
    store = Directory(tmp_path)
    found = probe(store, now=NOON, name="one")
    assert found.usable
    assert found.problems == []
    assert (found.retention, found.clock_skew_s, found.object_lock) == (APPLICATION_LEVEL, None, False)
    assert list(store.scan("")) == []


@pytest.mark.parametrize("server", ["minio_service", "radosgw_service"])
@pytest.mark.services
def test_a_bucket_with_object_lock_is_immutable(server: str, request: pytest.FixtureRequest) -> None:
    service: S3 = request.getfixturevalue(server)
    store = S3Storage(location(service, new_bucket(service, object_lock=True)))
    found = probe(store, now=utc_now(), name="one", lock_s=3)
    assert found.problems == []
    assert found.usable
    assert (found.versioned, found.retention) == (True, IMMUTABLE)
    assert abs(found.clock_skew_s or 0) < 60
    assert clean_up(store, found) != []
    time.sleep(4.5)
    assert clean_up(store, found) == []
    assert list(store.scan("")) == []


@pytest.mark.services
def test_a_plain_bucket_is_usable_and_not_immutable(minio_service: S3) -> None:
    store = S3Storage(location(minio_service, new_bucket(minio_service)))
    found = probe(store, now=utc_now() - dt.timedelta(hours=2), name="one")
    assert found.usable
    assert (found.versioned, found.retention) == (False, APPLICATION_LEVEL)
    assert found.problems == ["The store's clock is 120 minutes ahead of ours: locks would end at another time"]
    assert list(store.scan("")) == []


@pytest.mark.parametrize(
    ("broken", "problem"),
    [
        ((True, False, False, False), "can be shortened"),
        ((False, True, False, False), "privileged user can end"),
        ((False, False, True, False), "right to bypass"),
        ((False, False, False, True), "overwrite destroys"),
    ],
)
def test_a_lock_that_can_be_broken_is_not_called_immutable(broken: tuple[bool, ...], problem: str) -> None:
    found = probe(boasting(*broken), now=NOON, name="one")
    assert found.retention == APPLICATION_LEVEL
    assert any(problem in sentence for sentence in found.problems)
    assert found.usable


def test_a_store_that_deletes_locked_objects_is_not_called_immutable() -> None:
    class Careless(Boasting):
        def delete(self, keys: Sequence[str]) -> list[Refusal]:
            for key in keys:
                self._objects.pop(key, None)
                self._keys = [kept for kept in self._keys if kept != key]
            return []

    found = probe(Careless(clock=HandClock(), write_once=False), now=NOON, name="one")
    assert (found.retention, found.lock_refused_delete, found.left_behind) == (APPLICATION_LEVEL, False, [])
    assert "A locked object can be deleted" in found.problems


def test_a_store_that_keeps_its_locks_is_immutable() -> None:
    assert probe(boasting(), now=NOON, name="one").retention == IMMUTABLE


def test_a_store_that_cannot_be_reached_is_a_problem_not_an_error() -> None:
    faulty = Faulty(Memory(write_once=False), [Fault(1, Mode.BEFORE, times=0)])
    found = probe(faulty, now=NOON, name="one")
    assert not found.usable
    assert not found.writable
    assert "The store cannot be used" in found.problems[0]


@pytest.mark.parametrize(
    ("at", "mode"), [*((at, Mode.BEFORE) for at in range(1, 11)), *((at, Mode.WRONG) for at in (2, 4, 6))]
)
def test_whatever_call_fails_the_probe_tells_and_does_not_raise(at: int, mode: Mode) -> None:
    faulty = Faulty(Memory(write_once=False), [Fault(at, mode, error=Unavailable)])
    found = probe(faulty, now=NOON, name="one")
    assert bool(found.problems) == bool(faulty.fired)
