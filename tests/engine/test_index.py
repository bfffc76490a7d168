"""The index: where chunks lie; a cache of what the footers say, which may be lost at any time (engine invariant 11)."""

import os
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from engine.codec import Purpose, seal
from engine.errors import FormatError, IntegrityError, MissingObject
from engine.ids import digest_name
from engine.index import Index, Segment, encode_segment, load_segment
from engine.keys import ID_BYTES, Keys
from engine.pack import DATA, PackWriter, Sealed
from engine.storage import Memory
from tests.support.runs import backed_up, landed, restored
from tests.support.vaults import Bench, on_disk, write_files

KEYS = Keys.create()
NOISE = random.Random(8)


def ident(chunk: bytes) -> bytes:
    return KEYS.chunk_id(chunk)[:ID_BYTES]


@pytest.fixture
def store() -> Memory:
    return Memory()


def packed(store: Memory, chunks: list[bytes]) -> Sealed:
    writer = PackWriter(KEYS, DATA, store.put)
    for chunk in chunks:
        writer.add(KEYS.chunk_id(chunk), chunk)
    (sealed,) = writer.close()
    return sealed


def add(store: Memory, *packs: Sealed, replaces: tuple[str, ...] = ()) -> str:
    """Store one segment; return its name."""
    before = {stored.key for stored in store.scan("index/")}
    (plain,) = encode_segment(packs, replaces=replaces)
    Index(store, KEYS, None).add(plain)
    return ({stored.key for stored in store.scan("index/")} - before).pop().rpartition("/")[2]


def fresh(store: Memory, *, forbidden: set[str] | None = None, cache: Path | None = None) -> Index:
    index = Index(store, KEYS, cache)
    index.forbid(forbidden or set())
    index.refresh()
    return index


def test_every_chunk_is_found_and_no_other(store: Memory):
    chunks = [b"%d" % number for number in range(3000)]
    add(store, packed(store, chunks[:1000]), packed(store, chunks[1000:1500]))
    add(store, packed(store, chunks[1500:]))
    index = fresh(store)
    assert index.known([ident(chunk) for chunk in chunks]).all()
    assert not index.known([ident(b"x%d" % number) for number in range(3000)]).any()
    assert len(index.known([])) == 0
    assert index.places([]) == []
    assert {place.length for place in index.places([ident(b"7"), ident(b"2999")]) if place} == {1, 4}


def test_an_id_that_shares_its_first_half_with_another_is_not_taken_for_it(store: Memory):
    add(store, packed(store, [b"x"]))
    twin = ident(b"x")[:8] + bytes(8)
    assert fresh(store).known([twin, ident(b"x")]).tolist() == [False, True]


def test_a_chunk_in_several_packs_is_answered_from_one_that_may_be_used(store: Memory):
    first, second, third = (packed(store, [b"shared", b"%d" % number]) for number in range(3))
    add(store, first, second)
    add(store, third)
    shared, names = ident(b"shared"), [one.head.name for one in (first, second, third)]
    for allowed in names:
        index = fresh(store, forbidden=set(names) - {allowed})
        (place,) = index.places([shared])
        assert place is not None
        assert place.head.name == allowed
        assert {head.name for head in index.packs_of([shared])} == {allowed}
        (limited,) = fresh(store).places([shared], within={allowed})
        assert limited is not None
        assert limited.head.name == allowed
    assert fresh(store, forbidden=set(names)).places([shared]) == [None]
    assert fresh(store).places([shared], within={"another"}) == [None]


def test_forbidding_counts_for_segments_that_come_later_too(store: Memory):
    index = fresh(store)
    one = packed(store, [b"x"])
    index.forbid({one.head.name})
    add(store, one)
    index.refresh()
    assert not index.known([ident(b"x")])[0]
    index.forbid(set())
    assert index.known([ident(b"x")])[0]


def test_asking_for_the_packs_of_an_unknown_chunk_is_an_error(store: Memory):
    add(store, packed(store, [b"x"]))
    with pytest.raises(MissingObject, match=ident(b"y").hex()):
        fresh(store).packs_of([ident(b"x"), ident(b"y")])


def test_a_replaced_segment_is_no_longer_asked_and_need_not_be_there(store: Memory):
    one, two = packed(store, [b"x"]), packed(store, [b"y"])
    old = add(store, one, two)
    new = add(store, one, replaces=(old,))
    index = fresh(store)
    assert [segment.name for segment in index.segments] == [new]
    assert index.known([ident(b"x"), ident(b"y")]).tolist() == [True, False]
    store.delete([f"index/0/{old}"])
    assert fresh(store).known([ident(b"x")])[0]


def test_many_rows_are_cut_into_several_segments(store: Memory, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("engine.index.ROWS_MAX", 10)
    packs = [packed(store, [b"%d-%d" % (pack, n) for n in range(6)]) for pack in range(4)]
    plains = encode_segment(packs)
    assert [Segment("", memoryview(plain)).rows for plain in plains] == [6, 6, 6, 6]
    assert encode_segment([]) == []


def test_a_segment_that_is_no_segment_is_refused(store: Memory):
    (plain,) = encode_segment([packed(store, [b"x"])])
    for data, error, reason in [
        (plain[:10], IntegrityError, "cut short"),
        (b"XXXX" + plain[4:], IntegrityError, "wrong header"),
        (plain[:-1], IntegrityError, "wrong length"),
        (plain + b"x", IntegrityError, "wrong length"),
        (plain[:4] + b"\x02" + plain[5:], FormatError, "has format 2"),
    ]:
        with pytest.raises(error, match=reason):
            Segment("s", memoryview(data))


def test_a_damaged_segment_is_skipped_remembered_and_tried_again(store: Memory):
    good, bad = add(store, packed(store, [b"x"])), add(store, packed(store, [b"y"]))
    whole = store.get(f"index/0/{bad}")
    store.overwrite(f"index/0/{bad}", whole[:-1] + bytes([whole[-1] ^ 1]))
    index = fresh(store)
    assert list(index.damaged) == [f"index/0/{bad}"]
    assert index.known([ident(b"x"), ident(b"y")]).tolist() == [True, False]
    with pytest.raises(IntegrityError, match="do not match its name"):
        load_segment(store, KEYS, f"index/0/{bad}")
    store.overwrite(f"index/0/{bad}", whole)
    index.refresh()
    assert index.damaged == {}
    assert index.known([ident(b"y")])[0]
    assert load_segment(store, KEYS, f"index/0/{good}").rows == 1


def test_a_segment_of_a_newer_program_is_refused(store: Memory):
    (plain,) = encode_segment([packed(store, [b"x"])])
    data = seal(KEYS, Purpose.SEGMENT, plain[:4] + b"\x02" + plain[5:], context=b"index")
    store.put(f"index/0/{digest_name(data)}", data)
    with pytest.raises(FormatError, match="has format 2"):
        fresh(store)


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:50])


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(bytes(data))


def swap(file: Path) -> None:
    """Put another vault's copy in its place: right for somebody, but not for this key."""
    other, store = Keys.create(), Memory()
    writer = PackWriter(other, DATA, store.put)
    writer.add(other.chunk_id(b"z"), b"z")
    (plain,) = encode_segment(writer.close())
    Index(store, other, file.parent / "other").add(plain)
    (theirs,) = (file.parent / "other").iterdir()
    file.write_bytes(theirs.read_bytes())


def empty(file: Path) -> None:
    file.write_bytes(b"")


def folder_instead(file: Path) -> None:
    file.unlink()
    file.mkdir()


@pytest.mark.invariant(11)
@pytest.mark.parametrize("harm", [truncate, flip, swap, empty, folder_instead, Path.unlink])
def test_a_damaged_cache_only_costs_a_read(store: Memory, tmp_path: Path, harm: Callable[[Path], None]):
    name = add(store, packed(store, [b"x"]))
    cache = tmp_path / "cache"
    fresh(store, cache=cache)
    before = len(store.log)
    assert fresh(store, cache=cache).known([ident(b"x")])[0]
    assert [call.verb for call in store.log[before:]] == ["scan"]
    harm(cache / name)
    before = len(store.log)
    assert fresh(store, cache=cache).known([ident(b"x"), ident(b"z")]).tolist() == [True, False]
    assert [call.verb for call in store.log[before:]] == ["scan", "get"]


def test_a_cache_that_can_not_be_made_or_written_only_costs_reads(store: Memory, tmp_path: Path):
    add(store, packed(store, [b"x"]))
    (tmp_path / "file").write_bytes(b"")
    assert fresh(store, cache=tmp_path / "file").known([ident(b"x")])[0]
    assert fresh(store, cache=tmp_path / "file" / "below").known([ident(b"x")])[0]


def test_the_cache_is_private(store: Memory, tmp_path: Path):
    fresh(store, cache=tmp_path / "cache")
    assert (tmp_path / "cache").stat().st_mode & 0o777 == 0o700


@pytest.mark.invariant(11)
def test_a_deleted_index_loses_nothing(bench: Bench, tmp_path: Path):
    """Engine invariant 11, from the outside: restores read footers, a backup stores anew what it can't find."""
    folder = write_files(tmp_path / "d", {f"{n}": NOISE.randbytes(1000) for n in range(20)})
    backed_up(bench, folder)
    bench.storage.delete([stored.key for stored in bench.storage.scan("index/")])
    (tmp_path / "t").mkdir()
    assert restored(bench, tmp_path / "t").state == "complete"
    assert on_disk(landed(tmp_path / "t", folder)) == on_disk(folder)
    (folder / "3").write_bytes(b"changed")
    backed_up(bench, folder)
    assert restored(bench, tmp_path / "t", same_name="overwrite").state == "complete"
    assert on_disk(landed(tmp_path / "t", folder)) == on_disk(folder)


def test_random_ids_are_found_as_a_dictionary_would_find_them():
    keys = Keys.create()
    truth: dict[bytes, str] = {}
    store = Memory()
    for pack in range(5):
        chunks = [os.urandom(8) for _ in range(200)]
        writer = PackWriter(keys, DATA, store.put)
        for chunk in chunks:
            writer.add(keys.chunk_id(chunk), chunk)
        (sealed,) = writer.close()
        truth |= {keys.chunk_id(chunk)[:16]: sealed.head.name for chunk in chunks}
        for plain in encode_segment([sealed]):
            Index(store, keys, None).add(plain)
        assert pack >= 0
    index = Index(store, keys, None)
    index.refresh()
    asked = [*truth, *(os.urandom(16) for _ in range(500))]
    NOISE.shuffle(asked)
    answers = [place.head.name if place else None for place in index.places(asked)]
    assert answers == [truth.get(one) for one in asked]
    assert np.array_equal(index.known(asked), np.array([one in truth for one in asked]))
