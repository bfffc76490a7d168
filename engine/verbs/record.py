"""What a verification leaves behind: notes of what was read, and of packs that are damaged (vault-format, Ledger)."""

import contextlib
import datetime as dt
from typing import NamedTuple

from engine.damage import clear_damaged, damaged_packs, note_damaged
from engine.errors import Forbidden, IntegrityError
from engine.ledger import Coverage, Ledger, Reading, point_states
from engine.vault import Vault
from engine.verbs.findings import Finding, pack_name
from engine.verbs.inspect import last_part, sha_name

PACK_DAMAGES = ("missing", "size", "damaged")


class Found(NamedTuple):
    """What a verification that began `at` found: `whole` objects, points with `rooted` roots, and what is wrong.

    `is_all` says that it looked at all points.
    """

    at: dt.datetime
    whole: list[str]
    rooted: list[str]
    findings: list[Finding]
    is_all: bool


class Recorded(NamedTuple):
    """What is noted now; as in verify.Outcome."""

    damaged: list[str]
    healed: list[str]
    coverage: Coverage | None


def record(vault: Vault, found: Found, now: dt.datetime, *, notes_sight: bool, days: int) -> Recorded:
    """Note what was read whole, which points are in order, and which packs are not. Safe to run twice.

    With `notes_sight` objects that the ledger does not know are noted as seen from now on.
    """
    storage, keys = vault.storage, vault.keys
    broken = {pack_name(f.object) for f in found.findings if pack_name(f.object) and f.damage in PACK_DAMAGES}
    note_damaged(storage, keys, broken)
    healed = clear_damaged(storage, set(found.whole) - broken)
    ledger = Ledger.load(storage, keys, now=now)
    sizes = {last_part(stored.key): stored.size for stored in storage.scan("") if sha_name(stored.key)}
    whole = set(found.whole)
    unknown = [name for name in sizes if name not in whole and ledger.since(name) is None]
    affected = {point for finding in found.findings for point in finding.points}
    sound = [point for point in found.rooted if point not in affected]
    points = _point_states(vault)
    ledger.note(
        Reading(
            found.at,
            read=sorted(whole),
            seen=unknown if notes_sight and found.is_all else [],
            points=[points[point] for point in sound if point in points],
        )
    )
    with contextlib.suppress(Forbidden):  # who may only add leaves the tidying to others
        ledger.tidy(objects=sizes, points=set(points.values()))
    coverage = ledger.coverage(sizes, now, days=days) if found.is_all else None
    return Recorded(sorted(damaged_packs(storage)), healed, coverage)


def _point_states(vault: Vault) -> dict[str, str]:
    """Return how the ledger spells each visible point; none when a damaged move may have changed any of them."""
    try:
        return point_states(vault.moves, [f"{name.series}/{name.point}" for name in vault.points()])
    except IntegrityError:
        return {}
