"""Keep every vault's bucket told of the control plane's rows: soon after a change, and daily."""

import datetime as dt
import hashlib

import msgspec
import structlog
from django.conf import settings
from django.db.models import Exists, Max, OuterRef, Q, QuerySet

from accounts.models import Event
from engine import system as store
from engine.errors import EngineError
from engine.system import Export
from jobs import system
from jobs.models import SystemExport
from vaults import repositories
from vaults.models import Vault, VaultState

log = structlog.get_logger(__name__)
DAILY = dt.timedelta(days=1)
_NEVER = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
# An export that is older than this, of rows that changed since, was not made as it should have been.
LATE = dt.timedelta(days=2)


def sweep(*, now: dt.datetime, rows_max: int) -> int:
    """Export the rows of the vaults that need it; return how many were written.

    A store that did not answer once is left alone for this sweep, and its vaults are tried again later.
    """
    away: set[object] = set()
    written = 0
    for vault in _due(now)[:rows_max]:
        if vault.region_id in away:
            continue
        try:
            written += export(vault, now=now)
        except (EngineError, OSError, ValueError) as error:
            away.add(vault.region_id)
            log.warning("system.not_exported", vault=str(vault.pk), error=str(error))
            SystemExport.objects.update_or_create(vault=vault, defaults={"looked_at": now, "error": str(error)})
    return written


def _due(now: dt.datetime) -> QuerySet[Vault]:
    """Return the vaults whose account or regions changed since the last look, and those that had their day."""
    newer = Event.objects.filter(pk__gt=OuterRef("system_export__seen_event"))
    changed = Exists(newer.filter(account_id=OuterRef("account_id"))) | Exists(newer.filter(object_type="region"))
    rested = Q(system_export__looked_at__lte=now - dt.timedelta(seconds=settings.EXPORT_EVERY_S))
    old = Q(system_export__exported_at=None) | Q(system_export__exported_at__lte=now - DAILY)
    due = Q(system_export=None) | (rested & (Q(changed) | old))
    vaults = Vault.objects.exclude(state__in=(VaultState.DELETING, VaultState.DELETED))
    return vaults.filter(due).select_related("account", "region").order_by("account", "pk")


def export(vault: Vault, *, now: dt.datetime) -> bool:
    """Write the vault's export unless the last one says the same and is of today; say whether it was written.

    Raises what the store raises.
    """
    # First the number, then the rows: what changes in between is looked at again.
    seen = Event.objects.aggregate(last=Max("pk"))["last"] or 0
    found = system.export_of(vault, system.tables_of(vault.account), now=now)
    digest = digest_of(found)
    kept = SystemExport.objects.filter(vault=vault).first()
    values = {"seen_event": seen, "looked_at": now, "error": ""}
    fresh = kept is not None and kept.exported_at is not None and kept.exported_at > now - DAILY
    if kept is not None and fresh and kept.digest == digest:
        SystemExport.objects.filter(pk=kept.pk).update(**values)
        return False
    opened = repositories.open_vault(vault)
    key = store.put(opened.storage, opened.keys, found)
    SystemExport.objects.update_or_create(
        vault=vault, defaults=values | {"key": key, "digest": digest, "exported_at": now}
    )
    return True


def digest_of(export: Export) -> str:
    """Return the digest of what an export says, whenever it says it."""
    return hashlib.sha256(store.encode(msgspec.structs.replace(export, at=_NEVER))).hexdigest()
