"""What the editions of plans lay down, one by one."""

import datetime as dt
from typing import Any

import pytest

from accounts.services import SERVICE
from engine.patterns import Selection, Verdict
from policies import editions, limits, services
from policies.models import Edition, Plan, Policy, Priority, Rule
from tests.support.people import T0, make_policy, make_region, make_source, make_vault, whole_plan
from vaults.models import NotInRegion

LINUX = (
    *("/bin/", "/usr/bin/", "/sbin/", "/boot/", "/proc/", "/sys/", "/srv/", "/lib/", "/selinux/", "/usr/sbin/"),
    *("/run/", "/lib32/", "/lib64/", "/lost+found/"),
)
WINDOWS = (
    *("Windows\\", "python27\\", "Program Files (x86)\\", "Program Files\\", "ProgramData\\", "Boot\\"),
    *("$RECYCLE.BIN\\", "System Volume Information\\"),
    *("Users\\Administrator\\NTUSER.DAT", "pagefile.sys", "Users\\Administrator\\ntuser.dat.LOG1"),
)


def verdict(path: str, *, folder: bool = False) -> Verdict:
    return Selection([], editions.excluded_patterns(path[:2] if path[1:2] == ":" else "/")).verdict(
        path.encode(), folder=folder
    )


@pytest.mark.rule("C50")
@pytest.mark.parametrize("path", LINUX)
def test_a_linux_system_folder_stays_out_with_all_that_is_in_it(path):
    assert verdict(path.strip("/"), folder=True) is Verdict.SKIP
    assert verdict(f"{path.strip('/')}/deep/file") is Verdict.SKIP
    assert verdict(f"home/ann{path}file") is Verdict.KEEP
    assert verdict(f"{path.strip('/')}x/file") is Verdict.KEEP
    assert editions.is_excluded(path)
    assert editions.is_excluded(f"{path}data")
    assert not editions.is_excluded(f"/home{path}")


@pytest.mark.rule("C50")
def test_the_list_of_linux_folders_is_whole_and_points_out_where_data_may_lie():
    assert editions.LINUX_EXCLUDED == LINUX
    assert "data of their own" in editions.EXCLUDED_NOTES["/srv/"]


@pytest.mark.rule("C51")
@pytest.mark.parametrize("path", WINDOWS)
@pytest.mark.parametrize("case", [str.upper, str.lower, str.title, str])
def test_a_windows_path_stays_out_of_every_drive_in_any_case_of_letters(path, case):
    spelled = case(path.replace("\\", "/"))
    inside = f"{spelled}deep/file" if path.endswith("\\") else spelled
    assert verdict(f"C:/{inside}") is Verdict.SKIP
    assert verdict(f"d:/{inside}") is Verdict.SKIP
    assert verdict(f"C:/Users/ann/{inside}") is Verdict.KEEP
    assert verdict(f"C:/x{inside}") is Verdict.KEEP


@pytest.mark.rule("C51")
def test_the_list_of_windows_paths_is_whole():
    assert editions.WINDOWS_EXCLUDED == WINDOWS


@pytest.mark.rule("C10", "C15")
@pytest.mark.parametrize(
    ("priority", "bytes_per_s", "parallel_max"), [(Priority.LOW, 10_000_000, 1), (Priority.HIGH, 30_000_000, 2)]
)
@pytest.mark.django_db
def test_a_priority_is_a_rate_and_a_number_of_steps(priority, bytes_per_s, parallel_max):
    plan = whole_plan()
    assert editions.limits_of(plan) == (0, 0)
    plan.edition, plan.priority = Edition.ESSENTIAL, priority
    assert editions.limits_of(plan) == (bytes_per_s, parallel_max)
    found = limits.of(plan)
    assert (found.bytes_per_s, found.parallel_max) == (bytes_per_s, parallel_max)


@pytest.mark.rule("C53")
@pytest.mark.parametrize(
    ("priority", "limit", "named"),
    [(Priority.LOW, 600 * 2**30, "600 GiB with low"), (Priority.HIGH, 2 * 2**40, "2 TiB with high")],
)
def test_above_its_size_a_host_is_warned_that_a_run_may_outlast_a_day(priority, limit, named):
    plan = Plan(edition=Edition.ESSENTIAL, priority=priority)
    assert editions.long_run_warning(plan, bytes_total=limit) == ""
    assert named in editions.long_run_warning(plan, bytes_total=limit + 1)
    assert editions.long_run_warning(Plan(priority=priority), bytes_total=limit + 1) == ""


def check(edition: str, rules: tuple[Rule, ...] = (Rule(),), **values: Any) -> None:
    editions.check_policy(edition, Policy(**{"retention_days": editions.TERMS[edition].days_max} | values), rules)


@pytest.mark.rule("C9")
@pytest.mark.parametrize("days", [1, 29, 31, 365, None])
def test_essential_host_backup_keeps_points_for_thirty_days_and_nothing_else(days):
    check(Edition.ESSENTIAL)
    with pytest.raises(editions.RetentionFixed, match="for 30 days, not"):
        check(Edition.ESSENTIAL, retention_days=days)
    if days:
        with pytest.raises(editions.RetentionFixed, match="for 30 days, not"):
            check(Edition.ESSENTIAL, (Rule(retention_days=days),))


@pytest.mark.rule("A26")
@pytest.mark.parametrize("days", [6, 8, 30, None])
def test_a_trial_keeps_points_for_seven_days_and_nothing_else(days):
    check(Edition.TRIAL)
    with pytest.raises(editions.RetentionFixed, match="for 7 days, not"):
        check(Edition.TRIAL, retention_days=days)


def test_a_clusters_points_stay_one_to_thirty_days_and_those_of_other_plans_for_any_time():
    for days in (1, 7, 30):
        check(Edition.CLUSTER, retention_days=days)
    with pytest.raises(editions.RetentionFixed, match="1 to 30 days, not 31 days"):
        check(Edition.CLUSTER, retention_days=31)
    check(Edition.STANDARD, retention_days=None, keep_yearly=10)


@pytest.mark.parametrize("count", editions.COUNTS)
@pytest.mark.parametrize("edition", [Edition.ESSENTIAL, Edition.TRIAL])
def test_where_the_days_are_fixed_no_count_keeps_points_longer(edition, count):
    with pytest.raises(editions.RetentionFixed, match="nothing but the newest longer"):
        check(edition, (Rule(),), **{count: 1})


@pytest.mark.rule("A10")
@pytest.mark.parametrize(
    "rules",
    [
        (Rule(every=2),),
        (Rule(unit="hour"),),
        (Rule(cron="0 3 * * *"),),
        (Rule(weekdays=[1]),),
        (Rule(), Rule()),
        (Rule(start_time=dt.time(3)),),
    ],
)
def test_a_trial_runs_once_a_day_when_it_was_drawn_to(rules):
    with pytest.raises(editions.ScheduleFixed):
        check(Edition.TRIAL, rules)
    with pytest.raises(editions.ScheduleFixed):
        editions.check_start(Plan(edition=Edition.TRIAL))


@pytest.mark.rule("C11")
def test_essential_host_backup_runs_once_a_day_at_a_time_that_may_change():
    check(Edition.ESSENTIAL, (Rule(start_time=dt.time(3)),))
    editions.check_start(Plan(edition=Edition.ESSENTIAL))
    with pytest.raises(editions.ScheduleFixed):
        check(Edition.ESSENTIAL, (Rule(every=2),))


@pytest.mark.django_db
def test_a_policy_in_use_keeps_to_what_the_editions_of_its_plans_lay_down():
    plan = whole_plan()
    Plan.objects.update(edition=Edition.ESSENTIAL)
    plan.policy.retention_days = 60
    with pytest.raises(editions.RetentionFixed):
        services.save_policy(plan.policy, actor=SERVICE, now=T0)
    assert Policy.objects.get().retention_days == 30


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("kind", "feature", "rule"),
    [
        pytest.param("bucket", "supports_bucket_backup", "A6", marks=pytest.mark.rule("A6")),
        pytest.param("files", "supports_host_backup", "C55", marks=pytest.mark.rule("C55")),
    ],
)
def test_where_a_region_is_not_set_up_a_plan_is_refused_with_the_regions_that_are(kind, feature, rule):
    plan = whole_plan()
    make_region("able")
    setattr(plan.source.region, feature, False)
    plan.source.region.save()
    own = {"bucket": {"host": "", "settings": {"endpoint": "http://127.0.0.1:9", "bucket": "shop"}}, "files": {}}
    source = make_source(plan.account, plan.source.region, "other", kind=kind, **own[kind])
    new = Plan(source=source, policy=plan.policy, vault=plan.vault)
    with pytest.raises(NotInRegion, match=r"Regions that are: able\.") as refusal:
        services.create_plan(new, actor=SERVICE, now=T0)
    assert (refusal.value.code, refusal.value.detail) == ("not_in_region", {"regions": ["able"]})


@pytest.mark.rule("A14", "A15")
@pytest.mark.django_db
def test_full_plans_of_buckets_choose_their_policies_and_share_a_vault():
    first = whole_plan()
    hourly = make_policy(first.account, "hourly", unit="hour", every=6)
    vault = make_vault(first.account, first.vault.region, "all buckets")
    for name, policy in (("a", hourly), ("b", first.policy), ("c", hourly)):
        settings = {"endpoint": "http://127.0.0.1:9", "bucket": f"bucket-{name}", "prefix": "photos/"}
        source = make_source(first.account, first.vault.region, name, kind="bucket", host="", settings=settings)
        services.create_plan(Plan(source=source, policy=policy, vault=vault), actor=SERVICE, now=T0)
    assert vault.plans.count() == 3
