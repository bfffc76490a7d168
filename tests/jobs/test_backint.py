"""SAP HANA in the console: its points show up by themselves, come back as files, and no plan pretends to make them."""

import platform
from pathlib import Path

import pytest
from django.core.exceptions import ValidationError
from django.core.management import call_command

from accounts.services import SERVICE
from engine.errors import SourceError
from engine.ids import new_ulid
from engine.progress import Silent
from engine.sources.backint import BackintSource
from engine.verbs import backup
from jobs import local, services
from jobs.states import JobState
from policies import reading
from policies import services as policies
from policies.models import Source
from tests.support.control import Clock, Site, make_site, read_tree
from tests.support.people import T0, make_plan
from vaults import repositories

pytestmark = pytest.mark.django_db
CONTENT = b"pages of a database" * 10_000


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return make_site(tmp_path)


@pytest.fixture
def database(site: Site) -> Source:
    source = Source(
        account=site.account, region=site.region, name="hana", kind="backint", host=site.source.host,
        settings={"database": "SYSTEMDB@HDB"},
    )  # fmt: skip
    return policies.save_source(source, actor=SERVICE, now=T0)


def agent_saves(site: Site, path: Path) -> None:
    """Back an object up as the agent does, past the control plane."""
    clock, silent = Clock(), Silent()
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT)
    source = BackintSource(name=str(path), host=platform.node(), database="SYSTEMDB@HDB", is_pipe=False)
    job = backup.BackupJob(
        session=new_ulid(clock()), series="hana-hdb-systemdb", source=source, started_at=clock(), name=path.name
    )
    vault = repositories.open_vault(site.vault)
    results = [backup.work(vault, job, unit, silent) for unit in backup.plan(vault, job, silent, now=clock())]
    backup.finish(vault, job, results, silent, clock=clock)


@pytest.mark.rule("E8", "E36")
def test_what_the_agent_saved_is_found_by_a_rebuild_and_comes_back_as_a_file(
    site: Site, database: Source, tmp_path: Path
) -> None:
    path = tmp_path / "SYSTEMDB" / "COMPLETE_DATA_BACKUP_databackup_0_1"
    agent_saves(site, path)
    call_command("rebuild_catalogue")
    row = site.vault.points.get()
    assert (row.source_kind, row.source_name, row.roots) == ("backint", path.name, [str(path)])
    assert (row.state, row.bytes_total, row.expires_at) == ("complete", len(CONTENT), None)
    out = tmp_path / "out"
    out.mkdir()
    for destination in (database, site.source):
        selection = services.Selection(
            to=str(out), destination=destination, same_name="overwrite", overwrite_confirmed=True
        )
        job = local.do(services.request_restore(row, selection, actor=SERVICE, now=T0), clock=Clock())
        assert (job.state, job.error) == (JobState.COMPLETE, "")
        assert read_tree(out) == {str(path).lstrip("/"): CONTENT}
        (out / str(path).lstrip("/")).unlink()
    with pytest.raises(ValidationError, match="RECOVER"):
        services.request_restore(row, services.Selection(destination=database), actor=SERVICE, now=T0)


def test_a_backup_that_the_console_would_start_says_who_starts_it(site: Site, database: Source) -> None:
    with pytest.raises(SourceError, match="SAP HANA starts its backups itself"):
        reading.engine_source(database)
    plan = make_plan(database, site.policy, site.vault)
    job = local.do(services.request_backup(plan, actor=SERVICE, now=T0), clock=Clock())
    assert (job.state, job.error_code) == (JobState.FAILED, "source_error")
    assert "SAP HANA starts its backups itself" in job.error


@pytest.mark.parametrize("name", ["", "SYSTEMDB", "systemdb@hdb", "SYSTEMDB@HDBX"])
def test_a_database_that_is_none_is_refused(site: Site, name: str) -> None:
    source = Source(
        account=site.account, region=site.region, name="hana", kind="backint", host="h", settings={"database": name}
    )
    with pytest.raises(ValidationError, match=r"settings\.database"):
        policies.save_source(source, actor=SERVICE, now=T0)
