"""Verification jobs: a whole vault ends complete, a damaged one fails and says what is wrong."""

import pytest

from accounts.services import SERVICE
from jobs import local, services
from jobs.models import Job
from jobs.services import VERIFY_LEVELS
from jobs.states import JobState
from tests.support.control import Clock, Site, make_site

pytestmark = pytest.mark.django_db


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def site(tmp_path, clock) -> Site:
    site = make_site(tmp_path)
    local.do(services.request_backup(site.plan, actor=SERVICE, now=clock()), clock=clock)
    return site


def verify(site: Site, clock: Clock, level: str) -> Job:
    return local.do(services.request_verify(site.vault, level=level, actor=SERVICE, now=clock()), clock=clock)


@pytest.mark.parametrize("level", VERIFY_LEVELS)
def test_a_whole_vault_verifies_at_every_level(site, clock, level):
    job = verify(site, clock, level)
    assert (job.state, job.error, job.problems_count) == (JobState.COMPLETE, "", 0)
    assert job.report["census"]["points"] == 1


def test_a_pack_that_is_gone_fails_the_job_and_names_the_point(site, clock, tmp_path):
    (pack,) = (tmp_path / "store" / site.vault.prefix / "packs").rglob("*/*")
    pack.unlink()
    job = verify(site, clock, "inventory")
    assert (job.state, job.error_code) == (JobState.FAILED, "vault_damaged")
    assert pack.name in job.report["problems"][0]["path"]
    assert len(job.report["lost"]) == 1
