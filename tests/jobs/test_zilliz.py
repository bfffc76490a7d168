"""The policy endpoint of clusters in the shape of Zilliz Cloud's, asked with curl by the documented commands."""

import json
import shutil
import subprocess
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from knox.models import AuthToken
from rest_framework.test import APIClient

from accounts.models import CustomRole, Event, Outcome, Role, User
from accounts.services import SERVICE, save_custom_role, set_role
from jobs.models import Job
from jobs.states import JobState, Trigger
from policies.clusters import plan_of
from policies.models import Plan, PlanState, Source
from tests.support.api import client_of
from tests.support.clusters import cluster_row
from tests.support.people import T0, join, make_account, make_source, make_user, make_vault

pytestmark = pytest.mark.django_db

WANTED = {"frequency": "1,2,3,5", "startTime": "02:00-04:00", "retentionDays": 7, "enabled": True}
CLUSTER = "in01-0123456789abcde"


@pytest.fixture
def cluster() -> Source:
    return cluster_row(cluster_id=CLUSTER)


@pytest.fixture
def owner(cluster) -> User:
    return User.objects.get(username="owner")


def set_plan(cluster: Source) -> Plan:
    plan = plan_of(cluster)
    assert plan is not None
    return plan


def token_of(user: User) -> str:
    return str(AuthToken.objects.create(user)[1])


def ask(user: User | None, method: str, body: Any = None, *, cluster: str = CLUSTER, header: str = "Bearer") -> Any:
    """Ask the endpoint; return the answer."""
    client = APIClient(raise_request_exception=False)
    if user is not None:
        client.credentials(HTTP_AUTHORIZATION=f"{header} {token_of(user)}")
    return getattr(client, method)(f"/v2/clusters/{cluster}/backups/policy", body)


def told(answer: Any) -> tuple[int, str]:
    """Return an error's status and name, after a look at its envelope."""
    body = answer.json()
    assert body["code"] == answer.status_code >= 400
    assert body["message"]
    return answer.status_code, body["reason"]


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.django_db(transaction=True)
@pytest.mark.rule("D17")
@pytest.mark.rule("D18")
@pytest.mark.rule("D19")
@pytest.mark.rule("D20")
@pytest.mark.rule("D21")
@pytest.mark.rule("D22")
@pytest.mark.rule("D23")
@pytest.mark.rule("D24")
@pytest.mark.rule("D25")
def test_the_documented_commands_work_unchanged(cluster, owner, live_server):
    environment = {"BASE_URL": live_server.url, "CLUSTER_ID": CLUSTER, "TOKEN": token_of(owner)}

    def curl(method: str, body: str = "") -> Any:
        command = f"""curl --request {method} \\
            --url "${{BASE_URL}}/v2/clusters/${{CLUSTER_ID}}/backups/policy" \\
            --header "Authorization: Bearer ${{TOKEN}}" \\
            --header "Content-Type: application/json" {body and f"-d '{body}'"}"""
        done = subprocess.run(["sh", "-c", command], env=environment, capture_output=True, check=True, timeout=30)
        return json.loads(done.stdout)

    enabled = '{ "frequency": "1,2,3,5", "startTime": "02:00-04:00", "retentionDays": 7, "enabled": true }'
    assert curl("POST", enabled) == {"code": 0, "data": {"clusterId": CLUSTER, "status": "ENABLED"}}
    plan = set_plan(cluster)
    rule = plan.policy.rules.get()
    assert (rule.weekdays, f"{rule.start_time:%H:%M}", rule.window_minutes) == ([1, 2, 3, 5], "02:00", 120)
    assert (plan.policy.retention_days, plan.policy.time_zone, plan.state) == (7, "UTC", PlanState.ACTIVE)
    listed = APIClient()
    listed.force_authenticate(owner)
    [job] = listed.get("/api/v1/jobs/?state__in=queued,running").json()["results"]
    assert (job["source"], job["trigger"], job["units_done"]) == (str(cluster.pk), "scheduled", 0)
    assert curl("GET") == {
        "code": 0,
        "data": {
            "clusterId": CLUSTER,
            "status": "ENABLED",
            "startTime": "02:00-04:00",
            "frequency": "1,2,3,5",
            "retentionDays": 7,
        },
    }
    disabled = '{\n    "enabled": false\n}'
    assert curl("POST", disabled) == {"code": 0, "data": {"clusterId": CLUSTER, "status": "DISABLED"}}
    assert curl("GET")["data"]["status"] == "DISABLED"
    plan.refresh_from_db()
    assert (plan.state, plan.next_run_at) == (PlanState.PAUSED, None)


@pytest.mark.rule("D10")
@pytest.mark.rule("D13")
def test_a_cluster_that_nobody_set_is_disabled_and_tells_what_is_offered(cluster, owner):
    shown = {"startTime": "00:00-02:00", "frequency": "1,2,3,4,5,6,7", "retentionDays": 7}
    assert ask(owner, "get").json()["data"] == {"clusterId": CLUSTER, "status": "DISABLED"} | shown
    assert ask(owner, "post", {"enabled": False}).json()["data"]["status"] == "DISABLED"
    assert plan_of(cluster) is None


@pytest.mark.rule("D12")
def test_enabling_with_nothing_else_takes_what_is_offered_and_starts_a_backup(cluster, owner):
    assert ask(owner, "post", {"enabled": True}).json()["data"]["status"] == "ENABLED"
    job = Job.objects.get()
    assert (job.source, job.trigger, job.state) == (cluster, Trigger.SCHEDULED, JobState.QUEUED)


@pytest.mark.rule("D25")
@pytest.mark.parametrize(
    ("change", "shown"),
    [
        ({"frequency": "7, 6"}, {"frequency": "6,7"}),
        ({"startTime": "23:30-01:30"}, {"startTime": "23:30-01:30"}),
        ({"retentionDays": 30}, {"retentionDays": 30}),
        ({"enabled": False}, {"status": "DISABLED"}),
        ({}, {}),
    ],
)
def test_what_a_body_leaves_out_stays(cluster, owner, change, shown):
    ask(owner, "post", WANTED)
    before = ask(owner, "get").json()["data"]
    assert ask(owner, "post", change).status_code == 200
    assert ask(owner, "get").json()["data"] == before | shown


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        *(({"frequency": text}, "invalid_frequency") for text in ("0", "8", "1,8", "1,1", "1;2", "1,,2", "mon", "1,")),
        ({"frequency": ""}, "blank"),
        ({"frequency": None}, "null"),
        *(
            ({"startTime": text}, "invalid_window")
            for text in (
                "02:00",
                "2:00-4:00",
                "02:00-24:00",
                "02:00-02:00",
                "25:00-26:00",
                "02:00 - 04:00",
                "02:60-04:00",
            )
        ),
        *(({"retentionDays": days}, "retention_out_of_range") for days in (0, 31, -1)),
        ({"retentionDays": "a week"}, "invalid"),
        ({"enabled": "perhaps"}, "invalid"),
        ({"retention_days": 7}, "invalid"),
        ([WANTED], "invalid"),
    ],
)
@pytest.mark.rule("D18")
@pytest.mark.rule("D19")
@pytest.mark.rule("D28")
def test_what_is_no_policy_is_refused_by_name_and_changes_nothing(cluster, owner, body, reason):
    assert told(ask(owner, "post", body)) == (400, reason)
    assert plan_of(cluster) is None


def test_a_body_that_is_no_json_is_refused_in_the_envelope(cluster, owner):
    client = APIClient()
    client.credentials(HTTP_AUTHORIZATION=f"Bearer {token_of(owner)}")
    path = f"/v2/clusters/{CLUSTER}/backups/policy"
    answer = client.generic("POST", path, "{enabled", content_type="application/json")
    assert told(answer) == (400, "parse_error")
    assert told(client.delete(path)) == (405, "method_not_allowed")


def test_a_refusal_has_the_envelope_and_its_status(cluster, owner):
    second = make_vault(cluster.account, cluster.region, "second")
    assert told(ask(owner, "post", {"enabled": True})) == (409, "vault_unnamed")
    assert ask(owner, "post", {"enabled": True, "vaultId": str(second.pk)}).status_code == 200
    assert set_plan(cluster).vault == second
    assert ask(owner, "post", {"enabled": True}).status_code == 200  # it is known from now on


def test_a_cluster_is_found_by_its_own_id_and_by_nothing_that_two_sources_have(cluster, owner):
    answer = ask(owner, "post", WANTED, cluster=str(cluster.pk))
    assert answer.json()["data"] == {"clusterId": str(cluster.pk), "status": "ENABLED"}
    make_source(cluster.account, cluster.region, settings={"cluster_id": CLUSTER})
    assert ask(owner, "get").status_code == 200  # a host is no cluster
    twin = Source.objects.get(pk=cluster.pk)
    twin.pk, twin.name = uuid.uuid4(), "twin"
    twin._state.adding = True
    twin.save()
    assert told(ask(owner, "get")) == (409, "cluster_ambiguous")


class TestWho:
    def test_only_the_bearer_header_counts_here_and_only_the_token_header_elsewhere(self, cluster, owner):
        assert told(ask(None, "get"))[0] == 401
        answer = ask(owner, "get", header="Token")
        assert (told(answer)[0], answer.headers["WWW-Authenticate"]) == (401, "Bearer")
        client = APIClient()
        client.credentials(HTTP_AUTHORIZATION="Bearer wrong")
        assert told(client.get(f"/v2/clusters/{CLUSTER}/backups/policy"))[0] == 401
        client.credentials(HTTP_AUTHORIZATION=f"Bearer {token_of(owner)}")
        assert client.get("/api/v1/sources/").status_code == 401
        client.credentials()
        client.force_login(owner)
        assert told(client.get(f"/v2/clusters/{CLUSTER}/backups/policy"))[0] == 401

    @pytest.mark.parametrize("named", [lambda cluster: CLUSTER, lambda cluster: str(cluster.pk), lambda _: "nothing"])
    def test_an_outsider_and_a_name_that_is_none_find_nothing(self, cluster, owner, named: Callable[[Source], str]):
        join(make_account("other"), "outsider")
        outsider = User.objects.get(username="outsider")
        assert told(ask(outsider, "get", cluster=named(cluster))) == (404, "not_found")
        assert told(ask(outsider, "post", WANTED, cluster=named(cluster))) == (404, "not_found")
        assert told(ask(owner, "get", cluster="nothing")) == (404, "not_found")
        assert told(ask(make_user("nobody"), "get")) == (404, "not_found")
        assert plan_of(cluster) is None

    @pytest.mark.rule("D3")
    @pytest.mark.parametrize(
        ("role", "status"),
        [
            (Role.OWNER, 200),
            (Role.ADMIN, 200),
            (("backup",), 200),
            (("restore", "maintain", "manage_sources", "manage_policies", "manage_vaults", "delete_points"), 403),
            (Role.VIEWER, 403),
        ],
    )
    def test_administrator_owner_and_a_role_with_the_backup_privilege_set_it_and_back_up_others_look(
        self, cluster, owner, role, status
    ):
        user = join(cluster.account, "somebody", role if isinstance(role, str) else Role.VIEWER)
        if not isinstance(role, str):
            own = CustomRole(account=cluster.account, name="special", privileges=list(role))
            own = save_custom_role(own, actor=SERVICE, now=T0)
            set_role(account=cluster.account, user=user, role=own, actor=SERVICE, now=T0)
        assert ask(user, "get").status_code == 200
        vault = cluster.account.vaults.get()
        manual = client_of(user).post(f"/api/v1/sources/{cluster.pk}/backup/", {"vault": str(vault.pk)})
        assert manual.status_code == (202 if status == 200 else 403)
        answer = ask(user, "post", WANTED)
        assert answer.status_code == status
        if status == 403:
            assert told(answer) == (403, "permission_denied")
            refused = Event.objects.filter(outcome=Outcome.REFUSED).latest("pk")
            assert (refused.action, refused.object_id) == ("api.cluster-policy.set", str(cluster.pk))


def test_the_api_s_own_description_leaves_it_out(client):
    assert "backups/policy" not in client.get("/api/v1/schema/").content.decode()
