"""Backups: what is read, what is stored, what is reported, what never happens."""

import datetime as dt
import os
import random
from collections.abc import Generator
from pathlib import Path

import msgspec
import pytest

from engine.entries import TIME_MAX_NS, TIME_MIN_NS, Entry, Kind, Problem
from engine.errors import Canceled, SessionFenced, SourceError, SourceMissing
from engine.point import PackRef
from engine.session import Names
from engine.sources.files import FilesSource, files_source
from engine.sources.reading import FileReader
from engine.vault import Vault
from engine.verbs import backup, cutter
from tests.support.runs import (
    Stopping,
    backed_up,
    backup_job,
    inside,
    landed,
    listing,
    reasons,
    restored,
    run_backup,
)
from tests.support.trees import difference, snapshot
from tests.support.vaults import Bench, contents, on_disk, replace, verified, write_files

KIB, MIB = 1 << 10, 1 << 20
NOISE = random.Random(1)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return write_files(tmp_path / "home", {"a/one": b"1" * 100, "a/two": b"2" * 200, "b/three": b"3" * 300})


def condemn(bench: Bench, packs: list[str], *, run: str = "01") -> None:
    """Say what a prune says before it deletes packs."""
    key = f"prune/{run}/condemned"
    bench.storage.put(key, bench.open().keys.sign(key, msgspec.json.encode(Names(packs))))


def packs_of(vault: Vault, point: str) -> list[PackRef]:
    return vault.root(vault.find(point)).packs


def assert_restores(bench: Bench, folder: Path, target: Path, *, point: str = "latest") -> None:
    target.mkdir()
    assert restored(bench, target, point=point).state == "complete"
    assert difference(snapshot(folder), snapshot(landed(target, folder))) == []


@pytest.mark.rule("B12")
def test_the_first_backup_reads_and_stores_everything(bench: Bench, home: Path, tmp_path: Path):
    outcome = backed_up(bench, home)
    assert (outcome.state, outcome.problems) == ("complete", [])
    assert (outcome.stats.files, outcome.stats.bytes) == (3, 600)
    assert outcome.stats.entries == outcome.stats.entries_read == 6
    assert outcome.stats.bytes_read == outcome.stats.bytes_new == 600
    assert_restores(bench, home, tmp_path / "back")


def test_new_small_files_of_a_kind_and_name_lie_side_by_side_whatever_folder_they_are_in(bench: Bench, tmp_path: Path):
    names = [f"{folder}/{name}" for folder in ("a", "b", "c") for name in ("one.txt", "one.bin", "two.bin", "plain")]
    home = write_files(tmp_path / "home", {name: name.encode() * 9 for name in names})
    point, vault = backed_up(bench, home).point, bench.open()
    files = [entry for entry in listing(vault, point) if entry.extents]
    vault.index.refresh()
    offsets = [place.offset for place in vault.index.places([entry.extents[0].id for entry in files]) if place]
    lying = sorted(zip(offsets, (os.path.basename(entry.path) for entry in files), strict=True))
    assert [name for _, name in lying] == ([b"one.bin"] * 3 + [b"two.bin"] * 3 + [b"plain"] * 3 + [b"one.txt"] * 3)


@pytest.mark.rule("B12")
def test_a_backup_without_changes_reads_no_content_and_stores_no_pack(bench: Bench, home: Path):
    backed_up(bench, home)
    before = {stored.key for stored in bench.storage.scan("")}
    stats = backed_up(bench, home).stats
    assert (stats.entries, stats.files, stats.bytes) == (6, 3, 600)
    assert (stats.entries_read, stats.bytes_read, stats.bytes_new, stats.bytes_stored) == (0, 0, 0, 0)
    new = {stored.key.split("/")[0] for stored in bench.storage.scan("") if stored.key not in before}
    assert new == {"points", "sessions"}


@pytest.mark.rule("B11", "B12", "C4")
def test_changing_one_percent_reads_and_stores_about_one_percent(bench: Bench, tmp_path: Path):
    folder = write_files(tmp_path / "d", {f"{i // 50}/{i}": NOISE.randbytes(50 * KIB) for i in range(400)})
    total = backed_up(bench, folder).stats.bytes
    for number in (7, 99, 200, 399):
        (folder / f"{number // 50}/{number}").write_bytes(NOISE.randbytes(50 * KIB))
    stats = backed_up(bench, folder).stats
    assert stats.bytes_read == stats.bytes_new == 200 * KIB == total // 100
    assert stats.bytes_stored < 0.025 * total


@pytest.mark.rule("B5", "B12")
def test_a_changed_block_inside_a_big_file_stores_about_one_chunk(bench: Bench, tmp_path: Path):
    big = write_files(tmp_path / "d", {"big": NOISE.randbytes(24 * MIB)}) / "big"
    assert backed_up(bench, tmp_path / "d").stats.bytes_new == 24 * MIB
    with big.open("r+b") as file:
        file.seek(12 * MIB)
        file.write(b"changed here")
    stats = backed_up(bench, tmp_path / "d").stats
    assert stats.bytes_read == 24 * MIB
    assert stats.bytes_new <= 2 * 2 * MIB  # one chunk, or two when the edit moves a cut
    assert contents(bench.open(), bench.open().find("latest"))[inside(big)] == big.read_bytes()


def test_a_deep_backup_reads_everything_and_stores_nothing_again(bench: Bench, home: Path):
    backed_up(bench, home)
    source = files_source([str(home)], host="host")
    stats = run_backup(bench, backup_job(bench, source, deep=True)).stats
    assert (stats.entries_read, stats.bytes_read, stats.bytes_new, stats.bytes_stored) == (6, 600, 0, 0)


def test_deleted_and_renamed_files_leave_the_new_point_and_stay_in_the_old(bench: Bench, home: Path):
    old = backed_up(bench, home).point
    (home / "a/one").unlink()
    (home / "a/two").rename(home / "a/renamed")
    stats = backed_up(bench, home).stats
    assert stats.bytes_new == 0
    vault = bench.open()
    assert contents(vault, vault.find("latest"), below=home) == on_disk(home)
    assert len(contents(vault, vault.find(old))) == 3


def test_an_edit_that_keeps_size_and_mtime_is_found_by_its_ctime(bench: Bench, home: Path):
    backed_up(bench, home)
    file = home / "a/one"
    before = file.stat()
    file.write_bytes(b"X" * 100)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    stats = backed_up(bench, home).stats
    assert stats.bytes_read == 100
    assert contents(bench.open(), bench.open().find("latest"), below=home) == on_disk(home)


def test_what_changed_within_two_seconds_of_the_scan_is_read_again(bench: Bench, home: Path):
    source = files_source([str(home)], host="host")
    just_now = dt.datetime.now(dt.UTC)
    old = int((just_now - dt.timedelta(days=1)).timestamp())
    os.utime(home / "b/three", (old, old))  # its ctime is still fresh
    run_backup(bench, backup_job(bench, source), now=just_now)
    again = run_backup(bench, backup_job(bench, source), now=just_now + dt.timedelta(minutes=1))
    assert again.stats.bytes_read == 600
    assert again.stats.bytes_new == 0
    settled = run_backup(bench, backup_job(bench, source), now=just_now + dt.timedelta(minutes=2))
    assert settled.stats.bytes_read == 0


class Failing(FilesSource, frozen=True, tag="files", kw_only=True, dict=True):
    """Files of this host, of which those named `bad...` can't be read (root may read everything, so no mode helps)."""

    def read_small(self, entry: Entry, limit: int) -> tuple[Entry, bytes] | Problem | None:
        if os.path.basename(entry.path).startswith(b"bad"):
            return Problem(entry.path, "unreadable", "Input/output error")
        return super().read_small(entry, limit)


class Busy(FilesSource, frozen=True, tag="files", kw_only=True, dict=True):
    """Files of this host that somebody writes to whenever they are open."""

    def open(self, entry: Entry) -> FileReader | Problem:
        opened = super().open(entry)
        with open(b"/" + entry.path, "ab") as file:
            file.write(b"one more line\n")
        return opened


def test_a_file_that_changes_while_it_is_read_is_kept_and_reported(bench: Bench, tmp_path: Path):
    folder = write_files(tmp_path / "d", {"log": NOISE.randbytes(MIB)})
    outcome = run_backup(bench, backup_job(bench, Busy(roots=(os.fsencode(folder),), host="host")))
    assert (outcome.state, reasons(outcome.problems)) == ("complete", {b"log": "changed"})
    (kept,) = contents(bench.open(), bench.open().find("latest")).values()
    assert (folder / "log").read_bytes().startswith(kept)
    assert backed_up(bench, folder).stats.entries_read >= 1


class Coarse(FilesSource, frozen=True, tag="files", kw_only=True, dict=True):
    """Files on a system that does not tell when they changed."""

    def walk(self) -> Generator[Entry | Problem, None, None]:
        for entry in super().walk():
            if isinstance(entry, Entry):
                entry.mtime_ns = entry.ctime_ns = 0
            yield entry

    def read_small(self, entry: Entry, limit: int) -> tuple[Entry, bytes] | Problem | None:
        read = super().read_small(entry, limit)
        if isinstance(read, tuple):
            read[0].mtime_ns = read[0].ctime_ns = 0
        return read


def test_files_that_changed_places_with_their_folders_are_told_apart_by_inode(bench: Bench, tmp_path: Path):
    folder = write_files(tmp_path / "d", {"x/f": b"first", "y/f": b"other"})
    source = Coarse(roots=(os.fsencode(folder),), host="host")
    run_backup(bench, backup_job(bench, source))
    assert run_backup(bench, backup_job(bench, source)).stats.bytes_read == 0
    for old, new in (("x", "z"), ("y", "x"), ("z", "y")):
        (folder / old).rename(folder / new)
    run_backup(bench, backup_job(bench, source))
    assert contents(bench.open(), bench.open().find("latest"), below=folder) == {b"x/f": b"other", b"y/f": b"first"}


def test_a_file_that_grew_is_noticed_by_its_size_alone(bench: Bench, home: Path):
    source = Coarse(roots=(os.fsencode(home),), host="host")
    run_backup(bench, backup_job(bench, source))
    with (home / "a/one").open("ab") as file:
        file.write(b"more")
    assert run_backup(bench, backup_job(bench, source)).stats.bytes_read == 104
    assert contents(bench.open(), bench.open().find("latest"), below=home) == on_disk(home)


@pytest.mark.rule("C21")
def test_unreadable_files_are_listed_and_the_point_is_partial_until_they_can_be_read(bench: Bench, home: Path):
    write_files(home, {"a/bad": b"x", "b/bad2": b"y"})
    outcome = run_backup(bench, backup_job(bench, Failing(roots=(os.fsencode(home),), host="host")))
    assert outcome.state == "partial_complete"
    assert reasons(outcome.problems) == {b"bad": "unreadable", b"bad2": "unreadable"}
    assert outcome.stats.skipped == {"unreadable": 2}
    body = bench.open().root(bench.open().find(outcome.point)).body
    assert (body.complete, body.problems_total) == (False, 2)
    assert len(contents(bench.open(), bench.open().find(outcome.point))) == 3
    healed = backed_up(bench, home)
    assert (healed.state, healed.stats.bytes_read) == ("complete", 2)


def test_a_file_that_vanishes_after_it_was_listed_is_reported_and_is_no_loss(bench: Bench, home: Path):
    source = files_source([str(home)], host="host")
    gone = home / "a/two"
    outcome = run_backup(bench, backup_job(bench, source), between=lambda: gone.unlink(missing_ok=True))
    assert (outcome.state, reasons(outcome.problems)) == ("complete", {b"two": "vanished"})
    assert contents(bench.open(), bench.open().find("latest"), below=home) == on_disk(home)


def test_a_file_that_is_swapped_for_a_link_after_it_was_listed_is_never_followed(bench: Bench, home: Path):
    secret = home.parent / "secret"
    secret.write_bytes(b"TOP SECRET")

    def swap() -> None:
        (home / "a/two").unlink(missing_ok=True)
        (home / "a/two").symlink_to(secret)

    outcome = run_backup(bench, backup_job(bench, files_source([str(home)], host="host")), between=swap)
    assert outcome.state == "partial_complete"
    assert reasons(outcome.problems) == {b"two": "changed"}
    assert b"TOP SECRET" not in contents(bench.open(), bench.open().find("latest")).values()


@pytest.mark.invariant(3, 5)
def test_packs_that_a_prune_condemned_are_not_referred_to_but_stored_anew(bench: Bench, home: Path, tmp_path: Path):
    backed_up(bench, home)
    old = packs_of(bench.open(), "latest")
    condemn(bench, [pack.name for pack in old])
    stats = backed_up(bench, home).stats
    assert stats.bytes_new == 600
    new = packs_of(bench.open(), "latest")
    assert not {pack.name for pack in old} & {pack.name for pack in new}
    bench.storage.delete([f"{('packs', 'meta')[pack.kind]}/{pack.name[:2]}/{pack.name}" for pack in old])
    assert_restores(bench, home, tmp_path / "back")


@pytest.mark.invariant(29)
@pytest.mark.parametrize("kind", ["packs", "meta"])
@pytest.mark.parametrize("harm", ["deleted", "cut short"])
def test_a_pack_that_was_lost_is_stored_again_by_the_next_backup(
    bench: Bench, home: Path, tmp_path: Path, kind: str, harm: str
):
    backed_up(bench, home)
    for stored in list(bench.storage.scan(f"{kind}/")):
        if harm == "deleted":
            bench.storage.delete([stored.key])
        else:
            replace(bench, stored.key, bench.storage.get(stored.key)[:-1])
    assert verified(bench, "inventory").state == "failed"
    backed_up(bench, home)
    assert_restores(bench, home, tmp_path / "back")


@pytest.mark.usefixtures("small_blocks")
def test_a_lost_pack_of_a_point_with_many_blocks_is_stored_again(bench: Bench, tmp_path: Path):
    folder = write_files(tmp_path / "d", {f"{i:03}": b"%d" % i for i in range(80)})
    backed_up(bench, folder)
    write_files(folder, {"more": b"more"})
    backed_up(bench, folder)
    for stored in list(bench.storage.scan("meta/"))[:1]:
        bench.storage.delete([stored.key])
    backed_up(bench, folder)
    assert_restores(bench, folder, tmp_path / "back")


@pytest.mark.invariant(5)
@pytest.mark.usefixtures("small_blocks")
def test_of_many_packs_with_one_chunk_only_one_that_is_not_condemned_is_chosen(bench: Bench, tmp_path: Path):
    """Engine invariant 5. The condemned ones are many, so that one of them would be the first to be found."""
    folder = write_files(tmp_path / "d", {f"{i:03}": b"%d" % i for i in range(80)})
    condemned: set[str] = set()
    for number in range(8):
        backed_up(bench, folder)
        packs = {pack.name for pack in packs_of(bench.open(), "latest")}
        assert not packs & condemned
        condemn(bench, sorted(packs), run=f"{number:02}")
        condemned |= packs
    backed_up(bench, folder)
    source = files_source([str(folder)], host="host")
    run_backup(bench, backup_job(bench, source, deep=True))
    assert not {pack.name for pack in packs_of(bench.open(), "latest")} & condemned


@pytest.mark.rule("B5")
def test_a_second_host_with_the_same_files_adds_under_one_percent(bench: Bench, tmp_path: Path):
    files = {f"{i}": NOISE.randbytes(200 * KIB) for i in range(100)}
    first = backed_up(bench, write_files(tmp_path / "one", files), series="one")
    second = backed_up(bench, write_files(tmp_path / "two", files), series="two")
    assert second.stats.bytes_new == 0
    assert second.stats.bytes_stored < 0.01 * first.stats.bytes_stored
    vault = bench.open()
    assert contents(vault, vault.find("latest", series="two"), below=tmp_path / "two") == contents(
        vault, vault.find("latest", series="one"), below=tmp_path / "one"
    )


def test_a_big_file_is_cut_into_parts_that_any_worker_may_take(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(cutter, "PART_BYTES", 3 * MIB)
    folder = write_files(tmp_path / "d", {"a": b"a", "big": NOISE.randbytes(10 * MIB), "z": b"z"})
    job = backup_job(bench, files_source([str(folder)], host="host"))
    units = list(backup.plan(bench.open(), job, Stopping(), now=bench.clock()))
    parts = [unit.part for unit in units if unit.part]
    assert parts == [(0, 3 * MIB), (3 * MIB, 3 * MIB), (6 * MIB, 3 * MIB), (9 * MIB, 3 * MIB)]
    backwards = {unit.number: backup.work(bench.open(), job, unit, Stopping()) for unit in reversed(units)}
    results = [backwards[number] for number in sorted(backwards)]
    outcome = backup.finish(bench.open(), job, results, Stopping(), clock=bench.clock)
    assert (outcome.state, outcome.stats.files, outcome.stats.bytes) == ("complete", 3, 10 * MIB + 2)
    assert outcome.stats.entries_read == 4
    assert_restores(bench, folder, tmp_path / "back")


def test_a_big_file_that_grew_after_it_was_listed_is_taken_whole(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(cutter, "PART_BYTES", MIB)
    folder = write_files(tmp_path / "d", {"log": NOISE.randbytes(5 * MIB // 2)})

    def grow() -> None:
        if (folder / "log").stat().st_size < 4 * MIB:
            with (folder / "log").open("ab") as file:
                file.write(b"more" * 500_000)

    job = backup_job(bench, files_source([str(folder)], host="host"))
    outcome = run_backup(bench, job, between=grow)
    assert outcome.state == "complete"
    assert contents(bench.open(), bench.open().find("latest"))[inside(folder / "log")] == (folder / "log").read_bytes()


def test_a_big_file_that_shrank_while_its_parts_were_read_is_reported_as_changed(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(cutter, "PART_BYTES", MIB)
    folder = write_files(tmp_path / "d", {"log": NOISE.randbytes(4 * MIB)})
    calls = 0

    def shrink() -> None:
        nonlocal calls
        calls += 1
        if calls == 4:
            os.truncate(folder / "log", 100)

    outcome = run_backup(bench, backup_job(bench, files_source([str(folder)], host="host")), between=shrink)
    assert reasons(outcome.problems) == {b"log": "changed"}
    entry = next(entry for entry in listing(bench.open(), "latest") if entry.kind == Kind.FILE)
    assert entry.size == sum(extent.length for extent in entry.extents)


def test_holes_are_neither_read_nor_stored_and_come_back_as_holes(bench: Bench, tmp_path: Path):
    folder = tmp_path / "d"
    folder.mkdir()
    with (folder / "sparse").open("wb") as file:
        file.write(b"start")
        file.seek(30 * MIB)
        file.write(b"end")
        file.truncate(40 * MIB)
    stats = backed_up(bench, folder).stats
    assert stats.bytes == 40 * MIB
    assert stats.bytes_read < MIB
    assert_restores(bench, folder, tmp_path / "back")


def test_hard_links_stay_links_of_one_file(bench: Bench, home: Path, tmp_path: Path):
    os.link(home / "a/one", home / "b/same")
    stats = backed_up(bench, home).stats
    assert stats.bytes_new == 600
    assert_restores(bench, home, tmp_path / "back")
    back = landed(tmp_path / "back", home)
    assert (back / "a/one").stat().st_ino == (back / "b/same").stat().st_ino


def test_an_empty_folder_makes_a_point_of_one_entry(bench: Bench, tmp_path: Path):
    folder = write_files(tmp_path / "empty", {})
    folder.mkdir()
    assert backed_up(bench, folder).stats.entries == 1
    assert_restores(bench, folder, tmp_path / "back")


def test_patterns_that_match_nothing_make_an_empty_point(bench: Bench, home: Path, tmp_path: Path):
    outcome = backed_up(bench, home, include=["/no/such/*"])
    assert (outcome.state, outcome.stats.entries) == ("complete", 0)
    (tmp_path / "back").mkdir()
    assert restored(bench, tmp_path / "back").state == "complete"


@pytest.mark.rule("B10")
def test_only_the_given_folders_are_backed_up(bench: Bench, home: Path):
    backed_up(bench, home / "a")
    paths = [entry.path for entry in listing(bench.open(), "latest")]
    assert paths == [inside(home / name) for name in ("a", "a/one", "a/two")]


def test_a_missing_source_is_refused_before_anything_is_written(bench: Bench, tmp_path: Path):
    before = bench.objects()
    with pytest.raises(SourceMissing, match="does not exist"):
        backed_up(bench, tmp_path / "nowhere")
    with pytest.raises(SourceError, match="name at least one"):
        backed_up(bench)
    with pytest.raises(ValueError, match="can't name a series"):
        backed_up(bench, tmp_path, series="Not/OK")
    assert bench.objects() == before


@pytest.mark.rule("B12")
def test_every_point_restores_alone_whatever_becomes_of_the_older_ones(bench: Bench, home: Path, tmp_path: Path):
    states = []
    for number in range(4):
        write_files(home, {"a/one": b"version %d" % number, f"new{number}": b"only new in %d" % number})
        point = backed_up(bench, home).point
        states.append((point, contents(bench.open(), bench.open().find(point))))
    for older, _ in states[:-1]:
        vault = bench.open()
        bench.storage.delete([f"points/home/{older}/commit", f"points/home/{older}/root"])
        needed = {pack.name for name in vault.points() for pack in vault.root(name).packs}
        unneeded = [s.key for folder in ("packs/", "meta/") for s in bench.storage.scan(folder)]
        bench.storage.delete([key for key in unneeded if key.rpartition("/")[2] not in needed])
        for point, files in states:
            if point > older:
                assert contents(bench.open(), bench.open().find(point)) == files
    assert_restores(bench, home, tmp_path / "back")


@pytest.mark.rule("C42", "C43")
def test_a_backup_canceled_at_any_moment_leaves_no_point_and_the_older_ones_untouched(bench: Bench, tmp_path: Path):
    folder = write_files(tmp_path / "d", {"a": b"a", "big": NOISE.randbytes(2 * MIB), "c/d": b"d"})
    source = files_source([str(folder)], host="host")
    old = backed_up(bench, folder).point
    kept = {key: data for key, data in bench.objects().items() if not key.startswith("sessions/")}
    (folder / "big").write_bytes(NOISE.randbytes(2 * MIB))
    counting = Stopping()
    last = backup_job(bench, source, series="count")
    run_backup(bench, last, progress=counting)
    assert counting.checks >= 4
    for at in range(1, counting.checks + 1):
        job = backup_job(bench, source)
        with pytest.raises(Canceled):
            run_backup(bench, job, progress=Stopping(at))
        assert [name.point for name in bench.open().points("home")] == [old]
        assert b'"aborted"' in bench.storage.get(f"sessions/{job.session}/closed")
    now = bench.objects()
    assert {key: now[key] for key in kept} == kept
    assert backed_up(bench, folder).state == "complete"


def test_a_session_that_ended_is_not_entered_again(bench: Bench, home: Path):
    job = backup_job(bench, files_source([str(home)], host="host"))
    with pytest.raises(Canceled):
        run_backup(bench, job, progress=Stopping(1))
    with pytest.raises(SessionFenced, match="is over"):
        run_backup(bench, job)
    assert bench.open().points() == []


@pytest.mark.parametrize("when_s", [-(1 << 31), (1 << 31) - 1, 9_300_000_000, 15_032_385_535, 1 << 40, -(1 << 40)])
def test_a_file_with_a_strange_time_is_backed_up_like_any_other(bench: Bench, home: Path, when_s: int):
    file = home / "a/one"
    os.utime(file, (when_s, when_s))
    kept = file.stat().st_mtime_ns  # as far as this file system goes
    assert backed_up(bench, home).state == "complete"
    entry = next(entry for entry in listing(bench.open(), "latest") if entry.path == inside(file))
    assert entry.mtime_ns == min(max(kept, TIME_MIN_NS), TIME_MAX_NS)
