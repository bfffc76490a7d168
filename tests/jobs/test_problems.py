"""Every error and skipped entry of a job can be downloaded, however many, and harms no spreadsheet."""

import csv
import io
import json
import os
import socket
import tempfile
from typing import Any

import pytest

from accounts.services import SERVICE
from jobs import local, problems, services
from jobs.executors import port
from jobs.models import Job
from tests.support.api import client_of
from tests.support.control import Clock, Site, make_site
from tests.support.people import join, make_account
from vaults import repositories

pytestmark = pytest.mark.django_db


@pytest.fixture
def site(tmp_path) -> Site:
    return make_site(tmp_path)


def sockets(site: Site, names: list[str]) -> None:
    """Put things into the source that a backup leaves out and counts."""
    with tempfile.TemporaryDirectory() as short:  # a socket's address is short
        for name in names:
            with socket.socket(socket.AF_UNIX) as unix:
                unix.bind(f"{short}/s")
            os.rename(f"{short}/s", site.files / name)


def backup(site: Site) -> Job:
    clock = Clock()
    return local.do(services.request_backup(site.plan, actor=SERVICE, now=clock()), clock=clock)


def downloaded(site: Site, job: Job, format: str) -> str:
    answer: Any = client_of(site.owner).get(f"/api/v1/jobs/{job.pk}/problems/", {"as": format})
    assert answer.status_code == 200
    assert answer["Content-Disposition"].endswith(f'problems.{format}"')
    return b"".join(answer.streaming_content).decode()


def test_all_problems_of_a_backup_come_from_its_point_not_only_those_in_the_row(site, monkeypatch):
    monkeypatch.setattr(port, "PROBLEMS_SHOWN", 3)
    names = [f"sock{number:02}" for number in range(12)]
    sockets(site, names)
    job = backup(site)
    assert (len(job.report["problems"]), job.problems_count) == (3, 12)
    rows = list(csv.DictReader(io.StringIO(downloaded(site, job, "csv"))))
    assert [row["path"] for row in rows] == [f"{site.files}/{name}" for name in names]
    assert {(row["reason"], row["lost"]) for row in rows} == {("socket", "no")}
    lines = [json.loads(line) for line in downloaded(site, job, "jsonl").splitlines()]
    assert [line["path"] for line in lines] == [row["path"] for row in rows]
    assert job.statistics["skipped"] == {"socket": 12}


def test_without_the_point_the_rows_first_problems_come_and_how_many_more_there_are(site, monkeypatch):
    monkeypatch.setattr(port, "PROBLEMS_SHOWN", 3)
    sockets(site, [f"sock{number}" for number in range(5)])
    job = backup(site)
    Job.objects.filter(pk=job.pk).update(point=None)
    lines = [json.loads(line) for line in downloaded(site, job, "jsonl").splitlines()]
    assert [line["reason"] for line in lines] == ["socket"] * 3 + ["not-listed"]
    assert lines[-1]["detail"].startswith("2 more")


def test_a_vault_that_is_away_gives_what_the_row_knows(site, monkeypatch):
    sockets(site, ["sock"])
    job = backup(site)

    def away(vault):
        raise OSError("away")

    monkeypatch.setattr(repositories, "open_vault", away)
    assert "socket" in downloaded(site, job, "csv")


@pytest.mark.parametrize("cell", ["=1+1", "+1", "-1", "@cmd", "\tx", "\rx"])
def test_no_cell_is_a_formula(cell):
    job = Job(kind="restore", report={"problems": [{"path": cell, "reason": "x", "detail": "", "lost": True}]})
    job.problems_count = 1
    text = "".join(problems.lines(job, format="csv"))
    (row,) = csv.reader(io.StringIO(text.partition("\r\n")[2], newline=""))
    assert row[0] == "'" + cell
    assert json.loads("".join(problems.lines(job, format="jsonl")))["path"] == cell


def test_a_report_comes_in_parts_and_an_unknown_format_or_an_outsider_gets_none(site):
    found = [{"path": f"/{number}", "reason": "x", "detail": "", "lost": True} for number in range(1200)]
    job = Job(kind="restore", report={"problems": found}, problems_count=1200)
    assert len(list(problems.lines(job, format="csv"))) == 3
    done = backup(site)
    assert client_of(site.owner).get(f"/api/v1/jobs/{done.pk}/problems/", {"as": "xls"}).status_code == 400
    outsider = client_of(join(make_account("other"), "stranger"))
    assert outsider.get(f"/api/v1/jobs/{done.pk}/problems/").status_code == 404


def test_what_patterns_leave_out_is_counted_and_told(site):
    site.source.settings["exclude"] = ["*.jpg", "deep/"]
    site.source.save()
    job = backup(site)
    assert job.statistics["skipped"] == {"excluded": 3}
    assert (job.statistics["files_total"], job.problems_count) == (2, 0)
