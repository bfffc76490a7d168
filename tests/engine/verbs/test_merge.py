"""Merging the index: rows twice at worst and lost never, whatever happens meanwhile (engine invariant 11)."""

import shutil
from collections.abc import Sequence, Set
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.codec import Purpose, seal
from engine.errors import Canceled, EngineError, FormatError
from engine.ids import SEGMENTS, digest_name
from engine.index import Index, encode_segment
from engine.keys import ID_BYTES
from engine.pack import DATA, PackWriter, Sealed
from engine.progress import Silent
from engine.storage import Memory, Storage
from engine.storage.faulty import Fault, Faulty, Mode
from engine.storage.port import Refusal
from engine.vault import Vault
from engine.verbs import merge
from engine.verbs.merge import Merged, listed_packs, merge_index
from tests.support.hooks import Hooked
from tests.support.replication import Replica, everything, replicated
from tests.support.runs import backed_up
from tests.support.vaults import Bench, flip, pruned, write_files

pytestmark = pytest.mark.invariant(11)


class Shelf:
    """A vault with hand-made segments, and what its index must answer: (chunk id, pack) pairs."""

    def __init__(self, cache: Path | None = None) -> None:
        self.bench = Bench(Memory(page_size=3), cache=cache)
        self.keys = self.bench.open().keys
        self.rows: set[tuple[bytes, str]] = set()

    def pack(self, *chunks: bytes) -> Sealed:
        writer = PackWriter(self.keys, DATA, self.bench.storage.put)
        for chunk in chunks:
            writer.add(self.keys.chunk_id(chunk), chunk)
        (sealed,) = writer.close()
        self.rows |= {(self.keys.chunk_id(chunk)[:ID_BYTES], sealed.head.name) for chunk in chunks}
        return sealed

    def list_packs(self, *packs: Sealed, replaces: tuple[str, ...] = ()) -> str:
        """Store one segment; return its key."""
        index = Index(self.bench.storage, self.keys, None)
        (plain,) = encode_segment(packs, replaces=replaces)
        index.add(plain)
        return index.listed[index.segments[0].name]

    def segments(self) -> list[str]:
        return [stored.key for stored in self.bench.storage.scan(SEGMENTS)]

    def vault(self, storage: Storage | None = None) -> Vault:
        return Vault.open(storage or self.bench.storage, provider=self.bench.ring, cache=self.bench.cache)

    def merge(self, drop: Set[str] = frozenset(), *, storage: Storage | None = None) -> Merged:
        return merge_index(self.vault(storage), Silent(), drop=drop)

    def assert_whole(self, drop: Set[str] = frozenset(), *, index: Index | None = None) -> None:
        """Assert that every row of a pack that was not dropped is answered, by a fresh index or by this one."""
        index = index or Index(self.bench.storage, self.keys, None)
        index.refresh()
        missing = [
            (ident, name)
            for ident, name in self.rows
            if name not in drop and index.places([ident], within={name}) == [None]
        ]
        assert missing == []

    def dropped_rows(self, drop: Set[str]) -> set[str]:
        """Return the dropped packs that the index still answers with."""
        index = Index(self.bench.storage, self.keys, None)
        index.refresh()
        return {head.name for segment in index.segments for head in segment.heads} & drop


def name_of(key: str) -> str:
    return key.rpartition("/")[2]


@pytest.fixture
def shelf() -> Shelf:
    return Shelf()


@pytest.fixture
def small_fan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merge, "FAN", 3)


def filled(shelf: Shelf) -> set[str]:
    """List some packs in five segments, one damaged and replaced, one replaced, one that only replaces.

    Return the names of two packs that are to be dropped.
    """
    packs = [shelf.pack(b"shared", b"%d" % n, b"also %d" % (n // 2)) for n in range(6)]
    shelf.list_packs(packs[0], packs[1])
    shelf.list_packs(packs[2])
    shelf.list_packs(packs[3], packs[2])
    old, bad = shelf.list_packs(packs[4]), shelf.list_packs(packs[4], packs[5])
    shelf.list_packs(packs[4], packs[5])
    shelf.list_packs(replaces=(name_of(old), name_of(bad)))
    flip(shelf.bench, bad, 90)
    return {packs[1].head.name, packs[3].head.name}


@pytest.mark.usefixtures("small_fan")
def test_a_merge_leaves_every_row_but_those_of_dropped_packs(shelf: Shelf):
    drop = filled(shelf)
    merged = shelf.merge(drop)
    shelf.assert_whole(drop)
    index = shelf.vault().index
    assert {head.name for segment in index.segments for head in segment.heads} == {n for _, n in shelf.rows} - drop
    assert (merged.segments_before, merged.segments_after, merged.refused) == (7, len(shelf.segments()), [])
    assert len(shelf.segments()) == 1
    assert index.damaged == {}
    assert listed_packs(shelf.vault()) & drop == set()
    again = shelf.merge(drop)
    assert (again.written, again.segments_before, again.segments_after) == (0, 1, 1)


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_whatever_was_listed_how_often_is_answered_as_before(data: st.DataObject):
    shelf = Shelf()
    packs = [
        shelf.pack(*(b"%d" % n for n in sorted(chunks)))
        for chunks in data.draw(st.lists(st.sets(st.integers(0, 12), min_size=1, max_size=5), min_size=1, max_size=6))
    ]
    for pack in packs:
        shelf.list_packs(
            pack, *data.draw(st.lists(st.sampled_from(packs), max_size=2, unique_by=lambda p: p.head.name))
        )
    drop = {packs[n].head.name for n in data.draw(st.sets(st.integers(0, len(packs) - 1)))}
    before = shelf.vault().index
    shelf.merge(drop)
    after = shelf.vault().index
    for ident, name in shelf.rows:
        places = before.places([ident], within={name}), after.places([ident], within={name})
        assert places[1] == ([None] if name in drop else places[0])
    assert shelf.dropped_rows(drop) == set()


def test_a_row_that_several_segments_list_is_there_once_after_a_merge(shelf: Shelf, small_fan: None):
    pack, other = shelf.pack(b"x", b"y"), shelf.pack(b"x")
    for _ in range(3):
        shelf.list_packs(pack, other)
    shelf.merge()
    assert [segment.rows for segment in shelf.vault().index.segments] == [3]


def test_what_a_segment_replaces_is_deleted_before_it_and_after_what_replaces_it_was_stored(
    shelf: Shelf, small_fan: None
):
    drop = filled(shelf)
    store = shelf.bench.storage
    assert isinstance(store, Memory)
    before = set(shelf.segments())
    replaces = {key: set(s.replaces) for key in before if (s := shelf.vault().index.loaded.get(name_of(key)))}
    at = len(store.log)
    shelf.merge(drop)
    puts = {call.key: call.seq for call in store.log[at:] if call.verb == "put"}
    deletes = {name_of(call.key): call.seq for call in store.log[at:] if call.verb == "delete"}
    assert deletes.keys() >= {name_of(key) for key in before}
    for key, names in replaces.items():
        assert all(deletes[name] < deletes[name_of(key)] for name in names)
    for segment in shelf.vault().index.segments:
        key = shelf.vault().index.listed[segment.name]
        assert all(puts[key] < deletes[name] for name in segment.replaces)


@pytest.mark.parametrize("mode", [Mode.BEFORE, Mode.AFTER, Mode.DELAYED])
def test_a_crash_at_any_call_leaves_an_index_that_answers_the_same(mode: Mode, small_fan: None):
    at = 0
    while True:
        at += 1
        shelf = Shelf()
        drop = filled(shelf)
        faulty = Faulty(shelf.bench.storage, [Fault(at, mode)])
        vault = shelf.vault()
        vault.storage = faulty
        try:
            merge_index(vault, Silent(), drop=drop)
        except EngineError:
            shelf.assert_whole(drop)
            shelf.merge(drop)
            shelf.assert_whole(drop)
            faulty.settle()  # what the network kept arrives after another merge
            shelf.assert_whole(drop)
            shelf.merge(drop)
            assert shelf.dropped_rows(drop) == set()
        shelf.assert_whole(drop)
        if not faulty.fired and at > len(faulty.calls):
            break
    assert at > 5


@pytest.mark.parametrize("other_drops", [True, False])
def test_two_merges_at_once_lose_nothing_wherever_the_second_runs(other_drops: bool, small_fan: None):
    """The second merge runs as a whole between any two calls of the first, and replaces its inputs or its output."""
    at, calls = 0, 1
    while at < calls:
        at += 1
        shelf = Shelf()
        drop = filled(shelf)

        def other(number: int, *, shelf: Shelf = shelf, drop: Set[str] = frozenset(drop), at: int = at) -> None:
            if number == at:
                for n in range(2):
                    shelf.list_packs(shelf.pack(b"a session stored this, %d" % n))
                shelf.merge(drop if other_drops else frozenset())
            shelf.assert_whole(drop)

        hooked = Hooked(shelf.bench.storage, other)
        shelf.merge(drop, storage=hooked)
        calls = hooked.calls
        shelf.assert_whole(drop)
        shelf.merge(drop)
        shelf.assert_whole(drop)
        assert shelf.dropped_rows(drop) == set()
    assert calls > 10


def test_a_reader_whose_listing_a_merge_overtakes_lists_again(small_fan: None):
    """The merge runs as a whole between any two calls of a reader: one that starts, and one that knew the old ones."""
    for knows in (False, True):
        at, calls = 0, 1
        while at < calls:
            at += 1
            shelf = Shelf()
            drop = filled(shelf)

            def other(number: int, *, shelf: Shelf = shelf, drop: Set[str] = frozenset(drop), at: int = at) -> None:
                if number == at:
                    shelf.merge(drop)

            hooked = Hooked(shelf.bench.storage, other)
            index = Index(hooked if not knows else shelf.bench.storage, shelf.keys, None)
            if knows:
                index.refresh()
                index._storage = hooked
                shelf.list_packs(shelf.pack(b"news"))
            shelf.assert_whole(drop, index=index)
            calls = hooked.calls
        assert calls > 2


def test_who_has_the_old_segments_goes_on_with_them(tmp_path: Path, small_fan: None):
    shelf = Shelf(cache=tmp_path)
    drop = filled(shelf)
    reader = shelf.vault().index
    before = {ident: reader.places([ident]) for ident, _ in shelf.rows}
    shelf.merge(drop)
    shutil.rmtree(tmp_path)
    assert {ident: reader.places([ident]) for ident, _ in shelf.rows} == before
    shelf.assert_whole(drop, index=reader)


def test_the_folder_of_copies_forgets_the_segments_that_are_gone(tmp_path: Path, small_fan: None):
    shelf = Shelf(cache=tmp_path)
    drop = filled(shelf)
    vault = shelf.vault()
    kept = tmp_path / vault.info.vault_id
    assert len(vault.index.segments) < len(list(kept.iterdir()))
    shelf.merge(drop)
    assert {path.name for path in kept.iterdir()} == {name_of(key) for key in shelf.segments()}


def test_a_damaged_segment_that_nobody_replaced_stays_for_rebuild(shelf: Shelf, small_fan: None):
    drop = filled(shelf)
    bad = shelf.list_packs(shelf.pack(b"lost"))
    flip(shelf.bench, bad, 90)
    shelf.merge(drop)
    assert bad in shelf.segments()


def test_each_row_is_written_again_once_for_each_class_and_segments_stay_few(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(merge, "FAN", 4)
    monkeypatch.setattr(merge, "_SMALLEST_BYTES", 64)
    count, rewritten, known = 64, 0, set[str]()
    for number in range(count):
        known.add(name_of(shelf.list_packs(shelf.pack(b"%d" % number))))
        shelf.merge()
        loaded = shelf.vault().index.loaded
        rewritten += sum(segment.rows for name, segment in loaded.items() if name not in known)
        known |= loaded.keys()
        assert len(loaded) <= 4 * 4
    assert sum(segment.rows for segment in shelf.vault().index.segments) == count
    assert rewritten <= 4 * count
    levels = {int(key.split("/")[1]) for key in shelf.segments()}
    assert max(levels) >= 3
    shelf.assert_whole()


def test_no_merged_segment_is_larger_than_allowed_and_full_ones_are_left_alone(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(merge, "FAN", 2)
    monkeypatch.setattr(merge, "BYTES_MAX", 1000)
    for number in range(30):
        shelf.list_packs(shelf.pack(b"%d" % number))
    shelf.merge()
    sizes = {name: segment.size for name, segment in shelf.vault().index.loaded.items()}
    assert 500 < max(sizes.values()) <= 1000 + 32 * 30
    shelf.list_packs(shelf.pack(b"more"))
    shelf.merge()
    full = {name for name, size in sizes.items() if size > 500}
    assert full
    assert full <= shelf.vault().index.loaded.keys()
    shelf.assert_whole()


def test_a_canceled_merge_leaves_every_row(shelf: Shelf, small_fan: None):
    drop = filled(shelf)
    silent = Silent()
    silent.cancel()
    with pytest.raises(Canceled):
        merge_index(shelf.vault(), silent, drop=drop)
    shelf.assert_whole(drop)


def test_beside_a_segment_of_a_newer_program_nothing_is_merged(shelf: Shelf, small_fan: None):
    drop = filled(shelf)
    (plain,) = encode_segment([shelf.pack(b"newer")])
    data = seal(shelf.keys, Purpose.SEGMENT, plain[:4] + b"\x02" + plain[5:], context=b"index")
    before = shelf.segments()
    shelf.bench.storage.put(f"{SEGMENTS}0/{digest_name(data)}", data)
    with pytest.raises(FormatError, match="has format 2"):
        shelf.merge(drop)
    assert set(before) < set(shelf.segments())


def test_what_the_store_refuses_to_delete_is_reported_and_stays_replaced(
    shelf: Shelf, small_fan: None, monkeypatch: pytest.MonkeyPatch
):
    drop = filled(shelf)
    store = shelf.bench.storage
    allowed = store.delete
    monkeypatch.setattr(store, "delete", lambda keys: [Refusal(key, "no", locked=True) for key in keys])
    for _ in range(2):
        assert shelf.merge(drop).refused
        shelf.assert_whole(drop)
    monkeypatch.setattr(store, "delete", allowed)
    shelf.merge(drop)
    shelf.assert_whole(drop)
    assert shelf.dropped_rows(drop) == set()
    assert len(shelf.segments()) == 1


def test_of_segments_that_replace_each_other_the_oldest_goes_first_and_what_it_waits_for_stays(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
):
    """Without what replaces it, a segment would be in force again, with the rows of dropped packs."""
    gone, kept = shelf.pack(b"gone"), shelf.pack(b"kept")
    oldest = shelf.list_packs(gone, kept)
    old = shelf.list_packs(gone, kept, replaces=(name_of(oldest),))
    new = shelf.list_packs(gone, kept, replaces=(name_of(old),))
    drop = {gone.head.name}
    store = shelf.bench.storage
    assert isinstance(store, Memory)
    allowed = store.delete

    def keep_oldest(keys: Sequence[str]) -> list[Refusal]:
        return allowed([key for key in keys if key != oldest]) + [Refusal(oldest, "no", True)] * (oldest in keys)

    monkeypatch.setattr(store, "delete", keep_oldest)
    assert shelf.merge(drop).refused == [oldest]
    assert set(shelf.segments()) == {oldest, old, new}
    monkeypatch.setattr(store, "delete", allowed)
    at = len(store.log)
    shelf.merge(drop)
    assert [call.key for call in store.log[at:] if call.verb == "delete"] == [oldest, old, new]
    assert shelf.dropped_rows(drop) == set()


def test_who_misses_what_it_knew_in_a_listing_lists_again(shelf: Shelf, monkeypatch: pytest.MonkeyPatch):
    """A LIST that takes its time may show neither the merged segment nor those that it replaces."""
    monkeypatch.setattr(merge, "FAN", 2)
    shelf.list_packs(shelf.pack(b"a"))
    shelf.list_packs(shelf.pack(b"b"))
    store = shelf.bench.storage
    index = Index(store, shelf.keys, None)
    index.refresh()
    shelf.merge()
    whole = store.scan
    looks = iter([0])
    monkeypatch.setattr(store, "scan", lambda prefix: iter(()) if next(looks, 1) == 0 else whole(prefix))
    shelf.assert_whole(index=index)


def test_segments_come_once_however_they_are_merged_at_the_replica(tmp_path: Path):
    source, home = Bench(), tmp_path / "home"
    target = Replica(source)
    for n in range(12):
        backed_up(source, write_files(home, {"n": b"%d" % n * 900}))
    replicated(target)
    for _ in range(2):
        pruned(target)
    after_merge = {key for key in target.objects() if key.startswith("index/")}
    replicated(target)
    assert {key for key in target.objects() if key.startswith("index/")} == after_merge
    assert len(after_merge) < 12
    assert everything(target) == everything(source)
