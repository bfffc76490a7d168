"""The points of one database as HANA sees them: an id (EBID), a name, a moment. The vault is the truth.

What a root says of a name never changes, so it is remembered in a file of this host; whether a point is there is asked
of the vault every time. The file may be deleted at any moment.
"""

import contextlib
import datetime as dt
import os
import secrets
from functools import cached_property
from pathlib import Path

import msgspec

from engine.errors import FormatError, IntegrityError, PointMissing
from engine.ids import Moment, valid_series
from engine.locks import in_threads
from engine.vault import PointName, Vault


class Known(msgspec.Struct, array_like=True, frozen=True):
    """What a point's root says: HANA's name of the object, whether it came through a pipe, and when it was done."""

    name: str
    is_pipe: bool
    completed_at: Moment


class Backup(msgspec.Struct, frozen=True):
    """One point as HANA knows it."""

    ebid: str
    known: Known

    @property
    def timestamp(self) -> str:
        """Return the moment of the backup, RFC 3339 in milliseconds."""
        moment = self.known.completed_at.astimezone(dt.UTC)
        return f"{moment:%Y-%m-%dT%H:%M:%S}.{moment.microsecond // 1000:03d}Z"


class Catalogue:
    """The points of one series. `damaged` are those that are there and whose roots can't be read: id -> why."""

    def __init__(self, vault: Vault, series: str, cache: Path) -> None:
        self._vault, self._series = vault, series
        self._file = cache / vault.info.vault_id / f"backint-{series}"
        self._known = self._remembered()
        self.damaged: dict[str, str] = {}

    @cached_property
    def _there(self) -> set[str]:
        """All points of the series."""
        return {name.point for name in self._vault.points(self._series)}

    def place(self, ebid: str) -> PointName:
        """Return where the point is."""
        return PointName(self._series, ebid)

    def find(self, ebid: str) -> Backup | None:
        """Return the point with this id, None when there is none. Raises IntegrityError for one that is damaged."""
        if not valid_series(ebid) or not self._vault.is_visible(self.place(ebid)):
            return None
        self._learn([ebid])
        if ebid in self.damaged:
            raise IntegrityError(self.damaged[ebid])
        return Backup(ebid, self._known[ebid]) if ebid in self._known else None

    def newest_first(self, name: str = "") -> list[Backup]:
        """Return all points, or those of one name, newest first. Roots that are not known yet are read in threads."""
        for ebid in self._known.keys() - self._there:
            del self._known[ebid]
        self._learn(sorted(self._there))
        found = (Backup(ebid, known) for ebid, known in self._known.items())
        return sorted((one for one in found if name in ("", one.known.name)), key=lambda one: one.ebid, reverse=True)

    def _learn(self, ebids: list[str]) -> None:
        missing = [ebid for ebid in ebids if ebid not in self._known and ebid not in self.damaged]
        if not missing:
            return
        assert self._vault.moves is not None  # loaded before the threads ask for it
        for ebid, found in zip(missing, in_threads(self._read, missing), strict=True):
            if isinstance(found, Known):
                self._known[ebid] = found
            elif found:
                self.damaged[ebid] = found
        self._remember()

    def _read(self, ebid: str) -> Known | str:
        """Return what the root says, or why it can't be read; an empty text when the point has gone since."""
        try:
            body = self._vault.root(self.place(ebid)).body
        except PointMissing:
            return ""
        except (IntegrityError, FormatError) as error:
            return str(error)
        if body.kind != "backint" or len(body.roots) != 1:
            return f"{self._series}/{ebid} is no backup of SAP HANA"
        return Known(body.roots[0], body.options.get("object") != ["file"], body.ended_at)

    def _remembered(self) -> dict[str, Known]:
        try:
            return msgspec.msgpack.decode(self._file.read_bytes(), type=dict[str, Known])
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
            return {}

    def _remember(self) -> None:
        """Keep what is known; without a place for it the next call reads it again."""
        aside = self._file.with_name(f"{self._file.name}.{secrets.token_hex(4)}")
        with contextlib.suppress(OSError):
            self._file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            aside.write_bytes(msgspec.msgpack.encode(self._known))
            os.replace(aside, self._file)
