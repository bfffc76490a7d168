"""After every step of a vault's life the bucket alone tells all of it (engine invariants 1, 11 and 23).

Steps come in any order: backups of two sources, expiry, prunes, compaction, holds, verification, a lost index, lost
caches, a lost ledger, a damaged pack that the next backup replaces.
"""

import shutil
import tempfile
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from engine import listing as listings
from engine.ids import SEGMENTS, pack_key
from engine.ledger import PREFIX as LEDGER
from engine.pack import DATA
from engine.storage import Memory
from engine.vault import PointName
from engine.verbs.hold import hold, release
from engine.verbs.rebuild import Row
from tests.support.compaction import compacted, noise
from tests.support.expiry import expired
from tests.support.vaults import Bench, contents, flip, on_disk, pruned, rebuilt, verified

pytestmark = pytest.mark.slow

SERIES = st.sampled_from(["home", "work"])
NUMBERS = st.integers(0, 7)


class Life(RuleBasedStateMachine):
    """A vault, and what is known of it without looking: each point's files and its row."""

    def __init__(self) -> None:
        super().__init__()
        self.top = Path(tempfile.mkdtemp(prefix="life-"))
        self.bench = Bench(cache=self.top / "cache")
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(listings, "BLOCK_ROWS_MIN", 2)
        self.patch.setattr(listings, "_END_MASK", 1)
        self.files: dict[PointName, dict[bytes, bytes]] = {}
        self.rows: dict[PointName, dict[str, Any]] = {}
        self.held: set[PointName] = set()
        self.hurt: set[PointName] = set()

    def teardown(self) -> None:
        self.patch.undo()
        shutil.rmtree(self.top)

    @rule(series=SERIES, edits=st.lists(st.tuples(NUMBERS, st.integers(0, 30)), max_size=4))
    def back_up(self, series: str, edits: list[tuple[int, int]]) -> None:
        folder = self.top / series
        folder.mkdir(exist_ok=True)
        for number, seed in edits:
            path = folder / f"file{number}"
            if seed:
                path.write_bytes(noise(seed, 20_000))
            else:
                path.unlink(missing_ok=True)
        outcome = self.bench.back_up(folder, series=series)
        name = PointName(series, outcome.point)
        self.files[name] = {bytes(folder) + b"/" + path: data for path, data in on_disk(folder).items()}
        self.rows[name] = said(next(row for row in rebuilt(self.bench).rows if row.point == outcome.point))

    @precondition(lambda self: self.files)
    @rule(data=st.data())
    def expire(self, data: st.DataObject) -> None:
        chosen = data.draw(st.sampled_from(sorted(self.files)))
        expired(self.bench, points=("/".join(chosen),), confirmed=True, reason="a test")
        if chosen not in self.held:
            for known in (self.files, self.rows):
                del known[chosen]
            self.hurt.discard(chosen)

    @precondition(lambda self: self.files)
    @rule(data=st.data())
    def hold_or_release(self, data: st.DataObject) -> None:
        chosen = data.draw(st.sampled_from(sorted(self.files)))
        if chosen in self.held:
            release(self.bench.open(), chosen)
        else:
            hold(self.bench.open(), chosen, reason="a test", now=self.bench.clock())
        self.held ^= {chosen}
        self.rows[chosen]["held"] = chosen in self.held

    @rule()
    def prune(self) -> None:
        outcome = pruned(self.bench)
        assert outcome.state == "complete"

    @rule()
    def compact(self) -> None:
        compacted(self.bench, dead_share=0.1, bytes_max=1 << 30)

    @rule(level=st.sampled_from(["inventory", "structure", "scrub", "content"]))
    def verify(self, level: Any) -> None:
        found = self.hurt if level in ("scrub", "content") else set()
        assert verified(self.bench, level).lost == sorted("/".join(name) for name in found)

    @rule(keep=st.booleans(), cache=st.booleans())
    def lose_the_index(self, keep: bool, cache: bool) -> None:
        segments = [stored.key for stored in self.bench.storage.scan(SEGMENTS)]
        self.bench.storage.delete(segments[1:] if keep else segments)
        if cache:
            shutil.rmtree(self.top / "cache", ignore_errors=True)
        rebuilt(self.bench)

    @precondition(lambda self: self.files and not self.hurt)
    @rule(data=st.data())
    def damage_a_pack(self, data: st.DataObject) -> None:
        """A scrub notes it; no later backup rests on it."""
        vault = self.bench.open()
        roots = {name: vault.root(name) for name in self.files}
        packs = list(dict.fromkeys(p.name for root in roots.values() for p in root.needed if p.kind == DATA))
        if not packs:
            return
        name = data.draw(st.sampled_from(packs))
        flip(self.bench, pack_key(DATA, name), 200)
        self.hurt = {point for point, root in roots.items() if any(p.name == name for p in root.needed)}
        assert name in verified(self.bench, "scrub").damaged

    @rule()
    def lose_the_ledger(self) -> None:
        self.bench.storage.delete([stored.key for stored in self.bench.storage.scan(LEDGER)])

    @invariant()
    def the_bucket_alone_tells_everything(self) -> None:
        twin = Bench()
        twin.storage, twin.ring, twin.clock = Memory(), self.bench.ring, self.bench.clock
        for key, data in self.bench.objects().items():
            if not key.startswith((SEGMENTS, LEDGER)):
                twin.storage.put(key, data)
        first, second = rebuilt(twin), rebuilt(twin)
        assert first.broken == second.broken == []
        assert first.rows == second.rows
        assert {PointName(row.series, row.point): said(row) for row in first.rows} == self.rows
        lost = set(verified(twin, "content").lost)
        assert lost <= {"/".join(name) for name in self.hurt}
        # A compaction may put chunks that a later backup stored again in the place of damaged ones.
        self.hurt = {name for name in self.hurt if "/".join(name) in lost}
        vault = twin.open()
        for name, files in self.files.items():
            if name not in self.hurt:
                assert {b"/" + path: data for path, data in contents(vault, name).items()} == files


def said(row: Row) -> dict[str, Any]:
    """Return what a rebuilt row must say for ever: compaction moves its packs, and nothing else."""
    fields = msgspec.structs.asdict(row)
    del fields["packs"], fields["bytes_needed"]
    return fields


@pytest.mark.invariant(1, 11, 23, 29)
def test_after_every_step_the_bucket_alone_tells_everything():
    # Shorter examples of a failure would take minutes to find.
    run_state_machine_as_test(
        Life,
        settings=settings(
            max_examples=10,
            stateful_step_count=14,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate],
        ),
    )
