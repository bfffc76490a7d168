"""A cluster in a small installation; what it holds is the site's folder, so that no server has to run."""

from typing import Any

import pytest

from engine.sources.files import files_source
from jobs.executors import backup
from policies.models import Source
from tests.support.control import Site
from tests.support.people import join, make_account, make_region, make_vault, online
from tests.support.sources import source_of


def cluster_row(**settings: Any) -> Source:
    """Store a cluster in an account with an owner and one vault, all of them rows alone."""
    account, region = make_account(), make_region()
    join(account, "owner")
    make_vault(account, region)
    return _stored(source_of("milvus", account, region), settings)


def _stored(cluster: Source, settings: dict[str, Any]) -> Source:
    cluster.settings |= settings
    cluster.save()
    return cluster


def make_cluster(site: Site, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> Source:
    """Store a cluster, and let each backup read the site's folder in its place."""
    cluster = _stored(source_of("milvus", site.account, site.region), settings)
    site.plan.delete()
    online(site.region.queue)
    monkeypatch.setattr(backup, "engine_source", lambda source: files_source([str(site.files)], host=""))
    return cluster
