"""A vault: create it, open it, find its points, read their listings (vault-format, sections 1, 2, 5)."""

import datetime as dt
import hmac
from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import msgspec

from engine.errors import (
    EngineError,
    FormatError,
    IntegrityError,
    NotFound,
    PointMissing,
    VaultExists,
    VaultMissing,
    VaultReadOnly,
)
from engine.ids import FOLDERS, Moment, digest_name, pack_key, valid_series
from engine.keyproviders.keyring import RecoveryKey
from engine.keyproviders.port import KeyProvider
from engine.keys import Keys
from engine.keysets import KEYS, open_keys
from engine.links import is_mirror, read_link
from engine.locks import LockPolicy, read_policy
from engine.moves import Moves
from engine.point import PREFIX as POINTS
from engine.point import Expired, PackRef, Root, decode_commit, decode_root, point_key
from engine.session import READERS, Session, read_note
from engine.storage.port import Storage, Stored
from engine.storage.throttle import Pace, unpaced

if TYPE_CHECKING:
    from engine.fetch import Fetcher
    from engine.index import Index

INFO_KEY = "vault.json"
MAGIC = "backupsite-vault"
FORMAT = 1
MAKERS = ("backup",)  # verbs that make what a replica must not have
T = TypeVar("T")
_UNREAD = LockPolicy(0, dt.datetime.fromtimestamp(0, dt.UTC))


class Info(msgspec.Struct, frozen=True):
    """What vault.json says. `features` lists what a program must know to read, to write, to prune."""

    magic: str
    format: int
    vault_id: str
    created_at: Moment
    profile: str
    features: dict[str, list[str]]


class _Peek(msgspec.Struct):
    """As much of vault.json as every format has."""

    magic: str = ""
    format: int = 0
    features: dict[str, list[str]] = {}


class PointName(NamedTuple):
    """A point's place in the bucket."""

    series: str
    point: str


class Listed(NamedTuple):
    """One point of the catalogue: its root, or why the root can't be read."""

    name: PointName
    root: Root | None
    error: EngineError | None


class Vault:
    """An open vault. Not shared between processes or threads; workers open their own.

    Opening reads vault.json and the keys. The index is loaded at first use. `other` is the store of the vault that this
    one is a replica of, for who replicates; `reading` is the pace at which sources are read for it. Both are set by
    whoever opened the vault.
    """

    def __init__(self, storage: Storage, keys: Keys, info: Info, cache: Path | None) -> None:
        self.storage, self.keys, self.info = storage, keys, info
        self._cache = cache / info.vault_id if cache else None
        self._session: Session | None = None
        self._last: tuple[PointName, Root] | None = None
        self._moves: Moves | None = None
        self._lock_policy: LockPolicy | None = _UNREAD
        self.other: Storage | None = None
        self.reading: Pace = unpaced

    @classmethod
    def create(
        cls, storage: Storage, *, providers: Sequence[KeyProvider], now: dt.datetime, profile: str = "general"
    ) -> tuple["Vault", str]:
        """Make a vault; return it and its recovery key, which is stored nowhere. Raises VaultExists.

        Crash: before vault.json is written there is no vault, and what was written does not hinder the next try.
        """
        if any(stored.key == INFO_KEY for stored in storage.scan(INFO_KEY)):
            raise VaultExists("there is a vault at this place already")
        keys = Keys.create()
        recovery = RecoveryKey.generate()
        sealed = keys.seal([*providers, recovery], generation=1)
        storage.put(f"{KEYS}1/{digest_name(sealed)}", sealed)
        info = Info(MAGIC, FORMAT, keys.vault_id.hex(), now, profile, {"read": [], "write": [], "prune": []})
        storage.put(INFO_KEY, keys.sign(INFO_KEY, msgspec.json.encode(info)))
        return cls.open(storage, provider=recovery), recovery.text()

    @classmethod
    def open(cls, storage: Storage, *, provider: KeyProvider, cache: Path | None = None) -> "Vault":
        """Open with a service key or a recovery key. Raises VaultMissing, FormatError, WrongKey, IntegrityError.

        `cache` is a folder of this host for copies of the index; it may be deleted at any time.
        """
        try:
            data = storage.get(INFO_KEY)
        except NotFound:
            raise VaultMissing("there is no vault at this place") from None
        vault_id = _check_format(data).vault_id
        keys = open_keys(storage, vault_id, provider, check=lambda keys: keys.verify(INFO_KEY, data))
        info = _decode(INFO_KEY, keys.verify(INFO_KEY, data), Info)
        if not hmac.compare_digest(info.vault_id, keys.vault_id.hex()):
            raise IntegrityError("the vault's keys belong to another vault")
        return cls(storage, keys, info, cache)

    @cached_property
    def index(self) -> "Index":
        """Return the index, loaded; what a session forbids is not answered."""
        # Here, as numpy takes longer to load than most commands without an index take to run.
        from engine.index import Index

        index = Index(self.storage, self.keys, self._cache)
        if self._session is not None:
            index.forbid(self._session.forbidden)
        index.refresh()
        return index

    @property
    def moves(self) -> Moves:
        """Return what compaction moved, as it was when the session was bound.

        In a session that writes, a damaged move raises IntegrityError: what it moved away may be gone.
        """
        if self._moves is None:
            try:
                self._moves = Moves(self.storage, self.keys)
            except IntegrityError:
                if self._session is not None and not self._session.only_reads():
                    raise
                self._moves = Moves(self.storage, self.keys, strictly=False)
        return self._moves

    @property
    def lock_policy(self) -> LockPolicy | None:
        """Return how long points are locked, None when they are not, as it was when the session was bound."""
        if self._lock_policy is _UNREAD:
            self._lock_policy = read_policy(self.storage, self.keys)
        return self._lock_policy

    def know(self, purpose: str) -> None:
        """Raise FormatError when the vault has a feature that a program must know to `read`, `write` or `prune` it."""
        _know(self.info.features, purpose)

    def open_session(self, name: str, *, verb: str, now: dt.datetime, points: Sequence[PointName] = ()) -> Session:
        """Open a session and bind this vault to it: forbidden packs first, then moves and the index.

        `points` are those it will read; one that is still visible afterwards stays as long as the session runs.
        """
        if verb not in READERS:
            self.know("write")
        if verb in MAKERS and (link := read_link(self.storage, self.keys)):
            raise VaultReadOnly(f"this vault is a replica of {link.source}: back up into that one, or another")
        if verb == "compact" and is_mirror(self.storage, self.keys):
            raise VaultReadOnly("this vault is a replica: compact the one that it follows")
        shown = [f"{point.series}/{point.point}" for point in points]
        return self._bind(Session.open(self.storage, self.keys, name=name, verb=verb, now=now, points=shown))

    def join_session(self, name: str, *, forbidden: set[str] | None = None) -> Session:
        """Join a session as a worker; joining the same one again costs nothing. Raises SessionFenced.

        `forbidden` is what was forbidden when it opened, for who knows; else what is now, which is more.
        """
        if self._session is not None and self._session.name == name:
            return self._session
        return self._bind(Session.join(self.storage, self.keys, name, forbidden=forbidden))

    def distrust(self, session: Session, packs: Sequence[PackRef]) -> None:
        """Forbid the session every pack that the index or `packs` names and the store does not hold at its full size.

        So what somebody deleted or cut short behind the vault's back is stored again instead of being relied on for
        ever. So are packs that compaction moved away: a new point would keep them from being deleted. The index is read
        before the LIST: a pack is stored before the segment that names it.
        """
        heads = [head for segment in self.index.segments for head in segment.heads]
        present = {s.key: s.size for s in self.stored_packs()}
        expected = {head.name: (head.key, head.size) for head in heads}
        expected |= {pack.name: (pack_key(pack.kind, pack.name), pack.size) for pack in packs}
        session.forbidden |= {name for name, (key, size) in expected.items() if present.get(key) != size}
        session.forbidden |= {name for move in self.moves.committed for name in move.packs}
        self.index.forbid(session.forbidden)

    def _bind(self, session: Session) -> Session:
        self._session = session
        self._moves, self._last, self._lock_policy = None, None, _UNREAD
        if "index" in self.__dict__:
            self.index.forbid(session.forbidden)
            self.index.refresh()
        return session

    def points(self, series: str | None = None, *, since: str = "") -> list[PointName]:
        """Return the visible points, oldest first within each series: root and commit and not expired.

        `since` leaves out those of the series whose ids sort before it, without listing them.
        """
        prefix = f"{POINTS}{series}/" if series else POINTS
        return self._visible(self.storage.scan(prefix, after=f"{prefix}{since}" if series and since else ""))

    def _visible(self, listed: Iterable[Stored]) -> list[PointName]:
        parts: dict[PointName, set[str]] = {}
        for stored in listed:
            path = stored.key.split("/")
            if len(path) == 4:
                parts.setdefault(PointName(path[1], path[2]), set()).add(path[3])
        return [
            name
            for name, found in parts.items()
            if {"root", "commit"} <= found and not ("expired" in found and self.is_expired(name))
        ]

    def is_visible(self, name: PointName) -> bool:
        """Say whether the point can be read now. Ask after the session that names it was opened."""
        return name in self._visible(self.storage.scan(point_key(*name, "")))

    def is_expired(self, name: PointName) -> bool:
        """Say whether the point's `expired` counts: it is authentic, and no lock outlasts the moment that it tells."""
        key = point_key(*name, "expired")
        try:
            note = read_note(self.storage, self.keys, key, Expired)
            if (note.series, note.point) != name:
                return False
            locked_until = self.storage.locked_until(point_key(*name, "root"))
        except (NotFound, IntegrityError):
            return False
        return locked_until is None or locked_until <= note.at

    def find(self, text: str, *, series: str | None = None) -> PointName:
        """Return the point whose id is or begins with `text`, or the newest for `latest`. Raises PointMissing."""
        points = sorted(self.points(series), key=lambda name: name.point)
        if text == "latest":
            if not points:
                raise PointMissing("the vault has no recovery point yet")
            return points[-1]
        matches = [name for name in points if name.point.startswith(text.lower())] if text else []
        if len(matches) == 1:
            return matches[0]
        if not matches:
            raise PointMissing(f"no recovery point has an id that begins with {text!r}; list them with points")
        raise PointMissing(f"{len(matches)} recovery points begin with {text!r}; type more of the id")

    def root(self, name: PointName) -> Root:
        """Return a visible point's root, checked against its commit. Raises PointMissing, IntegrityError.

        The last one is remembered: roots never change, and a session outlives the expiry of the point it builds on.
        """
        last = self._last  # threads may read other roots meanwhile
        if last is not None and last[0] == name:
            return last[1]
        key, commit_key = point_key(*name, "root"), point_key(*name, "commit")
        try:
            commit_data = self.storage.get(commit_key)
            data = self.storage.get(key)
        except NotFound:
            raise PointMissing(f"recovery point {name.point} is not there") from None
        # The digest comes first, so that damage is never taken for a newer format.
        if decode_commit(self.keys, commit_key, commit_data).root_sha256 != digest_name(data):
            raise IntegrityError(f"{key} is not the root that was committed")
        root = decode_root(self.keys, key, data)
        moved = self.moves.of(f"{name.series}/{name.point}", root.packs)
        root = msgspec.structs.replace(root, moved=moved) if moved else root
        self._last = name, root
        return root

    def catalogue(self, series: str | None = None) -> Iterator[Listed]:
        """Yield every visible point with its root; a damaged one comes with its error."""
        for name in self.points(series):
            try:
                yield Listed(name, self.root(name), None)
            except PointMissing:
                continue
            except (IntegrityError, FormatError) as error:
                yield Listed(name, None, error)

    def latest(self, series: str, *, among: Collection[PointName] | None = None) -> Listed | None:
        """Return the newest readable point of a series, `among` some if they are given; None when there is none."""
        names = self.points(series) if among is None else sorted(among)
        for name in reversed(names):
            if among is not None and not self.is_visible(name):
                continue
            try:
                return Listed(name, self.root(name), None)
            except (PointMissing, IntegrityError, FormatError):
                continue  # an older point is as good a parent; verify reports the damage
        return None

    def stored_packs(self) -> Iterator[Stored]:
        """LIST all packs, those with data first."""
        for folder in FOLDERS:
            yield from self.storage.scan(f"{folder}/")

    def sessions(self, name: str) -> list[Session]:
        """Return the session of this name as notes of it are put: here, and in the vault that this one follows."""
        stores = [self.storage] if self.other is None else [self.storage, self.other]
        return [Session(store, self.keys, name) for store in stores]

    def across(self) -> "Vault":
        """Return the vault that this one is a replica of: another store, the same keys. Raises VaultReadOnly."""
        if self.other is None:
            raise VaultReadOnly("this vault is a replica: say where the vault is that it follows")
        return Vault(self.other, self.keys, self.info, None)

    def fetcher(self, root: Root) -> "Fetcher":
        """Return a reader of one point's chunks."""
        from engine.fetch import Fetcher

        return Fetcher(self.storage, self.keys, self.index, root.needed)


def check_series(series: str) -> str:
    """Return `series` or raise ValueError telling what may stand in one."""
    if not valid_series(series):
        raise ValueError(f"{series!r} can't name a series: use 1-63 of a-z 0-9 . _ - and begin with a letter or digit")
    return series


def _check_format(data: bytes) -> Info:
    """Return the (not yet authenticated) info; refuse what a newer program wrote before looking at anything else."""
    text = data.rpartition(b"\n")[0]
    try:
        peek = msgspec.json.decode(text, type=_Peek)
        if peek.magic != MAGIC:
            raise IntegrityError(f"{INFO_KEY} is damaged, or this is no vault")
        if peek.format != FORMAT:
            raise FormatError(f"the vault has format {peek.format}, this program knows {FORMAT}")
        _know(peek.features, "read")
        return msgspec.json.decode(text, type=Info)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        raise IntegrityError(f"{INFO_KEY} is damaged, or this is no vault") from None


def _decode(key: str, data: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise IntegrityError(f"{key} cannot be read: {error}") from error


def _know(features: dict[str, list[str]], purpose: str) -> None:
    unknown = sorted(set(features.get(purpose, [])))
    if unknown:
        raise FormatError(f"to {purpose} this vault a program must know {', '.join(unknown)}, and this one does not")
