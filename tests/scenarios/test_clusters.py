"""A real cluster's life in the control plane: enabled, backed up by itself and by hand, deleted, restored elsewhere."""

import ipaddress
from collections.abc import Iterator
from typing import Any

import pytest

from accounts.services import SERVICE
from jobs import clusters, removal, services
from jobs.due import settle_plan
from jobs.states import JobState
from policies import reading
from policies.models import Source
from tests.services import Milvus
from tests.support.milvus import empty, fill, seen
from tests.support.people import T0, online
from tests.support.story import Story

pytestmark = [pytest.mark.scenario, pytest.mark.slow, pytest.mark.django_db]


@pytest.fixture
def uri(milvus_service: Milvus) -> Iterator[str]:
    empty(milvus_service.uri)
    fill(milvus_service.uri, rows=300)
    yield milvus_service.uri
    empty(milvus_service.uri)


def content(uri: str) -> dict[str, Any]:
    """Return what the cluster's collections hold; their times to live are left out (D4)."""
    kept = ("rows", "indexes", "aliases")
    return {
        f"{database}/{name}": {part: one[part] for part in kept}
        for database, found in seen(uri).items()
        for name, one in found["collections"].items()
    }


@pytest.mark.rule("D2")
@pytest.mark.rule("D12")
@pytest.mark.rule("D29")
@pytest.mark.rule("D30")
def test_automatic_points_go_with_a_cluster_and_its_manual_one_fills_a_new_cluster(tmp_path, uri, settings):
    settings.SOURCE_NETWORKS = [ipaddress.ip_network("127.0.0.0/8")]
    settings.WORKER_SEEN_S = 10**9
    settings.MAINTENANCE_EVERY_S = dict.fromkeys(settings.MAINTENANCE_EVERY_S, 0)
    story = Story(tmp_path)
    site = story.site
    online(site.region.queue)

    def cluster(name: str) -> Source:
        own = Source(account=site.account, region=site.region, name=name, kind="milvus", created_at=T0)
        own.settings = reading.check_settings("milvus", {"uri": uri, "rbac": False})
        reading.seal_credentials(own, {})
        own.save()
        return own

    old = cluster("old")
    before = content(uri)
    plan, first = clusters.set_automatic(
        old, changes={}, enabled=True, vault=site.vault, actor=SERVICE, now=story.clock()
    )
    assert plan is not None
    assert first is not None
    assert plan.next_run_at is not None
    assert story.do(first).state == JobState.COMPLETE, first.error
    story.clock.now = plan.next_run_at
    window = settle_plan(plan, now=story.now)
    assert window is not None
    assert story.do(window).state == JobState.COMPLETE
    manual = story.do(services.request_on_demand(old, site.vault, actor=SERVICE, now=story.now)).point
    assert manual is not None
    removal.erase(old, confirmation="old", actor=SERVICE, now=story.now)
    story.pass_minutes(20)
    assert story.in_vault() == {manual.point_id}
    assert not Source.objects.filter(pk=old.pk).exists()
    empty(uri)
    wanted = services.Selection(destination=cluster("new"))
    restored = story.do(services.request_restore(manual, wanted, actor=SERVICE, now=story.now))
    assert restored.state == JobState.COMPLETE, restored.error
    assert content(uri) == before
