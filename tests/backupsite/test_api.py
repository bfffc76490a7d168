"""The API as a whole: outsiders find nothing, roles hold, secrets stay in, lists cost a constant number of queries."""

import json
from typing import Any

import pytest
from django.core.management import call_command
from django.db import connection
from django.test.utils import CaptureQueriesContext

from accounts import secrets
from accounts.models import Role
from accounts.services import SERVICE
from backupsite.api import router
from jobs import services
from jobs.models import Job
from tests.support.api import client_of, error_code
from tests.support.control import Site, make_site
from tests.support.people import (
    T0,
    join,
    make_plan,
    make_point,
    make_policy,
    make_source,
    make_user,
    make_vault,
    online,
)

pytestmark = pytest.mark.django_db
LISTS = ("accounts", "vaults", "recovery-points", "sources", "policies", "plans", "jobs")


@pytest.fixture
def site(tmp_path) -> Site:
    return make_site(tmp_path)


@pytest.fixture
def owner(site):
    return client_of(site.owner)


@pytest.fixture
def outsider():
    return client_of(make_user("outsider"))


def rows(site: Site) -> dict[str, Any]:
    point = make_point(site.vault, site.source)
    job = services.request_verify(site.vault, level="inventory", actor=SERVICE, now=T0)
    return {
        "accounts": site.account,
        "vaults": site.vault,
        "recovery-points": point,
        "sources": site.source,
        "policies": site.policy,
        "plans": site.plan,
        "jobs": job,
    }


class TestOutsiders:
    def test_lists_are_empty(self, site, outsider):
        rows(site)
        for name in LISTS:
            answer = outsider.get(f"/api/v1/{name}/")
            assert (answer.status_code, answer.json()["results"]) == (200, []), name

    def test_nothing_can_be_found(self, site, outsider):
        for name, row in rows(site).items():
            assert outsider.get(f"/api/v1/{name}/{row.pk}/").status_code == 404, name

    def test_nothing_can_be_done(self, site, outsider):
        made = rows(site)
        for path in (
            f"plans/{made['plans'].pk}/pause/",
            f"plans/{made['plans'].pk}/resume/",
            f"jobs/{made['jobs'].pk}/cancel/",
            f"accounts/{made['accounts'].pk}/members/",
        ):
            assert outsider.post(f"/api/v1/{path}", {"user": "outsider", "role": "owner"}).status_code == 404, path
        for path in ("sources", "policies", "plans"):
            assert outsider.delete(f"/api/v1/{path}/{made[path].pk}/").status_code == 404
        for path in ("entries", "file", "steps"):
            kind = "jobs" if path == "steps" else "recovery-points"
            assert outsider.get(f"/api/v1/{kind}/{made[kind].pk}/{path}/").status_code == 404

    def test_foreign_rows_cannot_be_named_in_a_request(self, site, outsider):
        answer = outsider.post("/api/v1/jobs/", {"kind": "backup", "plan": str(site.plan.pk)})
        assert (answer.status_code, error_code(answer)) == (400, "does_not_exist")
        assert not Job.objects.exists()

    def test_nobody_gets_in_without_logging_in(self, site):
        for prefix, _, _ in router.registry:
            assert client_of().get(f"/api/v1/{prefix}/").status_code == 401, prefix


class TestRoles:
    @pytest.mark.parametrize(
        ("role", "allowed"),
        [(Role.VIEWER, 0), (Role.OPERATOR, 2), (Role.ADMIN, 4), (Role.OWNER, 5)],
    )
    def test_each_role_includes_the_lesser_ones(self, site, role, allowed):
        client = client_of(join(site.account, "somebody", role))
        plan, account = f"/api/v1/plans/{site.plan.pk}/", str(site.account.pk)
        calls = [
            lambda: client.post(f"{plan}pause/"),
            lambda: client.post("/api/v1/jobs/", {"kind": "verify", "vault": str(site.vault.pk)}),
            lambda: client.post("/api/v1/policies/", {"account": account, "name": "new"}),
            lambda: client.get(f"/api/v1/accounts/{account}/events/"),
            lambda: client.post(f"/api/v1/accounts/{account}/members/", {"user": "somebody", "role": role}),
        ]
        statuses = [call().status_code for call in calls]
        assert [status < 300 for status in statuses] == [True] * allowed + [False] * (len(calls) - allowed)
        assert set(statuses[allowed:]) <= {403}

    def test_regions_are_made_by_staff_alone(self, site, owner, tmp_path):
        wanted = {"name": "new", "url": str(tmp_path / "new")}
        assert owner.post("/api/v1/regions/", wanted).status_code == 403
        assert client_of(make_user("staff", staff=True)).post("/api/v1/regions/", wanted).status_code == 201

    def test_the_last_owner_stays(self, site, owner):
        answer = owner.delete(f"/api/v1/accounts/{site.account.pk}/members/{site.owner.username}/")
        assert (answer.status_code, error_code(answer)) == (409, "last_owner")


class TestSecrets:
    def test_a_regions_credentials_go_in_and_never_come_out(self, site):
        staff = client_of(make_user("staff", staff=True))
        path = f"/api/v1/regions/{site.region.name}/"
        answer = staff.patch(path, {"access_key": "AKIA-VISIBLE", "secret_key": "very-secret-indeed"})
        assert answer.status_code == 200
        for text in (answer.content, staff.get(path).content, staff.get("/api/v1/regions/").content):
            assert b"very-secret-indeed" not in text
            assert b"AKIA-VISIBLE" not in text
        site.region.refresh_from_db()
        assert "very-secret" not in site.region.credentials
        kept = secrets.unseal(site.region.credentials, context=site.region.secret_context)
        assert kept == {"access_key": "AKIA-VISIBLE", "secret_key": "very-secret-indeed"}

    def test_a_sources_credentials_go_in_and_never_come_out(self, site, owner):
        wanted = {
            "account": str(site.account.pk), "region": site.region.name, "name": "dump", "kind": "command",
            "host": "h", "settings": {"argv": ["true"]}, "credentials": {"environment": "PASSWORD=very-secret-indeed"},
        }  # fmt: skip
        answer = owner.post("/api/v1/sources/", wanted)
        assert (answer.status_code, answer.json()["has_credentials"]) == (201, True)
        assert b"very-secret" not in answer.content + owner.get("/api/v1/sources/").content

    def test_the_recovery_key_is_shown_once_and_stored_nowhere(self, site, owner, tmp_path):
        wanted = {"account": str(site.account.pk), "region": site.region.name, "name": "second"}
        answer = owner.post("/api/v1/vaults/", wanted)
        assert answer.status_code == 201
        key = answer.json()["recovery_key"]
        assert key.startswith("BSRK-")
        assert key.encode() not in owner.get("/api/v1/vaults/").content
        dump = tmp_path / "dump.json"
        call_command("dumpdata", output=str(dump), verbosity=0)
        assert key not in dump.read_text()
        stored = b"".join(path.read_bytes() for path in (tmp_path / "store").rglob("*") if path.is_file())
        assert key.encode() not in stored


def test_every_list_costs_the_same_number_of_queries_for_one_row_and_for_ten(site, owner):
    def cost(name: str) -> int:
        with CaptureQueriesContext(
            connection,
        ) as queries:
            answer = owner.get(f"/api/v1/{name}/")
        assert answer.status_code == 200, answer.content
        return len(queries)

    rows(site)
    cost("accounts")  # the client's user remembers its privileges
    before = {name: cost(name) for name in (*LISTS, "regions")}
    for number in range(9):
        source = make_source(site.account, site.region, f"source{number}")
        vault = make_vault(site.account, site.region, f"vault{number}")
        plan = make_plan(source, make_policy(site.account, f"policy{number}"), vault)
        make_point(vault, source)
        services.request_backup(plan, actor=SERVICE, now=T0)
    assert {name: cost(name) for name in (*LISTS, "regions")} == before
    assert max(before.values()) <= 4


def test_pages_follow_each_other_without_a_gap(site, owner):
    for number in range(7):
        make_policy(site.account, f"p{number}")
    seen, url = [], "/api/v1/policies/?page_size=3"
    while url:
        page = owner.get(url).json()
        seen += [row["name"] for row in page["results"]]
        url = page["next"]
    assert sorted(seen) == sorted(["daily", *(f"p{number}" for number in range(7))])


def test_the_schema_is_valid_and_complete(capsys):
    call_command("spectacular", validate=True, fail_on_warn=True, format="openapi-json")
    schema = json.loads(capsys.readouterr().out)
    assert {"/api/v1/jobs/", "/api/v1/recovery-points/{id}/file/"} <= set(schema["paths"])
    assert set(schema["paths"]["/api/v1/jobs/"]["post"]["responses"]) >= {"202", "400", "401", "403", "409"}


class TestJobs:
    def test_starting_a_backup_answers_202_and_rings_after_the_commit(
        self, site, owner, django_capture_on_commit_callbacks
    ):
        with django_capture_on_commit_callbacks() as callbacks:
            answer = owner.post("/api/v1/jobs/", {"kind": "backup", "plan": str(site.plan.pk)})
        assert (answer.status_code, answer.json()["state"]) == (202, "queued")
        assert sum(" ring." in repr(call) for call in callbacks) == 1

    @pytest.mark.rule("C52")
    def test_a_second_backup_answers_409_with_the_running_jobs_id(self, site, owner):
        first = owner.post("/api/v1/jobs/", {"kind": "backup", "plan": str(site.plan.pk)}).json()
        answer = owner.post("/api/v1/jobs/", {"kind": "backup", "plan": str(site.plan.pk)})
        assert (answer.status_code, error_code(answer)) == (409, "source_busy")
        assert answer.json()["context"] == {"job": first["id"]}

    @pytest.mark.rule("C43")
    def test_a_job_can_be_canceled_once_it_has_not_ended(self, site, owner):
        job = owner.post("/api/v1/jobs/", {"kind": "backup", "plan": str(site.plan.pk)}).json()
        answer = owner.post(f"/api/v1/jobs/{job['id']}/cancel/")
        assert (answer.status_code, answer.json()["state"]) == (202, "canceled")
        Job.objects.update(state="complete")
        refused = owner.post(f"/api/v1/jobs/{job['id']}/cancel/")
        assert (refused.status_code, error_code(refused)) == (409, "job_ended")

    @pytest.mark.rule("C26")
    def test_a_restore_to_a_host_without_a_worker_answers_409(self, site, owner):
        point = make_point(site.vault, make_source(site.account, site.region, "asleep"))
        answer = owner.post("/api/v1/jobs/", {"kind": "restore", "point": str(point.pk)})
        assert (answer.status_code, error_code(answer)) == (409, "destination_offline")

    @pytest.mark.parametrize(
        ("body", "attr"),
        [
            ({}, "kind"),
            ({"kind": "erase"}, "kind"),
            ({"kind": "backup"}, "plan"),
            ({"kind": "verify", "level": "deepest"}, "vault"),
            ({"kind": "restore", "to": "../x"}, "point"),
        ],
    )
    def test_bad_requests_name_the_field(self, owner, body, attr):
        answer = owner.post("/api/v1/jobs/", body)
        assert answer.status_code == 400
        assert attr in {one["attr"] for one in answer.json()["errors"]}

    @pytest.mark.parametrize(
        ("extra", "attr"), [({"to": "a/b"}, "to"), ({"to": "/a/../b"}, "to"), ({"mode": "include"}, "patterns")]
    )
    def test_a_restore_says_what_is_wrong_with_its_selection(self, site, owner, extra, attr):
        point = make_point(site.vault, site.source)
        online(site.source.queue)
        answer = owner.post("/api/v1/jobs/", {"kind": "restore", "point": str(point.pk)} | extra)
        assert (answer.status_code, answer.json()["errors"][0]["attr"]) == (400, attr)

    def test_a_jobs_page_tells_its_story_and_its_steps(self, site, owner):
        job = services.request_backup(site.plan, actor=SERVICE, now=T0)
        assert owner.get(f"/api/v1/jobs/{job.pk}/").json()["events"][0]["text"] == "Created"
        (step,) = owner.get(f"/api/v1/jobs/{job.pk}/steps/").json()["results"]
        assert (step["stage"], step["state"]) == ("plan", "queued")


def test_a_vault_that_cannot_be_opened_is_an_error_of_the_vault_and_not_of_the_program(site, owner, tmp_path):
    point = make_point(site.vault, site.source)
    (tmp_path / "store" / site.vault.prefix / "vault.json").write_bytes(b"garbage")
    answer = owner.get(f"/api/v1/recovery-points/{point.pk}/entries/")
    assert (answer.status_code, error_code(answer)) == (502, "vault_damaged")
