"""A guard against clocks that jump: each expiry leaves the time it went by, and the next one is measured by that.

`expiry/<ulid>` is a note of one run. A run that is more than a day (and an hour, for runs that come once a day) ahead
of the latest note, or more than an hour behind it, is only believed when the store has a clock of its own that agrees,
or when a person confirms it. Notes that are damaged or forged say nothing. Whoever deletes all of them takes the guard
away, and not the other one: no run expires more than a fifth of a vault without being confirmed.
"""

import datetime as dt
from collections.abc import Iterable

import msgspec

from engine.errors import IntegrityError, NotFound, StorageError
from engine.ids import Moment, new_ulid
from engine.locks import bare_storage
from engine.session import put_note, read_note
from engine.storage.port import Storage
from engine.storage.probe import Attackable
from engine.vault import Vault

PREFIX = "expiry/"
AHEAD = dt.timedelta(hours=25)
BEHIND = dt.timedelta(hours=1)
SKEW = dt.timedelta(hours=1)


class Ran(msgspec.Struct, frozen=True):
    """What a run of expiry leaves: which run it was and what its clock said."""

    run: str
    at: Moment


class TimeGuard:
    """The notes of earlier runs as one LIST showed them."""

    def __init__(self, vault: Vault) -> None:
        self._vault = vault
        self._keys = [stored.key for stored in vault.storage.scan(PREFIX)]
        self.latest: Ran | None = None
        for key in self._keys:
            try:
                note = read_note(vault.storage, vault.keys, key, Ran)
            except (NotFound, IntegrityError):
                continue
            if self.latest is None or note.at > self.latest.at:
                self.latest = note

    def objection(self, moments: Iterable[dt.datetime]) -> str:
        """Return what is odd about the moments that a run goes by, empty when nothing is."""
        times = sorted(moments)
        early, late = times[0], times[-1]
        if late - early > AHEAD:
            return f"this run began at {_shown(early)} and would end at {_shown(late)}"
        if self.latest is not None and self.latest.at <= early + BEHIND and late - AHEAD <= self.latest.at:
            return ""
        server = _server_time(self._vault.storage)
        if server is not None and abs(server - late) <= SKEW:
            return ""
        if self.latest is None and server is None:
            return ""  # the first run of a store without a clock has nothing to be measured by
        what = f"the clock says {_shown(late)}"
        if self.latest is not None:
            what += f", the last expiry was at {_shown(self.latest.at)}"
        return f"{what}, and the store's clock says {_shown(server)}" if server is not None else what

    def note(self, run: str, now: dt.datetime) -> None:
        """Leave the time of this run, then drop the notes that were there before."""
        key = f"{PREFIX}{new_ulid(now)}"
        put_note(self._vault.storage, self._vault.keys, key, Ran(run, now))
        if self._keys:
            self._vault.storage.delete(self._keys)  # one that stays is in nobody's way


def _server_time(storage: Storage) -> dt.datetime | None:
    bare = bare_storage(storage)
    if not isinstance(bare, Attackable):
        return None
    try:
        return bare.describe().server_time
    except StorageError:
        return None


def _shown(moment: dt.datetime) -> str:
    return f"{moment.astimezone(dt.UTC):%Y-%m-%d %H:%M UTC}"
