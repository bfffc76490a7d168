"""A vault that is to be deleted goes as far as its locks allow at once, and wholly when the last ended (E41, B6)."""

import datetime as dt
from pathlib import Path

import pytest

from accounts.services import SERVICE
from engine.locks import extend_base
from engine.point import point_key
from jobs import erasure, executors, local, presence, services
from jobs.models import Job
from jobs.services import Selection, VaultUnfit
from jobs.states import JobState, Kind
from tests.support.control import Clock, Site, make_site, read_tree
from vaults import deletion, repositories
from vaults.models import Vault, VaultState

pytestmark = [pytest.mark.django_db, pytest.mark.rule("E41")]
DAY = dt.timedelta(days=1)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def site(tmp_path: Path, clock: Clock) -> Site:
    site = make_site(tmp_path)
    backed_up(site, clock)
    return site


def backed_up(site: Site, clock: Clock) -> Job:
    job = local.do(services.request_backup(site.plan, actor=SERVICE, now=clock()), clock=clock)
    assert job.state == JobState.COMPLETE
    return job


def lock(site: Site, until: dt.datetime) -> None:
    """Lock the newest point and what it needs, as a backup into an immutable vault does."""
    vault = repositories.open_vault(site.vault)
    row = site.vault.points.first()
    assert row is not None
    name = vault.find(row.point_id)
    root = vault.root(name)
    for part in ("root", "commit"):
        vault.storage.extend_lock(point_key(*name, part), until=until)
    for stored in list(vault.storage.scan("")):
        if any(pack.name in stored.key for pack in root.needed):
            vault.storage.extend_lock(stored.key, until=until)
    extend_base(vault, until=until)
    site.vault.points.filter(pk=row.pk).update(locked_until=until)


def deleted(site: Site, clock: Clock) -> Vault:
    site.plan.delete()
    site.vault.refresh_from_db()
    return deletion.request(site.vault, confirmation="vault", actor=SERVICE, now=clock())


def swept(clock: Clock, times: int = 6) -> list[str]:
    """Let the sweep start jobs and do them, as often as told; return their kinds."""
    kinds = []
    for _ in range(times):
        clock.now += dt.timedelta(minutes=6)
        for job in erasure.sweep(now=clock.now, rows_max=10):
            kinds.append(local.do(job, clock=clock).kind)
    return kinds


def store(site: Site) -> list[Path]:
    """Return the vault's objects, without what is on its way between workers and what the folder keeps for itself."""
    place = Path(site.region.url) / site.vault.prefix
    inside = [path for path in place.rglob("*") if path.is_file()]
    return [path for path in inside if not str(path.relative_to(place)).startswith((".", "staging/"))]


def test_without_locks_one_job_deletes_all_of_it(site, clock):
    assert len(store(site)) > 5
    deleted(site, clock)
    assert swept(clock) == [Kind.ERASE]
    assert store(site) == []
    vault = Vault.objects.get()
    assert (vault.state, vault.points.count()) == (VaultState.DELETED, 0)
    job = Job.objects.get(kind=Kind.ERASE)
    assert (job.state, job.report["objects_deleted"] > 5) == (JobState.COMPLETE, True)
    for job in Job.objects.all():
        assert executors.clean(job, clock=clock)
    assert [path.name for path in Path(site.region.url, vault.prefix).rglob("*") if path.is_file()] == [".guard"]
    with pytest.raises(VaultUnfit, match="was deleted"):
        services.request_verify(vault, level="inventory", actor=SERVICE, now=clock())


def test_nothing_is_deleted_that_nobody_asked_to_delete(site, clock):
    assert swept(clock) == []
    assert Vault.objects.get().state == VaultState.READY


@pytest.mark.rule("B6")
def test_what_is_not_locked_goes_now_and_the_rest_when_the_lock_ends(site, clock, tmp_path):
    (site.files / "later.bin").write_bytes(bytes(range(256)) * 5000)
    presence.seen("w", [site.source.queue, site.region.queue], now=clock())
    backed_up(site, clock)
    (site.files / "notes.txt").unlink()
    (site.files / "later.bin").unlink()
    backed_up(site, clock)
    until = clock() + 30 * DAY
    lock(site, until)
    expected = read_tree(site.files)
    assert deleted(site, clock).deletable_at == until
    before = sum(path.stat().st_size for path in store(site))
    assert swept(clock) == [Kind.EXPIRE, Kind.PRUNE]
    assert site.vault.points.count() == 1
    assert sum(path.stat().st_size for path in store(site)) < before
    (tmp_path / "back").mkdir()
    presence.seen("w", [site.source.queue], now=clock())
    selection = Selection(to=str(tmp_path / "back"))
    job = services.request_restore(site.vault.points.get(), selection, actor=SERVICE, now=clock())
    assert local.do(job, clock=clock).state == JobState.COMPLETE
    assert read_tree(tmp_path / "back" / site.files.relative_to("/")) == expected
    clock.now = until - dt.timedelta(hours=1)
    assert swept(clock, 1) == []
    clock.now = until + dt.timedelta(hours=1)
    assert swept(clock) == [Kind.ERASE]
    assert store(site) == []
    assert Vault.objects.get().state == VaultState.DELETED


@pytest.mark.rule("B6")
def test_a_lock_that_the_catalogue_does_not_know_postpones_it(site, clock):
    deleted(site, clock)
    until = clock() + 3 * DAY
    lock(site, until)
    site.vault.points.update(locked_until=None)
    count = len(store(site))
    assert swept(clock) == [Kind.ERASE]
    vault = Vault.objects.get()
    assert (vault.state, vault.deletable_at) == (VaultState.DELETING, until)
    assert len(store(site)) == count
    clock.now = until
    assert swept(clock, 1) == [Kind.ERASE]
    assert Vault.objects.get().state == VaultState.DELETED


def test_backups_that_run_are_stopped_and_restores_are_waited_for(site, clock, tmp_path):
    backup = services.request_backup(site.plan, actor=SERVICE, now=clock())
    presence.seen("w", [site.source.queue], now=clock())
    (tmp_path / "back").mkdir()
    restore = services.request_restore(
        site.vault.points.get(), Selection(to=str(tmp_path / "back")), actor=SERVICE, now=clock()
    )
    deleted(site, clock)
    assert swept(clock, 2) == []
    backup.refresh_from_db()
    assert backup.state == JobState.CANCELED
    assert local.do(restore, clock=clock).state == JobState.COMPLETE
    assert swept(clock) == [Kind.ERASE]


def test_an_erase_that_died_after_its_last_deed_is_concluded(site, clock):
    deleted(site, clock)
    vault = repositories.open_vault(site.vault)
    keys = {stored.key: vault.storage.get(stored.key) for stored in vault.storage.scan("keys/")}
    vault.storage.delete([stored.key for stored in vault.storage.scan("")])
    for key, data in keys.items():
        vault.storage.put(key, data)
    assert swept(clock) == [Kind.ERASE]
    assert Job.objects.get(kind=Kind.ERASE).error_code == "vault_missing"
    assert Vault.objects.get().state == VaultState.DELETED
    assert store(site) == []


def test_another_vault_at_its_place_is_not_erased(site, clock):
    deleted(site, clock)
    Vault.objects.update(stored_id="0" * 32)
    count = len(store(site))
    assert swept(clock, 1) == [Kind.ERASE]
    job = Job.objects.get(kind=Kind.ERASE)
    assert (job.state, job.error_code) == (JobState.FAILED, "erase_refused")
    assert len(store(site)) == count
