"""The catalogue of recovery points: rows made from what the vault itself says. The vault is the truth."""

import datetime as dt
import uuid
from dataclasses import dataclass

import msgspec
from django.db import transaction

from engine.locks import LockPolicy
from engine.point import Body
from engine.vault import PointName
from engine.verbs.hold import Hold, holds
from engine.verbs.rebuild import Row
from vaults import repositories
from vaults.models import PointState, RecoveryPoint, Vault


@dataclass(slots=True)
class Rebuilt:
    """What a rebuild did: `damaged` are points whose root cannot be read, with the reason."""

    points_found: int
    points_added: int
    points_gone: int
    damaged: list[str]


def register(vault: Vault, body: Body | Row, *, now: dt.datetime) -> RecoveryPoint:
    """Store the row of a committed point. Safe to call twice; name and expiry are set by the first call alone.

    Retention counts from completion, by the service's clock. The row's id is made of the point's name, so that a
    rebuilt row is the same row. It goes into the database that `vault` came from.
    """
    stats = body.stats
    expires_at = body.ended_at + dt.timedelta(days=body.retention_days) if body.retention_days else None
    values = {
        "source_kind": body.kind,
        "host": body.host,
        "roots": body.roots,
        "state": PointState.COMPLETE if body.complete else PointState.PARTIAL_COMPLETE,
        "started_at": body.started_at,
        "completed_at": body.ended_at,
        "entries_count": stats.entries,
        "bytes_total": stats.bytes,
        "bytes_stored": stats.bytes_stored,
        "problems_count": body.problems_total,
        "retention_days": body.retention_days,
        "rule": body.rule,
        "manual": body.manual,
        "locked_until": body.locked_until,
        "stats": msgspec.to_builtins(stats),
    }
    fresh = {
        "id": uuid.uuid5(vault.pk, f"{body.series}/{body.point}"),
        "created_at": now,
        "source_name": body.name,
        "expires_at": expires_at,
    }
    point, _ = RecoveryPoint.objects.using(vault._state.db).update_or_create(
        vault=vault, series=body.series, point_id=body.point, defaults=values, create_defaults=values | fresh
    )
    return point


def rebuild(vault: Vault, *, now: dt.datetime) -> Rebuilt:
    """Make the rows of a vault equal to its points and their holds. Safe to call twice.

    A damaged point keeps the row it has.
    """
    opened = repositories.open_vault(vault)
    note_policy(vault, opened.lock_policy)
    known = {PointName(*key): pk for *key, pk in vault.points.values_list("series", "point_id", "pk")}
    result = Rebuilt(0, 0, 0, [])
    seen = set()
    for listed in opened.catalogue():
        seen.add(listed.name)
        result.points_found += 1
        if listed.root is None:
            result.damaged.append(f"{listed.name.series}/{listed.name.point}: {listed.error}")
            continue
        result.points_added += listed.name not in known
        register(vault, listed.root.body, now=now)
    gone = [pk for name, pk in known.items() if name not in seen]
    with transaction.atomic():
        result.points_gone = RecoveryPoint.objects.filter(pk__in=gone).delete()[0]
        mark_held(vault, {held.name: held.hold for held in holds(opened)}, now=now)
    return result


def note_policy(vault: Vault, policy: LockPolicy | None) -> None:
    """Let the row say that the vault is immutable, and for how long, when the vault itself says so or says more."""
    if policy is None or (vault.immutable_since and vault.lock_days >= policy.days):
        return
    vault.immutable_since = vault.immutable_since or policy.since
    vault.lock_days = policy.days
    vault.save(update_fields=["immutable_since", "lock_days"])


def mark_held(vault: Vault, held: dict[PointName, Hold | None], *, now: dt.datetime) -> None:
    """Let the rows tell which points are held in the vault. A damaged hold holds as well, and tells no more."""
    for row in vault.points.all():
        name = PointName(row.series, row.point_id)
        if (name in held) == (row.held_at is not None):
            continue
        hold = held.get(name)
        row.held_at = (hold.at if hold else now) if name in held else None
        row.held_by, row.hold_reason = "", hold.reason[:255] if hold else ""
        row.save(update_fields=["held_at", "held_by", "hold_reason"])
