"""Attacks on an immutable vault by those who run the service: each is refused with a date, and the point restores (B6).

A superuser in the console, an owner in the API, whoever has a shell on the service's machine. Attacks on the bucket
itself stand in test_locks.py.
"""

import datetime as dt
import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.core.management import call_command
from django.db import DatabaseError, connection, models, transaction
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from accounts.models import Account, User
from accounts.services import SERVICE
from engine.storage.probe import IMMUTABLE
from jobs import erasure, local, presence, removal
from jobs import services as jobs
from jobs.models import Job
from jobs.services import Selection
from jobs.states import JobState, Kind
from policies.models import Plan, Policy, Source
from tests.services import S3, s3_client
from tests.support.api import client_of, error_code
from tests.support.control import read_tree, write_tree
from tests.support.people import join, make_account, make_plan, make_policy, make_source
from vaults import catalogue, repositories
from vaults.models import RecoveryPoint, Region, Vault, VaultKept, VaultState
from vaults.services import LocksMissing, create_vault, make_immutable, save_region

pytestmark = [
    pytest.mark.scenario,
    pytest.mark.rule("B6"),
    pytest.mark.timeout(300),
    pytest.mark.django_db(transaction=True),
]
DAYS = 30
FORGED = (
    {"immutable_since": "", "lock_days": "0"},
    {"lock_days": "1", "state": "deleted"},
    {"prefix": "elsewhere", "region": "", "account": "", "key_provider": "transit"},
    {"deletable_at": "2020-01-01", "deleted_at": "2020-01-01", "points": ""},
)
COMMANDS = (
    ["delete", "{vault}", "{point}", "--yes", "--confirm"],
    ["expire", "{vault}", "--keep-days", "0", "--confirm"],
    ["prune", "{vault}"],
    ["lock", "{vault}", "--days", "1"],
)


@dataclass
class Scene:
    """An immutable vault with one locked point on a real server, and everybody who may want to destroy it."""

    vault: Vault
    plan: Plan
    owner: User
    files: Path
    point: RecoveryPoint
    console: Client
    api: Any

    @property
    def until(self) -> dt.datetime:
        assert self.point.locked_until is not None
        return self.point.locked_until

    def page(self, what: str, row: models.Model) -> str:
        return reverse(f"admin:{row._meta.label_lower.replace('.', '_')}_{what}", args=[row.pk])

    def press(self, button: str, row: models.Model, **fields: object) -> str:
        """Press a button of the console and return the page that follows."""
        answer = self.console.post(self.page(button, row), {"_form_submitted": "True", **fields}, follow=True)
        return str(answer.content.decode())

    def url(self, kind: str, row: models.Model, what: str = "") -> str:
        return f"/api/v1/{kind}/{row.pk}/{what}{'/' if what else ''}"

    def do(self, job: Job) -> Job:
        return local.do(job, clock=timezone.now)

    def assert_restores(self, folder: Path) -> None:
        """Restore the point through the service and compare every byte."""
        target = folder / f"restored-{uuid.uuid4().hex[:8]}"
        target.mkdir()
        presence.seen("w", [self.plan.source.queue], now=timezone.now())
        job = jobs.request_restore(self.point, Selection(to=str(target)), actor=SERVICE, now=timezone.now())
        assert self.do(job).state == JobState.COMPLETE
        assert read_tree(target / self.files.relative_to("/")) == read_tree(self.files)


def make_region(service: S3, bucket: str) -> Region:
    region = Region(name=service.name, url=f"s3://{bucket}/here", endpoint=service.url, store_region=service.region)
    keys = {"access_key": service.access_key, "secret_key": service.secret_key}
    return save_region(region, credentials=keys, actor=SERVICE, now=timezone.now())


def make_scene(service: S3, bucket: str, folder: Path, *, days: int = DAYS) -> Scene:
    """Set all of it up; with 0 days the vault is not immutable."""
    now = timezone.now()
    files = write_tree(folder / "files")
    account = make_account()
    owner = join(account, "owner")
    vault = Vault(account=account, region=make_region(service, bucket), name="vault")
    create_vault(vault, actor=SERVICE, now=now)
    if days:
        make_immutable(vault, days=days, confirmation="vault", actor=SERVICE, now=now)
    roots = {"roots": [str(files)], "include": [], "exclude": [], "one_file_system": False}
    source = make_source(account, vault.region, "web", settings=roots)
    plan = make_plan(source, make_policy(account, retention_days=DAYS), vault, next_run_at=now + dt.timedelta(days=1))
    presence.seen("w", [source.queue, vault.region.queue], now=now)
    done = local.do(jobs.request_backup(plan, actor=SERVICE, now=now), clock=timezone.now)
    assert done.state == JobState.COMPLETE
    console = Client()
    console.force_login(User.objects.create_superuser("root"))
    return Scene(vault, plan, owner, files, vault.points.get(), console, client_of(owner))


@pytest.fixture
def scene(s3_service: S3, s3_bucket: Callable[..., str], tmp_path: Path) -> Iterator[Scene]:
    scene = make_scene(s3_service, s3_bucket(s3_service, object_lock=True), tmp_path)
    assert scene.until >= scene.point.completed_at + dt.timedelta(days=DAYS)
    yield scene
    scene.vault.refresh_from_db()
    assert (scene.vault.lock_days, scene.vault.immutable_since is None) == (DAYS, False)
    scene.assert_restores(tmp_path)


def test_what_the_store_proved_is_called_immutable(scene):
    assert scene.vault.retention_label == IMMUTABLE
    page = scene.console.get(scene.page("change", scene.vault)).content.decode()
    assert "Immutable: the last probe proved" in page
    vault = repositories.open_vault(scene.vault)
    assert vault.storage.locked_until("vault.json") >= scene.until


def test_a_superuser_deletes_nothing_in_the_console(scene):
    rows: list[models.Model] = [scene.vault, scene.point]
    for row in rows:
        assert scene.console.post(scene.page("delete", row), {"post": "yes"}).status_code == 403
        bulk = {"action": "delete_selected", "_selected_action": [str(row.pk)], "post": "yes"}
        scene.console.post(reverse(f"admin:vaults_{row._meta.model_name}_changelist"), bulk)
        assert type(row)._default_manager.filter(pk=row.pk).exists()
    for row in (scene.vault.region, scene.plan.source, scene.plan.policy):
        scene.console.post(scene.page("delete", row), {"post": "yes"}, follow=True)
        assert type(row)._default_manager.filter(pk=row.pk).exists()
    assert scene.console.post(scene.page("delete", scene.vault.account), {"post": "yes"}).status_code == 403
    assert "never shortened" in scene.press("make_immutable", scene.vault, days=1, confirmation="vault")


def test_forged_fields_of_the_edit_form_change_nothing(scene):
    before = Vault.objects.values().get()
    for forged in FORGED:
        form = {"name": "vault", "description": "", **forged}
        scene.console.post(scene.page("change", scene.vault), form, follow=True)
        assert Vault.objects.values().get() == before
    forged_point = {"locked_until": "2020-01-01", "expires_at": "2020-01-01", "state": "complete"}
    assert scene.console.post(scene.page("change", scene.point), forged_point).status_code == 403


def test_the_api_refuses_with_the_date(scene):
    day = f"{scene.until:%Y-%m-%d}"
    answer = scene.api.post(scene.url("vaults", scene.vault, "make-immutable"), {"days": 1, "confirmation": "vault"})
    assert (answer.status_code, error_code(answer)) == (409, "immutability_fixed")
    answer = scene.api.post(scene.url("vaults", scene.vault, "delete"), {"confirmation": "vault"})
    assert (answer.status_code, error_code(answer)) == (409, "vault_in_use")
    answer = scene.api.post(scene.url("recovery-points", scene.point, "delete"), {"confirmation": "web"})
    assert (answer.status_code, error_code(answer)) == (409, "point_locked")
    assert answer.json()["context"]["locked_until"].startswith(day)
    assert scene.api.delete(scene.url("vaults", scene.vault)).status_code == 405
    assert scene.api.delete(scene.url("recovery-points", scene.point)).status_code == 405
    assert scene.api.delete(scene.url("accounts", scene.vault.account)).status_code == 405
    answer = scene.api.post(scene.url("accounts", scene.vault.account, "delete"), {"confirmation": "acme"})
    assert (answer.status_code, error_code(answer)) == (409, "account_locked")
    assert answer.json()["context"]["locked_until"].startswith(day)
    staff = client_of(User.objects.get(username="root"))
    answer = staff.delete(f"/api/v1/regions/{scene.vault.region.name}/")
    assert (answer.status_code, error_code(answer)) == (409, "region_in_use")
    assert (
        scene.api.patch(scene.url("vaults", scene.vault), {"lock_days": 0, "immutable_since": None}).status_code == 200
    )


def test_deleting_the_vault_stops_its_work_and_waits_for_the_lock(scene):
    scene.api.delete(scene.url("plans", scene.plan))
    answer = scene.api.post(scene.url("vaults", scene.vault, "delete"), {"confirmation": "vault"})
    assert answer.status_code == 202
    told = dt.datetime.fromisoformat(answer.json()["deletable_at"])
    assert (answer.json()["state"], told >= scene.until) == ("deleting", True)
    started = [scene.do(job) for job in erasure.sweep(now=timezone.now(), rows_max=10)]
    # A clock that was set forward deletes nothing either: the store's own clock counts.
    later = scene.until + dt.timedelta(days=40)
    started += [scene.do(job) for job in erasure.sweep(now=later, rows_max=10)]
    assert [job.kind for job in started] == [Kind.PRUNE, Kind.ERASE]
    assert started[1].report["objects_deleted"] == 0
    vault = Vault.objects.get()
    assert (vault.state, vault.deletable_at >= scene.until) == (VaultState.DELETING, True)
    Vault.objects.update(state=VaultState.READY)


def test_deleting_the_source_and_its_backups_waits_for_the_lock(scene):
    source = scene.plan.source
    answer = scene.api.delete(scene.url("sources", source))
    assert (answer.status_code, error_code(answer)) == (409, "in_use")
    answer = scene.api.post(scene.url("sources", source, "erase"), {"confirmation": "web"})
    assert answer.status_code == 202
    assert answer.json()["locked"] == 1
    assert dt.datetime.fromisoformat(answer.json()["ends_at"]) == scene.until
    assert not Plan.objects.exists()
    later = scene.until + dt.timedelta(days=1)
    for job in [*removal.sweep(now=timezone.now(), rows_max=9), *removal.sweep(now=later, rows_max=9)]:
        assert scene.do(job).report["deleted"] == 0
    assert Source.objects.exists()
    assert RecoveryPoint.objects.exists()


def test_a_policy_of_one_day_and_a_deleted_plan_leave_the_lock_as_it_was(scene):
    answer = scene.api.patch(scene.url("policies", scene.plan.policy), {"retention_days": 1})
    assert answer.status_code == 200
    assert scene.api.delete(scene.url("plans", scene.plan)).status_code == 204
    assert scene.api.delete(scene.url("policies", scene.plan.policy)).status_code == 204
    assert not Policy.objects.exists()
    wanted = {"kind": "expire", "vault": str(scene.vault.pk), "confirmed": True}
    answer = scene.api.post("/api/v1/jobs/", wanted)
    assert answer.status_code == 202
    two_days_on = timezone.now() + dt.timedelta(days=2)
    job = local.do(Job.objects.get(pk=answer.json()["id"]), clock=lambda: two_days_on)
    assert job.report.get("deleted", 0) == job.report.get("expired", 0) == 0
    answer = scene.api.post("/api/v1/jobs/", {"kind": "prune", "vault": str(scene.vault.pk)})
    assert scene.do(Job.objects.get(pk=answer.json()["id"])).state == JobState.COMPLETE
    assert RecoveryPoint.objects.get().locked_until == scene.until


def test_no_account_and_no_shell_deletes_the_rows(scene):
    with pytest.raises(models.ProtectedError), transaction.atomic():
        scene.vault.account.delete()
    for remove in (scene.vault.delete, Vault.objects.all().delete):
        with pytest.raises((VaultKept, models.ProtectedError)), transaction.atomic():
            remove()
    with pytest.raises(DatabaseError, match="stays immutable"), transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("UPDATE vaults_vault SET immutable_since = NULL, lock_days = 0")
    assert Account.objects.exists()


def test_a_catalogue_that_was_emptied_comes_back_from_the_vault(scene):
    RecoveryPoint.objects.all().delete()
    assert catalogue.rebuild(scene.vault, now=timezone.now()).points_added == 1
    scene.point = RecoveryPoint.objects.get()
    assert scene.point.locked_until is not None
    RecoveryPoint.objects.all().delete()
    call_command("rebuild_catalogue", "vault", verbosity=0)
    scene.point = RecoveryPoint.objects.get()


def test_the_command_line_with_the_services_key_deletes_nothing(scene):
    place = repositories.location(scene.vault.region, prefix=scene.vault.prefix)
    environment = {
        "PATH": os.environ["PATH"],
        "BACKUPSITE_KEY_FILE": str(settings.KEYRING_FILE),
        "BACKUPSITE_S3_ENDPOINT": place.endpoint,
        "BACKUPSITE_S3_REGION": place.region,
        "BACKUPSITE_S3_ACCESS_KEY": place.access_key,
        "BACKUPSITE_S3_SECRET_KEY": place.secret_key,
    }
    for command in COMMANDS:
        given = [part.format(vault=place.url, point=scene.point.point_id) for part in command]
        call = [sys.executable, "-m", "engine", *given, "--no-cache"]
        done = subprocess.run(call, env=environment, capture_output=True, timeout=120, text=True)
        told = done.stdout + done.stderr
        assert "Traceback" not in told
        assert (command[0] in ("delete", "lock")) <= (done.returncode != 0), told
        assert (command[0] == "delete") <= (f"{scene.until:%Y-%m-%d}" in told), told
        assert [name.point for name in repositories.open_vault(scene.vault).points()] == [scene.point.point_id]


def test_a_bucket_without_object_lock_makes_no_immutable_vault(s3_service, s3_bucket):
    vault = Vault(
        account=make_account(), region=make_region(s3_service, s3_bucket(s3_service, object_lock=False)), name="vault"
    )
    create_vault(vault, actor=SERVICE, now=timezone.now())
    with pytest.raises(LocksMissing):
        make_immutable(vault, days=1, confirmation="vault", actor=SERVICE, now=timezone.now())
    vault.refresh_from_db()
    assert (vault.immutable_since, vault.retention_label == IMMUTABLE) == (None, False)


@pytest.mark.rule("E41")
def test_a_vault_without_locks_leaves_no_version_of_anything(s3_service, s3_bucket, tmp_path):
    bucket = s3_bucket(s3_service, object_lock=True)
    scene = make_scene(s3_service, bucket, tmp_path, days=0)
    assert scene.point.locked_until is None
    scene.api.delete(scene.url("plans", scene.plan))
    answer = scene.api.post(scene.url("vaults", scene.vault, "delete"), {"confirmation": "vault"})
    assert (answer.status_code, answer.json()["deletable_at"]) == (202, None)
    assert [scene.do(job).state for job in erasure.sweep(now=timezone.now(), rows_max=9)] == [JobState.COMPLETE]
    below = f"here/{scene.vault.prefix}/"
    assert list(s3_client(s3_service).list_objects(bucket, below, recursive=True, include_version=True)) == []
    assert Vault.objects.get().state == VaultState.DELETED
