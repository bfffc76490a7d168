"""Notes of packs that are damaged, cut short or missing (vault-format, Damaged packs).

`damaged/<pack>` is a control object that names just that pack, so its bytes are always the same. Sessions that open
later rely on none of them (engine.session), so that the next backup which still has the data stores it again.
"""

from collections.abc import Collection, Iterable

from engine.errors import NotFound
from engine.ids import digest_name, named_digest
from engine.keys import Keys
from engine.session import DAMAGED_PREFIX, Names, put_note
from engine.storage.port import Storage


def is_whole(storage: Storage, key: str) -> bool:
    """Say whether an object is there with the bytes that its name tells; needs no key (engine invariant 24)."""
    try:
        return digest_name(storage.get(key)) == named_digest(key)
    except NotFound:
        return False


def damaged_packs(storage: Storage) -> set[str]:
    """LIST the packs that are noted as damaged."""
    return {stored.key.removeprefix(DAMAGED_PREFIX) for stored in storage.scan(DAMAGED_PREFIX)}


def note_damaged(storage: Storage, keys: Keys, packs: Iterable[str]) -> list[str]:
    """Note packs as damaged; return those that were not noted before."""
    wanted = set(packs)
    new = sorted(wanted - damaged_packs(storage)) if wanted else []
    for name in new:
        put_note(storage, keys, DAMAGED_PREFIX + name, Names([name]))
    return new


def clear_damaged(storage: Storage, whole: Collection[str]) -> list[str]:
    """Drop the notes of packs that were read in full and are whole; return their names."""
    cleared = sorted(damaged_packs(storage).intersection(whole))
    if cleared:
        storage.delete([DAMAGED_PREFIX + name for name in cleared])
    return cleared
