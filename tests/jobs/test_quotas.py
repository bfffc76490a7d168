"""Quotas: a soft limit tells once, a hard one lets no backup begin, and both count what is stored now."""

from pathlib import Path
from typing import Any

import pytest
import time_machine
from django.core.exceptions import ValidationError
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from accounts.models import Event, User
from accounts.services import SERVICE
from jobs import due, meters, tasks
from jobs import quotas as watch
from jobs.alert_models import Alert, AlertState
from jobs.models import Job
from jobs.states import JobState
from tests.jobs.test_meters import MORNING
from tests.support.api import client_of, error_code
from tests.support.console import page
from tests.support.people import T0, join, make_account, make_point, make_region, make_user, make_vault
from tests.support.story import Story
from vaults import quotas
from vaults.models import Quota, Vault

pytestmark = pytest.mark.django_db
GIB = 1 << 30


@pytest.fixture
def story(tmp_path: Path) -> Story:
    story = Story(tmp_path)
    story.backup()
    return story


def limit(vault: Vault, *, whole: bool = False, soft: int | None = None, hard: int | None = None) -> Quota:
    wanted = Quota(account=vault.account, vault=None if whole else vault, bytes_soft=soft, bytes_hard=hard)
    return quotas.set_quota(wanted, actor=SERVICE, now=T0)


def test_stored_is_what_was_metered_last_and_what_points_added_since(story):
    quota = limit(story.site.vault, hard=GIB)
    point = story.site.vault.points.get()
    assert quotas.stored(quota) == point.bytes_stored
    meters.read_vault(story.site.vault, now=MORNING)
    story.site.vault.reading.refresh_from_db()
    metered = story.site.vault.reading.bytes_stored
    assert quotas.stored(quota) == metered
    make_point(story.site.vault, story.site.source, at=MORNING.replace(hour=9), bytes_stored=50)
    assert quotas.stored(quota) == metered + 50
    assert quotas.stored(limit(story.site.vault, whole=True, hard=GIB)) == metered + 50


@pytest.mark.parametrize("whole", [True, False])
def test_at_the_hard_limit_no_backup_begins_and_the_plan_says_why(story, whole):
    plan = story.site.plan
    quota = limit(story.site.vault, whole=whole, hard=1)
    wanted = {"kind": "backup", "plan": str(plan.pk)}
    answer = client_of(story.site.owner).post("/api/v1/jobs/", wanted)
    assert (answer.status_code, error_code(answer)) == (409, "quota_exceeded")
    assert answer.json()["context"]["bytes_hard"] == 1
    plan.next_run_at = T0
    plan.save()
    job = due.settle_plan(plan, now=T0)
    assert job is not None
    assert job.state == JobState.SKIPPED
    assert job.error_code == "quota_exceeded"
    assert "have the quota raised" in job.error
    quotas.remove_quota(quota, actor=SERVICE, now=T0)
    assert (
        client_of(story.site.owner).post("/api/v1/jobs/", {"kind": "backup", "plan": str(plan.pk)}).status_code == 202
    )
    assert Job.objects.active().count() == 1


def test_a_batch_of_plans_asks_for_quotas_with_three_queries(story):
    vaults = [story.site.vault, make_vault(story.site.account, story.site.region, "other")]
    for vault in vaults:
        limit(vault, hard=10**9)
    limit(story.site.vault, whole=True, hard=1)
    with CaptureQueriesContext(connection) as queries:
        found = quotas.refusals(vaults)
    assert len(queries) == 3
    assert set(found) == {vault.pk for vault in vaults}


def test_above_the_soft_limit_it_is_told_once_and_again_when_it_is_over(story):
    limit(story.site.vault, soft=1, hard=GIB)
    with time_machine.travel(T0, tick=False):
        for _ in range(2):
            tasks.sweep_metering()
    assert Event.objects.filter(action="quota.soft_exceeded").count() == 1
    alert = Alert.objects.get(type="quota")
    assert (alert.vault_id, alert.state) == (story.site.vault.pk, AlertState.OPEN)
    assert "no backup begins" in alert.text
    limit(story.site.vault, soft=GIB)
    assert watch.sweep(now=T0, rows_max=10) == 1
    alert.refresh_from_db()
    assert alert.state == AlertState.RESOLVED
    assert Event.objects.filter(action="quota.soft_kept").count() == 1
    assert watch.sweep(now=T0, rows_max=10) == 0


def test_limits_that_make_no_sense_are_refused(story):
    other = make_vault(make_account("other"), make_region("elsewhere"))
    wrong: tuple[dict[str, Any], ...] = (
        {"vault": story.site.vault},
        {"vault": story.site.vault, "bytes_soft": 2, "bytes_hard": 1},
        {"vault": other, "bytes_hard": 1},
    )
    for values in wrong:
        with pytest.raises(ValidationError):
            quotas.set_quota(Quota(account=story.site.account, **values), actor=SERVICE, now=T0)


def test_staff_limits_accounts_and_administrators_limit_vaults(story):
    account, vault = str(story.site.account.pk), str(story.site.vault.pk)
    owner, viewer = client_of(story.site.owner), client_of(join(story.site.account, "viewer", "viewer"))
    assert owner.post("/api/v1/quotas/", {"account": account, "bytes_hard": 5}).status_code == 403
    assert viewer.post("/api/v1/quotas/", {"account": account, "vault": vault, "bytes_hard": 5}).status_code == 403
    made = owner.post("/api/v1/quotas/", {"account": account, "vault": vault, "bytes_hard": 5})
    assert made.status_code == 201
    again = owner.post("/api/v1/quotas/", {"account": account, "vault": vault, "bytes_soft": 4, "bytes_hard": 6}).json()
    assert (again["id"], again["bytes_hard"]) == (made.json()["id"], 6)
    root = client_of(User.objects.create_superuser("root", password="x"))
    assert root.post("/api/v1/quotas/", {"account": account, "bytes_hard": 5}).status_code == 201
    assert len(viewer.get("/api/v1/quotas/").json()["results"]) == 2
    assert client_of(make_user("outsider")).get("/api/v1/quotas/").json()["results"] == []
    path = f"/api/v1/quotas/{again['id']}/"
    assert viewer.delete(path).status_code == 403
    assert owner.delete(path).status_code == 204


def test_quotas_are_set_seen_and_taken_away_in_the_console(story):
    console = Client()
    console.force_login(User.objects.create_superuser("root", password="x"))
    wanted = {"account": str(story.site.account.pk), "vault": str(story.site.vault.pk), "soft": "0.000", "hard": "2"}
    console.post(page("vaults_quota", "add"), wanted)
    quota = Quota.objects.get()
    assert quota.bytes_hard == 2 * GIB
    shown = console.get(page("vaults_quota", "changelist")).content.decode()
    assert "2.0 GiB" in shown
    assert "Soft limit exceeded" in shown
    assert "2.0 GiB" in console.get(page("vaults_quota", "change", quota.pk)).content.decode()
    console.post(page("vaults_quota", "delete", quota.pk), {"post": "yes"})
    assert not Quota.objects.exists()
    limit(story.site.vault, hard=1)
    assert "Full" in console.get(page("vaults_quota", "changelist")).content.decode()
