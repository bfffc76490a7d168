"""Put packs that one vault has noted as damaged back from the other end of its replication (vault-format, Replicas)."""

import contextlib

import msgspec

from engine.damage import clear_damaged, damaged_packs, is_whole
from engine.errors import NotFound, StorageError
from engine.ids import FOLDERS, digest_name, named_digest, pack_key
from engine.progress import Progress
from engine.session import condemned_packs
from engine.vault import Vault


class Healed(msgspec.Struct):
    """Names of packs that were put back: here (in the replica), and at the source. `left` could not be.

    `bytes` went from one end to the other for it.
    """

    here: list[str] = []
    source: list[str] = []
    left: list[str] = []
    bytes: int = 0


def heal(vault: Vault, source: Vault, progress: Progress) -> Healed:
    """Heal both vaults from each other. What is whole already only loses its note of damage.

    A pack is put back under its own name, compared with it before, and read again afterwards. One that a prune has
    condemned is left alone: its name is not used again. Safe at any time, and after any crash.
    """
    healed = Healed()
    for broken, whole, done in ((vault, source, healed.here), (source, vault, healed.source)):
        noted = sorted(damaged_packs(broken.storage))
        doomed = condemned_packs(broken.storage, broken.keys, strictly=False) if noted else set()
        for name in noted:
            progress.check()
            try:
                sent = None if name in doomed else _put_back(broken, whole, name)
            except StorageError:  # who may only read there can't heal it; the note stays
                sent = None
            (healed.left if sent is None else done).append(name)
            healed.bytes += sent or 0
    return healed


def _put_back(broken: Vault, whole: Vault, name: str) -> int | None:
    """Return the bytes that were sent, 0 when the pack is whole already; None when there is no whole one."""
    sent = 0
    for kind in range(len(FOLDERS)):
        key = pack_key(kind, name)
        if not is_whole(broken.storage, key):
            try:
                data = whole.storage.get(key)
            except NotFound:
                continue
            if digest_name(data) != named_digest(name):
                continue
            until = None
            with contextlib.suppress(NotFound):
                until = broken.storage.locked_until(key)
            broken.storage.put(key, data, locked_until=until)
            sent += len(data)
            if not is_whole(broken.storage, key):
                continue
        clear_damaged(broken.storage, [name])
        return sent
    return None
