"""What ended badly is asked for again: a new job of the same request, or a refusal that says why not."""

import datetime as dt
import socket

import pytest

from accounts.models import Role
from accounts.services import SERVICE
from engine.patterns import Selection, Verdict, literal
from jobs import executors, local, maintenance, services, steps
from jobs.models import Job
from jobs.retrying import NotRetryable, RetryRuns, retry
from jobs.states import JobState, Kind
from policies.models import Plan
from tests.support.api import client_of, error_code
from tests.support.control import Clock, Site, make_site, read_tree
from tests.support.people import T0, join

pytestmark = pytest.mark.django_db


@pytest.fixture
def site(tmp_path) -> Site:
    return make_site(tmp_path)


@pytest.fixture
def clock() -> Clock:
    return Clock()


def failed_backup(site: Site, clock: Clock) -> Job:
    site.files.rename(site.files.with_name("away"))
    job = local.do(services.request_backup(site.plan, deep=True, actor=SERVICE, now=clock()), clock=clock)
    assert job.state == JobState.FAILED
    site.files.with_name("away").rename(site.files)
    return job


def complete_backup(site: Site, clock: Clock) -> Job:
    return local.do(services.request_backup(site.plan, actor=SERVICE, now=clock()), clock=clock)


def test_a_failed_backup_is_done_again_as_it_was_asked_for(site, clock):
    job = failed_backup(site, clock)
    again = retry(job, actor=SERVICE, now=clock())
    assert (again.kind, again.retry_of, again.settings) == (Kind.BACKUP, job, {"deep": True})
    assert local.do(again, clock=clock).state == JobState.COMPLETE


@pytest.mark.parametrize("state", [JobState.CANCELED, JobState.MISSED, JobState.SKIPPED, JobState.PARTIAL_COMPLETE])
def test_what_was_canceled_missed_skipped_or_partial_is_retried_too(site, clock, state):
    job = complete_backup(site, clock)
    Job.objects.filter(pk=job.pk).update(state=state)
    assert retry(job, actor=SERVICE, now=clock()).retry_of_id == job.pk


def refused(job: Job, clock: Clock, **wanted: bool) -> str:
    with pytest.raises((NotRetryable, RetryRuns, services.SourceBusy)) as refusal:
        retry(job, actor=SERVICE, now=clock(), **wanted)
    return refusal.value.code


def test_what_runs_or_ended_well_is_not_retried(site, clock):
    job = services.request_backup(site.plan, actor=SERVICE, now=clock())
    assert refused(job, clock) == "job_active"
    assert refused(local.do(job, clock=clock), clock) == "not_retryable"


def test_a_backup_whose_plan_is_gone_or_whose_source_is_busy_is_not_retried(site, clock):
    job = failed_backup(site, clock)
    again = retry(job, actor=SERVICE, now=clock())
    assert refused(job, clock) == "retry_runs"
    services.request_cancel(again, actor=SERVICE, now=clock())
    other = services.request_backup(site.plan, actor=SERVICE, now=clock())
    assert refused(job, clock) == "source_busy"
    local.do(other, clock=clock)
    Plan.objects.all().delete()
    job.refresh_from_db()
    assert refused(job, clock) == "plan_gone"


def partial_restore(site: Site, clock: Clock, place, failed: list[str]) -> Job:
    point = complete_backup(site, clock).point
    assert point is not None
    place.mkdir()
    job = local.do(
        services.request_restore(point, services.Selection(to=str(place)), actor=SERVICE, now=clock()), clock=clock
    )
    problems = [{"path": path, "reason": "write-failed", "detail": "disk full", "lost": True} for path in failed]
    Job.objects.filter(pk=job.pk).update(
        state=JobState.PARTIAL_COMPLETE, report=job.report | {"problems": problems}, problems_count=len(problems)
    )
    job.refresh_from_db()
    return job


def test_of_a_restore_only_what_failed_can_be_retried(site, clock, tmp_path):
    lost = site.files / "photos" / "one.jpg"
    job = partial_restore(site, clock, tmp_path / "out", [str(lost)])
    landed = tmp_path / "out" / site.files.relative_to("/")
    for path in landed.rglob("*"):
        if path.is_file():
            path.unlink()
    again = local.do(retry(job, failed_only=True, actor=SERVICE, now=clock()), clock=clock)
    assert again.state == JobState.COMPLETE
    assert list(read_tree(landed)) == ["photos/one.jpg"]


def test_a_restore_without_known_failures_or_without_its_point_is_not_retried(site, clock, tmp_path):
    job = partial_restore(site, clock, tmp_path / "out", [])
    assert refused(job, clock, failed_only=True) == "nothing_failed"
    Job.objects.filter(pk=job.pk).update(
        problems_count=5, report={"problems": [{"path": "/a", "reason": "", "detail": "", "lost": True}]}
    )
    job.refresh_from_db()
    assert refused(job, clock, failed_only=True) == "failed_paths_unknown"
    Job.objects.filter(pk=job.pk).update(point=None)
    assert refused(job, clock) == "point_gone"


def test_only_a_restore_is_retried_for_what_failed(site, clock):
    assert refused(failed_backup(site, clock), clock, failed_only=True) == "not_retryable"


def test_a_failed_verification_keeps_its_level_and_a_dry_run_stays_one(site, clock):
    verify = services.request_verify(site.vault, level="content", actor=SERVICE, now=clock())
    services.request_cancel(verify, actor=SERVICE, now=clock())
    assert retry(verify, actor=SERVICE, now=clock()).settings == {"level": "content"}
    prune = maintenance.request(site.vault, Kind.PRUNE, {"dry_run": True}, actor=SERVICE, now=clock())
    services.request_cancel(prune, actor=SERVICE, now=clock())
    assert retry(prune, actor=SERVICE, now=clock()).settings == {"dry_run": True}


def test_the_deletion_of_one_point_is_asked_for_anew_at_the_point(site, clock):
    job = maintenance.request(site.vault, Kind.EXPIRE, {"points": ["x"]}, actor=SERVICE, now=clock())
    services.request_cancel(job, actor=SERVICE, now=clock())
    assert refused(job, clock) == "ask_at_point"


def test_the_api_retries_for_operators_and_tells_refusals(site, clock):
    job = failed_backup(site, clock)
    assert client_of(join(site.account, "viewer", Role.VIEWER)).post(f"/api/v1/jobs/{job.pk}/retry/").status_code == 403
    operator = client_of(join(site.account, "operator", Role.OPERATOR))
    answer = operator.post(f"/api/v1/jobs/{job.pk}/retry/", {}, format="json")
    assert (answer.status_code, answer.json()["retry_of"]) == (202, str(job.pk))
    again = operator.post(f"/api/v1/jobs/{job.pk}/retry/", {}, format="json")
    assert (again.status_code, error_code(again)) == (409, "retry_runs")


@pytest.mark.parametrize("path", ["/a/b", "/a*b", "/[x]", "/back\\slash", "/end ", "/!bang", "/#hash", "/q?"])
def test_a_literal_pattern_means_its_path_alone(path):
    selection = Selection((literal(path),), ())
    assert selection.verdict(path[1:].encode(), folder=False) == Verdict.KEEP
    assert selection.verdict(b"other", folder=False) != Verdict.KEEP


def test_a_canceled_backup_tells_which_files_it_could_not_read_before(site, clock):
    job = services.request_backup(site.plan, actor=SERVICE, now=clock())
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(site.files / "sock"))
        step = services.first_step(job)
        executors.run(steps.claim(step.pk, worker="w", now=clock()), clock=clock)
        for work in job.steps.filter(state="queued", stage="work"):
            executors.run(steps.claim(work.pk, worker="w", now=clock()), clock=clock)
    Job.objects.filter(pk=job.pk).update(state=JobState.CANCELED, ended_at=T0 + dt.timedelta(hours=1))
    job.refresh_from_db()
    assert executors.clean(job, clock=clock)
    job.refresh_from_db()
    assert [(one["path"], one["reason"]) for one in job.report["problems"]] == [(f"{site.files}/sock", "socket")]
