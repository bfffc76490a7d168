"""Prune, compaction, lock audit and rebuild as jobs: what they do to the vault, what they tell, what they wait for."""

import random

import pytest

from accounts.services import SERVICE
from engine.ids import new_ulid
from engine.session import Session
from jobs import executors, maintenance, removal
from jobs.models import Duty, Job
from jobs.states import JobState, Kind
from tests.support.story import Story
from vaults import repositories
from vaults.models import RecoveryPoint

pytestmark = pytest.mark.django_db


@pytest.fixture
def story(tmp_path) -> Story:
    """Three points; what the second alone needs is a pack of about a megabyte."""
    story = Story(tmp_path)
    story.backup()
    story.backup(big=random.Random(1).randbytes(1 << 20))
    story.backup(big=random.Random(2).randbytes(1 << 20))
    return story


def delete(story: Story, number: int = 1) -> None:
    """Delete a point, counted from the oldest."""
    point = story.rows()[number]
    story.do(removal.delete_point(point, confirmation=point.source_name, actor=SERVICE, now=story.now))


def packs(story: Story) -> int:
    """Return the bytes of all packs in the vault."""
    return sum(stored.size for stored in repositories.storage(story.site.vault).scan("packs/"))


class TestPrune:
    def test_a_dry_run_tells_what_would_go_and_deletes_nothing(self, story):
        delete(story)
        before = packs(story)
        job = story.maintain(Kind.PRUNE, dry_run=True)
        assert job.state == JobState.COMPLETE
        assert job.report["bytes_unneeded"] > 1 << 20
        assert packs(story) == before

    def test_what_only_a_deleted_point_needed_is_freed_and_the_rest_restores(self, story):
        delete(story)
        before = packs(story)
        job = story.maintain(Kind.PRUNE)
        assert (job.state, job.error) == (JobState.COMPLETE, "")
        assert job.report["bytes_freed"] > 1 << 20
        assert packs(story) < before - (1 << 20)
        verified = story.maintain(Kind.VERIFY, level="content")
        assert (verified.state, verified.error) == (JobState.COMPLETE, "")

    def test_nothing_that_a_point_needs_goes(self, story):
        job = story.maintain(Kind.PRUNE)
        assert (job.state, job.report["packs_deleted"]) == (JobState.COMPLETE, 0)

    def test_what_it_waits_for_is_kept_and_the_next_one_comes_soon_and_ends_it(self, story, settings):
        settings.MAINTENANCE_EVERY_S = dict.fromkeys(settings.MAINTENANCE_EVERY_S, 0) | {"prune": 86_400}
        maintenance.complete_duties([story.site.vault], now=story.now)
        delete(story)
        vault = repositories.open_vault(story.site.vault)
        # It began before the packs it might rely on were seen to be unneeded: the prune must ask it out.
        session = Session.open(vault.storage, vault.keys, name=new_ulid(story.now), verb="backup", now=story.now)
        story.maintain(Kind.PRUNE)
        session.close("done", story.now)
        session = Session.open(vault.storage, vault.keys, name=new_ulid(story.now), verb="backup", now=story.now)
        waiting = story.maintain(Kind.PRUNE)
        assert waiting.state == JobState.PARTIAL_COMPLETE
        assert waiting.report["waiting"] == [session.name]
        duty = Duty.objects.get(kind=Kind.PRUNE)
        assert (duty.waiting, duty.last_job) == ([session.name], waiting)
        session.close("done", story.now)
        story.clock.now += maintenance.SOON * 6
        (job,) = story.sweep()
        assert (job.state, job.report["bytes_freed"] > 1 << 20) == (JobState.COMPLETE, True)
        duty.refresh_from_db()
        assert duty.waiting == []

    def test_a_vault_that_lacks_something_is_not_pruned_and_the_job_says_what_to_do(self, story, tmp_path):
        delete(story)
        *_, listed = repositories.open_vault(story.site.vault).catalogue()
        assert listed.root is not None
        lost = listed.root.needed[0].name
        (path,) = (tmp_path / "store" / story.site.vault.prefix).rglob(lost)
        path.unlink()
        before = packs(story)
        job = story.maintain(Kind.PRUNE)
        assert (job.state, job.error_code) == (JobState.FAILED, "vault_inconsistent")
        assert "Verify the vault" in job.error
        assert lost in job.report["problems"][0]["path"]
        assert packs(story) == before


def test_a_compaction_frees_the_dead_half_of_packs_and_what_is_left_restores(tmp_path):
    story = Story(tmp_path)
    rng = random.Random(3)
    files = {f"f{number:02d}": rng.randbytes(200_000) for number in range(20)}
    story.backup(**files)
    for number in range(15):
        (story.site.files / f"f{number:02d}").unlink()
    story.backup()
    delete(story, 0)
    story.maintain(Kind.PRUNE)
    before = packs(story)
    told = story.maintain(Kind.COMPACT, dry_run=True)
    assert told.report["choice"]["bytes_freed"] > 2_000_000
    assert packs(story) == before
    job = story.maintain(Kind.COMPACT)
    assert (job.state, job.error) == (JobState.COMPLETE, "")
    assert job.report["packs_moved"] >= 1
    story.maintain(Kind.PRUNE)
    assert packs(story) < before - 2_000_000
    verified = story.maintain(Kind.VERIFY, level="content")
    assert (verified.state, verified.error) == (JobState.COMPLETE, "")


def test_an_audit_of_a_vault_without_locks_is_complete_and_says_so(story):
    job = story.maintain(Kind.AUDIT)
    assert (job.state, job.error, job.report["days"]) == (JobState.COMPLETE, "", 0)
    assert job.report["level"] == "application-level retention"


def test_an_audit_that_finds_a_forged_policy_fails_the_job(story):
    repositories.storage(story.site.vault).put(f"locks/policy/{new_ulid(story.now)}", b'{"days": 0}\nforged')
    job = story.maintain(Kind.AUDIT)
    assert (job.state, job.error_code) == (JobState.FAILED, "locks_broken")
    assert job.report["problems"][0]["reason"] == "policy"


def test_a_rebuild_brings_back_the_index_the_rows_and_the_holds(story, tmp_path):
    held = removal.hold(story.rows()[0], reason="court case", actor=SERVICE, now=story.now)
    rows = {row.point_id for row in story.rows()}
    RecoveryPoint.objects.all().delete()
    for segment in (tmp_path / "store" / story.site.vault.prefix / "index").rglob("*/*"):
        segment.unlink()
    job = story.maintain(Kind.REBUILD)
    assert (job.state, job.error) == (JobState.COMPLETE, "")
    assert (job.report["points_found"], job.report["points_added"]) == (3, 3)
    assert job.report["packs_listed"] > 0
    assert {row.point_id for row in story.rows()} == rows
    again = RecoveryPoint.objects.get(point_id=held.point_id)
    assert (again.held_at, again.hold_reason) == (held.held_at, "court case")


def test_the_recurring_verification_reads_a_share_of_the_vault(story, settings):
    settings.MAINTENANCE_EVERY_S = dict.fromkeys(settings.MAINTENANCE_EVERY_S, 0) | {"verify": 86_400}
    for _ in range(20):
        story.backup(big=random.Random(story.now.timestamp()).randbytes(300_000))
    story.sweep()
    story.pass_days(1)
    job = Job.objects.get(kind=Kind.VERIFY)
    assert (job.settings, job.state) == ({"level": "scrub", "days": 30}, JobState.COMPLETE)
    whole = story.maintain(Kind.VERIFY, level="scrub")
    assert 0 < job.report["bytes"] < whole.report["bytes"]


def test_every_recurring_kind_has_an_executor():
    assert set(Kind) - {Kind.DRILL, Kind.DISASTER} <= set(executors.EXECUTORS)
