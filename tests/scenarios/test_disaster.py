"""The worst day: database, secrets and key file are gone; only the bucket is left, and a recovery key on paper."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.scenarios.installation import Installation, fresh_database, full_set, own_redis_number, until
from tests.services import S3, Postgres, Redis
from tests.support.trees import build_real, difference, snapshot

pytestmark = [pytest.mark.scenario, pytest.mark.slow, pytest.mark.timeout(600)]
FILES = 200
# What the service finds out again by itself, or what a new beginning starts anew.
NEW = {"next_run_at", "coverage", "probed_at", "jobs", "created_at", "expires_at"}
PLACES = ("accounts/", "regions/", "vaults/", "sources/", "policies/", "plans/", "recovery-points/")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    build_real(folder, files=FILES)
    return folder


@pytest.fixture
def broker(redis_service: Redis) -> Iterator[str]:
    with own_redis_number(redis_service) as url:
        yield url


def told(installation: Installation) -> dict[str, list[dict[str, Any]]]:
    """Return what the API says of everything, without what is new after a rebuild."""
    found = {place: installation.api.get(place, page_size=500)["results"] for place in PLACES}
    rows = {
        place: [{name: value for name, value in row.items() if name not in NEW} for row in rows]
        for place, rows in found.items()
    }
    return {place: sorted(some, key=lambda row: str(row["id"])) for place, some in rows.items()}


def exported(installation: Installation, vault: str) -> str:
    """Return the key of the vault's export once all points are registered and the rows have settled."""
    until(lambda: installation.api.get(f"vaults/{vault}/condition/")["export"], what="an export")
    job = installation.api.post("jobs/", {"kind": "disaster", "vault": vault}, expect=202)
    report = installation.ended(job["id"])["report"]
    assert report["problems"] == []
    assert report["seconds"] > 0
    return str(report["export"])


@pytest.mark.invariant(23)
def test_the_service_comes_back_from_a_bucket_on_minio_and_a_recovery_key(
    tmp_path: Path,
    folder: Path,
    broker: str,
    postgres_service: Postgres,
    minio_service: S3,
    s3_bucket: Callable[..., str],
) -> None:
    bucket = s3_bucket(minio_service)
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    with full_set(first, database=postgres_service, broker=broker) as lost:
        lost.worker()
        lost.region("main", minio_service, bucket)
        protected = lost.protect(
            "home", folder, policy={"rules": [{"unit": "hour", "every": 3}], "time_zone": "Europe/Berlin"}
        )
        lost.ended(lost.backup(protected)["id"])
        (folder / "later").write_text("the second point has this")
        lost.ended(lost.backup(protected)["id"])
        assert exported(lost, protected.vault).startswith("system/")
        expected = told(lost)
    assert len(expected["recovery-points/"]) == 2

    key = tmp_path / "paper.key"
    key.write_text(protected.recovery_key)
    with fresh_database(postgres_service) as database:
        found = Installation(
            second,
            {
                "DATABASE_URL": database,
                "BROKER_URL": broker,
                "SECRET_KEY": "another-" + "k" * 50,
                "BACKUPSITE_FIELD_KEYS": "7d" * 32,
                "BACKUPSITE_KEY_FILE": str(second / "service.key"),
                "ALLOWED_HOSTS": "127.0.0.1",
                "AWS_ACCESS_KEY_ID": minio_service.access_key,
                "AWS_SECRET_ACCESS_KEY": minio_service.secret_key,
            },
        )
        try:
            found.set_up()
            place = ["--url", f"s3://{bucket}/backups", "--endpoint", minio_service.url]
            options = [*place, "--recovery-key-file", str(key), "--resume"]
            assert "1 vaults" in found.manage("rebuild_from_bucket", *options)
            assert " 0 rows, 0 recovery points" in found.manage("rebuild_from_bucket", *options)
            found.run()
            assert told(found) == expected
            found.worker()
            restored(found, protected.vault, folder, tmp_path / "back")
            found.ended(found.backup(protected)["id"])
            assert exported(found, protected.vault)
        finally:
            found.end()


def restored(installation: Installation, vault: str, folder: Path, target: Path) -> None:
    """Restore the newest point and compare every byte and every attribute with the folder."""
    target.mkdir()
    points = installation.api.get("recovery-points/", vault=vault)["results"]
    newest = max(points, key=lambda point: point["completed_at"])
    job = until(lambda: started(installation, newest["id"], target), what="a worker of the host")
    assert installation.ended(job)["problems_count"] == 0
    assert difference(snapshot(folder), snapshot(target / str(folder).lstrip("/"))) == []


def started(installation: Installation, point: str, target: Path) -> str:
    """Return the id of a restore job, empty while no worker of the host was seen."""
    try:
        return str(installation.restore(point, target)["id"])
    except AssertionError as error:
        if "destination_offline" not in str(error):
            raise
        return ""
