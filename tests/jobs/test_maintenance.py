"""Maintenance: when it is due, that it starts once, and what stands in its way."""

import datetime as dt
import threading
from collections import Counter

import pytest
import time_machine
from django.core.exceptions import ValidationError
from django.core.management import call_command
from django.db import IntegrityError, connection, transaction
from django.test.utils import CaptureQueriesContext

from accounts.models import Event
from accounts.services import SERVICE
from jobs import doorbell, maintenance, services, tasks
from jobs.models import Duty, Job
from jobs.states import MAINTENANCE, RECURRING, JobState, Kind, Trigger
from policies.models import Plan
from tests.support.people import (
    T0,
    make_account,
    make_plan,
    make_point,
    make_policy,
    make_region,
    make_source,
    make_vault,
)
from vaults.models import Vault, VaultState

pytestmark = pytest.mark.django_db
HOUR, DAY = dt.timedelta(hours=1), dt.timedelta(days=1)


@pytest.fixture
def vault() -> Vault:
    return make_vault(make_account(), make_region())


@pytest.fixture(autouse=True)
def rung(monkeypatch) -> list[int]:
    """Collect the doorbells instead of sending them."""
    sent: list[int] = []
    monkeypatch.setattr(doorbell, "ring", lambda step, *, now: sent.append(step.pk))
    return sent


def sweep(at: dt.datetime) -> None:
    with time_machine.travel(at, tick=False):
        tasks.sweep_maintenance()


def duty(vault: Vault, kind: Kind = Kind.PRUNE) -> Duty:
    maintenance.complete_duties([vault], now=T0)
    return Duty.objects.select_related("vault__account", "vault__region").get(vault=vault, kind=kind)


def moment(row: Duty) -> dt.datetime:
    assert row.due_at is not None
    return row.due_at


def last_state(vault: Vault) -> str:
    job = duty(vault).last_job
    assert job is not None
    return job.state


def end_all(state: str = JobState.COMPLETE) -> None:
    Job.objects.active().update(state=state)


def test_a_new_vault_gets_its_duties_from_the_sweep(vault):
    sweep(T0)
    assert set(vault.duties.values_list("kind", flat=True)) == set(RECURRING)
    for row in vault.duties.all():
        assert row.due_at is not None
        assert T0 < row.due_at <= T0 + dt.timedelta(seconds=maintenance.every_s(vault, row.kind))


def test_a_vault_that_is_older_than_a_kind_gets_its_duty_at_the_next_start(vault):
    duty(vault)
    vault.duties.filter(kind=Kind.DISASTER).delete()
    call_command("setup_beat", verbosity=0)
    assert vault.duties.filter(kind=Kind.DISASTER).exists()


def test_every_kind_runs_at_its_interval_and_no_oftener(vault):
    began: Counter[str] = Counter()
    Vault.objects.update(immutable_since=T0, lock_days=1)
    for hour in range(24 * 14 + 1):
        sweep(T0 + hour * HOUR)
        began.update(Job.objects.active().values_list("kind", flat=True))
        end_all()
    assert began == {"expire": 336, "prune": 14, "verify": 14, "audit": 14, "compact": 2, "disaster": 2}


def test_a_duty_becomes_one_job_with_a_ringing_first_step(vault, rung):
    due = moment(duty(vault))
    Duty.objects.exclude(kind=Kind.PRUNE).delete()
    sweep(due)
    job = Job.objects.get()
    assert (job.kind, job.trigger, job.queue_work) == ("prune", Trigger.SCHEDULED, "region.main")
    assert rung == [services.first_step(job).pk]
    assert Duty.objects.get().last_job == job


def test_two_sweeps_start_a_duty_once(vault):
    stale = duty(vault)
    assert maintenance.request_due(duty(vault), now=moment(stale))
    end_all()
    assert maintenance.request_due(stale, now=moment(stale)) is None
    assert Job.objects.count() == 1


def test_an_expiry_that_meets_a_running_one_follows_soon(vault):
    row = duty(vault, Kind.EXPIRE)
    assert maintenance.request_due(row, now=moment(row))
    now = moment(duty(vault, Kind.EXPIRE))
    assert maintenance.request_due(duty(vault, Kind.EXPIRE), now=now) is None
    assert moment(duty(vault, Kind.EXPIRE)) == now + maintenance.SOON


def test_a_moment_that_meets_a_running_job_passes(vault):
    row = duty(vault)
    assert maintenance.request_due(row, now=moment(row))
    row.refresh_from_db()
    assert maintenance.request_due(row, now=moment(row)) is None
    assert Job.objects.count() == 1
    assert moment(duty(vault)) == moment(row) + DAY


def test_failed_maintenance_is_done_again_at_the_next_moment_and_shows(vault):
    first = moment(duty(vault))
    sweep(first)
    end_all(JobState.FAILED)
    assert last_state(vault) == JobState.FAILED
    sweep(first + DAY - HOUR)
    assert Job.objects.filter(kind=Kind.PRUNE).count() == 1
    sweep(first + DAY)
    assert Job.objects.filter(kind=Kind.PRUNE).count() == 2


@pytest.mark.parametrize("state", [VaultState.ERROR, VaultState.DELETING, VaultState.DELETED])
def test_a_vault_that_is_not_ready_is_left_alone(vault, state):
    duty(vault)
    Vault.objects.update(state=state)
    sweep(T0 + 30 * DAY)
    assert not Job.objects.filter(kind__in=RECURRING).exists()
    with pytest.raises(services.VaultUnfit):
        maintenance.request(Vault.objects.get(), Kind.PRUNE, {}, actor=SERVICE, now=T0)


def test_a_vault_in_error_can_be_looked_at_and_mended_by_hand(vault):
    Vault.objects.update(state=VaultState.ERROR)
    for kind in (Kind.AUDIT, Kind.REBUILD, Kind.DISASTER):
        assert maintenance.request(Vault.objects.get(), kind, {}, actor=SERVICE, now=T0).kind == kind


def test_a_thousand_vaults_do_not_start_at_once():
    account, region = make_account(), make_region()
    vaults = [make_vault(account, region, f"v{number}") for number in range(1000)]
    maintenance.complete_duties(vaults, now=T0)
    moments = Duty.objects.filter(kind=Kind.EXPIRE).values_list("due_at", flat=True)
    per_minute = Counter(moment.replace(second=0) for moment in moments if moment)
    assert len(per_minute) == 60 or len(per_minute) == 61
    assert max(per_minute.values()) < 40


def test_the_locks_of_a_vault_that_is_not_immutable_are_not_audited(vault):
    sweep(moment(duty(vault, Kind.AUDIT)))
    assert not Job.objects.filter(kind=Kind.AUDIT).exists()
    assert moment(duty(vault, Kind.AUDIT)) > T0 + HOUR


def test_a_sweep_of_many_vaults_with_nothing_to_do_costs_no_more_queries_than_of_one(vault):
    def cost() -> int:
        with CaptureQueriesContext(connection) as queries:
            sweep(T0)
        return len(queries)

    duty(vault)
    Duty.objects.update(due_at=T0 + DAY)
    one = cost()
    for number in range(50):
        duty(make_vault(vault.account, vault.region, f"v{number}"))
    Duty.objects.update(due_at=T0 + DAY)
    assert cost() == one <= 11


def test_what_is_due_is_found_by_an_index():
    assert "due_at" in Duty.objects.due(T0).explain()
    assert "next_drill_at" in Plan.objects.drill_due(T0).explain()


def test_a_prune_that_waits_is_due_again_within_minutes_until_it_waits_no_more(vault, settings):
    row = duty(vault)
    maintenance.wait_for(vault, Kind.PRUNE, ["01j"], now=T0)
    row.refresh_from_db()
    assert (row.waiting, row.due_at) == (["01j"], T0 + dt.timedelta(seconds=settings.MAINTENANCE_AGAIN_S))
    following = row.due_at
    maintenance.wait_for(vault, Kind.PRUNE, [], now=T0)
    row.refresh_from_db()
    assert (row.waiting, row.due_at) == ([], following)


def test_routine_that_ended_well_is_forgotten_after_a_while_but_for_the_last_and_what_failed(vault, settings):
    row = duty(vault)
    jobs = []
    for state in (JobState.COMPLETE, JobState.FAILED, JobState.COMPLETE, JobState.COMPLETE):
        jobs.append(maintenance.request_due(row, now=moment(row)))
        row.refresh_from_db()
        Job.objects.active().update(state=state, ended_at=T0, cleaned=True)
    by_hand = maintenance.request(vault, Kind.PRUNE, {}, actor=SERVICE, now=T0)
    Job.objects.active().update(state=JobState.COMPLETE, ended_at=T0, cleaned=True)
    Duty.objects.update(last_job=jobs[3])
    late = T0 + dt.timedelta(days=settings.ROUTINE_KEPT_DAYS)
    assert maintenance.forget_old(now=late, rows_max=10) == 0
    assert maintenance.forget_old(now=late + HOUR, rows_max=1) == 1
    assert maintenance.forget_old(now=late + HOUR, rows_max=10) == 1
    assert set(Job.objects.all()) == {jobs[1], jobs[3], by_hand}


class TestByHand:
    def test_one_job_of_a_kind_at_a_time_and_the_refusal_names_it(self, vault):
        job = maintenance.request(vault, Kind.PRUNE, {"dry_run": True}, actor=SERVICE, now=T0)
        assert Event.objects.get().action == "job.prune"
        with pytest.raises(maintenance.MaintenanceBusy) as refusal:
            maintenance.request(vault, Kind.PRUNE, {}, actor=SERVICE, now=T0)
        assert refusal.value.detail == {"job": str(job.pk)}
        maintenance.request(vault, Kind.COMPACT, {}, actor=SERVICE, now=T0)

    @pytest.mark.parametrize("kind", MAINTENANCE)
    def test_the_database_itself_refuses_a_second_one(self, vault, kind):
        maintenance.request(vault, kind, {}, actor=SERVICE, now=T0)
        with pytest.raises(IntegrityError, match=r"maintenance|vault_id"), transaction.atomic():
            Job.objects.create(account=vault.account, vault=vault, kind=kind, state=JobState.QUEUED, created_at=T0)

    def test_other_vaults_are_not_in_the_way(self, vault):
        maintenance.request(vault, Kind.PRUNE, {}, actor=SERVICE, now=T0)
        other = make_vault(vault.account, vault.region, "other")
        assert maintenance.request(other, Kind.PRUNE, {}, actor=SERVICE, now=T0).vault == other


class TestIntervals:
    def test_a_vault_may_have_its_own(self, vault):
        maintenance.set_intervals(vault, {"prune": 3600, "compact": 0}, actor=SERVICE, now=T0)
        assert T0 < moment(duty(vault)) <= T0 + HOUR
        assert duty(vault, Kind.COMPACT).due_at is None
        sweep(T0 + 30 * DAY)
        assert not Job.objects.filter(kind=Kind.COMPACT).exists()
        maintenance.set_intervals(vault, {"prune": None}, actor=SERVICE, now=T0)
        assert Vault.objects.get().maintenance == {"compact": 0}
        assert Event.objects.filter(action="vault.maintenance").count() == 2

    @pytest.mark.parametrize(
        ("wanted", "message"), [({"backup": 60}, "Must be one of"), ({"prune": 59}, "60 to"), ({"prune": -1}, "60 to")]
    )
    def test_nonsense_is_refused(self, vault, wanted, message):
        with pytest.raises(ValidationError, match=message):
            maintenance.set_intervals(vault, wanted, actor=SERVICE, now=T0)


@pytest.mark.django_db(transaction=True)
def test_of_many_who_start_the_same_maintenance_at_once_one_wins(vault):
    row = duty(vault)
    results: list[object] = []
    barrier = threading.Barrier(6)

    def start(number: int) -> None:
        try:
            barrier.wait()
            if number % 2:
                results.append(maintenance.request_due(row, now=moment(row)))
            else:
                results.append(maintenance.request(vault, Kind.PRUNE, {}, actor=SERVICE, now=T0))
        except maintenance.MaintenanceBusy:
            results.append(None)
        finally:
            connection.close()

    threads = [threading.Thread(target=start, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 6
    assert len([job for job in results if job]) == 1
    assert Job.objects.active().count() == 1


class TestTrialRestores:
    @pytest.fixture
    def plan(self, vault) -> Plan:
        source = make_source(vault.account, vault.region)
        return make_plan(
            source, make_policy(vault.account, drill_every_days=7, drill_percent=20), vault, next_drill_at=T0
        )

    def test_the_newest_point_of_a_due_plan_is_restored_on_trial_once_however_many_sweep(self, plan, vault):
        make_point(vault, plan.source, at=T0 - DAY)
        newest = make_point(vault, plan.source)
        stale = Plan.objects.select_related("policy", "source", "vault__account", "vault__region").get()
        sweep(T0)
        assert maintenance.request_due_drill(stale, now=T0) is None
        job = Job.objects.get()
        assert (job.kind, job.point, job.settings, job.plan) == (Kind.DRILL, newest, {"percent": 20}, plan)
        plan.refresh_from_db()
        assert plan.next_drill_at is not None
        assert T0 < plan.next_drill_at <= T0 + 7 * DAY

    def test_without_a_point_the_plan_waits_for_its_next_moment(self, plan):
        sweep(T0)
        assert not Job.objects.exists()
        plan.refresh_from_db()
        assert plan.next_drill_at is not None
        assert plan.next_drill_at > T0

    def test_one_that_still_runs_does_for_this_moment_too(self, plan, vault):
        make_point(vault, plan.source)
        maintenance.request_drill(plan.source, vault, percent=100, actor=SERVICE, now=T0)
        sweep(T0)
        assert Job.objects.count() == 1
        plan.refresh_from_db()
        assert plan.next_drill_at is not None
        assert plan.next_drill_at > T0
