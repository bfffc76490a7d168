"""Which chunks are alive: exactly those that the listings of present points refer to, and the listings themselves."""

from pathlib import Path

import pytest

from engine.errors import Canceled
from engine.fetch import read_footer
from engine.index import encode_segment
from engine.keys import ID_BYTES
from engine.listing import piece_ids
from engine.point import Expired, point_key
from engine.progress import Silent
from engine.session import put_note
from engine.verbs.mark import Marks, mark
from tests.support.compaction import end_point, noise, sparse_vault
from tests.support.runs import backed_up
from tests.support.vaults import Bench, entries, write_files


@pytest.fixture
def filled(bench: Bench, tmp_path: Path) -> Bench:
    """A vault with a sparse pack, two series that share content, a large file and empty ones."""
    sparse_vault(bench, tmp_path / "home")
    other = {"f3": noise(3, 20_000), "large": noise(77, 1_500_000), "empty": b"", "twice": noise(5), "too": noise(5)}
    backed_up(bench, write_files(tmp_path / "other", other), series="other")
    return bench


def referred(bench: Bench) -> set[bytes]:
    """Return the short ids of all chunks that visible points refer to, read entry by entry."""
    vault = bench.open()
    ids = {extent.id for name in vault.points() for entry in entries(vault, name) for extent in entry.extents}
    for name in vault.points():
        for block in vault.root(name).body.blocks:
            ids |= {ident[:ID_BYTES] for group in piece_ids(block) for ident in group}
    return ids


def assert_exact(bench: Bench, marks: Marks) -> None:
    """Compare the marks with the footers of the packs."""
    vault, alive = bench.open(), referred(bench)
    shares = marks.shares()
    assert shares.keys() == marks.packs.keys()
    ids = marks.live_ids(shares)
    for name, share in shares.items():
        table = read_footer(vault.storage, vault.keys, share.pack).table
        rows = {row.tobytes()[:ID_BYTES]: int(length) for row, length in zip(table.ids, table.length, strict=True)}
        assert share.total == sum(rows.values())
        assert share.live == sum(length for ident, length in rows.items() if ident in alive)
        assert ids[name] == b"".join(sorted(rows.keys() & alive))


def test_what_points_refer_to_is_alive_and_nothing_else(filled: Bench):
    marks = mark(filled.open(), Silent())
    assert_exact(filled, marks)
    assert set(marks.points) == {f"{name.series}/{name.point}" for name in filled.open().points()}
    assert (marks.doubtful, marks.unreadable) == (set(), [])
    assert sorted(round(share.dead_share, 1) for share in marks.shares().values())[-1] == 0.7


def test_rows_that_stand_in_several_segments_are_counted_once(filled: Bench):
    vault = filled.open()
    packs = {pack for name in vault.points() for pack in vault.root(name).needed}
    (plain,) = encode_segment([read_footer(vault.storage, vault.keys, pack) for pack in packs])
    vault.index.add(plain)
    assert_exact(filled, mark(filled.open(), Silent()))


def test_a_prepared_point_keeps_its_chunks_alive_and_an_expired_one_does_not(filled: Bench):
    vault = filled.open()
    (name,) = vault.points("other")
    before = mark(vault, Silent()).shares()
    filled.storage.delete([point_key(*name, "commit")])
    assert mark(filled.open(), Silent()).shares() == before
    note = Expired(name.point, name.series, "", filled.clock())
    put_note(filled.storage, vault.keys, point_key(*name, "expired"), note)
    marks = mark(filled.open(), Silent())
    assert marks.points == [f"{n.series}/{n.point}" for n in vault.points("home")]
    end_point(filled, *name)
    assert mark(filled.open(), Silent()).shares() == marks.shares()


def test_marking_can_be_canceled(filled: Bench):
    silent = Silent()
    silent.cancel()
    with pytest.raises(Canceled):
        mark(filled.open(), silent)
