"""Metering: each day once, by whoever comes first; days that nobody metered are made up and say so."""

import datetime as dt
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
import time_machine
from django.core.management import call_command
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django_celery_beat.models import PeriodicTask

from accounts.metering import Meter, MeteringMode, NetworkClass
from accounts.models import MeteredDay, Usage
from accounts.services import SERVICE
from jobs import capacity, doorbell, maintenance, meters, presence, services, tasks
from jobs.models import HostDay, Job
from jobs.services import Selection
from jobs.states import JobState, Kind
from policies.models import Plan, PlanState
from tests.support.people import (
    T0,
    make_account,
    make_plan,
    make_point,
    make_policy,
    make_region,
    make_source,
    make_vault,
    whole_plan,
)
from tests.support.story import Story
from vaults import replication, repositories
from vaults.models import Region, Vault, VaultReading, VaultState, VaultType
from vaults.services import save_region

pytestmark = pytest.mark.django_db
DAY = T0.date()
MIDNIGHT = dt.datetime.combine(DAY + dt.timedelta(days=1), dt.time(), dt.UTC)
MORNING = MIDNIGHT + dt.timedelta(minutes=30)
GIB = 1 << 30


def rows(meter: Meter, **wanted: Any) -> list[Usage]:
    return list(Usage.objects.filter(meter=meter, **wanted).order_by("day", "vault", "source", "host", "variant"))


def quantities(meter: Meter, **wanted: Any) -> list[int]:
    return [row.quantity for row in rows(meter, **wanted)]


def sweep(at: dt.datetime = MORNING) -> list[Vault]:
    return list(meters.sweep(now=at, rows_max=100))


def ended(plan: Plan, kind: Kind, at: dt.datetime = T0, **values: Any) -> Job:
    wanted = {"state": JobState.COMPLETE, "vault": plan.vault, "source": plan.source, "plan": plan} | values
    return Job.objects.create(account=plan.account, kind=kind, created_at=at, ended_at=at, **wanted)


@pytest.fixture
def plan() -> Plan:
    return whole_plan()


@pytest.fixture
def story(tmp_path: Path) -> Story:
    return Story(tmp_path)


def test_the_sweep_is_one_of_those_that_beat_knows():
    call_command("setup_beat", verbosity=0)
    assert PeriodicTask.objects.get(name="jobs.sweep_metering").interval.every > 60


def test_a_day_is_metered_once_it_is_over_and_settled(plan):
    sweep(MIDNIGHT + dt.timedelta(minutes=9))
    assert not MeteredDay.objects.exists()
    sweep(MIDNIGHT + dt.timedelta(minutes=10))
    assert MeteredDay.objects.get().day == DAY


@pytest.mark.rule("A2", "B24")
def test_what_a_vault_stores_is_metered_by_a_look_at_its_packs(story):
    story.backup()
    vault = story.site.vault
    assert sweep() == [vault]
    assert meters.read_vault(vault, now=MORNING)
    stored = sum(one.size for one in repositories.open_vault(vault).stored_packs())
    (row,) = rows(Meter.VAULT_BYTES)
    assert (row.quantity, row.vault, row.vault_name, row.region) == (stored, str(vault.pk), "vault", "acme-region")
    assert (row.day, row.estimated, row.trial) == (DAY, False, False)
    unique, fair = sum(quantities(Meter.SOURCE_BYTES_UNIQUE)), sum(quantities(Meter.SOURCE_BYTES_SHARED))
    assert unique + fair == stored
    assert vault.reading.bytes_stored == vault.reading.bytes_needed == stored


def test_to_meter_a_day_again_changes_nothing(story):
    story.backup()
    sweep()
    meters.read_vault(story.site.vault, now=MORNING)
    before = list(Usage.objects.order_by("pk").values())
    make_point(story.site.vault, make_source(story.site.account, story.site.region, "late"), bytes_total=5)
    sweep()
    meters.meter_account(story.site.account, DAY, now=MORNING)
    assert not meters.read_vault(story.site.vault, now=MORNING)
    assert list(Usage.objects.order_by("pk").values()) == before


def test_a_day_whose_metering_was_cut_short_is_finished_and_nothing_is_counted_twice(story):
    story.backup()
    for _ in range(2):
        sweep()
        meters.read_vault(story.site.vault, now=MORNING)
        found = {(row.meter, row.source, row.variant): row.quantity for row in Usage.objects.all()}
        MeteredDay.objects.all().delete()
        VaultReading.objects.all().delete()
        Usage.objects.filter(meter__in=(Meter.PROTECTED_BYTES, Meter.VAULT_BYTES)).delete()
    sweep()
    meters.read_vault(story.site.vault, now=MORNING)
    assert {(row.meter, row.source, row.variant): row.quantity for row in Usage.objects.all()} == found


@pytest.mark.django_db(transaction=True)
def test_two_sweeps_at_once_meter_a_day_once(plan):
    make_point(plan.vault, plan.source, bytes_total=7)
    presence.report_hosts(["host.web1"], bytes_attached=GIB, now=T0)
    gate = threading.Barrier(2)

    def meter() -> None:
        try:
            gate.wait()
            meters.meter_account(plan.account, DAY, now=MORNING)
        finally:
            connection.close()

    several = [threading.Thread(target=meter) for _ in range(2)]
    for one in several:
        one.start()
    for one in several:
        one.join()
    assert quantities(Meter.PROTECTED_BYTES) == [7]
    assert quantities(Meter.CLIENTS) == [1]
    assert MeteredDay.objects.count() == 1


@pytest.mark.rule("A2", "A8")
def test_requests_are_counted_by_verb_over_the_jobs_of_the_day(plan):
    ended(plan, Kind.BACKUP, report={"requests": {"LIST": 3, "GET": 10}})
    ended(plan, Kind.BACKUP, report={"requests": {"GET": 5, "HEAD": 1}})
    ended(plan, Kind.BACKUP, MIDNIGHT, report={"requests": {"GET": 1000}})
    sweep()
    assert {row.variant: row.quantity for row in rows(Meter.REQUESTS)} == {"LIST": 3, "GET": 15, "HEAD": 1}
    assert not any(row.trial for row in rows(Meter.REQUESTS))


@pytest.mark.rule("A8")
def test_what_a_trial_uses_is_recorded_as_a_trials_until_it_ends(plan):
    plan.vault.trial_started_at, plan.vault.trial_expires_at = T0, MIDNIGHT + dt.timedelta(hours=1)
    plan.vault.save()
    make_point(plan.vault, plan.source, bytes_total=7)
    ended(plan, Kind.BACKUP, report={"requests": {"GET": 1}})
    for day in range(3):
        sweep(MIDNIGHT + dt.timedelta(days=day, hours=7))
    assert [row.trial for row in rows(Meter.PROTECTED_BYTES)] == [True, True, False]
    assert [row.trial for row in rows(Meter.VAULT_BYTES)] == [True, True, False]
    assert [row.trial for row in rows(Meter.REQUESTS)] == [True]


@pytest.mark.rule("C16")
def test_a_point_that_is_kept_beyond_its_retention_goes_on_to_count(plan):
    make_point(plan.vault, plan.source, bytes_total=40, expires_at=T0 - dt.timedelta(days=9))
    plan.delete()
    for day in range(2):
        sweep(MORNING + dt.timedelta(days=day))
    assert quantities(Meter.PROTECTED_BYTES) == [40, 40]


@pytest.mark.rule("C44")
def test_each_protected_host_has_its_row_of_the_day_with_the_size_of_its_newest_points(plan):
    make_point(plan.vault, plan.source, at=T0 - dt.timedelta(days=1), bytes_total=1)
    make_point(plan.vault, plan.source, bytes_total=2)
    make_point(plan.vault, plan.source, at=MIDNIGHT, bytes_total=4)
    other = make_source(plan.account, plan.source.region, "web2")
    make_point(plan.vault, other, bytes_total=8)
    sweep()
    assert {(row.host, row.quantity) for row in rows(Meter.PROTECTED_BYTES)} == {("web1", 2), ("web2", 8)}


@pytest.mark.rule("B23")
def test_clients_are_the_hosts_with_an_active_plan_or_a_worker_that_ran_on_the_day(plan):
    account, region = plan.account, plan.source.region
    for name in ("paused", "ran", "idle"):
        source = make_source(account, region, name)
        make_plan(source, plan.policy, plan.vault, state=PlanState.PAUSED)
    make_source(account, region, "second-of-web1", host="web1")
    make_source(account, region, "bucket", host="")
    presence.report_hosts(["host.ran", "host.somebody-else", "region.main"], bytes_attached=0, now=T0)
    presence.report_hosts(["host.idle"], bytes_attached=0, now=MIDNIGHT)
    sweep()
    assert [row.host for row in rows(Meter.CLIENTS)] == ["ran", "web1"]


@pytest.mark.rule("C45")
def test_the_capacity_of_attached_disks_is_metered_as_the_worker_reports_it(plan):
    presence.report_hosts(["host.web1"], bytes_attached=3 * GIB, now=T0)
    presence.report_hosts(["host.web1"], bytes_attached=5 * GIB, now=T0)
    presence.report_hosts(["host.web1"], bytes_attached=4 * GIB, now=T0)
    plan.account.metering = MeteringMode.ATTACHED_CAPACITY
    plan.account.save()
    for day in range(2):
        sweep(MORNING + dt.timedelta(days=day))
    found = rows(Meter.ATTACHED_BYTES)
    assert [(row.quantity, row.estimated) for row in found] == [(5 * GIB, False), (5 * GIB, True)]
    assert set(MeteredDay.objects.values_list("mode", flat=True)) == {MeteringMode.ATTACHED_CAPACITY}


def test_disks_are_summed_up_without_virtual_ones_and_drives(tmp_path):
    for name, place, sectors in (("sda", "pci/sda", "2048"), ("loop0", "virtual/loop0", "99"), ("sr0", "pci/sr0", "9")):
        folder = tmp_path / "devices" / place
        folder.mkdir(parents=True)
        (folder / "size").write_text(sectors)
        (tmp_path / "block").mkdir(exist_ok=True)
        (tmp_path / "block" / name).symlink_to(folder)
    (tmp_path / "block" / "sdb").symlink_to(tmp_path / "gone")
    assert capacity.attached_bytes(tmp_path / "block") == 1 << 20
    assert capacity.attached_bytes(tmp_path / "no-such-system") == 0


def test_what_hosts_told_long_ago_is_forgotten():
    presence.report_hosts(["host.web1"], bytes_attached=1, now=T0)
    presence.forget_old(now=T0 + dt.timedelta(days=101))
    assert not HostDay.objects.exists()


@pytest.mark.rule("B27", "E45")
def test_restored_bytes_are_metered_by_the_way_that_they_took(plan):
    ended(plan, Kind.RESTORE, report={"bytes": 10, "network": "INTERNET"})
    ended(plan, Kind.RESTORE, report={"bytes": 1, "network": "VPN"})
    ended(plan, Kind.RESTORE, state=JobState.CANCELED, bytes_done=3)
    Region.objects.update(network=NetworkClass.INTERNET)
    ended(plan, Kind.RESTORE, state=JobState.FAILED, bytes_done=5)
    sweep()
    assert {row.variant: row.quantity for row in rows(Meter.RESTORE_BYTES)} == {"INTERNET": 18, "VPN": 1}


@pytest.mark.rule("B27", "E44", "E45")
@pytest.mark.parametrize(
    ("declared", "region_says", "is_home", "network"),
    [
        ("", "LAN", False, "LAN"),
        ("", "INTERNET", False, "INTERNET"),
        ("VPN", "INTERNET", False, "VPN"),
        ("", "INTERNET", True, "REGION"),
        ("VPN", "LAN", True, "REGION"),
        ("INTERNET", "LAN", True, "INTERNET"),
    ],
)
def test_the_worker_says_how_data_travels_before_the_region_does(declared, region_says, is_home, network):
    assert meters.network_class(declared=declared, region_says=region_says, is_home=is_home) == network


@pytest.mark.rule("B27")
def test_a_restore_tells_how_much_it_restored_over_which_network(story, settings, tmp_path):
    point = story.backup()
    settings.NETWORK_CLASS = "INTERNET"
    (tmp_path / "out").mkdir()
    wanted = Selection(mode="include", patterns=["notes.txt"], to=str(tmp_path / "out"))
    job = story.do(services.request_restore(point, wanted, actor=SERVICE, now=story.clock()))
    assert job.state == JobState.COMPLETE, job.error
    sweep()
    (row,) = rows(Meter.RESTORE_BYTES)
    assert (row.variant, row.quantity, row.host) == ("INTERNET", len(b"hello\n"), story.site.source.host)


@pytest.mark.rule("B26", "E43", "E47", "E44")
def test_a_replica_is_metered_at_the_size_of_its_source_and_what_was_copied_by_link(story, tmp_path):
    story.backup()
    far = save_region(Region(name="far", url=str(tmp_path / "far")), actor=SERVICE, now=T0)
    presence.seen("w2", [far.queue], now=T0)
    wanted = Vault(account=story.site.account, region=far, name="replica", type=VaultType.REPLICATION_TARGET)
    target = replication.start(story.site.vault, wanted, actor=SERVICE, now=story.now).target
    job = story.do(maintenance.request(target, Kind.REPLICATE, {}, actor=SERVICE, now=story.clock()))
    assert job.state == JobState.COMPLETE, job.error
    home = make_source(story.site.account, far, "home", settings=story.site.source.settings)
    presence.seen("w3", [home.queue], now=T0)
    (tmp_path / "out").mkdir()
    there = Selection(to=str(tmp_path / "out"), destination=home)
    story.do(services.request_restore(target.points.get(), there, actor=SERVICE, now=story.clock()))
    assert {vault.name for vault in sweep()} == {"vault", "replica"}
    for vault in Vault.objects.all():
        meters.read_vault(vault, now=MORNING)
    assert quantities(Meter.REPLICA_BYTES, vault=target.pk) == quantities(Meter.VAULT_BYTES, vault=story.site.vault.pk)
    (copied,) = rows(Meter.REPLICATION_BYTES)
    assert (copied.vault, copied.variant) == (str(target.pk), str(story.site.vault.pk))
    assert copied.quantity == job.report["bytes"] > 0
    assert [row.variant for row in rows(Meter.RESTORE_BYTES)] == [NetworkClass.REGION]


def test_days_that_nobody_metered_are_made_up_and_say_so(story):
    story.backup()
    meters.read_vault(story.site.vault, now=MORNING)
    sweep()
    ended(story.site.plan, Kind.BACKUP, T0 + dt.timedelta(days=2), report={"requests": {"GET": 9}})
    back = MORNING + dt.timedelta(days=4)
    assert sweep(back) == [story.site.vault]
    assert meters.read_vault(story.site.vault, now=back)
    days = [(row.day - DAY).days for row in rows(Meter.VAULT_BYTES)]
    assert days == [0, 1, 2, 3, 4]
    assert [row.estimated for row in rows(Meter.VAULT_BYTES)] == [False, True, True, True, False]
    assert len(set(quantities(Meter.VAULT_BYTES))) == 1
    assert len(rows(Meter.SOURCE_BYTES_UNIQUE)) == 5
    (requests,) = rows(Meter.REQUESTS, variant="GET")
    assert (requests.day, requests.quantity, requests.estimated) == (DAY + dt.timedelta(days=2), 9, False)
    assert MeteredDay.objects.count() == 5


def test_a_vault_whose_store_is_away_is_asked_for_each_hour_and_made_up_at_last(story, tmp_path):
    point = story.backup()
    shutil.move(tmp_path / "store", tmp_path / "away")
    assert not meters.read_vault(story.site.vault, now=MORNING)
    assert VaultReading.objects.get().error
    assert sweep() == [story.site.vault]
    assert sweep(MORNING + dt.timedelta(minutes=5)) == []
    assert sweep(MORNING + dt.timedelta(hours=2)) == [story.site.vault]
    assert sweep(MIDNIGHT + meters.ON_TIME) == []
    (row,) = rows(Meter.VAULT_BYTES)
    assert (row.quantity, row.estimated) == (point.bytes_stored, True)
    shutil.move(tmp_path / "away", tmp_path / "store")
    assert meters.read_vault(story.site.vault, now=MORNING + dt.timedelta(days=1))
    assert [one.estimated for one in rows(Meter.VAULT_BYTES)] == [True, False]


def test_a_look_that_comes_too_late_is_an_estimate_of_its_day(story):
    story.backup()
    meters.read_vault(story.site.vault, now=MIDNIGHT + dt.timedelta(hours=9))
    assert [row.estimated for row in rows(Meter.VAULT_BYTES)] == [True]


def test_vaults_that_are_not_there_are_not_looked_at(plan):
    plan.vault.state = VaultState.EMPTY
    plan.vault.save()
    assert sweep() == []
    newer = make_vault(plan.account, plan.vault.region, "newer")
    Vault.objects.filter(pk=newer.pk).update(created_at=MIDNIGHT)
    assert sweep() == []
    assert not meters.read_vault(Vault.objects.get(pk=newer.pk), now=MORNING)


def test_the_tasks_meter_by_the_clock_and_ask_the_regions_workers(story, monkeypatch):
    story.backup()
    asked: list[Vault] = []
    monkeypatch.setattr(doorbell, "ask_to_read", asked.append)
    with time_machine.travel(MORNING, tick=False):
        tasks.sweep_metering()
        tasks.read_vault(str(asked[0].pk))
    assert asked == [story.site.vault]
    assert len(rows(Meter.VAULT_BYTES)) == 1
    tasks.read_vault("00000000-0000-0000-0000-000000000000")


def test_the_number_of_queries_grows_with_batches_and_not_with_sources(plan, monkeypatch):
    monkeypatch.setattr(meters, "BATCH", 20)
    sources = [make_source(plan.account, plan.source.region, f"s{number}") for number in range(40)]

    def count(points: int, day: dt.date) -> int:
        for source in sources[:points]:
            make_point(plan.vault, source, bytes_total=1)
        with CaptureQueriesContext(connection) as queries:
            meters.meter_account(plan.account, day, now=MORNING)
        return len(queries)

    few = count(10, DAY)
    Usage.objects.all().delete()
    MeteredDay.objects.all().delete()
    many = count(40, DAY)
    assert many - few <= 4  # one more batch of points: what to read, what it says, and storing it
    assert len(rows(Meter.PROTECTED_BYTES)) == 40


def test_an_account_sees_nothing_of_others_hosts_and_points(plan):
    other = make_account("other")
    make_plan(
        make_source(other, plan.source.region, "theirs"), make_policy(other), make_vault(other, plan.source.region)
    )
    presence.report_hosts(["host.theirs"], bytes_attached=GIB, now=T0)
    meters.meter_account(plan.account, DAY, now=MORNING)
    assert not Usage.objects.filter(host="theirs").exists()
    assert make_region("spare").network == NetworkClass.LAN
