"""What deleting would free: told by the API and the console before, and kept by the prune after."""

from pathlib import Path

import pytest
from django.test import Client

from accounts.metering import Meter
from accounts.models import Usage, User
from jobs import meters
from jobs.states import Kind
from tests.jobs.test_meters import DAY, MORNING
from tests.support.api import client_of, error_code
from tests.support.console import page
from tests.support.people import make_user
from tests.support.story import Story
from vaults import repositories

pytestmark = pytest.mark.django_db


@pytest.fixture
def story(tmp_path: Path) -> Story:
    story = Story(tmp_path)
    story.backup()
    story.backup(more=bytes(range(256)) * 3000)
    return story


def stored(story: Story) -> int:
    return sum(one.size for one in repositories.open_vault(story.site.vault).stored_packs())


def test_what_a_point_frees_is_what_goes_with_it(story):
    client = client_of(story.site.owner)
    newest = story.site.vault.points.first()
    assert newest is not None
    told = client.get(f"/api/v1/recovery-points/{newest.pk}/freed/").json()
    assert (told["points"], told["as_of"], told["vault_name"]) == (1, None, "vault")
    vault = str(story.site.vault.pk)
    same = client.get(f"/api/v1/vaults/{vault}/freed/", {"point": str(newest.pk)}).json()
    assert same == told
    both = client.get(f"/api/v1/vaults/{vault}/freed/", {"point": [str(p.pk) for p in story.site.vault.points.all()]})
    whole = client.get(f"/api/v1/sources/{story.site.source.pk}/freed/").json()
    assert whole == [both.json()]
    assert both.json()["bytes"] == stored(story) > told["bytes"] > 0
    before = stored(story)
    client.post(f"/api/v1/recovery-points/{newest.pk}/delete/", {"confirmation": story.site.source.name})
    for job in story.site.vault.jobs.filter(kind=Kind.EXPIRE):
        story.do(job)
    story.maintain(Kind.PRUNE)
    assert story.site.vault.points.count() == 1
    assert before - stored(story) == told["bytes"]


def test_a_large_vault_answers_for_its_sources_as_it_was_metered_and_refuses_the_rest(story, settings):
    settings.FREED_POINTS_MAX = 1
    client = client_of(story.site.owner)
    source = f"/api/v1/sources/{story.site.source.pk}/freed/"
    point = story.site.vault.points.first()
    assert point is not None
    assert error_code(client.get(f"/api/v1/recovery-points/{point.pk}/freed/")) == "too_many_points"
    assert error_code(client.get(source)) == "too_many_points"
    meters.read_vault(story.site.vault, now=MORNING)
    (told,) = client.get(source).json()
    (unique,) = Usage.objects.filter(meter=Meter.SOURCE_BYTES_UNIQUE).values_list("quantity", flat=True)
    assert (told["bytes"], told["points"], told["as_of"]) == (unique, 2, DAY.isoformat())


def test_points_of_others_are_not_asked_about(story):
    vault = f"/api/v1/vaults/{story.site.vault.pk}/freed/"
    client = client_of(story.site.owner)
    assert client.get(vault, {"point": "00000000-0000-0000-0000-000000000000"}).status_code == 400
    assert client.get(vault, {"point": "nonsense"}).status_code == 400
    assert client.get(vault).json()["bytes"] == 0
    assert client_of(make_user("outsider")).get(vault).status_code == 404


def test_the_console_tells_it_on_the_pages_of_points_and_sources(story, settings):
    console = Client()
    console.force_login(User.objects.create_superuser("root", password="x"))
    point = story.site.vault.points.first()
    assert point is not None
    shown = console.get(page("vaults_recoverypoint", "freed", point.pk), follow=True).content.decode()
    assert "deleting this point frees about" in shown
    shown = console.get(page("policies_source", "freed", story.site.source.pk), follow=True).content.decode()
    assert "deleting these 2 points frees about" in shown
    settings.FREED_POINTS_MAX = 1
    shown = console.get(page("policies_source", "freed", story.site.source.pk), follow=True).content.decode()
    assert "has more than 1 points" in shown


@pytest.mark.rule("B24")
def test_the_overview_and_the_vaults_page_show_what_its_packs_hold(story):
    console = Client()
    console.force_login(User.objects.create_superuser("root", password="x"))
    vault = page("vaults_vault", "change", story.site.vault.pk)
    assert "Not metered yet" in console.get(vault).content.decode()
    meters.read_vault(story.site.vault, now=MORNING)
    assert "all of it needed by points" in console.get(vault).content.decode()
    overview = console.get("/admin/").content.decode()
    assert "Stored in vaults" in overview
    assert "All vaults: 1" in overview


@pytest.mark.rule("B25", "E49")
@pytest.mark.parametrize("declared", ["LRS", "ZRS"])
def test_a_vault_has_the_redundancy_that_its_region_declares(story, declared):
    story.site.region.redundancy = declared
    story.site.region.save()
    shown = client_of(story.site.owner).get(f"/api/v1/vaults/{story.site.vault.pk}/").json()
    assert shown["redundancy"] == declared
    console = Client()
    console.force_login(User.objects.create_superuser("root", password="x"))
    assert f"{declared}: " in console.get(page("vaults_vault", "change", story.site.vault.pk)).content.decode()
