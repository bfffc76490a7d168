"""The stores that the conformance suite runs over."""

import datetime as dt
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import pytest
from minio import Minio

from engine.storage import Budget, Directory, Location, Memory, Retrying, Storage
from engine.storage.faulty import Faulty
from engine.storage.s3 import S3Storage
from tests.services import S3

NOON = dt.datetime(2030, 1, 1, 12, tzinfo=dt.UTC)


class HandClock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> dt.datetime:
        return self.now

    def advance(self, **by: float) -> None:
        self.now += dt.timedelta(**by)


@dataclass
class Case:
    """One store under test; `pass_time` lets that many seconds go by for its locks."""

    storage: Storage
    can_lock: bool
    now: Callable[[], dt.datetime]
    pass_time: Callable[[float], None]
    replaces_locked: bool = True


@dataclass
class HandTime:
    """Monotonic seconds that pass only in `sleep`; threads share them."""

    seconds: float = 0.0
    slept: list[float] = field(default_factory=list)
    mutex: threading.Lock = field(default_factory=threading.Lock)

    def clock(self) -> float:
        return self.seconds

    def sleep(self, seconds: float) -> None:
        with self.mutex:
            self.seconds += seconds
            self.slept.append(seconds)


def _memory(clock: HandClock | None) -> Case:
    hand = clock or HandClock()
    storage = Memory(clock=clock, page_size=3, write_once=False)
    return Case(storage, clock is not None, hand, lambda seconds: hand.advance(seconds=seconds))


def _directory(root: Path, *, paced: bool = False) -> Case:
    hand, seconds = HandClock(), HandTime()
    budget = Budget(10_000_000, clock=seconds.clock, sleep=seconds.sleep)
    storage = Directory(root, clock=hand, pace=budget.take) if paced else Directory(root, clock=hand)
    return Case(storage, True, hand, lambda seconds: hand.advance(seconds=seconds), replaces_locked=False)


def admin(service: S3) -> Minio:
    """Return a client that may make buckets."""
    return Minio(
        service.endpoint,
        access_key=service.access_key,
        secret_key=service.secret_key,
        secure=False,
        region=service.region,
    )


def location(service: S3, bucket: str, prefix: str = "vault", **changed: object) -> Location:
    """Return the address of a prefix in a bucket of a server."""
    options = {
        "endpoint": service.url,
        "access_key": service.access_key,
        "secret_key": service.secret_key,
        "region": service.region,
        **changed,
    }
    return Location.parse(f"s3://{bucket}/{prefix}", **options)


def new_bucket(service: S3, *, object_lock: bool = False) -> str:
    """Make a bucket with a name of its own and return the name."""
    bucket = f"storage-{secrets.token_hex(6)}"
    admin(service).make_bucket(bucket, object_lock=object_lock)
    return bucket


@cache
def _shared_bucket(service: S3, object_lock: bool) -> str:
    return new_bucket(service, object_lock=object_lock)


def _s3(service: S3, *, object_lock: bool) -> Case:
    """Return a vault's prefix in a bucket that all tests of a run share, as vaults may."""
    prefix = f"region/{secrets.token_hex(6)}"
    storage = S3Storage(location(service, _shared_bucket(service, object_lock), prefix))
    return Case(storage, object_lock, lambda: dt.datetime.now(dt.UTC), time.sleep)


SERVED = pytest.mark.services
UNLOCKED = ["memory", pytest.param("minio", marks=SERVED), pytest.param("radosgw", marks=SERVED)]
LOCKING = [
    "memory with lock",
    "directory",
    "paced directory",
    "retrying memory with lock",
    "faulty memory with lock",
    pytest.param("minio with lock", marks=SERVED),
    pytest.param("radosgw with lock", marks=SERVED),
]


@pytest.fixture(params=UNLOCKED + LOCKING)
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Case:
    """Return each store in turn, or those that a test names."""
    name: str = request.param
    lock = name.endswith(" with lock")
    if "directory" in name:
        return _directory(tmp_path, paced=name.startswith("paced"))
    if "memory" not in name:
        return _s3(request.getfixturevalue(f"{name.split()[0]}_service"), object_lock=lock)
    made = _memory(HandClock() if lock else None)
    if name.startswith("retrying"):
        made.storage = Retrying(made.storage)
    if name.startswith("faulty"):
        made.storage = Faulty(made.storage)
    return made


@pytest.fixture
def store(case: Case) -> Storage:
    """Return just the storage of each case."""
    return case.storage
