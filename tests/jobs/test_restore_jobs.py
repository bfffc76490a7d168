"""Restore jobs: from a point back onto a host."""

import shutil

import pytest

from accounts.services import SERVICE
from jobs import local, services
from jobs.models import Job
from jobs.states import JobState
from tests.support.control import TREE, Clock, Site, make_site, read_tree

pytestmark = pytest.mark.django_db


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def site(tmp_path, clock) -> Site:
    site = make_site(tmp_path)
    job = local.do(services.request_backup(site.plan, actor=SERVICE, now=clock()), clock=clock)
    assert job.state == JobState.COMPLETE
    return site


def restore(site: Site, clock: Clock, **selection) -> Job:
    point = site.vault.points.get()
    job = services.request_restore(point, services.Selection(**selection), actor=SERVICE, now=clock())
    return local.do(job, clock=clock)


@pytest.mark.rule("B1", "C29")
def test_a_deleted_folder_comes_back_to_its_original_place(site, clock):
    shutil.rmtree(site.files)
    job = restore(site, clock)
    assert (job.state, job.error) == (JobState.COMPLETE, "")
    assert read_tree(site.files) == TREE


@pytest.mark.rule("B1")
def test_files_that_were_encrypted_by_somebody_come_back(site, clock):
    for path in site.files.rglob("*"):
        if path.is_file():
            path.write_bytes(b"PAY ME")
    restore(site, clock, same_name="overwrite", overwrite_confirmed=True)
    assert read_tree(site.files) == TREE


@pytest.mark.rule("C1", "C24")
def test_a_single_file_is_restored_into_another_folder(site, clock, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    wanted = str(site.files / "photos/one.jpg")
    job = restore(site, clock, mode="include", patterns=[wanted], to=str(out))
    assert job.state == JobState.COMPLETE
    assert read_tree(out) == {wanted.strip("/"): TREE["photos/one.jpg"]}


@pytest.mark.rule("C24")
def test_what_is_excluded_stays_away(site, clock, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    restore(site, clock, mode="exclude", patterns=[str(site.files / "photos")], to=str(out))
    restored = read_tree(out / str(site.files).strip("/"))
    assert restored == {name: data for name, data in TREE.items() if not name.startswith("photos/")}


@pytest.mark.rule("C27")
def test_a_missing_folder_fails_the_restore_before_anything_is_written(site, clock, tmp_path):
    job = restore(site, clock, to=str(tmp_path / "not-there"))
    assert (job.state, job.error_code) == (JobState.FAILED, "target_missing")
    assert not (tmp_path / "not-there").exists()


@pytest.mark.rule("C28")
def test_a_file_of_the_same_name_is_kept_unless_told(site, clock):
    (site.files / "notes.txt").write_text("mine")
    job = restore(site, clock)
    assert job.state == JobState.COMPLETE
    assert job.report["skipped"] == len(TREE)
    assert (site.files / "notes.txt").read_text() == "mine"
