"""Backup jobs from the request to the catalogue, on a real vault in a folder."""

import datetime as dt

import pytest

from accounts.services import SERVICE
from jobs import executors, local, services, steps
from jobs.models import Job, Step
from jobs.states import JobState, Stage, StepState
from tests.support.control import Clock, Site, make_site, write_tree
from tests.support.people import T0, make_point
from vaults import catalogue, repositories
from vaults.models import PointState, RecoveryPoint

pytestmark = pytest.mark.django_db


@pytest.fixture
def site(tmp_path) -> Site:
    return make_site(tmp_path)


@pytest.fixture
def clock() -> Clock:
    return Clock()


def backup(site: Site, clock: Clock) -> Job:
    return services.request_backup(site.plan, actor=SERVICE, now=clock())


def staged(site: Site) -> list[str]:
    return [stored.key for stored in repositories.storage(site.vault).scan("staging/")]


def test_a_backup_job_ends_complete_with_its_point_in_the_catalogue(site, clock):
    job = local.do(backup(site, clock), clock=clock)
    assert (job.state, job.error) == (JobState.COMPLETE, "")
    point = job.point
    assert point is not None
    assert (point.state, point.series, point.host) == (PointState.COMPLETE, site.source.series, "acme-web")
    assert (point.source_name, point.roots) == ("acme-web", [str(site.files)])
    assert point.bytes_total == sum(path.stat().st_size for path in site.files.rglob("*") if path.is_file())
    assert point.expires_at == point.completed_at + dt.timedelta(days=30)
    assert job.units_done == job.units_total > 0
    assert job.entries_done > 0


@pytest.mark.rule("B12")
def test_a_second_backup_stores_only_what_changed(site, clock):
    first = local.do(backup(site, clock), clock=clock).point
    write_tree(site.files, {"new.txt": b"one more\n"})
    second = local.do(backup(site, clock), clock=clock).point
    assert first is not None
    assert second is not None
    assert second.stats["bytes_new"] < 1000 < first.stats["bytes_new"]


def test_an_unreadable_source_fails_the_job_with_what_to_do(site, clock):
    site.source.settings["roots"] = ["/no/such/folder"]
    site.source.save()
    job = local.do(backup(site, clock), clock=clock)
    assert (job.state, job.error_code) == (JobState.FAILED, "source_missing")
    assert "'/no/such/folder' does not exist" in job.error
    assert not RecoveryPoint.objects.exists()


def test_every_step_run_twice_leaves_one_point(site, clock):
    job = backup(site, clock)
    while True:
        waiting = Step.objects.filter(job=job, state=StepState.QUEUED).first()
        if waiting is None:
            break
        claimed = steps.claim(waiting.pk, worker="w1", now=clock())
        executors.run(claimed, clock=clock)
        executors.run(claimed, clock=clock)  # a late twin with the same attempt: fenced from the books
    job.refresh_from_db()
    assert job.state == JobState.COMPLETE
    assert RecoveryPoint.objects.count() == len(repositories.open_vault(site.vault).points()) == 1


def test_a_finish_whose_worker_died_after_the_commit_is_taken_over_without_a_second_point(site, clock, monkeypatch):
    job = backup(site, clock)
    with monkeypatch.context() as patch:
        patch.setattr(steps, "end_finish", _dies)
        with pytest.raises(KeyboardInterrupt):
            local.do(job, clock=clock)
    clock.now += dt.timedelta(hours=1)
    finish = job.steps.get(stage=Stage.FINISH)
    executors.run(steps.claim(finish.pk, worker="w2", now=clock()), clock=clock)
    job.refresh_from_db()
    assert job.state == JobState.COMPLETE
    assert RecoveryPoint.objects.count() == len(repositories.open_vault(site.vault).points()) == 1


def _dies(*args, **kwargs):
    raise KeyboardInterrupt


def test_a_planner_that_died_is_replaced_and_the_job_completes(site, clock, monkeypatch):
    job = backup(site, clock)
    with monkeypatch.context() as patch:
        patch.setattr(steps, "end_plan", _dies)
        with pytest.raises(KeyboardInterrupt):
            local.do(job, clock=clock)
    clock.now += dt.timedelta(hours=1)
    planner = job.steps.get(stage=Stage.PLAN)
    executors.run(steps.claim(planner.pk, worker="w2", now=clock()), clock=clock)
    job = local.do(job, clock=clock)
    assert (job.state, job.round) == (JobState.COMPLETE, 2)
    assert RecoveryPoint.objects.count() == len(repositories.open_vault(site.vault).points()) == 1


@pytest.mark.rule("C42", "C43")
def test_canceling_a_running_backup_makes_no_point_and_leaves_earlier_ones(site, clock, monkeypatch, settings):
    settings.STEP_HEARTBEAT_S = 0
    earlier = local.do(backup(site, clock), clock=clock).point
    write_tree(site.files, {"new.bin": b"n" * 100_000})
    job = backup(site, clock)
    steps.claim(services.first_step(job).pk, worker="w1", now=clock())
    services.request_cancel(job, actor=SERVICE, now=clock())
    planner = job.steps.select_related("job__vault__region").get(stage=Stage.PLAN)
    executors.run(planner, clock=clock)
    job.refresh_from_db()
    assert (job.state, job.point) == (JobState.CANCELED, None)
    assert list(RecoveryPoint.objects.all()) == [earlier]
    assert len(repositories.open_vault(site.vault).points()) == 1
    executors.clean(job, clock=clock)
    sessions = [stored.key.split("/") for stored in repositories.storage(site.vault).scan("sessions/")]
    opened = {name for _, name, part in sessions if part == "open"}
    assert opened == {name for _, name, part in sessions if part == "closed"}
    assert len(opened) == 2


def test_an_ended_job_leaves_nothing_in_the_staging_area(site, clock):
    job = local.do(backup(site, clock), clock=clock)
    assert staged(site)
    assert executors.clean(job, clock=clock)
    assert executors.clean(job, clock=clock)
    job.refresh_from_db()
    assert (staged(site), job.cleaned) == ([], True)


def test_cleaning_waits_for_a_store_that_is_away(site, clock, tmp_path):
    job = local.do(backup(site, clock), clock=clock)
    (tmp_path / "store").rename(tmp_path / "away")
    assert not executors.clean(job, clock=clock)
    (tmp_path / "away").rename(tmp_path / "store")
    assert executors.clean(job, clock=clock)


def test_the_catalogue_can_be_rebuilt_from_the_vault_alone(site, clock):
    point = local.do(backup(site, clock), clock=clock).point
    assert point is not None
    lost = dict(RecoveryPoint.objects.values().get())
    RecoveryPoint.objects.all().delete()
    assert catalogue.rebuild(site.vault, now=T0).points_added == 1
    found = dict(RecoveryPoint.objects.values().get())
    same = set(lost) - {"id", "created_at"}
    assert {name: found[name] for name in same} == {name: lost[name] for name in same}
    again = catalogue.rebuild(site.vault, now=T0)
    assert (again.points_found, again.points_added, again.points_gone) == (1, 0, 0)


def test_a_row_whose_point_is_gone_from_the_vault_goes_with_the_next_rebuild(site, clock):
    local.do(backup(site, clock), clock=clock)
    stale = make_point(site.vault, site.source)
    rebuilt = catalogue.rebuild(site.vault, now=T0)
    assert (rebuilt.points_added, rebuilt.points_gone) == (0, 1)
    assert not RecoveryPoint.objects.filter(pk=stale.pk).exists()
