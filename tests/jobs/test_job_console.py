"""The job centre in the console: one look tells how a job is and what can be done about it (D23)."""

import datetime as dt

import pytest
from django.test import Client
from django.utils import timezone

from accounts.models import User
from accounts.services import SERVICE
from jobs import local, services, steps
from jobs.models import Job, JobEvent
from jobs.states import JobState
from jobs.steps import Counters
from tests.support.console import page, press
from tests.support.control import Clock, Site, make_site

pytestmark = pytest.mark.django_db


@pytest.fixture
def site(tmp_path) -> Site:
    return make_site(tmp_path)


@pytest.fixture
def console(site) -> Client:
    client = Client()
    client.force_login(User.objects.create_superuser("root"))
    return client


def running(site: Site) -> Job:
    now = timezone.now()
    job = services.request_backup(site.plan, actor=SERVICE, now=now - dt.timedelta(seconds=60))
    step = steps.claim(services.first_step(job).pk, worker="w", now=now - dt.timedelta(seconds=40))
    steps.estimate(step, entries=1000, bytes=100 << 20, now=now)
    for ago in (20, 10, 0):
        steps.heartbeat(
            step, Counters(10 * (40 - ago), (40 - ago) << 20), phase="process", now=now - dt.timedelta(seconds=ago)
        )
    Job.objects.filter(pk=job.pk).update(planned=True, units_total=4, units_done=1)
    return job


def shown(console: Client, what: str, *args: object) -> str:
    answer = console.get(page("jobs_job", what, *args))
    assert answer.status_code == 200
    return str(answer.content.decode())


@pytest.mark.rule("D23", "C20", "B11")
def test_a_running_jobs_page_tells_phase_share_speed_and_remaining_time_and_asks_for_itself_again(console, site):
    job = running(site)
    text = shown(console, "change", job.pk)
    assert "Process: reading, deduplicating, compressing" in text
    assert f'hx-get="/admin/jobs/job/{job.pk}/live/"' in text
    for told in ("40 %", "1.0 MiB/s", "about 60 s left at this speed", "1 of 4 units"):
        assert told in text, told


def test_the_moving_part_costs_the_same_few_queries_for_many_steps_and_events(
    console, site, django_assert_max_num_queries
):
    job = running(site)
    JobEvent.objects.bulk_create(JobEvent(job=job, happened_at=timezone.now(), text=f"{n}") for n in range(200))
    with django_assert_max_num_queries(6):
        answer = console.get(page("jobs_job", "live", job.pk))
    assert "hx-get" in answer.content.decode()
    assert "HX-Refresh" not in answer


def test_it_stops_asking_when_the_job_has_ended(console, site):
    job = running(site)
    Job.objects.filter(pk=job.pk).update(state=JobState.FAILED, ended_at=timezone.now(), error="The disk broke.")
    answer = console.get(page("jobs_job", "live", job.pk))
    assert answer["HX-Refresh"] == "true"
    assert "hx-get" not in answer.content.decode()
    assert "hx-get" not in shown(console, "change", job.pk).partition('id="job-live"')[2].partition(">")[0]
    assert "The disk broke." in shown(console, "changelist")


@pytest.mark.parametrize(
    ("state", "offered"), [("running", ["cancel"]), ("failed", ["retry"]), ("complete", []), ("missed", ["retry"])]
)
def test_only_what_the_state_allows_is_offered(console, site, state, offered):
    job = running(site)
    Job.objects.filter(pk=job.pk).update(state=state, ended_at=None if state == "running" else timezone.now())
    text = shown(console, "change", job.pk)
    assert [name for name in ("cancel", "retry", "confirm", "passwords") if f"/{job.pk}/{name}" in text] == offered


def test_a_failed_backup_is_retried_by_its_button_and_the_two_jobs_name_each_other(console, site):
    job = running(site)
    services.request_cancel(job, actor=SERVICE, now=timezone.now())
    steps.end_job(job.pk, state=JobState.CANCELED, now=timezone.now())
    answer = press(console, "jobs_job", "retry", job.pk)
    again = Job.objects.get(retry_of=job)
    assert answer.redirect_chain[-1][0] == page("jobs_job", "change", again.pk)
    assert str(again) in shown(console, "change", job.pk)
    assert "being done again already" in press(console, "jobs_job", "retry", job.pk).content.decode()


def test_a_finished_backup_tells_its_counts_and_gives_its_problems_as_a_file(console, site):
    clock = Clock()
    job = local.do(services.request_backup(site.plan, actor=SERVICE, now=clock()), clock=clock)
    problem = {"path": "/srv/x", "reason": "unreadable", "detail": "no", "lost": True}
    Job.objects.filter(pk=job.pk).update(problems_count=1, report=job.report | {"problems": [problem]}, point=None)
    text = shown(console, "change", job.pk)
    assert f"/admin/jobs/job/{job.pk}/problems.csv" in text
    for label in ("Size", "Processed", "New", "Stored", "Files changed", "Files deleted"):
        assert f">{label}<" in text
    answer = console.get(page("jobs_job", "problems", job.pk, "csv"))
    assert b"/srv/x,unreadable,no,yes" in b"".join(answer.streaming_content)
    assert console.get(page("jobs_job", "problems", job.pk, "xls")).status_code == 404


def test_the_list_costs_the_same_for_many_jobs_and_loads_no_reports(console, site, django_assert_max_num_queries):
    for _ in range(3):
        services.request_cancel(running(site), actor=SERVICE, now=timezone.now())
        Job.objects.update(state=JobState.FAILED)
    with django_assert_max_num_queries(14):
        console.get(page("jobs_job", "changelist"))


def test_somebody_without_the_right_to_see_jobs_sees_none(site):
    job = running(site)
    client = Client()
    client.force_login(User.objects.create_user("staff", is_staff=True))
    assert client.get(page("jobs_job", "live", job.pk)).status_code in (403, 404)
    assert client.get(page("jobs_job", "problems", job.pk, "csv")).status_code in (403, 404)
