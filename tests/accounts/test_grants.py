"""Grants between accounts: one lets another back up named sources, sees nothing else, and takes it back (B8)."""

import datetime as dt
from typing import Any

import pytest
from django.core.exceptions import ValidationError
from django.db.models import F
from django.test import Client

from accounts import grants
from accounts.models import Account, Event, Grant, Member, Role, User
from accounts.services import SERVICE, Actor, PrivilegeNotHeld
from jobs import closing, due, local, removal, services
from jobs.models import Job
from jobs.services import Selection
from jobs.states import JobState
from policies.models import Plan, Source
from policies.services import create_plan, delete
from tests.support.api import client_of, error_code
from tests.support.console import page, press
from tests.support.control import Clock, Site, make_site
from tests.support.people import (
    T0,
    join,
    make_account,
    make_plan,
    make_point,
    make_policy,
    make_source,
    make_vault,
    online,
)

pytestmark = pytest.mark.django_db
DAY = dt.timedelta(days=1)


@pytest.fixture
def site(tmp_path) -> Site:
    """The grantor: `acme`, with a source on this host, and all else of its own."""
    return make_site(tmp_path)


@pytest.fixture
def grantee(site) -> Account:
    """The grantee: `keeper`, with a policy and a vault of its own, and an owner."""
    account = make_account("keeper")
    join(account, "kim")
    make_policy(account, "nightly")
    return account


def allow(site: Site, grantee: Account, *privileges: str, source: Source | None = None, **values: Any) -> Grant:
    grant = Grant(grantor=site.account, grantee=grantee, privileges=list(privileges) or ["backup"], **values)
    sources = [] if values.get("all_sources") else [source or site.source]
    return grants.give(grant, sources=sources, actor=Actor(site.owner), now=T0)


def bind(site: Site, grantee: Account, **values: Any) -> Plan:
    """Return a plan of the grantee's over the grantor's source, in a vault of the grantee's."""
    vault = make_vault(grantee, site.region)
    plan = make_plan(site.source, grantee.policies.get(), vault, **values)
    Plan.objects.filter(pk=plan.pk).update(account=grantee)
    return Plan.objects.get(pk=plan.pk)


def kim(grantee: Account) -> Any:
    return client_of(User.objects.get(username="kim"))


class TestGiving:
    @pytest.mark.rule("B8")
    def test_both_accounts_trails_tell_of_it_and_of_its_end(self, site, grantee):
        owner = client_of(site.owner)
        wanted = {
            "grantor": str(site.account.pk), "grantee": str(grantee.pk), "sources": [str(site.source.pk)],
            "privileges": ["backup"], "note": "contract 17",
        }  # fmt: skip
        answer = owner.post("/api/v1/grants/", wanted)
        assert answer.status_code == 201, answer.content
        assert (answer.json()["state"], answer.json()["privileges"]) == ("active", ["view", "backup"])
        revoked = owner.post(f"/api/v1/grants/{answer.json()['id']}/revoke/")
        assert (revoked.status_code, revoked.json()["state"]) == (200, "revoked")
        for account in (site.account, grantee):
            told = Event.objects.filter(account_id=account.pk, action__startswith="grant.").order_by("pk")
            assert [(one.action, one.user_name) for one in told] == [
                ("grant.give", "acme-owner"), ("grant.revoke", "acme-owner"),
            ]  # fmt: skip
            assert told[0].detail["sources"] == ["acme-web"]

    def test_it_ends_once(self, site, grantee):
        grant = allow(site, grantee)
        grants.revoke(grant, actor=SERVICE, now=T0)
        answer = client_of(site.owner).post(f"/api/v1/grants/{grant.pk}/revoke/")
        assert (answer.status_code, error_code(answer)) == (409, "grant_revoked")

    def test_who_receives_it_sees_it_and_can_neither_change_nor_revoke_it(self, site, grantee):
        grant = allow(site, grantee)
        client = kim(grantee)
        (listed,) = client.get("/api/v1/grants/").json()["results"]
        assert (listed["grantor_name"], listed["sources"]) == ("acme", [str(site.source.pk)])
        assert client.get(f"/api/v1/grants/{grant.pk}/").status_code == 200
        assert client.post(f"/api/v1/grants/{grant.pk}/revoke/").status_code == 403
        assert client.patch(f"/api/v1/grants/{grant.pk}/", {"all_sources": True}).status_code == 405

    @pytest.mark.parametrize("role", [Role.ADMIN, Role.OPERATOR, Role.VIEWER])
    def test_who_gives_no_roles_gives_no_grants(self, site, grantee, role):
        wanted = {"grantor": str(site.account.pk), "grantee": str(grantee.pk), "all_sources": True}
        client = client_of(join(site.account, "ann", role))
        assert client.post("/api/v1/grants/", wanted | {"privileges": ["backup"]}).status_code == 403

    def test_nobody_grants_what_they_do_not_have(self, site, grantee):
        poor = join(site.account, "ann", Role.VIEWER)
        grant = Grant(grantor=site.account, grantee=grantee, privileges=["restore"], all_sources=True)
        with pytest.raises(PrivilegeNotHeld):
            grants.give(grant, sources=[], actor=Actor(poor), now=T0)

    @pytest.mark.parametrize(
        ("values", "sources", "field"),
        [
            ({"privileges": ["own"], "all_sources": True}, False, "privileges"),
            ({"privileges": [], "all_sources": True}, False, "privileges"),
            ({"privileges": ["backup"]}, False, "sources"),
            ({"privileges": ["backup"], "all_sources": True}, True, "sources"),
            ({"privileges": ["backup"], "all_sources": True, "expires_at": T0}, False, "expires_at"),
        ],
    )
    def test_what_is_no_sound_grant_names_the_field(self, site, grantee, values, sources, field):
        grant = Grant(grantor=site.account, grantee=grantee, **values)
        with pytest.raises(ValidationError) as refusal:
            grants.give(grant, sources=[site.source] if sources else [], actor=SERVICE, now=T0)
        assert set(refusal.value.message_dict) == {field}

    def test_neither_to_oneself_nor_of_what_is_another_s(self, site, grantee):
        with pytest.raises(ValidationError, match="needs no grant of its own"):
            allow(site, site.account)
        with pytest.raises(ValidationError, match="Only sources of acme"):
            allow(site, grantee, source=make_source(grantee, site.region, "theirs"))


class TestSeeing:
    @pytest.mark.rule("B8")
    def test_the_grantee_sees_the_named_sources_and_nothing_else_of_the_grantor(self, site, grantee):
        other = make_source(site.account, site.region, "secret")
        client = kim(grantee)
        assert client.get(f"/api/v1/sources/{site.source.pk}/").status_code == 404
        allow(site, grantee)
        assert [one["name"] for one in client.get("/api/v1/sources/").json()["results"]] == ["acme-web"]
        assert client.get(f"/api/v1/sources/{site.source.pk}/").status_code == 200
        assert client.get(f"/api/v1/sources/{other.pk}/").status_code == 404
        for path, row in (("vaults", site.vault), ("policies", site.policy), ("plans", site.plan)):
            assert client.get(f"/api/v1/{path}/{row.pk}/").status_code == 404
        assert client.get(f"/api/v1/accounts/{site.account.pk}/").status_code == 404
        services.request_backup(site.plan, actor=SERVICE, now=T0)
        assert client.get("/api/v1/jobs/").json()["results"] == []

    def test_it_can_neither_change_nor_delete_nor_erase_them(self, site, grantee):
        allow(site, grantee, "backup", "restore")
        client, path = kim(grantee), f"/api/v1/sources/{site.source.pk}/"
        assert client.patch(path, {"name": "mine"}).status_code == 403
        assert client.delete(path).status_code == 403
        assert client.post(f"{path}erase/", {"confirmation": "acme-web"}).status_code == 403
        assert client.get(f"{path}retention/", {"vault": str(site.vault.pk)}).status_code == 404
        assert client.get(f"{path}drills/").json() == []

    def test_all_sources_are_those_that_come_later_too(self, site, grantee):
        allow(site, grantee, all_sources=True)
        make_source(site.account, site.region, "later")
        names = {one["name"] for one in kim(grantee).get("/api/v1/sources/").json()["results"]}
        assert names == {"acme-web", "later"}

    def test_what_has_ended_is_seen_no_more(self, site, grantee):
        grant = allow(site, grantee, expires_at=T0 + DAY)  # which was long ago
        assert kim(grantee).get("/api/v1/sources/").json()["results"] == []
        Grant.objects.update(expires_at=None)
        assert len(kim(grantee).get("/api/v1/sources/").json()["results"]) == 1
        grants.revoke(grant, actor=SERVICE, now=T0)
        assert kim(grantee).get("/api/v1/sources/").json()["results"] == []

    def test_lists_cost_as_much_with_many_grants_as_with_one(self, site, grantee, django_assert_num_queries):
        client = kim(grantee)
        for number in range(5):
            allow(site, grantee, source=make_source(site.account, site.region, f"s{number}"))
        with django_assert_num_queries(1):
            assert len(client.get("/api/v1/sources/").json()["results"]) == 5
        with django_assert_num_queries(2):
            assert len(client.get("/api/v1/grants/").json()["results"]) == 5


class TestBackups:
    @pytest.mark.rule("B8")
    def test_the_grantee_backs_up_into_its_own_vault_and_what_comes_of_it_is_its_own(self, site, grantee, tmp_path):
        allow(site, grantee)
        client = kim(grantee)
        vault = client.post(
            "/api/v1/vaults/", {"account": str(grantee.pk), "region": site.region.name, "name": "kept"}
        ).json()["vault"]["id"]
        wanted = {"source": str(site.source.pk), "policy": str(grantee.policies.get().pk), "vault": vault}
        plan = client.post("/api/v1/plans/", wanted)
        assert (plan.status_code, plan.json()["account"]) == (201, str(grantee.pk))
        answer = client.post("/api/v1/jobs/", {"kind": "backup", "plan": plan.json()["id"]})
        assert (answer.status_code, answer.json()["account"]) == (202, str(grantee.pk))
        job = local.do(Job.objects.get(pk=answer.json()["id"]), clock=Clock())
        assert job.state == JobState.COMPLETE
        (point,) = client.get("/api/v1/recovery-points/").json()["results"]
        assert point["vault"] == vault
        assert client_of(site.owner).get(f"/api/v1/recovery-points/{point['id']}/").status_code == 404
        assert client_of(site.owner).get(f"/api/v1/jobs/{job.pk}/").status_code == 404
        told = Event.objects.filter(account_id=site.account.pk, user_name="kim").values_list("action", flat=True)
        assert {"plan.create", "job.backup"} <= set(told)

    def test_without_a_grant_there_is_no_plan(self, site, grantee):
        vault = make_vault(grantee, site.region)
        plan = Plan(source=site.source, policy=grantee.policies.get(), vault=vault)
        with pytest.raises(grants.NotGranted, match="is another account's, which did not grant keeper"):
            create_plan(plan, actor=SERVICE, now=T0)
        wanted = {"source": str(site.source.pk), "policy": str(plan.policy_id), "vault": str(vault.pk)}
        assert kim(grantee).post("/api/v1/plans/", wanted).status_code == 400

    def test_a_member_s_role_in_the_grantee_counts_too(self, site, grantee):
        allow(site, grantee)
        keeper = User.objects.get(username="kim")
        Member.objects.filter(user=keeper).update(role=Role.OPERATOR)
        plan = bind(site, grantee)
        wanted = {"source": str(site.source.pk), "policy": str(plan.policy_id), "vault": str(plan.vault_id)}
        assert client_of(keeper).post("/api/v1/plans/", wanted).status_code == 403
        assert client_of(keeper).post("/api/v1/jobs/", {"kind": "backup", "plan": str(plan.pk)}).status_code == 202

    @pytest.mark.rule("B8")
    def test_revoking_ends_what_is_to_come_at_once_and_points_stay(self, site, grantee):
        grant, plan = allow(site, grantee), bind(site, grantee)
        online(site.source.queue)
        job = due.settle_plan(plan, now=T0)
        assert job is not None
        services.request_cancel(job, actor=SERVICE, now=T0)
        grants.revoke(grant, actor=SERVICE, now=T0)
        plan.refresh_from_db()
        assert plan.next_run_at is not None
        online(site.source.queue, at=plan.next_run_at)
        skipped = due.settle_plan(plan, now=plan.next_run_at)
        assert skipped is not None
        assert (skipped.state, skipped.account) == (JobState.SKIPPED, grantee)
        assert skipped.error == "acme revoked the grant over acme-web on 2026-03-10 12:00 UTC."
        answer = kim(grantee).post("/api/v1/jobs/", {"kind": "backup", "plan": str(plan.pk)})
        assert (answer.status_code, error_code(answer)) == (409, "grant_revoked")

    def test_what_ends_by_date_is_skipped_from_then_on(self, site, grantee):
        allow(site, grantee, expires_at=T0 + DAY)
        plan = bind(site, grantee)
        services.request_cancel(services.request_backup(plan, actor=SERVICE, now=T0), actor=SERVICE, now=T0)
        with pytest.raises(grants.NotGranted, match="ended on 2026-03-11") as refusal:
            services.request_backup(plan, actor=SERVICE, now=T0 + DAY)
        assert refusal.value.code == "grant_expired"

    def test_the_host_does_one_backup_at_a_time_and_whose_it_is_stays_untold(self, site, grantee):
        allow(site, grantee)
        theirs = services.request_backup(site.plan, actor=SERVICE, now=T0)
        plan = bind(site, grantee)
        with pytest.raises(services.SourceBusy, match="Another account") as refusal:
            services.request_backup(plan, actor=SERVICE, now=T0)
        assert str(theirs.pk) not in str(refusal.value) + str(refusal.value.detail)
        Plan.objects.update(next_run_at=T0)
        plan.refresh_from_db()
        skipped = due.settle_plan(plan, now=T0)
        assert skipped is not None
        assert skipped.error == "Another account's backup of it, or of its host, was still running"


class TestRestores:
    def test_to_the_grantor_s_host_needs_that_privilege(self, site, grantee):
        allow(site, grantee, "backup")
        point = make_point(make_vault(grantee, site.region), site.source)
        online(site.source.queue)
        with pytest.raises(grants.NotGranted, match="the privilege restore"):
            services.request_restore(point, Selection(), actor=SERVICE, now=T0)
        wanted = {"kind": "restore", "point": str(point.pk), "destination": str(site.source.pk)}
        assert kim(grantee).post("/api/v1/jobs/", wanted).status_code == 403
        allow(site, grantee, "restore")
        job = services.request_restore(point, Selection(), actor=SERVICE, now=T0)
        assert (job.account, job.source) == (grantee, site.source)
        assert Event.objects.filter(action="job.restore", account_id=site.account.pk).exists()


class TestEnds:
    def test_the_grantor_deletes_a_source_once_no_grant_holds_and_foreign_plans_go_with_it(self, site, grantee):
        grant, plan = allow(site, grantee), bind(site, grantee)
        site.plan.delete()
        answer = client_of(site.owner).delete(f"/api/v1/sources/{site.source.pk}/")
        assert (answer.status_code, error_code(answer)) == (409, "in_use")
        assert "keeper backs acme-web up by your grant" in answer.json()["errors"][0]["detail"]
        Grant.objects.update(revoked_at=F("created_at"))
        delete(site.source, actor=SERVICE, now=T0)
        assert not Plan.objects.filter(pk=plan.pk).exists()
        assert Event.objects.filter(action="plan.delete", account_id=grantee.pk).exists()
        assert Grant.objects.filter(pk=grant.pk).exists()

    def test_the_grantor_erases_its_own_points_alone(self, site, grantee):
        allow(site, grantee)
        plan = bind(site, grantee)
        theirs, own = make_point(plan.vault, site.source), make_point(site.vault, site.source)
        found = removal.erase(site.source, confirmation="acme-web", actor=SERVICE, now=T0)
        assert found.points == 1
        assert list(removal.points_of(site.source)) == [own]
        assert not site.source.plans.exists()
        theirs.refresh_from_db()

    def test_an_account_s_end_takes_plans_of_others_over_its_sources_along(self, site, grantee):
        allow(site, grantee)
        plan = bind(site, grantee)
        site.account.vaults.update(state="deleted")
        closing.delete_account(site.account, confirmation="acme", actor=SERVICE, now=T0)
        assert not Plan.objects.filter(pk=plan.pk).exists()
        assert not Grant.objects.exists()


class TestConsole:
    def test_a_grant_is_given_shown_and_revoked(self, site, grantee):
        console = Client()
        console.force_login(User.objects.create_superuser("root"))
        wanted = {
            "grantor": str(site.account.pk), "grantee": str(grantee.pk), "chosen": [str(site.source.pk)],
            "privileges": ["backup"], "expires_at_0": "", "expires_at_1": "",
        }  # fmt: skip
        told = console.post(page("accounts_grant", "add"), wanted | {"all_sources": "on"}, follow=True)
        assert "Name the sources, or say all_sources." in told.content.decode()
        console.post(page("accounts_grant", "add"), wanted)
        grant = Grant.objects.get()
        assert [named.source_id for named in grant.sources.all()] == [site.source.pk]
        listed = console.get(page("accounts_grant", "changelist")).content.decode()
        assert "acme-web" in listed
        press(console, "accounts_grant", "revoke", grant.pk)
        grant.refresh_from_db()
        assert grant.revoked_at is not None
        again = press(console, "accounts_grant", "revoke", grant.pk)
        assert "This grant was revoked before." in again.content.decode()
