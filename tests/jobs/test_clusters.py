"""Backups of clusters: enabling starts one, manual and automatic ones side by side, what stays when it goes."""

import datetime as dt
import threading

import pytest
from django.db import IntegrityError, connection, transaction

from accounts.models import Role
from accounts.services import SERVICE
from jobs import clusters, local, removal, retrying, services
from jobs.due import settle_plan
from jobs.models import Job
from jobs.states import JobState, Kind, Lane, Trigger
from policies.models import Plan, Source
from policies.services import SourceErasing, pause
from tests.support.api import client_of, error_code
from tests.support.clusters import make_cluster
from tests.support.control import read_tree
from tests.support.people import T0, join, make_account, make_point, make_vault
from tests.support.story import DAY, Story
from vaults.models import RecoveryPoint, VaultState

pytestmark = pytest.mark.django_db


@pytest.fixture
def story(tmp_path, settings) -> Story:
    settings.WORKER_SEEN_S = 10**9
    settings.MAINTENANCE_EVERY_S = dict.fromkeys(settings.MAINTENANCE_EVERY_S, 0) | {"expire": 3600}
    return Story(tmp_path)


@pytest.fixture
def cluster(story, monkeypatch) -> Source:
    return make_cluster(story.site, monkeypatch)


def enable(cluster: Source, *, at: dt.datetime = T0, **changes) -> tuple[Plan, Job]:
    plan, job = clusters.set_automatic(cluster, changes=changes, enabled=True, actor=SERVICE, now=at)
    assert plan is not None
    assert job is not None
    return plan, job


def by_hand(cluster: Source, *, at: dt.datetime = T0) -> Job:
    vault = cluster.account.vaults.get()
    return services.request_on_demand(cluster, vault, actor=SERVICE, now=at)


def later(story: Story, *, days: int) -> None:
    """Let days go by at once, and an expiry look at what they leave."""
    story.clock.now += days * DAY
    story.sweep()


def due(plan: Plan) -> Job:
    """Let the plan's next moment come."""
    plan.refresh_from_db()
    assert plan.next_run_at is not None
    job = settle_plan(plan, now=plan.next_run_at)
    assert job is not None
    return job


@pytest.mark.rule("D12")
def test_enabling_returns_and_a_first_automatic_backup_is_there_and_then_the_recurring_ones(story, cluster):
    plan, job = enable(cluster)
    assert (job.state, job.trigger, job.plan, job.rule) == (JobState.QUEUED, Trigger.SCHEDULED, plan, plan.next_rule)
    point = story.do(job).point
    assert (point.manual, point.retention_days, point.expires_at) == (False, 7, point.completed_at + 7 * DAY)
    recurring = due(plan)
    assert recurring.scheduled_for is not None
    assert not story.do(recurring).point.manual
    assert story.do(due(plan)).scheduled_for.date() == recurring.scheduled_for.date() + DAY


@pytest.mark.rule("D12")
def test_each_enabling_starts_one_and_a_mere_change_starts_none(cluster):
    plan, first = enable(cluster)
    assert clusters.set_automatic(cluster, changes={"retention_days": 9}, actor=SERVICE, now=T0) == (plan, None)
    assert clusters.set_automatic(cluster, changes={}, enabled=True, actor=SERVICE, now=T0) == (plan, None)
    clusters.set_automatic(cluster, changes={}, enabled=False, actor=SERVICE, now=T0)
    # One that goes on from before will do.
    assert clusters.set_automatic(cluster, changes={}, enabled=True, actor=SERVICE, now=T0) == (plan, None)
    clusters.set_automatic(cluster, changes={}, enabled=False, actor=SERVICE, now=T0)
    services.request_cancel(first, actor=SERVICE, now=T0)
    _, again = enable(cluster)
    assert again.state == JobState.QUEUED


def test_disabled_nothing_is_due_and_the_points_stay_their_days(story, cluster):
    plan, job = enable(cluster)
    story.do(job)
    kept = story.do(due(plan)).point
    clusters.set_automatic(cluster, changes={}, enabled=False, actor=SERVICE, now=story.now)
    assert due_none(plan)
    later(story, days=6)
    assert RecoveryPoint.objects.count() == 2
    later(story, days=3)
    assert [point.pk for point in RecoveryPoint.objects.all()] == [kept.pk]  # the newest stays, as everywhere


def due_none(plan: Plan) -> bool:
    plan.refresh_from_db()
    return plan.next_run_at is None and not Plan.objects.due(T0 + 400 * DAY).exists()


@pytest.mark.rule("D2")
@pytest.mark.rule("D30")
def test_a_manual_backup_needs_no_plan_and_stays_until_a_person_deletes_it(story, cluster):
    point = story.do(by_hand(cluster)).point
    assert (point.manual, point.rule, point.retention_days, point.expires_at) == (True, "", 0, None)
    _, job = enable(cluster, at=story.clock(), retention_days=1)
    story.do(job)
    later(story, days=400)
    point.refresh_from_db()
    assert RecoveryPoint.objects.filter(manual=True).get() == point
    assert point.expires_at is None
    story.do(removal.delete_point(point, confirmation=cluster.name, actor=SERVICE, now=story.now))
    assert not RecoveryPoint.objects.filter(manual=True).exists()


@pytest.mark.rule("D2")
@pytest.mark.rule("D30")
def test_the_button_of_its_plan_makes_a_manual_backup_too(story, cluster):
    plan, job = enable(cluster)
    story.do(job)
    point = story.do(services.request_backup(plan, actor=SERVICE, now=story.now)).point
    assert (point.manual, point.rule, point.retention_days) == (True, "", 0)


@pytest.mark.rule("D8")
def test_a_manual_backup_is_refused_while_an_automatic_one_runs_and_is_told_which(cluster):
    _, running = enable(cluster)
    with pytest.raises(services.SourceBusy, match="automatically") as refusal:
        by_hand(cluster)
    assert refusal.value.detail == {"job": str(running.pk)}
    services.request_cancel(running, actor=SERVICE, now=T0)
    by_hand(cluster)


def test_two_manual_backups_of_one_cluster_do_not_run_at_once(cluster):
    running = by_hand(cluster)
    with pytest.raises(services.SourceBusy, match="by hand") as refusal:
        by_hand(cluster)
    assert refusal.value.detail == {"job": str(running.pk)}


@pytest.mark.rule("D9")
def test_an_automatic_backup_starts_beside_a_manual_one_and_both_make_their_points(story, cluster):
    plan, first = enable(cluster)
    story.do(first)
    manual = by_hand(cluster, at=story.now)
    automatic = due(plan)
    assert (automatic.state, automatic.lane, manual.lane) == (JobState.QUEUED, Lane.AUTOMATIC, Lane.MANUAL)
    skipped = due(plan)
    assert skipped.state == JobState.SKIPPED  # two automatic ones don't run at once
    assert str(automatic.pk) in skipped.error
    assert {story.do(job).state for job in (automatic, manual)} == {JobState.COMPLETE}
    assert sorted(point.manual for point in RecoveryPoint.objects.all()) == [False, False, True]


def test_the_database_itself_holds_one_active_backup_per_lane(cluster):
    running = by_hand(cluster)
    values = {"account": cluster.account, "kind": Kind.BACKUP, "state": JobState.QUEUED, "vault": running.vault}
    Job.objects.create(**values, source=cluster, lane=Lane.AUTOMATIC, created_at=T0)
    for lane in (Lane.MANUAL, Lane.AUTOMATIC):
        with pytest.raises(IntegrityError), transaction.atomic():
            Job.objects.create(**values, source=cluster, lane=lane, created_at=T0)


@pytest.mark.django_db(transaction=True)
class TestAtTheSameInstant:
    def race(self, *calls) -> list[str]:
        """Let each call go in a thread of its own; return how they ended."""
        ready, ends = threading.Barrier(len(calls)), []

        def run(call) -> None:
            ready.wait()
            try:
                ends.append(call().lane)
            except services.SourceBusy:
                ends.append("refused")
            finally:
                connection.close()

        threads = [threading.Thread(target=run, args=[call]) for call in calls]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        return sorted(ends)

    def test_of_several_manual_ones_one_wins(self, cluster):
        assert self.race(*[lambda: by_hand(cluster)] * 4) == ["manual", "refused", "refused", "refused"]

    @pytest.mark.rule("D8")
    @pytest.mark.rule("D9")
    def test_the_automatic_one_always_starts_and_the_manual_one_only_as_if_it_had_come_first(self, cluster):
        plan, first = enable(cluster)
        services.request_cancel(first, actor=SERVICE, now=T0)
        for _ in range(8):
            ends = self.race(lambda: due(Plan.objects.get(pk=plan.pk)), lambda: by_hand(cluster))
            assert ends in (["automatic", "manual"], ["automatic", "refused"])
            for job in Job.objects.active():
                services.request_cancel(job, actor=SERVICE, now=T0)


def test_what_failed_is_retried_as_what_it_was(cluster):
    plan, first = enable(cluster)
    services.request_cancel(first, actor=SERVICE, now=T0)
    again = retrying.retry(first, actor=SERVICE, now=T0)
    assert (again.lane, again.plan, again.trigger) == (Lane.AUTOMATIC, plan, Trigger.SCHEDULED)
    with pytest.raises(services.SourceBusy):
        services.request_run(plan, actor=SERVICE, now=T0)
    services.request_cancel(again, actor=SERVICE, now=T0)
    manual = by_hand(cluster)
    services.request_cancel(manual, actor=SERVICE, now=T0)
    again = retrying.retry(manual, actor=SERVICE, now=T0)
    assert (again.lane, again.plan, again.trigger) == (Lane.MANUAL, None, Trigger.MANUAL)


class TestDeletion:
    def erase(self, story: Story, cluster: Source) -> removal.Erasure:
        return removal.erase(cluster, confirmation=cluster.name, actor=SERVICE, now=story.now)

    @pytest.mark.rule("D29")
    @pytest.mark.rule("D30")
    def test_automatic_points_go_with_the_cluster_and_a_manual_one_is_restored_afterwards(
        self, story, cluster, tmp_path, monkeypatch
    ):
        _, job = enable(cluster)
        automatic = story.do(job).point
        manual = story.do(by_hand(cluster, at=story.now)).point
        found = self.erase(story, cluster)
        assert found.points == 1
        assert not cluster.plans.exists()
        story.pass_minutes(30, every=10)
        assert story.in_vault() == {manual.point_id}
        assert not Source.objects.filter(pk=cluster.pk).exists()
        assert not RecoveryPoint.objects.filter(pk=automatic.pk).exists()
        manual.refresh_from_db()
        assert (manual.source_name, manual.manual, manual.jobs.get().state) == (cluster.name, True, JobState.COMPLETE)
        later(story, days=400)
        assert story.in_vault() == {manual.point_id}
        target = tmp_path / "again"
        target.mkdir()
        RecoveryPoint.objects.update(source_kind="files")  # what the double read
        wanted = services.Selection(to=str(target), destination=story.site.source)
        restored = story.do(services.request_restore(manual, wanted, actor=SERVICE, now=story.now))
        assert restored.state == JobState.COMPLETE
        assert read_tree(target / str(story.site.files).lstrip("/")) == read_tree(story.site.files)

    @pytest.mark.rule("D30")
    def test_a_manual_backup_that_runs_is_finished_and_an_automatic_one_stopped(self, story, cluster):
        plan, first = enable(cluster)
        story.do(first)
        manual = by_hand(cluster, at=story.now)
        automatic = due(plan)
        self.erase(story, cluster)
        automatic.refresh_from_db()
        assert automatic.state == JobState.CANCELED
        story.sweep()
        assert Source.objects.filter(pk=cluster.pk).exists()
        kept = story.do(manual).point
        story.pass_minutes(20)
        assert story.in_vault() == {kept.point_id}
        assert not Source.objects.filter(pk=cluster.pk).exists()

    @pytest.mark.rule("D29")
    def test_a_lock_keeps_an_automatic_point_to_its_end(self, story, cluster):
        _, job = enable(cluster)
        point = story.do(job).point
        until = story.now + 3 * DAY
        RecoveryPoint.objects.filter(pk=point.pk).update(locked_until=until)
        found = self.erase(story, cluster)
        assert (found.locked, found.ends_at) == (1, until)
        story.pass_days(2)
        assert story.in_vault() == {point.point_id}
        story.pass_days(1)
        story.pass_minutes(10)
        assert story.in_vault() == set()

    def test_what_is_being_deleted_is_neither_enabled_nor_backed_up_by_hand(self, story, cluster):
        make_point(story.site.vault, cluster)
        self.erase(story, cluster)
        with pytest.raises(SourceErasing):
            enable(Source.objects.get(pk=cluster.pk))
        with pytest.raises(SourceErasing):
            by_hand(cluster)


class TestApi:
    def post(self, user, cluster: Source, vault):
        return client_of(user).post(f"/api/v1/sources/{cluster.pk}/backup/", {"vault": str(vault.pk)})

    @pytest.mark.rule("D2")
    def test_a_manual_backup_is_asked_for_at_the_source_and_seen_in_the_job_centre(self, story, cluster):
        answer = self.post(story.site.owner, cluster, story.site.vault)
        assert answer.status_code == 202
        assert (answer.json()["trigger"], answer.json()["plan"]) == ("manual", None)
        local.do(Job.objects.get(pk=answer.json()["id"]), clock=story.clock)
        client = client_of(story.site.owner)
        [job] = client.get(f"/api/v1/jobs/?source={cluster.pk}").json()["results"]
        assert job["state"] == "complete"
        [point] = client.get(f"/api/v1/recovery-points/?series={cluster.pk}&manual=true").json()["results"]
        assert (point["id"], point["manual"]) == (job["point"], True)
        assert client.get(f"/api/v1/recovery-points/?series={cluster.pk}&manual=false").json()["results"] == []

    @pytest.mark.rule("D8")
    def test_while_an_automatic_one_runs_the_answer_is_409_with_its_id(self, story, cluster):
        _, running = enable(cluster)
        answer = self.post(story.site.owner, cluster, story.site.vault)
        assert (answer.status_code, error_code(answer)) == (409, "source_busy")
        assert answer.json()["context"] == {"job": str(running.pk)}

    def test_what_is_no_cluster_is_backed_up_by_its_plans(self, story, cluster):
        answer = self.post(story.site.owner, story.site.source, story.site.vault)
        assert (answer.status_code, error_code(answer)) == (409, "not_a_cluster")

    def test_a_vault_that_takes_nothing_and_one_of_another_account_are_refused(self, story, cluster):
        story.site.vault.state = VaultState.ERROR
        story.site.vault.save()
        assert error_code(self.post(story.site.owner, cluster, story.site.vault)) == "vault_not_ready"
        other = make_account("other")
        vault = make_vault(other, story.site.region)
        both = join(other, "both")
        assert self.post(story.site.owner, cluster, vault).status_code == 400
        story.site.account.members.create(user=both, role=Role.OWNER, created_at=T0)
        assert error_code(self.post(both, cluster, vault)) == "vault_of_another_account"

    def test_a_cluster_with_automatic_backups_is_not_deleted_but_erased(self, story, cluster):
        plan, job = enable(cluster)
        story.do(job)
        client = client_of(story.site.owner)
        answer = client.delete(f"/api/v1/sources/{cluster.pk}/")
        assert (answer.status_code, error_code(answer)) == (409, "cluster_backed_up")
        answer = client.post(f"/api/v1/plans/{plan.pk}/pause/")
        assert answer.status_code == 200
        answer = client.post(f"/api/v1/plans/{plan.pk}/resume/")
        assert (answer.status_code, error_code(answer)) == (409, "cluster_policy_only")
        with pytest.raises(Exception, match="paused already"):
            pause(Plan.objects.get(), actor=SERVICE, now=T0)
        answer = client.post(f"/api/v1/sources/{cluster.pk}/erase/", {"confirmation": cluster.name})
        assert (answer.status_code, answer.json()["points"]) == (202, 1)
