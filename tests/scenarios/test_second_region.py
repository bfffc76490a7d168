"""The day on which a region and the control plane are lost together: what the second region has brings everything back.

The service runs as it does in earnest: a database, a broker, workers of both regions, two MinIO servers. Hours go by,
replicators die, both servers go away and come back, objects rot at both ends; then only the replica's bucket is left.
"""

import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests import services
from tests.scenarios.installation import Installation, Process, fresh_database, full_set, own_redis_number, until
from tests.scenarios.stores import OwnMinio, two_regions
from tests.services import Postgres, Redis
from tests.support.trees import difference, snapshot

pytestmark = [pytest.mark.scenario, pytest.mark.slow, pytest.mark.timeout(400)]
HOURS, LARGE_BYTES = 3, 16 << 20
SLOW = 8_000_000  # bytes/s into the second region: what an hour changes takes two seconds
TIMES = {"BACKUPSITE_STEP_LEASE_S": "2", "BACKUPSITE_STEP_RING_AGAIN_S": "2", "BACKUPSITE_REPLICATE_EVERY_S": "2"}
COPIED = {"type": "replication", "settings": {"region": "far"}}
HOURLY = {"rules": [{"unit": "hour", "every": 1}, COPIED], "retention_days": 30}


@pytest.fixture
def broker(redis_service: Redis) -> Iterator[str]:
    with own_redis_number(redis_service) as url:
        yield url


@pytest.fixture
def stores(tmp_path: Path) -> Iterator[tuple[OwnMinio, OwnMinio]]:
    with two_regions(tmp_path) as found:
        yield found


class Replicated:
    """A plan that runs hourly, its vault in one region and the replica in another; one worker serves the second."""

    def __init__(self, site: Installation, stores: tuple[OwnMinio, OwnMinio], folder: Path) -> None:
        self.site, self.folder, self.rng = site, folder, random.Random(23)
        self.near, self.far = stores
        self.home = folder / "home"
        self.home.mkdir()
        self.buckets = {}
        for name, store in (("main", self.near), ("far", self.far)):
            self.buckets[name] = f"{name}-vaults"
            services.s3_client(store.s3).make_bucket(self.buckets[name])
            site.region(name, store.s3, self.buckets[name], bytes_per_s=SLOW if name == "far" else 0)
        self.protected = site.protect("home", self.home, policy=HOURLY)
        self.versions: dict[str, Path] = {}
        site.worker("default", "host.alpha", "region.main")
        [self.target] = until(self._targets, what="the target that the policy asks for")
        self.replicator = self._worker()

    def _targets(self) -> list[str]:
        found = self.site.api.get("vaults/", type="REPLICATION_TARGET")["results"]
        return [str(vault["id"]) for vault in found if vault["state"] == "ready"]

    def _worker(self) -> Process:
        return self.site.worker("region.far", host="beta")

    def names(self, vault: str) -> set[str]:
        """Return the points of a vault's catalogue by their names in the vault."""
        return {str(one["point_id"]) for one in self.site.api.get("recovery-points/", vault=vault)["results"]}

    def hour(self, number: int) -> None:
        """Let the next hour come: files change, and the plan's moment is now."""
        for name in range(40):
            if number == 0 or name % HOURS == number:
                (self.home / f"file{name}").write_bytes(self.rng.randbytes(50_000))
        (self.home / f"large{number}").write_bytes(self.rng.randbytes(LARGE_BYTES))
        with psycopg.connect(self.site.environment["DATABASE_URL"]) as link:
            link.execute("UPDATE policies_plan SET next_run_at = now()")
        before = self.names(self.protected.vault)
        [point] = until(lambda: self.names(self.protected.vault) - before, what="a point")
        shutil.copytree(self.home, kept := self.folder / f"version{number}")
        self.versions[point] = kept

    def begun(self) -> None:
        """Wait until the replicator is at a step of a replication."""

        def look() -> bool:
            jobs = self.site.api.get("jobs/", kind="replicate", state="running")["results"]
            return any(self._is_ours(step) for job in jobs for step in self.site.steps(job["id"], state="running"))

        until(look, what="a replication")

    def _is_ours(self, step: dict[str, Any]) -> bool:
        try:
            return self.replicator.owns(step["worker"])
        except ProcessLookupError:  # of a worker that was killed
            return False

    def kill_the_replicator(self) -> None:
        """Kill whatever replicates, somewhere in the middle of it, and have another worker in its place."""
        self.begun()
        time.sleep(self.rng.uniform(0, 1.5))
        self.replicator.kill()
        self.replicator = self._worker()

    def lose_for_a_while(self, store: OwnMinio) -> None:
        """Kill a server while something is replicated from it or to it; have it back a little later."""
        self.begun()
        time.sleep(self.rng.uniform(0, 1.0))
        store.kill()
        time.sleep(1.5)
        store.start()

    def caught_up(self) -> None:
        """Wait until the replica shows every point."""
        until(lambda: self.names(self.target) == set(self.versions), what="all points")

    def verified(self, vault: str, level: str, state: str) -> dict[str, Any]:
        job = self.site.api.post("jobs/", {"kind": "verify", "vault": vault, "level": level}, expect=202)
        return self.site.ended(job["id"], state)

    def rot(self, store: OwnMinio, name: str, vault: str) -> None:
        """Change one byte in the middle of a pack behind everybody's back."""
        client, bucket = services.s3_client(store.s3), self.buckets[name]
        packs = client.list_objects(bucket, f"backups/vaults/{vault}/packs/", recursive=True)
        key = self.rng.choice(sorted(str(one.object_name) for one in packs))
        answer = client.get_object(bucket, key)
        data = bytearray(answer.read())
        answer.close()
        data[len(data) // 2] ^= 0x40
        path = self.folder / "rotten"
        path.write_bytes(data)
        client.fput_object(bucket, key, str(path))

    def heal(self) -> None:
        """Let an object rot at each end; verifications find it, the next replication puts it back."""
        self.rot(self.near, "main", self.protected.vault)
        self.rot(self.far, "far", self.target)
        for vault in (self.protected.vault, self.target):
            assert self.verified(vault, "scrub", "failed")["problems_count"] > 0
        healed: dict[str, list[str]] = {"healed_here": [], "healed_at_source": []}

        def look() -> bool:
            for job in self.site.api.get("jobs/", kind="replicate", page_size=5)["results"]:
                report = self.site.job(job["id"])["report"]
                for name in healed:
                    healed[name] += report.get(name) or []
            return all(healed.values())

        until(look, what="packs that were healed at both ends")
        for vault in (self.protected.vault, self.target):
            self.verified(vault, "content", "complete")


@pytest.mark.invariant(21, 22, 23)
@pytest.mark.rule("E2", "E4", "E6", "E27", "E36", "E38", "E39")
def test_the_second_region_alone_brings_the_service_and_every_version_back(
    tmp_path: Path, broker: str, postgres_service: Postgres, stores: tuple[OwnMinio, OwnMinio]
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    with full_set(first, database=postgres_service, broker=broker, more=TIMES) as lost:
        story = Replicated(lost, stores, tmp_path)
        for number in range(HOURS):
            story.hour(number)
            if number > 0:
                story.lose_for_a_while(stores[number - 1])
            story.kill_the_replicator()
            if number == 0:
                story.kill_the_replicator()
            story.caught_up()
        lost.api.patch("regions/far/", {"bytes_per_s": 0})
        story.heal()
        condition = f"vaults/{story.target}/condition/"
        until(lambda: lost.api.get(condition)["export"], what="an export in the second region")
    # The first region, the database and the service's key are gone.
    story.near.lose()
    with fresh_database(postgres_service) as database:
        found = Installation(second, rebuilt_environment(second, database, broker, story.far))
        try:
            found.set_up()
            (tmp_path / "paper.key").write_text(story.protected.recovery_key)
            place = ["--url", f"s3://{story.buckets['far']}/backups", "--endpoint", story.far.s3.url]
            told = found.manage("rebuild_from_bucket", *place, "--recovery-key-file", str(tmp_path / "paper.key"))
            assert "1 vaults, " in told
            assert f" {HOURS} recovery points" in told
            found.run()
            taken_over(found, story)
            every_version_restored(found, story, tmp_path)
        finally:
            found.end()


def rebuilt_environment(folder: Path, database: str, broker: str, store: OwnMinio) -> dict[str, str]:
    return TIMES | {
        "DATABASE_URL": database,
        "BROKER_URL": broker,
        "SECRET_KEY": "another-" + "k" * 50,
        "BACKUPSITE_FIELD_KEYS": "7d" * 32,
        "BACKUPSITE_KEY_FILE": str(folder / "service.key"),
        "ALLOWED_HOSTS": "127.0.0.1",
        "AWS_ACCESS_KEY_ID": store.s3.access_key,
        "AWS_SECRET_ACCESS_KEY": store.s3.secret_key,
    }


def taken_over(site: Installation, story: Replicated) -> None:
    """Let the replica live by itself: the vault that it followed is gone for good."""
    stop = f"vaults/{story.protected.vault}/stop-replication/"
    link = site.api.post(stop, {"confirmation": "home"}, expect=200)
    assert link["state"] == "stopped"
    [replica] = [one for one in site.api.get("vaults/")["results"] if one["id"] == story.target]
    assert replica["state"] == "ready"


def every_version_restored(site: Installation, story: Replicated, folder: Path) -> None:
    """Restore each point to a new host of the second region, and compare it with what was backed up."""
    [account] = site.api.get("accounts/")["results"]
    site.account = account["id"]
    wanted = {"account": site.account, "region": "far", "name": "rescue", "kind": "files", "host": "gamma"}
    rescue = site.api.post("sources/", wanted | {"settings": {"roots": [str(folder)]}}, expect=201)
    site.worker("default", "host.gamma", "region.far", host="gamma")
    story.site = site
    story.verified(story.target, "content", "complete")
    points = {one["point_id"]: one["id"] for one in site.api.get("recovery-points/", vault=story.target)["results"]}
    assert points.keys() == story.versions.keys()
    for name, kept in story.versions.items():
        out = folder / f"out-{name}"
        out.mkdir()
        job = site.restore(points[name], out, destination=rescue["id"])
        assert site.ended(job["id"])["problems_count"] == 0
        assert difference(snapshot(kept), snapshot(out / str(story.home).lstrip("/"))) == []
