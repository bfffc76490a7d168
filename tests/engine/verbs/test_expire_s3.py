"""Expiry on real servers with object lock: their refusals, their versions, their clock."""

import datetime as dt
import time
from collections.abc import Callable

import pytest

from engine.errors import ExpiryRefused
from engine.point import point_key
from engine.retention import Rules
from engine.storage import Location, open_storage
from tests import services
from tests.services import S3
from tests.support.expiry import expired, made_point, parts, text, visible
from tests.support.vaults import START, Bench

pytestmark = pytest.mark.services
LOCK_S = 6


def real_time() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


@pytest.fixture
def bucket(s3_service: S3, s3_bucket: Callable[..., str]) -> str:
    return s3_bucket(s3_service, object_lock=True)


@pytest.fixture
def real(s3_service: S3, bucket: str) -> Bench:
    """A vault in a bucket with object lock, at the real time."""
    place = Location.parse(
        f"s3://{bucket}/a/vault", endpoint=s3_service.url, access_key=s3_service.access_key,
        secret_key=s3_service.secret_key, region=s3_service.region,
    )  # fmt: skip
    bench = Bench(open_storage(place))
    bench.clock = real_time  # type: ignore[assignment] # whatever tells the time
    return bench


@pytest.mark.rule("B6")
def test_a_locked_point_outlives_a_person_and_a_wrong_clock_and_goes_when_its_lock_is_over(real: Bench):
    point = made_point(real)
    until = (real_time() + dt.timedelta(seconds=LOCK_S)).replace(microsecond=0)
    for part in ("root", "commit"):
        real.storage.extend_lock(point_key(*point, part), until=until)
    [refused] = expired(real, points=(text(point),)).refused
    assert refused.until == until
    assert refused.reason.startswith("locked until ")

    later = expired(real, points=(text(point),), now=until + dt.timedelta(days=1), confirmed=True)
    assert (later.shown, later.deleted) == ([text(point)], [])
    assert later.refused[0].until == until
    assert visible(real) == {text(point)}
    assert parts(real, point) == {"root", "commit"}

    time.sleep(max((until - real_time()).total_seconds() + 1.5, 0))
    assert expired(real, points=(text(point),), confirmed=True).deleted == [text(point)]


@pytest.mark.invariant(20)
def test_a_deleted_point_leaves_no_version_and_no_marker(real: Bench, s3_service: S3, bucket: str):
    points = [made_point(real) for _ in range(2)]
    assert expired(real, default=Rules(days=0, last=1)).deleted == [text(points[0])]
    client = services.s3_client(s3_service)
    left = [one.object_name for one in client.list_objects(bucket, recursive=True, include_version=True)]
    assert [name for name in left if points[0].point in str(name)] == [f"a/vault/{point_key(*points[0], 'expired')}"]
    assert len([name for name in left if "/expiry/" in str(name)]) == 1


@pytest.mark.invariant(28)
def test_the_stores_clock_is_believed_before_ours(real: Bench):
    with pytest.raises(ExpiryRefused, match="and the store's clock says 20"):
        expired(real, now=START + dt.timedelta(days=4000))
    assert expired(real).objections == []
