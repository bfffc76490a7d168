"""Holds: points that nothing may expire or delete until somebody releases them (vault-format, section 8).

`holds/<series>/<point>/<ulid>` is a note of one hold: a lock without an end, kept by this program and not by the store.
Several people may hold one point; a release takes away what it saw. A note that is damaged or forged holds as well:
what it costs is space, what its opposite could cost is the point. Names never recur, so no late delete hits a newer
hold.

Against an expiry at the same moment: the hold is stored, and then the point must still be visible, or it came too late.
An expiry marks, and then looks at the holds, before it deletes anything; what it marked in spite of one is shown again.
"""

import datetime as dt
from collections.abc import Iterable, Iterator

import msgspec

from engine.errors import IntegrityError, NotFound, PointMissing, StorageError
from engine.ids import Moment, new_ulid
from engine.session import put_note, read_note
from engine.storage.port import Storage
from engine.vault import PointName, Vault

PREFIX = "holds/"
REASON_MAX = 1000


class Hold(msgspec.Struct, frozen=True):
    """What a hold says: which point, why, since when."""

    series: str
    point: str
    reason: str
    at: Moment


class Held(msgspec.Struct, frozen=True):
    """One hold as it stands in the bucket; `hold` is None when its note is damaged or forged. It holds all the same."""

    name: PointName
    key: str
    hold: Hold | None


class Holds:
    """Which points are held: by the bucket, as one LIST shows it, or by `more`, as `<series>/<point>` or bare ids."""

    def __init__(self, storage: Storage, more: Iterable[str] = ()) -> None:
        self.names = {name for name, _ in _keys(storage, PREFIX)}
        self._more = set(more)

    def __contains__(self, name: PointName) -> bool:
        return name in self.names or name.point in self._more or f"{name.series}/{name.point}" in self._more


def holds(vault: Vault) -> Iterator[Held]:
    """Yield every hold of the vault with what it says, by series and point."""
    for name, key in _keys(vault.storage, PREFIX):
        try:
            note: Hold | None = read_note(vault.storage, vault.keys, key, Hold)
        except NotFound:
            continue  # released since the LIST
        except IntegrityError:
            note = None
        if note is not None and (note.series, note.point) != name:
            note = None
        yield Held(name, key, note)


def hold(vault: Vault, name: PointName, *, reason: str, now: dt.datetime) -> Hold:
    """Hold a visible point until somebody releases it; it counts when this returns. Another hold is one more.

    Raises PointMissing when the point is not there, or was expired before the hold counted; then none is left behind.
    """
    if len(reason) > REASON_MAX:
        raise ValueError(f"the reason has {len(reason):,} characters: give at most {REASON_MAX:,}")
    if not vault.is_visible(name):
        raise PointMissing(f"recovery point {name.point} is not there")
    note = Hold(name.series, name.point, reason, now)
    key = f"{PREFIX}{name.series}/{name.point}/{new_ulid(now)}"
    put_note(vault.storage, vault.keys, key, note)
    if not vault.is_visible(name):
        vault.storage.delete([key])
        raise PointMissing(f"recovery point {name.point} was expired a moment ago: the hold came too late")
    return note


def release(vault: Vault, name: PointName) -> int:
    """Take away all holds of a point and return how many there were. Raises StorageError when the store keeps one."""
    keys = [key for _, key in _keys(vault.storage, f"{PREFIX}{name.series}/{name.point}/")]
    refusals = vault.storage.delete(keys)
    if refusals:
        raise StorageError(f"the store keeps a hold of {name.point}: {refusals[0].reason}")
    return len(keys)


def _keys(storage: Storage, prefix: str) -> Iterator[tuple[PointName, str]]:
    for stored in storage.scan(prefix):
        parts = stored.key.split("/")
        if len(parts) == 4:
            yield PointName(parts[1], parts[2]), stored.key
