"""Steps go where they belong, one backup of a source runs at a time, and due plans run without anybody's hand."""

import datetime as dt
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.scenarios.installation import Installation, Protected, fresh_bucket, full_set, own_redis_number, until
from tests.services import S3, Postgres, Redis

pytestmark = [pytest.mark.scenario, pytest.mark.slow, pytest.mark.timeout(200)]
SLOW = 1_000_000  # bytes/s
NEW_REGION_S = 15  # a worker that runs serves a new region within this time


@pytest.fixture(scope="module")
def bucket(minio_service: S3) -> Iterator[str]:
    with fresh_bucket(minio_service) as name:
        yield name


@pytest.fixture(scope="module")
def site(
    tmp_path_factory: pytest.TempPathFactory,
    postgres_service: Postgres,
    redis_service: Redis,
    minio_service: S3,
    bucket: str,
) -> Iterator[Installation]:
    """An installation with two beats and, so far, no worker."""
    folder = tmp_path_factory.mktemp("queues")
    with own_redis_number(redis_service) as broker:
        with full_set(folder, database=postgres_service, broker=broker, beats=2) as installation:
            installation.region("main", minio_service, bucket)
            yield installation


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    for number in range(8):
        (folder / f"{number}.bin").write_bytes(random.Random(number).randbytes(1 << 20))
    return folder


@pytest.fixture
def slowly(site: Installation) -> Iterator[None]:
    """Make the store slow for jobs that begin inside the test."""
    site.api.patch("regions/main/", {"bytes_per_s": SLOW})
    yield
    site.api.patch("regions/main/", {"bytes_per_s": 0})


def soon(seconds: float = 4) -> dict[str, Any]:
    """Return a daily policy whose next moment comes in a few seconds."""
    moment = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=seconds)
    return {"rules": [{"start_time": moment.strftime("%H:%M:%S")}], "time_zone": "UTC"}


def jobs_of(site: Installation, protected: Protected) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = site.api.get("jobs/", plan=protected.plan)["results"]
    return found


def test_steps_go_to_the_worker_of_the_host_and_to_the_worker_of_the_region(site: Installation, source: Path) -> None:
    with site.working("host.alpha") as reader, site.working("region.main", "default") as finisher:
        job = site.backup(site.protect("two workers", source))["id"]
        site.ended(job)
        for step in site.steps(job):
            finishes = step["stage"] == "finish"
            assert step["queue"] == ("region.main" if finishes else "host.alpha")
            assert (finisher if finishes else reader).owns(step["worker"])


def test_a_source_waits_until_a_worker_runs_on_its_host(site: Installation, source: Path) -> None:
    protected = site.protect("beta", source, host="beta")
    with site.working():
        job = site.backup(protected)["id"]
        other = site.protect("alpha meanwhile", source)
        site.ended(site.backup(other)["id"])
        assert site.job(job)["state"] == "queued"
        with site.working("host.beta", host="beta"):
            site.ended(job)


@pytest.mark.rule("C26")
def test_a_restore_is_refused_while_no_worker_runs_on_its_host(
    site: Installation, source: Path, tmp_path: Path
) -> None:
    protected = site.protect("gamma", source, host="gamma")
    out = tmp_path / "out"
    out.mkdir()
    with site.working():
        worker = site.worker("host.gamma", host="gamma")
        point = site.ended(site.backup(protected)["id"])["point"]
        worker.stop()
        refused = site.restore(point, out, expect=409)
        assert refused["errors"][0]["code"] == "destination_offline"
        assert "host.gamma" in refused["errors"][0]["detail"]
        with site.working("host.gamma", host="gamma"):
            until(lambda: _accepted(site, point, out), seconds=30, what="the host")


def _accepted(site: Installation, point: str, out: Path) -> bool:
    try:
        job = site.restore(point, out)
    except AssertionError:
        return False
    site.ended(job["id"])
    return True


@pytest.mark.rule("C25")
def test_a_restore_to_a_host_of_another_region_is_refused(site: Installation, source: Path, tmp_path: Path) -> None:
    site.region("elsewhere", tmp_path / "elsewhere")
    abroad = site.protect("abroad", source, region="elsewhere")
    with site.working():
        point = site.ended(site.backup(site.protect("at home", source))["id"])["point"]
        refused = site.restore(point, tmp_path, expect=409, destination=abroad.source)
    assert refused["errors"][0]["code"] == "destination_in_other_region"


def test_a_worker_serves_a_region_made_after_it_started(
    site: Installation, source: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    with site.working() as worker:
        site.ended(site.backup(site.protect("before", source))["id"])
        site.region("late", tmp_path / "late")
        since = time.monotonic()
        job = site.backup(site.protect("after", source, region="late"))["id"]
        site.ended(job, seconds=NEW_REGION_S)
        request.node.user_properties.append(("seconds to the new region", round(time.monotonic() - since, 1)))
        (step,) = site.steps(job, stage="finish")
        assert step["queue"] == "region.late"
        assert worker.owns(step["worker"])


@pytest.mark.rule("C52", "C54")
@pytest.mark.usefixtures("slowly")
def test_one_backup_of_a_source_runs_at_a_time(site: Installation, source: Path) -> None:
    protected = site.protect("busy", source)
    with site.working():
        job = site.backup(protected)["id"]
        until(lambda: site.steps(job, stage="work", state="running"), what="a running unit")
        for plan in (protected, site.bind("busy, too", protected.source, protected.vault)):
            refused = site.backup(plan, expect=409)
            assert refused["errors"][0]["code"] == "source_busy"
            assert refused["context"]["job"] == job
        timely = site.bind("busy and due", protected.source, protected.vault, policy=soon(2))
        skipped = until(lambda: jobs_of(site, timely), seconds=20, what="the scheduled run")
        assert [(one["state"], one["trigger"]) for one in skipped] == [("skipped", "scheduled")]
        assert job in skipped[0]["error"]
        site.ended(job)
    assert len(site.points(protected)) == 1


@pytest.mark.rule("B16", "C20")
def test_a_due_plan_runs_once_without_anybodys_hand_while_two_beats_tick(site: Installation, source: Path) -> None:
    with site.working(), site.working():
        until(lambda: served(site, source), seconds=30, what="a worker of the host")
        protected = site.protect("due", source, policy=soon())
        (job,) = until(lambda: jobs_of(site, protected), seconds=30, what="the scheduled run")
        assert job["trigger"] == "scheduled"
        site.ended(job["id"])
        time.sleep(3)  # three more sweeps
    assert [one["id"] for one in jobs_of(site, protected)] == [job["id"]]
    assert len(site.points(protected)) == 1
    plan = site.api.get(f"plans/{protected.plan}/")
    assert plan["next_run_at"] > job["scheduled_for"]


def served(site: Installation, source: Path) -> bool:
    """Say whether the workers take steps by now."""
    name = f"warm-up {time.monotonic_ns()}"
    site.ended(site.backup(site.protect(name, source / "0.bin"))["id"])
    return True


@pytest.mark.rule("C19")
def test_a_due_plan_of_a_host_without_a_worker_is_recorded_as_missed(site: Installation, source: Path) -> None:
    with site.working():
        protected = site.protect("absent", source, host="absent", policy=soon(3))
        (job,) = until(lambda: jobs_of(site, protected), seconds=30, what="the scheduled run")
    assert job["state"] == "missed"
    assert "No worker was running on absent" in job["error"]
