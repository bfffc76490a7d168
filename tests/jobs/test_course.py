"""How far a job is, how fast it goes and when it may end; and what it counted."""

import datetime as dt

import pytest

from accounts.services import SERVICE
from jobs import course, local, pace, services, steps
from jobs.models import Job, Step
from jobs.states import JobState, Stage
from jobs.steps import Counters
from tests.support.api import client_of
from tests.support.control import Clock, Site, make_site, write_tree
from tests.support.people import T0

pytestmark = pytest.mark.django_db
MIB = 1 << 20


@pytest.fixture
def site(tmp_path) -> Site:
    return make_site(tmp_path)


def later(seconds: float) -> dt.datetime:
    return T0 + dt.timedelta(seconds=seconds)


def running(site: Site) -> tuple[Job, Step]:
    job = services.request_backup(site.plan, actor=SERVICE, now=T0)
    return job, steps.claim(services.first_step(job).pk, worker="w", now=T0)


def beat(step: Step, job: Job, *, at: float, bytes: int = 0, entries: int = 0) -> Job:
    steps.heartbeat(step, Counters(entries, bytes), phase="process", now=later(at))
    job.refresh_from_db()
    return job


def test_the_speed_is_that_of_the_last_half_minute_not_of_the_whole_run(site):
    job, step = running(site)
    for second in range(0, 602, 2):
        beat(step, job, at=second, bytes=MIB * min(second, 500))  # it stands still for the last hundred seconds
    seen = course.course(job, now=later(600))
    assert seen.bytes_per_s == 0
    assert len(job.samples) <= 20
    for second in range(602, 642, 2):
        beat(step, job, at=second, bytes=MIB * (500 + 4 * (second - 600)))
    assert course.course(job, now=later(640)).bytes_per_s == pytest.approx(4 * MIB, rel=0.1)


def test_heartbeats_of_many_workers_do_not_make_the_row_grow(site):
    job, step = running(site)
    for tenth in range(600):
        beat(step, job, at=tenth / 10, bytes=tenth)
    assert len(job.samples) <= pace.WINDOW_S / pace.SAMPLE_EVERY_S + 2


def test_a_job_that_told_nothing_for_long_has_no_speed(site):
    job, step = running(site)
    for second in (0, 10, 20):
        beat(step, job, at=second, bytes=second * MIB)
    assert course.course(job, now=later(25)).bytes_per_s == MIB
    assert course.course(job, now=later(200)).bytes_per_s is None


def test_the_remaining_time_is_what_is_left_at_this_speed_once_the_walk_has_ended(site):
    job, step = running(site)
    steps.estimate(step, entries=100, bytes=1000 * MIB, now=T0)
    for second in (0, 10, 20):
        beat(step, job, at=second, bytes=second * 10 * MIB, entries=second)
    assert course.course(job, now=later(20)).left_s is None  # more may be found
    Job.objects.filter(pk=job.pk).update(planned=True, stage=Stage.WORK)
    job.refresh_from_db()
    seen = course.course(job, now=later(20))
    assert (seen.left_s, seen.basis, seen.share) == (80, "speed", 0.2)


@pytest.mark.rule("D26")
def test_until_the_speed_is_known_the_last_runs_duration_tells_the_remaining_time(site):
    clock = Clock()
    done = local.do(services.request_backup(site.plan, actor=SERVICE, now=clock()), clock=clock)
    assert done.started_at is not None
    Job.objects.filter(pk=done.pk).update(ended_at=done.started_at + dt.timedelta(seconds=300))
    job = services.request_backup(site.plan, actor=SERVICE, now=later(900))
    assert course.look(job, now=later(900)).left_s is None  # it waits
    steps.claim(services.first_step(job).pk, worker="w", now=later(1000))
    job.refresh_from_db()
    seen = course.look(job, now=later(1075))
    assert (seen.left_s, seen.basis, seen.share) == (225, "last_run", 0.25)
    late = course.look(job, now=later(2000))
    assert (late.left_s, late.basis) == (None, "")


def test_a_new_round_forgets_the_speed_of_the_one_before(site):
    job, step = running(site)
    beat(step, job, at=0)
    beat(step, job, at=10, bytes=MIB)
    Step.objects.filter(pk=step.pk).update(lease_until=T0)
    steps.claim(step.pk, worker="w2", now=later(500))
    job.refresh_from_db()
    assert job.samples == []


@pytest.mark.rule("C20", "B11")
def test_the_api_tells_phase_share_speed_and_remaining_time_with_few_queries(site, django_assert_max_num_queries):
    job, step = running(site)
    beat(step, job, at=0)
    beat(step, job, at=10, bytes=MIB)
    client = client_of(site.owner)
    with django_assert_max_num_queries(6):
        told = client.get(f"/api/v1/jobs/{job.pk}/").json()["progress"]
    assert set(told) == set(course.Course._fields)
    assert (told["phase"], told["stage"]) == ("process", "plan")


def test_a_backup_counts_bytes_and_files_as_a_diff_would(site):
    clock = Clock()
    first = local.do(services.request_backup(site.plan, actor=SERVICE, now=clock()), clock=clock)
    counted = course.statistics(first)
    size = sum(path.stat().st_size for path in site.files.rglob("*") if path.is_file())
    assert counted["bytes_logical"] == counted["bytes_processed"] == size
    assert counted["files_total"] == counted["files_done"] == counted["files_new"] == 5
    assert 0 < counted["bytes_stored"] < counted["bytes_new"] <= size

    (site.files / "photos" / "two.jpg").unlink()
    write_tree(site.files, {"notes.txt": b"changed a bit", "new.txt": b"one more\n"})
    clock.now += dt.timedelta(days=1)
    second = local.do(services.request_backup(site.plan, actor=SERVICE, now=clock()), clock=clock)
    client = client_of(site.owner)
    listed = next(one for one in client.get("/api/v1/jobs/").json()["results"] if one["id"] == str(second.pk))
    told = listed["statistics"]
    assert {name.removeprefix("files_"): told[name] for name in told if name.startswith("files_")} == {
        "total": 5,
        "done": 5,
        "new": 1,
        "changed": 1,
        "unchanged": 3,
        "deleted": 1,
    }
    assert "report" not in listed


def test_a_job_that_never_ran_counted_nothing(site):
    counted = course.statistics(Job(kind="backup", state=JobState.MISSED, account=site.account, vault=site.vault))
    assert counted.pop("skipped") == {}
    assert set(counted.values()) == {None}
