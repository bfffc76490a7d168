"""Listings, roots and commits: what is encoded is decoded, blocks end where the names say."""

import datetime as dt
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import listing as listings
from engine.entries import TIME_MAX_NS, TIME_MIN_NS, Block, Entry, Extent, Kind, Problem
from engine.errors import FormatError, IntegrityError
from engine.keys import Keys
from engine.listing import (
    PIECE_BYTES,
    BlockBuilder,
    Splitter,
    decode,
    extents_group,
    names_group,
    piece_ids,
    pieces,
    statics_group,
    volatile_group,
)
from engine.point import (
    Body,
    Commit,
    PackRef,
    Stats,
    decode_commit,
    decode_root,
    encode_commit,
    encode_root,
    point_key,
    root_packs,
)

KEYS = Keys.create()
NOW = dt.datetime(2031, 1, 1, tzinfo=dt.UTC)
TIMES = st.integers(TIME_MIN_NS, TIME_MAX_NS)
IDS = st.binary(min_size=16, max_size=16).filter(any)
FEW = st.binary(max_size=5)
SMALL = st.integers(0, 2**32 - 1)
NAMES_OF_IDS = st.dictionaries(SMALL, st.text(min_size=1, max_size=5), max_size=3)


@st.composite
def entries(draw: st.DrawFn) -> list[Entry]:
    """Draw the rows of a block: sorted distinct paths, users and groups that agree about their numbers."""
    paths = draw(st.sets(st.binary(min_size=1, max_size=12).map(lambda raw: raw.replace(b"\0", b"0")), min_size=1))
    users, groups = draw(NAMES_OF_IDS), draw(NAMES_OF_IDS)
    rows = []
    for path in sorted(paths, key=lambda path: path.replace(b"/", b"\0")):
        uid, gid = draw(st.sampled_from([*users, 0])), draw(st.sampled_from([*groups, 0]))
        rows.append(
            Entry(
                path, draw(st.sampled_from(Kind)).value, draw(st.integers(0, 0o7777)), uid, gid, users.get(uid, ""),
                groups.get(gid, ""), draw(st.integers(0, 2**63 - 1)), draw(TIMES), draw(TIMES),
                draw(st.integers(0, 2**64 - 1)), draw(SMALL), draw(SMALL), draw(st.integers(0, 2**63)),
                draw(st.binary(max_size=9)), draw(st.dictionaries(FEW, FEW, max_size=2)),
                draw(st.lists(st.builds(Extent, IDS | st.just(b""), st.integers(0, 2**63)), max_size=3)),
            )
        )  # fmt: skip
    return rows


def encoded(rows: list[Entry]) -> list[bytes]:
    return [names_group(rows), statics_group(rows), volatile_group(rows), extents_group(rows)]


@settings(deadline=None, max_examples=60)
@given(entries())
def test_what_is_encoded_is_decoded(rows: list[Entry]):
    assert decode(encoded(rows)) == rows


def test_times_of_today_are_stored_as_plain_signed_numbers():
    """So that the blocks of older versions stay what they are."""
    today = volatile_group([Entry(b"a", 0, mtime_ns=-5, ctime_ns=1)])
    late = volatile_group([Entry(b"a", 0, mtime_ns=-5, ctime_ns=1), Entry(b"b", 0, mtime_ns=1 << 63)])
    assert today[8:16] == (-5).to_bytes(8, "little", signed=True)
    assert [late[16 + 2 * i] for i in range(8)] == list(today[8:16])


@settings(deadline=None, max_examples=40)
@given(entries(), st.data())
def test_a_block_whose_groups_were_cut_or_exchanged_is_refused(rows: list[Entry], data: st.DataObject):
    groups = encoded(rows)
    which = data.draw(st.integers(1, 3))  # a shorter last name is a name as well
    shorter = [*groups]
    shorter[which] = shorter[which][: data.draw(st.integers(0, len(shorter[which]) - 1))]
    with pytest.raises(IntegrityError):
        decode(shorter)
    with pytest.raises(IntegrityError):
        decode([*groups[:2], groups[2] + b"x", groups[3]])


def test_blocks_end_at_the_same_names_wherever_the_listing_begins(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(listings, "BLOCK_ROWS_MIN", 10)
    monkeypatch.setattr(listings, "_END_MASK", 15)
    paths = [b"%05d" % number for number in range(1000)]

    def ends(some: list[bytes], seed: int = 5) -> set[bytes]:
        splitter = Splitter(seed)
        return {path for path in some if splitter.ends(path)}

    assert len(ends(paths)) > 20
    assert len(ends(paths[37:]) - ends(paths)) <= 2
    assert ends(paths, seed=123_456) != ends(paths)


def test_a_block_never_grows_beyond_its_most_rows(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(listings, "BLOCK_ROWS_MAX", 50)
    splitter = Splitter(5)
    assert [number for number in range(200) if splitter.ends(b"the same name")] == [49, 99, 149, 199]


def test_large_groups_are_stored_in_pieces_that_can_be_told_apart():
    stored: dict[bytes, bytes] = {}
    builder = BlockBuilder(KEYS.chunker_seed, KEYS.chunk_id, stored.__setitem__)
    noise = random.Random(9)
    row = Entry(b"a", 0, size=1, xattrs={b"user.large": noise.randbytes(2 * PIECE_BYTES)})
    assert builder.flush() is None
    assert list(builder.add([row])) == []
    ended = builder.flush()
    assert ended is not None
    block, rows = ended
    assert [len(ids) for ids in piece_ids(block)] == [1, 3, 1, 1]
    assert decode([b"".join(stored[i] for i in ids) for ids in piece_ids(block)]) == rows == [row]
    assert (block.first, block.rows, block.files, block.bytes) == (b"a", 1, 1, 1)
    assert pieces(b"") == []


def body(**changes: object) -> Body:
    fields: dict[str, object] = {
        "vault_id": KEYS.vault_id, "series": "home", "point": "01", "session": "s", "kind": "files", "host": "h",
        "roots": ["/x"], "started_at": NOW, "ended_at": NOW, "scan_ns": 5, "profile": "general", "engine": "1",
        "stats": Stats(entries=2, skipped={"socket": 1}),
        "blocks": [Block(b"a", 1, [b"i" * 32] * 4, [0, 1], TIME_MAX_NS, 1, 5)],
        "problems": [Problem(b"\xff", "unreadable", "why", lost=True)], "problems_total": 1, "complete": False,
        "mounts": ["/mnt"], "options": {"exclude": ["*.tmp"]}, "parent": "00", "previous": b"p" * 32, "deep": True,
    }  # fmt: skip
    return Body(**(fields | changes))  # type: ignore[arg-type] # names and values belong together


PACKS = [PackRef("ab" * 32, 0, 65536), PackRef("cd" * 32 + ".7", 1, 2**32 - 1)]
KEY = point_key("home", "01", "root")


@pytest.mark.invariant(24)
def test_a_root_comes_back_and_its_packs_need_no_key():
    data = encode_root(KEYS, body(), PACKS)
    root = decode_root(KEYS, KEY, data)
    assert (root.body, root.packs) == (body(), PACKS)
    assert root_packs(KEY, data)[0] == PACKS
    assert encode_root(KEYS, body(), PACKS) != data


@pytest.mark.invariant(9)
def test_a_root_opens_only_in_its_place_with_its_packs_and_its_vault():
    data = encode_root(KEYS, body(), PACKS)
    with pytest.raises(IntegrityError, match="fails its authentication"):
        decode_root(KEYS, point_key("home", "02", "root"), data)
    fewer = encode_root(KEYS, body(), PACKS[:1])
    with pytest.raises(IntegrityError):
        decode_root(KEYS, KEY, data[: 16 + 88] + fewer[16 + 44 :])
    other = encode_root(KEYS, body(vault_id=b"v" * 16), PACKS)
    with pytest.raises(IntegrityError, match="belongs to another point"):
        decode_root(KEYS, KEY, other)
    with pytest.raises(IntegrityError, match="another key"):
        decode_root(Keys.create(), KEY, data)


@pytest.mark.parametrize(
    ("change", "error", "reason"),
    [
        (lambda data: data[:10], IntegrityError, "cut short"),
        (lambda data: data[:60], IntegrityError, "cut short"),
        (lambda data: b"XXXX" + data[4:], IntegrityError, "wrong header"),
        (lambda data: data[:7] + b"\x02" + data[8:], FormatError, "has format 2"),
        (lambda data: data[:8] + b"\xff\xff\xff\xff" + data[12:], IntegrityError, "cut short"),
        (lambda data: data[:-1], IntegrityError, "fails its authentication"),
    ],
)
def test_a_root_that_was_changed_is_refused(change, error, reason):
    with pytest.raises(error, match=reason):
        decode_root(KEYS, KEY, change(encode_root(KEYS, body(), PACKS)))


@pytest.mark.invariant(9)
def test_a_commit_counts_for_its_own_key_alone():
    commit = Commit("01", "home", "s", "0" * 64, NOW)
    data = encode_commit(KEYS, commit)
    assert decode_commit(KEYS, point_key("home", "01", "commit"), data) == commit
    for key, changed in [
        (point_key("home", "02", "commit"), data),
        (point_key("home", "01", "expired"), data),
        (point_key("home", "01", "commit"), data.replace(b"home", b"hone")),
        (point_key("home", "01", "commit"), b""),
    ]:
        with pytest.raises(IntegrityError, match="damaged or forged"):
            decode_commit(KEYS, key, changed)
