"""What holds for every kind of source: it becomes the engine's source, and its secrets stay where they belong."""

import json
import pickle
from ipaddress import ip_network

import msgspec
import pytest

from engine.errors import SourceError
from engine.sources.kinds import AnySource
from jobs import system
from policies import reading
from policies.kinds import TYPES
from policies.models import SourceKind
from tests.support.people import make_account, make_region
from tests.support.sources import CREDENTIALS, SECRET, SETTINGS, source_of

pytestmark = pytest.mark.django_db
BY_PLAN = [kind for kind in SourceKind.values if kind != "backint"]


@pytest.fixture(autouse=True)
def documentation_net(settings) -> None:
    """Let sources lie in the network that is nobody's: nothing is ever contacted there."""
    settings.SOURCE_NETWORKS = [ip_network("203.0.113.0/24")]


def test_every_kind_is_described_and_has_a_sample_here():
    assert set(TYPES) == set(SourceKind.values) == set(SETTINGS)
    for name, kind in TYPES.items():
        assert kind.about, name
        assert kind.preflight, name
        assert kind.to, name


@pytest.mark.parametrize("kind", BY_PLAN)
def test_it_becomes_the_engines_source_of_its_kind_and_travels_to_workers(kind):
    source = reading.engine_source(source_of(kind, make_account(), make_region()))
    assert source.identity().kind == kind
    assert pickle.loads(pickle.dumps(source)) == source
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(source), type=AnySource) == source


@pytest.mark.parametrize("kind", CREDENTIALS)
def test_its_secrets_stand_in_no_setting_and_in_nothing_that_is_shown(kind):
    row = source_of(kind, make_account(), make_region())
    source = reading.engine_source(row)
    shown = [repr(source), source.identity(), source.options(), row.settings, row.credentials, row.host]
    assert SECRET not in repr(shown)
    assert SECRET in reading.secret_texts(row)
    to = {"files": "/srv", "backint": "/srv"}.get(kind, "")
    target = reading.engine_target(row, kind=kind, to=to)
    assert SECRET not in target.where() + repr(target)


def test_settings_of_all_kinds_are_exported_in_the_clear_and_credentials_are_not():
    account, region = make_account(), make_region()
    rows = [source_of(kind, account, region) for kind in SourceKind.values]
    for row in rows:
        row.save()
    tables = system.tables_of(account)
    assert SECRET not in json.dumps(tables)
    exported = {row["kind"]: row["settings"] for row in tables["policies.source"]}
    assert exported == {row.kind: row.settings for row in rows}
    for row in rows:
        assert reading.check_settings(row.kind, exported[row.kind]) == row.settings


def test_hana_starts_its_backups_itself():
    with pytest.raises(SourceError, match="SAP HANA starts its backups itself"):
        reading.engine_source(source_of("backint", make_account(), make_region()))


@pytest.mark.parametrize("kind", [name for name, one in TYPES.items() if not one.on_host])
def test_what_is_read_over_the_network_tells_every_server_that_it_contacts(kind, settings):
    row = source_of(kind, make_account(), make_region())
    assert {host for host, _ in TYPES[kind].endpoints(row.settings)} == {"203.0.113.7"}
