"""The root of a recovery point, its commit and its expiry (vault-format, section 5).

`points/<series>/<point>/root`, format 1, big-endian: the set of packs stands in the clear (their names are no secret in
the bucket), so that replicators, scrubbers and inventories need no key; the body is a sealed record bound to it.

offset  bytes  field
0       4      magic b"BSRT"
4       4      version, 1
8       4      n, number of packs
12      4      zero
16      44 n   packs: SHA-256 32, alias u32, kind u32, size u32
...     ...    sealed record of the body, msgpack; context = key and SHA-256 of everything before

`commit` and `expired` are control objects: JSON, newline, MAC over key and JSON. An `expired` that fails its MAC says
nothing, and neither does one whose root is locked beyond the moment that it tells.
"""

import hashlib
import struct

import msgspec

from engine.codec import Purpose, seal, unseal
from engine.entries import Block, Problem
from engine.errors import FormatError, IntegrityError
from engine.ids import Moment
from engine.keys import Keys

PREFIX = "points/"
PROBLEMS_KEPT = 100_000
_HEAD = struct.Struct(">4sIII")
_PACK = struct.Struct(">32sIII")
_MAGIC = b"BSRT"


class PackRef(msgspec.Struct, array_like=True, gc=False, frozen=True):
    """One pack of a point's set: enough to check that it is there, without keys."""

    name: str
    kind: int
    size: int


class Stats(msgspec.Struct):
    """What a backup did.

    `bytes` is the size of the point, `bytes_read` what was read for it, `bytes_new` what of that the vault did not
    hold, `bytes_stored` the objects written for it. `skipped` counts what was left out, by reason, with
    `excluded` for what patterns left out, each folder as one. `files_new` to
    `entries_deleted` compare the walk with the point before; of the first point everything is new.
    """

    entries: int = 0
    files: int = 0
    bytes: int = 0
    entries_read: int = 0
    bytes_read: int = 0
    bytes_new: int = 0
    bytes_stored: int = 0
    skipped: dict[str, int] = {}
    files_new: int = 0
    files_changed: int = 0
    files_unchanged: int = 0
    files_deleted: int = 0
    entries_new: int = 0
    entries_changed: int = 0
    entries_unchanged: int = 0
    entries_deleted: int = 0


class Body(msgspec.Struct, omit_defaults=True):
    """The sealed part of a root: enough to recreate the catalogue's row.

    `scan_ns` is the source's clock when the walk began; times are the service's. `problems` holds at most
    PROBLEMS_KEPT, `problems_total` counts all. `name` is the source's; `retention_days` counts from `ended_at`, 0 keeps
    the point until somebody deletes it. `rule` is the id of the policy's rule that made it, empty for none; `manual`
    says that a person asked for it. `locked_until` is the end of its lock, in an immutable vault.
    """

    vault_id: bytes
    series: str
    point: str
    session: str
    kind: str
    host: str
    roots: list[str]
    started_at: Moment
    ended_at: Moment
    scan_ns: int
    profile: str
    engine: str
    stats: Stats
    blocks: list[Block]
    deep: bool = False
    name: str = ""
    retention_days: int = 0
    complete: bool = True
    parent: str = ""
    previous: bytes = b""
    problems: list[Problem] = []
    problems_total: int = 0
    mounts: list[str] = []
    options: dict[str, list[str]] = {}
    locked_until: Moment | None = None
    rule: str = ""
    manual: bool = False


class Root(msgspec.Struct, frozen=True):
    """A root as read: its pack set and body; `digest` is the SHA-256 of the object.

    `packs` is the set as written, which `Block.packs` counts in. `moved` says what compaction has put in the place of
    some of them since (by number): ask `needs` and `needed` for what the point needs now.
    """

    packs: list[PackRef]
    body: Body
    digest: bytes
    moved: dict[int, list[PackRef]] = {}

    def needs(self, number: int) -> list[PackRef]:
        """Return what now stands for one pack of the set: nothing, when compaction found nothing in it alive."""
        return self.moved.get(number, [self.packs[number]])

    @property
    def needed(self) -> list[PackRef]:
        """Return all packs that the point needs now, each once."""
        if not self.moved:
            return self.packs
        return list(dict.fromkeys(pack for number in range(len(self.packs)) for pack in self.needs(number)))


class Commit(msgspec.Struct, frozen=True):
    """The only commit point: before it nothing refers to the point, after it all it needs exists."""

    point: str
    series: str
    session: str
    root_sha256: str
    committed_at: Moment


class Expired(msgspec.Struct, frozen=True):
    """What `expired` says: the point is gone for everybody from now on. `reason` is for people."""

    point: str
    series: str
    reason: str
    at: Moment


def point_key(series: str, point: str, part: str) -> str:
    """Return the key of a point's `root`, `commit` or `expired`."""
    return f"{PREFIX}{series}/{point}/{part}"


def encode_root(keys: Keys, body: Body, packs: list[PackRef]) -> bytes:
    """Return the root object. Owns no state; the salt differs at every call."""
    rows = []
    for pack in packs:
        digest, _, alias = pack.name.partition(".")
        rows.append(_PACK.pack(bytes.fromhex(digest), int(alias or 0), pack.kind, pack.size))
    head = _HEAD.pack(_MAGIC, 1, len(packs), 0) + b"".join(rows)
    context = _context(point_key(body.series, body.point, "root"), head)
    return head + seal(keys, Purpose.ROOT, msgspec.msgpack.encode(body), context=context)


def table_end(head: bytes) -> int:
    """Return where a root's pack set ends, as the first bytes of the root tell; nothing of it is checked."""
    return _HEAD.size + _PACK.size * int(_HEAD.unpack_from(head)[2]) if len(head) >= _HEAD.size else 0


def root_packs(key: str, data: bytes) -> tuple[list[PackRef], int]:
    """Return a root's pack set and where its sealed body starts; needs no key. Raises IntegrityError, FormatError."""
    if len(data) < _HEAD.size:
        raise IntegrityError(f"{key} is cut short")
    magic, version, count, zero = _HEAD.unpack(data[: _HEAD.size])
    if magic != _MAGIC or zero:
        raise IntegrityError(f"{key} has a wrong header")
    if version != 1:
        raise FormatError(f"{key} has format {version}, this program knows 1")
    end = _HEAD.size + _PACK.size * count
    if len(data) < end:
        raise IntegrityError(f"{key} is cut short")
    packs = []
    for digest, alias, kind, size in _PACK.iter_unpack(data[_HEAD.size : end]):
        if kind > 1:
            raise IntegrityError(f"{key} names a pack of no kind")
        packs.append(PackRef(digest.hex() + (f".{alias}" if alias else ""), kind, size))
    return packs, end


def decode_root(keys: Keys, key: str, data: bytes) -> Root:
    """Return the root stored under `key`. Raises IntegrityError, FormatError."""
    packs, at = root_packs(key, data)
    plain = unseal(keys, Purpose.ROOT, memoryview(data)[at:], context=_context(key, data[:at]))
    try:
        body = msgspec.msgpack.decode(plain, type=Body)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise IntegrityError(f"{key} cannot be read: {error}") from error
    if point_key(body.series, body.point, "root") != key or body.vault_id != keys.vault_id:
        raise IntegrityError(f"{key} belongs to another point")
    return Root(packs, body, hashlib.sha256(data).digest())


def encode_commit(keys: Keys, commit: Commit) -> bytes:
    """Return the commit object."""
    return keys.sign(point_key(commit.series, commit.point, "commit"), msgspec.json.encode(commit))


def decode_commit(keys: Keys, key: str, data: bytes) -> Commit:
    """Return the commit stored under `key`. Raises IntegrityError."""
    try:
        return msgspec.json.decode(keys.verify(key, data), type=Commit)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise IntegrityError(f"{key} cannot be read: {error}") from error


def _context(key: str, head: bytes) -> bytes:
    return key.encode() + hashlib.sha256(head).digest()
