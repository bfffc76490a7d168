"""What deleting points would free, told before anybody deletes them. Reads the store now, within a bound.

By packs: what the next prune frees. Packs of which other points need a part stay; a compaction frees of those, later,
what is dead.
"""

import datetime as dt
import uuid
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from django.conf import settings

from accounts.metering import Meter
from accounts.models import Usage
from accounts.refusals import Refused
from engine.progress import Silent
from engine.vault import PointName
from engine.verbs.apportion import freed_by
from vaults import repositories
from vaults.models import RecoveryPoint, Vault, VaultReading


class TooManyPoints(Refused):
    """The vault has more points than are looked at while a person waits."""

    code = "too_many_points"


@dataclass(frozen=True, slots=True)
class Freed:
    """Bytes that go with `points` points of one vault. `as_of` is the day of a metering, None for what was read now."""

    vault: Vault
    points: int
    bytes: int
    as_of: dt.date | None = None


def by_points(vault: Vault, points: Collection[RecoveryPoint]) -> Freed:
    """Say what deleting these points of a vault would free. Raises TooManyPoints, and what opening a vault raises."""
    names = {PointName(point.series, point.point_id) for point in points}
    if not names:
        return Freed(vault, 0, 0)
    limit = settings.FREED_POINTS_MAX
    found = None
    if vault.points.count() <= limit:
        found = freed_by(repositories.open_vault(vault), names, Silent(), points_max=limit)
    if found is None:
        raise TooManyPoints(
            f"{vault} has more than {limit:,} points: that takes too long to find out while you wait. Look at what "
            "its sources use alone in the report of usage.",
            points_max=limit,
        )
    return Freed(vault, found.points, found.bytes)


def by_series(series: str, vaults: Iterable[Vault]) -> list[Freed]:
    """Say, vault by vault, what deleting all points of a source would free; of a large vault as it was metered last."""
    told = []
    for vault in vaults:
        points = vault.points.filter(series=series)
        try:
            told.append(by_points(vault, points))
        except TooManyPoints:
            reading = VaultReading.objects.filter(vault=vault).first()
            if reading is None or reading.day is None:
                raise
            rows = Usage.objects.filter(
                meter=Meter.SOURCE_BYTES_UNIQUE, vault=str(vault.pk), source=series, day=reading.day
            )
            told.append(Freed(vault, points.count(), sum(row.quantity for row in rows), reading.day))
    return told


def vaults_of(series: str, account_id: uuid.UUID) -> list[Vault]:
    """Return the vaults of an account in which a source has points."""
    holding = RecoveryPoint.objects.filter(series=series, vault__account=account_id).values("vault")
    return list(Vault.objects.filter(pk__in=holding).select_related("account", "region"))
