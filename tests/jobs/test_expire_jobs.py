"""Expiry in a whole control plane, by a simulated clock: what goes, what stays, who is asked, what is told."""

import datetime as dt
import shutil

import pytest

from accounts.models import Event
from accounts.services import SERVICE
from engine.point import point_key
from jobs import local, maintenance, removal, services
from jobs.models import Duty, Job
from jobs.states import JobState, Kind
from policies import services as policy_services
from policies.models import Policy
from policies.retention import warnings_on_disable
from tests.support.people import make_plan, make_policy, make_source, online
from tests.support.story import DAY, MINUTE, Story
from vaults import repositories
from vaults.models import ConfirmationWrong, RecoveryPoint

pytestmark = [pytest.mark.django_db, pytest.mark.slow]


@pytest.fixture(autouse=True)
def only_expiry_recurs(settings) -> None:
    settings.MAINTENANCE_EVERY_S = dict.fromkeys(settings.MAINTENANCE_EVERY_S, 0) | {"expire": 3600}


@pytest.fixture
def story(tmp_path) -> Story:
    return Story(tmp_path)


@pytest.fixture
def old(story: Story) -> Story:
    """Two daily points were made; the newest is past its retention, and is all that is left."""
    story.change_policy(retention_days=3)
    for _ in range(2):
        story.backup()
        story.pass_days(1)
    story.pass_days(4)
    return story


@pytest.mark.rule("C9")
@pytest.mark.rule("C16")
def test_points_go_after_thirty_days_and_the_newest_never(story):
    for _ in range(3):
        story.backup()
        story.pass_days(1)
    story.pass_days(26)
    assert len(story.rows()) == 3
    story.pass_days(1)
    assert len(story.rows()) == 2
    story.pass_days(8)
    (last,) = story.rows()
    assert story.in_vault() == {last.point_id}
    assert last.expires_at is None


@pytest.mark.rule("C30")
def test_points_of_a_paused_plan_expire_as_they_would_and_the_last_one_stays(story):
    for _ in range(2):
        story.backup()
        story.pass_days(1)
    policy_services.pause(story.site.plan, actor=SERVICE, now=story.now)
    story.pass_days(27)
    assert len(story.rows()) == 2
    story.pass_days(5)
    assert len(story.rows()) == len(story.in_vault()) == 1


@pytest.mark.rule("C33")
def test_switching_keep_at_least_one_on_saves_the_last_point_at_once(story):
    story.backup()
    Policy.objects.update(keep_at_least_one=False, retention_days=3)
    story.pass_days(2)
    story.clock.now += DAY + MINUTE
    story.change_policy(keep_at_least_one=True)
    story.expire()
    story.pass_days(5)
    assert len(story.in_vault()) == 1


def test_rules_that_change_while_an_expiry_runs_make_it_look_anew(story):
    story.backup()
    Policy.objects.update(keep_at_least_one=False, retention_days=3)
    story.pass_days(2)
    story.clock.now += DAY
    job = maintenance.request(story.site.vault, Kind.EXPIRE, {}, actor=SERVICE, now=story.now)
    seen: list[str] = []

    def watch(job: Job) -> None:
        if not seen:
            story.change_policy(keep_at_least_one=True)
        seen.append(job.stage)

    local.do(job, clock=story.clock, watch=watch)
    story.clock.now += MINUTE
    job = story.do(job)
    assert (job.state, job.round) == (JobState.COMPLETE, 2)
    assert len(story.in_vault()) == 1


class TestSwitchingKeepAtLeastOneOff:
    @pytest.mark.rule("C34")
    @pytest.mark.rule("C35")
    def test_an_expired_last_point_survives_at_first_and_is_gone_within_the_hour(self, old):
        # No expiry is due for long: the end of the grace alone must start one.
        maintenance.set_intervals(old.site.vault, {"expire": 300 * 86_400}, actor=SERVICE, now=old.now)
        Duty.objects.filter(kind=Kind.EXPIRE).update(due_at=old.now + 300 * DAY)
        old.change_policy(keep_at_least_one=False)
        old.expire()
        assert len(old.in_vault()) == 1
        old.pass_minutes(45)
        assert len(old.in_vault()) == 1
        old.pass_minutes(15)
        assert old.in_vault() == set()
        assert not RecoveryPoint.objects.exists()

    @pytest.mark.rule("C34")
    def test_switching_it_on_again_inside_the_hour_cancels_that(self, old):
        old.change_policy(keep_at_least_one=False)
        old.pass_minutes(40)
        old.change_policy(keep_at_least_one=True)
        old.pass_minutes(180)
        assert len(old.in_vault()) == 1

    @pytest.mark.rule("C36")
    def test_a_point_that_is_not_expired_yet_outlives_it_and_goes_at_the_date_that_was_told(self, story):
        story.backup()
        policy = story.change_policy(keep_at_least_one=False)
        told = warnings_on_disable(policy, now=story.now)[1]
        assert "2026-04-09 12:00 UTC" in told
        story.pass_days(29)
        assert len(story.in_vault()) == 1
        story.pass_days(1)
        assert story.now.date() == dt.date(2026, 4, 9)
        assert story.in_vault() == set()


def test_the_date_on_a_points_page_follows_the_rules(story):
    point = story.backup()
    assert point.expires_at == point.completed_at + 30 * DAY
    story.backup()
    story.change_policy(retention_days=7)
    story.expire()
    first, second = story.rows()
    assert first.expires_at == first.completed_at + 7 * DAY
    assert second.expires_at is None
    story.change_policy(retention_days=None)
    story.expire()
    assert story.rows()[0].expires_at is None


@pytest.mark.parametrize(("last", "last_in_tokyo"), [(0, 3), (3, 0)])
def test_points_that_policies_of_two_time_zones_keep_all_stay(story, last, last_in_tokyo):
    for _ in range(3):
        story.backup()
        story.pass_days(1)
    story.change_policy(retention_days=1, keep_last=last)
    other = make_policy(story.site.account, "other", time_zone="Asia/Tokyo", retention_days=1, keep_last=last_in_tokyo)
    make_plan(story.site.source, other, story.site.vault)
    story.pass_days(3)
    assert len(story.rows()) == 3


class TestGuards:
    @pytest.fixture
    def refused(self, story: Story) -> Job:
        """An expiry that would take four of five points."""
        for _ in range(5):
            story.backup()
            story.pass_days(1)
        story.change_policy(retention_days=1)
        return story.expire()

    def test_an_expiry_of_more_than_a_fifth_fails_and_takes_nothing(self, story, refused):
        assert (refused.state, refused.error_code) == (JobState.FAILED, removal.EXPIRY_REFUSED)
        assert "more than a fifth" in refused.error
        assert len(story.rows()) == len(story.in_vault()) == 5

    def test_a_person_lets_it_pass_and_that_is_recorded(self, story, refused):
        job = story.do(removal.confirm_expiry(refused, actor=SERVICE, now=story.now))
        assert job.state == JobState.COMPLETE
        assert len(story.rows()) == len(story.in_vault()) == 1
        assert Event.objects.filter(action="job.expire").order_by("-pk")[0].detail == {"confirmed": True}

    def test_a_clock_that_jumped_is_not_followed(self, story):
        story.backup()
        story.backup()
        story.expire()
        story.clock.now += 40 * DAY
        job = story.expire()
        assert (job.state, job.error_code) == (JobState.FAILED, removal.EXPIRY_REFUSED)
        assert "the last expiry was at" in job.error
        assert len(story.in_vault()) == 2

    def test_nothing_else_can_be_confirmed(self, story):
        story.backup()
        job = story.expire()
        with pytest.raises(removal.NothingToConfirm):
            removal.confirm_expiry(job, actor=SERVICE, now=story.now)


def test_a_dry_run_tells_of_each_point_why_and_takes_nothing(story):
    for _ in range(5):
        story.backup()
        story.pass_days(1)
    story.change_policy(retention_days=1)
    job = story.expire(dry_run=True)
    assert job.state == JobState.COMPLETE
    assert (job.report["visible"], job.report["going"]) == (5, 4)
    assert [one["keep"] for one in job.report["decisions"]] == [False] * 4 + [True]
    assert "1 day since completion were over" in job.report["decisions"][0]["text"]
    assert "more than a fifth" in job.report["objections"][0]
    assert len(story.rows()) == len(story.in_vault()) == 5


def test_a_point_that_the_command_line_expired_leaves_the_catalogue_with_the_next_expiry(story, tmp_path):
    first, second = story.backup(), story.backup()
    shutil.rmtree(tmp_path / "store" / story.site.vault.prefix / "points" / first.series / first.point_id)
    story.expire(points=[f"{second.series}/nothing"])
    assert len(story.rows()) == 2
    story.expire()
    assert story.rows() == [second]


class TestReaders:
    def test_a_point_that_a_waiting_restore_is_about_stays_until_it_ran(self, old, tmp_path):
        old.backup()
        oldest = old.rows()[0]
        online(old.site.source.queue, at=old.now)
        selection = services.Selection(to=str(tmp_path))
        restore = services.request_restore(oldest, selection, actor=SERVICE, now=old.now)
        old.expire()
        assert oldest.point_id in old.in_vault()
        assert old.do(restore).state == JobState.COMPLETE
        old.expire()
        assert oldest.point_id not in old.in_vault()

    def test_a_restore_that_is_asked_for_while_an_expiry_runs_keeps_its_point(self, old, tmp_path):
        old.backup()
        oldest = old.rows()[0]
        online(old.site.source.queue, at=old.now)
        job = maintenance.request(old.site.vault, Kind.EXPIRE, {}, actor=SERVICE, now=old.now)
        asked: list[Job] = []

        def ask(job: Job) -> None:
            if not asked:
                selection = services.Selection(to=str(tmp_path))
                asked.append(services.request_restore(oldest, selection, actor=SERVICE, now=old.now))

        local.do(job, clock=old.clock, watch=ask)
        old.clock.now += MINUTE
        assert old.do(job).round == 2
        assert oldest.point_id in old.in_vault()
        assert old.do(asked[0]).state == JobState.COMPLETE

    def test_a_restore_of_a_point_that_is_gone_fails_and_says_so(self, story):
        story.backup()
        point = story.backup()
        online(story.site.source.queue, at=story.now)
        restore = services.request_restore(point, services.Selection(), actor=SERVICE, now=story.now)
        RecoveryPoint.objects.filter(pk=point.pk).delete()
        restore.refresh_from_db()
        restore = story.do(restore)
        assert (restore.state, restore.error_code) == (JobState.FAILED, "point_missing")
        assert "expired, or was deleted, before this job began" in restore.error


class TestHolds:
    def test_a_held_point_outlives_its_retention_until_it_is_released(self, story):
        story.change_policy(retention_days=3)
        held = removal.hold(story.backup(), reason="court case", actor=SERVICE, now=story.now)
        story.backup()
        assert (held.held_by, held.hold_reason) == ("service", "court case")
        story.pass_days(5)
        assert held.point_id in story.in_vault()
        removal.release(held, actor=SERVICE, now=story.now)
        story.pass_days(1)
        assert held.point_id not in story.in_vault()
        assert [e.action for e in Event.objects.filter(action__startswith="point.").order_by("pk")] == [
            "point.hold",
            "point.release",
        ]

    def test_a_hold_outlives_the_database(self, story):
        story.change_policy(retention_days=3)
        held = removal.hold(story.backup(), reason="court case", actor=SERVICE, now=story.now)
        story.backup()
        RecoveryPoint.objects.update(held_at=None)
        story.pass_days(5)
        assert held.point_id in story.in_vault()

    def test_a_held_point_is_not_deleted_by_anybody(self, story):
        held = removal.hold(story.backup(), reason="court case", actor=SERVICE, now=story.now)
        with pytest.raises(removal.PointHeld, match="service holds this point: court case"):
            removal.delete_point(held, confirmation=held.source_name, actor=SERVICE, now=story.now)


class TestDeletion:
    def test_a_point_is_deleted_once_its_sources_name_was_typed(self, story):
        first, second = story.backup(), story.backup()
        with pytest.raises(ConfirmationWrong, match="Type 'acme-web'"):
            removal.delete_point(first, confirmation="yes", actor=SERVICE, now=story.now)
        job = removal.delete_point(first, confirmation="acme-web", actor=SERVICE, now=story.now)
        assert story.do(job).state == JobState.COMPLETE
        assert story.in_vault() == {second.point_id}
        assert story.rows() == [second]
        assert Event.objects.filter(action="job.expire").count() == 1

    def test_a_locked_one_is_refused_with_the_date(self, story):
        point = story.backup()
        point.locked_until = dt.datetime(2027, 1, 1, tzinfo=dt.UTC)
        with pytest.raises(removal.PointLocked, match="before 2027-01-01 00:00 UTC"):
            removal.delete_point(point, confirmation="acme-web", actor=SERVICE, now=story.now)

    def test_a_lock_that_only_the_store_knows_wins_too_and_the_date_is_kept(self, story):
        point = story.backup()
        lock(story, point, story.now + 50 * DAY)
        job = story.do(removal.delete_point(point, confirmation="acme-web", actor=SERVICE, now=story.now))
        assert job.state == JobState.PARTIAL_COMPLETE
        assert "locked until" in job.report["problems"][0]["detail"]
        point.refresh_from_db()
        assert point.locked_until is not None
        assert abs(point.locked_until - story.now - 50 * DAY) < MINUTE
        assert story.in_vault() == {point.point_id}


def lock(story: Story, point: RecoveryPoint, until: dt.datetime) -> None:
    """Lock a point's root in the store, behind the catalogue's back."""
    storage = repositories.storage(story.site.vault, clock=story.clock)
    storage.extend_lock(point_key(point.series, point.point_id, "root"), until=until)


class TestErasingASource:
    def erase(self, story: Story, typed: str = "acme-web") -> removal.Erasure:
        story.site.source.refresh_from_db()
        return removal.erase(story.site.source, confirmation=typed, actor=SERVICE, now=story.now)

    @pytest.mark.rule("C32")
    def test_it_needs_the_name_typed_and_then_deletes_all_points_the_plans_and_the_source(self, story):
        for _ in range(6):
            story.backup()
        with pytest.raises(ConfirmationWrong):
            self.erase(story, "acme")
        assert len(story.in_vault()) == 6
        found = self.erase(story)
        assert (found.points, found.locked, found.ends_at) == (6, 0, None)
        assert not story.site.source.plans.exists()
        story.sweep()
        assert story.in_vault() == set()
        assert not RecoveryPoint.objects.exists()
        story.pass_minutes(5)
        assert not type(story.site.source).objects.filter(pk=story.site.source.pk).exists()
        actions = set(Event.objects.values_list("action", flat=True))
        assert {"source.erase", "plan.delete", "job.expire", "source.delete"} <= actions

    @pytest.mark.rule("C32")
    def test_what_is_locked_goes_when_the_lock_ends_and_the_date_is_told(self, story):
        story.backup()
        point = story.backup()
        until = story.now + 3 * DAY
        lock(story, point, until)
        RecoveryPoint.objects.filter(pk=point.pk).update(locked_until=until)
        found = self.erase(story)
        assert (found.points, found.locked, found.ends_at) == (2, 1, until)
        story.sweep()
        assert story.in_vault() == {point.point_id}
        story.pass_days(2)
        assert story.in_vault() == {point.point_id}
        story.clock.now = until
        story.pass_minutes(30)  # the hourly expiry may be at work in the first of them
        assert story.in_vault() == set()

    def test_a_running_backup_is_stopped_and_no_new_one_begins(self, story):
        story.backup()
        running = services.request_backup(story.site.plan, actor=SERVICE, now=story.now)
        self.erase(story)
        running.refresh_from_db()
        assert running.state == JobState.CANCELED
        assert not list(story.site.source.plans.all())

    def test_other_sources_in_the_vault_stay(self, story):
        story.backup()
        other = make_source(
            story.site.account, story.site.region, "other", host="other", settings=story.site.source.settings
        )
        plan = make_plan(other, story.site.policy, story.site.vault)
        kept = story.do(services.request_backup(plan, actor=SERVICE, now=story.clock())).point
        assert kept is not None
        self.erase(story)
        story.sweep()
        assert story.in_vault() == {kept.point_id}

    def test_a_held_point_waits_for_its_release(self, story):
        held = removal.hold(story.backup(), reason="audit", actor=SERVICE, now=story.now)
        found = self.erase(story)
        assert found.held == 1
        story.sweep()
        assert story.in_vault() == {held.point_id}
        removal.release(held, actor=SERVICE, now=story.now)
        story.pass_minutes(10)
        assert story.in_vault() == set()
