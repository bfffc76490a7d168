"""What a person deletes at a vault goes from its replica days later, unless somebody keeps it there."""

import datetime as dt
from pathlib import Path

import pytest

from accounts.services import SERVICE
from jobs import holdback, maintenance, removal
from jobs.models import Job
from jobs.states import JobState, Kind
from policies.models import Source
from tests.jobs.test_replicate_jobs import link, names, replicate, story  # noqa: F401  # a fixture
from tests.support.console import page
from tests.support.story import Story
from vaults import replication
from vaults.models import RecoveryPoint

pytestmark = pytest.mark.django_db
DAY = dt.timedelta(days=1)


@pytest.fixture
def mirrored(story: Story) -> Story:  # noqa: F811
    """Two points in both vaults; the older one is about to be deleted."""
    story.backup(more=b"more" * 1000)
    replicate(story)
    assert names(link().target) == names(story.site.vault)
    return story


def pass_days(story: Story, days: int) -> None:  # noqa: F811
    """Let days go by, with what deletes."""
    for _ in range(days):
        story.clock.now += DAY
        for vault in (story.site.vault, link().target):
            story.do(maintenance.request(vault, Kind.EXPIRE, {}, actor=SERVICE, now=story.clock()))
        for sweep in (removal.sweep, holdback.sweep):
            for job in sweep(now=story.clock(), rows_max=10):
                story.do(job)


def older(story: Story) -> RecoveryPoint:  # noqa: F811
    return story.site.vault.points.order_by("completed_at").select_related("vault")[0]


def copy_of(point: RecoveryPoint) -> RecoveryPoint:
    return link().target.points.select_related("vault__account", "vault__region").get(point_id=point.point_id)


def delete(story: Story, point: RecoveryPoint) -> Job:  # noqa: F811
    return story.do(removal.delete_point(point, confirmation=story.site.source.name, actor=SERVICE, now=story.clock()))


@pytest.mark.rule("E15")
def test_a_deleted_point_goes_from_the_replica_after_seven_days_and_not_before(mirrored):
    point = older(mirrored)
    assert delete(mirrored, point).state == JobState.COMPLETE
    copy = copy_of(point)
    assert copy.delete_due_at is not None
    assert (copy.delete_due_at - mirrored.now).days in (6, 7)
    pass_days(mirrored, 6)
    assert point.point_id in names(link().target)
    pass_days(mirrored, 2)
    assert names(link().target) == names(mirrored.site.vault) == {mirrored.rows()[-1].point_id}


def test_somebody_who_holds_it_keeps_it(mirrored):
    point = older(mirrored)
    delete(mirrored, point)
    removal.hold(copy_of(point), reason="who deleted that?", actor=SERVICE, now=mirrored.clock())
    pass_days(mirrored, 9)
    assert point.point_id in names(link().target)
    assert copy_of(point).delete_due_at is None


@pytest.mark.rule("E14", "E15")
def test_at_the_replica_itself_nobody_deletes(mirrored):
    with pytest.raises(removal.PointMirrored, match="Delete the point there"):
        delete(mirrored, copy_of(older(mirrored)))


@pytest.mark.rule("E17", "E19")
def test_when_replication_ends_a_deletion_that_is_held_back_ends_too_and_people_delete_there(mirrored):
    point = older(mirrored)
    delete(mirrored, point)
    copy = copy_of(point)
    replication.stop(mirrored.site.vault, confirmation=mirrored.site.vault.name, actor=SERVICE, now=mirrored.clock())
    pass_days(mirrored, 9)
    copy.refresh_from_db()
    assert copy.delete_due_at is None
    assert delete(mirrored, copy).state == JobState.COMPLETE
    assert not RecoveryPoint.objects.filter(pk=copy.pk).exists()


def test_all_backups_of_a_source_go_from_the_replica_later_too_and_the_source_with_the_last_of_them(mirrored):
    source, target = mirrored.site.source, link().target
    removal.erase(source, confirmation=source.name, actor=SERVICE, now=mirrored.clock())
    pass_days(mirrored, 2)
    assert (len(names(mirrored.site.vault)), len(names(target))) == (0, 2)
    assert Source.objects.filter(pk=source.pk).exists()
    pass_days(mirrored, 7)
    assert names(target) == set()
    assert not Source.objects.filter(pk=source.pk).exists()


def test_what_a_lock_keeps_is_asked_for_again(mirrored):
    point = older(mirrored)
    delete(mirrored, point)
    RecoveryPoint.objects.filter(pk=copy_of(point).pk).update(delete_due_at=mirrored.now)
    [job] = holdback.sweep(now=mirrored.now, rows_max=10)
    assert job.kind == Kind.EXPIRE
    assert list(holdback.sweep(now=mirrored.now, rows_max=10)) == []
    due = copy_of(point).delete_due_at
    assert due is not None
    assert due > mirrored.now


def test_the_page_of_a_copy_tells_until_when_it_can_be_kept(mirrored, admin_client, tmp_path: Path):
    point = older(mirrored)
    delete(mirrored, point)
    shown = admin_client.get(page("vaults_recoverypoint", "change", copy_of(point).pk)).content.decode()
    assert "deleted it at its source" in shown
