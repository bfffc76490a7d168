"""Jobs on sources of other kinds than files: where they are read, what takes their points, what is refused."""

import datetime as dt
import sys

import pytest
from django.core.exceptions import ValidationError

from accounts.models import Event, Role
from accounts.services import SERVICE
from jobs import due, local, services
from jobs.models import Job
from jobs.states import JobState
from policies import reading
from policies.models import Source
from tests.support.api import client_of
from tests.support.control import Clock, Site, make_site, read_tree
from tests.support.people import T0, join, make_plan, make_point, make_policy, make_source, online
from tests.support.sources import source_of
from vaults.models import RecoveryPoint

pytestmark = pytest.mark.django_db
DUMP = "import os; print('-- rows of', os.environ.get('SHOP', 'nobody')); print('-- the end')"
LOAD = "import os, sys; open(os.environ['INTO'], 'wb').write(sys.stdin.buffer.read())"


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def site(tmp_path) -> Site:
    return make_site(tmp_path)


def dump_source(site: Site, *, program: str = DUMP, name: str = "dump", environment: str = "SHOP=acme") -> Source:
    settings = {
        "argv": [sys.executable, "-c", program],
        "restore_argv": [sys.executable, "-c", LOAD],
        "name": "shop.sql",
        "marker": "-- the end",
    }
    source = make_source(site.account, site.region, name, kind="command", settings=settings)
    reading.seal_credentials(source, {"environment": environment})
    source.save()
    online(source.queue)
    return source


def back_up(site: Site, source: Source, clock: Clock) -> Job:
    plan = make_plan(source, make_policy(site.account, f"of {source}"), site.vault)
    return local.do(services.request_backup(plan, actor=SERVICE, now=clock()), clock=clock)


def restore(job: Job, clock: Clock, **selection: object) -> Job:
    assert job.point is not None, job.error
    wanted = services.Selection(**selection)  # type: ignore[arg-type]  # as the test says
    return local.do(services.request_restore(job.point, wanted, actor=SERVICE, now=clock()), clock=clock)


def test_a_programs_output_comes_back_into_a_program_and_into_a_folder(site, clock, tmp_path):
    into = tmp_path / "loaded"
    job = back_up(site, dump_source(site, environment=f"SHOP=acme\nINTO={into}"), clock)
    assert (job.state, job.error) == (JobState.COMPLETE, "")
    again = restore(job, clock)
    assert (again.state, again.error) == (JobState.COMPLETE, "")
    assert into.read_text() == "-- rows of acme\n-- the end\n"
    out = tmp_path / "out"
    out.mkdir()
    restore(job, clock, destination=site.source, to=str(out))
    assert read_tree(out) == {"shop.sql": into.read_bytes()}


@pytest.mark.parametrize(
    ("program", "code"),
    [
        ("raise SystemExit(3)", "source_incomplete"),
        ("print('half of it')", "source_incomplete"),
    ],
)
def test_an_output_without_its_end_makes_no_point_and_says_why(site, clock, program, code):
    job = back_up(site, dump_source(site, program=program), clock)
    assert (job.state, job.error_code, job.point) == (JobState.FAILED, code, None)
    assert "acme" not in job.error


def test_secrets_of_a_source_stand_in_no_row_of_its_jobs(site, clock):
    source = dump_source(site, environment="SHOP=hunter2hunter2")
    back_up(site, source, clock)
    told = [*Job.objects.values_list("report", "error", "settings"), *Event.objects.values_list("detail")]
    assert "hunter2" not in str(told) + str(list(source.jobs.values_list("events__text", "steps__error")))


def test_a_point_goes_to_no_destination_of_another_kind(site, clock):
    files = make_point(site.vault, site.source)
    with pytest.raises(reading.DestinationUnfit, match="can't take a point of kind files"):
        services.request_restore(files, services.Selection(destination=dump_source(site)), actor=SERVICE, now=T0)


def test_a_dump_needs_the_name_of_a_folder_on_a_host(site, clock):
    job = back_up(site, dump_source(site), clock)
    with pytest.raises(ValidationError, match="Name a folder"):
        restore(job, clock, destination=site.source)


@pytest.mark.parametrize("to", ["relative", "/a/../b"])
def test_a_place_that_is_no_folder_is_refused_for_a_host_alone(site, clock, to):
    point, wanted = make_point(site.vault, site.source), services.Selection(to=to)
    with pytest.raises(ValidationError, match="absolute path"):
        services.request_restore(point, wanted, actor=SERVICE, now=T0)
    other = make_source(site.account, site.region, "stage", kind="command", settings={"argv": ["true"]})
    reading.check_place(other, kind="command", to=to)


def test_credentials_that_no_key_opens_fail_the_job_with_what_to_do(site, clock, settings):
    source = dump_source(site)
    settings.FIELD_KEYS = ["11" * 32]
    job = back_up(site, source, clock)
    assert (job.state, job.error_code) == (JobState.FAILED, "secret_unreadable")
    assert "BACKUPSITE_FIELD_KEYS" in job.error


@pytest.mark.rule("C52")
def test_sources_without_a_host_are_backed_up_side_by_side_each_once(site):
    online(site.region.queue)
    plans = [
        make_plan(
            make_source(site.account, site.region, name, kind="bucket", host="", settings={}),
            make_policy(site.account, name),
            site.vault,
        )
        for name in ("one", "two")
    ]
    first, second = (services.request_backup(plan, actor=SERVICE, now=T0) for plan in plans)
    assert (first.queue_work, first.host) == (site.region.queue, "")
    assert services.running_backup(plans[1].source) == second
    with pytest.raises(services.SourceBusy):
        services.request_backup(plans[0], actor=SERVICE, now=T0)


def test_a_region_without_a_worker_is_told_as_such(site):
    source = make_source(site.account, site.region, "far", kind="bucket", host="", settings={})
    plan = make_plan(source, make_policy(site.account, "far"), site.vault)
    missed = due.settle_plan(plan, now=T0 + dt.timedelta(minutes=10))
    assert missed is not None
    assert (missed.state, missed.error) == (JobState.MISSED, f"No worker was running for the region {site.region}")


class TestApi:
    @pytest.mark.parametrize(("role", "status"), [(Role.VIEWER, 403), (Role.OPERATOR, 202)])
    def test_a_connection_is_tried_by_whoever_may_run_jobs(self, site, settings, role, status):
        settings.WORKER_SEEN_S = 10**9
        source = dump_source(site)
        client = client_of(join(site.account, "somebody", role))
        assert client.post(f"/api/v1/sources/{source.pk}/test/").status_code == status

    @pytest.mark.parametrize(("role", "status"), [(Role.OPERATOR, 403), (Role.ADMIN, 202)])
    @pytest.mark.parametrize(
        ("kind", "to"),
        [("smb", r"\\203.0.113.9\theirs"), ("smb", "//203.0.113.9/theirs"), ("milvus", "https://203.0.113.9")],
    )
    def test_only_who_may_change_a_source_may_show_its_credentials_to_another_server(
        self, site, settings, role, status, kind, to
    ):
        settings.WORKER_SEEN_S = 10**9
        source = source_of(kind, site.account, site.region)
        source.save()
        online(site.region.queue)
        point = make_point(site.vault, source)
        RecoveryPoint.objects.filter(pk=point.pk).update(source_kind=kind)
        client = client_of(join(site.account, "somebody", role))
        wanted = {"kind": "restore", "point": str(point.pk)}
        assert client.post("/api/v1/jobs/", wanted | {"to": to}).status_code == status
        assert client.post("/api/v1/jobs/", wanted | {"to": "restored"}).status_code == 202

    def test_a_place_that_is_none_is_told_by_its_field(self, site, settings):
        settings.WORKER_SEEN_S = 10**9
        point = make_point(site.vault, site.source)
        answer = client_of(site.owner).post("/api/v1/jobs/", {"kind": "restore", "point": str(point.pk), "to": "a"})
        assert (answer.status_code, answer.json()["errors"][0]["attr"]) == (400, "to")
