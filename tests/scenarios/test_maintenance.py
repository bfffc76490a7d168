"""A vault is maintained, and a source's backups are deleted, without anybody's hand, while two beats tick."""

import filecmp
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.scenarios.installation import Installation, Protected, fresh_bucket, full_set, own_redis_number, until
from tests.services import S3, Postgres, Redis

pytestmark = [pytest.mark.scenario, pytest.mark.slow, pytest.mark.timeout(300)]
SHORTEST = 60  # the shortest interval of maintenance, seconds


@pytest.fixture
def site(tmp_path: Path, postgres_service: Postgres, redis_service: Redis, minio_service: S3) -> Iterator[Installation]:
    with fresh_bucket(minio_service) as bucket, own_redis_number(redis_service) as broker:
        with full_set(tmp_path, database=postgres_service, broker=broker, beats=2) as installation:
            installation.region("main", minio_service, bucket)
            yield installation


def by_itself(site: Installation, protected: Protected, kind: str) -> list[dict[str, Any]]:
    """Wait until maintenance of that kind ended that nobody asked for; return it, newest first."""

    def ended() -> list[dict[str, Any]]:
        jobs = site.api.get("jobs/", vault=protected.vault, kind=kind)["results"]
        return [job for job in jobs if job["trigger"] == "scheduled" and job["ended_at"]]

    return until(ended, seconds=3 * SHORTEST, what=f"{kind}\n{site.logs()}")


def point_of(site: Installation, protected: Protected) -> str:
    return str(site.ended(site.backup(protected)["id"])["point"])


def test_a_deleted_points_space_is_freed_by_itself_and_an_erased_source_goes(
    site: Installation, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "kept").write_bytes(random.Random(1).randbytes(2 << 20))
    protected = site.protect("kept by itself", source)
    path = f"vaults/{protected.vault}/maintenance/"
    with site.working():
        point_of(site, protected)
        (source / "gone").write_bytes(random.Random(2).randbytes(2 << 20))
        doomed = point_of(site, protected)
        (source / "gone").unlink()
        newest = point_of(site, protected)
        typed = {"confirmation": "kept by itself"}
        site.ended(site.api.post(f"recovery-points/{doomed}/delete/", typed, expect=202)["id"])
        assert doomed not in {one["id"] for one in site.points(protected)}

        site.api.patch(path, {"prune": SHORTEST, "expire": SHORTEST, "verify": SHORTEST})
        pruned = by_itself(site, protected, "prune")
        assert site.job(pruned[-1]["id"])["report"]["bytes_freed"] > 2 << 20
        for kind in ("expire", "verify"):
            assert {job["state"] for job in by_itself(site, protected, kind)} == {"complete"}
        duties = {duty["kind"]: duty for duty in site.api.get(path)}
        assert duties["prune"]["last_job"]["state"] == "complete"
        assert len(site.points(protected)) == 2

        out = tmp_path / "out"
        out.mkdir()
        site.ended(site.restore(newest, out)["id"])
        assert filecmp.cmp(source / "kept", out / str(source).lstrip("/") / "kept", shallow=False)

        site.api.post(f"sources/{protected.source}/erase/", typed, expect=202)
        until(lambda: not site.points(protected), seconds=60, what=f"the deletion\n{site.logs()}")
        site.api.get(f"plans/{protected.plan}/", expect=404)
