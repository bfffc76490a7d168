"""Backup and restore through the API on real workers, PostgreSQL, Redis and MinIO, also when parts of it die."""

import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.services import S3, Postgres, Redis
from tests.support.control import read_tree
from tests.support.installation import Installation, wait

pytestmark = [pytest.mark.scenario, pytest.mark.slow, pytest.mark.timeout(300)]
QUEUES = ("host.web1", "region.main")
FILES, FILE_BYTES = 64, 4 << 20
BYTES_PER_S = 30_000_000  # of one worker: slow enough to be met in the middle


@pytest.fixture
def files(tmp_path: Path) -> Path:
    dice = random.Random(3)
    folder = tmp_path / "files"
    for number in range(FILES):
        path = folder / f"d{number % 7}" / f"file{number}.bin"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(dice.randbytes(FILE_BYTES))
    return folder


@pytest.fixture
def site(tmp_path: Path, postgres_service: Postgres, redis_service: Redis) -> Iterator[Installation]:
    folder = tmp_path / "installation"
    folder.mkdir()
    installation = Installation(folder, postgres=postgres_service, redis=redis_service)
    try:
        installation.serve()
        yield installation
    finally:
        installation.stop()


@pytest.fixture
def plan(site: Installation, files: Path, minio_service: S3, s3_bucket) -> str:
    made = site.protect(files, s3=minio_service, bucket=s3_bucket(minio_service), bytes_per_s=BYTES_PER_S)
    return made["plan"]


def start_backup(site: Installation, plan: str) -> str:
    return str(site.call("POST", "jobs/", {"kind": "backup", "plan": plan})["id"])


def in_the_middle(site: Installation, job: str) -> list[dict[str, Any]]:
    """Wait until some units are done and one is running; return the steps."""

    def look() -> list[dict[str, Any]] | None:
        work = [step for step in site.steps(job) if step["stage"] == "work"]
        states = [step["state"] for step in work]
        return work if "complete" in states and "running" in states else None

    return list(wait(look))


def check_restore(site: Installation, job: dict[str, Any], files: Path, tmp_path: Path) -> None:
    """Restore the job's point into an empty folder and compare everything."""
    assert job["state"] == "complete", job
    assert len(site.call("GET", "recovery-points/")["results"]) == 1
    out = tmp_path / "out"
    out.mkdir()
    restored = site.call("POST", "jobs/", {"kind": "restore", "point": job["point"], "to": str(out)})["id"]
    assert site.finished(restored)["state"] == "complete"
    assert read_tree(out / str(files).strip("/")) == read_tree(files)


@pytest.mark.rule("B10", "B11", "C29")
def test_a_backup_is_browsed_downloaded_and_restored_while_every_doorbell_rings_twice(site, plan, files, tmp_path):
    site.worker("w1", *QUEUES)
    site.worker("w2", *QUEUES)
    job = start_backup(site, plan)
    rung: set[int] = set()
    done = threading.Event()

    def ring_again() -> None:
        while not done.wait(0.2):
            for step in site.steps(job):
                if step["id"] not in rung:
                    rung.add(step["id"])
                    site.ring(step["id"], step["queue"])

    twin = threading.Thread(target=ring_again)
    twin.start()
    try:
        ended = site.finished(job)
    finally:
        done.set()
        twin.join()
    steps = site.steps(job)
    assert rung >= {step["id"] for step in steps if step["stage"] != "finish"}
    assert {step["attempt"] for step in steps} == {1}
    assert len([step for step in steps if step["stage"] == "work"]) >= 3
    assert len({step["worker"] for step in steps}) == 2
    some = sorted(files.rglob("*.bin"))[0]
    point = f"recovery-points/{ended['point']}"
    listed = site.call("GET", f"{point}/entries/?path={quote(str(some.parent))}")["entries"]
    assert some.name in {entry["name"] for entry in listed}
    assert site.fetch("GET", f"{point}/file/?path={quote(str(some))}") == some.read_bytes()
    check_restore(site, ended, files, tmp_path)


def test_another_worker_takes_over_when_one_is_killed_in_the_middle(site, plan, files, tmp_path):
    first = site.worker("w1", *QUEUES)
    job = start_backup(site, plan)
    in_the_middle(site, job)
    site.kill(first)
    site.worker("w2", *QUEUES)
    ended = site.finished(job)
    steps = site.steps(job)
    assert max(step["attempt"] for step in steps) == 2
    assert {step["state"] for step in steps} == {"complete"}
    check_restore(site, ended, files, tmp_path)


def test_a_job_goes_on_when_redis_loses_everything_in_the_middle(site, plan, files, tmp_path):
    site.worker("w1", *QUEUES)
    job = start_backup(site, plan)
    in_the_middle(site, job)
    site.flush_redis()
    check_restore(site, site.finished(job), files, tmp_path)


@pytest.mark.rule("C42", "C43")
def test_a_running_backup_stops_when_it_is_canceled_and_leaves_no_point(site, plan):
    site.worker("w1", *QUEUES)
    job = start_backup(site, plan)
    in_the_middle(site, job)
    site.call("POST", f"jobs/{job}/cancel/")
    assert site.finished(job)["state"] == "canceled"
    assert site.call("GET", "recovery-points/")["results"] == []
