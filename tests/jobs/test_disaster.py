"""From a bucket alone back to a control plane, and the check that this would work (engine invariant 23)."""

import datetime as dt
import io
import shutil
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command
from django.db import connection

from accounts import secrets
from accounts.models import Account, ChainHead, CustomRole, Event, Link, Member, Role, User
from accounts.services import SERVICE, Actor, save_custom_role, set_role
from engine import system as store
from engine.progress import Silent
from jobs import disaster, exporting, local, maintenance, removal, services, system, tasks
from jobs.models import Job, SystemExport
from jobs.services import Selection
from jobs.states import JobState, Kind
from policies import reading
from policies.models import Plan, PlanState, Policy, Rule, Source
from policies.services import pause, save_policy, save_source
from tests.support.control import Clock, Site, make_site, read_tree, write_tree
from tests.support.people import T0, join, make_account, make_plan, make_policy, make_user, online
from tests.support.trail import guards_off
from vaults import recovery, replication, repositories
from vaults.models import LinkState, RecoveryPoint, Region, ReplicationLink, Vault, VaultType
from vaults.services import create_vault, save_region

pytestmark = [pytest.mark.django_db, pytest.mark.slow]
DAY = dt.timedelta(days=1)
PROGRAM = {"environment": "PGPASSWORD=of the source"}


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def site(tmp_path, clock) -> Site:
    """A second policy and a paused plan; a source with credentials; people, one with a custom role. No points yet."""
    site = make_site(tmp_path)
    join(site.account, "vera", Role.VIEWER)
    night = CustomRole(account=site.account, name="Night shift", privileges=["backup"])
    save_custom_role(night, actor=SERVICE, now=clock())
    set_role(account=site.account, user=make_user("otto"), role=night, actor=SERVICE, now=clock())
    dump = Source(account=site.account, region=site.region, name="dump", kind="command", host="db1")
    dump.settings = {"argv": ["pg_dump", "shop"], "marker": "PostgreSQL database dump complete"}
    save_source(dump, credentials=PROGRAM, actor=SERVICE, now=clock())
    policy = save_policy(
        Policy(account=site.account, name="hourly", retention_days=7, time_zone="Europe/Berlin"),
        rules=[Rule(unit="hour")],
        actor=SERVICE,
        now=clock(),
    )
    pause(make_plan(site.source, policy, site.vault), actor=SERVICE, now=clock())
    return site


@pytest.fixture
def protected(site: Site, clock: Clock) -> Site:
    """The same with two points, one of them held."""
    back_up(site, clock)
    write_tree(site.files, {"more.txt": b"more"})
    removal.hold(back_up(site, clock), reason="court case", actor=Actor(user=site.owner), now=clock())
    return site


def back_up(site: Site, clock: Clock) -> RecoveryPoint:
    job = local.do(services.request_backup(site.plan, actor=SERVICE, now=clock()), clock=clock)
    assert job.point is not None
    return job.point


def rows() -> system.Tables:
    """Return every row that a rebuild should make, of all accounts, with plans' states and points' ids."""
    tables: system.Tables = {}
    for account in Account.objects.order_by("name"):
        for label, found in system.tables_of(account).items():
            tables[label] = tables.get(label, []) + found
    tables["points"] = system.rows_of(RecoveryPoint.objects.all())
    tables["ids"] = [{"pk": str(pk)} for pk in RecoveryPoint.objects.order_by("pk").values_list("pk", flat=True)]
    return tables


def drop_everything() -> None:
    """Lose the database's rows, all of them."""
    with guards_off(), connection.cursor() as cursor:
        for model in (Link, Event, ChainHead):
            cursor.execute(f"DELETE FROM {model._meta.db_table}")
    Job.objects.all().delete()
    for rest in (RecoveryPoint, Plan, Rule, Policy, Source, SystemExport, Member, ReplicationLink):
        rest._base_manager.all().delete()
    Vault.objects.all()._raw_delete("default")
    for other in (Region, Account, User):
        other._base_manager.all().delete()


def rebuild(site: Site, *options: str) -> str:
    out = io.StringIO()
    arguments = ["--url", site.region.url, *options]
    call_command("rebuild_from_bucket", *arguments, stdout=out, stderr=out)
    return out.getvalue()


def export(site: Site, clock: Clock) -> store.Export:
    exporting.export(site.vault, now=clock())
    opened = repositories.open_vault(site.vault)
    found = store.newest(opened.storage, opened.keys)
    assert found is not None
    return found.export


@pytest.mark.invariant(23)
def test_every_row_comes_back_from_the_bucket_and_the_recovery_key_alone_and_a_point_is_restored(
    protected, clock, settings, tmp_path
):
    export(protected, clock)
    before = rows()
    drop_everything()
    settings.KEYRING_FILE = tmp_path / "new-service.key"
    settings.FIELD_KEYS = ["11" * 32]
    assert "1 vaults" in rebuild(protected, "--recovery-key", protected.recovery_key, "--resume")
    assert rows() == before
    dump, source = Source.objects.get(name="dump"), Source.objects.exclude(name="dump").get()
    assert reading.reading(dump).credentials == PROGRAM
    assert RecoveryPoint.objects.get(held_at__isnull=False).held_by == "acme-owner"

    settings.WORKER_SEEN_S = 10**9
    online(source.queue)
    target = tmp_path / "back"
    target.mkdir()
    point = RecoveryPoint.objects.latest("completed_at")
    wanted = Selection(to=str(target))
    job = local.do(services.request_restore(point, wanted, actor=SERVICE, now=clock()), clock=clock)
    assert job.state == JobState.COMPLETE
    assert read_tree(target / str(protected.files).lstrip("/")) == read_tree(protected.files)
    assert (
        back_up(Site(**vars(protected) | {"plan": Plan.objects.get(pk=protected.plan.pk)}), clock).vault_id
        == protected.vault.pk
    )


@pytest.mark.invariant(23)
def test_a_second_rebuild_changes_nothing_and_leaves_what_people_did_since(protected, clock):
    export(protected, clock)
    drop_everything()
    rebuild(protected, "--resume")
    once = rows()
    assert " 0 rows, 0 recovery points" in rebuild(protected, "--resume")
    assert rows() == once
    Policy.objects.filter(name="hourly").update(retention_days=70)
    point = RecoveryPoint.objects.get(held_at__isnull=False)
    removal.release(point, actor=SERVICE, now=clock())
    rebuild(protected)
    assert Policy.objects.get(name="hourly").retention_days == 70
    assert not RecoveryPoint.objects.filter(held_at__isnull=False).exists()


def test_plans_are_paused_and_people_have_neither_passwords_nor_rights_over_the_installation(site, clock):
    User.objects.filter(username="vera").update(is_staff=True, is_superuser=True)
    export(site, clock)
    drop_everything()
    rebuild(site)
    assert set(Plan.objects.values_list("state", "next_run_at")) == {(PlanState.PAUSED, None)}
    vera = User.objects.get(username="vera")
    assert (vera.is_staff, vera.is_superuser, vera.has_usable_password()) == (False, False, False)
    assert Member.objects.get(user=vera).role == Role.VIEWER


def test_an_export_holds_its_own_account_alone_and_no_secret_of_another_vault(site, clock, tmp_path):
    other = make_site(tmp_path / "other", name="other")
    Region.objects.filter(pk=other.region.pk).update(
        credentials=secrets.seal({"access_key": "theirs"}, context=other.region.secret_context)
    )
    make_plan(site.source, make_policy(site.account, "third"), site.vault)
    text = store.encode(export(site, clock)).decode()
    assert "acme-web" in text
    hashed = site.owner.password
    assert len(hashed) > 40
    for foreign in ("other", "theirs", str(other.account.pk), hashed, 'password":"!'):
        assert foreign not in text


def test_only_the_vault_s_own_region_tells_its_credentials(site, clock):
    region = Region.objects.get(pk=site.region.pk)
    repositories.seal_credentials(region, {"access_key": "mine", "secret_key": "s"})
    region.save()
    site.vault.refresh_from_db()
    found = export(site, clock)
    assert found.secrets["vaults.region"] == {str(region.pk): {"access_key": "mine", "secret_key": "s"}}


def test_an_export_follows_a_change_after_minutes_and_otherwise_a_day(site, clock):
    assert exporting.sweep(now=clock(), rows_max=10) == 1
    assert exporting.sweep(now=clock(), rows_max=10) == 0
    save_policy(Policy.objects.get(name="hourly"), actor=SERVICE, now=clock())
    assert exporting.sweep(now=clock(), rows_max=10) == 0, "the last look is seconds ago"
    clock.now += dt.timedelta(minutes=4)
    assert exporting.sweep(now=clock(), rows_max=10) == 0, "nothing has changed but the trail"
    policy = Policy.objects.get(name="hourly")
    policy.retention_days = 8
    save_policy(policy, actor=SERVICE, now=clock())
    clock.now += dt.timedelta(minutes=4)
    assert exporting.sweep(now=clock(), rows_max=10) == 1
    clock.now += DAY
    assert exporting.sweep(now=clock(), rows_max=10) == 1


def test_the_sweep_exports_and_links_what_stands_outside_the_trail(site):
    assert Link.objects.count() == 0, "nothing is committed inside a test"
    tasks.sweep_exports()
    assert SystemExport.objects.get().key.startswith("system/")
    assert Link.objects.count() == Event.objects.count() > 0


def test_a_store_that_is_away_is_noted_and_tried_again(site, clock, tmp_path):
    (tmp_path / "store").rename(tmp_path / "away")
    assert exporting.sweep(now=clock(), rows_max=10) == 0
    assert SystemExport.objects.get().error
    (tmp_path / "away").rename(tmp_path / "store")
    clock.now += dt.timedelta(minutes=4)
    assert exporting.sweep(now=clock(), rows_max=10) == 1
    assert SystemExport.objects.get().error == ""


def check(site: Site, clock: Clock) -> Job:
    job = maintenance.request(site.vault, Kind.DISASTER, {}, actor=SERVICE, now=clock())
    return local.do(job, clock=clock)


@pytest.mark.invariant(23)
def test_a_check_rebuilds_into_a_scratch_database_and_finds_no_difference(protected, clock, settings):
    job = check(protected, clock)
    assert (job.state, job.error) == (JobState.COMPLETE, "")
    assert job.report["points"] == 2
    assert job.report["rows"] >= 9
    assert job.report["seconds"] > 0
    assert list(Path(settings.SCRATCH_DIR).iterdir()) == []


def test_a_check_fails_and_lists_what_a_rebuild_would_make_otherwise(protected, clock):
    point = RecoveryPoint.objects.first()
    assert point is not None
    RecoveryPoint.objects.filter(pk=point.pk).update(bytes_total=1)
    RecoveryPoint.objects.create(
        vault=protected.vault, series="gone", point_id="gone", source_kind="files", state="complete",
        started_at=T0, completed_at=T0, created_at=T0,
    )  # fmt: skip
    job = check(protected, clock)
    assert (job.state, job.error_code) == (JobState.FAILED, "rebuild_differs")
    told = [f"{one['path']}: {one['detail']}" for one in job.report["problems"]]
    assert any("bytes_total is 1" in text for text in told)
    assert any("gone/gone is missing" in text for text in told)


def test_a_check_fails_when_exports_have_not_been_written_for_days(site, clock):
    export(site, clock)
    clock.now += dt.timedelta(days=3)
    job = check(site, clock)
    assert "the newest export is of" in job.error
    assert check(site, clock).state == JobState.COMPLETE


def test_a_check_fails_when_a_point_cannot_be_read(protected, clock, tmp_path):
    root = next((tmp_path / "store" / protected.vault.prefix / "points").rglob("root"))
    root.write_bytes(root.read_bytes()[:-1])
    assert "points/" in check(protected, clock).error


def test_a_vault_that_no_key_opens_stays_closed_and_is_named(site, clock, settings, tmp_path):
    export(site, clock)
    other = make_site(tmp_path / "other", name="other")
    drop_everything()
    settings.KEYRING_FILE = tmp_path / "new-service.key"
    with pytest.raises(CommandError, match="None of the keys opens"):
        rebuild(site, "--recovery-key", other.recovery_key)


def test_vaults_of_two_accounts_in_one_region_come_back_one_after_the_other(site, clock, settings, tmp_path):
    other = make_account("other")
    join(other, "olaf")
    second = Vault(account=other, region=site.region, name="theirs", recovery_threshold=2, recovery_shares=3)
    key = create_vault(second, actor=SERVICE, now=clock())
    shares = tmp_path / "shares"
    shares.write_text("\n".join(recovery.shares_of(second, key)[:2]))
    assert exporting.sweep(now=clock(), rows_max=10) == 2
    expected = rows()
    drop_everything()
    settings.KEYRING_FILE = tmp_path / "new-service.key"
    with pytest.raises(CommandError, match="could not be rebuilt"):
        rebuild(site, "--recovery-key", site.recovery_key, "--resume")
    assert list(Account.objects.values_list("name", flat=True)) == ["acme"]
    assert rebuild(site, "--recovery-key-file", str(shares), "--resume")
    assert rows() == expected


def test_the_address_of_one_vault_does_as_well(site, clock):
    export(site, clock)
    expected = rows()
    drop_everything()
    place = f"{site.region.url}/{site.vault.prefix}"
    call_command("rebuild_from_bucket", "--url", place, "--resume", stdout=io.StringIO())
    assert rows() == expected


def test_bad_keys_and_addresses_are_told(site, settings, tmp_path):
    with pytest.raises(CommandError, match="There is no vault at"):
        call_command("rebuild_from_bucket", "--url", str(tmp_path))
    with pytest.raises(CommandError, match="is not an address"):
        call_command("rebuild_from_bucket", "--url", "relative")
    with pytest.raises(CommandError, match="mistyped"):
        rebuild(site, "--recovery-key", site.recovery_key[:-1] + ("B" if site.recovery_key.endswith("A") else "A"))
    with pytest.raises(CommandError, match="cannot be read"):
        rebuild(site, "--recovery-key-file", str(tmp_path / "none"))
    settings.KEYRING_FILE = tmp_path / "none.key"
    with pytest.raises(CommandError, match="Give --recovery-key-file"):
        rebuild(site)


def test_a_bucket_without_an_export_says_what_can_be_done(site):
    with pytest.raises(CommandError, match=r"No vault at .* holds a readable export"):
        rebuild(site)


def test_rows_of_others_in_the_way_are_refused_and_nothing_is_stored(site, clock):
    export(site, clock)
    drop_everything()
    make_account("acme")
    with pytest.raises(CommandError, match="Rebuild into an empty database"):
        rebuild(site)
    assert not Vault.objects.exists()


def test_a_bucket_that_was_copied_elsewhere_is_reached_there(site, clock, tmp_path):
    export(site, clock)
    drop_everything()
    (tmp_path / "store").rename(tmp_path / "moved")
    call_command("rebuild_from_bucket", "--url", str(tmp_path / "moved"), stdout=io.StringIO())
    assert Region.objects.get().url == str(tmp_path / "moved")


@pytest.mark.rule("E2", "E6", "E40")
@pytest.mark.invariant(23)
def test_the_bucket_of_a_replica_alone_brings_the_rows_back_and_it_is_taken_over(protected, clock, tmp_path):
    link = replicated(protected, clock, tmp_path)
    exporting.export(link.target, now=clock())
    before = rows()
    drop_everything()
    shutil.rmtree(tmp_path / "store")
    told = io.StringIO()
    place = ["--url", str(tmp_path / "far"), "--recovery-key", protected.recovery_key, "--resume"]
    call_command("rebuild_from_bucket", *place, stdout=told)
    assert "1 vaults" in told.getvalue()
    names = [name for name in before if name not in ("points", "ids", system.HOLDS)]  # a hold is its vault's own
    after = rows()
    assert {name: after[name] for name in names} == {name: before[name] for name in names}
    source, target = Vault.objects.get(name="vault"), Vault.objects.get(name="replica")
    assert (source.points.count(), target.points.count()) == (0, 2)
    stopped = replication.stop(source, confirmation="vault", actor=SERVICE, now=clock())
    assert (stopped.pk, stopped.state, stopped.target) == (link.pk, LinkState.STOPPED, target)
    job = local.do(services.request_verify(target, level="content", actor=SERVICE, now=clock()), clock=clock)
    assert job.state == JobState.COMPLETE


@pytest.mark.rule("E3")
def test_after_a_rebuild_from_both_buckets_replication_goes_on(protected, clock, tmp_path):
    link = replicated(protected, clock, tmp_path)
    for vault in (protected.vault, link.target):
        exporting.export(vault, now=clock())
    before = rows()
    drop_everything()
    for place in ("store", "far"):
        call_command("rebuild_from_bucket", "--url", str(tmp_path / place), "--resume", stdout=io.StringIO())
    after = rows()
    assert {name: after[name] for name in before if name != "ids"} == {n: before[n] for n in before if n != "ids"}
    back_up(Site(**vars(protected) | {"plan": Plan.objects.get(pk=protected.plan.pk)}), clock)
    job = local.do(maintenance.request(link.target, Kind.REPLICATE, {}, actor=SERVICE, now=clock()), clock=clock)
    assert (job.state, job.report["points"]) == (JobState.COMPLETE, 1)


def replicated(site: Site, clock: Clock, folder: Path) -> ReplicationLink:
    """Have both points in another region, too."""
    far = save_region(Region(name="far", url=str(folder / "far")), actor=SERVICE, now=clock())
    target = Vault(account=site.account, region=far, name="replica", type=VaultType.REPLICATION_TARGET)
    link = replication.start(site.vault, target, actor=SERVICE, now=clock())
    job = local.do(maintenance.request(target, Kind.REPLICATE, {}, actor=SERVICE, now=clock()), clock=clock)
    assert (job.state, job.report["points"]) == (JobState.COMPLETE, 2)
    return link


def test_points_that_come_or_go_while_a_check_looks_are_no_differences(protected, clock):
    exported = export(protected, clock)
    opened = repositories.open_vault(protected.vault)
    read = disaster.recover(
        repositories.location(protected.region, prefix=protected.vault.prefix),
        [repositories.keyring()],
        progress=Silent(),
        clock=clock,
    )
    found = store.Found("system/x", exported, [])

    def compared() -> list[str]:
        return disaster.compare(protected.vault, opened, read.outcome.rows, found, now=clock())

    assert compared() == []
    back_up(protected, clock)
    assert compared() == [], "a point came"
    going = RecoveryPoint.objects.filter(held_at=None).earliest("completed_at")
    job = removal.delete_point(going, confirmation=going.source_name, actor=SERVICE, now=clock())
    assert local.do(job, clock=clock).state == JobState.COMPLETE
    assert compared() == [], "a point went"
    RecoveryPoint.objects.filter(held_at__isnull=False).delete()
    assert any("is not in the database" in text for text in compared())
