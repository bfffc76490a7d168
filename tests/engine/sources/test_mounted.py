"""The files source on mounted shares and parallel file systems: several walkers, numbers that lie, mounts that go."""

import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.chunker import PART_BYTES
from engine.entries import Entry, Kind, Problem
from engine.errors import SourceError, SourceMissing, SourceUnavailable
from engine.sources import files as files_module
from engine.sources import walkers as walkers_module
from engine.sources.ahead import Ahead, Loaded, Wish
from engine.sources.files import FilesSource, files_source
from tests.support.trees import AS_ROOT, NAMES, Node, build
from tests.support.vaults import Bench, contents, write_files

needs_root = pytest.mark.skipif(not AS_ROOT, reason="needs root")


def on_share(folder: Path, **fields: object) -> FilesSource:
    return msgspec.structs.replace(files_source([folder], host="h"), **fields)


def listing(source: FilesSource) -> list[Entry | Problem]:
    return list(source.walk())


def find(source: FilesSource, name: str) -> Entry:
    return next(e for e in source.walk() if isinstance(e, Entry) and os.fsdecode(e.path).endswith("/" + name))


@settings(max_examples=25, deadline=None)
@given(
    tree=st.dictionaries(NAMES, st.dictionaries(NAMES, st.lists(NAMES, max_size=3), max_size=4), max_size=5),
    walkers=st.integers(2, 9),
)
def test_several_walkers_find_the_same_in_the_same_order(
    tree: dict[bytes, dict[bytes, list[bytes]]], walkers: int
) -> None:
    with tempfile.TemporaryDirectory() as text:
        nodes: dict[bytes, Node] = {}
        for outer, folders in tree.items():
            nodes[outer] = Node("folder", 0o755)
            for inner, names in folders.items():
                nodes[outer + b"/" + inner] = Node("folder", 0o755)
                nodes.update({b"/".join((outer, inner, name)): Node("file") for name in names})
        build(nodes, Path(text))
        assert listing(on_share(Path(text), walkers=walkers)) == listing(on_share(Path(text)))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"exclude": ("skipped/",)},
        {"include": ("*7",), "exclude": ("*77",)},
        {"include": ("/nowhere",)},
        {"one_file_system": True},
    ],
)
def test_patterns_and_large_folders_are_walked_alike(tmp_path: Path, options: dict[str, object]) -> None:
    deep = "/".join(["deep"] * 90)
    names = [*(f"flat/{n}" for n in range(200)), *(f"a{n}/skipped/x{n}" for n in range(40)), f"{deep}/7"]
    write_files(tmp_path, dict.fromkeys(names, b""))
    for walkers in (2, 5):
        assert listing(on_share(tmp_path, walkers=walkers, **options)) == listing(on_share(tmp_path, **options))


def test_a_walk_that_is_given_up_leaves_no_thread(tmp_path: Path) -> None:
    write_files(tmp_path, {f"d{n}/f": b"" for n in range(50)})
    before = set(threading.enumerate())
    walk = on_share(tmp_path, walkers=8).walk()
    next(walk)
    assert set(threading.enumerate()) > before
    walk.close()
    assert set(threading.enumerate()) == before


@pytest.mark.parametrize(("walkers", "at_once"), [(2, range(2, 4)), (16, range(6, 18))])
def test_calls_that_take_long_are_under_way_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, walkers: int, at_once: range
) -> None:
    write_files(tmp_path, {f"d{n:02}/f{m}": b"" for n in range(40) for m in range(4)})
    status, lock = walkers_module._status, threading.Lock()
    under_way, most = 0, 0

    def slow(folder: int, name: bytes) -> os.stat_result | OSError:
        nonlocal under_way, most
        with lock:
            under_way += 1
            most = max(most, under_way)
        time.sleep(0.005)
        with lock:
            under_way -= 1
        return status(folder, name)

    monkeypatch.setattr(walkers_module, "_status", slow)
    assert len(listing(on_share(tmp_path, walkers=walkers))) == 201
    assert most in at_once


def test_small_files_are_read_ahead_and_read_the_same(tmp_path: Path) -> None:
    write_files(tmp_path, {f"f{n}": os.urandom(n * 3000) for n in range(60)})
    source = on_share(tmp_path, walkers=4)
    entries = [entry for entry in source.walk() if isinstance(entry, Entry) and entry.kind == Kind.FILE]
    source.expect(entries)
    for entry in entries:
        found = source.read_small(entry, 1 << 19)
        assert isinstance(found, tuple)
        assert found[1] == Path("/", os.fsdecode(entry.path)).read_bytes()
    source.expect(entries)
    assert source.read_small(entries[1], 100) is None
    opened = source.open(entries[1])
    assert not isinstance(opened, Problem)
    opened.__exit__(None, None, None)


def test_what_waits_for_the_walk_is_bounded_and_never_stops_it() -> None:
    ahead: Ahead[int] = Ahead(4, held=30)

    def wish(number: int) -> Wish[int]:
        return Wish(b"%06d" % number, lambda: Loaded(number, 10, []))

    first = Wish(b"", lambda: Loaded(-1, 1, [wish(number) for number in range(100)]))
    try:
        assert ahead.take(first) == -1
        for number in range(100):
            if number % 7:  # the walk leaves some out
                assert ahead.take(wish(number)) == number
            time.sleep(0.002)
            assert ahead._held <= 30 + 3 * 10
    finally:
        ahead.close()


def test_an_error_in_a_thread_is_raised_where_it_is_missed() -> None:
    ahead: Ahead[int] = Ahead(2)

    def refuse() -> Loaded[int]:
        raise PermissionError(13, "no")

    try:
        first = Wish(b"a", lambda: Loaded(1, 1, [Wish(b"b", refuse)]))
        assert ahead.take(first) == 1
        with pytest.raises(PermissionError):
            ahead.take(Wish(b"b", refuse))
    finally:
        ahead.close()


@pytest.mark.parametrize("walkers", [0, 65])
def test_a_senseless_number_of_walkers_is_refused(tmp_path: Path, walkers: int) -> None:
    with pytest.raises(SourceError, match="give 1 to 64"):
        on_share(tmp_path, walkers=walkers).check()


def test_ignored_numbers_are_zero_and_links_are_files_of_their_own(tmp_path: Path) -> None:
    write_files(tmp_path, {"a": b"x", "c": b""})
    os.link(tmp_path / "a", tmp_path / "b")
    found = [e for e in on_share(tmp_path, ignore_inode=True, ignore_ctime=True).walk() if isinstance(e, Entry)]
    assert {(entry.inode, entry.ctime_ns, entry.links) for entry in found} == {(0, 0, 1)}
    assert on_share(tmp_path, ignore_inode=True).options()["ignored"] == ["inode"]


def moved_to_another_inode(path: Path) -> None:
    """Put the same content, size and time under another inode, with another change time, as lying mounts do."""
    status = path.stat()
    path.with_name("new").write_bytes(path.read_bytes())
    os.utime(path.with_name("new"), ns=(status.st_atime_ns, status.st_mtime_ns))
    path.with_name("new").rename(path)


def test_a_mount_with_lying_numbers_is_not_read_again_when_they_are_ignored(tmp_path: Path) -> None:
    write_files(tmp_path, {"a": b"x" * 5000, "b": b"y" * 5000})
    believing, ignoring = Bench(), Bench()
    loose = on_share(tmp_path, ignore_inode=True, ignore_ctime=True)
    believing.back_up(tmp_path)
    ignoring.back_up_from(loose)
    moved_to_another_inode(tmp_path / "a")
    assert believing.back_up(tmp_path).stats.bytes_read == 5000
    assert ignoring.back_up_from(loose).stats.bytes_read == 0


def test_a_changed_file_of_the_same_size_and_time_is_missed_when_change_times_are_ignored(tmp_path: Path) -> None:
    write_files(tmp_path, {"a": b"before"})
    status = (tmp_path / "a").stat()
    careful, loose = Bench(), Bench()
    source = on_share(tmp_path, ignore_inode=True, ignore_ctime=True)
    careful.back_up(tmp_path)
    loose.back_up_from(source)
    (tmp_path / "a").write_bytes(b"after!")
    os.utime(tmp_path / "a", ns=(status.st_atime_ns, status.st_mtime_ns))
    points = [careful.back_up(tmp_path).point, loose.back_up_from(source).point]
    kept = []
    for bench, point in zip((careful, loose), points, strict=True):
        vault = bench.open()
        name = next(name for name in vault.points("home") if name.point == point)
        kept.append(contents(vault, name)[os.fsencode(tmp_path / "a").strip(b"/")])
    assert kept == [b"after!", b"before"]


def test_without_inode_numbers_a_changed_file_is_read_as_it_is_now(tmp_path: Path) -> None:
    write_files(tmp_path, {"a": b"before", "b": b"b"})
    source = on_share(tmp_path, ignore_inode=True)
    a, b = find(source, "a"), find(source, "b")
    assert isinstance(source.read_small(b, 9), tuple)  # keeps the folder open
    write_files(tmp_path, {"new": b"longer than before"})
    (tmp_path / "new").rename(tmp_path / "a")
    whole = source.read_small(a, 99)
    assert isinstance(whole, tuple)
    assert (whole[0].size, whole[1]) == (18, b"longer than before")


def test_without_inode_numbers_parts_of_two_files_are_never_joined(tmp_path: Path) -> None:
    assert files_module.PARTS_ABOVE == PART_BYTES
    source = on_share(tmp_path, ignore_inode=True, ignore_ctime=True)
    for name in ("big", "other"):
        (tmp_path / name).touch()
        os.truncate(tmp_path / name, PART_BYTES + 10)
    big = find(source, "big")
    os.utime(tmp_path / "other", ns=(1, 1))
    (tmp_path / "other").rename(tmp_path / "big")
    refused = source.open(big)
    assert isinstance(refused, Problem)
    assert (refused.reason, refused.lost) == ("changed", True)
    found = source.open(find(source, "big"))
    assert not isinstance(found, Problem)
    with found:
        assert found.entry.mtime_ns == 1


@needs_root
def test_a_root_that_must_be_mounted_is_refused_while_it_is_not(tmp_path: Path, mount: Callable[[Path], None]) -> None:
    source = on_share(tmp_path, must_be_mounted=True)
    with pytest.raises(SourceMissing, match=r"nothing is mounted at .*: mount it and run it again"):
        source.check()
    mount(tmp_path)
    source.check()
    (tmp_path / "inside").mkdir()
    with pytest.raises(SourceMissing, match="name the mount point itself"):
        on_share(tmp_path / "inside", must_be_mounted=True).check()


def backed_up_while(source: FilesSource, change: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> Bench:
    """Back up, and let `change` happen when the walk has found the first file."""
    walk = FilesSource.walk

    def changing(self: FilesSource) -> object:
        for found in walk(self):
            yield found
            if isinstance(found, Entry) and found.kind == Kind.FILE and change.pending:  # type: ignore[attr-defined]
                change.pending = False  # type: ignore[attr-defined]
                change()

    change.pending = True  # type: ignore[attr-defined]
    monkeypatch.setattr(FilesSource, "walk", changing)
    bench = Bench()
    with pytest.raises(SourceUnavailable, match="went away while it was read"):
        bench.back_up_from(source)
    monkeypatch.undo()
    return bench


@needs_root
@pytest.mark.parametrize("walkers", [1, 4])
def test_a_mount_that_goes_in_mid_walk_makes_no_point(
    tmp_path: Path, mount: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch, walkers: int
) -> None:
    share = tmp_path / "share"
    share.mkdir()
    mount(share)
    write_files(share, {f"d{n}/f": b"x" for n in range(20)})

    def unmount() -> None:
        subprocess.run(["umount", "--lazy", share], check=True)

    bench = backed_up_while(on_share(share, walkers=walkers), unmount, monkeypatch)
    assert bench.open().points("home") == []
    assert os.listdir(share) == []


@needs_root
@pytest.mark.parametrize("walkers", [1, 4])
def test_another_file_system_at_the_end_of_a_walk_ends_it(
    tmp_path: Path, mount: Callable[[Path], None], walkers: int
) -> None:
    write_files(tmp_path, {"f": b"x"})
    walk = on_share(tmp_path, walkers=walkers).walk()
    next(walk)
    mount(tmp_path)
    with pytest.raises(SourceUnavailable, match="another file system is mounted there now"):
        list(walk)


@pytest.mark.parametrize("walkers", [1, 4])
def test_a_root_that_goes_in_mid_walk_makes_no_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, walkers: int
) -> None:
    share = write_files(tmp_path / "share", {f"d{n}/f": b"x" for n in range(20)})

    def move() -> None:
        share.rename(tmp_path / "elsewhere")

    bench = backed_up_while(on_share(share, walkers=walkers), move, monkeypatch)
    assert bench.open().points("home") == []


@needs_root
@pytest.mark.parametrize("must_be_mounted", [False, True])
def test_files_that_vanish_with_their_mount_are_not_taken_for_deleted_ones(
    tmp_path: Path, mount: Callable[[Path], None], must_be_mounted: bool
) -> None:
    mount(tmp_path)
    write_files(tmp_path, {"f": b"x"})
    (tmp_path / "link").symlink_to("f")
    source = on_share(tmp_path, must_be_mounted=must_be_mounted)
    f, link = find(source, "f"), find(source, "link")
    subprocess.run(["umount", tmp_path], check=True)
    if must_be_mounted:
        (tmp_path / "left below").touch()
    for read in (lambda: source.read_small(f, 9), lambda: source.open(f), lambda: source.fill(link)):
        with pytest.raises(SourceUnavailable, match=r"is empty|nothing is mounted there any more"):
            read()


@pytest.mark.parametrize("walkers", [1, 3])
@pytest.mark.parametrize(("number", "reason", "lost"), [(5, "unreadable", True), (116, "unreadable", True)])
def test_one_folder_with_an_error_or_a_stale_handle_is_a_problem_and_the_rest_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, walkers: int, number: int, reason: str, lost: bool
) -> None:
    write_files(tmp_path, {"a/f": b"", "bad/f": b"", "z/f": b""})
    bad = (tmp_path / "bad").stat().st_ino
    listdir = os.listdir

    def failing(folder: int) -> list[str]:
        if os.fstat(folder).st_ino == bad:
            raise OSError(number, os.strerror(number))
        return listdir(folder)

    monkeypatch.setattr(os, "listdir", failing)
    found = listing(on_share(tmp_path, walkers=walkers))
    told = [(os.path.basename(one.path), one.reason, one.lost) for one in found if isinstance(one, Problem)]
    assert told == [(b"bad", reason, lost)]
    assert sum(isinstance(one, Entry) and one.kind == Kind.FILE for one in found) == 2


@pytest.mark.parametrize("walkers", [1, 3])
def test_a_root_that_cannot_be_listed_any_more_is_no_empty_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, walkers: int
) -> None:
    def failing(folder: int) -> list[str]:
        raise OSError(116, "Stale file handle")

    monkeypatch.setattr(os, "listdir", failing)
    with pytest.raises(SourceUnavailable, match="Stale file handle"):
        listing(on_share(tmp_path, walkers=walkers))
