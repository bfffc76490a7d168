"""Jobs end well whatever dies in the middle: a worker at any stage, the broker or its memory; or comes twice."""

import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import services
from tests.scenarios.broker import OwnRedis
from tests.scenarios.installation import Installation, Protected, fresh_bucket, full_set, until
from tests.services import S3, Postgres
from tests.support.trees import difference, snapshot

pytestmark = [pytest.mark.scenario, pytest.mark.slow, pytest.mark.timeout(200)]
FILES, FILE_BYTES = 25, 4 << 20  # two units of work
SLOW = 12_000_000  # bytes/s: a unit takes some seconds
CRAWLING = 1_000  # bytes/s: the first objects that a stage writes take seconds


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnRedis]:
    own = OwnRedis(tmp_path_factory.mktemp("broker"))
    yield own
    own.stop()


@pytest.fixture(scope="module")
def bucket(minio_service: S3) -> Iterator[str]:
    with fresh_bucket(minio_service) as name:
        yield name


@pytest.fixture(scope="module")
def site(
    tmp_path_factory: pytest.TempPathFactory,
    postgres_service: Postgres,
    broker: OwnRedis,
    minio_service: S3,
    bucket: str,
) -> Iterator[Installation]:
    folder = tmp_path_factory.mktemp("losses")
    with full_set(folder, database=postgres_service, broker=broker.url) as installation:
        installation.region("main", minio_service, bucket)
        yield installation


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    dice = random.Random(5)
    for number in range(FILES):
        path = folder / f"folder {number % 3}" / f"{number}.bin"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(dice.randbytes(FILE_BYTES))
    return folder


@pytest.fixture
def protected(site: Installation, source: Path, request: pytest.FixtureRequest) -> Protected:
    limit(site, 0)
    return site.protect(request.node.name[:60], source)


@pytest.fixture
def proven(
    site: Installation, protected: Protected, source: Path, tmp_path: Path, minio_service: S3, bucket: str
) -> Callable[[str], dict[str, Any]]:
    """Give a check: the job completes, made one point, which restores; no step is open, nothing is left in staging."""

    def check(job: str) -> dict[str, Any]:
        ended = site.ended(job)
        assert {step["state"] for step in site.steps(job)} <= {"complete", "canceled"}
        assert [point["id"] for point in site.points(protected)] == [ended["point"]]
        limit(site, 0)
        out = tmp_path / "out"
        out.mkdir()
        with site.working():
            site.ended(site.restore(ended["point"], out)["id"])
            staging = f"backups/vaults/{protected.vault}/staging/"
            client = services.s3_client(minio_service)
            until(
                lambda: not list(client.list_objects(bucket, prefix=staging, recursive=True)), what="an empty staging"
            )
        assert difference(snapshot(source), snapshot(out / str(source).lstrip("/"))) == []
        return ended

    return check


def limit(site: Installation, bytes_per_s: int) -> None:
    """Make the store slow for steps that begin from now on; 0 makes it fast."""
    site.api.patch("regions/main/", {"bytes_per_s": bytes_per_s})


def running(site: Installation, job: str, stage: str) -> dict[str, Any]:
    """Wait until a step of this stage runs and return it."""
    return until(lambda: next(iter(site.steps(job, stage=stage, state="running")), None), what=f"a running {stage}")


def met_in_the_middle(job: dict[str, Any]) -> bool:
    return bool(job["stage"] == "work" and job["units_done"])


@pytest.fixture
def timed(request: pytest.FixtureRequest) -> Callable[[float], None]:
    """Give a recorder of the seconds since a loss; they stand in the JUnit report."""

    def record(since: float) -> None:
        request.node.user_properties.append(("seconds from the loss to the end", round(time.monotonic() - since, 1)))

    return record


def test_another_worker_takes_over_when_one_dies_while_it_plans(
    site: Installation, protected: Protected, proven: Callable[[str], Any], timed: Callable[[float], None]
) -> None:
    limit(site, CRAWLING)
    with site.working() as worker:
        job = site.backup(protected)["id"]
        step = running(site, job, "plan")
        assert worker.owns(step["worker"])
    since = time.monotonic()
    limit(site, 0)
    with site.working():
        site.ended(job)
        timed(since)
    proven(job)
    assert [step["attempt"] for step in site.steps(job, stage="plan")] == [2]


def test_another_worker_takes_over_when_one_dies_while_it_works(
    site: Installation, protected: Protected, proven: Callable[[str], Any], timed: Callable[[float], None]
) -> None:
    limit(site, SLOW)
    with site.working():
        job = site.backup(protected)["id"]
        site.watch(job, met_in_the_middle)
        in_hand = [step["id"] for step in site.steps(job, stage="work", state="running")]
        done = [step["id"] for step in site.steps(job, stage="work", state="complete")]
    since = time.monotonic()
    limit(site, 0)
    with site.working():
        site.ended(job)
        timed(since)
    proven(job)
    attempts = {step["id"]: step["attempt"] for step in site.steps(job, stage="work")}
    assert in_hand
    assert {attempts[one] for one in in_hand} == {2}
    assert {attempts[one] for one in done} == {1}


@pytest.mark.invariant(6)
def test_a_worker_that_hung_past_its_lease_changes_nothing_when_it_goes_on(
    site: Installation, protected: Protected, proven: Callable[[str], Any]
) -> None:
    limit(site, SLOW)
    with site.working() as frozen:
        job = site.backup(protected)["id"]
        site.watch(job, met_in_the_middle)
        frozen.freeze()
        limit(site, 0)
        with site.working():
            site.ended(job)
            frozen.thaw()
            time.sleep(3)  # it finishes its unit, and finds that the step is another's
            ended = proven(job)
    assert site.job(job)["point"] == ended["point"]
    assert max(step["attempt"] for step in site.steps(job, stage="work")) == 2


def test_another_worker_takes_over_when_one_dies_while_it_finishes(
    site: Installation, protected: Protected, proven: Callable[[str], Any], timed: Callable[[float], None]
) -> None:
    with site.working("host.alpha", "default"):
        job = site.backup(protected)["id"]
        site.watch(job, lambda now: now["stage"] == "finish")
        limit(site, CRAWLING)
        with site.working("region.main") as worker:
            step = running(site, job, "finish")
            assert worker.owns(step["worker"])
        since = time.monotonic()
        limit(site, 0)
        with site.working("region.main"):
            site.ended(job)
            timed(since)
    proven(job)


def test_another_worker_takes_over_when_one_dies_while_it_restores(
    site: Installation, protected: Protected, source: Path, timed: Callable[[float], None], tmp_path: Path
) -> None:
    with site.working():
        point = site.ended(site.backup(protected)["id"])["point"]
        limit(site, SLOW)
        job = site.restore(point, tmp_path)["id"]
        site.watch(job, lambda now: now["bytes_done"] > 8 * FILE_BYTES)
    since = time.monotonic()
    limit(site, 0)
    with site.working():
        site.ended(job)
        timed(since)
    assert 2 in {step["attempt"] for step in site.steps(job)}
    assert difference(snapshot(source), snapshot(tmp_path / str(source).lstrip("/"))) == []


def test_a_worker_that_is_asked_to_stop_ends_its_step_first(
    site: Installation, protected: Protected, proven: Callable[[str], Any]
) -> None:
    limit(site, SLOW)
    worker = site.worker(steps=1)
    job = site.backup(protected)["id"]
    running(site, job, "work")
    worker.stop()
    assert not site.steps(job, state="running")
    limit(site, 0)
    with site.working():
        site.ended(job)
    proven(job)
    assert {step["attempt"] for step in site.steps(job)} == {1}


def test_a_job_goes_on_when_the_database_cuts_every_connection(
    site: Installation, protected: Protected, proven: Callable[[str], Any], timed: Callable[[float], None]
) -> None:
    limit(site, SLOW)
    with site.working():
        job = site.backup(protected)["id"]
        running(site, job, "work")
        site.cut_database()
        since = time.monotonic()
        site.ended(job)
        timed(since)
    proven(job)


def test_a_job_goes_on_when_redis_forgets_everything(
    site: Installation,
    protected: Protected,
    broker: OwnRedis,
    proven: Callable[[str], Any],
    timed: Callable[[float], None],
) -> None:
    limit(site, SLOW)
    with site.working(steps=1):
        job = site.backup(protected)["id"]
        site.watch(job, met_in_the_middle)
        broker.forget_everything()
        since = time.monotonic()
        site.ended(job)
        timed(since)
    proven(job)


def test_a_job_goes_on_when_redis_stops_and_starts_again(
    site: Installation,
    protected: Protected,
    broker: OwnRedis,
    proven: Callable[[str], Any],
    timed: Callable[[float], None],
) -> None:
    limit(site, SLOW)
    with site.working(steps=1):
        job = site.backup(protected)["id"]
        site.watch(job, met_in_the_middle)
        broker.stop()
        asked_without_a_broker = {"kind": "verify", "vault": protected.vault, "level": "inventory"}
        meanwhile = site.api.post("jobs/", asked_without_a_broker, expect=202)["id"]
        since = time.monotonic()
        broker.start()
        site.ended(job)
        timed(since)
        site.ended(meanwhile)
    proven(job)


def test_every_doorbell_may_ring_many_times(
    site: Installation, protected: Protected, broker: OwnRedis, proven: Callable[[str], Any]
) -> None:
    limit(site, SLOW)
    rung: dict[int, int] = {}

    def ring_all(job: dict[str, Any]) -> bool:
        for step in site.steps(job["id"]):
            rung[step["id"]] = rung.get(step["id"], 0) + 3
            site.ring(step, times=3)
        return bool(job["state"] == "complete")

    with site.working(), site.working():
        job = site.backup(protected)["id"]
        site.watch(job, ring_all)
        steps = site.steps(job)
        until(
            lambda: not sum(broker.waiting(queue) for queue in {step["queue"] for step in steps}), what="empty queues"
        )
    assert rung.keys() == {step["id"] for step in steps}
    assert {step["attempt"] for step in steps} == {1}
    proven(job)
