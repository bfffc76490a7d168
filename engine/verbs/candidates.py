"""Choose the packs that a compaction rewrites, and say where their live chunks are to come from.

sparse   much of it is dead
tiny     several small packs are joined
stuck    it is condemned by a prune that can never go on, and needed: rewritten, its name need not be used again
broken   it is damaged or gone, and other packs hold every chunk of it that is alive

Never one whose lock is in force, and never one of which the marks are in doubt.
"""

import contextlib
import datetime as dt
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import msgspec

from engine.damage import damaged_packs
from engine.errors import NotFound
from engine.ids import pack_key
from engine.keys import ID_BYTES
from engine.pack import DATA, META, TARGET_BYTES
from engine.point import PackRef
from engine.progress import Progress
from engine.session import PRUNE_PREFIX, read_names
from engine.vault import Vault
from engine.verbs.findings import pack_name
from engine.verbs.mark import Marks, Share
from engine.verbs.sweep import is_stuck, run_parts

UNIT_BYTES = 256 << 20
BYTES_LEAST = 64 << 20
TINY_PART = 8
TINY_LEAST = 4
ELSEWHERE_MOST = 4
LOCKS = "locks/"


class Task(msgspec.Struct):
    """One pack to rewrite. `ids` are its live chunks (short, joined); `elsewhere` are packs that hold them all already.

    Then nothing is copied, if what they hold is whole; a `broken` pack is not read.
    """

    pack: PackRef
    reason: str
    ids: bytes
    elsewhere: list[tuple[PackRef, bytes]] = []


class Choice(msgspec.Struct):
    """What a compaction would do, in figures: packs that points need, their bytes, and about how many are dead.

    `chosen` counts packs by reason; about `bytes_read` are to be read and `bytes_freed` to be freed, when a prune has
    deleted the packs. `locked`, `doubtful` and `lost` (broken and not held elsewhere) ones are left alone; `later`
    would make the run too large.
    """

    packs: int = 0
    bytes: int = 0
    bytes_dead: int = 0
    chosen: dict[str, int] = {}
    bytes_read: int = 0
    bytes_freed: int = 0
    locked: int = 0
    doubtful: int = 0
    lost: list[str] = []
    later: int = 0


class _Candidate(NamedTuple):
    share: Share
    reason: str


class Chooser:
    """Chooses once, from marks that are complete."""

    def __init__(self, vault: Vault, marks: Marks, forbidden: set[str], *, now: dt.datetime) -> None:
        self._vault, self._marks, self._forbidden, self._now = vault, marks, forbidden, now
        self._shares = marks.shares()
        self._sizes = {pack_name(s.key): s.size for s in vault.stored_packs()}
        self._damaged = damaged_packs(vault.storage)
        # What was moved away is never moved back to.
        self._moved = {name for move in vault.moves.committed + vault.moves.prepared for name in move.packs}
        self.choice = Choice(
            packs=len(marks.packs),
            bytes=sum(pack.size for pack in marks.packs.values()),
            bytes_dead=sum(s.pack.size - s.live_bytes for s in self._shares.values()),
            doubtful=len(marks.doubtful),
        )

    def choose(self, *, dead_share: float, bytes_max: int, progress: Progress) -> Iterator[list[Task]]:
        """Yield the tasks, in groups of one kind of pack and about UNIT_BYTES to read; `choice` is whole at the end.

        `bytes_max` limits what is read; 0 is a tenth of the vault, and at least BYTES_LEAST.
        """
        limit = bytes_max or max(self.choice.bytes // 10, BYTES_LEAST)
        chosen = self._within(self._unlocked(self._candidates(dead_share)), limit)
        progress.total(bytes=sum(candidate.share.live_bytes for candidate in chosen))
        place = {name: number for number, name in enumerate(self._shares)}
        for kind in (DATA, META):
            group: list[_Candidate] = []
            for candidate in sorted(chosen, key=lambda c: (c.reason == "tiny", place[c.share.pack.name])):
                if candidate.share.pack.kind != kind:
                    continue
                if group and sum(c.share.live_bytes for c in [*group, candidate]) > UNIT_BYTES:
                    yield from self._tasks(group, chosen)
                    group = []
                progress.check()
                group.append(candidate)
            if group:
                yield from self._tasks(group, chosen)

    def _candidates(self, dead_share: float) -> list[_Candidate]:
        stuck = self._stuck()
        found = []
        tiny: dict[int, list[_Candidate]] = {DATA: [], META: []}
        for name, share in self._shares.items():
            if name in self._marks.doubtful:
                continue
            if name in self._damaged or self._sizes.get(name) != share.pack.size:
                found.append(_Candidate(share, "broken"))
            elif name in stuck:
                found.append(_Candidate(share, "stuck"))
            elif name in self._forbidden:
                continue  # a prune that still can rescues it
            elif share.dead_share >= dead_share:
                found.append(_Candidate(share, "sparse"))
            elif share.pack.size < TARGET_BYTES[share.pack.kind] // TINY_PART:
                tiny[share.pack.kind].append(_Candidate(share, "tiny"))
        return found + [c for several in tiny.values() if len(several) >= TINY_LEAST for c in several]

    def _stuck(self) -> set[str]:
        names: set[str] = set()
        for run, parts in run_parts(self._vault).items():
            if "condemned" in parts and is_stuck(parts):
                with contextlib.suppress(NotFound):
                    names.update(read_names(self._vault.storage, self._vault.keys, f"{PRUNE_PREFIX}{run}/condemned"))
        return names

    def _unlocked(self, candidates: list[_Candidate]) -> list[_Candidate]:
        """Leave out the locked ones: they cannot be freed before their lock ends. Broken ones cost nothing."""
        if not any(True for _ in self._vault.storage.scan(LOCKS)):
            return candidates
        free = [c for c in candidates if c.reason == "broken" or not self._is_locked(c.share.pack)]
        self.choice.locked = len(candidates) - len(free)
        return free

    def _is_locked(self, pack: PackRef) -> bool:
        try:
            until = self._vault.storage.locked_until(pack_key(pack.kind, pack.name))
        except NotFound:
            return False  # gone since the LIST
        return until is not None and until > self._now

    def _within(self, candidates: list[_Candidate], limit: int) -> list[_Candidate]:
        """Take what is worth most for its bytes until the limit is reached."""
        order = {"broken": 0, "stuck": 1, "sparse": 2, "tiny": 3}
        chosen, used = [], 0
        for candidate in sorted(candidates, key=lambda c: (order[c.reason], -c.share.dead_share)):
            cost = candidate.share.live_bytes
            if used + cost > limit:
                self.choice.later += 1
                continue
            used += cost
            chosen.append(candidate)
        return chosen

    def _tasks(self, group: list[_Candidate], chosen: Iterable[_Candidate]) -> Iterator[list[Task]]:
        """Yield the group's tasks, if there are any."""
        bad = {c.share.pack.name for c in chosen} | self._forbidden | self._damaged | self._moved
        good = {
            head.name
            for segment in self._vault.index.segments
            for head in segment.heads
            if head.name not in bad and self._sizes.get(head.name) == head.size
        }
        ids = self._marks.live_ids({c.share.pack.name for c in group})
        tasks = []
        for share, reason in group:
            pack = share.pack
            elsewhere = self._elsewhere(ids[pack.name], good)
            if elsewhere is None and reason == "broken":
                self.choice.lost.append(pack_key(pack.kind, pack.name))
                continue
            if elsewhere is None or (reason != "broken" and len(elsewhere) > ELSEWHERE_MOST):
                elsewhere = []
            tasks.append(Task(pack, reason, ids[pack.name], elsewhere))
            self.choice.bytes_read += share.live_bytes
            self.choice.bytes_freed += pack.size - (0 if elsewhere else share.live_bytes)
        self.choice.chosen = dict(Counter(self.choice.chosen) + Counter(task.reason for task in tasks))
        if tasks:
            yield tasks

    def _elsewhere(self, ids: bytes, good: set[str]) -> list[tuple[PackRef, bytes]] | None:
        """Return packs that hold all these chunks, and which of them each holds; None when one is nowhere else."""
        each = [ids[at : at + ID_BYTES] for at in range(0, len(ids), ID_BYTES)]
        held: dict[PackRef, list[bytes]] = {}
        for ident, place in zip(each, self._vault.index.places(each, within=good), strict=True):
            if place is None:
                return None
            head = place.head
            held.setdefault(PackRef(head.name, head.kind, head.size), []).append(ident)
        return [(pack, b"".join(found)) for pack, found in held.items()]
