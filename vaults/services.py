"""Regions and vaults come about here, and become immutable."""

import datetime as dt
import uuid

import msgspec
from django.core.exceptions import ValidationError
from django.db import IntegrityError, transaction

from accounts.refusals import Refused
from accounts.services import SERVICE, Actor, record
from engine import locks
from engine.errors import EngineError, KeyError_, LockCannotLoosen, LockUnsupported
from engine.keyproviders.spec import open_provider, round_trip
from engine.storage.probe import APPLICATION_LEVEL, probe
from vaults import repositories
from vaults.models import ImmutabilityFixed, KeyProvider, Region, Vault, VaultState, VaultType
from vaults.recovery import check_shares


class RegionUnusable(Refused):
    """The store cannot be reached, or lacks what a vault needs."""

    code = "region_unusable"


class VaultTaken(Refused):
    """Names and places of vaults are unique."""

    code = "vault_exists"


class NameFixed(Refused):
    """A region's name is part of its queues' names, its address part of its vaults' places."""

    code = "region_fixed"


class RegionInUse(Refused):
    """A region goes when nothing is left in it."""

    code = "region_in_use"


class KeyUnusable(Refused):
    """The key that a vault shall be made with does not wrap and unwrap (E34)."""

    code = "key_unusable"


class VaultNotReady(Refused):
    """The vault is being deleted, or has an error."""

    code = "vault_not_ready"


class LocksMissing(Refused):
    """The store behind the vault does not keep locks."""

    code = "store_cannot_lock"


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


@transaction.atomic
def delete_region(region: Region, *, actor: Actor, now: dt.datetime) -> None:
    """Forget a region in which nothing is left; its store is not touched. Raises RegionInUse.

    The jobs of vaults that were deleted there are forgotten too; the audit trail keeps what was done.
    """
    if present := list(region.vaults.all().present().values_list("name", flat=True)):
        raise RegionInUse(f"The region holds {len(present)} vaults. Delete them first.", vaults=present)
    if sources := list(region.sources.values_list("name", flat=True)):
        raise RegionInUse(f"{len(sources)} sources belong to the region. Delete them first.", sources=sources)
    record(actor, "region.delete", region, account=None, now=now)
    for vault in region.vaults.all():
        vault.jobs.all().delete()
        vault.delete()
    region.delete()


def _check_key(vault: Vault, secret: str) -> None:
    """See that the vault's key is there and does what it must (E34). Raises ValidationError, KeyUnusable."""
    vault.key_provider = vault.key_url.partition(":")[0] or KeyProvider.KEYRING
    if vault.key_provider == KeyProvider.KEYRING:
        if vault.key_url or secret:
            raise ValidationError({"key_url": "Leave address and secret empty to use the service key."})
        return
    if vault.key_provider not in (KeyProvider.TRANSIT, KeyProvider.PKCS11):
        raise ValidationError({"key_url": "Give a transit: or a pkcs11: address, or nothing for the service key."})
    repositories.seal_key_secret(vault, secret)
    try:
        round_trip(open_provider(repositories.key_spec(vault)))
    except ValueError as error:
        raise ValidationError({"key_url": str(error)}) from error
    except KeyError_ as error:
        raise KeyUnusable(f"The key cannot be used: {error}") from error


def create_vault(
    vault: Vault, *, key_secret: str = "", actor: Actor, now: dt.datetime, source: Vault | None = None
) -> str:
    """Make a vault in its region and return its recovery key, which is shown once and kept nowhere.

    A replication target has none of its own, and nothing is stored of it before it has its `source`. `key_secret` is
    what reaching the key at `vault.key_url` needs. Raises VaultTaken, ValidationError, KeyUnusable, RegionUnusable.
    Crash: leaves an empty vault in the store that no row names.
    """
    vault.prefix = f"vaults/{vault.pk}"
    vault.created_at = now
    vault.full_clean(validate_unique=False, validate_constraints=False)
    check_shares(vault)
    if Vault.objects.present().filter(account=vault.account, name=vault.name).exists():
        raise VaultTaken(f"There is a vault {vault.name!r} already. Choose another name.")
    _check_key(vault, key_secret)
    recovery_key = ""
    try:
        if source is not None:
            repositories.create_replica(source, vault, now=now)
        elif vault.type == VaultType.REPLICATION_TARGET:
            vault.state = VaultState.EMPTY
        else:
            recovery_key = repositories.create(vault, now=now)
    except (EngineError, OSError) as error:
        raise RegionUnusable(f"The vault could not be made: {error}") from error
    try:
        with transaction.atomic():
            vault.save(force_insert=True)
            record(
                actor, "vault.create", vault, account=vault.account, now=now,
                region=vault.region.name, key=vault.key_url or "service key",
            )  # fmt: skip
    except IntegrityError as error:
        raise VaultTaken(f"There is a vault {vault.name!r} already. Choose another name.") from error
    return recovery_key


@transaction.atomic
def change_vault(vault: Vault, *, actor: Actor, now: dt.datetime) -> Vault:
    """Store a changed name or description; the place, type and key never change. Raises VaultTaken, ValidationError."""
    if Vault.objects.present().filter(account=vault.account, name=vault.name).exclude(pk=vault.pk).exists():
        raise VaultTaken(f"There is a vault {vault.name!r} already. Choose another name.")
    vault.full_clean()
    vault.save(update_fields=["name", "description"])
    record(actor, "vault.change", vault, account=vault.account, now=now)
    return vault


@transaction.atomic
def lock_gave_way(vault: Vault, *, problems: list[str], now: dt.datetime) -> None:
    """Call the vault's region immutable no more: an audit could break a lock there. A later probe decides anew."""
    region = vault.region
    known = list(region.capabilities.get("problems", []))
    found = [problem for problem in problems if problem not in known]
    region.capabilities = region.capabilities | {"retention": APPLICATION_LEVEL, "problems": [*known, *found]}
    region.save(update_fields=["capabilities"])
    record(SERVICE, "region.lock_gave_way", region, account=vault.account, now=now, problems=problems)


def make_immutable(vault: Vault, *, days: int, confirmation: str, actor: Actor, now: dt.datetime) -> Vault:
    """Lock every point of the vault for at least `days` from its completion, or lengthen that (B6). It can't be undone.

    The vault itself keeps the policy; the audit that is made due at once locks the points that are there. Raises
    ConfirmationWrong, ImmutabilityFixed, VaultNotReady, LocksMissing, ValidationError. Crash: the policy may be in
    force before the row says so; asking again brings the row up to it.
    """
    vault.confirm(confirmation)
    if not 1 <= days <= locks.LOCK_DAYS_MAX:
        raise ValidationError({"days": f"Give 1 to {locks.LOCK_DAYS_MAX} days."})
    if vault.state != VaultState.READY:
        raise VaultNotReady(f"{vault} is {vault.get_state_display().lower()}: it can't be made immutable now.")
    if days < vault.lock_days:
        raise ImmutabilityFixed(f"{vault} is locked for {vault.lock_days} days: that is never shortened.")
    try:
        policy = locks.enable(repositories.open_vault(vault), days=days, now=now)
    except LockCannotLoosen as error:
        raise ImmutabilityFixed(f"{error}: that is never shortened.") from error
    except LockUnsupported as error:
        raise LocksMissing(f"The store can't lock objects: {error}") from error
    probe_region(vault.region, actor=actor, now=now)
    with transaction.atomic():
        vault.immutable_since = vault.immutable_since or policy.since
        vault.lock_days = policy.days
        vault.save(update_fields=["immutable_since", "lock_days"])
        vault.duties.filter(kind="audit").update(due_at=now)
        record(
            actor, "vault.make_immutable", vault, account=vault.account, now=now, days=policy.days, level=policy.level
        )
    return vault
