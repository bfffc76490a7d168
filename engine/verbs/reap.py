"""Make points invisible, and delete what was made invisible when nothing reads it any more (vault-format, section 6).

The order is the protocol; it needs no clock and no lock:

1. PUT `expired`, and wait for the answer: who looks from now on does not see the point.
2. LIST what is marked, then the holds, then the sessions. A session that names a point and saw it visible stored its
   `open` before the mark, so it is in that LIST: its points wait for a later run. A hold that was stored in time is in
   that LIST, too: then the mark is taken back.
3. DELETE `commit`, and with the answer DELETE `root`. The packs count as needed until the root is gone.

A crash leaves marks without deletions, or a root without its commit: the next run of anybody goes on with step 2.
`expired` itself stays until a prune drops it. Two runs at once do the same twice.
"""

import datetime as dt
from collections.abc import Iterable, Iterator

import msgspec

from engine.errors import IntegrityError, NotFound
from engine.point import PREFIX as POINTS
from engine.point import Expired, decode_root, point_key
from engine.progress import Progress
from engine.session import Running, fence, open_sessions, put_note, read_note, running
from engine.vault import PointName, Vault
from engine.verbs.hold import Holds

_BATCH = 1000


class Refused(msgspec.Struct, frozen=True):
    """A point that could not go, and why; `until` is when it can, None when no date can be told."""

    point: str
    reason: str
    until: dt.datetime | None = None


class Waiting(msgspec.Struct, frozen=True):
    """A point that is invisible, and the sessions that still read it."""

    point: str
    sessions: list[str]


class Reaped(msgspec.Struct):
    """What became of the points that are marked, earlier ones too.

    `deleted` are gone. `shown` are visible again, because a hold or a lock came before their mark. `fenced` are
    sessions that were taken for dead. Points as `<series>/<point>`.
    """

    deleted: list[str] = []
    shown: list[str] = []
    waiting: list[Waiting] = []
    refused: list[Refused] = []
    fenced: list[str] = []


def shown_name(name: PointName) -> str:
    """Return a point as notes and outcomes name it."""
    return f"{name.series}/{name.point}"


def mark(vault: Vault, name: PointName, *, reason: str, now: dt.datetime) -> None:
    """Make a point invisible for everybody who looks from now on; it is when this returns."""
    note = Expired(name.point, name.series, reason, now)
    put_note(vault.storage, vault.keys, point_key(*name, "expired"), note)


def locked_until(vault: Vault, name: PointName) -> dt.datetime | None:
    """Return the end of a point's lock: the store's, or the one that its root tells, whichever is later.

    None when there is none, or no root. A root that can't be read tells none.
    """
    key = point_key(*name, "root")
    ends = []
    try:
        ends.append(vault.storage.locked_until(key))
        ends.append(decode_root(vault.keys, key, vault.storage.get(key)).body.locked_until)
    except (NotFound, IntegrityError):
        pass
    return max((end for end in ends if end is not None), default=None)


def reap(
    vault: Vault, progress: Progress, *, held: Iterable[str], fresh: set[PointName], now: dt.datetime, lease_s: int
) -> Reaped:
    """Delete what is marked and read by nobody. `fresh` are points whose locks were looked at just before their mark.

    `held` are points that somebody holds, beside the holds of the bucket.
    """
    reaped = Reaped()
    marked = dict(_marked(vault, progress))
    holds = Holds(vault.storage, held)
    going = []
    for name in marked:
        progress.check()
        end = None if name in fresh else locked_until(vault, name)
        if name not in holds and (end is None or end <= now):
            going.append(name)
        elif "commit" in marked[name]:
            _show_again(vault, name, reaped)
    readers = _readers(vault, going, reaped, now=now, lease_s=lease_s)
    for name in going:
        if readers[name]:
            reaped.waiting.append(Waiting(shown_name(name), readers[name]))
    free = [name for name in going if not readers[name]]
    for at in range(0, len(free), _BATCH):
        progress.check()
        _delete(vault, free[at : at + _BATCH], reaped)
    return reaped


def _marked(vault: Vault, progress: Progress) -> Iterator[tuple[PointName, set[str]]]:
    """Yield each point that is invisible by its mark and has something left to delete, with the objects it has."""
    parts: dict[PointName, set[str]] = {}
    for stored in vault.storage.scan(POINTS):
        path = stored.key.split("/")
        if len(path) == 4:
            parts.setdefault(PointName(path[1], path[2]), set()).add(path[3])
    for name, found in parts.items():
        if "expired" not in found or not found & {"root", "commit"}:
            continue
        progress.check()
        if vault.is_expired(name) if "root" in found else _is_authentic(vault, name):
            yield name, found


def _is_authentic(vault: Vault, name: PointName) -> bool:
    """Say whether the mark of a point without a root, which nobody can lock, is ours."""
    try:
        note = read_note(vault.storage, vault.keys, point_key(*name, "expired"), Expired)
    except (NotFound, IntegrityError):
        return False
    return (note.series, note.point) == name


def _show_again(vault: Vault, name: PointName, reaped: Reaped) -> None:
    for refusal in vault.storage.delete([point_key(*name, "expired")]):
        reaped.refused.append(Refused(shown_name(name), f"its mark can't be taken back: {refusal.reason}"))
        return
    reaped.shown.append(shown_name(name))


def _readers(
    vault: Vault, names: Iterable[PointName], reaped: Reaped, *, now: dt.datetime, lease_s: int
) -> dict[PointName, list[str]]:
    """Return the sessions that read each point; those that died are fenced, and read nothing any more."""
    readers: dict[PointName, list[str]] = {name: [] for name in names}
    if not readers:
        return readers
    for session in open_sessions(vault.storage):
        found = _read_twice(vault, session)
        read = [name for name in readers if found.opened is None or shown_name(name) in found.opened.points]
        if not read:
            continue
        if not found.is_dead(now, lease_s=lease_s):
            for name in read:
                readers[name].append(session)
        elif session in open_sessions(vault.storage):  # it may have ended, and a prune removed its notes
            fence(vault.storage, vault.keys, session)
            reaped.fenced.append(session)
    return readers


def _read_twice(vault: Vault, session: str) -> Running:
    """Return what a session says of itself; one bad read must not make it look dead."""
    found = running(vault.storage, vault.keys, session)
    return found if found.opened is not None else running(vault.storage, vault.keys, session)


def _delete(vault: Vault, names: list[PointName], reaped: Reaped) -> None:
    """Delete commits, and the roots of those whose commit is gone."""
    kept = _refused(vault, names, "commit", reaped)
    names = [name for name in names if name not in kept]
    kept = _refused(vault, names, "root", reaped)
    reaped.deleted += [shown_name(name) for name in names if name not in kept]


def _refused(vault: Vault, names: list[PointName], part: str, reaped: Reaped) -> set[PointName]:
    """Delete one object of each point and return the points whose object the store keeps."""
    by_key = {point_key(*name, part): name for name in names}
    kept = set()
    for refusal in vault.storage.delete(list(by_key)):
        name = by_key[refusal.key]
        kept.add(name)
        until = locked_until(vault, name) if refusal.locked else None
        reaped.refused.append(Refused(shown_name(name), f"the store keeps its {part}: {refusal.reason}", until))
        if refusal.locked and part == "commit":
            _show_again(vault, name, reaped)
    return kept
