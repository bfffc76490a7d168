"""Regions and vaults come about here; the catalogue of recovery points is kept here."""

import datetime as dt
import uuid

import msgspec
from django.core.exceptions import ValidationError
from django.db import IntegrityError, transaction

from accounts.refusals import Refused
from accounts.services import Actor, record
from engine.errors import EngineError
from engine.storage.probe import probe
from vaults import repositories
from vaults.models import Region, Vault


class RegionUnusable(Refused):
    """The store cannot be reached, or lacks what a vault needs."""

    code = "region_unusable"


class VaultTaken(Refused):
    """Names and places of vaults are unique."""

    code = "vault_exists"


class NameFixed(Refused):
    """A region's name is part of its queues' names, its address part of its vaults' places."""

    code = "region_fixed"


FIXED = ("name", "url")


def _probe(region: Region, *, now: dt.datetime) -> bool:
    """Fill in what the store can do, or why it cannot be used; does not save. True when a vault can live there."""
    region.probed_at = now
    region.capabilities, region.probe_error = {}, ""
    try:
        # A fresh name per probe: a canary that another probe left locked must not be met.
        found = probe(repositories.bare_storage(region), now=now, name=uuid.uuid4().hex)
    except (EngineError, ValueError, OSError) as error:
        region.probe_error = str(error)
        return False
    region.capabilities = msgspec.to_builtins(found)
    if not found.usable:
        region.probe_error = " ".join(found.problems) or "The store lacks what a vault needs."
    return found.usable


def save_region(region: Region, *, credentials: dict[str, str] | None = None, actor: Actor, now: dt.datetime) -> Region:
    """Check, probe and store a region, new or changed; `credentials` None keeps the stored ones.

    Raises ValidationError, NameFixed, and RegionUnusable: nothing is stored then.
    """
    new = region._state.adding
    if new:
        region.created_at = now
    else:
        kept = Region.objects.get(pk=region.pk)
        if any(getattr(kept, name) != getattr(region, name) for name in FIXED):
            raise NameFixed("A region's name and address never change. Make another region.")
    if credentials is not None:
        repositories.seal_credentials(region, credentials)
    region.full_clean()
    try:
        repositories.location(region)
    except ValueError as error:
        raise ValidationError({"url": str(error)}) from error
    if not _probe(region, now=now):
        raise RegionUnusable(f"The store cannot hold vaults: {region.probe_error}")
    with transaction.atomic():
        region.save()
        record(actor, "region.create" if new else "region.change", region, account=None, now=now)
    return region


def probe_region(region: Region, *, actor: Actor, now: dt.datetime) -> Region:
    """Probe the store again and keep what was found, good or bad."""
    _probe(region, now=now)
    with transaction.atomic():
        region.save(update_fields=["capabilities", "probe_error", "probed_at"])
        record(actor, "region.probe", region, account=None, now=now, error=region.probe_error)
    return region


def create_vault(vault: Vault, *, actor: Actor, now: dt.datetime) -> str:
    """Make a vault in its region and return its recovery key, which is shown once and kept nowhere.

    Raises VaultTaken, ValidationError, RegionUnusable. Crash: leaves an empty vault in the store that no row names.
    """
    vault.prefix = f"vaults/{vault.pk}"
    vault.created_at = now
    vault.full_clean(validate_unique=False, validate_constraints=False)
    if Vault.objects.filter(account=vault.account, name=vault.name).exists():
        raise VaultTaken(f"There is a vault {vault.name!r} already. Choose another name.")
    try:
        recovery_key = repositories.create(vault, now=now)
    except (EngineError, OSError) as error:
        raise RegionUnusable(f"The vault could not be made: {error}") from error
    try:
        with transaction.atomic():
            vault.save(force_insert=True)
            record(actor, "vault.create", vault, account=vault.account, now=now, region=vault.region.name)
    except IntegrityError as error:
        raise VaultTaken(f"There is a vault {vault.name!r} already. Choose another name.") from error
    return recovery_key


@transaction.atomic
def change_vault(vault: Vault, *, actor: Actor, now: dt.datetime) -> Vault:
    """Store a changed name or description; the place and the type never change. Raises VaultTaken, ValidationError."""
    if Vault.objects.filter(account=vault.account, name=vault.name).exclude(pk=vault.pk).exists():
        raise VaultTaken(f"There is a vault {vault.name!r} already. Choose another name.")
    vault.full_clean()
    vault.save(update_fields=["name", "description"])
    record(actor, "vault.change", vault, account=vault.account, now=now)
    return vault
