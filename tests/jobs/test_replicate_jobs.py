"""Replication as jobs: a target follows by itself, tells how far it has come, and restores without its source."""

import dataclasses
import datetime as dt
import shutil
from pathlib import Path
from typing import Any

import pytest

from accounts.metering import Meter
from accounts.models import Usage
from accounts.services import SERVICE
from engine import rotation
from engine.errors import Canceled, Forbidden, Unavailable, VaultReadOnly
from engine.storage import Directory, Storage
from engine.verbs import replicate as engine_replicate
from jobs import maintenance, meters, presence, removal, services
from jobs.models import Duty, Job
from jobs.progress import StepProgress
from jobs.services import Selection
from jobs.states import JobState, Kind
from policies import reading
from policies.kinds import TYPES
from tests.support.control import read_tree
from tests.support.people import T0
from tests.support.story import Story
from vaults import replication, repositories
from vaults.models import LinkState, RecoveryPoint, Region, ReplicationLink, Vault, VaultType
from vaults.services import save_region

pytestmark = pytest.mark.django_db


@pytest.fixture
def story(tmp_path: Path) -> Story:
    """A vault with one point, whose replication to another region has just begun."""
    story = Story(tmp_path)
    story.backup()
    far = save_region(Region(name="far", url=str(tmp_path / "far")), actor=SERVICE, now=T0)
    presence.seen("w", [far.queue], now=T0)
    target = Vault(account=story.site.account, region=far, name="replica", type=VaultType.REPLICATION_TARGET)
    replication.start(story.site.vault, target, actor=SERVICE, now=story.now)
    return story


def link() -> ReplicationLink:
    return ReplicationLink.objects.select_related("target__region", "target__account", "source").get()


def replicate(story: Story) -> Job:
    return story.do(maintenance.request(link().target, Kind.REPLICATE, {}, actor=SERVICE, now=story.clock()))


def expire(story: Story, vault: Vault) -> Job:
    return story.do(maintenance.request(vault, Kind.EXPIRE, {"confirmed": True}, actor=SERVICE, now=story.clock()))


def names(vault: Vault) -> set[str]:
    return set(vault.points.values_list("point_id", flat=True))


@pytest.mark.rule("E3", "E27", "E48")
def test_all_points_come_by_themselves_and_each_new_one_soon_after_its_backup(story):
    story.pass_minutes(20)
    assert names(link().target) == names(story.site.vault)
    story.backup(more=b"more" * 1000)
    assert Duty.objects.get(vault=link().target, kind=Kind.REPLICATE).due_at <= story.now
    [job] = [job for job in story.sweep() if job.kind == Kind.REPLICATE]
    assert (job.state, job.report["points"], job.vault) == (JobState.COMPLETE, 1, link().target)
    assert names(link().target) == names(story.site.vault)
    assert len(names(link().target)) == 2


@pytest.mark.rule("E4", "E35")
def test_progress_is_told_in_points_and_seconds(story):
    story.backup(more=b"new")
    story.clock.now += dt.timedelta(seconds=90)
    assert replication.lag_s(link(), now=story.now) >= 90
    assert (link().historical_total, link().historical_done) == (1, 0)
    replicate(story)
    after = link()
    assert (after.historical_done, after.points_behind, replication.lag_s(after, now=story.now)) == (1, 0, 0)
    assert after.latest_at == max(point.completed_at for point in story.rows())
    assert after.bytes_replicated > 0
    assert after.checked_at is not None


def damaged_pack(store: Path) -> Path:
    """Flip a bit in the store's largest pack and return where it is."""
    pack = max((path for path in store.rglob("packs/*/*") if path.is_file()), key=lambda p: p.stat().st_size)
    data = bytearray(pack.read_bytes())
    data[5000] ^= 1
    pack.chmod(0o600)
    pack.write_bytes(data)
    return pack


def common(tmp_path: Path) -> int:
    """Return the bytes of the objects that are the same at both ends, but for those that both ends were made with."""
    here, there = (
        {path.relative_to(top): path.read_bytes() for path in top.rglob("*") if path.is_file()}
        for end in ("store", "far")
        for top in (tmp_path / end / "vaults").iterdir()
    )
    made_at_both = ("vault.json", "sessions")
    same = (data for name, data in here.items() if name.parts[0] not in made_at_both and there.get(name) == data)
    return sum(map(len, same))


class Broken:
    """A finish that fails so many times with one error."""

    def __init__(self, error: Exception, times: int) -> None:
        self._error, self._left, self._finish = error, times, engine_replicate.finish

    def __call__(self, *args: Any, **options: Any) -> Any:
        self._left -= 1
        if self._left >= 0:
            raise self._error
        return self._finish(*args, **options)


@pytest.mark.rule("E43")
class TestTraffic:
    def metered(self, story: Story) -> int:
        meters.meter_account(story.site.account, story.now.date(), now=story.now)
        rows = Usage.objects.filter(meter=Meter.REPLICATION_BYTES).values_list("quantity", flat=True)
        return int(sum(rows))

    def test_every_byte_that_came_counts(self, story, tmp_path):
        story.backup(two=b"2" * 5000)
        job = replicate(story)
        assert link().bytes_replicated == job.report["bytes"] == common(tmp_path) == self.metered(story) > 5000

    def test_what_came_before_a_job_was_planned_anew_counts_once(self, story, tmp_path, monkeypatch):
        broken = Broken(Unavailable("away for a moment"), 1)
        monkeypatch.setattr(engine_replicate, "finish", broken)
        job = replicate(story)
        assert (job.state, job.round) == (JobState.RUNNING, 1)
        story.clock.now += dt.timedelta(minutes=1)
        story.do(job)
        assert (job.state, job.round) == (JobState.COMPLETE, 2)
        assert link().bytes_replicated == job.report["bytes"] == common(tmp_path) == self.metered(story)

    def test_what_a_job_brought_that_failed_at_last_counts(self, story, tmp_path, monkeypatch):
        monkeypatch.setattr(engine_replicate, "finish", Broken(VaultReadOnly("no"), 1))
        assert replicate(story).state == JobState.FAILED
        assert link().bytes_replicated == self.metered(story) == common(tmp_path) > 0
        replicate(story)
        assert link().bytes_replicated == common(tmp_path)

    @pytest.mark.parametrize(("error", "state"), [(Canceled, JobState.CANCELED), (Forbidden, JobState.FAILED)])
    def test_what_came_before_a_step_was_broken_off_counts(self, story, tmp_path, monkeypatch, error, state):
        relay, add, keys = Directory.relay, StepProgress.add, []

        def one_pack(self: Directory, key: str, source: Storage, *, size: int, sha256: str) -> None:
            keys.append(key)
            if len(keys) > 1:
                raise error("no further")
            relay(self, key, source, size=size, sha256=sha256)

        def counted(self: StepProgress, **counts: int) -> None:
            if error is Canceled:
                services.request_cancel(Job.objects.get(state=JobState.RUNNING), actor=SERVICE, now=story.now)
            add(self, **counts)

        story.backup(two=b"2" * 5000)
        monkeypatch.setattr(engine_replicate, "AT_ONCE", 1)
        monkeypatch.setattr(Directory, "relay", one_pack)
        monkeypatch.setattr(StepProgress, "add", counted)
        assert replicate(story).state == state
        assert link().bytes_replicated == self.metered(story) == common(tmp_path) > 0
        monkeypatch.undo()
        replicate(story)
        assert link().bytes_replicated == common(tmp_path)

    def test_what_healed_an_end_counts(self, story, tmp_path):
        replicate(story)
        before = link().bytes_replicated
        pack = damaged_pack(tmp_path / "store")
        assert story.maintain(Kind.VERIFY, level="scrub").state == JobState.FAILED
        job = replicate(story)
        assert link().bytes_replicated - before == job.report["bytes"] == pack.stat().st_size
        assert replicate(story).report["bytes"] == 0


@pytest.mark.rule("E48")
def test_nobody_sets_how_often(story):
    with pytest.raises(Exception, match="Must be one of"):
        maintenance.set_intervals(link().target, {"replicate": 60}, actor=SERVICE, now=story.now)


def test_a_general_vault_has_no_duty_to_follow(story):
    story.sweep()
    assert not Duty.objects.filter(vault=story.site.vault, kind=Kind.REPLICATE).exists()


@pytest.mark.rule("E2", "E36")
def test_the_target_restores_alone_when_the_sources_region_is_lost(story, tmp_path):
    replicate(story)
    shutil.rmtree(tmp_path / "store")
    point = RecoveryPoint.objects.get(vault=link().target)
    out = tmp_path / "out"
    out.mkdir()
    story.site.source.region = link().target.region  # a host of the target's region (C25)
    story.site.source.save()
    presence.seen("w", [story.site.source.queue], now=story.now)
    job = story.do(services.request_restore(point, Selection(to=str(out)), actor=SERVICE, now=story.clock()))
    assert (job.state, job.error) == (JobState.COMPLETE, "")
    assert read_tree(out / str(story.site.files)[1:]) == read_tree(story.site.files)


@pytest.mark.rule("E13")
def test_a_kind_that_is_not_restored_from_a_target_is_refused_there_and_not_at_its_source(story, monkeypatch):
    replicate(story)
    monkeypatch.setitem(TYPES, "files", dataclasses.replace(TYPES["files"], from_replica=False))
    copy = RecoveryPoint.objects.get(vault=link().target)
    with pytest.raises(reading.DestinationUnfit, match="Restore from the vault it follows") as refused:
        services.request_restore(copy, Selection(), actor=SERVICE, now=story.clock())
    assert refused.value.code == "not_from_replica"
    presence.seen("w", [story.site.source.queue], now=story.now)
    own = story.site.vault.points.get()
    assert services.request_restore(own, Selection(), actor=SERVICE, now=story.clock()).point == own


@pytest.mark.rule("E15")
def test_what_expires_at_the_source_expires_at_the_target_by_its_own_retention_and_not_before(story):
    story.change_policy(retention_days=3, keep_at_least_one=False)
    story.backup(two=b"2")
    replicate(story)
    replica = link().target
    RecoveryPoint.objects.filter(vault=replica).update(retention_days=0)  # the rows are not what counts
    story.clock.now += dt.timedelta(days=4)
    assert expire(story, replica).state == JobState.COMPLETE
    assert len(names(replica)) == 2
    assert story.expire(confirmed=True).state == JobState.COMPLETE
    assert names(story.site.vault) == set()
    assert expire(story, replica).state == JobState.COMPLETE
    assert len(names(replica)) == 1  # that one came with a longer retention
    replicate(story)
    assert len(names(replica)) == 1


@pytest.mark.rule("E7", "E17", "E18", "E19")
def test_after_the_end_points_go_by_the_retention_that_they_came_with_the_last_one_too(story):
    story.change_policy(retention_days=3, keep_at_least_one=True)
    story.backup(two=b"2")
    replicate(story)
    replication.stop(story.site.vault, confirmation="vault", actor=SERVICE, now=story.clock())
    replica = link().target
    story.clock.now += dt.timedelta(days=4)
    assert expire(story, replica).state == JobState.COMPLETE
    assert {point.retention_days for point in replica.points.all()} == {30}
    for point in RecoveryPoint.objects.filter(vault=replica):
        done = removal.delete_point(point, confirmation=point.source_name, actor=SERVICE, now=story.clock())
        assert story.do(done).state == JobState.COMPLETE
    assert names(replica) == set()
    assert names(story.site.vault) != set()


@pytest.mark.rule("E40")
def test_after_the_end_nothing_comes(story):
    replicate(story)
    replication.stop(story.site.vault, confirmation="vault", actor=SERVICE, now=story.clock())
    story.backup(two=b"2")
    story.pass_minutes(40)
    assert len(names(link().target)) == 1
    assert link().state == LinkState.STOPPED
    assert replicate(story).error_code == "vault_read_only"


def test_a_prune_of_the_target_spares_what_is_to_come_and_frees_the_rest(story):
    replicate(story)
    job = story.do(maintenance.request(link().target, Kind.PRUNE, {}, actor=SERVICE, now=story.clock()))
    assert (job.state, job.report["packs_deleted"]) == (JobState.COMPLETE, 0)


def test_a_target_is_not_compacted_while_it_follows(story):
    story.sweep()
    Duty.objects.filter(kind=Kind.COMPACT).update(due_at=story.now)
    assert {job.vault for job in story.sweep() if job.kind == Kind.COMPACT} == {story.site.vault}


def test_a_new_data_key_comes_along(story):
    vault = repositories.open_vault(story.site.vault)
    rotation.rotate(vault, repositories.provider(story.site.vault), now=story.now, new_data_key=True)
    story.backup(two=b"2")
    job = replicate(story)
    assert (job.state, job.error) == (JobState.COMPLETE, "")
    verified = maintenance.request(link().target, Kind.VERIFY, {"level": "content"}, actor=SERVICE, now=story.clock())
    assert story.do(verified).state == JobState.COMPLETE


def test_damage_at_the_source_is_healed_from_the_target_and_told(story, tmp_path):
    replicate(story)
    pack = damaged_pack(tmp_path / "store")
    assert story.maintain(Kind.VERIFY, level="scrub").state == JobState.FAILED
    job = replicate(story)
    assert (job.state, job.report["healed_at_source"]) == (JobState.COMPLETE, [pack.name])
    assert story.maintain(Kind.VERIFY, level="content").state == JobState.COMPLETE


def test_while_the_sources_region_is_away_a_replication_fails_and_the_next_one_goes_on(story, tmp_path):
    story.backup(two=b"2")
    (tmp_path / "store").rename(tmp_path / "away")
    job = replicate(story)
    assert job.state == JobState.FAILED
    assert names(link().target) == set()
    (tmp_path / "away").rename(tmp_path / "store")
    assert replicate(story).state == JobState.COMPLETE
    assert len(names(link().target)) == 2
