"""System exports: what a control plane keeps in its vaults for the day on which only a bucket is left.

`system/<ulid>` is a sealed record (vault-format, section System exports). The engine neither makes nor understands the
rows; whoever has the vault's keys can read them. The newest counts; losing all of them loses no recovery point.
"""

import datetime as dt
import re
from typing import Any, NamedTuple

import msgspec

from engine.codec import Purpose, seal, unseal
from engine.errors import FormatError, IntegrityError, NotFound
from engine.ids import Moment, new_ulid, ulid_moment
from engine.keys import Keys
from engine.session import put_once
from engine.storage.port import Storage

PREFIX = "system/"
FORMAT = 1
KEPT = 5
_NAME = re.compile(r"system/[0-7][0-9a-hjkmnp-tv-z]{25}")


class Export(msgspec.Struct, frozen=True, kw_only=True):
    """The rows of one account. `vault` is the row of the vault it lies in; `tables` maps a model's name to its rows.

    `secrets` are credentials in the clear, by model and row: the sealed record is all that protects them.
    """

    format: int = FORMAT
    at: Moment
    vault: str
    tables: dict[str, list[dict[str, Any]]]
    secrets: dict[str, dict[str, dict[str, str]]] = {}


class Found(NamedTuple):
    """The newest readable export, and what is wrong with newer ones."""

    key: str
    export: Export
    problems: list[str]


def encode(export: Export) -> bytes:
    """Return the document: JSON with sorted keys, so that equal rows make equal bytes."""
    return msgspec.json.encode(export, order="deterministic")


def put(storage: Storage, keys: Keys, export: Export, *, kept: int = KEPT) -> str:
    """Store an export under a fresh name, then delete all but the newest `kept`; return its key.

    Crash: leaves one export too many, or one more than before.
    """
    key = f"{PREFIX}{new_ulid(_moment(export.at, _names(storage)))}"
    put_once(storage, key, seal(keys, Purpose.SYSTEM, encode(export), context=key.encode()))
    # A store may keep what is locked; that is no failure of the export.
    storage.delete([name for name in _names(storage)[:-kept] if name != key])
    return key


def newest(storage: Storage, keys: Keys) -> Found | None:
    """Return the newest export that can be read, None when there is none. Raises FormatError for a newer format."""
    problems: list[str] = []
    for key in reversed(_names(storage)):
        try:
            return Found(key, _decode(keys, key, storage.get(key)), problems)
        except NotFound:
            continue  # dropped since the LIST, because newer ones came
        except IntegrityError as error:
            problems.append(f"{key}: {error}")
    return None


def _moment(at: dt.datetime, names: list[str]) -> dt.datetime:
    """Return the moment for the next name: later than every name, also when a clock was wrong before."""
    if not names:
        return at
    last = ulid_moment(names[-1].removeprefix(PREFIX))
    return max(at, last + dt.timedelta(milliseconds=1))


def _names(storage: Storage) -> list[str]:
    """Return the keys of all exports, oldest first."""
    return [stored.key for stored in storage.scan(PREFIX) if _NAME.fullmatch(stored.key)]


def _decode(keys: Keys, key: str, data: bytes) -> Export:
    plain = unseal(keys, Purpose.SYSTEM, data, context=key.encode())
    try:
        export = msgspec.json.decode(plain, type=Export)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise IntegrityError(f"{key} cannot be read: {error}") from error
    if export.format != FORMAT:
        raise FormatError(f"{key} has format {export.format}, this program knows {FORMAT}")
    return export
