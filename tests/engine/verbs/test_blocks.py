"""The blocks of large listings: what did not change is carried over unread, and stored once."""

from pathlib import Path

import pytest

from engine.entries import Block
from engine.ids import new_ulid
from engine.sources.files import files_source
from engine.verbs import backup
from engine.verbs.assemble import Listing
from tests.support.runs import Stopping, backed_up, backup_job
from tests.support.vaults import Bench, contents, on_disk, write_files


def blocks_of(bench: Bench, point: str = "latest") -> list[Block]:
    vault = bench.open()
    return vault.root(vault.find(point)).body.blocks


@pytest.mark.usefixtures("small_blocks")
def test_one_change_in_a_large_listing_stores_one_block_anew(bench: Bench, tmp_path: Path):
    folder = write_files(tmp_path / "d", {f"{i // 20:02}/{i:03}": b"%d" % i for i in range(400)})
    backed_up(bench, folder)
    before = blocks_of(bench)
    assert len(before) > 8
    (folder / "07/150").write_bytes(b"changed")
    stats = backed_up(bench, folder).stats
    after = blocks_of(bench)
    changed = [(old, new) for old, new in zip(before, after, strict=True) if old.groups != new.groups]
    assert len(changed) == 1
    assert changed[0][0].groups[0] == changed[0][1].groups[0]  # no name changed
    assert stats.entries_read == 1
    assert contents(bench.open(), bench.open().find("latest"), below=folder) == on_disk(folder)


@pytest.mark.usefixtures("small_blocks")
def test_of_a_block_in_which_files_changed_only_these_travel_and_the_rest_stays_encoded(bench: Bench, tmp_path: Path):
    folder = write_files(tmp_path / "d", {f"{i // 20:02}/{i:03}": b"%d" % i for i in range(400)})
    backed_up(bench, folder)
    for number in (3, 150, 151):
        (folder / f"{number // 20:02}/{number:03}").write_bytes(b"changed")
    job = backup_job(bench, files_source([str(folder)], host="host"))
    units = list(backup.plan(bench.open(), job, Stopping(), now=bench.clock()))
    assert [row.path[-3:] for unit in units for row in unit.rows] == [b"003", b"150", b"151"]
    outcome = backed_up(bench, folder)
    assert (outcome.stats.files_changed, outcome.stats.files_unchanged, outcome.stats.files) == (3, 397, 400)
    assert outcome.stats.bytes == sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert contents(bench.open(), bench.open().find("latest"), below=folder) == on_disk(folder)


@pytest.mark.usefixtures("small_blocks")
def test_an_inserted_folder_leaves_the_blocks_behind_it_as_they_are(bench: Bench, tmp_path: Path):
    folder = write_files(tmp_path / "d", {f"{i // 20:02}/{i:03}": b"%d" % i for i in range(400)})
    backed_up(bench, folder)
    before = {block.first: block.groups for block in blocks_of(bench)}
    write_files(folder, {f"02a/{i:03}": b"new %d" % i for i in range(60)})
    backed_up(bench, folder)
    kept = [block for block in blocks_of(bench) if before.get(block.first) == block.groups]
    assert len(kept) >= len(before) / 2
    assert contents(bench.open(), bench.open().find("latest"), below=folder) == on_disk(folder)


@pytest.mark.usefixtures("small_blocks")
def test_a_listing_that_ends_with_a_block_and_one_that_is_deleted_from_the_middle_stay_right(
    bench: Bench, tmp_path: Path
):
    folder = write_files(tmp_path / "d", {f"{i:03}": b"%d" % i for i in range(120)})
    for cut in (119, 90, 64, 40, 17, 16, 15, 0):
        for path in folder.iterdir():
            if int(path.name) > cut or int(path.name) % 17 == 5:
                path.unlink()
        backed_up(bench, folder)
        assert contents(bench.open(), bench.open().find("latest"), below=folder) == on_disk(folder)


@pytest.mark.usefixtures("small_blocks")
def test_blocks_are_carried_over_when_rows_around_them_drop_out(bench: Bench, tmp_path: Path):
    folder = write_files(tmp_path / "d", {f"{i // 40:02}/{i:03}": b"%d" % i for i in range(400)})
    backed_up(bench, folder)
    for number in (3, 170, 171, 330):
        (folder / f"{number // 40:02}/{number:03}").write_bytes(b"changed")
    source = files_source([str(folder)], host="host")
    job = backup_job(bench, source)
    units = list(backup.plan(bench.open(), job, Stopping(), now=bench.clock()))
    assert sum(len(unit.carried) for unit in units) > 3
    (folder / "04/170").unlink()
    twice = [[backup.work(bench.open(), job, unit, Stopping()) for unit in units] for _ in range(2)]
    assert [r.carried for r in twice[0]] == [r.carried for r in twice[1]]
    backup.finish(bench.open(), job, twice[1], Stopping(), clock=bench.clock)
    assert contents(bench.open(), bench.open().find("latest"), below=folder) == on_disk(folder)


@pytest.mark.usefixtures("small_blocks")
def test_carrying_a_block_over_leaves_the_parents_root_as_it_was(bench: Bench, tmp_path: Path):
    folder = write_files(tmp_path / "d", {f"{i:03}": b"%d" % i for i in range(120)})
    for number in (5, 100):  # so that the point needs several packs
        backed_up(bench, folder)
        (folder / f"{number:03}").write_bytes(b"changed")
    backed_up(bench, folder)
    vault = bench.open()
    vault.open_session(new_ulid(bench.clock()), verb="backup", now=bench.clock())
    parent = vault.root(vault.find("latest"))
    before = [list(block.packs) for block in parent.body.blocks]
    new = Listing(vault, parent)
    new.carry(parent.body.blocks[-1])
    new.close()
    assert [block.packs for block in parent.body.blocks] == before
