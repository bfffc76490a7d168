"""Restores into targets that take streams: each file front to back, in order, whole or told to be wrong."""

import random
import time
import tracemalloc
from collections import defaultdict
from pathlib import Path

import pytest

from engine.browse import Browser
from engine.damage import damaged_packs
from engine.entries import Entry, Kind, Problem
from engine.errors import Canceled, TargetUnavailable, UnsafePath
from engine.session import open_sessions
from engine.targets.command import CommandTarget
from engine.targets.port import BaseTarget
from engine.verbs import pour
from tests.support.runs import Stopping, backed_up, inside, reasons, restored
from tests.support.vaults import Bench, flip, write_files

MIB = 1 << 20


class Log:
    """What a target saw: the content of each file, in the order in which they were begun, and how each ended."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.content: dict[str, bytearray] = {}
        self.ends: dict[str, list[str]] = defaultdict(list)
        self.small: set[str] = set()

    def whole(self) -> dict[str, bytes]:
        return {name: bytes(data) for name, data in self.content.items() if self.ends[name] == ["commit"]}


class Wrong:
    """What is to go wrong, by the last part of a path."""

    def __init__(self, **errors: Exception | list[Problem]) -> None:
        self.errors = errors

    def look(self, what: str, name: str) -> list[Problem]:
        found = self.errors.get(f"{what}_{name}", [])
        if isinstance(found, Exception):
            raise found
        return found


class Recorder(BaseTarget, frozen=True, kw_only=True):
    """A target in memory; `keeps` False forgets content, so that only what the pour holds takes memory."""

    log: Log
    wrong: Wrong = Wrong()
    strict: bool = False
    folders: bool = False
    keeps: bool = True

    @property
    def one_by_one(self) -> bool:
        return self.strict

    def chain(self, path: bytes) -> bytes:
        return path.rpartition(b"/")[0] if self.folders else b""

    def where(self) -> str:
        return "a recorder"

    def check(self) -> None: ...

    def create(self, entry: Entry) -> "Recording":
        name = entry.path.decode().rpartition("/")[2]
        self.wrong.look("create", name)
        self.log.begun.append(name)
        return Recording(self, name)

    def write_small(self, entry: Entry, data: bytes | memoryview) -> list[Problem]:
        self.log.small.add(entry.path.decode().rpartition("/")[2])
        writer = self.create(entry)
        writer.write(memoryview(data), 0)
        return writer.commit()


class Recording:
    """One file of a recorder."""

    def __init__(self, target: Recorder, name: str) -> None:
        self._target, self._log, self._name = target, target.log, name
        self._at = 0
        self._log.content[name] = bytearray()

    def write(self, data: memoryview, offset: int) -> None:
        assert offset == self._at, f"{self._name} was written at {offset}, not at {self._at}"
        assert not self._log.ends[self._name]
        self._target.wrong.look("write", self._name)
        self._at += len(data)
        if self._target.keeps:
            self._log.content[self._name] += data

    def commit(self) -> list[Problem]:
        problems = self._target.wrong.look("commit", self._name)
        self._log.ends[self._name].append("commit")
        return problems

    def abort(self) -> None:
        self._log.ends[self._name].append("abort")


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let files of a few MiB take several batches."""
    monkeypatch.setattr(pour, "_BATCH_BYTES", MIB)


def tree(folder: Path) -> dict[str, bytes]:
    """Write files of all sizes; return name -> content."""
    rng = random.Random(5)
    files = {f"file{number}": rng.randbytes(size) for number, size in enumerate((20 * MIB, 10, 0, 3 * MIB, 700_000, 1))}
    write_files(folder, files)
    return files


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    bench = Bench()
    tree(tmp_path / "tree")
    backed_up(bench, tmp_path / "tree")
    return bench


def test_each_file_is_written_from_its_front_to_its_end(bench: Bench, tmp_path: Path, small_batches: None) -> None:
    log = Log()
    outcome = restored(bench, Recorder(log=log))
    files = tree(tmp_path / "tree")
    assert (outcome.state, outcome.files, outcome.bytes) == ("complete", 6, sum(map(len, files.values())))
    assert log.whole() == files
    assert "file1" in log.small
    assert not {"file0", "file3"} & log.small


def test_files_that_rely_on_each_other_are_written_one_after_the_other_in_listing_order(
    bench: Bench, tmp_path: Path, small_batches: None
) -> None:
    log = Log()
    restored(bench, Recorder(log=log, strict=True))
    assert log.begun == sorted(log.begun)
    assert log.whole() == tree(tmp_path / "tree")
    assert not log.small


def test_holes_are_written_as_zeros(tmp_path: Path) -> None:
    bench = Bench()
    folder = write_files(tmp_path / "sparse", {"before": b"b"})
    with (folder / "holes").open("wb") as file:
        file.seek(3 * MIB)
        file.write(b"middle")
        file.truncate(9 * MIB + 17)
    backed_up(bench, folder)
    log = Log()
    restored(bench, Recorder(log=log))
    assert log.whole() == {"before": b"b", "holes": (folder / "holes").read_bytes()}


def damage(bench: Bench, name: str) -> None:
    """Flip a bit in the last data slot that the file of this name needs, in a pack of its own."""
    vault = bench.open()
    root = vault.root(vault.find("latest"))
    fetcher = vault.fetcher(root)
    entry = next(one for one in Browser(vault, root).entries() if one.path.endswith(name.encode()))
    place = fetcher.places([entry.extents[-1].id])[0]
    flip(bench, place.head.key, place.slot_at + place.slot_stored // 2)


def test_a_damaged_file_is_aborted_and_told_and_the_others_come(
    bench: Bench, tmp_path: Path, small_batches: None
) -> None:
    damage(bench, "file0")
    log = Log()
    outcome = restored(bench, Recorder(log=log))
    assert outcome.state == "partial_complete"
    assert reasons(outcome.problems)[b"file0"] == "damaged"
    assert "slot" in outcome.problems[0].detail
    assert damaged_packs(bench.storage)
    assert log.ends["file0"] == ["abort"]
    expected = tree(tmp_path / "tree")
    told = {name.decode() for name in reasons(outcome.problems)}
    assert log.whole() == {name: data for name, data in expected.items() if name not in told}
    assert log.whole()


def test_after_a_damaged_file_nothing_that_relies_on_it_is_written(bench: Bench, small_batches: None) -> None:
    damage(bench, "file0")
    log = Log()
    outcome = restored(bench, Recorder(log=log, strict=True))
    assert outcome.files == 0
    assert log.whole() == {}
    assert log.begun == ["file0"]
    assert {one.detail for one in outcome.problems[1:]} == {pour._EARLIER}


def test_what_relies_on_something_else_goes_on(tmp_path: Path) -> None:
    bench = Bench()
    write_files(tmp_path / "tree", {f"{folder}/{folder}{n}": b"%d" % n for folder in "ab" for n in range(3)})
    backed_up(bench, tmp_path / "tree")
    log = Log()
    wrong = Wrong(write_a1=OSError(28, "No space left on device"))
    outcome = restored(bench, Recorder(log=log, strict=True, folders=True, wrong=wrong))
    assert set(log.whole()) == {"a0", "b0", "b1", "b2"}
    assert [(one.path, one.detail) for one in outcome.problems] == [
        (inside(tmp_path / "tree/a/a1"), "No space left on device"),
        (inside(tmp_path / "tree/a/a2"), pour._EARLIER),
    ]


@pytest.mark.parametrize("what", ["create", "write", "commit"])
@pytest.mark.parametrize("name", ["file0", "file1"])
@pytest.mark.parametrize("strict", [False, True])
def test_a_file_that_cannot_be_written_is_told_and_ended_once(
    bench: Bench, what: str, name: str, strict: bool, small_batches: None
) -> None:
    log = Log()
    wrong = Wrong(**{f"{what}_{name}": OSError(13, "Permission denied")})
    outcome = restored(bench, Recorder(log=log, strict=strict, wrong=wrong))
    assert outcome.state == "partial_complete"
    assert [one.reason for one in outcome.problems if one.path.endswith(name.encode())] == ["write-failed"]
    assert log.begun.count(name) <= 1
    assert name not in log.whole()
    assert all(len(ends) <= 1 for ends in log.ends.values())
    assert (outcome.files == 5) is not strict


def test_a_problem_that_loses_the_file_loses_it_and_a_note_does_not(bench: Bench) -> None:
    wrong = Wrong(
        commit_file1=[Problem(b"x/file1", "write-failed", "the table refused it")],
        commit_file5=[Problem(b"x/file5", "attributes", "its tags were left out", lost=False)],
    )
    outcome = restored(bench, Recorder(log=Log(), wrong=wrong))
    assert (outcome.files, outcome.problems_total, outcome.state) == (5, 2, "partial_complete")


def test_a_path_that_leads_outside_is_told(bench: Bench) -> None:
    outcome = restored(bench, Recorder(log=Log(), wrong=Wrong(create_file0=UnsafePath("outside"))))
    assert reasons(outcome.problems) == {b"file0": "unsafe-path"}


@pytest.mark.parametrize("name", ["file0", "file5"])
@pytest.mark.parametrize("strict", [False, True])
def test_a_target_that_cannot_go_on_ends_the_restore_and_every_file_that_was_open(
    bench: Bench, name: str, strict: bool, small_batches: None
) -> None:
    log = Log()
    wrong = Wrong(**{f"write_{name}": TargetUnavailable("the server went away")})
    with pytest.raises(TargetUnavailable, match="went away"):
        restored(bench, Recorder(log=log, wrong=wrong, strict=strict))
    assert name not in log.whole()
    assert open_sessions(bench.storage) == []


def test_a_pack_that_is_gone_costs_its_files_and_no_others(tmp_path: Path) -> None:
    bench = Bench()
    rng = random.Random(8)
    first = write_files(tmp_path / "tree", {"a": rng.randbytes(MIB)})
    backed_up(bench, first)
    before = {one.key for one in bench.storage.scan("packs/")}
    write_files(first, {"b": rng.randbytes(MIB), "c": rng.randbytes(2 * MIB)})
    backed_up(bench, first)
    bench.storage.delete(sorted(before))
    log = Log()
    outcome = restored(bench, Recorder(log=log))
    assert reasons(outcome.problems) == {b"a": "damaged"}
    assert set(log.whole()) == {"b", "c"}


def test_a_restore_can_be_stopped_in_the_middle_of_a_file(bench: Bench, small_batches: None) -> None:
    counting = Stopping()
    restored(bench, Recorder(log=Log(), strict=True), progress=counting)
    for at in range(1, counting.checks, 3):
        log = Log()
        with pytest.raises(Canceled):
            restored(bench, Recorder(log=log, strict=True), progress=Stopping(at))
        assert all(len(log.ends[name]) == 1 for name in log.begun)
        assert open_sessions(bench.storage) == []


def test_a_program_that_works_on_behind_its_last_byte_is_waited_for_and_can_be_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pour, "_ALIVE_S", 0.02)
    bench = Bench()
    backed_up(bench, write_files(tmp_path / "tree", {"a": b"x"}))
    counting = Stopping()
    target = CommandTarget(argv=("sh", "-c", "cat >/dev/null; sleep 0.5"), host="h")
    assert restored(bench, target, progress=counting).files == 1
    assert counting.checks > 5  # each renews the lease of the work
    began_s = time.monotonic()
    endless = CommandTarget(argv=("sh", "-c", "cat >/dev/null; sleep 60"), host="h")
    with pytest.raises(Canceled):
        restored(bench, endless, progress=Stopping(counting.checks - 1))
    assert time.monotonic() - began_s < 20


def test_memory_holds_two_batches_whatever_the_files_are(tmp_path: Path, small_batches: None) -> None:
    bench = Bench()
    folder = write_files(tmp_path / "tree", {"data": random.Random(3).randbytes(24 * MIB)})
    with (folder / "hole").open("wb") as file:
        file.truncate(512 * MIB)
    backed_up(bench, folder)
    bench.open()
    tracemalloc.start()
    outcome = restored(bench, Recorder(log=Log(), keeps=False))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (outcome.files, outcome.bytes) == (2, 536 * MIB)
    assert peak < 20 * MIB, peak


def test_folders_are_nothing_and_links_have_no_place(tmp_path: Path) -> None:
    bench = Bench()
    folder = write_files(tmp_path / "tree", {"inner/a": b"a"})
    (folder / "link").symlink_to("inner")
    backed_up(bench, folder)
    outcome = restored(bench, Recorder(log=Log()))
    assert outcome.files == 1
    assert reasons(outcome.problems) == {b"link": "write-failed"}
    assert Recorder(log=Log()).make(Entry(b"d", Kind.DIRECTORY)) == []
