"""Attacks on an immutable vault, on real servers: each is refused, or undone by an audit, and the point restores.

The attacker owns the bucket: every call is made with the server's root credentials, or with this program itself and
all keys of the vault. What an administrator, a member or a deleted account can try through the console and the API
stands in test_lock_attacks_console.py.
"""

import base64
import datetime as dt
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from minio.commonconfig import COMPLIANCE, ENABLED, GOVERNANCE, Filter
from minio.datatypes import Object
from minio.deleteobjects import DeleteObject
from minio.error import S3Error
from minio.lifecycleconfig import Expiration, LifecycleConfig, NoncurrentVersionExpiration, Rule
from minio.retention import Retention
from minio.versioningconfig import SUSPENDED, VersioningConfig

from engine.errors import LockCannotLoosen, LockUnsupported
from engine.ids import new_ulid
from engine.locks import POLICIES
from engine.progress import Silent
from engine.sources.files import files_source
from engine.storage import APPLICATION_LEVEL, IMMUTABLE, Directory, Location, open_storage
from engine.vault import PointName
from engine.verbs import erase, prune
from tests import services
from tests.conftest import OWN_FOLDER
from tests.services import S3
from tests.support.expiry import expired
from tests.support.locking import audited, locked
from tests.support.runs import backup_job, landed, restored, run_backup
from tests.support.vaults import Bench, on_disk, rebuilt, travelled, verified, write_files

pytestmark = [pytest.mark.scenario, pytest.mark.rule("B6"), pytest.mark.timeout(300)]
DAYS = 1
UNLOCKED = ("sessions/", "index/", "canary/", "verify/", "staging/", "prune/", "expiry/")


def now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


class Scene(Bench):
    """A locked vault with two points in a bucket, the files that were backed up, and the bucket's owner."""

    def __init__(self, service: S3, bucket: str, folder: Path) -> None:
        self.service, self.bucket = service, bucket
        self.place = Location.parse(
            f"s3://{bucket}/a/vault", endpoint=service.url, access_key=service.access_key,
            secret_key=service.secret_key, region=service.region,
        )  # fmt: skip
        super().__init__(open_storage(self.place))
        self.clock = now  # type: ignore[assignment] # the servers' locks go by the real one
        self.files = write_files(
            folder / "home", {"a": os.urandom(300_000), "b/c": b"c" * 2000, "empty": b"", "ä/b": os.urandom(10)}
        )
        self.root = services.s3_client(service)
        self.policy = locked(self, DAYS)
        self.first = self.back_up_again()
        (self.files / "new").write_bytes(os.urandom(50_000))
        self.second = self.back_up_again()

    def back_up_again(self) -> PointName:
        """Make one more point."""
        job = backup_job(self, files_source([str(self.files)], host="host"))
        return PointName(job.series, run_backup(self, job).point)

    def versions(self) -> list[Object]:
        """Return every version and delete marker in the bucket."""
        return list(self.root.list_objects(self.bucket, recursive=True, include_version=True))

    def names(self) -> list[str]:
        """Return what a plain LIST shows."""
        return [one.object_name or "" for one in self.root.list_objects(self.bucket, recursive=True)]

    def protected(self) -> list[Object]:
        """Return the versions that the points and their keys are made of, and the policy."""
        inside = [one for one in self.versions() if not (one.object_name or "").startswith(self.free)]
        return [
            one for one in inside if not (one.object_name or "")[len("a/vault/locks/") :].partition("/")[0].isdecimal()
        ]

    @property
    def free(self) -> tuple[str, ...]:
        return tuple(f"a/vault/{prefix}" for prefix in UNLOCKED)

    def assert_restores(self, folder: Path) -> None:
        """Restore the newest point, and compare every byte; read everything that all points need."""
        target = folder / f"restored-{new_ulid(now())}"
        target.mkdir()
        restored(self, target, point=self.second.point)
        assert on_disk(landed(target, self.files)) == on_disk(self.files)
        assert {self.first, self.second} <= set(self.open().points())
        assert verified(self, "content").findings == []


@pytest.fixture(
    scope="module",
    params=[pytest.param("minio", marks=pytest.mark.services), pytest.param("radosgw", marks=pytest.mark.services)],
)
def scene(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Scene:
    """One vault for all attacks: each has to leave it whole for the next."""
    return new_scene(request.getfixturevalue(f"{request.param}_service"), tmp_path_factory.mktemp(request.param))


def new_scene(service: S3, folder: Path) -> Scene:
    """Make a vault in a bucket of its own, which stays until the server ends: that is what its lock is for."""
    bucket = f"locks-{new_ulid(now())}"
    services.s3_client(service).make_bucket(bucket, object_lock=True)
    return Scene(service, bucket, folder)


def refused(attempt: Callable[[], object]) -> bool:
    """Say whether the server refused a request."""
    try:
        attempt()
    except S3Error:
        return True
    return False


@pytest.mark.invariant(19)
def test_a_bucket_with_object_lock_makes_an_immutable_vault(scene: Scene, tmp_path: Path) -> None:
    assert scene.policy.level == IMMUTABLE
    assert scene.protected() != []
    for one in scene.protected():
        end = scene.storage.locked_until((one.object_name or "").removeprefix("a/vault/"))
        assert end is not None, one.object_name
        assert end > now() + dt.timedelta(days=DAYS, minutes=-5), one.object_name
    outcome = audited(scene)
    assert (outcome.state, outcome.level, outcome.is_proven, outcome.findings) == ("complete", IMMUTABLE, True, [])
    config = scene.root.get_object_lock_config(scene.bucket)
    assert config.mode is None, "a default of the bucket would lock everybody's objects"
    scene.assert_restores(tmp_path)


@pytest.mark.parametrize("bypass", [False, True], ids=["plainly", "bypassing governance"])
def test_deleting_each_version_is_refused(scene: Scene, tmp_path: Path, bypass: bool) -> None:
    before = {(one.object_name, one.version_id) for one in scene.protected()}
    for one in scene.protected():
        assert refused(partial(scene.root.remove_object, scene.bucket, one.object_name or "", one.version_id))
    doomed = [DeleteObject(one.object_name or "", one.version_id) for one in scene.versions()]
    errors = list(scene.root.remove_objects(scene.bucket, doomed, bypass_governance_mode=bypass))
    assert {error.name for error in errors} >= {name for name, _ in before}
    assert {(one.object_name, one.version_id) for one in scene.protected()} == before
    assert rebuilt(scene).broken == []  # what is not locked is gone, and can be made anew
    scene.assert_restores(tmp_path)


def test_everything_that_is_hidden_by_plain_deletes_comes_back(scene: Scene, tmp_path: Path) -> None:
    for name in scene.names():
        scene.root.remove_object(scene.bucket, name)
    assert scene.names() == []
    outcome = audited(scene)
    assert outcome.state == "partial_complete"
    assert {(finding.kind, finding.repaired) for finding in outcome.findings} == {("hidden", True)}
    scene.assert_restores(tmp_path)
    assert audited(scene).state == "complete"


@pytest.mark.parametrize("also_locked", [False, True], ids=["overwritten", "overwritten and locked"])
def test_everything_that_is_overwritten_comes_back(scene: Scene, tmp_path: Path, also_locked: bool) -> None:
    names = [name for name in scene.names() if not name.endswith("/beat")]
    for name in names:
        scene.storage.put(name.removeprefix("a/vault/"), b"foreign bytes")
        if also_locked and not name.startswith(scene.free):
            end = now() + dt.timedelta(days=2)
            scene.root.set_object_retention(scene.bucket, name, Retention(COMPLIANCE, end))
    outcome = audited(scene)
    assert outcome.state == "partial_complete"
    assert {(finding.kind, finding.repaired) for finding in outcome.findings} == {("covered", True)}
    scene.assert_restores(tmp_path)
    assert audited(scene).state == "complete"


def test_no_lock_is_shortened_weakened_or_taken_off(scene: Scene, tmp_path: Path) -> None:
    before = {(one.object_name, one.version_id): lock_of(scene, one) for one in scene.protected()}
    kinds = {kind_of(one): one for one in scene.protected()}
    for one in kinds.values():
        for mode in (COMPLIANCE, GOVERNANCE):
            for end in (now() + dt.timedelta(minutes=1), now() + dt.timedelta(days=90)):
                if (mode, end > now() + dt.timedelta(days=1)) == (COMPLIANCE, True):
                    continue  # a longer lock is allowed to everybody
                for headers in ({}, {"x-amz-bypass-governance-retention": "true"}):
                    assert refused(partial(retain, scene, one, mode, end, headers)), (one.object_name, mode)
        assert refused(partial(retain, scene, one, "", None, {}))
    assert {(one.object_name, one.version_id): lock_of(scene, one) for one in scene.protected()} == before
    assert audited(scene).state == "complete"
    scene.assert_restores(tmp_path)


def kind_of(one: Object) -> str:
    """Return what kind of object a version is of: one of each is attacked."""
    path = (one.object_name or "").split("/")[2:]
    return f"{path[0]} {path[-1] if path[0] == 'points' else ''}"


def retain(scene: Scene, one: Object, mode: str, end: dt.datetime | None, headers: dict[str, str]) -> None:
    """Ask for another retention of one version, or for none."""
    inner = f"<Mode>{mode}</Mode><RetainUntilDate>{end:%Y-%m-%dT%H:%M:%SZ}</RetainUntilDate>" if end else ""
    body = f'<Retention xmlns="http://s3.amazonaws.com/doc/2006-03-01/">{inner}</Retention>'.encode()
    query: dict[str, Any] = {"retention": "", "versionId": one.version_id or ""}
    named: dict[str, Any] = {"Content-MD5": content_md5(body), **headers}
    scene.root._execute("PUT", scene.bucket, one.object_name, body=body, headers=named, query_params=query)


def content_md5(body: bytes) -> str:
    return base64.b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode()


def lock_of(scene: Scene, one: Object) -> str | None:
    found = scene.root.stat_object(scene.bucket, one.object_name or "", version_id=one.version_id)
    return (found.metadata or {}).get("x-amz-object-lock-retain-until-date")


def test_the_bucket_can_neither_be_removed_nor_stripped_of_its_versions(s3_service: S3, tmp_path: Path) -> None:
    scene = new_scene(s3_service, tmp_path)
    force: dict[str, Any] = {"x-minio-force-delete": "true"}
    assert refused(lambda: scene.root.remove_bucket(scene.bucket))
    assert refused(lambda: scene.root._execute("DELETE", scene.bucket, headers=force))
    for name in ("a", "a/vault", scene.names()[0]):
        refused(partial(scene.root._execute, "DELETE", scene.bucket, name, headers=force))
    refused(lambda: scene.root.set_bucket_versioning(scene.bucket, VersioningConfig(SUSPENDED)))
    for name in scene.names():
        scene.storage.put(name.removeprefix("a/vault/"), b"foreign bytes")
        scene.root.remove_object(scene.bucket, name)
    assert audited(scene).state == "partial_complete"
    scene.assert_restores(tmp_path)


def test_the_policy_cannot_be_deleted_hidden_covered_or_loosened(scene: Scene, tmp_path: Path) -> None:
    tightened = locked(scene, 3)
    with pytest.raises(LockCannotLoosen):
        locked(scene, 2)
    keys = [stored.key for stored in scene.storage.scan(POLICIES)]
    assert sorted(refusal.key for refusal in scene.storage.delete(keys) if refusal.locked) == keys
    for key in keys:
        scene.root.remove_object(scene.bucket, f"a/vault/{key}")
    assert scene.open().lock_policy == tightened
    for key in keys:
        scene.storage.put(key, b"{}")
    assert scene.open().lock_policy == tightened
    third = scene.back_up_again()
    assert scene.open().root(third).body.locked_until is not None
    outcome = audited(scene)
    assert {finding.object for finding in outcome.findings} == set(keys)
    assert outcome.state == "partial_complete"
    scene.assert_restores(tmp_path)


def test_this_program_deletes_nothing_that_is_locked(scene: Scene, tmp_path: Path) -> None:
    before = {(one.object_name, one.version_id) for one in scene.protected()}
    keys = sorted({stored.key for stored in scene.storage.scan("")})
    held = [key for key in keys if not key.startswith(UNLOCKED) and not key.removeprefix("locks/")[:1].isdecimal()]
    refusals = scene.storage.delete(held)
    assert sorted(refusal.key for refusal in refusals if refusal.locked) == held
    names = tuple("/".join(name) for name in (scene.first, scene.second))
    outcome = expired(scene, points=names, confirmed=True, reason="an attack")
    assert (outcome.expired, outcome.deleted) == ([], [])
    assert [decision.keep for decision in outcome.decisions] == [True, True]
    for _ in range(2):
        assert pruned(scene).packs_deleted == 0
    ended = erased(scene)
    assert (ended.state, ended.locked_until is not None) == ("partial_complete", True)
    assert {(one.object_name, one.version_id) for one in scene.protected()} >= before
    scene.assert_restores(tmp_path)


def pruned(scene: Scene) -> prune.Outcome:
    job = prune.PruneJob(run=new_ulid(now()), started_at=now(), lease_s=0)
    planner, silent = scene.open(), Silent()
    results = [
        travelled(prune.work(planner, job, unit, silent)) for unit in prune.plan(planner, job, silent, now=now())
    ]
    return prune.finish(planner, job, results, silent, clock=now)


def erased(scene: Scene) -> erase.Outcome:
    vault, silent = scene.open(), Silent()
    job = erase.EraseJob(vault_id=vault.info.vault_id, started_at=now(), lease_s=0)
    results = [travelled(erase.work(vault, job, unit, silent)) for unit in erase.plan(vault, job, silent, now=now())]
    return erase.finish(vault, job, results, silent, clock=now)


def test_the_command_line_deletes_nothing_that_is_locked(scene: Scene, tmp_path: Path) -> None:
    key_file = tmp_path / "service.key"
    key_file.write_text(scene.ring.text())
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("AWS_")},
        "BACKUPSITE_KEY_FILE": str(key_file), "BACKUPSITE_CACHE_DIR": str(tmp_path / "cache"),
        "BACKUPSITE_S3_ENDPOINT": scene.service.url, "BACKUPSITE_S3_ACCESS_KEY": scene.service.access_key,
        "BACKUPSITE_S3_SECRET_KEY": scene.service.secret_key, "BACKUPSITE_S3_REGION": scene.service.region,
    }  # fmt: skip

    def run(*arguments: str) -> tuple[int, Any]:
        command = [sys.executable, "-m", "engine", arguments[0], scene.place.url, *arguments[1:], "--json"]
        done = subprocess.run(command, capture_output=True, env=environment, check=False, timeout=120)
        return done.returncode, json.loads(done.stdout)

    before = {(one.object_name, one.version_id) for one in scene.protected()}
    code, document = run("lock", "--days", "3", "--confirm", "lock vault for 3 days")
    assert (code, document["days"], document["retention"]) == (0, 3, IMMUTABLE)
    code, document = run("lock", "--days", "2")
    assert (code, document["error"]["code"]) == (1, "lock_cannot_loosen")
    code, document = run("prune")
    assert document["packs_deleted"] == 0
    code, document = run("audit")
    assert (code, document["state"], document["days"], document["is_proven"]) == (0, "complete", 3, True)
    assert {(one.object_name, one.version_id) for one in scene.protected()} >= before
    scene.assert_restores(tmp_path)


def test_forged_notes_that_nobody_can_delete_stop_no_restore(s3_service: S3, tmp_path: Path) -> None:
    scene = new_scene(s3_service, tmp_path)
    forged = ["prune/x/condemned", "prune/x/tombstones", "moves/x/move", "points/home/x/root", "locks/policy/x"]
    for key in forged:
        scene.storage.put(key, b"forged", locked_until=now() + dt.timedelta(days=400))
    outcome = audited(scene)
    assert outcome.state == "failed"
    assert {one.object for one in outcome.findings} == {*forged} - {"points/home/x/root"}
    target = tmp_path / "restored"
    target.mkdir()
    restored(scene, target)
    assert on_disk(landed(target, scene.files)) == on_disk(scene.files)


def test_a_bucket_without_object_lock_makes_no_immutable_vault(s3_service: S3, s3_bucket: Callable[..., str]) -> None:
    bucket = s3_bucket(s3_service)
    place = Location.parse(
        f"s3://{bucket}/vault", endpoint=s3_service.url, access_key=s3_service.access_key,
        secret_key=s3_service.secret_key, region=s3_service.region,
    )  # fmt: skip
    bench = Bench(open_storage(place))
    bench.clock = now  # type: ignore[assignment] # the servers' locks go by the real one
    with pytest.raises(LockUnsupported, match="object lock is off"):
        locked(bench, DAYS)
    assert bench.open().lock_policy is None
    assert list(bench.storage.scan(POLICIES)) == []


def test_a_folder_says_application_level_retention(tmp_path: Path) -> None:
    bench = Bench(Directory(tmp_path / "vault", create=True))
    bench.storage = Directory(tmp_path / "vault", clock=lambda: bench.clock.time)
    assert locked(bench, DAYS).level == APPLICATION_LEVEL
    folder = write_files(tmp_path / "home", {"a": b"a"})
    outcome = run_backup(bench, backup_job(bench, files_source([str(folder)], host="host")))
    name = PointName("home", outcome.point)
    assert expired(bench, points=("/".join(name),), confirmed=True).expired == []
    assert audited(bench).level == APPLICATION_LEVEL
    target = tmp_path / "restored"
    target.mkdir()
    restored(bench, target)
    assert on_disk(landed(target, folder)) == on_disk(folder)


def test_a_lifecycle_rule_of_the_bucket_deletes_nothing_that_is_locked(radosgw_service: S3, tmp_path: Path) -> None:
    scene = new_scene(radosgw_service, tmp_path)
    scene.storage.put("staging/witness", b"not locked")
    before = {(one.object_name, one.version_id) for one in scene.protected()}
    gone = Rule(
        ENABLED,
        rule_filter=Filter(prefix=""),
        rule_id="everything",
        expiration=Expiration(days=1),
        noncurrent_version_expiration=NoncurrentVersionExpiration(noncurrent_days=1),
    )
    scene.root.set_bucket_lifecycle(scene.bucket, LifecycleConfig([gone]))
    for _ in range(10):
        time.sleep(1.5)
        process_lifecycle(radosgw_service)  # a day lasts a second
        if not [one for one in scene.versions() if one.object_name == "a/vault/staging/witness"]:
            break
    else:
        pytest.fail("the server's lifecycle did not run")
    scene.root.delete_bucket_lifecycle(scene.bucket)
    assert {(one.object_name, one.version_id) for one in scene.protected()} >= before
    assert audited(scene).state == "partial_complete"
    assert rebuilt(scene).broken == []
    scene.assert_restores(tmp_path)


def process_lifecycle(service: S3) -> None:
    """Let Ceph do at once what its lifecycle rules say, with days that last a second."""
    port = f"endpoint={service.endpoint}\n"
    folders = [services.state_folder(), Path(os.environ[OWN_FOLDER])]
    found = [path for folder in folders for path in folder.glob("backupsite-radosgw-*/ceph.conf")]
    (config,) = [path for path in found if port in path.read_text()]
    command = ["radosgw-admin", "-n", "client.rgw", "-c", str(config), "lc", "process", "--rgw-lc-debug-interval=1"]
    subprocess.run(command, check=True, capture_output=True, timeout=60, cwd=config.parent)
