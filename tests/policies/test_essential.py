"""Essential host backup: what comes about without a word, what can be changed, pause and resume."""

import datetime as dt
import itertools
from collections import Counter
from unittest import mock

import pytest
from django.core.exceptions import ValidationError

from accounts.models import Event
from accounts.services import SERVICE
from policies import editions, essential, moments, retention, schedule, services
from policies.models import Edition, Plan, PlanState, Policy, Source
from tests.support.people import T0, make_account, make_point, make_region, make_vault
from vaults.models import NotInRegion, Region, Vault

pytestmark = pytest.mark.django_db

ROOTS = ("/", "/data", "/var/lib/mysql")
DAY = dt.timedelta(days=1)


@pytest.fixture
def account():
    return make_account()


@pytest.fixture
def region(tmp_path) -> Region:
    return make_region(folder=tmp_path / "store")


def enable(account, region, host: str = "web1", **wish) -> essential.Enabled:
    return essential.enable(account, host, region=region, wish=essential.Wish(**wish), actor=SERVICE, now=T0)


def change(account, now: dt.datetime = T0, **changes) -> Plan:
    essential.change(account, "web1", changes=changes, actor=SERVICE, now=now)
    return Plan.objects.select_related("policy", "source", "vault").get()


@pytest.mark.rule("C2", "C9", "C14")
def test_a_host_is_protected_every_day_with_nothing_said(account, region):
    made = enable(account, region)
    plan = Plan.objects.get()
    assert (plan.edition, plan.state, plan.priority) == (Edition.ESSENTIAL, PlanState.ACTIVE, "low")
    assert (plan.source.settings["roots"], plan.source.host) == (["/"], "web1")
    assert (plan.policy.retention_days, plan.policy.keep_at_least_one, plan.policy.inline) == (30, True, True)
    assert plan.start_minute < 360
    assert (plan.vault.name, plan.vault.region) == ("Hosts in main", region)
    assert made.recovery_key.startswith("BSRK-")
    days = [run.moment for run in itertools.islice(moments.coming(plan, after=T0), 4)]
    assert {later - day for day, later in itertools.pairwise(days)} == {DAY}


@pytest.mark.rule("C2")
def test_the_hosts_of_a_region_share_a_vault_that_is_made_once(account, region):
    first, second = enable(account, region), enable(account, region, "web2")
    assert (second.vault, second.recovery_key) == (first.vault, "")
    far = make_region("far", f"{region.url}-far")
    assert enable(account, far, "web3").vault.name == "Hosts in far"
    other = enable(make_account("other"), region, "web1")
    assert other.vault != first.vault
    own = make_vault(account, region, "own")
    assert enable(account, region, "web4", vault=own).vault == own


@pytest.mark.rule("C23")
def test_each_volume_is_a_source_of_its_own_with_a_plan_that_is_due_in_the_same_moment(account, region):
    enable(account, region, roots=ROOTS)
    plans = list(Plan.objects.select_related("source").order_by("source__name"))
    assert [plan.source.settings["roots"] for plan in plans] == [[root] for root in ROOTS]
    assert [plan.source.name for plan in plans] == ["web1:/", "web1:/data", "web1:/var/lib/mysql"]
    assert len({plan.next_run_at for plan in plans}) == 1
    assert len({plan.start_minute for plan in plans}) == 1
    assert {plan.source.settings["one_file_system"] for plan in plans} == {True}
    assert len({plan.policy for plan in plans}) == 3


@pytest.mark.rule("C49", "C50")
def test_system_folders_and_network_storage_stay_out_from_the_beginning(account, region):
    enable(account, region, roots=("/", "/usr"))
    root, usr = Source.objects.order_by("name")
    assert root.settings["exclude"] == list(editions.LINUX_EXCLUDED)
    assert usr.settings["exclude"] == ["/usr/bin/", "/usr/sbin/"]
    assert root.settings["skip_network"]


@pytest.mark.rule("C50")
@pytest.mark.parametrize("root", ["/srv", "/boot/efi", "/run/media/x"])
def test_a_volume_inside_a_system_folder_is_refused(account, region, root):
    with pytest.raises(essential.RootExcluded, match=root):
        enable(account, region, roots=("/", root))
    assert not Source.objects.exists()


@pytest.mark.rule("C8")
def test_a_thousand_hosts_overload_no_minute_and_keep_theirs(account, region):
    minutes = Counter(schedule.draw_start() for _ in range(1000))
    assert max(minutes.values()) < 20
    assert min(minutes) >= 0
    assert max(minutes) < 360
    plan = enable(account, region).plans[0]
    before = plan.start_minute
    with mock.patch("policies.schedule.draw_start", side_effect=AssertionError):
        essential.pause(account, "web1", actor=SERVICE, now=T0)
        essential.resume(account, "web1", actor=SERVICE, now=T0 + DAY)
        change(account, priority="high", keep_at_least_one=False)
    plan.refresh_from_db()
    assert plan.start_minute == before


@pytest.mark.rule("C14")
def test_the_start_is_a_specified_time_when_one_is_given(account, region):
    plan = enable(account, region, start_time=dt.time(22, 15), time_zone="Europe/Berlin").plans[0]
    assert plan.next_run_at == dt.datetime(2026, 3, 10, 21, 15, tzinfo=dt.UTC)


def test_new_volumes_are_taken_in_with_the_settings_of_the_others(account, region):
    first = enable(account, region, start_time=dt.time(1), priority="high").plans[0]
    made = enable(account, region, roots=("/", "/data"))
    assert [plan.source.name for plan in made.plans] == ["web1:/data"]
    (new,) = made.plans
    assert (new.start_time, new.priority, new.vault) == (dt.time(1), "high", first.vault)
    assert new.next_run_at == first.next_run_at
    with pytest.raises(essential.EssentialEnabled, match="web1 is protected already: /, /data"):
        enable(account, region, roots=ROOTS[:2])


def test_what_was_protected_before_goes_on_as_the_same_source(account, region):
    before = enable(account, region).plans[0]
    services.delete(before, actor=SERVICE, now=T0)
    after = enable(account, region).plans[0]
    assert (after.source, Source.objects.count(), Policy.objects.count()) == (before.source, 1, 1)


@pytest.mark.rule("C55")
def test_a_region_that_is_not_set_up_for_hosts_is_refused(account, region):
    region.supports_host_backup = False
    with pytest.raises(NotInRegion):
        enable(account, region)
    assert not Vault.objects.exists()


@pytest.mark.parametrize(
    "wish", [{"priority": "urgent"}, {"time_zone": "Mars/Olympus"}, {"roots": ("data",)}, {"roots": ("C:",)}]
)
def test_a_bad_wish_leaves_nothing_behind(account, region, wish):
    with pytest.raises(ValidationError):
        enable(account, region, **wish)
    assert not Source.objects.exists()
    assert not Vault.objects.exists()


@pytest.mark.rule("C11")
def test_everything_can_be_changed_later_and_is_recorded(account, region):
    enable(account, region)
    plan = change(account, priority="high", keep_at_least_one=False)
    assert (plan.priority, plan.policy.keep_at_least_one) == ("high", False)
    assert Event.objects.filter(action="plan.change").count() == 1
    assert Event.objects.filter(action="policy.change").count() == 1
    with pytest.raises(ValidationError):
        change(account, priority="urgent")
    with pytest.raises(essential.EssentialMissing):
        essential.change(account, "web2", changes={}, actor=SERVICE, now=T0)


@pytest.mark.rule("C9")
def test_no_other_retention_than_thirty_days_is_taken(account, region):
    policy = enable(account, region).plans[0].policy
    policy.retention_days = 60
    with pytest.raises(editions.RetentionFixed) as refusal:
        services.save_policy(policy, actor=SERVICE, now=T0)
    assert (refusal.value.code, refusal.value.detail) == ("retention_fixed", {"days_min": 30, "days_max": 30})


@pytest.mark.rule("C30", "C31")
def test_a_host_is_paused_as_a_whole_and_resumed_only_when_it_is_paused(account, region):
    enable(account, region, roots=ROOTS)
    with pytest.raises(services.PlanNotPaused):
        essential.resume(account, "web1", actor=SERVICE, now=T0)
    essential.pause(account, "web1", actor=SERVICE, now=T0)
    assert set(Plan.objects.values_list("state", "next_run_at")) == {(PlanState.PAUSED, None)}
    with pytest.raises(services.PlanPaused):
        essential.pause(account, "web1", actor=SERVICE, now=T0)
    essential.resume(account, "web1", actor=SERVICE, now=T0)
    assert len(set(Plan.objects.values_list("state", "next_run_at"))) == 1
    with pytest.raises(services.PlanNotPaused):
        essential.resume(account, "web1", actor=SERVICE, now=T0)


@pytest.mark.rule("C17")
def test_pausing_without_keep_at_least_one_warns_of_the_last_points_end(account, region):
    plan = enable(account, region).plans[0]
    make_point(plan.vault, plan.source, retention_days=30)
    essential.pause(account, "web1", actor=SERVICE, now=T0)
    assert retention.warnings_on_pause(plan, now=T0) == []
    plan = change(account, keep_at_least_one=False)
    later = T0 + dt.timedelta(hours=2)
    (told,) = retention.warnings_on_pause(plan, now=later)
    assert "the last recovery point expires on 2026-04-09 12:00 UTC" in told


def test_long_names_of_roots_stay_within_what_a_source_may_be_called():
    long = essential.name_of("h" * 40, "/" + "x" * 60 + "/end")
    assert len(long) <= 64
    assert long.endswith("/end")
    assert essential.name_of("web1", "/data") == "web1:/data"
