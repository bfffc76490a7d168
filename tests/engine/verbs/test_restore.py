"""Restores: what comes back, what stays as it is, what is refused, and looking without restoring."""

import os
import random
import resource
from pathlib import Path

import pytest

from engine.browse import Browser, EntryMissing
from engine.entries import Entry, Kind
from engine.errors import Canceled, EngineError, PointMissing, TargetMissing
from engine.ids import new_ulid
from engine.storage import Memory
from engine.targets.files import files_target
from engine.verbs import restore
from tests.support.runs import Stopping, backed_up, forged_point, inside, landed, reasons, restored
from tests.support.trees import difference, snapshot
from tests.support.vaults import Bench, flip, on_disk, replace, write_files

MIB = 1 << 20
NOISE = random.Random(2)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return write_files(tmp_path / "home", {"a/one.txt": b"1" * 100, "a/two.log": b"2" * 200, "b/three.txt": b"3" * 300})


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """The folder restored into: there, and empty."""
    path = tmp_path / "target"
    path.mkdir()
    return path


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.rule("C24")
def test_all_files_come_back_with_everything_about_them(bench: Bench, home: Path, target: Path):
    os.chmod(home / "a/one.txt", 0o4711)
    os.utime(home / "a", ns=(5, 1_234_567_891))
    backed_up(bench, home)
    outcome = restored(bench, target)
    assert (outcome.state, outcome.files, outcome.bytes, outcome.skipped) == ("complete", 3, 600, 0)
    assert difference(snapshot(home), snapshot(landed(target, home))) == []


@pytest.mark.rule("C24")
def test_only_included_files_come_back(bench: Bench, home: Path, target: Path):
    backed_up(bench, home)
    restored(bench, target, include=(f"{home}/a/", "three*"))
    assert names(landed(target, home)) == {"a/one.txt", "a/two.log", "b/three.txt"}
    (target / "second").mkdir()
    restored(bench, target / "second", include=(f"{home}/a/one.txt",))
    assert names(landed(target / "second", home)) == {"a/one.txt"}


@pytest.mark.rule("C24")
def test_excluded_files_stay_away(bench: Bench, home: Path, target: Path):
    backed_up(bench, home)
    restored(bench, target, exclude=("*.txt",))
    assert names(landed(target, home)) == {"a/two.log"}


@pytest.mark.rule("C25", "C27")
def test_files_come_back_to_their_original_place(bench: Bench, home: Path):
    backed_up(bench, home)
    before = snapshot(home)
    (home / "a/one.txt").unlink()
    assert restored(bench, Path("/"), include=(f"{home}/",)).state == "complete"
    assert difference(before, snapshot(home), ignore=lambda path, fact: path == b"a" and fact == "mtime_ns") == []


@pytest.mark.rule("C27")
def test_a_missing_target_folder_fails_before_anything_is_written(bench: Bench, home: Path, tmp_path: Path):
    backed_up(bench, home)
    before = bench.objects()
    with pytest.raises(TargetMissing, match="Make the folder first"):
        restored(bench, tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()
    assert bench.objects() == before
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(TargetMissing, match="not a folder"):
        restored(bench, tmp_path / "file")


@pytest.mark.rule("C28")
def test_a_file_of_the_same_name_is_skipped_unless_told_otherwise(bench: Bench, home: Path, target: Path):
    backed_up(bench, home)
    mine = landed(target, home) / "a/one.txt"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"mine")
    os.chmod(mine.parent, 0o700)
    outcome = restored(bench, target)
    assert (outcome.state, outcome.skipped, outcome.files) == ("complete", 1, 2)
    assert mine.read_bytes() == b"mine"
    assert mine.parent.stat().st_mode & 0o777 == 0o700


@pytest.mark.rule("C28")
def test_overwriting_replaces_files_and_leaves_others_alone(bench: Bench, home: Path, target: Path):
    backed_up(bench, home)
    mine = landed(target, home) / "a/one.txt"
    write_files(mine.parent, {"one.txt": b"mine", "not in the point": b"stays"})
    outcome = restored(bench, target, same_name="overwrite")
    assert (outcome.state, outcome.skipped, outcome.files) == ("complete", 0, 3)
    assert mine.read_bytes() == b"1" * 100
    assert (mine.parent / "not in the point").read_bytes() == b"stays"


@pytest.mark.rule("C28")
def test_what_a_crash_left_half_written_is_not_taken_for_a_file_of_the_same_name(
    bench: Bench, home: Path, target: Path
):
    backed_up(bench, home)
    torn = landed(target, home) / "a/one.txt"
    torn.parent.mkdir(parents=True)
    torn.write_bytes(b"1")
    torn.chmod(0o1000)
    outcome = restored(bench, target)
    assert (outcome.state, outcome.files, outcome.skipped) == ("complete", 3, 0)
    assert torn.read_bytes() == b"1" * 100


def test_another_word_than_skip_or_overwrite_is_refused(bench: Bench, home: Path, target: Path):
    backed_up(bench, home)
    with pytest.raises(ValueError, match="use skip or overwrite"):
        restored(bench, target, same_name="ask")


def test_a_folder_in_the_place_of_a_file_is_never_removed(bench: Bench, home: Path, target: Path):
    backed_up(bench, home)
    write_files(landed(target, home) / "a/one.txt", {"inner": b"kept"})
    outcome = restored(bench, target, same_name="overwrite")
    assert (outcome.state, reasons(outcome.problems)) == ("partial_complete", {b"one.txt": "exists"})
    assert outcome.files == 2
    assert (landed(target, home) / "a/one.txt/inner").read_bytes() == b"kept"


@pytest.mark.rule("B1")
def test_a_deleted_tree_comes_back(bench: Bench, home: Path):
    backed_up(bench, home)
    before = snapshot(home)
    for path in sorted(home.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    home.rmdir()
    assert restored(bench, Path("/"), include=(f"{home}/",)).state == "complete"
    assert difference(before, snapshot(home)) == []


@pytest.mark.rule("B1")
def test_a_tree_encrypted_by_ransomware_comes_back_from_the_point_before(bench: Bench, home: Path):
    good = backed_up(bench, home).point
    before = snapshot(home)
    for path in [path for path in home.rglob("*") if path.is_file()]:
        path.write_bytes(NOISE.randbytes(path.stat().st_size))
        path.rename(path.with_name(path.name + ".locked"))
        path.write_bytes(b"pay")
    backed_up(bench, home)
    outcome = restored(bench, Path("/"), point=good, include=(f"{home}/",), same_name="overwrite")
    assert (outcome.state, outcome.files) == ("complete", 3)
    after = {path: facts for path, facts in snapshot(home).items() if not path.endswith(b".locked")}
    assert difference(before, after) == []


def test_a_restore_done_twice_changes_nothing_the_second_time(bench: Bench, home: Path, target: Path):
    backed_up(bench, home)
    restored(bench, target)
    before = snapshot(target)
    outcome = restored(bench, target)
    assert (outcome.state, outcome.skipped, outcome.files) == ("complete", 3, 0)
    assert difference(before, snapshot(target)) == []
    assert restored(bench, target, same_name="overwrite").files == 3
    assert difference(before, snapshot(target)) == []


def test_a_dry_run_says_what_it_would_do_and_writes_nothing(bench: Bench, home: Path, target: Path):
    backed_up(bench, home)
    (landed(target, home) / "a").mkdir(parents=True)
    (landed(target, home) / "a/one.txt").write_bytes(b"mine")
    before = snapshot(target)
    vault = bench.open()
    name = vault.find("latest")
    job = restore.RestoreJob(
        session=new_ulid(bench.clock()), series=name.series, point=name.point, target=files_target(target),
        started_at=bench.clock(), dry_run=True,
    )  # fmt: skip
    units = list(restore.plan(vault, job, Stopping(), now=bench.clock()))
    assert [file.path for unit in units for file in unit.files] == [
        inside(home / name) for name in ("a/two.log", "b/three.txt")
    ]
    assert [path for unit in units for path in unit.skipped] == [inside(home / "a/one.txt")]
    assert difference(before, snapshot(target)) == []


def test_sparse_files_stay_sparse(bench: Bench, tmp_path: Path, target: Path):
    folder = tmp_path / "d"
    folder.mkdir()
    for name, size in (("all hole", 9 * MIB), ("big", 40 * MIB), ("small", 300_000)):
        with (folder / name).open("wb") as file:
            if name != "all hole":
                file.write(b"start")
                file.seek(size // 2 // 4096 * 4096)
                file.write(b"middle")
            file.truncate(size)
    backed_up(bench, folder)
    restored(bench, target)
    assert difference(snapshot(folder), snapshot(landed(target, folder))) == []
    assert sum(path.stat().st_blocks * 512 for path in landed(target, folder).iterdir()) < MIB


def test_sparse_files_that_share_their_first_chunk_need_not_all_be_open_at_once(
    bench: Bench, tmp_path: Path, target: Path
):
    folder = tmp_path / "d"
    folder.mkdir()
    for number in range(700):
        with (folder / f"{number:04}").open("wb") as file:
            file.write(b"the same header")
            file.seek(16384)
            file.write(b"%d" % number)
    backed_up(bench, folder)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, limits[1]))
    try:
        outcome = restored(bench, target)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert (outcome.state, outcome.files) == ("complete", 700)
    assert on_disk(landed(target, folder)) == on_disk(folder)


def test_hard_links_come_back_as_links(bench: Bench, home: Path, target: Path):
    os.link(home / "a/one.txt", home / "b/link")
    backed_up(bench, home)
    outcome = restored(bench, target)
    assert (outcome.files, outcome.bytes) == (4, 600)
    assert difference(snapshot(home), snapshot(landed(target, home))) == []


def test_a_hard_link_whose_first_name_was_skipped_or_left_out_gets_the_content(
    bench: Bench, home: Path, target: Path, tmp_path: Path
):
    os.link(home / "a/one.txt", home / "b/link")
    backed_up(bench, home)
    write_files(landed(target, home) / "a", {"one.txt": b"mine"})
    assert restored(bench, target).state == "complete"
    assert (landed(target, home) / "a/one.txt").read_bytes() == b"mine"
    assert (landed(target, home) / "b/link").read_bytes() == b"1" * 100
    (tmp_path / "other").mkdir()
    restored(bench, tmp_path / "other", include=(f"{home}/b/",))
    assert (landed(tmp_path / "other", home) / "b/link").read_bytes() == b"1" * 100


def data_packs(bench: Bench) -> list[str]:
    return [stored.key for stored in bench.storage.scan("packs/")]


@pytest.fixture
def three_packs(bench: Bench, tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """A point whose three files lie in three packs: their folder, and name -> key of the pack."""
    folder = tmp_path / "d"
    where: dict[str, str] = {}
    for name in ("one", "two", "three"):
        before = set(data_packs(bench))
        write_files(folder, {name: name.encode() * 100_000})
        backed_up(bench, folder)
        (where[name],) = set(data_packs(bench)) - before
    return folder, where


@pytest.mark.parametrize("damage", ["flipped", "gone", "cut short", "emptied"])
def test_a_damaged_pack_costs_its_own_files_alone(
    bench: Bench, three_packs: tuple[Path, dict[str, str]], target: Path, damage: str
):
    folder, where = three_packs
    key = where["two"]
    if damage == "flipped":
        flip(bench, key, 140)
    elif damage == "gone":
        bench.storage.delete([key])
    else:
        replace(bench, key, bench.storage.get(key)[: 150 if damage == "cut short" else 0])
    outcome = restored(bench, target)
    assert (outcome.state, reasons(outcome.problems)) == ("partial_complete", {b"two": "damaged"})
    assert outcome.files == 2
    assert names(landed(target, folder)) == {"one", "three"}


@pytest.mark.parametrize("damage", ["gone", "cut short"])
def test_a_lost_pack_and_a_lost_index_cost_only_the_packs_files(
    bench: Bench, three_packs: tuple[Path, dict[str, str]], target: Path, damage: str
):
    folder, where = three_packs
    bench.storage.delete([stored.key for stored in bench.storage.scan("index/")])
    key = where["two"]
    if damage == "gone":
        bench.storage.delete([key])
    else:
        replace(bench, key, bench.storage.get(key)[:150])
    outcome = restored(bench, target)
    assert (outcome.state, reasons(outcome.problems)) == ("partial_complete", {b"two": "damaged"})
    assert names(landed(target, folder)) == {"one", "three"}


def test_a_hard_link_of_a_damaged_file_is_reported_too(
    bench: Bench, three_packs: tuple[Path, dict[str, str]], target: Path
):
    folder, where = three_packs
    os.link(folder / "two", folder / "zwei")
    backed_up(bench, folder)
    flip(bench, where["two"], 140)
    outcome = restored(bench, target)
    assert reasons(outcome.problems) == {b"two": "damaged", b"zwei": "damaged"}
    assert names(landed(target, folder)) == {"one", "three"}


def test_restoring_one_file_reads_few_objects(bench: Bench, tmp_path: Path, target: Path):
    folder = write_files(tmp_path / "d", {f"{i // 50}/{i}": b"%d" % i for i in range(300)})
    for _ in range(3):
        backed_up(bench, folder)
        write_files(folder, {"0/1": NOISE.randbytes(10)})
    assert isinstance(bench.storage, Memory)
    bench.storage.log.clear()
    assert restored(bench, target, include=(f"{folder}/3/170",)).files == 1
    read = [call.key for call in bench.storage.log if call.verb == "get"]
    data, listing = [k for k in read if k.startswith("packs/")], [k for k in read if k.startswith("meta/")]
    assert len(data) == 1
    assert len(listing) <= 4  # one slot holds all four groups of a block; unchanged groups may lie in older packs
    assert len([key for key in read if key.startswith("points/")]) <= 2 * 3  # planner, worker and the end


@pytest.mark.rule("C43")
def test_a_restore_canceled_at_any_moment_leaves_whole_files_only(bench: Bench, home: Path, tmp_path: Path):
    write_files(home, {"big": NOISE.randbytes(6 * MIB)})
    backed_up(bench, home)
    (tmp_path / "count").mkdir()
    counting = Stopping()
    restored(bench, tmp_path / "count", progress=counting)
    truth = on_disk(home)
    for at in range(1, counting.checks + 1):
        where = tmp_path / f"t{at}"
        where.mkdir()
        with pytest.raises(Canceled):
            restored(bench, where, progress=Stopping(at))
        found = on_disk(landed(where, home))
        assert all(truth[path] == data for path, data in found.items())
        assert restored(bench, where).state == "complete"
        assert on_disk(landed(where, home)) == truth
    closed = [stored.key for stored in bench.storage.scan("sessions/") if stored.key.endswith("/closed")]
    opened = [stored.key for stored in bench.storage.scan("sessions/") if stored.key.endswith("/open")]
    assert len(closed) == len(opened)


def test_an_unknown_point_is_refused(bench: Bench, home: Path, target: Path):
    with pytest.raises(PointMissing, match="no recovery point yet"):
        restored(bench, target)
    backed_up(bench, home)
    with pytest.raises(PointMissing, match="begins with 'zz'"):
        restored(bench, target, point="zz")


@pytest.mark.rule("B22")
def test_a_point_is_looked_into_without_restoring(bench: Bench, home: Path):
    (home / "empty").mkdir()
    write_files(home, {"a!": b"", "a/sub/x": b"x", "a.b": b""})
    backed_up(bench, home)
    vault = bench.open()
    browser = Browser.open(vault, vault.find("latest"))
    top = inside(home)
    assert [entry.path[len(top) + 1 :] for entry in browser.folder(top)] == [b"a", b"a!", b"a.b", b"b", b"empty"]
    assert [os.path.basename(entry.path) for entry in browser.folder(top + b"/a")] == [b"one.txt", b"sub", b"two.log"]
    assert [os.path.basename(e.path) for e in browser.folder(top + b"/a", after=b"one.txt")] == [b"sub", b"two.log"]
    assert list(browser.folder(top + b"/empty")) == []
    (above,) = browser.folder(os.path.dirname(top))
    assert (above.path, above.kind) == (top, Kind.DIRECTORY)
    (first,) = browser.folder()
    assert first.path == top.split(b"/")[0]
    assert b"".join(browser.read(browser.entry(top + b"/b/three.txt"))) == b"3" * 300


@pytest.mark.rule("B22")
def test_looking_for_what_is_not_there_says_so(bench: Bench, home: Path):
    backed_up(bench, home)
    vault = bench.open()
    browser = Browser.open(vault, vault.find("latest"))
    for path in (b"nowhere", inside(home) + b"/a/one.tx", inside(home) + b"/a/one.txt/x"):
        with pytest.raises(EntryMissing, match="is not in the recovery point"):
            list(browser.folder(path))
    with pytest.raises(EntryMissing, match="is not a folder"):
        list(browser.folder(inside(home) + b"/a/one.txt"))
    with pytest.raises(EntryMissing, match="is not a file"):
        list(browser.read(browser.entry(inside(home) + b"/a")))


EVIL = b"evil"
HOSTILE: dict[str, list[tuple[Entry, bytes]]] = {
    "dots": [(Entry(b"../../outside/canary", Kind.FILE, 0o644, size=4), EVIL)],
    "dots behind a folder": [
        (Entry(b"a", Kind.DIRECTORY, 0o755), b""),
        (Entry(b"a/../../outside/canary", Kind.FILE, 0o644, size=4), EVIL),
    ],
    "absolute": [(Entry(b"/OUTSIDE/canary", Kind.FILE, 0o644, size=4), EVIL)],
    "a link and something below it": [
        (Entry(b"a", Kind.SYMLINK, 0o777, target=b"OUTSIDE"), b""),
        (Entry(b"a/canary", Kind.FILE, 0o644, size=4), EVIL),
        (Entry(b"a/folder", Kind.DIRECTORY, 0o777), b""),
    ],
    "a folder that becomes a link": [
        (Entry(b"a", Kind.DIRECTORY, 0o755), b""),
        (Entry(b"a", Kind.SYMLINK, 0o777, target=b"OUTSIDE"), b""),
        (Entry(b"a/canary", Kind.FILE, 0o644, size=4), EVIL),
    ],
    "a hard link of something outside": [
        (Entry(b"../outside/canary", Kind.FILE, 0o644, size=4, links=2, inode=7), EVIL),
        (Entry(b"b", Kind.FILE, 0o666, size=4, links=2, inode=7), EVIL),
    ],
    "a folder's attributes": [(Entry(b"../outside", Kind.DIRECTORY, 0o777), b"")],
    "an empty name": [(Entry(b"", Kind.FILE, 0o644, size=4), EVIL)],
    "empty components": [(Entry(b"a//../../outside/canary", Kind.FILE, 0o644, size=4), EVIL)],
    "itself": [(Entry(b".", Kind.DIRECTORY, 0o777), b""), (Entry(b"..", Kind.DIRECTORY, 0o777), b"")],
    "an end of text": [(Entry(b"a\0b", Kind.FILE, 0o644, size=4), EVIL)],
    "a kind that is none": [(Entry(b"a", 99, 0o644, size=4), EVIL)],
    "a size that lies": [
        (Entry(b"a", Kind.FILE, 0o644, size=2), EVIL),
        (Entry(b"b", Kind.FILE, 0o644, size=9), EVIL),
        (Entry(b"c", Kind.FILE, 0o644, size=-1), EVIL),
    ],
}


@pytest.mark.invariant(15)
@pytest.mark.parametrize("same_name", ["skip", "overwrite"])
@pytest.mark.parametrize("attack", HOSTILE)
def test_a_hostile_listing_touches_nothing_outside_the_target(
    bench: Bench, tmp_path: Path, target: Path, attack: str, same_name: str
):
    outside = write_files(tmp_path / "outside", {"canary": b"alive"})
    os.chmod(outside, 0o755)
    rows = []
    for entry, content in HOSTILE[attack]:
        copy = Entry(entry.path.replace(b"OUTSIDE", os.fsencode(outside)), entry.kind, entry.mode, size=entry.size)
        copy.links, copy.inode, copy.target = entry.links, entry.inode, entry.target.replace(b"OUTSIDE", bytes(outside))
        rows.append((copy, content))
    forged_point(bench, rows)
    everything = {path: facts for path, facts in snapshot(tmp_path).items() if not path.startswith(b"target")}
    try:
        outcome = restored(bench, target, same_name=same_name)
    except EngineError:
        assert attack == "an end of text"  # such a listing can't be read at all
    else:
        # Where a folder stands, a link of the same name is skipped, and what is below goes into that folder.
        harmless = attack == "a folder that becomes a link" and same_name == "skip"
        assert outcome.state == ("complete" if harmless else "partial_complete")
    after = {path: facts for path, facts in snapshot(tmp_path).items() if not path.startswith(b"target")}
    assert difference(everything, after) == []
