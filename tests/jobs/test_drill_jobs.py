"""Restore drills as jobs: due by the policy, kept with the source, loud when they fail, and clean behind themselves."""

import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from django.test import Client
from django.urls import reverse

from accounts.models import User
from accounts.services import SERVICE
from jobs import local, maintenance, scratch, services
from jobs.models import Job
from jobs.states import JobState, Kind, Trigger
from policies.services import save_policy
from tests.services import ROOT
from tests.support.api import client_of
from tests.support.control import TREE, Clock, Site, make_site

pytestmark = pytest.mark.django_db


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def site(tmp_path, clock, settings) -> Site:
    settings.SCRATCH_DIR = tmp_path / "scratch"
    site = make_site(tmp_path)
    local.do(services.request_backup(site.plan, actor=SERVICE, now=clock()), clock=clock)
    return site


def drill(site: Site, clock: Clock, *, percent: int = 100) -> Job:
    job = maintenance.request_drill(site.source, site.vault, percent=percent, actor=SERVICE, now=clock())
    return local.do(job, clock=clock)


def left(settings) -> list[Path]:
    return list(Path(settings.SCRATCH_DIR).iterdir())


def test_a_drill_tells_what_it_compared_and_how_fast_and_leaves_nothing(site, clock, settings):
    job = drill(site, clock)
    assert (job.state, job.error) == (JobState.COMPLETE, "")
    report = job.report
    assert report["files"] == len(TREE)
    assert report["bytes"] == sum(len(data) for data in TREE.values())
    assert (report["differences"], report["percent"]) == (0, 100)
    assert report["seconds"] > 0
    assert report["bytes_per_s"] > 0
    assert left(settings) == []


def test_a_share_keeps_the_seed_that_drew_it(site, clock):
    report = drill(site, clock, percent=40).report
    assert 1 <= report["files"] <= len(TREE)
    assert report["seed"].isdecimal()


def test_a_drill_that_gets_other_data_fails_loudly(site, clock, settings, tmp_path):
    for pack in (tmp_path / "store" / site.vault.prefix / "packs").rglob("*"):
        if pack.is_file():
            data = bytearray(pack.read_bytes())
            data[200:5000] = bytes(4800)
            pack.write_bytes(data)
    job = drill(site, clock)
    assert (job.state, job.error_code) == (JobState.FAILED, "drill_failed")
    assert "came out of the vault otherwise" in job.error
    assert job.report["problems"][0]["path"].startswith("/")
    assert left(settings) == []


def test_source_point_and_vault_tell_what_was_proven_in_api_and_console(site, clock):
    job = drill(site, clock, percent=60)
    assert job.point is not None
    owner = client_of(site.owner)
    for place in (f"sources/{site.source.pk}", f"recovery-points/{job.point.pk}"):
        (told,) = owner.get(f"/api/v1/{place}/drills/").json()
        assert (told["job"], told["state"], told["percent"], told["differences"]) == (str(job.pk), "complete", 60, 0)
        assert told["bytes_per_s"] > 0
        assert "restored and compared" in told["summary"]
    console = Client()
    console.force_login(User.objects.create_superuser("root"))
    for page, row in (("policies_source", site.source), ("vaults_recoverypoint", job.point)):
        text = console.get(reverse(f"admin:{page}_change", args=[row.pk])).content.decode()
        assert "restored and compared" in text
    check = maintenance.request(site.vault, Kind.DISASTER, {}, actor=SERVICE, now=clock())
    local.do(check, clock=clock)
    assert owner.get(f"/api/v1/vaults/{site.vault.pk}/condition/").json()["export"]["key"].startswith("system/")
    text = console.get(reverse("admin:vaults_vault_change", args=[site.vault.pk])).content.decode()
    assert "1 points rebuilt" in text
    assert "Its rows were written into the bucket" in text


def test_a_policy_makes_drills_due(site, clock):
    site.policy.drill_every_days, site.policy.drill_percent = 7, 50
    save_policy(site.policy, actor=SERVICE, now=clock())
    site.plan.refresh_from_db()
    assert site.plan.next_drill_at is not None
    clock.now = site.plan.next_drill_at
    due = [job for job in maintenance.sweep(now=clock(), rows_max=10) if job.kind == Kind.DRILL]
    assert [(job.trigger, job.source, job.settings) for job in due] == [
        (Trigger.SCHEDULED, site.source, {"percent": 50})
    ]
    assert local.do(due[0], clock=clock).state == JobState.COMPLETE


def test_a_file_larger_than_the_scratch_space_is_checked_without_being_written(site, clock, settings):
    settings.DRILL_BYTES_MAX = 500_000
    report = drill(site, clock).report
    assert (report["streamed"], report["files"], report["differences"]) == (1, len(TREE), 0)


def test_what_a_killed_process_left_goes_and_what_a_living_one_uses_stays(settings, tmp_path):
    settings.SCRATCH_DIR = tmp_path / "scratch"
    program = f"""
        import sys, time
        from django.conf import settings
        settings.configure(SCRATCH_DIR={str(settings.SCRATCH_DIR)!r})
        from jobs import scratch
        with scratch.folder("drill") as path:
            (path / "shut").mkdir()
            (path / "shut" / "file").write_text("x")
            (path / "shut").chmod(0)
            print("ready", flush=True)
            time.sleep(60)
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        with scratch.folder("drill") as mine:
            assert scratch.sweep() == 0
            process.send_signal(signal.SIGKILL)
            process.wait(timeout=10)
            assert scratch.sweep() == 1
            assert [path for path in left(settings) if path.is_dir()] == [mine]
    assert left(settings) == []


def test_a_tree_too_deep_for_a_path_is_removed(settings, tmp_path):
    settings.SCRATCH_DIR = tmp_path / "scratch"
    with scratch.folder("drill") as path:
        script = "for number in $(seq 60); do mkdir " + "d" * 200 + " && cd " + "d" * 200 + "; done"
        subprocess.run(["bash", "-c", script], cwd=path, check=True)
    assert left(settings) == []
