"""A block as columns: rows are compared and replaced as if every entry had been decoded and encoded again."""

import random

import msgspec
import pytest

from engine.columns import Columns
from engine.entries import TIME_MAX_NS, TIME_MIN_NS, Entry, Extent, Kind
from engine.errors import IntegrityError
from engine.listing import extents_group, names_group, statics_group, volatile_group

NOW_NS = 1_700_000_000_000_000_000


def groups_of(rows: list[Entry]) -> list[bytes]:
    return [names_group(rows), statics_group(rows), volatile_group(rows), extents_group(rows)]


def entry(chance: random.Random, number: int) -> Entry:
    kind = chance.choice([Kind.FILE, Kind.FILE, Kind.FILE, Kind.SYMLINK, Kind.DIRECTORY, Kind.CHARACTER_DEVICE])
    return varied(chance, Entry(b"folder/%04d" % number, kind.value))


def varied(chance: random.Random, row: Entry) -> Entry:
    """Return another version of an entry: everything but its path and kind may differ."""
    uid = chance.choice([0, 7, 7, 4_000_000_000])
    is_file = row.kind == Kind.FILE
    ids = [chance.choice([b"", chance.randbytes(16)]) for _ in range(chance.randrange(4))] if is_file else []
    return Entry(
        row.path, row.kind, chance.randrange(0o10000), uid, 20,
        {0: "root", 7: "ann"}.get(uid, ""), "staff",
        chance.randrange(1 << 40) if is_file else 0,
        chance.choice([NOW_NS, NOW_NS + 5, TIME_MIN_NS, -1, TIME_MAX_NS]), chance.choice([NOW_NS, TIME_MAX_NS - 1]),
        chance.randrange(1 << 64), chance.randrange(3), chance.randrange(1, 4),
        chance.randrange(1, 1 << 40) if row.kind == Kind.CHARACTER_DEVICE else 0,
        b"where" if row.kind == Kind.SYMLINK else b"",
        chance.choice([{}, {}, {b"user.a": b"1"}]),
        [Extent(ident, 1 + chance.randrange(99)) for ident in ids],
    )  # fmt: skip


@pytest.mark.parametrize("seed", range(30))
def test_replaced_rows_are_encoded_as_in_a_block_made_of_entries(seed: int):
    chance = random.Random(seed)
    rows = [entry(chance, number) for number in range(chance.choice([1, 2, 40]))]
    new = {n: varied(chance, row) for n, row in enumerate(rows) if chance.random() < chance.choice([0.1, 0.5, 1])}
    columns = Columns(groups_of(rows))
    columns.replace(new)
    expected = [new.get(n, row) for n, row in enumerate(rows)]
    assert Columns(columns.encode()).entries() == expected
    assert [columns.encode()[n] for n in (0, 2, 3)] == [groups_of(expected)[n] for n in (0, 2, 3)]
    files = [row.size for row in expected if row.kind == Kind.FILE]
    assert columns.files() == (len(files), sum(files))
    assert columns.newest_ns() == max(max(row.mtime_ns, row.ctime_ns) for row in expected)
    owners = msgspec.msgpack.decode(columns.encode()[1][10 * len(rows) :]).get("users", {})
    assert owners == {row.uid: row.user for row in expected if row.user}


def test_rows_replaced_by_themselves_leave_every_byte_as_it_was():
    chance = random.Random(1)
    rows = [entry(chance, number) for number in range(50)]
    columns = Columns(groups_of(rows))
    columns.replace(dict(enumerate(rows)))
    assert columns.encode() == groups_of(rows)


def test_size_times_and_inode_tell_what_differs():
    rows = [Entry(b"%d" % n, 0, size=5, mtime_ns=NOW_NS, ctime_ns=NOW_NS, inode=9) for n in range(5)]
    columns = Columns(groups_of(rows))
    for number, change in enumerate([{"size": 6}, {"mtime_ns": TIME_MAX_NS}, {"ctime_ns": 1}, {"inode": 1 << 63}]):
        rows[number] = msgspec.structs.replace(rows[number], **change)
    differs, is_else = columns.differing(volatile_group(rows))
    assert differs.tolist() == [True, True, True, True, False]
    assert not is_else


@pytest.mark.parametrize("change", [{"links": 2}, {"device": 1}])
def test_another_number_of_links_or_device_is_told_apart(change: dict[str, int]):
    rows = [Entry(b"a", 0, inode=1), Entry(b"b", 0, inode=2)]
    columns = Columns(groups_of(rows))
    rows[1] = msgspec.structs.replace(rows[1], **change)
    differs, is_else = columns.differing(volatile_group(rows))
    assert not differs.any()
    assert is_else


def test_times_at_both_ends_of_the_range_count_as_what_they_are():
    times = [(TIME_MIN_NS, 0), (0, NOW_NS - 1), (NOW_NS, 0), (0, NOW_NS), (TIME_MAX_NS, 0)]
    rows = [Entry(b"%d" % n, 0, mtime_ns=mtime, ctime_ns=ctime) for n, (mtime, ctime) in enumerate(times)]
    assert Columns(groups_of(rows)).since(NOW_NS).tolist() == [False, False, True, True, True]


def test_chunks_come_with_the_rows_that_they_belong_to_and_without_holes():
    one, two = bytes([1]) * 16, bytes([2]) * 16
    rows = [
        Entry(b"a", 0, extents=[Extent(one, 4), Extent(b"", 9), Extent(two, 4)]),
        Entry(b"b", 0),
        Entry(b"c", 0, extents=[Extent(two, 4)]),
    ]
    ids, rows_of = Columns(groups_of(rows)).chunks()
    assert (ids, rows_of.tolist()) == ([one, two, two], [0, 0, 2])


@pytest.mark.parametrize("group", range(4))
@pytest.mark.parametrize("cut", [1, 7])
def test_a_group_that_is_cut_short_is_damage(group: int, cut: int):
    chance = random.Random(3)
    groups = groups_of([entry(chance, number) for number in range(20)])
    groups[group] = groups[group][: -cut if group else 10 - cut]
    with pytest.raises(IntegrityError):
        Columns(groups)
