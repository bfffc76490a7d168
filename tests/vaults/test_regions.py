"""Regions whose store is away are still shown."""

import pytest

from tests.support.api import client_of
from tests.support.control import make_site
from vaults.models import Region

pytestmark = pytest.mark.django_db


def test_a_region_that_could_not_be_reached_is_listed_with_the_reason(tmp_path):
    site = make_site(tmp_path)
    Region.objects.update(capabilities={}, probe_error="nothing answers")
    (listed,) = client_of(site.owner).get("/api/v1/regions/").json()["results"]
    assert (listed["capabilities"], listed["probe_error"]) == ({}, "nothing answers")
