"""Who may see the trail, and what comes into it: actions, refusals, denials, failed logins."""

import json

import pytest
from django.core.management import CommandError
from django.test import Client
from django.urls import reverse

from accounts.commands import ServiceCommand
from accounts.models import Event, Outcome, Role, User
from accounts.refusals import Refused
from accounts.services import SERVICE, create_account
from jobs import services
from tests.support.api import client_of
from tests.support.control import Site, make_site
from tests.support.people import PASSWORD, T0, join, make_account, make_user

pytestmark = pytest.mark.django_db


@pytest.fixture
def site(tmp_path) -> Site:
    return make_site(tmp_path)


def refused() -> Event:
    return Event.objects.filter(outcome=Outcome.REFUSED).latest("pk")


def told(event: Event) -> tuple[str, str, str, str]:
    return event.user_name, event.action, event.object_name, event.detail["code"]


def test_a_refusal_of_the_api_names_who_asked_what_of_what(site):
    services.request_backup(site.plan, actor=SERVICE, now=T0)
    answer = client_of(site.owner).post("/api/v1/jobs/", {"kind": "backup", "plan": str(site.plan.pk)})
    assert answer.status_code == 409
    event = refused()
    assert told(event) == ("acme-owner", "api.job.create", str(site.plan), "source_busy")
    assert (event.account_id, event.address) == (site.account.pk, "127.0.0.1")
    assert "is being backed up already" in event.detail["reason"]


def test_a_denial_of_the_api_is_kept(site):
    viewer = join(site.account, "eve", Role.VIEWER)
    assert client_of(viewer).post(f"/api/v1/plans/{site.plan.pk}/pause/").status_code == 403
    assert told(refused()) == ("eve", "api.plan.pause", str(site.plan), "permission_denied")
    assert client_of(viewer).post("/api/v1/regions/", {}).status_code == 403
    assert told(refused()) == ("eve", "api.region.create", "", "permission_denied")


def test_what_an_unknown_caller_is_refused_leaves_no_line(site):
    count = Event.objects.count()
    assert client_of().get("/api/v1/accounts/").status_code == 401
    assert Event.objects.count() == count


def test_a_refusal_of_the_console_names_page_person_and_row(site):
    console = Client()
    console.force_login(User.objects.create_superuser("root"))
    press = {"_form_submitted": "True"}
    services.request_backup(site.plan, actor=SERVICE, now=T0)
    console.post(reverse("admin:policies_plan_run_now", args=[site.plan.pk]), press)
    assert told(refused()) == ("root", "console.plan.run_now", str(site.plan), "source_busy")
    assert refused().account_name == "acme"


def test_a_denial_of_the_console_is_kept(site):
    console = Client()
    console.force_login(make_user("ann", staff=True))
    assert console.get("/admin/vaults/vault/").status_code == 403
    assert told(refused()) == ("ann", "console.vault.changelist", "", "permission_denied")


def test_a_failed_login_is_kept_under_the_name_that_was_tried():
    client_of().post("/api/v1/tokens/login/", {"username": "ann", "password": "guess"})
    assert (refused().action, refused().object_name, refused().user_name) == ("login", "ann", "")
    Client().post("/admin/login/", {"username": "bob", "password": "guess"})
    assert (refused().object_name, refused().address) == ("bob", "127.0.0.1")
    assert "guess" not in json.dumps(list(Event.objects.values("detail")))


def test_logins_and_logouts_of_the_console_are_kept():
    User.objects.create_superuser("root", password=PASSWORD)
    console = Client()
    console.post("/admin/login/", {"username": "root", "password": PASSWORD})
    console.post("/admin/logout/")
    assert list(Event.objects.order_by("pk").values_list("action", "user_name")) == [
        ("login", "root"),
        ("logout", "root"),
    ]


def test_people_that_are_made_changed_and_deleted_in_the_console_are_kept():
    console = Client()
    console.force_login(User.objects.create_superuser("root"))
    page = "/admin/accounts/user/"
    console.post(
        f"{page}add/", {"username": "ann", "password1": PASSWORD, "password2": PASSWORD, "usable_password": "true"}
    )
    ann = User.objects.get(username="ann")
    console.post(f"{page}{ann.pk}/change/", {"username": "ann", "is_staff": "on", "is_active": "on"})
    console.post(f"{page}{ann.pk}/password/", {"password1": PASSWORD, "password2": PASSWORD, "usable_password": "true"})
    console.post(f"{page}{ann.pk}/delete/", {"post": "yes"})
    rows = Event.objects.filter(object_type="user", object_name="ann").order_by("pk")
    assert [row.action for row in rows] == ["user.create", "user.change", "user.change", "user.delete"]
    assert rows[1].detail == {"fields": ["Staff status"]}
    assert PASSWORD not in json.dumps([row.detail for row in rows])


def test_a_command_s_refusal_is_told_and_kept():
    class Command(ServiceCommand):
        def handle(self, *args: object, **options: object) -> None:
            raise Refused("Not now.", code="not_now")

    with pytest.raises(CommandError, match="Not now"):
        Command().execute(force_color=False, no_color=False, skip_checks=True)
    assert refused().detail["code"] == "not_now"
    assert "on this machine" in refused().detail["reason"]


def test_an_account_that_is_renamed_is_kept():
    console = Client()
    root = User.objects.create_superuser("root")
    console.force_login(root)
    account = create_account(name="acme", owner=root, actor=SERVICE, now=T0)
    inline = {f"members-{name}_FORMS": value for name, value in (("TOTAL", 0), ("INITIAL", 0))}
    console.post(f"/admin/accounts/account/{account.pk}/change/", {"name": "apex"} | inline)
    assert Event.objects.filter(action="account.rename", object_name="apex", user_name="root").exists()


def test_a_plan_that_is_changed_in_the_console_is_kept(site):
    console = Client()
    console.force_login(User.objects.create_superuser("root"))
    console.post(reverse("admin:policies_plan_change", args=[site.plan.pk]), {"catch_up": "on"})
    assert Event.objects.get(action="plan.change", user_name="root").detail["catch_up"] is True


@pytest.mark.parametrize(("role", "sees"), [(Role.OWNER, True), (Role.ADMIN, True), (Role.OPERATOR, False)])
def test_the_trail_of_an_account_is_for_its_administrators(site, role, sees):
    person = join(site.account, "ann", role)
    services.request_backup(site.plan, actor=SERVICE, now=T0)
    listed = client_of(person).get("/api/v1/events/").json()["results"]
    assert bool(listed) == sees
    assert client_of(join(make_account("other"), "eve")).get("/api/v1/events/").json()["results"] == []
    assert ("job.backup" in client_of(person).get("/api/v1/events/export/").getvalue().decode()) == sees


def test_a_superuser_sees_everything_and_filters_it(site):
    services.request_backup(site.plan, actor=SERVICE, now=T0)
    root = client_of(User.objects.create_superuser("root"))
    every = root.get("/api/v1/events/").json()["results"]
    assert {"region.create", "vault.create", "job.backup"} == {line["action"] for line in every}
    some = root.get("/api/v1/events/", {"action__startswith": "job", "account_id": str(site.account.pk)})
    assert [line["action"] for line in some.json()["results"]] == ["job.backup"]
    assert root.get("/api/v1/events/", {"outcome": "refused"}).json()["results"] == []


@pytest.mark.django_db(transaction=True)
def test_the_api_exports_the_chain_and_tells_whether_it_is_intact(site):
    root = client_of(User.objects.create_superuser("root"))
    text = root.get("/api/v1/events/export/").getvalue().decode()
    last = json.loads(text.splitlines()[-1])
    state = root.get("/api/v1/events/chain/", {"verify": "true"}).json()
    assert (state["intact"], state["guarded"], state["digest"]) == (True, True, last["digest"])
    assert root.get("/api/v1/events/export/", {"as": "csv"}).getvalue().startswith(b"sequence,")
    assert root.get("/api/v1/events/export/", {"as": "pdf"}).status_code == 400
    owner = client_of(site.owner)
    assert owner.get("/api/v1/events/chain/").status_code == 403
    lines = [json.loads(line)["row"] for line in owner.get("/api/v1/events/export/").getvalue().splitlines()]
    assert {line["account_name"] for line in lines} == {"acme"}


def test_the_console_shows_the_chain_s_head_verifies_and_exports(site):
    console = Client()
    console.force_login(User.objects.create_superuser("root"))
    page = "/admin/accounts/event/"
    assert "lines in the chain" in console.get(page).content.decode()
    answer = console.get(f"{page}verify-chain/", follow=True)
    assert "are what they were when they were written" in answer.content.decode()
    assert b"vault.create" in console.get(f"{page}export-jsonl/").getvalue()
    assert b"vault.create" in console.get(f"{page}export-csv/").getvalue()


@pytest.mark.parametrize("button", ["verify-chain", "export-jsonl", "export-csv"])
def test_who_may_not_see_the_trail_can_neither_verify_nor_export_it(site, button):
    console = Client()
    console.force_login(make_user("ann", staff=True))
    assert console.get(f"/admin/accounts/event/{button}/").status_code == 403
    assert refused().user_name == "ann"
