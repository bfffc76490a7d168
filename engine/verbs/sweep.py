"""One prune run after its candidates are chosen: condemn, barrier, look again, tombstones, delete (vault-format, 6).

The state of a run is what stands below `prune/<run>/`, so that any later prune goes on where one ended or died:

condemned        the candidates; nobody who opens a session later refers to them
waiting-<id>     the sessions that were open after that; the run goes on when they have ended or were fenced
sweep-<id>       one process alone decides what is deleted: whoever sees another's leaves the run for good
withdrawn-<id>   that process gave up before it decided anything, so that another may
tombstones       what is deleted, forbidden until no segment names it any more and a barrier has passed since
done             all of it is deleted

A run whose decider was killed between `sweep` and `tombstones` stays as it is: what it condemned remains forbidden,
which is safe. Later runs delete what of it is garbage, and compaction rewrites what of it is needed.
"""

import contextlib
import datetime as dt
import secrets
from collections.abc import Sequence

import msgspec

from engine.errors import EngineError, IntegrityError, NotFound
from engine.ids import new_ulid, pack_key, valid_pack
from engine.point import PackRef
from engine.progress import Progress
from engine.session import PRUNE_PREFIX, fence, open_sessions, put_note, put_once, read_note, running
from engine.storage.port import Refusal
from engine.vault import PointName, Vault
from engine.verbs.needs import UNKNOWN, Known, look

SEEN = "seen"
_BATCH = 1000


class Condemned(msgspec.Struct, frozen=True):
    """What `condemned` and `tombstones` say: packs with kind and size (parallel lists).

    `points` are those whose needs were looked at when the packs were chosen, `moves` those that counted then.
    """

    packs: list[str]
    kinds: list[int]
    sizes: list[int]
    points: list[str] = []
    moves: list[str] = []

    def __post_init__(self) -> None:
        if not len(self.packs) == len(self.kinds) == len(self.sizes) or not {0, 1}.issuperset(self.kinds):
            raise ValueError("it does not give each pack one kind and one size")
        if not all(valid_pack(name) for name in self.packs) or any(point.count("/") != 1 for point in self.points):
            raise ValueError("it names a pack or a point that can't be")

    @classmethod
    def of(cls, packs: Sequence[PackRef], known: Known = UNKNOWN) -> "Condemned":
        """Return the note that names these packs."""
        return cls(
            [pack.name for pack in packs], [pack.kind for pack in packs], [pack.size for pack in packs],
            [f"{name.series}/{name.point}" for name in known.points], list(known.moves),
        )  # fmt: skip

    @property
    def refs(self) -> list[PackRef]:
        """Return the packs."""
        return [PackRef(*row) for row in zip(self.packs, self.kinds, self.sizes, strict=True)]

    @property
    def known(self) -> Known:
        """Return what was looked at."""
        return Known({PointName(*point.split("/")) for point in self.points}, set(self.moves))


class Waiting(msgspec.Struct, frozen=True):
    """Sessions that were open after the packs were condemned, and notes (keys) to drop when they have ended."""

    sessions: list[str]
    retire: list[str] = []


class Swept(msgspec.Struct):
    """What became of one run. `waiting` are sessions it still waits for; `stuck` says that its decider was killed."""

    run: str
    deleted: list[str] = []
    bytes_freed: int = 0
    rescued: int = 0
    refused: list[Refusal] = []
    waiting: list[str] = []
    fenced: list[str] = []
    stuck: bool = False


def run_parts(vault: Vault) -> dict[str, set[str]]:
    """LIST the runs: run -> which notes stand there."""
    runs: dict[str, set[str]] = {}
    for stored in vault.storage.scan(PRUNE_PREFIX):
        parts = stored.key.split("/")
        if len(parts) == 3 and parts[1] != SEEN:
            runs.setdefault(parts[1], set()).add(parts[2])
    return runs


def condemn(vault: Vault, run: str, packs: Sequence[PackRef], known: Known, retire: list[str]) -> None:
    """Begin a run: condemn the packs, then note which sessions are open. `retire` was chosen before.

    Crash: between the two, whoever goes on waits for the sessions that are open then.
    """
    put_note(vault.storage, vault.keys, _key(run, "condemned"), Condemned.of(packs, known))
    waiting = Waiting(open_sessions(vault.storage), retire)
    put_note(vault.storage, vault.keys, _key(run, f"waiting-{secrets.token_hex(8)}"), waiting)


def advance(vault: Vault, run: str, progress: Progress, *, now: dt.datetime, lease_s: int) -> Swept:
    """Take one run as far as it gets now. Safe beside others that do the same, and after any crash.

    Raises IntegrityError for a damaged note or root, and what the store raises; the run can go on later.
    """
    swept = Swept(run)
    parts = _parts(vault, run)
    decided = not {"tombstones", "done"}.isdisjoint(parts)
    if not decided and "condemned" in parts:
        swept.stuck = is_stuck(parts)
        if swept.stuck:
            return swept
        _pass_barrier(vault, run, parts, swept, now=now, lease_s=lease_s)
        if swept.waiting or not _decide(vault, run, swept, progress, now):
            return swept
        decided = True
    if decided and "done" not in parts and not _delete(vault, swept, progress, again="tombstones" in parts):
        return swept
    _tidy(vault, run, decided=decided)
    return swept


def unfinished(vault: Vault) -> list[str]:
    """Return the runs of which more is left than what is kept until a later run retires it, oldest first."""
    return sorted(run for run, parts in run_parts(vault).items() if parts != {"tombstones", "done"})


def is_stuck(parts: set[str]) -> bool:
    """Say whether a process began to decide what the run deletes and never told: nobody can go on with it."""
    return bool(_deciders(parts)) and not parts & {"tombstones", "done"}


def _pass_barrier(vault: Vault, run: str, parts: set[str], swept: Swept, *, now: dt.datetime, lease_s: int) -> None:
    """Find the sessions that the run must still wait for; fence those that are dead."""
    noted = [set(note.sessions) for note in _waiting(vault, run, parts)]
    still_open = set(open_sessions(vault.storage))
    if not noted:  # whoever condemned died before it could say whom it waits for
        put_note(vault.storage, vault.keys, _key(run, f"waiting-{secrets.token_hex(8)}"), Waiting(sorted(still_open)))
    # Every note was made after the packs were condemned: a session that one of them lacks had ended, or knew of them.
    for name in sorted(still_open.intersection(*noted)):
        if running(vault.storage, vault.keys, name).is_dead(now, lease_s=lease_s):
            fence(vault.storage, vault.keys, name)
            swept.fenced.append(name)
        else:
            swept.waiting.append(name)


def _decide(vault: Vault, run: str, swept: Swept, progress: Progress, now: dt.datetime) -> bool:
    """Look again and write down what is deleted. False when another process is at it, or was."""
    own = new_ulid(now)
    doomed: list[PackRef] | None = None
    try:
        put_note(vault.storage, vault.keys, _key(run, f"sweep-{own}"), Waiting([]))
        parts = _parts(vault, run)
        swept.stuck = _deciders(parts) != {own}
        if not swept.stuck and "condemned" in parts and "tombstones" not in parts:
            condemned = read_note(vault.storage, vault.keys, _key(run, "condemned"), Condemned)
            needs = look(vault, progress, known=condemned.known)
            if needs.unreadable:
                raise IntegrityError(needs.unreadable[0].detail)
            doomed = [pack for pack in condemned.refs if pack.name not in needs.packs]
            swept.rescued = len(condemned.packs) - len(doomed)
    finally:
        if doomed is None:
            # Nothing was decided and nothing will be, so another may. If this fails, too, the run stays: that is safe.
            with contextlib.suppress(EngineError):
                put_note(vault.storage, vault.keys, _key(run, f"withdrawn-{own}"), Waiting([]))
    if doomed is None:
        return False
    put_note(vault.storage, vault.keys, _key(run, "tombstones"), Condemned.of(doomed))
    return True


def _delete(vault: Vault, swept: Swept, progress: Progress, *, again: bool) -> bool:
    """Delete what the tombstones name, then say so. False when the store refused for another reason than a lock."""
    progress.phase("delete")
    doomed = read_note(vault.storage, vault.keys, _key(swept.run, "tombstones"), Condemned).refs
    if again:  # an earlier process may have deleted some: they are not counted twice
        present = {s.key for s in vault.stored_packs()}
        doomed = [pack for pack in doomed if pack_key(pack.kind, pack.name) in present]
    progress.total(entries=len(doomed), bytes=sum(pack.size for pack in doomed))
    for at in range(0, len(doomed), _BATCH):
        progress.check()
        batch = {pack_key(pack.kind, pack.name): pack for pack in doomed[at : at + _BATCH]}
        refused = vault.storage.delete(list(batch))
        swept.refused += refused
        gone = [pack for key, pack in batch.items() if key not in {refusal.key for refusal in refused}]
        swept.deleted += [pack.name for pack in gone]
        swept.bytes_freed += sum(pack.size for pack in gone)
        progress.add(entries=len(gone), bytes=sum(pack.size for pack in gone))
    if not all(refusal.locked for refusal in swept.refused):
        return False
    key = _key(swept.run, "done")
    put_once(vault.storage, key, vault.keys.sign(key, b"{}"))
    return True


def _tidy(vault: Vault, run: str, *, decided: bool) -> None:
    """Drop what the barrier allows to be retired, then the run's own notes but the tombstones and `done`.

    `condemned` goes before the notes that tell whose turn it is: without it nobody can decide anything any more.
    """
    parts = _parts(vault, run)
    if decided:
        retired = [key for note in _waiting(vault, run, parts) for key in note.retire]
        # Tombstones before `done`: alone they would be taken for a run that has still to delete.
        for keys in ([key for key in retired if not key.endswith("/done")], retired):
            if keys:
                vault.storage.delete(keys)
        if "tombstones" in parts and not read_note(vault.storage, vault.keys, _key(run, "tombstones"), Condemned).packs:
            for part in ("condemned", "tombstones", "done"):  # nothing that later runs would have to retire
                vault.storage.delete([_key(run, part)])
    vault.storage.delete([_key(run, "condemned")])
    rest = [_key(run, part) for part in sorted(parts - {"condemned", "tombstones", "done"})]
    if rest:
        vault.storage.delete(rest)


def _waiting(vault: Vault, run: str, parts: set[str]) -> list[Waiting]:
    notes = []
    for part in sorted(parts):
        if part.startswith("waiting-"):
            with contextlib.suppress(NotFound):  # tidied away by another process since the LIST
                notes.append(read_note(vault.storage, vault.keys, _key(run, part), Waiting))
    return notes


def _parts(vault: Vault, run: str) -> set[str]:
    return {stored.key.rpartition("/")[2] for stored in vault.storage.scan(_key(run, ""))}


def _deciders(parts: set[str]) -> set[str]:
    """Return who began to decide and did not withdraw."""
    begun = {part.removeprefix("sweep-") for part in parts if part.startswith("sweep-")}
    return begun - {part.removeprefix("withdrawn-") for part in parts if part.startswith("withdrawn-")}


def _key(run: str, part: str) -> str:
    return f"{PRUNE_PREFIX}{run}/{part}"
