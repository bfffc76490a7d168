"""SAP HANA by its Backint agent: the database itself starts every backup, so no plan can."""

import os
import re
from typing import Any

from django.core.exceptions import ValidationError
from rest_framework import serializers

from engine.errors import SourceError
from engine.sources.kinds import AnySource
from engine.targets.files import FilesTarget
from engine.targets.kinds import AnyTarget
from policies.kinds.port import Reading, SourceType

_DATABASE = re.compile(r"[A-Z0-9_]{1,60}@[A-Z][A-Z0-9]{2}")
_HOW = (
    "SAP HANA starts its backups itself: schedule them in HANA's cockpit or with BACKUP DATA USING BACKINT. "
    "docs/sources/sap-hana.md says how the agent is installed"
)


class BackintSettings(serializers.Serializer[Any]):
    """Which database the agent on the host belongs to."""

    database = serializers.CharField(
        max_length=64, label="Database", help_text="As HANA names it to the agent: SYSTEMDB@HDB, or a tenant, TEN@HDB"
    )

    def validate_database(self, database: str) -> str:
        if not _DATABASE.fullmatch(database):
            raise serializers.ValidationError("Give the database and the system's id in capitals: SYSTEMDB@HDB.")
        return database


def _source(reading: Reading) -> AnySource:
    raise SourceError(_HOW)


def _target(reading: Reading, to: str) -> AnyTarget:
    return FilesTarget(root=os.fsencode(to))


def _check_to(to: str) -> None:
    if not to.startswith("/"):
        raise ValidationError(
            "Give an absolute folder of the host. Into the database HANA restores by itself: RECOVER."
        )


TYPE = SourceType(
    settings=BackintSettings,
    source=_source,
    target=_target,
    to="An existing folder of the host, for the stream as a file; HANA itself restores through its agent",
    on_host=True,
    starts_itself=True,
    check_to=_check_to,
    about="A SAP HANA database, which backs itself up through the Backint agent on its host",
    preflight="Register the agent with the HANA system that is to be recovered (docs/sources/sap-hana.md)",
)
