"""A second region on a second MinIO: killed replicators, a cut line, rotten objects, the loss of the first region."""

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import services
from tests.scenarios.relay import Door
from tests.scenarios.test_command_line import CommandLine
from tests.services import S3
from tests.support.trees import difference, snapshot

pytestmark = [pytest.mark.scenario, pytest.mark.timeout(300)]
KILLS = 9
VERSIONS = 3


class Regions:
    """A vault on one server and its replica on another; the line to the first can be cut."""

    def __init__(self, near: S3, far: S3, buckets: tuple[str, str], folder: Path) -> None:
        self.near, self.bucket, self.folder = near, buckets[0], folder
        self.door = Door(near.endpoint)
        self.vault = self._line(near, f"http://{self.door.endpoint}", buckets[0], folder / "near")
        self.replica = self._line(far, far.url, buckets[1], folder / "far")
        self.place = folder / "source.json"
        self.place.touch(0o600)
        keys = {"access_key": near.access_key, "secret_key": near.secret_key, "region": near.region}
        address = {"url": f"s3://{buckets[0]}/vault", "endpoint": f"http://{self.door.endpoint}", **keys}
        self.place.write_text(json.dumps(address))
        self.source = ("--from", str(self.place))

    def _line(self, server: S3, url: str, bucket: str, folder: Path) -> CommandLine:
        folder.mkdir()
        environment = {
            "BACKUPSITE_S3_ENDPOINT": url,
            "BACKUPSITE_S3_ACCESS_KEY": server.access_key,
            "BACKUPSITE_S3_SECRET_KEY": server.secret_key,
            "BACKUPSITE_S3_REGION": server.region,
        }
        return CommandLine(f"s3://{bucket}/vault", folder, environment)

    def link(self) -> None:
        self.vault.run("init")
        self.replica.run("link", *self.source, "--from-key-file", str(self.folder / "near" / "service.key"))


@pytest.fixture
def regions(minio_service: S3, minio_far_service: S3, s3_bucket: Callable[..., str], tmp_path: Path) -> Regions:
    buckets = s3_bucket(minio_service), s3_bucket(minio_far_service)
    return Regions(minio_service, minio_far_service, buckets, tmp_path)


def version(folder: Path, number: int) -> Path:
    """Change some of the folder's files and add one; return a copy of it as it is now."""
    noise = random.Random(number)
    folder.mkdir(exist_ok=True)
    for name in range(40):
        if number == 0 or name % 7 == number:
            (folder / f"file{name}").write_bytes(noise.randbytes(50_000))
    (folder / f"large{number}").write_bytes(noise.randbytes(6 << 20))
    shutil.copytree(folder, kept := folder.parent / f"version{number}", symlinks=True)
    return kept


def kill_at_random(regions: Regions, rng: random.Random) -> bool:
    """Start a replication and kill it somewhere; say whether it was faster."""
    process = regions.replica.start("replicate", *regions.source)
    time.sleep(rng.uniform(0.2, 1.6))
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    return process.returncode == 0


@pytest.mark.invariant(21, 22)
@pytest.mark.rule("E2", "E4", "E27", "E36")
def test_the_second_region_has_every_version_when_the_first_is_lost(regions: Regions, tmp_path: Path) -> None:
    regions.link()
    home, rng = tmp_path / "home", random.Random(7)
    points: dict[str, Path] = {}
    for number in range(VERSIONS):
        kept = version(home, number)
        points[regions.vault.run("backup", str(home), "--series", "home")["point"]] = kept
        for _ in range(KILLS // VERSIONS):
            kill_at_random(regions, rng)
            assert regions.replica.run("verify", "--level", "content")["state"] == "complete"
    # The line is cut: nothing comes, what came is whole, and it goes on afterwards.
    regions.door.close()
    regions.replica.run("replicate", *regions.source, expect=1)
    assert regions.replica.run("verify", "--level", "content")["state"] == "complete"
    regions.door.open()
    assert regions.replica.run("replicate", *regions.source)["state"] == "complete"
    rot(regions, rng)
    assert regions.vault.run("verify", "--level", "scrub", expect=1)["state"] == "failed"
    assert len(regions.replica.run("replicate", *regions.source)["healed"]["source"]) == 1
    assert regions.vault.run("verify", "--level", "content")["state"] == "complete"
    # The first region is gone, with its keys.
    regions.door.close()
    shutil.rmtree(tmp_path / "near")
    shutil.rmtree(tmp_path / "far" / "cache", ignore_errors=True)
    regions.replica.run("unlink", "--confirm")
    regions.replica.run("rebuild")
    assert {one["point"] for one in regions.replica.run("points")["points"]} == set(points)
    for point, kept in points.items():
        out = tmp_path / f"out-{point}"
        out.mkdir()
        regions.replica.run("restore", point, "--to", str(out))
        assert difference(snapshot(kept), snapshot(out / str(home)[1:])) == []


def rot(regions: Regions, rng: random.Random) -> None:
    """Change one byte of a pack in the first region behind everybody's back."""
    client = services.s3_client(regions.near)
    packs = list(client.list_objects(regions.bucket, "vault/packs/", recursive=True))
    key = rng.choice(sorted(str(one.object_name) for one in packs))
    answer = client.get_object(regions.bucket, key)
    data = bytearray(answer.read())
    answer.close()
    data[len(data) // 2] ^= 0x40
    path = regions.folder / "rotten"
    path.write_bytes(data)
    client.fput_object(regions.bucket, key, str(path))


def test_a_place_that_is_no_description_is_refused_with_what_to_do(regions: Regions) -> None:
    regions.link()
    answer = regions.replica.run("replicate", "--from", "s3://bucket/vault", expect=2)
    assert "describe it in a JSON file" in answer["error"]["message"]
    regions.place.chmod(0o644)
    answer = regions.replica.run("replicate", *regions.source, expect=2)
    assert "chmod 600" in answer["error"]["message"]
