"""Every endpoint of the API, as somebody who is no member, and as one who may only look: none forgets to ask.

A new endpoint is walked by itself. It fails here until ROWS names a row for its address, and BODIES a request that
makes something; who reads no more than others is listed in MORE_THAN_VIEW.
"""

from typing import Any, NamedTuple

import pytest
from django.urls import reverse

from accounts.models import Account, Allowance, CustomRole, Grant, Price, Role
from accounts.services import SERVICE
from backupsite.api import router
from jobs import services
from jobs.alert_models import Alert, AlertRule, Channel, Severity, Silence
from tests.support.api import client_of
from tests.support.control import Site, make_site
from tests.support.people import T0, join, make_account, make_point, make_user
from vaults.models import Quota

pytestmark = pytest.mark.django_db

# Regions belong to the installation: everybody may read them, staff alone writes.
OF_INSTALLATION = {"region", "policy.regions", "price", "allowance", "edition"}
# What a caller is asked about the own person alone.
OF_CALLER = {"token.list", "token.create", "token.login", "token.logout", "token.destroy"}
# What is asked about one account, which an outsider has none of.
OF_ONE_ACCOUNT = {"usage.report"}
# What a member needs more than `view` for.
MORE_THAN_VIEW = {"account.events", "point.entries", "point.file", "event.chain"}


class Call(NamedTuple):
    """One method of one address."""

    name: str
    method: str
    path: str
    detail: bool


@pytest.fixture
def site(tmp_path) -> Site:
    return make_site(tmp_path)


def rows(site: Site) -> dict[str, Any]:
    """Return, by endpoint, what stands in its addresses."""
    job = services.request_verify(site.vault, level="inventory", actor=SERVICE, now=T0)
    role = CustomRole.objects.create(account=site.account, name="some", privileges=["view"], created_at=T0)
    return {
        "token": "bs_12345",
        "account": site.account.pk,
        "role": role.pk,
        "region": site.region.name,
        "vault": site.vault.pk,
        "point": make_point(site.vault, site.source).pk,
        "source": site.source.pk,
        "policy": site.policy.pk,
        "plan": site.plan.pk,
        "job": job.pk,
        "quota": Quota.objects.create(account=site.account, vault=site.vault, bytes_soft=1, created_at=T0).pk,
        "price": Price.objects.create(meter="clients", price=1, valid_from=T0.date(), created_at=T0).pk,
        "allowance": Allowance.objects.create(kind="free", bytes=1, starts_on=T0.date(), created_at=T0).pk,
        **alert_rows(site),
        "host": f"{site.account.pk}:{site.source.host}",
        "grant": Grant.objects.create(
            grantor=site.account, grantee=make_account("friend"), all_sources=True, privileges=["backup"], created_at=T0
        ).pk,
    }


def alert_rows(site: Site) -> dict[str, Any]:
    alert: dict[str, Any] = {"account": site.account, "first_at": T0, "last_at": T0}
    of_account: dict[str, Any] = {"account": site.account, "created_at": T0}
    return {
        "alert": Alert.objects.create(type="backup_failed", severity=Severity.WARNING, key="k", **alert).pk,
        "alert_rule": AlertRule.objects.create(name="rule", **of_account).pk,
        "channel": Channel.objects.create(name="mail", kind="email", **of_account).pk,
        "silence": Silence.objects.create(until=T0, reason="", **of_account).pk,
    }


def bodies(site: Site) -> dict[str, dict[str, Any]]:
    """Return, by endpoint, a request that makes something, and would if the caller were the owner."""
    mine = {"account": str(site.account.pk), "name": "new"}
    files = {"roots": ["/srv"]}
    return {
        "token": {"name": "a program", "read_only": True},
        "account": {"name": "new"},
        "role": mine | {"privileges": ["backup"]},
        "region": {"name": "new", "url": str(site.files / "new")},
        "vault": mine | {"region": site.region.name},
        "source": mine | {"region": site.region.name, "kind": "files", "host": "h", "settings": files},
        "policy": mine,
        "plan": {name: str(getattr(site, name).pk) for name in ("source", "policy", "vault")},
        "host": {"account": str(site.account.pk), "host": "h", "roots": ["/home"]},
        "job": {"kind": "verify", "vault": str(site.vault.pk)},
        "quota": {"account": mine["account"], "vault": str(site.vault.pk), "bytes_hard": 1},
        "price": {"meter": "clients", "price": "1", "valid_from": "2099-01-01"},
        "allowance": {"kind": "free", "bytes": 1, "starts_on": "2099-01-01"},
        "alert_rule": mine,
        "channel": mine | {"kind": "email", "settings": {"addresses": ["ops@example.org"]}},
        "silence": {"account": mine["account"], "until": "2099-01-01T00:00:00Z", "reason": "known"},
        "grant": {
            "grantor": str(site.account.pk),
            "grantee": str(Account.objects.get_or_create(name="guest", defaults={"created_at": T0})[0].pk),
            "all_sources": True,
            "privileges": ["backup"],
        },
    }


def calls(site: Site) -> list[Call]:
    """Return every method of every address of the API."""
    found = []
    known = rows(site) | {"username": site.owner.username}
    urls: list[Any] = router.urls
    for url in urls:
        basename = str(url.name).partition("-")[0]
        groups = url.pattern.regex.groupindex
        for method, action in url.callback.actions.items():
            if method == "head":
                continue
            lookups = {name: known.get(name) or known.get(basename) for name in groups}
            assert None not in lookups.values(), f"rows() has nothing for the addresses of {basename}"
            path = reverse(url.name, kwargs=lookups)
            found.append(Call(f"{basename}.{action}", method, path, detail=bool(groups)))
    return found


def answered(site: Site, client: Any, call: Call) -> Any:
    """Return the answer to a call; one that makes something asks for something valid."""
    body: dict[str, Any] = {}
    if call.name.endswith(".create"):
        body = bodies(site)[call.name.partition(".")[0]]
    return getattr(client, call.method)(call.path, body)


def test_an_outsider_finds_nothing_anywhere(site):
    client = client_of(make_user("outsider"))
    wrong, count = {}, 0
    for call in calls(site):
        count += 1
        answer = answered(site, client, call)
        status, reads = answer.status_code, call.method == "get"
        if {call.name, call.name.partition(".")[0]} & OF_INSTALLATION:
            right = status == (200 if reads else 403)
        elif call.detail or call.name in OF_ONE_ACCOUNT:
            right = status == 404
        elif call.name in OF_CALLER or call.name in MORE_THAN_VIEW:
            right = status < 500
        elif reads:
            text = answer.getvalue() if answer.streaming else answer.content
            right = (
                status == 200 and str(site.account.pk).encode() not in text and site.account.name.encode() not in text
            )
        else:
            right = status in (400, 403)
        if not right:
            wrong[call.name] = status
    assert wrong == {}
    assert count > 70


def test_a_viewer_reads_what_is_no_secret_and_changes_nothing(site):
    client = client_of(join(site.account, "viewer", Role.VIEWER))
    wrong = {}
    for call in calls(site):
        status = answered(site, client, call).status_code
        if call.name in OF_CALLER:
            right = status in (200, 201, 204, 400, 404)
        elif call.method == "get" and call.name not in MORE_THAN_VIEW:
            right = status in (200, 404) or call.name == "source.retention"  # which asks for a vault
        else:
            right = status == 403
        if not right:
            wrong[call.name] = status
    assert wrong == {}


def test_the_owner_may_do_what_the_walk_forbids_to_others(site):
    """The requests of the walk are refused for who asks, not for what they say."""
    client = client_of(site.owner)
    made = {name for name, body in bodies(site).items() if client.post(reverse(f"{name}-list"), body).status_code < 300}
    assert made == set(bodies(site)) - {
        "account",
        "region",
        "price",
        "allowance",
        "plan",
    }  # for staff; and there is that plan
