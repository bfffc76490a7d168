"""A point can be looked into and read through the API, without restoring it."""

import base64
import os
from urllib.parse import urlencode

import pytest

from accounts.services import SERVICE
from jobs import local, services
from tests.support.api import client_of
from tests.support.control import TREE, Clock, Site, make_site
from vaults.models import RecoveryPoint

pytestmark = [pytest.mark.django_db, pytest.mark.rule("B22")]
RAW = b"caf\xe9 \n1.txt"


@pytest.fixture
def site(tmp_path) -> Site:
    site = make_site(tmp_path)
    raw = os.fsencode(site.files) + b"/" + RAW
    with open(raw, "wb") as file:
        file.write(b"not utf-8")
    with open(site.files / "sparse", "wb") as sparse:
        sparse.truncate(3_000_000)
        sparse.seek(1_500_000)
        sparse.write(b"island")
    clock = Clock()
    local.do(services.request_backup(site.plan, actor=SERVICE, now=clock()), clock=clock)
    return site


@pytest.fixture
def browse(site):
    client = client_of(site.owner)
    point = RecoveryPoint.objects.get()

    def get(what: str, **query):
        return client.get(f"/api/v1/recovery-points/{point.pk}/{what}/?{urlencode(query)}")

    return get


def names(answer) -> list[str]:
    assert answer.status_code == 200, answer.content
    return [entry["name"] for entry in answer.json()["entries"]]


def test_folders_are_listed_from_the_top_down(browse, site):
    top = browse("entries")
    assert top.json()["path"] == "/"
    assert names(top) == [site.files.parts[1]]
    assert names(browse("entries", path=str(site.files / "photos"))) == ["one.jpg", "two.jpg"]


def test_an_entry_tells_what_ls_would(browse, site):
    (notes,) = [e for e in browse("entries", path=str(site.files)).json()["entries"] if e["name"] == "notes.txt"]
    assert (notes["kind"], notes["size"], notes["mode"]) == ("file", 6, "0644")
    assert notes["path"] == str(site.files / "notes.txt")


def test_a_long_folder_comes_in_pages(browse, site):
    seen: list[str] = []
    cursor: str | None = ""
    while cursor is not None:
        page = browse("entries", path=str(site.files), limit=2, cursor=cursor)
        assert len(names(page)) <= 2
        seen += names(page)
        cursor = page.json()["next"]
    assert len(seen) == len(set(seen)) == len(list(site.files.iterdir()))


@pytest.mark.rule("C1")
@pytest.mark.parametrize("name", sorted(TREE))
def test_a_single_file_is_streamed_with_its_length_and_name(browse, site, name):
    answer = browse("file", path=str(site.files / name))
    assert answer.status_code == 200
    assert b"".join(answer.streaming_content) == TREE[name]
    assert answer["Content-Length"] == str(len(TREE[name]))
    assert answer["Content-Disposition"] == f"attachment; filename*=UTF-8''{name.rpartition('/')[2]}"


def test_holes_come_back_as_zeros(browse, site):
    body = b"".join(browse("file", path=str(site.files / "sparse")).streaming_content)
    assert body == (site.files / "sparse").read_bytes()


def test_names_that_are_no_utf8_can_be_read_by_their_bytes(browse, site):
    listed = browse("entries", path=str(site.files)).json()["entries"]
    (entry,) = [one for one in listed if base64.urlsafe_b64decode(one["path_base64"]).endswith(RAW)]
    answer = browse("file", path_base64=entry["path_base64"])
    assert b"".join(answer.streaming_content) == b"not utf-8"
    assert "caf%E9%20%0A1.txt" in answer["Content-Disposition"]


@pytest.mark.parametrize(
    ("what", "path", "status"),
    [
        ("entries", "/no/such/folder", 404),
        ("file", "/no/such/file", 404),
        ("file", "{files}", 404),
        ("file", "{files}/../files/notes.txt", 400),
        ("entries", "a\0b", 400),
    ],
)
def test_what_is_not_there_is_not_found(browse, site, what, path, status):
    answer = browse(what, path=path.format(files=site.files))
    assert (answer.status_code, answer["Content-Type"]) == (status, "application/json")


def test_bad_cursors_and_limits_are_refused(browse):
    assert browse("entries", limit="many").status_code == 400
    assert browse("entries", cursor="%%%").status_code == 400
    assert browse("file", path_base64="%").status_code == 400
