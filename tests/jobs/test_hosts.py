"""Essential host backup as jobs: a point for each volume, one after the other, and the limits of a priority."""

import datetime as dt

import pytest

from accounts.services import SERVICE
from engine.errors import StorageError
from engine.sources.mounts import Mount, volumes
from jobs import due, hosts, local, presence, services, trialends
from jobs.models import Job
from jobs.states import JobState
from policies import essential, trials
from policies.models import Edition, Plan, PlanState, Priority
from tests.support.control import Clock, Site, make_site, read_tree, write_tree
from tests.support.people import T0, make_source
from vaults.limits import load
from vaults.models import RecoveryPoint, Vault, VaultState

pytestmark = pytest.mark.django_db

DAY = dt.timedelta(days=1)
NAMES = ("a", "b", "c")


@pytest.fixture
def site(tmp_path) -> Site:
    """A host web7 with three volumes under essential backup."""
    site = make_site(tmp_path)
    roots = tuple(str(write_tree(tmp_path / name, {f"{name}.txt": name.encode()})) for name in NAMES)
    wish = essential.Wish(roots=roots, vault=site.vault)
    essential.enable(site.account, "web7", region=site.region, wish=wish, actor=SERVICE, now=T0)
    return site


def host_of(site: Site) -> hosts.Host:
    return hosts.get(site.account, "web7", now=T0)


def run_day(site: Site, clock: Clock) -> list[Job]:
    """Sweep and work until the host has nothing due any more; return its jobs in the order of their work."""
    presence.seen("w7", ["host.web7", site.region.queue], now=clock())
    done: list[Job] = []
    while True:
        due.settle(now=clock(), served=presence.queues(now=clock()))
        running = Job.objects.active().filter(host="web7")
        assert running.count() <= 1
        job = running.first()
        if job is None:
            return done
        done.append(local.do(job, clock=clock))


@pytest.mark.rule("C1", "C23", "C52")
def test_a_run_of_a_host_makes_one_point_a_volume_one_after_the_other(site, tmp_path):
    moment = Plan.objects.filter(edition=Edition.ESSENTIAL).values_list("next_run_at", flat=True).distinct().get()
    assert moment is not None
    jobs = run_day(site, Clock(moment))
    assert [(job.state, job.scheduled_for) for job in jobs] == [(JobState.COMPLETE, moment)] * 3
    points = RecoveryPoint.objects.filter(host="web7").order_by("source_name")
    assert [point.roots for point in points] == [[str(tmp_path / name)] for name in NAMES]
    assert len({point.series for point in points}) == 3
    following = Plan.objects.filter(edition=Edition.ESSENTIAL).values_list("next_run_at", flat=True).distinct().get()
    assert following == moment + DAY
    assert Job.objects.filter(host="web7").count() == 3


@pytest.mark.rule("C1", "C22")
def test_one_file_of_one_volume_comes_back_and_nothing_else_is_touched(site, tmp_path):
    plan = essential.plans_of(site.account, "web7").first()
    assert plan is not None
    clock = Clock(plan.next_run_at or T0)
    run_day(site, clock)
    for name in NAMES:
        (tmp_path / name / f"{name}.txt").write_bytes(b"changed")
    point = RecoveryPoint.objects.get(source_name__contains=f"{tmp_path.name}/b")
    wanted = services.Selection(mode="include", patterns=["b.txt"], same_name="overwrite", overwrite_confirmed=True)
    job = local.do(services.request_restore(point, wanted, actor=SERVICE, now=clock()), clock=clock)
    assert job.state == JobState.COMPLETE
    found = {name: read_tree(tmp_path / name)[f"{name}.txt"] for name in NAMES}
    assert found == {"a": b"changed", "b": b"b", "c": b"changed"}


@pytest.mark.rule("C37")
def test_a_new_priority_holds_for_the_next_run_and_not_for_the_one_that_goes_on(site):
    plan = essential.plans_of(site.account, "web7").first()
    assert plan is not None
    running = services.request_backup(plan, actor=SERVICE, now=T0)
    essential.change(site.account, "web7", changes={"priority": Priority.HIGH}, actor=SERVICE, now=T0)
    running.refresh_from_db()
    assert load(running.limits).bytes_per_s == 10_000_000
    services.request_cancel(running, actor=SERVICE, now=T0)
    plan.refresh_from_db()
    following = services.request_backup(plan, actor=SERVICE, now=T0)
    found = load(following.limits)
    assert (found.bytes_per_s, found.parallel_max) == (30_000_000, 2)


@pytest.mark.rule("C20", "C18")
def test_a_host_is_ready_paused_canceling_and_then_as_any_other(site):
    assert host_of(site).status == "ready"
    essential.pause(site.account, "web7", actor=SERVICE, now=T0)
    assert host_of(site).status == "paused"
    hosts.cancel(host_of(site), confirmation="web7", actor=SERVICE, now=T0)
    assert host_of(site).status == "canceling"
    assert hosts.get(site.account, "never-heard-of", now=T0).status == "inactive"


def test_volumes_that_nobody_protects_are_told(site):
    root = essential.plans_of(site.account, "web7")[0].source.settings["roots"][0]
    presence.seen("w7", ["host.web7"], now=T0, volumes=["/boot/efi", root, "/new"])
    host = host_of(site)
    assert (host.online, host.unprotected) == (True, ["/new"])
    assert any("Not protected: /new" in text for text in hosts.warnings(host, now=T0))


@pytest.mark.rule("C23")
def test_the_volumes_of_a_host_are_its_own_disks_each_once():
    mounts = [
        Mount(b"/", "ext4", 1),
        Mount(b"/data", "xfs", 2),
        Mount(b"/mnt/data-again", "xfs", 2),
        Mount(b"/srv/bind", "ext4", 1, b"/var/lib"),
        Mount(b"/home", "btrfs", 3, b"/@home"),
        Mount(b"/proc", "proc", 4),
        Mount(b"/nas", "nfs4", 5),
        Mount(b"/snap/x", "squashfs", 6),
        Mount(b"/tmp", "tmpfs", 7),
    ]
    assert volumes(mounts) == [b"/", b"/data", b"/home"]
    assert volumes([Mount(b"/", "overlay", 1)]) == [b"/"]


class TestTrialsEnd:
    @pytest.fixture
    def plan(self, tmp_path, monkeypatch) -> Plan:
        monkeypatch.setattr("policies.connection.check_class", lambda source: None)
        site = make_site(tmp_path)
        settings = {"endpoint": "http://127.0.0.1:9", "bucket": "shop"}
        bucket = make_source(site.account, site.region, "shop", kind="bucket", host="", settings=settings)
        return trials.create(bucket, actor=SERVICE, now=T0).plan

    @pytest.mark.rule("A8")
    def test_backups_stop_when_a_trial_is_over_and_a_job_tells_why(self, plan):
        trialends.sweep(now=T0 + 29 * DAY, rows_max=10)
        assert not Job.objects.exists()
        for _ in range(2):
            trialends.sweep(now=T0 + 30 * DAY, rows_max=10)
        plan.refresh_from_db()
        assert plan.state == PlanState.PAUSED
        job = Job.objects.get()
        assert (job.state, job.error_code) == (JobState.SKIPPED, "trial_ended")
        assert "Convert the plan" in job.error
        with pytest.raises(services.VaultUnfit) as refusal:
            services.request_backup(plan, actor=SERVICE, now=T0 + 30 * DAY)
        assert refusal.value.code == "trial_ended"

    @pytest.mark.rule("A8")
    def test_its_vault_goes_a_while_later_also_when_the_store_was_away_at_first(self, plan, monkeypatch):
        later = T0 + 38 * DAY

        def away(vault, *, now):
            raise StorageError("nobody answers")

        with monkeypatch.context() as broken:
            broken.setattr("vaults.deletion.locked_until", away)
            trialends.sweep(now=later, rows_max=10)
        vault = Vault.objects.get(pk=plan.vault_id)
        assert vault.state == VaultState.READY
        trialends.sweep(now=later, rows_max=10)
        vault.refresh_from_db()
        assert vault.state == VaultState.DELETING
        assert not Plan.objects.filter(pk=plan.pk).exists()
