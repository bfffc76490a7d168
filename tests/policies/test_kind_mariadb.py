"""MariaDB servers as people name them: what settings are taken, and what the engine makes of them."""

from typing import Any

import pytest
from django.core.exceptions import ValidationError
from rest_framework import serializers

from engine.connections.mariadb import MariadbServer
from engine.sources.mariadb import MariadbImageSource, MariadbSource
from engine.sources.mariadb_logs import MariadbLogsSource
from engine.targets.mariadb import MariadbTarget
from engine.targets.mariadb_image import MariadbImageTarget
from engine.targets.mariadb_logs import MariadbLogsTarget
from policies.kinds.mariadb import TYPE
from policies.kinds.port import Reading
from policies.reading import check_credentials, check_settings

SERVER = MariadbServer(
    host="db.example.com", port=3307, user="reader", password=" secret ", tls="verify", tls_ca="/etc/ca.pem"
)


def reading(**values: Any) -> Reading:
    reach = {"server": "db.example.com", "port": 3307, "user": "reader", "tls": "verify", "tls_ca": "/etc/ca.pem"}
    secret = check_credentials("mariadb", {"password": " secret "})
    return Reading("db1", check_settings("mariadb", {**reach, **values}), secret)


def test_settings_become_the_source_of_their_mode() -> None:
    dumps = reading(databases=["shop"], together=True, users=False)
    assert TYPE.source(dumps) == MariadbSource(
        server=SERVER, host="db1", databases=("shop",), together=True, users=False
    )
    assert TYPE.source(reading(mode="physical")) == MariadbImageSource(server=SERVER, host="db1")
    logs = reading(mode="binlog", spool="/srv/logs", keep_days=9)
    assert TYPE.source(logs) == MariadbLogsSource(server=SERVER, host="db1", spool="/srv/logs", keep_days=9)


def test_a_place_becomes_the_target_of_its_mode() -> None:
    assert TYPE.target(reading(), "") == MariadbTarget(server=SERVER)
    assert TYPE.target(reading(), "_back") == MariadbTarget(server=SERVER, suffix="_back")
    image = MariadbImageTarget(folder="/srv/new", server=SERVER)
    assert TYPE.target(reading(mode="physical"), "/srv/new") == image
    logs = reading(mode="binlog", spool="/srv/logs")
    assert TYPE.target(logs, "b.000012:345 until 2031-05-06T07:08:09Z") == MariadbLogsTarget(
        server=SERVER, start="b.000012:345", stop="2031-05-06T07:08:09Z", scratch="/srv/logs"
    )


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"mode": "binlog"}, "Name a folder"),
        ({"spool": "logs"}, "absolute path"),
        ({"socket": "mysqld.sock"}, "absolute path"),
        ({"port": 0}, "greater than or equal to 1"),
        ({"tls": "perhaps"}, "not a valid choice"),
        ({"pasword": "x"}, "Unknown settings"),
    ],
)
def test_settings_that_cannot_be_are_refused(values: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        check_settings("mariadb", values)


@pytest.mark.parametrize(
    "to",
    ["", "_back", "/srv/new", "binlog.000012:345", "first until b.000014:678", "b.000001:4 until 2031-05-06T07:08:09Z"],
)
def test_places_of_every_mode_are_taken(to: str) -> None:
    TYPE.check_to(to)


@pytest.mark.parametrize("to", ["a/b", "back up", "until 2031-05-06", "b.12:4 until"])
def test_a_place_that_is_none_is_refused(to: str) -> None:
    with pytest.raises(serializers.ValidationError, match="a suffix"):
        TYPE.check_to(to)
