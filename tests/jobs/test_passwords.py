"""Passwords that a restore made anew are shown once, to whoever may manage, and stand in no report (D5)."""

import msgspec
import pytest

from accounts.models import Event
from accounts.services import SERVICE
from engine.entries import Problem
from engine.verbs.restore import Outcome
from jobs import passwords
from jobs.executors import restore
from jobs.models import Job
from jobs.states import JobState, Kind
from tests.support.api import client_of
from tests.support.console import press
from tests.support.control import Site, make_site
from tests.support.people import T0, join, make_user
from vaults import repositories

pytestmark = [pytest.mark.django_db, pytest.mark.rule("D5")]
LINE = "the user ada has the new password s3cr3t-indeed"


@pytest.fixture
def site(tmp_path) -> Site:
    return make_site(tmp_path)


@pytest.fixture
def job(site) -> Job:
    """A restore that has just made a password."""
    job = Job.objects.create(
        account=site.account,
        kind=Kind.RESTORE,
        vault=site.vault,
        source=site.source,
        created_at=T0,
        state=JobState.COMPLETE,
    )
    problems = [Problem(b"zz-rbac.json", "password", LINE, lost=False), Problem(b"x", "adjusted", "shards", lost=False)]
    outcome = Outcome("complete", "s", "p", 1, 1, 1, 0, problems, 2)
    fields = restore.EXECUTOR.conclude(job, repositories.open_vault(site.vault), outcome, T0)
    Job.objects.filter(pk=job.pk).update(**fields)
    job.refresh_from_db()
    return job


def test_they_stand_in_no_report_and_in_no_row_in_the_clear(job):
    row = Job.objects.filter(pk=job.pk).values().get()
    assert "s3cr3t" not in msgspec.json.encode(row, enc_hook=str).decode()
    assert [one["reason"] for one in job.report["problems"]] == ["password", "adjusted"]
    assert "shown once" in job.report["problems"][0]["detail"]


def test_they_are_shown_once(site, job):
    api = client_of(site.owner)
    first = api.post(f"/api/v1/jobs/{job.pk}/passwords/")
    assert (first.status_code, first.json(), first["Cache-Control"]) == (200, {"passwords": [LINE]}, "no-store")
    again = api.post(f"/api/v1/jobs/{job.pk}/passwords/")
    assert (again.status_code, again.json()["errors"][0]["code"]) == (409, "passwords_shown")
    assert Job.objects.get(pk=job.pk).passwords == ""
    assert Event.objects.get(action="job.passwords").detail == {"count": 1}


@pytest.mark.parametrize("role", ["operator", "viewer"])
def test_whoever_may_not_manage_is_not_shown_them(site, job, role):
    assert client_of(join(site.account, role, role)).post(f"/api/v1/jobs/{job.pk}/passwords/").status_code == 403
    assert client_of(make_user("outsider")).post(f"/api/v1/jobs/{job.pk}/passwords/").status_code == 404
    assert passwords.take(job, actor=SERVICE, now=T0) == [LINE]


def test_the_jobs_page_shows_them_once(job, client, django_user_model):
    client.force_login(django_user_model.objects.create_superuser("root"))
    assert LINE in press(client, "jobs_job", "passwords", job.pk).content.decode()
    assert "was shown them already" in press(client, "jobs_job", "passwords", job.pk).content.decode()


def test_a_restore_that_made_none_keeps_none(site):
    job = Job.objects.create(account=site.account, kind=Kind.RESTORE, vault=site.vault, created_at=T0)
    assert passwords.sealed(job, []) == ""
    with pytest.raises(passwords.PasswordsShown):
        passwords.take(job, actor=SERVICE, now=T0)
