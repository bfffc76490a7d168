"""Lists ask the database as often for many rows as for one."""

import datetime as dt
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from knox.models import AuthToken

from accounts.metering import Allowance, Meter, Price, Usage
from accounts.models import ApiToken, CustomRole, Grant
from accounts.services import SERVICE, record
from backupsite.api import router
from jobs import services
from jobs.alert_models import Alert, AlertRule, AlertType, Channel, Severity, Silence
from jobs.models import Job
from jobs.states import JobState
from tests.support.api import client_of
from tests.support.people import (
    T0,
    join,
    make_account,
    make_plan,
    make_point,
    make_policy,
    make_region,
    make_source,
    make_user,
    make_vault,
)
from vaults.models import Quota

pytestmark = pytest.mark.django_db
MANY = 6
# All but the one that answers one document.
LISTS = [prefix for prefix, view, _ in router.registry if hasattr(view, "list") and prefix != "editions"]


def add(owner: Any, number: int) -> None:
    """Make an account with a row of everything that is listed, each with rows of its own behind it."""
    account = make_account(f"account {number}")
    join(account, f"owner {number}")
    region = make_region(f"region-{number}")
    source, vault = make_source(account, region, f"web{number}"), make_vault(account, region, f"vault {number}")
    policy = make_policy(account, f"policy {number}")
    plan = make_plan(source, policy, vault)
    point = make_point(vault, source)
    job = services.request_backup(plan, actor=SERVICE, now=T0)
    Job.objects.filter(pk=job.pk).update(state=JobState.COMPLETE, point=point, requested_by=owner)
    record(SERVICE, "job.backup", job, account=account, now=T0)
    about: dict[str, Any] = {"account": account, "source": source, "vault": vault, "plan": plan}
    channel = Channel.objects.create(account=account, name="mail", kind="email", created_at=T0)
    AlertRule.objects.create(**about, name="rule", created_at=T0).channels.add(channel)
    Silence.objects.create(**about, until=T0, created_at=T0)
    Alert.objects.create(
        **about, job=job, type=AlertType.values[0], severity=Severity.WARNING, key=f"k{number}", title="t",
        in_inbox=True, first_at=T0, last_at=T0,
    )  # fmt: skip
    CustomRole.objects.create(account=account, name="own", privileges=["view"], created_at=T0)
    friend = make_account(f"friend {number}")
    Grant.objects.create(grantor=account, grantee=friend, all_sources=True, privileges=["backup"], created_at=T0)
    token, _ = AuthToken.objects.create(user=owner)
    ApiToken.objects.create(token=token, name=f"token {number}", account=account)
    day = T0.date() - dt.timedelta(days=number)
    Usage.objects.create(
        account=account, day=day, meter=Meter.values[0], vault=str(vault.pk), source=source.series, quantity=1,
        created_at=T0,
    )  # fmt: skip
    Price.objects.create(account=account, meter=Meter.values[0], price=1, valid_from=day, created_at=T0)
    Quota.objects.create(account=account, vault=vault, bytes_hard=1 << 40, created_at=T0)
    Allowance.objects.create(account=account, bytes=1, starts_on=day, created_at=T0)


def asked(client: Any, path: str) -> tuple[int, int]:
    """Return how many rows a list shows, and how many queries that takes, not counting what its first sight makes."""
    client.get(path)
    with CaptureQueriesContext(
        connection,
    ) as queries:
        answer = client.get(path)
    assert answer.status_code == 200, (path, answer.content)
    body = answer.json()
    return len(body["results"] if isinstance(body, dict) else body), len(queries)


@pytest.fixture
def owner():
    user = make_user("root")
    user.is_superuser = user.is_staff = True
    user.save()
    return user


@pytest.mark.parametrize("prefix", LISTS)
def test_a_list_takes_as_many_queries_for_many_rows_as_for_one(owner, prefix):
    client, path = client_of(owner), f"/api/v1/{prefix}/"
    add(owner, 0)
    few, queries = asked(client, path)
    for number in range(1, MANY):
        add(owner, number)
    many, queries_then = asked(client, path)
    assert many >= few + MANY - 1
    assert queries_then == queries, f"{few} rows: {queries} queries, {many} rows: {queries_then}"
