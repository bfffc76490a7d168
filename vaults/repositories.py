"""Rows -> the engine's view of them. The only place that touches a region's credentials and the service keyring."""

import datetime as dt
from collections.abc import Callable
from pathlib import Path
from typing import Any

from django.conf import settings

from accounts import secrets
from engine import replica
from engine.errors import BadKeyFile
from engine.keyproviders.keyring import Keyring, RecoveryKey
from engine.keyproviders.port import KeyProvider as Provider
from engine.keyproviders.spec import KeySpec, open_provider
from engine.storage.location import Location, open_storage
from engine.storage.port import Storage
from engine.storage.retry import Retrying
from engine.storage.throttle import Pace, unpaced
from engine.vault import Vault as EngineVault
from vaults.models import KeyProvider, Region, ReplicationLink, Vault

CREDENTIALS = ("access_key", "secret_key")


def seal_credentials(region: Region, values: dict[str, str]) -> None:
    """Put the given credentials, encrypted, into the region's row (not saved yet)."""
    region.credentials = secrets.seal(
        {name: value for name, value in values.items() if value}, context=region.secret_context
    )


def location(region: Region, *, prefix: str = "") -> Location:
    """Return the engine's address of a region, or of one prefix in it. Raises ValueError with what to change."""
    options: dict[str, Any] = {"bytes_per_s": region.bytes_per_s}
    if region.url.startswith("s3://"):
        kept = secrets.unseal(region.credentials, context=region.secret_context)
        options |= {name: kept.get(name, "") for name in CREDENTIALS}
        options |= {
            "endpoint": region.endpoint,
            "tls_verify": region.tls_verify,
            "ca_file": region.ca_file,
            "path_style": region.path_style,
        }
        if region.store_region:
            options["region"] = region.store_region
    url = f"{region.url.rstrip('/')}/{prefix}" if prefix else region.url
    return Location.parse(url, **options)


def bare_storage(region: Region) -> Storage:
    """Return the region's store as it is, without retries and limits, so that a probe sees every problem."""
    store = open_storage(location(region), create=True)
    return store.inner if isinstance(store, Retrying) else store


def storage(
    vault: Vault, *, create: bool = False, clock: Callable[[], dt.datetime] | None = None, pace: Pace = unpaced
) -> Storage:
    """Return the store of one vault. What deletes passes a `clock`: without one a folder never forgets a lock."""
    return open_storage(location(vault.region, prefix=vault.prefix), create=create, clock=clock, pace=pace)


def keyring() -> Keyring:
    """Return the service keyring; its file is made on first use and must then be kept safe. Raises BadKeyFile."""
    if settings.KEYRING:
        return Keyring.parse(settings.KEYRING)
    path = Path(settings.KEYRING_FILE)
    if not path.exists():
        try:
            Keyring.generate().save(path)
        except BadKeyFile:
            if not path.exists():  # else another process was first: its keyring counts
                raise
    return Keyring.load(path)


def seal_key_secret(vault: Vault, secret: str) -> None:
    """Put what reaching the vault's key needs, encrypted, into its row (not saved yet)."""
    vault.key_credentials = secrets.seal({"secret": secret} if secret else {}, context=vault.secret_context)


def key_spec(vault: Vault) -> KeySpec:
    """Return where the vault's key is kept, with its secret. Raises ValueError with what to change."""
    kept = secrets.unseal(vault.key_credentials, context=vault.secret_context)
    return KeySpec.parse(vault.key_url, secret=kept.get("secret", ""))


def provider(vault: Vault) -> Provider:
    """Return who wraps and unwraps the vault's root key: the service keyring, or its own key (E31)."""
    return keyring() if vault.key_provider == KeyProvider.KEYRING else open_provider(key_spec(vault))


def create(vault: Vault, *, now: dt.datetime) -> str:
    """Make the vault in its region and return its recovery key, which is kept nowhere. Raises VaultExists."""
    made, recovery_key = EngineVault.create(storage(vault, create=True), providers=[provider(vault)], now=now)
    vault.stored_id = made.info.vault_id
    return recovery_key


def create_replica(source: Vault, target: Vault, *, now: dt.datetime) -> None:
    """Make the target in its region, an empty replica of the source. Raises VaultExists, and what opening raises."""
    opened, store = open_vault(source), storage(target, create=True)
    name = f"{source.name} ({source.region.name})"
    target.stored_id = replica.link(opened, store, providers=[provider(target)], name=name, now=now).info.vault_id


def followed(vault: Vault) -> Vault | None:
    """Return the vault that this one is a replica of, as long as replication goes on."""
    link = ReplicationLink.objects.active().filter(target=vault).select_related("source__region").first()
    return link.source if link else None


def open_vault(
    vault: Vault,
    *,
    clock: Callable[[], dt.datetime] | None = None,
    across: bool = False,
    reading: Pace = unpaced,
    sending: Pace = unpaced,
) -> EngineVault:
    """Return the vault opened with its key. Raises WrongKey, VaultMissing, Unreachable, KeyUnavailable.

    What deletes passes a `clock`: without one a folder never forgets a lock. A replica that is opened
    `across` knows the store of the vault that it follows; else it is opened without it, because that may be lost.
    The store is spoken to at the pace `sending`; sources are read, and that other store is spoken to, at `reading`.
    """
    cache = Path(settings.CACHE_DIR) / str(vault.pk)
    cache.mkdir(parents=True, exist_ok=True, mode=0o700)
    opened = EngineVault.open(storage(vault, clock=clock, pace=sending), provider=provider(vault), cache=cache)
    opened.reading = reading
    if across and (source := followed(vault)):
        opened.other = storage(source, pace=reading)
    if not vault.stored_id:  # a row that was made from what the bucket holds
        vault.stored_id = opened.info.vault_id
        Vault.objects.filter(pk=vault.pk, stored_id="").update(stored_id=vault.stored_id)
    return opened


def try_recovery_key(vault: Vault, key: RecoveryKey) -> None:
    """Open the vault with its recovery key alone. Raises WrongKey, VaultMissing, Unreachable."""
    EngineVault.open(storage(vault), provider=key)
