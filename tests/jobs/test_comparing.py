"""After a restore a person has what was restored compared with its point: the report tells every difference (C29)."""

import csv
import io
import os
from pathlib import Path

import pytest
from django.test import Client

from accounts.models import Role, User
from accounts.services import SERVICE
from jobs import comparing, local, presence, retrying, services
from jobs.comparing import NotComparable
from jobs.models import Job, Worker
from jobs.services import DestinationOffline
from jobs.states import JobState
from tests.support.api import client_of, error_code
from tests.support.console import page, press
from tests.support.control import Clock, Site, make_site
from tests.support.people import T0, join

pytestmark = pytest.mark.django_db


@pytest.fixture
def site(tmp_path) -> Site:
    site = make_site(tmp_path)
    (site.files / "link").symlink_to("notes.txt")
    os.link(site.files / "notes.txt", site.files / "second name")
    return site


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def landed(tmp_path, site) -> Path:
    (tmp_path / "out").mkdir()
    landed: Path = tmp_path / "out" / site.files.relative_to("/")
    return landed


def restore(site: Site, clock: Clock, landed: Path, **wanted) -> Job:
    point = local.do(services.request_backup(site.plan, actor=SERVICE, now=clock()), clock=clock).point
    assert point is not None
    out = str(landed)[: -len(str(site.files))]
    selection = services.Selection(to=out, **wanted)
    return local.do(services.request_restore(point, selection, actor=SERVICE, now=clock()), clock=clock)


def compare(job: Job, clock: Clock) -> Job:
    return local.do(comparing.request_comparison(job, actor=SERVICE, now=clock()), clock=clock)


@pytest.mark.rule("C29")
def test_what_stands_there_as_in_the_point_is_told_so(site, clock, landed):
    checked = compare(restore(site, clock, landed), clock)
    assert (checked.state, checked.problems_count, checked.error) == (JobState.COMPLETE, 0, "")
    assert checked.report["files"] == 6
    assert checked.report["bytes"] == sum(
        path.stat().st_size for path in site.files.rglob("*") if path.is_file() and not path.is_symlink()
    )


@pytest.mark.rule("C29")
def test_every_difference_is_listed_and_can_be_downloaded(site, clock, landed):
    job = restore(site, clock, landed)
    times = os.stat(landed / "photos" / "one.jpg")
    with (landed / "photos" / "one.jpg").open("r+b") as file:
        file.seek(500_000)
        file.write(b"other")
    os.utime(landed / "photos" / "one.jpg", ns=(times.st_atime_ns, times.st_mtime_ns))  # as if nothing had happened
    (landed / "empty").unlink()
    (landed / "deep" / "er" / "and" / "deeper.txt").chmod(0o600)
    (landed / "link").unlink()
    (landed / "link").symlink_to("elsewhere")
    checked = compare(job, clock)
    assert (checked.state, checked.error_code) == (JobState.FAILED, "restored_differs")
    answer = client_of(site.owner).get(f"/api/v1/jobs/{checked.pk}/problems/")
    rows = csv.DictReader(io.StringIO(b"".join(answer.streaming_content).decode()))  # type: ignore[attr-defined]
    told = {row["path"].removeprefix(f"{site.files}/"): row["detail"] for row in rows}
    assert "content differs" in told["photos/one.jpg"]
    assert told["empty"] == "it is missing"
    assert "mode" in told["deep/er/and/deeper.txt"]
    assert "time" in told["link"] or "link target" in told["link"]
    assert landed.joinpath("notes.txt").read_bytes() == b"hello\n"  # nothing was changed


def test_only_what_was_selected_is_compared(site, clock, landed):
    job = restore(site, clock, landed, mode="include", patterns=["*.txt"])
    checked = compare(job, clock)
    assert (checked.state, checked.report["files"]) == (JobState.COMPLETE, 2)


def test_what_is_no_restore_onto_a_host_or_has_lost_its_point_is_refused(site, clock, landed):
    job = restore(site, clock, landed)
    backup = Job.objects.get(kind="backup")
    with pytest.raises(NotComparable):
        comparing.request_comparison(backup, actor=SERVICE, now=T0)
    Worker.objects.all().delete()
    with pytest.raises(DestinationOffline):
        comparing.request_comparison(job, actor=SERVICE, now=T0)
    presence.seen("w", [site.source.queue], now=T0)
    job.point = None
    with pytest.raises(NotComparable) as refusal:
        comparing.request_comparison(job, actor=SERVICE, now=T0)
    assert refusal.value.code == "point_gone"


def test_a_folder_that_is_gone_fails_the_job(site, clock, landed):
    job = restore(site, clock, landed)
    out = Path(str(landed)[: -len(str(site.files))])
    out.rename(out.with_name("moved"))
    checked = compare(job, clock)
    assert (checked.state, checked.error_code) == (JobState.FAILED, "target_missing")
    assert "is not there any more" in checked.error
    out.with_name("moved").rename(out)
    assert local.do(retrying.retry(checked, actor=SERVICE, now=clock()), clock=clock).state == JobState.COMPLETE


@pytest.mark.rule("C29")
def test_the_page_of_a_restore_offers_it_and_the_api_too(site, clock, landed, monkeypatch):
    job = restore(site, clock, landed)
    monkeypatch.setattr(presence, "served", lambda *args, **kwargs: True)
    console = Client()
    console.force_login(User.objects.create_superuser("root"))
    assert "Verify what was restored" in console.get(page("jobs_job", "change", job.pk)).content.decode()
    backup = Job.objects.get(kind="backup")
    assert "Verify what was restored" not in console.get(page("jobs_job", "change", backup.pk)).content.decode()
    answer = press(console, "jobs_job", "compare", job.pk)
    assert answer.redirect_chain[-1][0] == page("jobs_job", "change", Job.objects.get(kind="compare").pk)
    owner = client_of(site.owner)
    assert owner.post(f"/api/v1/jobs/{job.pk}/compare/").json()["kind"] == "compare"
    refused = owner.post(f"/api/v1/jobs/{backup.pk}/compare/")
    assert (refused.status_code, error_code(refused)) == (409, "not_comparable")
    viewer = client_of(join(site.account, "viewer", Role.VIEWER))
    assert viewer.post(f"/api/v1/jobs/{job.pk}/compare/").status_code == 403
