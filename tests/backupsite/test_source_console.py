"""The console's pages of sources: a form for each kind, secrets that stay in, trial connections, destinations."""

import datetime as dt
import sys

import pytest
from django.contrib.auth.models import Permission
from django.test import Client
from django.utils import timezone

from accounts.models import Event, User
from accounts.services import SERVICE
from jobs import local, services, tasks
from policies import forms, reading
from policies.kinds import TYPES
from policies.models import Plan, Source
from tests.support.console import page, press, rules_of
from tests.support.control import Clock, Site, make_site
from tests.support.people import T0, make_point, make_source, online
from tests.support.sources import source_of
from vaults.models import RecoveryPoint

pytestmark = pytest.mark.django_db
SECRET = "hunter2hunter2"


@pytest.fixture
def site(tmp_path) -> Site:
    return make_site(tmp_path)


@pytest.fixture
def console(site) -> Client:
    client = Client()
    client.force_login(User.objects.create_superuser("root"))
    return client


def place(site: Site, **values: object) -> dict[str, object]:
    return {"account": site.account.pk, "region": site.region.pk, "name": "new", **values}


def add(kind: str) -> str:
    return f"{page('policies_source', 'add')}?kind={kind}"


def program(site: Site, console: Client, **values: object) -> Source:
    """Make a source of kind command through its form."""
    fields = {"host": "db1", "settings_argv": "true", "settings_name": "output"}
    answer = console.post(add("command"), place(site, **fields | values), follow=True)
    assert "errornote" not in answer.content.decode()
    return Source.objects.get(name="new")


def test_a_person_chooses_the_kind_first_and_is_told_what_each_protects(console):
    text = console.get(page("policies_source", "add")).content.decode()
    for name, kind in TYPES.items():
        assert f'href="?kind={name}"' in text
        assert kind.about[:40] in text


@pytest.mark.parametrize("kind", TYPES)
def test_the_form_has_every_field_of_its_kind_and_no_other(console, kind):
    text = console.get(add(kind)).content.decode()
    shown = [*forms.names_of(kind, forms.SETTINGS), *forms.names_of(kind, forms.CREDENTIALS)]
    for name in shown:
        assert f'name="{name}"' in text, name
    assert ('name="host"' in text) == TYPES[kind].on_host
    assert ('name="skip_check"' in text) != TYPES[kind].on_host
    assert text.count('name="settings_') >= len(forms.names_of(kind, forms.SETTINGS))


def test_a_source_is_made_through_its_service(site, console):
    fields = {"host": "nas1", "settings_roots": "/mnt/a\n/mnt/b\n", "settings_exclude": "*.tmp"}
    console.post(add("files"), place(site, **fields))
    source = Source.objects.get(name="new")
    assert (source.kind, source.host, source.settings["roots"]) == ("files", "nas1", ["/mnt/a", "/mnt/b"])
    assert Event.objects.filter(action="source.create", user_name="root").exists()


@pytest.mark.parametrize(
    ("kind", "fields", "field", "text"),
    [
        ("files", {"host": "h", "settings_roots": "relative"}, "settings_roots", "not an absolute path"),
        ("files", {"host": "h"}, "settings_roots", "This field is required"),
        ("files", {"settings_roots": "/srv"}, "host", "This field is required"),
        ("command", {"host": "h", "settings_argv": "true", "settings_name": "a/b"}, "settings_name", "without"),
        (
            "command",
            {"host": "h", "settings_argv": "true", "settings_name": "a", "credentials_environment": "oops"},
            "credentials_environment",
            "NAME=value",
        ),
    ],
)
def test_what_is_wrong_stands_next_to_its_field_and_nothing_is_stored(site, console, kind, fields, field, text):
    answer = console.post(add(kind), place(site, **fields))
    assert answer.status_code == 200
    [found] = [error for error in [answer.context["adminform"].form.errors.get(field)] if error]
    assert text in str(found)
    assert not Source.objects.filter(name="new").exists()


def test_an_internal_address_is_told_and_stands_in_the_audit_trail(site, console):
    fields = {"settings_endpoint": "http://127.0.0.1:9000", "settings_bucket": "shop", "settings_path_style": "on"}
    answer = console.post(add("bucket"), place(site, **fields))
    assert "127.0.0.1 is an internal address" in answer.content.decode()
    assert Event.objects.get(outcome="refused").action == "console.source.add"
    assert not Source.objects.filter(name="new").exists()


def test_what_was_typed_is_still_there_after_an_error(site, console):
    fields = {"host": "h", "settings_roots": "relative", "settings_exclude": "*.swp"}
    assert "*.swp" in console.post(add("files"), place(site, **fields)).content.decode()


def test_stored_credentials_are_never_shown_kept_when_empty_and_forgotten_when_told(site, console):
    source = program(site, console, credentials_environment=f"PASSWORD={SECRET}")
    assert reading.reading(source).credentials == {"environment": f"PASSWORD={SECRET}"}
    change = page("policies_source", "change", source.pk)
    text = console.get(change).content.decode()
    assert SECRET not in text
    assert "Stored. Leave it empty to keep it" in text

    fields = place(site, host="db1", settings_argv="false", settings_name="output")
    console.post(change, fields)
    source.refresh_from_db()
    assert source.settings["argv"] == ["false"]
    assert reading.reading(source).credentials == {"environment": f"PASSWORD={SECRET}"}
    console.post(change, fields | {"forget_credentials": "on"})
    source.refresh_from_db()
    assert source.credentials == ""


def test_the_kind_cannot_be_changed_on_the_page(site, console):
    source = program(site, console)
    fields = place(site, host="db1", settings_argv="true", settings_name="output")
    console.post(page("policies_source", "change", source.pk) + "?kind=files", fields | {"kind": "files"})
    source.refresh_from_db()
    assert source.kind == "command"


def test_a_host_that_is_off_is_told_when_somebody_tries_its_source(site, console):
    source = program(site, console)
    answer = console.get(page("policies_source", "test_connection", source.pk), follow=True)
    assert "No worker is running on db1" in answer.content.decode()


def test_the_worker_of_the_host_tries_its_source_and_the_page_shows_the_result(site, console, settings):
    settings.WORKER_SEEN_S = 10**9
    source = program(site, console, settings_argv="/no/such/program")
    online(source.queue)
    answer = console.get(page("policies_source", "test_connection", source.pk), follow=True)
    assert "The worker on db1 tries it now" in answer.content.decode()
    tasks.try_source(str(source.pk))
    for told in (page("policies_source", "change", source.pk), page("policies_source", "changelist")):
        assert ("is not there on db1" if "change/" in told else "Fails") in console.get(told).content.decode()
    Source.objects.filter(pk=source.pk).update(settings=source.settings | {"argv": ["true"]})
    tasks.try_source(str(source.pk))
    assert "It can be reached" in console.get(page("policies_source", "change", source.pk)).content.decode()


class TestDestinations:
    def test_the_dialog_offers_what_takes_the_point_and_tells_what_place_means(self, site, console):
        make_source(site.account, site.region, "other-host")
        dump = make_source(site.account, site.region, "dump", kind="command", settings={"argv": ["true"]})
        of_files = make_point(site.vault, site.source)
        text = press_open(console, of_files)
        assert "other-host" in text
        assert "dump: " not in text
        assert TYPES["files"].preflight in text
        of_dump = make_point(site.vault, dump)
        of_dump.source_kind = "command"
        of_dump.save()
        text = press_open(console, of_dump)
        for shown in ("dump: ", "other-host", TYPES["command"].preflight[:30], TYPES["command"].to):
            assert shown in text

    def test_a_place_that_is_none_stands_next_to_its_field(self, site, console):
        point = make_point(site.vault, site.source)
        fields = {"destination": site.source.pk, "to": "relative", "mode": "all", "same_name": "skip"}
        answer = press(console, "vaults_recoverypoint", "restore", point.pk, **fields)
        assert "Give an absolute path" in answer.content.decode()

    def test_a_point_is_restored_to_another_host(self, site, console, settings, tmp_path):
        settings.WORKER_SEEN_S = 10**9
        clock = Clock()
        point = local.do(services.request_backup(site.plan, actor=SERVICE, now=clock()), clock=clock).point
        other = make_source(site.account, site.region, "other-host")
        online(other.queue, at=T0)
        fields = {"destination": other.pk, "to": str(tmp_path), "mode": "all", "same_name": "skip"}
        assert point is not None
        press(console, "vaults_recoverypoint", "restore", point.pk, **fields)
        job = other.jobs.get()
        assert (job.kind, job.queue_work, job.settings["to"]) == ("restore", "host.other-host", str(tmp_path))

    def test_who_may_only_look_shows_no_credentials_to_another_server(self, site, settings):
        settings.WORKER_SEEN_S = 10**9
        source = source_of("milvus", site.account, site.region)
        source.save()
        online(site.region.queue)
        point = make_point(site.vault, source)
        RecoveryPoint.objects.filter(pk=point.pk).update(source_kind="milvus")
        looker = User.objects.create_user("looker", is_staff=True)
        looker.user_permissions.set(Permission.objects.filter(codename__in=["view_recoverypoint", "view_job"]))
        client = Client()
        client.force_login(looker)
        fields = {"to": "https://203.0.113.9", "mode": "all", "same_name": "skip"}
        answer = press(client, "vaults_recoverypoint", "restore", point.pk, **fields)
        assert "Only who may change the destination" in answer.content.decode()
        assert not source.jobs.exists()
        press(client, "vaults_recoverypoint", "restore", point.pk, **fields | {"to": "_restored"})
        assert source.jobs.get().settings["to"] == "_restored"


def press_open(console: Client, point: object) -> str:
    """Open the dialog of the restore and return it."""
    return console.get(page("vaults_recoverypoint", "restore", point.pk)).content.decode()  # type: ignore[attr-defined]  # a row


def test_a_jobs_page_shows_streams_requests_and_reasons(site, console):
    settings = {"argv": [sys.executable, "-c", "print('dump')"], "name": "out.txt", "marker": ""}
    dump = make_source(site.account, site.region, "dump", kind="command", settings=settings)
    site.plan.source = dump
    site.plan.save()
    online(dump.queue)
    clock = Clock()
    job = local.do(services.request_backup(site.plan, actor=SERVICE, now=clock()), clock=clock)
    job.report |= {
        "requests": {"GET": 1200, "LIST": 3},
        "problems": [
            {"path": "/a", "reason": "archived", "detail": "GLACIER", "lost": False},
            {"path": "/b", "reason": "vanished", "detail": "", "lost": True},
        ],
    }
    job.save()
    text = console.get(page("jobs_job", "change", job.pk)).content.decode()
    for shown in ("1 of 1 streams", "GET: 1,200", "LIST: 3", "archived: 1", "GLACIER", "vanished: 1"):
        assert shown in text, shown


@pytest.mark.rule("A21")
def test_a_plan_takes_a_policy_that_is_there_or_one_that_is_made_on_the_way(site, console):
    bucket = source_of("bucket", site.account, site.region)
    bucket.save()
    form = console.get(page("policies_plan", "add")).content.decode()
    assert page("policies_policy", "add") + "?_to_field=id&amp;_popup=1" in form
    values = {"source": bucket.pk, "policy": site.policy.pk, "vault": site.vault.pk}
    console.post(page("policies_plan", "add"), values, follow=True)
    plan = Plan.objects.get(source=bucket)
    assert (plan.policy, plan.vault) == (site.policy, site.vault)
    assert site.policy.plans.count() == 2  # an object of its own, which several plans share


@pytest.mark.rule("A28")
def test_a_plan_is_looked_at_and_its_schedule_changed_later(site, console):
    at = page("policies_plan", "change", site.plan.pk)
    assert str(site.policy) in console.get(at).content.decode()
    before = timezone.now() + dt.timedelta(days=30)
    Plan.objects.update(next_run_at=before)
    policy = console.get(page("policies_policy", "change", site.policy.pk)).context["adminform"].form
    values = {name: value for name, value in policy.initial.items() if value is not None}
    rules = rules_of({"id": site.policy.rules.get().pk, "start_time": "13:37:00"}, stored=1)
    console.post(page("policies_policy", "change", site.policy.pk), values | rules, follow=True)
    site.plan.refresh_from_db()
    assert site.plan.next_run_at != before
    assert (site.plan.next_run_at.hour, site.plan.next_run_at.minute) == (13, 37)
