"""The API of maintenance: asked for by role, refused with a code, told in full."""

import datetime as dt
import uuid

import pytest
from django.utils import timezone
from rest_framework.test import APIClient

from accounts.models import Role
from accounts.services import SERVICE
from jobs import maintenance, removal
from jobs.models import Duty, Job
from jobs.states import JobState, Kind
from policies.models import Plan, Policy, Source
from tests.support.api import client_of, error_code
from tests.support.control import Site, make_site
from tests.support.people import T0, join, make_point
from tests.support.story import DAY, Story
from vaults.models import RecoveryPoint

pytestmark = pytest.mark.django_db
ASKED = [Kind.EXPIRE, Kind.PRUNE, Kind.COMPACT, Kind.AUDIT, Kind.REBUILD, Kind.DISASTER]


@pytest.fixture
def site(tmp_path) -> Site:
    return make_site(tmp_path)


@pytest.fixture
def owner(site: Site) -> APIClient:
    return client_of(site.owner)


class TestJobs:
    @pytest.mark.parametrize("kind", ASKED)
    def test_each_kind_can_be_asked_for_once_at_a_time(self, site, owner, kind):
        first = owner.post("/api/v1/jobs/", {"kind": kind, "vault": str(site.vault.pk)})
        assert (first.status_code, first.json()["kind"]) == (202, kind)
        again = owner.post("/api/v1/jobs/", {"kind": kind, "vault": str(site.vault.pk)})
        assert (again.status_code, error_code(again)) == (409, "maintenance_busy")
        assert again.json()["context"] == {"job": first.json()["id"]}

    def test_options_become_the_jobs_settings(self, site, owner):
        wanted = {"kind": "prune", "vault": str(site.vault.pk), "dry_run": True}
        assert owner.post("/api/v1/jobs/", wanted).json()["settings"] == {"dry_run": True}

    def test_passing_a_guard_needs_more_than_starting_an_expiry(self, site):
        operator = client_of(join(site.account, "op", Role.OPERATOR))
        wanted = {"kind": "expire", "vault": str(site.vault.pk)}
        assert operator.post("/api/v1/jobs/", wanted | {"confirmed": True}).status_code == 403
        assert operator.post("/api/v1/jobs/", wanted).status_code == 202

    def test_a_trial_restore_needs_a_point(self, site, owner):
        wanted = {"kind": "drill", "vault": str(site.vault.pk), "source": str(site.source.pk), "percent": 10}
        refused = owner.post("/api/v1/jobs/", wanted)
        assert (refused.status_code, error_code(refused)) == (409, "no_point")
        point = make_point(site.vault, site.source)
        job = owner.post("/api/v1/jobs/", wanted)
        assert (job.status_code, job.json()["point"], job.json()["settings"]) == (202, str(point.pk), {"percent": 10})
        assert error_code(owner.post("/api/v1/jobs/", wanted)) == "maintenance_busy"

    def test_a_refused_expiry_is_confirmed_by_an_administrator(self, site, owner):
        job = maintenance.request(site.vault, Kind.EXPIRE, {}, actor=SERVICE, now=T0)
        path = f"/api/v1/jobs/{job.pk}/confirm/"
        assert error_code(owner.post(path)) == "nothing_to_confirm"
        Job.objects.update(state=JobState.FAILED, error_code=removal.EXPIRY_REFUSED)
        operator = client_of(join(site.account, "op", Role.OPERATOR))
        assert operator.post(path).status_code == 403
        answer = owner.post(path)
        assert (answer.status_code, answer.json()["settings"]) == (202, {"confirmed": True})


class TestPoints:
    @pytest.fixture
    def story(self, tmp_path) -> Story:
        return Story(tmp_path / "story")

    def test_a_point_is_held_released_and_deleted(self, story):
        client = client_of(story.site.owner)
        point = story.backup()
        path = f"/api/v1/recovery-points/{point.pk}"
        assert client.post(f"{path}/hold/", {}).status_code == 400
        held = client.post(f"{path}/hold/", {"reason": "court case"}).json()
        assert (held["held_by"], held["hold_reason"]) == ("acme-owner", "court case")
        refused = client.post(f"{path}/delete/", {"confirmation": "acme-web"})
        assert (refused.status_code, error_code(refused)) == (409, "point_held")
        assert client.post(f"{path}/release/").json()["held_at"] is None
        assert error_code(client.post(f"{path}/delete/", {"confirmation": "acme"})) == "confirmation_wrong"
        answer = client.post(f"{path}/delete/", {"confirmation": "acme-web"})
        assert answer.status_code == 202
        story.do(Job.objects.get(pk=answer.json()["id"]))
        assert client.get(f"{path}/").status_code == 404

    def test_a_locked_point_is_refused_with_the_date(self, site, owner):
        point = make_point(site.vault, site.source, locked_until=dt.datetime(2100, 1, 1, tzinfo=dt.UTC))
        answer = owner.post(f"/api/v1/recovery-points/{point.pk}/delete/", {"confirmation": "acme-web"})
        assert (answer.status_code, error_code(answer)) == (409, "point_locked")
        assert answer.json()["context"] == {"locked_until": "2100-01-01T00:00:00+00:00"}

    def test_a_viewer_may_do_none_of_it_and_an_operator_only_hold(self, site):
        point = make_point(site.vault, site.source)
        for role in (Role.VIEWER, Role.OPERATOR):
            client = client_of(join(site.account, role.value, role))
            for what in ("release", "delete") if role == Role.OPERATOR else ("hold", "release", "delete"):
                assert client.post(f"/api/v1/recovery-points/{point.pk}/{what}/", {"reason": "x"}).status_code == 403
        assert not Job.objects.exists()


class TestErasingASource:
    @pytest.mark.rule("C32")
    def test_the_owner_types_its_name_and_learns_what_is_locked_until_when(self, site, owner):
        make_point(site.vault, site.source)
        make_point(site.vault, site.source, locked_until=dt.datetime(2100, 1, 1, tzinfo=dt.UTC))
        path = f"/api/v1/sources/{site.source.pk}/erase/"
        assert error_code(owner.post(path, {"confirmation": "acme"})) == "confirmation_wrong"
        admin = client_of(join(site.account, "admin", Role.ADMIN))
        assert admin.post(path, {"confirmation": "acme-web"}).status_code == 403
        answer = owner.post(path, {"confirmation": "acme-web"})
        assert answer.status_code == 202
        assert answer.json() == {"points": 2, "held": 0, "locked": 1, "ends_at": "2100-01-01T00:00:00Z"}
        assert not Plan.objects.exists()
        assert owner.get(f"/api/v1/sources/{site.source.pk}/").json()["erase_ends_at"] == "2100-01-01T00:00:00Z"


class TestMaintenanceOfAVault:
    def test_its_duties_are_listed_with_the_last_job(self, site, owner):
        maintenance.complete_duties([site.vault], now=T0)
        job = maintenance.request(site.vault, Kind.PRUNE, {}, actor=SERVICE, now=T0)
        duties = {one["kind"]: one for one in owner.get(f"/api/v1/vaults/{site.vault.pk}/maintenance/").json()}
        assert set(duties) == {"expire", "prune", "compact", "verify", "audit", "disaster"}
        assert (duties["prune"]["every_s"], duties["prune"]["is_own"]) == (86_400, False)
        assert duties["prune"]["last_job"]["id"] == str(job.pk)

    def test_intervals_are_set_by_an_administrator(self, site, owner):
        path = f"/api/v1/vaults/{site.vault.pk}/maintenance/"
        operator = client_of(join(site.account, "op", Role.OPERATOR))
        assert operator.patch(path, {"prune": 3600}).status_code == 403
        answer = owner.patch(path, {"prune": 3600, "compact": 0})
        duties = {one["kind"]: one for one in answer.json()}
        assert (duties["prune"]["every_s"], duties["prune"]["is_own"]) == (3600, True)
        assert (duties["compact"]["every_s"], duties["compact"]["due_at"]) == (0, None)
        assert Duty.objects.get(kind=Kind.COMPACT).due_at is None
        assert owner.patch(path, {"prune": 1}).status_code == 400


class TestRetention:
    @pytest.fixture
    def points(self, site: Site) -> list[RecoveryPoint]:
        return [make_point(site.vault, site.source, at=timezone.now() - days * DAY) for days in (0, 5, 40)]

    def test_the_preview_says_of_each_point_why_it_stays_or_goes_and_when(self, site, owner, points):
        path = f"/api/v1/sources/{site.source.pk}/retention/"
        newest, older, oldest = owner.get(path, {"vault": str(site.vault.pk)}).json()
        assert (newest["keep"], newest["expires_at"]) == (True, None)
        assert "the newest" in newest["reasons"]
        assert (older["keep"], older["point"]) == (True, str(points[1].pk))
        assert dt.datetime.fromisoformat(older["expires_at"]) == points[1].completed_at + 30 * DAY
        assert oldest["keep"] is False
        assert "30 days since completion were over" in oldest["reasons"][0]

    def test_the_preview_is_of_a_vault_of_the_account(self, site, owner):
        path = f"/api/v1/sources/{site.source.pk}/retention/"
        assert owner.get(path).status_code == 400
        assert owner.get(path, {"vault": "x"}).status_code == 400
        assert owner.get(path, {"vault": str(uuid.uuid4())}).status_code == 404

    def test_a_change_of_a_policy_is_looked_at_before_it_is_made(self, site, owner, points):
        answer = owner.post(f"/api/v1/policies/{site.policy.pk}/preview/", {"retention_days": 1})
        (change,) = answer.json()
        assert (change["source"], change["vault"], change["points"]) == (
            str(site.source.pk),
            str(site.vault.pk),
            3,
        )
        assert [one["point"] for one in change["going"]] == [str(points[1].pk), str(points[2].pk)]
        assert Policy.objects.get().retention_days == 30

    @pytest.mark.rule("C17")
    @pytest.mark.rule("C36")
    def test_switching_keep_at_least_one_off_and_pausing_answer_with_warnings(self, site, owner, points):
        policy = f"/api/v1/policies/{site.policy.pk}/"
        assert owner.patch(policy, {"keep_last": 2}).json()["warnings"] == []
        answer = owner.patch(policy, {"keep_at_least_one": False, "keep_last": 0}).json()
        assert len(answer["warnings"]) == 2
        assert answer["keep_one_until"] is not None
        Policy.objects.update(keep_one_until=None)
        expected = (points[0].completed_at + 30 * DAY).strftime("%Y-%m-%d %H:%M UTC")
        (warning,) = owner.post(f"/api/v1/plans/{site.plan.pk}/pause/").json()["warnings"]
        assert f"expires on {expected}" in warning

    def test_rules_go_in_and_come_out(self, site, owner):
        rules = {
            "keep_last": 3, "keep_daily": 7, "keep_weekly": 4, "keep_monthly": 12, "keep_yearly": 10,
            "drill_every_days": 30, "drill_percent": 5,
        }  # fmt: skip
        answer = owner.patch(f"/api/v1/policies/{site.policy.pk}/", rules)
        assert {name: answer.json()[name] for name in rules} == rules
        assert owner.patch(f"/api/v1/policies/{site.policy.pk}/", {"keep_last": -1}).status_code == 400

    def test_a_source_that_is_being_erased_takes_no_plan(self, site, owner):
        Source.objects.update(erasing_since=T0)
        Plan.objects.all().delete()
        wanted = {"source": str(site.source.pk), "policy": str(site.policy.pk), "vault": str(site.vault.pk)}
        answer = owner.post("/api/v1/plans/", wanted)
        assert (answer.status_code, error_code(answer)) == (409, "source_erasing")
