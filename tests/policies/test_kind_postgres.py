"""What the service makes of the settings of a PostgreSQL source."""

from typing import Any

import pytest
from rest_framework.exceptions import ValidationError

from engine.sources.postgres import PostgresSource
from engine.targets.postgres import PostgresTarget
from engine.targets.postgres_data import PostgresDataTarget
from policies.kinds.port import Reading
from policies.kinds.postgres import TYPE


def checked(**settings: Any) -> dict[str, Any]:
    """Return settings as they are stored; raise ValidationError for bad ones."""
    serializer = TYPE.settings(data=settings)
    serializer.is_valid(raise_exception=True)
    return dict(serializer.validated_data)


def reading(**settings: Any) -> Reading:
    return Reading("db1", checked(**settings), {"password": " secret "})


def test_settings_become_a_source_of_the_host() -> None:
    source = TYPE.source(reading(server="/var/run/postgresql", databases=["shop"], exclude_tables=["logs.*"]))
    assert isinstance(source, PostgresSource)
    assert (source.host, source.server, source.port, source.mode) == ("db1", "/var/run/postgresql", 5432, "logical")
    assert (source.databases, source.exclude_tables, source.password) == (("shop",), ("logs.*",), " secret ")
    log = TYPE.source(reading(mode="wal", spool="/srv/spool", keep_days=3))
    assert isinstance(log, PostgresSource)
    assert (log.mode, log.spool, log.slot, log.keep_days) == ("wal", "/srv/spool", "backupsite", 3)


def test_dumps_go_into_the_server_under_their_names_or_with_a_suffix() -> None:
    target = TYPE.target(reading(server="db.example", port=5433), "")
    assert isinstance(target, PostgresTarget)
    assert (target.server, target.port, target.suffix, target.password) == ("db.example", 5433, "", " secret ")
    beside = TYPE.target(reading(), "_restored")
    assert isinstance(beside, PostgresTarget)
    assert beside.suffix == "_restored"


@pytest.mark.parametrize(
    ("to", "folder", "until"),
    [
        ("/srv/restored", "/srv/restored", ""),
        ("/srv/restored until 2031-05-06T07:08:09+00:00", "/srv/restored", "2031-05-06T07:08:09+00:00"),
    ],
)
def test_base_backups_and_logs_go_into_a_data_directory(to: str, folder: str, until: str) -> None:
    for settings in ({"mode": "physical"}, {"mode": "wal", "spool": "/srv/spool"}):
        target = TYPE.target(reading(**settings), to)
        assert isinstance(target, PostgresDataTarget)
        assert (target.folder, target.until) == (folder, until)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"mode": "everything"}, "not a valid choice"),
        ({"mode": "wal"}, "one of them"),
        ({"mode": "wal", "spool": "/a", "wal_folder": "/b"}, "one of them"),
        ({"mode": "wal", "spool": "a"}, "absolute path"),
        ({"port": 70_000}, "65535"),
        ({"slot": "My Slot"}, "does not match"),
        ({"keep_days": 0}, "greater than or equal to 1"),
    ],
)
def test_bad_settings_are_refused_with_what_to_do(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        checked(**settings)


@pytest.mark.parametrize("to", ["/srv/x until yesterday", "/srv/x until 2031-05-06T07:08:09", "srv/x", "x until 2031"])
def test_a_text_that_is_no_place_is_refused(to: str) -> None:
    with pytest.raises(ValidationError):
        TYPE.check_to(to)


@pytest.mark.parametrize("to", ["", "_restored", "/srv/x", "/srv/x until 2031-05-06T07:08:09+02:00"])
def test_a_place_is_a_suffix_or_a_folder_with_or_without_a_moment(to: str) -> None:
    TYPE.check_to(to)
