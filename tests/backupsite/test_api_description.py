"""The API keeps to its own description: whatever is asked is answered as it says, never by an error of its own."""

import os
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from django.core.signals import request_finished, request_started
from django.core.wsgi import get_wsgi_application
from django.db import close_old_connections, transaction
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from knox.models import AuthToken
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from accounts.services import SERVICE
from policies import connection
from tests.support.control import Site, make_site
from tests.support.people import T0, make_point
from vaults import replication
from vaults.models import Region, Vault, VaultType
from vaults.services import save_region

pytestmark = pytest.mark.django_db
CHECKS = (not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance)
EXAMPLES = int(os.environ.get("API_EXAMPLES", "5"))  # of each endpoint
PARTS = 4
# Which row of the site stands behind an id in a path.
ROWS = {
    "accounts": "account",
    "vaults": "vault",
    "recovery-points": "point",
    "sources": "source",
    "policies": "policy",
    "plans": "plan",
    "jobs": "job",
}


@pytest.fixture
def site(tmp_path, monkeypatch) -> Site:
    monkeypatch.setattr(connection, "check", lambda source: "")  # nothing is contacted but what the site itself has
    found = make_site(tmp_path)
    make_point(found.vault, found.source, at=T0)
    far = save_region(Region(name="far", url=str(tmp_path / "far")), actor=SERVICE, now=T0)
    replica = Vault(account=found.account, region=far, name="replica", type=VaultType.REPLICATION_TARGET)
    replication.start(found.vault, replica, actor=SERVICE, now=T0)
    return found


@pytest.fixture
def one_connection() -> Iterator[None]:
    """Let requests use the test's own connection, as Django's test client does."""
    for signal in (request_started, request_finished):
        signal.disconnect(close_old_connections)
    yield
    for signal in (request_started, request_finished):
        signal.connect(close_old_connections)


def operations() -> Iterator[Any]:
    schema = schemathesis.openapi.from_wsgi("/api/v1/schema/?format=json", get_wsgi_application())
    for found in schema.get_all_operations():
        operation = found.ok()  # type: ignore[union-attr]  # an error raises what is wrong with the description
        yield operation


def ids(site: Site) -> dict[str, str]:
    rows = {
        "account": site.account,
        "vault": site.vault,
        "source": site.source,
        "policy": site.policy,
        "plan": site.plan,
    }
    return {name: str(row.pk) for name, row in rows.items()} | {"point": str(site.vault.points.get().pk)}


def ask(case: Any, token: str) -> list[str]:
    """Send one request, take back what it did, and return in what the answer is not as described."""
    with transaction.atomic():
        answer = case.call(headers={"Authorization": f"Token {token}"})
        transaction.set_rollback(True)
    try:
        case.validate_response(answer, checks=CHECKS)
    except BaseExceptionGroup as failures:
        return [f"{case.as_curl_command()}\n{failures.exceptions}"]
    return []


@pytest.mark.parametrize("part", range(PARTS))
def test_every_answer_is_as_described(site, one_connection, part):
    _, token = AuthToken.objects.create(user=site.owner)
    known, found = ids(site), []
    for number, operation in enumerate(operations()):
        if number % PARTS != part:
            continue

        @settings(
            max_examples=EXAMPLES,
            deadline=None,
            database=None,
            derandomize=True,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy(), own=st.sampled_from([True, True, True, False]))
        def check(case: Any, own: bool) -> None:
            kind = case.path.split("/")[3]
            for name in case.path_parameters if own else ():
                case.path_parameters[name] = known.get(ROWS.get(kind, ""), str(uuid.UUID(int=0)))
            found.extend(ask(case, token))

        check()
    assert not found, f"{len(found)} answers\n\n" + "\n\n".join(_one_of_each(found))


def _one_of_each(found: list[str]) -> list[str]:
    """Return one answer for each endpoint and kind of failure."""
    return [*{text.partition("\n")[2][:100]: text for text in found}.values()]
