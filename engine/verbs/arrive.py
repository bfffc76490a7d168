"""Make replicated points visible: here the order of calls is the safety (vault-format, Replicas).

Each step after the answers of the one before: segments of the index, `incoming`, LIST of the packs, locks, roots, what
compaction moved at the source, a look for a fence, commits. A crash leaves packs no point needs, or roots without
commits, which a prune settles as it does a dead backup's.
"""

import contextlib
import datetime as dt
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from engine import halt
from engine.errors import Altered, IntegrityError, NotFound
from engine.ids import SEGMENTS, digest_name, named_digest
from engine.links import PREFIX as REPLICA
from engine.links import announce, bringing, settled
from engine.locks import extend_point, lock_until
from engine.moves import Move, commit_move
from engine.point import PackRef, decode_commit, point_key, root_packs
from engine.session import Session, put_note, put_once, read_note
from engine.vault import PointName, Vault

SEGMENTS_AT_ONCE = 4
_TAKEN = f"{REPLICA}segments/"


class Arrival(msgspec.Struct):
    """One point on its way in: the packs that it needs now; `problem` tells why it can't come."""

    series: str
    point: str
    needed: list[PackRef] = []
    committed_at: dt.datetime | None = None
    problem: str = ""

    @property
    def name(self) -> PointName:
        """Return the point."""
        return PointName(self.series, self.point)

    @property
    def shown(self) -> str:
        """Return the point as notes name it."""
        return f"{self.series}/{self.point}"


class Prepared(NamedTuple):
    """A point whose root is put: its commit, as it is at the source, how long it is locked, and the bytes of both."""

    arrival: Arrival
    commit: bytes
    locked_until: dt.datetime | None
    bytes: int


class _Taken(msgspec.Struct, frozen=True):
    """The source's segments that were copied, as far as it still has them: the replica may have merged them since."""

    segments: list[str]


def look(source: Vault, name: PointName, *, forbidden: set[str]) -> Arrival | None:
    """Return what a visible point of the source needs; None when it went meanwhile.

    `forbidden` are packs that the replica must not refer to.
    """
    arrival = Arrival(*name)
    try:
        root, commit = _read(source, name)
        packs, _ = root_packs(point_key(*name, "root"), root)
    except NotFound:
        return None
    except IntegrityError as error:
        arrival.problem = str(error)
        return arrival
    arrival.committed_at = decode_commit(source.keys, point_key(*name, "commit"), commit).committed_at
    arrival.needed = source.moves.needed(arrival.shown, packs)
    if condemned := forbidden.intersection(pack.name for pack in arrival.needed):
        arrival.problem = (
            f"{len(condemned)} of its packs were condemned by a prune of the replica: it comes when that has ended"
        )
    return arrival


def whole_packs(vault: Vault) -> dict[str, int]:
    """LIST the packs: name -> bytes."""
    return {s.key.rpartition("/")[2]: s.size for s in vault.stored_packs()}


def copy_segments(vault: Vault, source: Vault) -> int:
    """Bring the segments of the source's index that the replica has not had yet; damaged ones are left out.
    Return the bytes that were copied.

    They only make reading fast: what no segment lists is found through the packs' own footers.
    """
    theirs = {stored.key: stored.size for stored in source.storage.scan(SEGMENTS)}
    notes = [stored.key for stored in vault.storage.scan(_TAKEN)]
    had: set[str] = set()
    for key in notes:
        with contextlib.suppress(NotFound, IntegrityError):
            had |= set(read_note(vault.storage, vault.keys, key, _Taken).segments)
    if theirs.keys() == had:
        return 0
    here = {stored.key for stored in vault.storage.scan(SEGMENTS)}
    taken = theirs.keys() & (had | here)

    def bring(key: str) -> bool:
        try:
            vault.storage.relay(key, source.storage, size=theirs[key], sha256=named_digest(key))
        except (NotFound, Altered):  # merged at the source since: the merged one comes next time
            return False
        return True

    missing = sorted(theirs.keys() - taken)
    with halt.threads(SEGMENTS_AT_ONCE, "segment") as bringing_them:
        brought = {key for key, came in zip(missing, bringing_them.map(bring, missing), strict=True) if came}
    note = _Taken(sorted(taken | brought))
    own = _TAKEN + digest_name(msgspec.json.encode(note))
    put_note(vault.storage, vault.keys, own, note)
    vault.storage.delete([key for key in notes if key != own])
    return sum(theirs[key] for key in brought)


def prepare(
    vault: Vault, source: Vault, session: Session, arrivals: Sequence[Arrival], *, now: dt.datetime
) -> list[Prepared]:
    """Put the roots of these points; their packs must have been stored before, and segments copied. What can't come
    gets its problem.

    Until `publish` none of them is visible. Raises SessionFenced, and the storage's.
    """
    present = whole_packs(vault)
    coming = []
    for arrival in arrivals:
        short = [pack.name for pack in arrival.needed if present.get(pack.name) != pack.size]
        if not arrival.problem and short:
            arrival.problem = f"{len(short)} of its packs could not be brought, {short[0]} among them"
        if not arrival.problem:
            try:
                root, commit = _read(source, arrival.name)
            except (NotFound, IntegrityError) as error:
                arrival.problem = f"it went, or was damaged, while it was brought: {error}"
                continue
            until = _locked_until(vault, source, arrival, now)
            _put_root(vault, session, arrival, root, until, now)
            coming.append(Prepared(arrival, commit, until, len(root) + len(commit)))
    _move(vault, source, session, [one.arrival for one in coming], now)
    session.check(now)
    return coming


def publish(vault: Vault, prepared: Sequence[Prepared]) -> None:
    """Put the commits: after the storage's error one may be there or not, and its point is whole either way."""
    for arrival, commit, until, _ in prepared:
        put_once(vault.storage, point_key(*arrival.name, "commit"), commit, locked_until=until)
    announced = bringing(vault.storage)
    for arrival, *_ in prepared:
        settled(vault.storage, arrival.shown, announced.get(arrival.shown, ()))


def _read(source: Vault, name: PointName) -> tuple[bytes, bytes]:
    """Return a point's root and commit as stored, one checked against the other. Raises NotFound, IntegrityError."""
    commit_key = point_key(*name, "commit")
    commit_data = source.storage.get(commit_key)
    root = source.storage.get(point_key(*name, "root"))
    if decode_commit(source.keys, commit_key, commit_data).root_sha256 != digest_name(root):
        raise IntegrityError(f"{point_key(*name, 'root')} is not the root that was committed")
    return root, commit_data


def _put_root(
    vault: Vault, session: Session, arrival: Arrival, root: bytes, until: dt.datetime | None, now: dt.datetime
) -> None:
    """Lock what the point needs, and put its root; a commit that stands without a root goes before."""
    if until is not None:
        extend_point(vault, arrival.needed, until=until, now=now)
    announce(vault.storage, arrival.series, arrival.point, session.name)
    parts = {stored.key.rpartition("/")[2] for stored in vault.storage.scan(point_key(*arrival.name, ""))}
    if "root" not in parts and "commit" in parts:
        vault.storage.delete([point_key(*arrival.name, "commit")])
    put_once(vault.storage, point_key(*arrival.name, "root"), root, locked_until=until)


def _locked_until(vault: Vault, source: Vault, arrival: Arrival, now: dt.datetime) -> dt.datetime | None:
    """Return how long the point is locked here: as at the source, and at least as the replica's policy says."""
    ends = [source.storage.locked_until(point_key(*arrival.name, "root"))]
    if policy := vault.lock_policy:
        ends.append(lock_until(policy, now))
    return max((end for end in ends if end is not None and end > now), default=None)


def _move(vault: Vault, source: Vault, session: Session, arrivals: Sequence[Arrival], now: dt.datetime) -> None:
    """Say of these points at the replica what compaction moved at the source: for these points alone.

    The runs sort as the source's do, because the first of two moves of one pack counts.
    """
    shown = {arrival.shown for arrival in arrivals}
    for move in source.moves.committed:
        if named := sorted(shown.intersection(move.points)):
            run = f"{move.run}-{session.name}-{digest_name(' '.join(named).encode())[:16]}"
            brought = Move(run, session.name, named, move.packs)
            commit_move(session, vault.storage, vault.keys, brought, now=now)
