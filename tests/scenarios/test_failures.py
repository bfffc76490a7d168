"""What cannot be done fails and says what to do; what may pass is tried again; a person can stop any job."""

import dataclasses
import random
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from minio import Minio, MinioAdmin
from minio.credentials.providers import StaticProvider

from tests import services
from tests.scenarios.installation import (
    Installation,
    fresh_bucket,
    full_set,
    own_redis_number,
    removed,
    until,
)
from tests.scenarios.relay import Door
from tests.services import S3, Postgres, Redis
from tests.support.trees import difference, snapshot

pytestmark = [pytest.mark.scenario, pytest.mark.slow, pytest.mark.timeout(200)]
SLOW = 2_000_000  # bytes/s
CRAWLING = 2_000
SOON_S = 5


@pytest.fixture(scope="module")
def bucket(minio_service: S3) -> Iterator[str]:
    with fresh_bucket(minio_service) as name:
        yield name


@pytest.fixture
def store(minio_service: S3) -> Minio:
    return services.s3_client(minio_service)


@pytest.fixture(scope="module")
def site(
    tmp_path_factory: pytest.TempPathFactory,
    postgres_service: Postgres,
    redis_service: Redis,
    minio_service: S3,
    bucket: str,
) -> Iterator[Installation]:
    folder = tmp_path_factory.mktemp("failures")
    with own_redis_number(redis_service) as broker:
        with full_set(folder, database=postgres_service, broker=broker) as installation:
            installation.region("main", minio_service, bucket)
            installation.worker()
            yield installation


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    for number in range(12):
        (folder / f"{number}.bin").write_bytes(random.Random(number).randbytes(1 << 20))
    return folder


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"a small file system can't be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def failed(site: Installation, job: str, code: str, advice: str) -> dict[str, Any]:
    """Wait for the failure; it must have this code and say this, and nothing was tried twice."""
    ended = site.ended(job, "failed", seconds=40)
    assert ended["error_code"] == code, ended["error"]
    assert advice in ended["error"]
    assert {step["attempt"] for step in site.steps(job)} == {1}
    return ended


@pytest.fixture
def slowly(site: Installation) -> Iterator[Callable[[int], None]]:
    """Give a function that limits the store, in bytes/s, for jobs that begin from now on; 0 ends that."""

    def limit(bytes_per_s: int) -> None:
        site.api.patch("regions/main/", {"bytes_per_s": bytes_per_s})

    yield limit
    limit(0)


def test_a_revoked_access_key_fails_the_job_and_says_so(
    site: Installation, minio_service: S3, bucket: str, source: Path
) -> None:
    root = StaticProvider(minio_service.access_key, minio_service.secret_key)
    people = MinioAdmin(endpoint=minio_service.endpoint, credentials=root, region=minio_service.region, secure=False)
    people.user_add("keeper", "keeper's secret")
    people.policy_set("readwrite", user="keeper")
    keeper = dataclasses.replace(minio_service, access_key="keeper", secret_key="keeper's secret")
    site.region("guarded", keeper, bucket)
    protected = site.protect("revoked", source, region="guarded")
    people.user_remove("keeper")
    failed(site, site.backup(protected)["id"], "forbidden", "Check the access key")
    assert site.points(protected) == []


def test_a_region_keeps_its_access_key_when_the_new_one_is_refused(site: Installation, source: Path) -> None:
    wrong = {"access_key": "nobody", "secret_key": "nobody's secret"}
    answer = site.api.patch("regions/main/", wrong, expect=409)
    assert answer["errors"][0]["code"] == "region_unusable"
    assert "Check the access key" in answer["errors"][0]["detail"]
    site.ended(site.backup(site.protect("key kept", source))["id"])


def test_a_bucket_that_is_gone_fails_the_job_and_says_so(site: Installation, minio_service: S3, source: Path) -> None:
    client = services.s3_client(minio_service)
    with fresh_bucket(minio_service) as name:
        site.region("passing", minio_service, name)
        protected = site.protect("bucket gone", source, region="passing")
        removed(client, name)
        failed(site, site.backup(protected)["id"], "unreachable", "the bucket's name")
        client.make_bucket(name)


def test_a_full_store_fails_the_job_and_says_so(site: Installation, small_disk: Path, source: Path) -> None:
    site.region("small", small_disk / "store")
    protected = site.protect("store full", source, region="small")
    failed(site, site.backup(protected)["id"], "storage_full", "Free some space")
    assert site.points(protected) == []


def test_a_source_that_is_gone_fails_the_job_and_says_so(site: Installation, tmp_path: Path) -> None:
    protected = site.protect("source gone", tmp_path / "never made")
    ended = failed(site, site.backup(protected)["id"], "source_missing", "never made")
    assert "does not exist" in ended["error"]


@pytest.mark.rule("C27")
def test_a_restore_never_makes_the_folder_it_is_given(site: Installation, source: Path, tmp_path: Path) -> None:
    point = site.ended(site.backup(site.protect("folder missing", source))["id"])["point"]
    missing = tmp_path / "missing"
    failed(site, site.restore(point, missing)["id"], "target_missing", "Make the folder first")
    assert not missing.exists()


def test_a_restore_onto_a_full_disk_tells_which_files_are_missing(
    site: Installation, source: Path, small_disk: Path
) -> None:
    point = site.ended(site.backup(site.protect("disk full", source))["id"])["point"]
    ended = site.ended(site.restore(point, small_disk)["id"], "partial_complete")
    assert 0 < ended["problems_count"] <= len(list(source.iterdir())) + 5
    assert all("No space left" in problem["detail"] for problem in ended["report"]["problems"])
    below = small_disk / str(source).lstrip("/")
    kept = {path.name for path in below.iterdir()}
    assert kept < {path.name for path in source.iterdir()}
    assert all((below / name).read_bytes() == (source / name).read_bytes() for name in kept)


def test_a_job_goes_on_after_its_store_was_away(
    site: Installation, minio_service: S3, bucket: str, source: Path, tmp_path: Path
) -> None:
    door = Door(minio_service.endpoint)
    behind = dataclasses.replace(minio_service, url=f"http://{door.endpoint}", endpoint=door.endpoint)
    site.region("door", behind, bucket, bytes_per_s=SLOW)
    protected = site.protect("store away", source, region="door")
    job = site.backup(protected)["id"]
    until(lambda: site.steps(job, stage="work", state="running"), what="a running unit")
    door.close()
    site.watch(job, lambda now: any("will be" in event["text"] for event in now["events"]))
    door.open()
    ended = site.ended(job)
    out = tmp_path / "out"
    out.mkdir()
    site.ended(site.restore(ended["point"], out)["id"])
    assert difference(snapshot(source), snapshot(out / str(source).lstrip("/"))) == []
    door.close()


@pytest.mark.rule("C42", "C43")
@pytest.mark.parametrize(("stage", "bytes_per_s"), [("plan", CRAWLING), ("work", SLOW)])
def test_a_canceled_backup_stops_soon_and_leaves_earlier_points_as_they_are(
    site: Installation, store: Minio, bucket: str, slowly: Callable[[int], None], tmp_path: Path,
    stage: str, bytes_per_s: int,
) -> None:  # fmt: skip
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "kept").write_bytes(b"as it was")
    protected = site.protect(f"canceled in {stage}", folder)
    earlier = site.ended(site.backup(protected)["id"])
    (folder / "kept").write_bytes(b"changed")
    for number in range(20):
        (folder / f"{number}").write_bytes(random.Random(number).randbytes(1 << 20))
    slowly(bytes_per_s)
    job = site.backup(protected)["id"]
    until(lambda: site.steps(job, stage=stage, state="running"), what=f"a running {stage}")
    stopped_soon(site, job)
    slowly(0)
    staging = f"backups/vaults/{protected.vault}/staging/"
    until(lambda: not list(store.list_objects(bucket, prefix=staging, recursive=True)), what="an empty staging")
    assert [point["id"] for point in site.points(protected)] == [earlier["point"]]
    out = tmp_path / "out"
    out.mkdir()
    site.ended(site.restore(earlier["point"], out)["id"])
    assert (out / str(folder / "kept").lstrip("/")).read_bytes() == b"as it was"
    verify = {"kind": "verify", "vault": protected.vault, "level": "content"}
    site.ended(site.api.post("jobs/", verify, expect=202)["id"])


@pytest.mark.rule("C42", "C43")
@pytest.mark.parametrize("store_is", ["slow", "away", "silent"])
def test_a_backup_of_one_huge_file_is_canceled_in_mid_upload_whatever_the_store_does(
    site: Installation, minio_service: S3, bucket: str, tmp_path: Path, store_is: str
) -> None:
    with Door(minio_service.endpoint) as door:
        behind = dataclasses.replace(minio_service, url=f"http://{door.endpoint}", endpoint=door.endpoint)
        site.region(store_is, behind, bucket, bytes_per_s=SLOW)
        folder = tmp_path / "source"
        folder.mkdir()
        (folder / "small").write_bytes(b"as it was")
        protected = site.protect(f"huge, {store_is}", folder, region=store_is)
        earlier = site.ended(site.backup(protected)["id"])
        (folder / "huge").write_bytes(random.Random(store_is).randbytes(160 << 20))
        job = site.backup(protected)["id"]
        site.watch(job, lambda now: now["bytes_done"] > 16 << 20)
        if store_is == "away":
            door.close()
        elif store_is == "silent":
            door.hush()
        stopped_soon(site, job)
        door.reopen()
        assert [point["id"] for point in site.points(protected)] == [earlier["point"]]


@pytest.mark.rule("C43")
def test_a_canceled_restore_stops_soon_and_leaves_no_half_files(
    site: Installation, slowly: Callable[[int], None], source: Path, tmp_path: Path
) -> None:
    point = site.ended(site.backup(site.protect("restore canceled", source))["id"])["point"]
    out = tmp_path / "out"
    out.mkdir()
    slowly(SLOW)
    job = site.restore(point, out)["id"]
    until(lambda: site.steps(job, stage="work", state="running"), what="a running unit")
    stopped_soon(site, job)
    for path in out.rglob("*"):
        if path.is_file():
            assert path.read_bytes() == (source / path.name).read_bytes()


@pytest.mark.rule("C43")
def test_a_job_that_waits_for_a_worker_is_canceled_at_once(site: Installation, source: Path) -> None:
    job = site.backup(site.protect("nobody there", source, host="nobody"))["id"]
    assert site.api.post(f"jobs/{job}/cancel/", expect=202)["state"] == "canceled"
    assert site.api.post(f"jobs/{job}/cancel/", expect=202)["state"] == "canceled"


def stopped_soon(site: Installation, job: str) -> None:
    """Cancel the job and wait until it stopped; no step is open then."""
    since = time.monotonic()
    assert site.api.post(f"jobs/{job}/cancel/", expect=202)["state"] in ("canceling", "canceled")
    site.ended(job, "canceled", seconds=SOON_S)
    assert time.monotonic() - since < SOON_S
    assert {step["state"] for step in site.steps(job)} <= {"canceled", "complete"}
