"""Editions through the API: trials of buckets, and essential backup of hosts."""

from unittest import mock

import pytest
from django.utils import timezone

from accounts.models import Role
from jobs import presence
from jobs.models import Job
from jobs.states import JobState
from policies.models import Edition, Plan, Source
from tests.support.api import client_of, error_code
from tests.support.control import Site, make_site
from tests.support.people import join, make_point, make_source
from vaults.models import Region, Vault

pytestmark = pytest.mark.django_db

BUCKET = {"endpoint": "http://127.0.0.1:9", "bucket": "shop"}


@pytest.fixture
def site(tmp_path) -> Site:
    return make_site(tmp_path)


@pytest.fixture
def api(site):
    return client_of(site.owner)


class TestTrials:
    @pytest.fixture(autouse=True)
    def bucket_there(self):
        with mock.patch("policies.addresses.check"), mock.patch("engine.sources.bucket.BucketSource.check"):
            yield

    @pytest.fixture
    def bucket(self, site) -> Source:
        return make_source(site.account, site.region, "shop", kind="bucket", host="", settings=BUCKET)

    @pytest.mark.rule("A7", "A16")
    def test_the_two_kinds_of_plans_are_compared_before_one_is_made(self, api):
        found = api.get("/api/v1/editions/").json()
        aspects = {line["aspect"]: line for line in found["comparison"]}
        assert set(aspects) == {"Cost", "Scope", "Interval", "Vault", "Best for"}
        assert all(line["trial"] != line["full"] for line in found["comparison"])
        assert "full control" in aspects["Best for"]["full"]
        assert len(found["excluded"]) == 14 + 11

    @pytest.mark.rule("A17", "A18", "A28")
    def test_an_empty_request_makes_a_trial_that_is_listed_with_its_source(self, api, bucket):
        answer = api.post(f"/api/v1/sources/{bucket.pk}/plans/", {}, format="json")
        assert answer.status_code == 201
        plan = answer.json()["plan"]
        assert (plan["edition"], plan["state"]) == ("trial", "active")
        assert plan["trial_expires_at"] < plan["trial_release_at"]
        assert answer.json()["recovery_key"].startswith("BSRK-")
        assert [one["id"] for one in api.get(f"/api/v1/sources/{bucket.pk}/plans/").json()] == [plan["id"]]
        again = api.post(f"/api/v1/sources/{bucket.pk}/plans/", {}, format="json")
        assert (again.status_code, error_code(again)) == (409, "trial_exists")

    @pytest.mark.rule("A13", "A14", "A15")
    def test_full_plans_name_policy_and_vault_and_share_it_whatever_their_prefix(self, site, api, bucket):
        other = make_source(
            site.account, site.region, "b2", kind="bucket", host="", settings=BUCKET | {"prefix": "photos/"}
        )
        for source in (bucket, other):
            body = {"edition": "standard", "policy": str(site.policy.pk), "vault": str(site.vault.pk)}
            answer = api.post(f"/api/v1/sources/{source.pk}/plans/", body, format="json")
            assert (answer.status_code, answer.json()["plan"]["edition"]) == (201, "standard")
        assert site.vault.plans.count() == 3

    @pytest.mark.parametrize(
        ("body", "attr"),
        [({"edition": "standard"}, "policy"), ({"vault": "mine"}, "vault"), ({"edition": "essential"}, "edition")],
    )
    def test_a_request_that_does_not_fit_its_edition_names_the_field(self, site, api, bucket, body, attr):
        body = {name: str(site.vault.pk) if value == "mine" else value for name, value in body.items()}
        answer = api.post(f"/api/v1/sources/{bucket.pk}/plans/", body, format="json")
        assert answer.status_code == 400
        assert attr in {error["attr"] for error in answer.json()["errors"]}

    @pytest.mark.rule("A24", "A25", "A26", "A27")
    def test_a_bucket_is_registered_with_its_plan(self, site, api):
        body = {"account": str(site.account.pk), "region": site.region.name, "name": "shop", "kind": "bucket"}
        body |= {"settings": BUCKET, "scheduled_backup": True, "skip_check": True}
        answer = api.post("/api/v1/sources/", body, format="json")
        assert answer.status_code == 201
        assert answer.json()["plan"]["edition"] == "trial"
        assert answer.json()["recovery_key"].startswith("BSRK-")
        plan = Plan.objects.get(edition=Edition.TRIAL)
        assert (plan.policy.retention_days, plan.policy.rules.get().every, plan.policy.rules.get().unit) == (
            7,
            1,
            "day",
        )

    @pytest.mark.rule("A24")
    def test_a_plan_that_is_refused_takes_the_new_source_with_it(self, site, api):
        body = {"account": str(site.account.pk), "region": site.region.name, "name": "shop", "kind": "bucket"}
        body |= {"settings": BUCKET | {"prefix": "a/"}, "scheduled_backup": True}
        answer = api.post("/api/v1/sources/", body, format="json")
        assert (answer.status_code, error_code(answer)) == (409, "trial_covers_the_bucket")
        assert not Source.objects.filter(name="shop").exists()

    @pytest.mark.rule("A9")
    def test_the_prefix_of_a_source_on_trial_is_refused(self, api, bucket):
        api.post(f"/api/v1/sources/{bucket.pk}/plans/", {}, format="json")
        answer = api.patch(f"/api/v1/sources/{bucket.pk}/", {"settings": BUCKET | {"prefix": "a/"}}, format="json")
        assert (answer.status_code, error_code(answer)) == (409, "trial_covers_the_bucket")

    @pytest.mark.rule("A12", "A19")
    def test_a_trial_is_converted_once_it_is_confirmed_and_keeps_its_vault(self, site, api, bucket):
        plan = api.post(f"/api/v1/sources/{bucket.pk}/plans/", {}, format="json").json()["plan"]
        path = f"/api/v1/plans/{plan['id']}/convert/"
        assert error_code(api.post(path, {}, format="json")) == "conversion_unconfirmed"
        body = {"confirmed": True, "policy": str(site.policy.pk)}
        full = api.post(path, body, format="json").json()
        assert (full["edition"], full["vault"], full["policy"]) == ("standard", plan["vault"], str(site.policy.pk))
        assert error_code(api.post(path, body, format="json")) == "not_a_trial"

    @pytest.mark.rule("A6", "C55")
    def test_regions_tell_what_works_there_and_a_refusal_names_those_where_it_does(self, site, api, bucket):
        found = api.get(f"/api/v1/regions/{site.region.name}/").json()
        flags = ["supports_bucket_backup", "supports_host_backup", "supports_policies", "supports_replication"]
        assert [found[flag] for flag in flags] == [True] * 4
        Region.objects.update(supports_bucket_backup=False)
        answer = api.post(f"/api/v1/sources/{bucket.pk}/plans/", {}, format="json")
        assert (answer.status_code, error_code(answer)) == (409, "not_in_region")
        assert answer.json()["context"] == {"regions": []}


class TestHosts:
    def path(self, site: Site, what: str = "", host: str = "web7") -> str:
        return f"/api/v1/hosts/{site.account.pk}:{host}/{what}"

    def enable(self, site: Site, api, **body):
        named = {"account": str(site.account.pk), "host": "web7"}
        return api.post("/api/v1/hosts/", named | body, format="json")

    @pytest.mark.rule("C2", "C14", "C18", "C23")
    def test_a_name_is_enough_to_protect_all_volumes_of_a_host(self, site, api):
        presence.seen("w7", ["host.web7"], now=timezone.now(), volumes=["/", "/boot/efi", "/data"])
        answer = self.enable(site, api)
        assert answer.status_code == 201
        host = answer.json()["host"]
        assert (host["id"], host["status"], host["region"]) == (f"{site.account.pk}:web7", "ready", site.region.name)
        roots = [Source.objects.get(pk=plan["source"]).settings["roots"] for plan in host["plans"]]
        assert roots == [["/"], ["/data"]]
        assert answer.json()["recovery_key"].startswith("BSRK-")
        assert answer.headers["Cache-Control"] == "no-store"
        again = self.enable(site, api, roots=["/"])
        assert (again.status_code, error_code(again)) == (409, "essential_enabled")

    @pytest.mark.rule("C13")
    def test_hosts_without_an_active_plan_are_listed_for_choosing(self, site, api):
        make_source(site.account, site.region, "idle")
        self.enable(site, api)

        def names(status: str = "") -> list[str]:
            found = api.get("/api/v1/hosts/", {"account": site.account.pk, **({"status": status} if status else {})})
            return [one["host"] for one in found.json()["results"]]

        assert names() == ["acme-web", "idle", "web7"]
        assert (names("inactive"), names("ready"), names("other")) == (["idle"], ["web7"], ["acme-web"])
        Plan.objects.filter(edition=Edition.STANDARD).delete()
        assert names("inactive") == ["acme-web", "idle"]
        assert api.get("/api/v1/hosts/", {"status": "odd"}).status_code == 400

    def test_a_list_of_hosts_asks_the_database_as_often_however_many_there_are(
        self, site, api, django_assert_max_num_queries
    ):
        for number in range(12):
            self.enable(site, api, host=f"h{number}", roots=["/", "/data"])
        with django_assert_max_num_queries(12):
            assert len(api.get("/api/v1/hosts/").json()["results"]) == 13

    @pytest.mark.rule("C11", "C17", "C36")
    def test_settings_are_changed_and_what_may_be_lost_is_told(self, site, api):
        self.enable(site, api)
        body = {"priority": "high", "start_time": "03:30", "keep_at_least_one": False}
        answer = api.patch(self.path(site), body, format="json")
        assert answer.status_code == 200
        assert any("ends at" in text for text in answer.json()["warnings"])
        plan = Plan.objects.select_related("policy").get(edition=Edition.ESSENTIAL)
        assert (plan.priority, f"{plan.start_time}", plan.policy.keep_at_least_one) == ("high", "03:30:00", False)
        assert api.patch(self.path(site), {"priority": "urgent"}, format="json").status_code == 400

    @pytest.mark.rule("C30", "C31", "C18")
    def test_a_host_is_paused_and_resumed_and_never_resumed_when_it_runs(self, site, api):
        self.enable(site, api)
        assert error_code(api.post(self.path(site, "resume/"))) == "plan_not_paused"
        assert api.post(self.path(site, "pause/")).json()["status"] == "paused"
        again = api.post(self.path(site, "pause/"))
        assert (again.status_code, error_code(again)) == (409, "plan_paused")
        assert api.post(self.path(site, "resume/")).json()["status"] == "ready"

    @pytest.mark.rule("C32")
    def test_canceling_takes_the_typed_name_ends_all_plans_and_tells_of_locks(self, site, api):
        self.enable(site, api, roots=["/", "/data"])
        vault = Vault.objects.get(name__startswith="Hosts in")
        root, data = Source.objects.filter(host="web7").order_by("name")
        until = site.plan.created_at.replace(year=2100)
        make_point(vault, root)
        make_point(vault, data, locked_until=until)
        wrong = api.post(self.path(site, "cancel/"), {"confirmation": "web"}, format="json")
        assert (wrong.status_code, error_code(wrong)) == (409, "confirmation_wrong")
        answer = api.post(self.path(site, "cancel/"), {"confirmation": "web7"}, format="json")
        assert (answer.status_code, answer.json()["points"], answer.json()["locked"]) == (202, 2, 1)
        assert answer.json()["ends_at"].startswith("2100-")
        assert not Plan.objects.filter(edition=Edition.ESSENTIAL).exists()
        assert api.get(self.path(site)).json()["status"] == "canceling"
        assert error_code(self.enable(site, api)) == "source_erasing"
        assert not Job.objects.filter(source__host="web7", state=JobState.QUEUED).exists()

    def test_only_who_may_cancels_and_outsiders_find_nothing(self, site, api):
        self.enable(site, api)
        operator = client_of(join(site.account, "op", Role.OPERATOR))
        answer = operator.post(self.path(site, "cancel/"), {"confirmation": "web7"}, format="json")
        assert answer.status_code == 403
        assert operator.post(self.path(site, "pause/")).status_code == 200
        assert api.get("/api/v1/hosts/00000000-0000-0000-0000-000000000000:web7/").status_code == 404
