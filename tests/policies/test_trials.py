"""Trials of buckets: how they come about, what they fix, how they end."""

import datetime as dt
from unittest import mock

import pytest
from django.db.models import Model

from accounts.models import Event
from accounts.services import SERVICE
from engine.connections.bucket import ArchiveBucket
from engine.errors import SourceUnavailable
from policies import connection, editions, services, trials
from policies.models import Edition, Plan, PlanState, Policy, Source
from tests.support.people import T0, make_account, make_point, make_policy, make_region, make_source, make_vault
from vaults import replication
from vaults import services as vault_services
from vaults.models import Region, Vault, VaultState

pytestmark = pytest.mark.django_db

BUCKET = {"endpoint": "http://127.0.0.1:9", "bucket": "shop"}
DAY = dt.timedelta(days=1)


@pytest.fixture(autouse=True)
def bucket_there():
    """A bucket that can be reached, and is of no archive class."""
    with mock.patch("policies.addresses.check"), mock.patch("engine.sources.bucket.BucketSource.check") as check:
        yield check


@pytest.fixture
def region(tmp_path) -> Region:
    return make_region(folder=tmp_path / "store")


@pytest.fixture
def bucket(region) -> Source:
    return make_source(make_account(), region, "shop", kind="bucket", host="", settings=BUCKET)


@pytest.fixture
def trial(bucket) -> trials.Trial:
    return trials.create(bucket, actor=SERVICE, now=T0)


def rows() -> list[type[Model]]:
    """Return of which of these there are rows."""
    return [model for model in (Source, Plan, Policy, Vault) if model._default_manager.exists()]


def convert(plan: Plan, *, policy: Policy | None = None, confirmed: bool = True, now: dt.datetime = T0) -> Plan:
    return trials.convert(plan, policy=policy, confirmed=confirmed, actor=SERVICE, now=now)


@pytest.mark.rule("A18", "A25", "A26", "A27")
def test_a_trial_needs_nothing_said_runs_daily_and_keeps_a_week(trial):
    plan = Plan.objects.get()
    (rule,) = plan.policy.rules.all()
    assert (plan.edition, plan.state) == (Edition.TRIAL, PlanState.ACTIVE)
    assert (rule.every, rule.unit, rule.cron, rule.weekdays) == (1, "day", "", [])
    assert (plan.policy.retention_days, plan.policy.inline) == (7, True)
    assert plan.start_minute < 360
    assert plan.next_run_at is not None
    assert T0 < plan.next_run_at <= T0 + DAY
    assert trial.recovery_key.startswith("BSRK-")


@pytest.mark.rule("A8")
def test_a_trial_lasts_thirty_days_and_costs_nothing_in_them(trial):
    vault = Vault.objects.get()
    assert (vault.trial_started_at, vault.trial_expires_at) == (T0, T0 + 30 * DAY)
    assert vault.trial_release_at == T0 + 38 * DAY
    moments = [T0 - DAY, T0, T0 + 29 * DAY, T0 + 30 * DAY]
    assert [vault.free_at(moment) for moment in moments] == [False, True, True, False]
    convert(trial.plan, now=T0 + 5 * DAY)
    assert [trial.plan.vault.free_at(T0 + days * DAY) for days in (4, 5)] == [True, False]


@pytest.mark.rule("A9")
@pytest.mark.parametrize("narrowed", [{"prefix": "a/"}, {"include": ["*.jpg"]}, {"exclude": ["*.tmp"]}])
def test_a_trial_covers_the_whole_bucket_when_it_begins_and_while_it_runs(bucket, narrowed):
    bucket.settings = BUCKET | narrowed
    with pytest.raises(editions.ScopeFixed) as refusal:
        trials.create(bucket, actor=SERVICE, now=T0)
    assert refusal.value.detail == {"fields": [*narrowed]}
    assert not Vault.objects.exists()
    bucket.settings = BUCKET
    plan = trials.create(bucket, actor=SERVICE, now=T0).plan
    bucket.settings = BUCKET | narrowed
    with pytest.raises(editions.ScopeFixed):
        services.save_source(bucket, skip_check=True, actor=SERVICE, now=T0)
    convert(plan)
    services.save_source(bucket, skip_check=True, actor=SERVICE, now=T0)


@pytest.mark.rule("A10")
def test_when_a_trial_runs_and_what_it_keeps_cannot_be_changed_before_it_is_converted(trial):
    policy = Policy.objects.get()
    (rule,) = policy.rules.all()
    rule.unit = "hour"
    with pytest.raises(editions.ScheduleFixed):
        services.save_policy(policy, rules=[rule], actor=SERVICE, now=T0)
    policy.retention_days = 30
    with pytest.raises(editions.RetentionFixed):
        services.save_policy(policy, actor=SERVICE, now=T0)
    convert(trial.plan)
    services.save_policy(policy, rules=[rule], actor=SERVICE, now=T0)


@pytest.mark.rule("A11")
def test_each_trial_has_a_vault_of_its_own_which_takes_no_other_plan(trial, bucket, region):
    other = make_source(bucket.account, region, "pictures", kind="bucket", host="", settings=BUCKET)
    second = trials.create(other, actor=SERVICE, now=T0).plan
    assert second.vault != trial.plan.vault
    full = Plan(source=other, policy=make_policy(bucket.account), vault=trial.plan.vault)
    with pytest.raises(services.PlanUnfit) as refusal:
        services.create_plan(full, actor=SERVICE, now=T0)
    assert refusal.value.code == "vault_of_a_trial"
    convert(trial.plan)
    full.vault.refresh_from_db()
    with pytest.raises(services.PlanUnfit):
        services.create_plan(full, actor=SERVICE, now=T0)


@pytest.mark.rule("A11")
def test_a_source_is_tried_once(trial, bucket):
    with pytest.raises(trials.TrialExists):
        trials.create(bucket, actor=SERVICE, now=T0)
    convert(trial.plan)
    with pytest.raises(trials.TrialExists):
        trials.create(bucket, actor=SERVICE, now=T0)
    assert Vault.objects.count() == 1


@pytest.mark.rule("A12")
def test_a_plan_that_was_converted_keeps_its_vault_for_ever(trial, bucket, region):
    vault = trial.plan.vault
    plan = convert(trial.plan, policy=make_policy(bucket.account, unit="week"))
    assert (plan.edition, plan.vault) == (Edition.STANDARD, vault)
    assert Policy.objects.get() == plan.policy
    plan.vault = make_vault(bucket.account, region, "another")
    with pytest.raises(Exception, match="stays its vault for ever") as refusal:
        plan.save()
    assert getattr(refusal.value, "code", "") == "vault_fixed"
    plan.refresh_from_db()
    assert plan.vault == vault


@pytest.mark.rule("A19")
def test_leaving_the_trial_takes_a_confirmation_and_is_recorded(trial):
    with pytest.raises(trials.ConversionUnconfirmed):
        convert(trial.plan, confirmed=False)
    assert Plan.objects.get().edition == Edition.TRIAL
    convert(trial.plan)
    assert Event.objects.filter(action="plan.convert", object_id=str(trial.plan.pk)).count() == 1
    with pytest.raises(trials.NotATrial):
        convert(trial.plan)


def test_the_policy_of_another_account_is_refused_at_the_conversion(trial):
    with pytest.raises(services.PlanUnfit):
        convert(trial.plan, policy=make_policy(make_account("other")))


@pytest.mark.rule("E10")
def test_the_vault_of_a_trial_is_not_replicated_before_the_conversion(trial, tmp_path):
    target = Vault(
        account=trial.plan.account, region=make_region("far", tmp_path / "far"), name="far", type="REPLICATION_TARGET"
    )
    vault = Vault.objects.get()
    with pytest.raises(replication.NotReplicable, match="vault of a trial"):
        replication.start(vault, target, actor=SERVICE, now=T0)


@pytest.mark.parametrize("kind", ["files", "smb"])
def test_only_buckets_are_tried(bucket, kind):
    bucket.kind = kind
    with pytest.raises(trials.TrialUnfit):
        trials.create(bucket, actor=SERVICE, now=T0)


@pytest.mark.rule("A6")
def test_a_trial_needs_a_region_that_is_set_up_for_buckets(bucket):
    make_region("able")
    Region.objects.filter(pk=bucket.region_id).update(supports_bucket_backup=False)
    bucket.refresh_from_db()
    with pytest.raises(Exception, match=r"Regions that are: able\."):
        trials.create(bucket, actor=SERVICE, now=T0)


@pytest.mark.rule("A3")
def test_a_bucket_of_an_archive_class_takes_no_plan_of_any_edition(bucket, region, bucket_there):
    plan = Plan(source=bucket, policy=make_policy(bucket.account), vault=make_vault(bucket.account, region))
    bucket_there.side_effect = ArchiveBucket("the bucket shop is of the class Archive")
    for make in (services.create_plan, lambda plan, **who: trials.create(plan.source, **who)):
        with pytest.raises(connection.ArchiveRefused, match=r"class Archive.*Standard or Infrequent") as refusal:
            make(plan, actor=SERVICE, now=T0)
        assert refusal.value.code == "archive_bucket"
    assert not Plan.objects.exists()


def test_a_bucket_that_cannot_be_looked_at_from_here_may_still_be_planned(bucket, bucket_there):
    bucket_there.side_effect = SourceUnavailable("nobody answers")
    assert trials.create(bucket, actor=SERVICE, now=T0).plan.edition == Edition.TRIAL


class TestRegisteringABucketWithItsPlan:
    @pytest.fixture
    def new(self, region) -> Source:
        return Source(account=make_account(), region=region, name="shop", kind="bucket", settings=BUCKET)

    @pytest.mark.rule("A24", "A25", "A26", "A27")
    def test_both_come_about(self, new):
        made = trials.register(new, skip_check=True, actor=SERVICE, now=T0)
        assert made.plan.source == Source.objects.get()
        assert (made.plan.edition, made.plan.policy.retention_days) == (Edition.TRIAL, 7)

    @pytest.mark.rule("A24")
    def test_without_the_plan_there_is_no_source(self, new):
        with mock.patch("policies.services.bind", side_effect=services.PlanUnfit("no")):
            with pytest.raises(services.PlanUnfit):
                trials.register(new, skip_check=True, actor=SERVICE, now=T0)
        assert rows() == []

    @pytest.mark.rule("A24")
    def test_without_the_source_there_is_no_plan(self, new):
        make_source(new.account, new.region, "shop")
        with pytest.raises(Exception, match="already exists"):
            trials.register(new, skip_check=True, actor=SERVICE, now=T0)
        assert rows() == [Source]

    @pytest.mark.rule("A24")
    def test_without_a_store_for_the_vault_there_is_neither(self, new):
        Region.objects.update(url="/proc/nowhere")
        new.region.refresh_from_db()
        with pytest.raises(vault_services.RegionUnusable):
            trials.register(new, skip_check=True, actor=SERVICE, now=T0)
        assert rows() == []


class TestTheEnd:
    def test_a_trial_that_is_over_runs_no_more_and_is_not_resumed(self, trial):
        assert not trials.ended(now=T0 + 30 * DAY - dt.timedelta(seconds=1))
        over = T0 + 30 * DAY
        (plan,) = trials.ended(now=over)
        assert trials.end(plan, now=over)
        assert not trials.end(plan, now=over)
        plan.refresh_from_db()
        assert (plan.state, plan.next_run_at) == (PlanState.PAUSED, None)
        assert Event.objects.filter(action="plan.trial_end").count() == 1
        with pytest.raises(editions.TrialEnded, match="Convert the plan"):
            services.resume(plan, actor=SERVICE, now=over)

    def test_it_can_be_converted_until_its_vault_goes_and_runs_again(self, trial):
        late = T0 + 35 * DAY
        trials.end(trial.plan, now=late)
        plan = convert(Plan.objects.select_related("vault", "policy").get(), now=late)
        assert plan.state == PlanState.ACTIVE
        assert plan.next_run_at is not None
        assert plan.next_run_at > late
        assert not trials.to_release(now=T0 + 365 * DAY)

    def test_the_vault_goes_after_its_release_time_with_the_plan(self, trial):
        assert not trials.to_release(now=T0 + 38 * DAY - dt.timedelta(seconds=1))
        (vault,) = trials.to_release(now=T0 + 38 * DAY)
        gone = trials.release(vault, now=T0 + 38 * DAY)
        assert gone.state == VaultState.DELETING
        assert rows() == [Source, Vault]
        assert not trials.to_release(now=T0 + 38 * DAY)
        with pytest.raises(trials.TrialReleased):
            convert(trial.plan)

    def test_what_the_vault_locks_stays_until_the_lock_ends(self, trial):
        vault = Vault.objects.get()
        vault_services.make_immutable(vault, days=90, confirmation=vault.name, actor=SERVICE, now=T0)
        until = T0 + 90 * DAY
        with mock.patch("vaults.deletion.locked_until", return_value=until):
            gone = trials.release(vault, now=T0 + 38 * DAY)
        assert (gone.state, gone.deletable_at) == (VaultState.DELETING, until)

    def test_a_vault_with_points_that_somebody_holds_stays(self, trial, bucket):
        make_point(trial.plan.vault, bucket, held_at=T0)
        assert not trials.to_release(now=T0 + 365 * DAY)
