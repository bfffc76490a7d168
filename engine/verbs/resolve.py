"""Settle what dead writers left: prepared points and moves, notes of sessions that are over (vault-format, section 6).

A prepared point has a root and no commit. What becomes of it depends on its session:

running          left alone
aborted, or gone its writer never commits: the root is deleted
fenced           its writer may have looked for the fence just before, and commit at any moment. With a pack missing
                 it was written after the prune's second look, so its writer sees the fence: deleted. With a pack
                 condemned by a run that is not over: left alone. Else committed in its name, the same bytes.

In a replica the sessions that bring a point in count in the place of the one that its root names: as long as one of
them runs it is left alone, and what a fenced one left counts before what an aborted one did. While the replica follows
its source, such a root is deleted only when the source does not show the point any more: another replication may be
about to commit the very same root.

Moves are settled likewise. One that may have counted once stays as long as any of its points does: what it moved away
may be gone.
"""

import contextlib
from collections.abc import Collection

import msgspec

from engine.errors import IntegrityError, NotFound
from engine.ids import digest_name, pack_key
from engine.links import bringing, is_mirror, settled
from engine.moves import Move, Moves, move_key, settle_move
from engine.point import Commit, PackRef, Root, decode_root, encode_commit, point_key
from engine.progress import Progress
from engine.session import PREFIX as SESSIONS
from engine.session import Closed, condemned_packs, put_once, read_note, session_states
from engine.vault import PointName, Vault
from engine.verbs.needs import parts_of_points

_ENDED = {"closed", "fence"}


class Resolved(msgspec.Struct):
    """What was settled: points as `<series>/<point>`, counts of moves dropped and of sessions whose notes went."""

    committed: list[str] = []
    dropped: list[str] = []
    moves_dropped: int = 0
    sessions_forgotten: int = 0


def resolve(vault: Vault, progress: Progress) -> Resolved:
    """Settle prepared points, then moves, then forget sessions that are over. Safe at any time, and after any crash."""
    done = Resolved()
    # What a session wrote before it ended is in the LISTs that follow: none of its points or moves is overlooked.
    ended = {name for name, found in session_states(vault.storage).items() if found & _ENDED}
    # Points before sessions: a session opens before it writes a root, so none of these is taken for one without notes.
    points = parts_of_points(vault.storage)
    prepared = [name for name, parts in points.items() if parts == {"root"}]
    moves = Moves(vault.storage, vault.keys)
    brought = bringing(vault.storage)  # after the LIST of the points: it is announced before its root is put
    awaited = _awaited(vault, [name for name in prepared if _shown(name) in brought])
    states = session_states(vault.storage)
    needed = {move.session for move in moves.prepared}
    for name in prepared:
        progress.check()
        needed |= _settle(vault, name, brought.get(_shown(name), set()), states, done, awaited=name in awaited)
    _drop_moves(vault, moves, states, done)
    _drop_announcements(vault, brought, states)
    _forget_sessions(vault, ended & states.keys() - needed, states, done)
    return done


def _shown(name: PointName) -> str:
    return f"{name.series}/{name.point}"


def _awaited(vault: Vault, names: list[PointName]) -> set[PointName]:
    """Return those of a replica's prepared points that a replication may bring again at any moment."""
    if not names or not is_mirror(vault.storage, vault.keys):
        return set()
    return set(names).intersection(vault.across().points())


def _settle(
    vault: Vault, name: PointName, bringers: set[str], states: dict[str, set[str]], done: Resolved, *, awaited: bool
) -> set[str]:
    """Settle one prepared point; return the sessions that it still depends on when it stays undecided."""
    key = point_key(*name, "root")
    try:
        data = vault.storage.get(key)
        root = decode_root(vault.keys, key, data)
    except NotFound:
        return set()
    except IntegrityError:
        return set()  # a prune refuses as long as it is there: a person must look at it
    sessions = bringers or {root.body.session}
    found = {session: states.get(session, set()) for session in sessions}
    if any("open" in state and not state & _ENDED for state in found.values()):
        return sessions
    if not _is_prepared(vault, name):
        return set()  # committed or expired since the LIST
    outcomes = {session: _outcome(vault, session) for session, state in found.items() if "closed" in state}
    if "committed" in outcomes.values():
        return sessions  # a commit that was there: its loss is damage, and never ours to complete
    if any("fence" in state and not outcomes.get(session) for session, state in found.items()):
        whole = _is_whole(vault, root.packs)
        if whole is None:
            return sessions
        if whole:
            _commit(vault, root, data)
            done.committed.append(_shown(name))
            return set()
    if not awaited and not vault.storage.delete([key]):  # a lock may keep it a while
        done.dropped.append(_shown(name))
    return set()


def _is_prepared(vault: Vault, name: PointName) -> bool:
    parts = {stored.key.rpartition("/")[2] for stored in vault.storage.scan(point_key(*name, ""))}
    return parts == {"root"}


def _outcome(vault: Vault, session: str) -> str:
    """Return how a session says that it ended; one whose note can't be read may have committed."""
    try:
        return read_note(vault.storage, vault.keys, f"{SESSIONS}{session}/closed", Closed).outcome
    except NotFound:
        return ""
    except IntegrityError:
        return "committed"


def _is_whole(vault: Vault, packs: Collection[PackRef]) -> bool | None:
    """Say whether all these packs are there; None while some are condemned. The order of looks counts."""
    condemned = condemned_packs(vault.storage, vault.keys)
    for pack in packs:
        key = pack_key(pack.kind, pack.name)
        if not any(stored.key == key and stored.size == pack.size for stored in vault.storage.scan(key)):
            return False
    return None if condemned & {pack.name for pack in packs} else True


def _commit(vault: Vault, root: Root, data: bytes) -> None:
    body = root.body
    key = point_key(body.series, body.point, "commit")
    commit = Commit(body.point, body.series, body.session, digest_name(data), body.ended_at)
    put_once(vault.storage, key, encode_commit(vault.keys, commit), locked_until=body.locked_until)


def _drop_moves(vault: Vault, moves: Moves, states: dict[str, set[str]], done: Resolved) -> None:
    """Settle prepared moves; drop those that never count and those whose points are all gone.

    A move never names a point of later.
    """
    doomed = [move.run for move in moves.prepared if _is_over(vault, move, states.get(move.session, set()))]
    for move in moves.committed:
        if not any(_has_root(vault, point) for point in move.points):
            doomed.append(move.run)
    for run in doomed:
        vault.storage.delete([move_key(run, "commit")])
        vault.storage.delete([move_key(run, "move")])
    done.moves_dropped = len(doomed)


def _is_over(vault: Vault, move: Move, state: set[str]) -> bool:
    """Say whether a prepared move is to be dropped; commit it for a fenced writer that may be about to."""
    if "open" in state and not state & _ENDED:
        return False
    if _has(vault, move_key(move.run, "commit")) or not _has(vault, move_key(move.run, "move")):
        return False  # committed or dropped since the LIST
    outcome = _outcome(vault, move.session) if "closed" in state else ""
    if outcome and outcome != "aborted":
        return not any(_has_root(vault, point) for point in move.points)
    if "fence" in state and not outcome:
        whole = _is_whole(vault, {pack for packs in move.packs.values() for pack in packs})
        if whole:
            with contextlib.suppress(NotFound):  # another prune was faster, and its points are gone
                settle_move(vault.storage, vault.keys, move.run)
        return whole is False
    return True


def _drop_announcements(vault: Vault, brought: dict[str, set[str]], states: dict[str, set[str]]) -> None:
    """Drop what is said of sessions that are gone, of points that are not prepared any more."""
    for point, sessions in brought.items():
        over = {session for session in sessions if "open" not in states.get(session, set())}
        if over and not _is_prepared(vault, PointName(*point.split("/"))):
            settled(vault.storage, point, over)


def _has_root(vault: Vault, point: str) -> bool:
    return _has(vault, point_key(*PointName(*point.split("/")), "root"))


def _has(vault: Vault, key: str) -> bool:
    return any(stored.key == key for stored in vault.storage.scan(key))


def _forget_sessions(vault: Vault, names: Collection[str], states: dict[str, set[str]], done: Resolved) -> None:
    """Delete the notes of sessions that are over, `open` first: without it nothing can be committed any more."""
    opened = [f"{SESSIONS}{name}/open" for name in sorted(names) if "open" in states[name]]
    rest = [f"{SESSIONS}{name}/{part}" for name in sorted(names) for part in sorted(states[name] - {"open"})]
    for keys in (opened, rest):
        if keys:
            vault.storage.delete(keys)
    done.sessions_forgotten = len(names)
