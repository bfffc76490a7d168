"""An application rests while its files are read, and goes on whatever becomes of the backup."""

import datetime as dt
import sys
from pathlib import Path

import pytest
from django.core.exceptions import ValidationError

from accounts.services import SERVICE
from engine.verbs import backup as backup_verb
from jobs import doorbell, freezing, local, services, steps, tasks
from jobs.models import Job
from jobs.states import JobState, Stage
from policies.services import save_source
from tests.support.control import Clock, Site, make_site

pytestmark = pytest.mark.django_db
HOUR = dt.timedelta(hours=1)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return make_site(tmp_path)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def log(site: Site, tmp_path: Path) -> Path:
    """What the commands of the site's source wrote; the source has both."""
    path = tmp_path / "commands.log"
    path.touch()
    script = f"import os; open({str(path)!r}, 'a').write(%r + ' ' + os.environ['BACKUPSITE_SOURCE'] + '\\n')"
    for which in ("freeze", "thaw"):
        site.source.settings[f"{which}_command"] = [sys.executable, "-c", script % which]
    site.source.save()
    return path


def begun(site: Site, clock: Clock) -> Job:
    return services.request_backup(site.plan, actor=SERVICE, now=clock())


def said(log: Path) -> list[str]:
    return [line.partition(" ")[0] for line in log.read_text().splitlines()]


def texts(job: Job) -> str:
    return "\n".join(job.events.values_list("text", flat=True))


def test_it_rests_before_anything_is_read_and_goes_on_before_the_point_is_committed(site, clock, log, monkeypatch):
    seen: dict[str, list[str]] = {}
    for name in ("plan", "work", "finish"):
        verb = getattr(backup_verb, name)

        def watched(*args, _name=name, _verb=verb, **options):
            seen.setdefault(_name, said(log))
            return _verb(*args, **options)

        monkeypatch.setattr(backup_verb, name, watched)
    job = local.do(begun(site, clock), clock=clock)
    assert job.state == JobState.COMPLETE
    assert (seen["plan"], seen["finish"], said(log)) == (["freeze"], ["freeze", "thaw"], ["freeze", "thaw"])
    assert log.read_text().splitlines()[0] == f"freeze {site.source.name}"
    assert "The freeze command ended well" in texts(job)
    assert job.thawed_at is not None
    assert not list(freezing.sweep(now=clock() + HOUR, rows_max=10))


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["/bin/sh", "-c", "echo busy >&2; exit 3"], "exit code 3. busy"),
        (["/nonexistent/freeze"], "/nonexistent/freeze"),
        (["/bin/sleep", "60"], "did not end within 1 seconds"),
    ],
)
def test_without_rest_nothing_is_read_and_the_application_goes_on(site, clock, log, argv, told):
    site.source.settings |= {"freeze_command": argv, "command_s_max": 1}
    site.source.save()
    job = local.do(begun(site, clock), clock=clock)
    assert (job.state, job.error_code, job.point) == (JobState.FAILED, "freeze_failed", None)
    assert told in job.error
    assert said(log) == ["thaw"]


def test_a_canceled_backup_lets_it_go_on_at_once(site, clock, log):
    job = begun(site, clock)

    def stop(seen: Job) -> None:
        if not seen.ended:
            services.request_cancel(seen, actor=SERVICE, now=clock())

    job = local.do(job, clock=clock, watch=stop)
    assert (job.state, said(log)) == (JobState.CANCELED, ["freeze", "thaw"])


def test_a_worker_that_died_at_rest_is_followed_by_a_thaw(site, clock, log, monkeypatch):
    job = begun(site, clock)
    step = steps.claim(services.first_step(job).pk, worker="w1", now=clock())
    freezing.freeze(step.job, clock=clock, check=lambda: None)
    assert said(log) == ["freeze"]  # and then the worker is killed
    asked: list[Job] = []
    monkeypatch.setattr(doorbell, "ask_to_thaw", asked.append)
    services.request_cancel(job, actor=SERVICE, now=clock())
    assert not list(freezing.sweep(now=clock(), rows_max=10))
    steps.end_job(job.pk, state=JobState.CANCELED, now=clock())
    assert asked == [job]
    assert list(freezing.sweep(now=clock(), rows_max=10)) == [job]
    clock.now += HOUR
    monkeypatch.setattr("django.utils.timezone.now", clock)
    tasks.thaw(str(job.pk))
    tasks.thaw(str(job.pk))
    assert said(log) == ["freeze", "thaw"]


def test_a_planner_that_follows_a_dead_one_lets_it_go_on_and_brings_it_to_rest_again(site, clock, log):
    job = begun(site, clock)
    freezing.freeze(job, clock=clock, check=lambda: None)
    job = local.do(Job.objects.get(pk=job.pk), clock=clock)
    assert job.state == JobState.COMPLETE
    assert said(log) == ["freeze", "thaw", "freeze", "thaw"]


def test_it_never_rests_longer_than_it_may(site, clock, log):
    job = begun(site, clock)
    step = steps.claim(services.first_step(job).pk, worker="w1", now=clock())
    freezing.freeze(step.job, clock=clock, check=lambda: None)
    clock.now += HOUR
    assert list(freezing.sweep(now=clock(), rows_max=10)) == [job]
    freezing.thaw(job.pk, clock=clock)
    job.refresh_from_db()
    assert (job.state, job.error_code, said(log)) == (JobState.FAILED, "frozen_too_long", ["freeze", "thaw"])


def test_a_thaw_that_fails_is_told_and_tried_again(site, clock, log):
    site.source.settings["thaw_command"] = ["/bin/false"]
    site.source.save()
    job = local.do(begun(site, clock), clock=clock)
    assert (job.stage, job.thawed_at) == (Stage.FINISH, None)
    assert "The thaw command failed: exit code 1" in texts(job)
    clock.now += HOUR
    assert list(freezing.sweep(now=clock(), rows_max=10)) == [job]
    clock.now += 24 * HOUR
    freezing.thaw(job.pk, clock=clock)
    assert "thaw it by hand" in texts(job)
    assert not list(freezing.sweep(now=clock() + HOUR, rows_max=10))


def test_a_command_is_named_by_its_whole_path(site, clock):
    site.source.settings["freeze_command"] = ["fsfreeze", "/srv"]
    with pytest.raises(ValidationError, match="whole path of the program"):
        save_source(site.source, actor=SERVICE, now=clock())
