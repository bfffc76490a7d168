"""What a verification finds, and what of the points it affects."""

from collections.abc import Iterable, Sequence

import msgspec
from blake3 import blake3

from engine.entries import Block
from engine.errors import EngineError
from engine.point import Root, point_key
from engine.progress import Progress
from engine.vault import PointName, Vault

PATHS_KEPT = 20

_BRING_BACK = "Bring the object back from a copy of the bucket or a replica"
ADVICE = {
    "missing": f"{_BRING_BACK}; if there is none, back up again: what the source still has is stored anew",
    "size": f"{_BRING_BACK}; if there is none, back up again: what the source still has is stored anew",
    "damaged": f"{_BRING_BACK}; if there is none, restore what can be read, delete it, and back up again",
    "point": f"{_BRING_BACK}, or delete the point: it cannot be read",
    "listing": "The named files of the point cannot be restored: restore the others, and make a new backup",
    "index": "Nothing is lost: run rebuild, which lists the chunks anew from the packs themselves",
    "contradiction": "Nothing is lost: delete this object, then run rebuild, which makes it anew from the packs",
    "control": _BRING_BACK,
}


class Finding(msgspec.Struct, kw_only=True):
    """One thing that is wrong.

    `object` is its key. `damage`: missing, size (not as recorded), damaged (a pack, key set or other named object),
    point (a root or commit), listing (a block of a point's listing), index (a damaged segment, or chunks that no
    segment lists), contradiction (a segment that cannot be right), control (a note, such as a session's). `points` are
    the visible points that need it, as `<series>/<point>`; `files` of their files are affected, `paths` are the first
    of them. `chunks` and `blocks` serve the run itself.
    """

    object: str
    damage: str
    detail: str
    points: list[str] = []
    files: int = 0
    paths: list[bytes] = []
    chunks: list[bytes] = []
    blocks: list[bytes] = []

    @property
    def advice(self) -> str:
        """Say what to do."""
        return ADVICE[self.damage]

    def count(self, paths: Iterable[bytes]) -> None:
        """Count affected files and keep the first paths."""
        for path in paths:
            self.files += 1
            if len(self.paths) < PATHS_KEPT:
                self.paths.append(path)


def block_key(root: Root, number: int) -> bytes:
    """Return what tells whether a block was checked before: its groups, its packs and where the next one starts."""
    blocks = root.body.blocks
    block = blocks[number]
    following = blocks[number + 1].first if number + 1 < len(blocks) else b""
    packs = [pack.name for i in block.packs if i < len(root.packs) for pack in root.needs(i)]
    return blake3(msgspec.msgpack.encode((block.first, block.rows, block.groups, packs, following))).digest(16)


class Affected:
    """Tells which points and files the findings affect; asked once, at the end, and only when something is wrong.

    Reads every root again, and the blocks that need a damaged pack; each distinct block once. With `listings` the
    blocks were checked, and those that cannot be read have findings of their own. Memory: the lost ids and one short
    hash per affected path.
    """

    def __init__(self, vault: Vault, findings: Sequence[Finding], *, listings: bool) -> None:
        self._vault, self._listings = vault, listings
        self._packs = {pack_name(f.object): f for f in findings if pack_name(f.object)}
        self._blocks = {block: f for f in findings for block in f.blocks}
        self._points = {f.object: f for f in findings if f.damage == "point"}
        self._seen: set[bytes] = set()
        self._paths: dict[str, set[bytes]] = {}

    def look(self, names: Sequence[PointName], progress: Progress) -> None:
        """Add to the findings what of these points they affect."""
        for name in names:
            progress.check()
            shown = f"{name.series}/{name.point}"
            for part in ("root", "commit"):
                if finding := self._points.get(point_key(*name, part)):
                    _note(finding, shown)
            try:
                root = self._vault.root(name)
            except EngineError:
                continue
            self._look(root, shown)

    def _look(self, root: Root, shown: str) -> None:
        hit: dict[int, list[Finding]] = {}
        for number in range(len(root.packs)):
            for pack in root.needs(number):
                if pack.name in self._packs:
                    hit.setdefault(number, []).append(self._packs[pack.name])
                    _note(self._packs[pack.name], shown)
        for number, block in enumerate(root.body.blocks if hit or self._blocks else []):
            key = block_key(root, number)
            if unreadable := self._blocks.get(key):
                _note(unreadable, shown)
            needed = list({id(f): f for i in block.packs for f in hit.get(i, ())}.values())
            if needed and key not in self._seen:
                self._seen.add(key)
                self._count(root, block, needed)

    def _count(self, root: Root, block: Block, needed: list[Finding]) -> None:
        try:
            rows = self._vault.fetcher(root).entries(block)
        except EngineError:
            for finding in needed:
                if not self._listings and finding.object.startswith("meta/"):
                    finding.files += block.files
            return
        for finding in needed:
            lost = set(finding.chunks)
            paths = self._paths.setdefault(finding.object, set())
            for row in rows:
                mark = blake3(row.path).digest(8)
                if mark not in paths and any(extent.id in lost for extent in row.extents):
                    paths.add(mark)
                    finding.count([row.path])


def pack_name(key: str) -> str:
    """Return the name of a pack from its key, empty for other objects."""
    folder, _, rest = key.partition("/")
    return rest.rpartition("/")[2] if folder in ("packs", "meta") else ""


def _note(finding: Finding, point: str) -> None:
    if not finding.points or finding.points[-1] != point:
        finding.points.append(point)
