"""What starts a job, what refuses it, and what is recorded when none was started."""

import datetime as dt
import threading

import pytest
from django.db import IntegrityError, connection, transaction

from accounts.services import SERVICE
from jobs import due, services
from jobs.models import Job
from jobs.states import JobState, Kind, Trigger
from policies.models import Plan
from tests.support.people import T0, make_plan, make_point, make_region, make_source, make_vault, online, whole_plan
from vaults.models import VaultState, VaultType

pytestmark = pytest.mark.django_db


@pytest.fixture
def plan() -> Plan:
    return whole_plan()


def backup(plan: Plan) -> Job:
    return services.request_backup(plan, actor=SERVICE, now=T0)


def test_a_file_sources_steps_go_to_its_hosts_queue_and_the_end_to_the_regions(plan):
    job = backup(plan)
    assert (job.queue_work, job.queue_finish) == ("host.web1", "region.main")
    assert services.first_step(job).queue == "host.web1"


@pytest.mark.rule("C52")
def test_a_second_backup_of_a_source_is_refused_and_names_the_running_one(plan):
    job = backup(plan)
    with pytest.raises(services.SourceBusy) as refusal:
        backup(plan)
    assert refusal.value.detail == {"job": str(job.pk)}
    services.request_cancel(job, actor=SERVICE, now=T0)
    backup(plan)


@pytest.mark.rule("C52")
def test_two_plans_of_one_source_do_not_run_at_once(plan):
    other = Plan.objects.get(pk=plan.pk)
    other.pk, other.vault = None, make_vault(plan.account, plan.vault.region, "second")
    other._state.adding = True
    other.id = Plan._meta.get_field("id").get_default()
    other.save()
    backup(plan)
    with pytest.raises(services.SourceBusy):
        backup(other)


def another_on_the_same_host(plan: Plan) -> Plan:
    source = make_source(plan.account, plan.vault.region, "more of web1")
    source.host = plan.source.host
    source.save()
    return make_plan(source, plan.policy, plan.vault)


@pytest.mark.rule("C52")
def test_two_sources_of_one_host_are_not_backed_up_at_once(plan):
    other = another_on_the_same_host(plan)
    job = backup(plan)
    with pytest.raises(services.SourceBusy, match="a host does one backup at a time") as refusal:
        backup(other)
    assert refusal.value.detail == {"job": str(job.pk)}
    services.request_cancel(job, actor=SERVICE, now=T0)
    backup(other)


@pytest.mark.rule("C54")
def test_a_scheduled_run_that_finds_its_host_busy_is_skipped_and_names_the_other_source(plan):
    other = another_on_the_same_host(plan)
    online(other.source.queue)
    backup(plan)
    skipped = due.settle_plan(other, now=T0)
    assert skipped is not None
    assert skipped.state == JobState.SKIPPED
    assert str(plan.source) in skipped.error


@pytest.mark.rule("C52")
def test_two_hosts_are_backed_up_at_once(plan):
    elsewhere = make_plan(make_source(plan.account, plan.vault.region, "web2"), plan.policy, plan.vault)
    elsewhere.source.host = "web2"
    elsewhere.source.save()
    backup(plan)
    backup(elsewhere)


@pytest.mark.rule("C52")
def test_the_database_itself_holds_one_active_backup_per_source(plan):
    job = backup(plan)
    with pytest.raises(IntegrityError), transaction.atomic():
        Job.objects.create(
            account=plan.account,
            kind=Kind.BACKUP,
            state=JobState.QUEUED,
            vault=plan.vault,
            source=job.source,
            created_at=T0,
        )


@pytest.mark.rule("C52")
@pytest.mark.django_db(transaction=True)
def test_of_many_who_start_a_backup_at_the_same_moment_one_wins(plan):
    outcomes: list[str] = []
    ready = threading.Barrier(4)

    def start() -> None:
        ready.wait()
        try:
            backup(Plan.objects.select_related("vault__region", "source").get(pk=plan.pk))
            outcomes.append("started")
        except services.SourceBusy:
            outcomes.append("refused")
        finally:
            connection.close()

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(outcomes) == ["refused", "refused", "refused", "started"]
    assert Job.objects.active().count() == 1


@pytest.mark.parametrize(
    ("values", "code"),
    [({"type": VaultType.REPLICATION_TARGET}, "vault_unfit"), ({"state": VaultState.ERROR}, "vault_not_ready")],
)
def test_a_vault_that_takes_no_backups_refuses_them(plan, values, code):
    for name, value in values.items():
        setattr(plan.vault, name, value)
    with pytest.raises(services.VaultUnfit) as refusal:
        backup(plan)
    assert refusal.value.code == code


@pytest.mark.rule("A23")
def test_a_due_plan_becomes_a_job_and_moves_on(plan):
    online(plan.source.queue)
    job = due.settle_plan(plan, now=T0)
    plan.refresh_from_db()
    assert job is not None
    assert (job.state, job.trigger, job.scheduled_for) == (JobState.QUEUED, Trigger.SCHEDULED, T0)
    assert plan.next_run_at == dt.datetime(2026, 3, 11, 1, 30, tzinfo=dt.UTC)


def test_two_beats_start_a_due_plan_once(plan):
    online(plan.source.queue)
    stale = Plan.objects.get(pk=plan.pk)
    assert due.settle_plan(plan, now=T0)
    assert due.settle_plan(stale, now=T0) is None
    assert Job.objects.count() == 1


def test_a_plan_that_is_not_due_starts_nothing(plan):
    assert due.settle_plan(plan, now=T0 - dt.timedelta(seconds=1)) is None


@pytest.mark.rule("C54")
def test_a_scheduled_run_that_meets_a_running_one_is_recorded_as_skipped(plan):
    online(plan.source.queue)
    running = backup(plan)
    job = due.settle_plan(plan, now=T0)
    assert job is not None
    assert job.state == JobState.SKIPPED
    assert str(running.pk) in job.error
    assert not job.steps.exists()


@pytest.mark.rule("C19")
def test_a_run_whose_host_is_away_is_recorded_as_missed(plan):
    online(plan.source.queue, at=T0 - dt.timedelta(hours=1))
    job = due.settle_plan(plan, now=T0)
    assert job is not None
    assert (job.state, job.error) == (JobState.MISSED, "No worker was running on web1")


def test_a_moment_long_past_is_missed_unless_the_plan_catches_up(plan):
    now = T0 + dt.timedelta(hours=5)
    online(plan.source.queue, at=now)
    job = due.settle_plan(plan, now=now)
    assert job is not None
    assert job.state == JobState.MISSED
    Plan.objects.update(catch_up=True, next_run_at=T0 + dt.timedelta(minutes=1))
    late = due.settle_plan(Plan.objects.select_related("source", "vault__region", "policy").get(), now=now)
    assert late is not None
    assert late.state == JobState.QUEUED


def test_a_scheduled_moment_has_one_job_for_ever(plan):
    online(plan.source.queue)
    first = due.settle_plan(plan, now=T0)
    assert first is not None
    with pytest.raises(IntegrityError), transaction.atomic():
        Job.objects.create(
            account=plan.account,
            kind=Kind.BACKUP,
            state=JobState.MISSED,
            vault=plan.vault,
            plan=plan,
            scheduled_for=T0,
            created_at=T0,
        )


class TestRestore:
    @pytest.fixture
    def point(self, plan):
        return make_point(plan.vault, plan.source)

    def ask(self, point, **selection) -> Job:
        return services.request_restore(point, services.Selection(**selection), actor=SERVICE, now=T0)

    @pytest.mark.rule("C25")
    def test_the_destination_is_the_original_source_unless_told(self, plan, point):
        online("host.web1")
        job = self.ask(point)
        assert (job.source, job.queue_work, job.queue_finish) == (plan.source, "host.web1", "host.web1")

    @pytest.mark.rule("C25")
    def test_another_host_of_the_vaults_region_may_be_the_destination(self, plan, point):
        other = make_source(plan.account, plan.vault.region, "web2")
        online("host.web2")
        assert self.ask(point, destination=other, to="/restore").queue_work == "host.web2"

    @pytest.mark.rule("C25")
    def test_a_host_of_another_region_is_refused(self, plan, point):
        far = make_source(plan.account, make_region("far"), "web3")
        online("host.web3")
        with pytest.raises(services.DestinationElsewhere, match="region far"):
            self.ask(point, destination=far, to="/restore")

    @pytest.mark.rule("C26")
    def test_a_destination_without_a_running_worker_is_refused(self, point):
        with pytest.raises(services.DestinationOffline, match=r"queue host\.web1"):
            self.ask(point)
        online("host.web1", at=T0 - dt.timedelta(hours=1))
        with pytest.raises(services.DestinationOffline):
            self.ask(point)
        assert not Job.objects.exists()

    def test_a_point_of_an_unknown_source_needs_a_destination(self, plan, point):
        point.series = "web-of-old"
        with pytest.raises(services.DestinationUnknown):
            self.ask(point)

    @pytest.mark.rule("C28")
    def test_overwriting_needs_to_be_confirmed(self, point):
        online("host.web1")
        with pytest.raises(services.OverwriteUnconfirmed):
            self.ask(point, same_name="overwrite")
        assert self.ask(point, same_name="overwrite", overwrite_confirmed=True).settings["same_name"] == "overwrite"


def test_a_verification_goes_to_the_regions_queue(plan):
    job = services.request_verify(plan.vault, level="content", actor=SERVICE, now=T0)
    assert (job.kind, job.queue_work, job.settings) == (Kind.VERIFY, "region.main", {"level": "content"})
