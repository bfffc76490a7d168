"""The files target: nothing leaves its root, nothing is half written, nothing is deleted that was not named."""

import os
import pickle
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.entries import Entry, Kind, Problem
from engine.errors import TargetError, TargetMissing, UnsafePath
from engine.targets.files import FilesTarget, files_target
from tests.support.trees import AS_ROOT, Node, acl, build, difference, snapshot

UID, GID = os.geteuid(), os.getegid()
needs_root = pytest.mark.skipif(not AS_ROOT, reason="needs root")

HOSTILE_PATHS = [
    b"",
    b"/",
    b"/etc/x",
    b"..",
    b"../x",
    b"a/../../x",
    b"a/..",
    b".",
    b"./x",
    b"a/./x",
    b"a//x",
    b"a/",
    b"a\0b",
    b"a/b\0/c",
]


def entry(path: bytes, kind: Kind = Kind.FILE, *, mode: int = 0o644, size: int = 0, target: bytes = b"") -> Entry:
    return Entry(path, kind, mode, UID, GID, size=size, mtime_ns=5, target=target)


def reasons(problems: list[Problem]) -> list[tuple[str, bool]]:
    return [(problem.reason, problem.lost) for problem in problems]


def write(target: FilesTarget, path: bytes, data: bytes) -> list[Problem]:
    """Restore a file the long way; an error as the Problem that a restore makes of it."""
    try:
        writer = target.create(entry(path, size=len(data)))
    except UnsafePath as error:
        return [Problem(path, "unsafe-path", str(error))]
    except OSError as error:
        return [Problem(path, "write-failed", str(error))]
    writer.write(memoryview(data), 0)
    return writer.commit()


def every_way(target: FilesTarget, path: bytes) -> Iterator[list[Problem]]:
    """Try to put something at `path` by each method in turn."""
    yield write(target, path, b"evil")
    yield target.write_small(entry(path), b"evil")
    yield target.make(entry(path, Kind.DIRECTORY))
    yield target.make(entry(path, Kind.SYMLINK, target=b"evil"))
    yield target.make(entry(path, Kind.FIFO))
    yield target.link(entry(path), b"first")
    yield target.finish(entry(path, Kind.DIRECTORY, mode=0o777))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Return the folder restored into, beside a folder of canaries."""
    build({b"canary": Node("folder", 0o755), b"canary/file": Node("file", data=((0, b"alive"),), size=5)}, tmp_path)
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


@pytest.mark.rule("C27")
def test_a_missing_folder_is_refused_and_never_made(tmp_path: Path) -> None:
    with pytest.raises(TargetMissing, match="Make the folder first"):
        files_target(tmp_path / "gone").check()
    assert not (tmp_path / "gone").exists()


def above(out: Path) -> list[Path]:
    """Return the folders that another user must be able to pass to get at a test's own."""
    top = Path(tempfile.gettempdir())
    return [folder for folder in out.parents if top in folder.parents]


@pytest.mark.rule("C27")
def test_a_file_is_no_folder_to_restore_into(tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    with pytest.raises(TargetMissing, match="is not a folder"):
        files_target(tmp_path / "f").check()


def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_done(out: Path) -> None:
    out.chmod(0o555)
    if AS_ROOT:
        for folder in above(out):
            folder.chmod(0o755)
        os.seteuid(65534)
    try:
        with pytest.raises(TargetError, match="is not writable: give this user the right"):
            files_target(out).check()
    finally:
        if AS_ROOT:
            os.seteuid(0)


@pytest.mark.invariant(15)
@pytest.mark.parametrize("path", HOSTILE_PATHS)
def test_a_path_that_would_leave_the_target_is_refused(out: Path, path: bytes) -> None:
    before = snapshot(out.parent)
    target = files_target(out)
    assert target.write_small(entry(b"first"), b"") == []
    (out / "first").unlink()
    for found in every_way(target, path):
        assert reasons(found) == [("unsafe-path", True)]
    with pytest.raises(UnsafePath):
        target.existing(path)
    assert reasons(target.link(entry(b"x"), path)) == [("unsafe-path", True)]
    assert difference(before, snapshot(out.parent), ignore=lambda path, fact: fact == "mtime_ns") == []


@pytest.mark.invariant(15)
@pytest.mark.parametrize("leads_to", ["../canary", "canary-by-absolute-path", ".", "nowhere"])
def test_nothing_is_written_through_a_link_in_place_of_a_folder(out: Path, leads_to: str) -> None:
    absolute = str(out.parent / "canary")
    (out / "d").symlink_to(absolute if leads_to.startswith("canary") else leads_to)
    target = files_target(out)
    before = snapshot(out.parent)
    for path in (b"d/file", b"d/new", b"d/sub/new"):
        for found in every_way(target, path):
            assert reasons(found) == [("unsafe-path", True)]
        with pytest.raises(UnsafePath, match="is a link"):
            target.existing(path)
    assert reasons(target.make(entry(b"d", Kind.DIRECTORY))) == [("unsafe-path", True)]
    assert reasons(target.finish(entry(b"d", Kind.DIRECTORY))) == [("unsafe-path", True)]
    assert difference(before, snapshot(out.parent)) == []


@pytest.mark.invariant(15)
def test_a_link_restored_a_moment_ago_is_not_followed(out: Path) -> None:
    target = files_target(out)
    assert target.make(entry(b"d", Kind.SYMLINK, target=b"../canary")) == []
    assert reasons(target.write_small(entry(b"d/file"), b"evil")) == [("unsafe-path", True)]
    assert (out.parent / "canary/file").read_bytes() == b"alive"


@pytest.mark.parametrize("planted", ["symlink", "hardlink"])
def test_a_link_planted_at_the_final_name_is_replaced_and_not_written_through(out: Path, planted: str) -> None:
    canary = out.parent / "canary/file"
    for name, put in (("long", write), ("short", lambda t, p, d: t.write_small(entry(p), d))):
        if planted == "symlink":
            (out / name).symlink_to(canary)
        else:
            (out / name).hardlink_to(canary)
        assert put(files_target(out), name.encode(), b"restored") == []
        assert (out / name).read_bytes() == b"restored"
        assert not (out / name).is_symlink()
    assert canary.read_bytes() == b"alive"
    assert canary.stat().st_nlink == 1


def test_a_hard_link_is_made_only_to_a_file_inside_the_target(out: Path) -> None:
    (out / "first").symlink_to("../canary/file")
    target = files_target(out)
    assert reasons(target.link(entry(b"second"), b"first")) == [("write-failed", True)]
    assert reasons(target.link(entry(b"second"), b"gone")) == [("write-failed", True)]
    (out / "d").symlink_to("../canary")
    assert reasons(target.link(entry(b"second"), b"d/file")) == [("unsafe-path", True)]
    assert not (out / "second").exists()


@pytest.mark.invariant(15)
@settings(max_examples=60, deadline=None)
@given(
    planted=st.lists(
        st.tuples(
            st.lists(st.sampled_from([b"a", b"b"]), min_size=1, max_size=3).map(b"/".join),
            st.sampled_from([b"../canary", b"../../canary", b"..", b".", b"/", b"a", b"b", b""]),
        ),
        max_size=4,
    ),
    paths=st.lists(
        st.lists(st.sampled_from([b"a", b"b", b"file", b"..", b".", b""]), min_size=1, max_size=4).map(b"/".join),
        min_size=1,
        max_size=4,
    ),
)
def test_whatever_is_planted_and_restored_the_canaries_live(
    planted: list[tuple[bytes, bytes]], paths: list[bytes]
) -> None:
    with tempfile.TemporaryDirectory() as name:
        top = Path(name)
        (top / "canary/a").mkdir(parents=True)
        (top / "canary/file").write_bytes(b"alive")
        (top / "out").mkdir()
        before = snapshot(top / "canary")
        target = files_target(top / "out", restore_owner=False)
        for path, leads_to in planted:
            target.make(entry(path, Kind.SYMLINK, target=leads_to) if leads_to else entry(path, Kind.DIRECTORY))
        for path in paths:
            list(every_way(target, path))
        assert difference(before, snapshot(top / "canary")) == []
        assert sorted(os.listdir(top)) == ["canary", "out"]


def test_a_folder_in_a_files_place_is_kept_and_told(out: Path) -> None:
    (out / "f").mkdir()
    (out / "f/precious").write_bytes(b"kept")
    target = files_target(out)
    with pytest.raises(IsADirectoryError):
        target.create(entry(b"f"))
    assert reasons(target.write_small(entry(b"f"), b"x")) == [("exists", True)]
    assert reasons(target.make(entry(b"f", Kind.SYMLINK, target=b"x"))) == [("exists", True)]
    assert target.write_small(entry(b"first"), b"") == []
    assert reasons(target.link(entry(b"f"), b"first")) == [("exists", True)]
    assert sorted(os.listdir(out)) == ["f", "first"]
    assert (out / "f/precious").read_bytes() == b"kept"


def test_a_file_in_a_folders_place_is_kept_and_told(out: Path) -> None:
    (out / "d").write_bytes(b"kept")
    target = files_target(out)
    assert reasons(target.make(entry(b"d", Kind.DIRECTORY))) == [("exists", True)]
    assert reasons(target.write_small(entry(b"d/f"), b"x")) == [("exists", True)]
    assert target.existing(b"d/f") is None
    assert (out / "d").read_bytes() == b"kept"


def test_until_it_is_complete_a_file_stands_aside_and_is_private(out: Path) -> None:
    (out / "f").write_bytes(b"old")
    writer = files_target(out).create(entry(b"f", mode=0o4755, size=3))
    writer.write(memoryview(b"new"), 0)
    (aside,) = [path for path in out.iterdir() if path.name != "f"]
    assert aside.name.endswith(".backupsite-part")
    assert stat.S_IMODE(aside.stat().st_mode) == 0o600
    assert (out / "f").read_bytes() == b"old"
    assert writer.commit() == []
    assert (out / "f").read_bytes() == b"new"
    assert stat.S_IMODE((out / "f").stat().st_mode) == 0o4755
    assert os.listdir(out) == ["f"]


def test_a_small_file_stands_in_its_place_and_nobody_may_read_it_until_it_is_whole(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, int]] = []
    whole = os.write

    def watched(fd: int, data: bytes | memoryview) -> int:
        seen.extend((name, stat.S_IMODE((out / name).stat().st_mode)) for name in os.listdir(out))
        return whole(fd, data)

    monkeypatch.setattr(os, "write", watched)
    assert files_target(out).write_small(entry(b"f", mode=0o640), b"new") == []
    assert seen == [("f", 0o1000)]
    assert stat.S_IMODE((out / "f").stat().st_mode) == 0o640
    assert os.listdir(out) == ["f"]


def test_what_a_crash_left_of_a_file_is_nothing_and_is_written_anew(out: Path) -> None:
    (out / "f").write_bytes(b"the first ha")
    (out / "f").chmod(0o1000)
    target = files_target(out)
    assert target.existing(b"f") is None
    assert target.write_small(entry(b"f"), b"the first half and the second") == []
    assert target.existing(b"f") == Kind.FILE
    assert (out / "f").read_bytes() == b"the first half and the second"
    assert os.listdir(out) == ["f"]


def test_where_modes_are_not_kept_a_small_file_is_written_aside(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.targets.files._UNFINISHED", 0o1777)  # of which a umask takes something away
    renamed = []
    rename = os.rename

    def watched(source: bytes, name: bytes, *, src_dir_fd: int, dst_dir_fd: int) -> None:
        renamed.append(name)
        rename(source, name, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)

    monkeypatch.setattr(os, "rename", watched)
    target = files_target(out)
    before = os.umask(0o022)
    try:
        problems = target.write_small(entry(b"one"), b"1") + target.write_small(entry(b"two"), b"2")
    finally:
        os.umask(before)
    assert (problems, renamed) == ([], [b"one", b"two"])
    assert {path.name: path.read_bytes() for path in out.iterdir()} == {"one": b"1", "two": b"2"}


@needs_root
def test_a_small_file_gets_its_group_also_where_the_folder_gives_another(out: Path) -> None:
    os.chown(out, UID, 4321)
    out.chmod(0o2775)
    target = files_target(out)
    for name, group in ((b"ours", GID), (b"the folder's", 4321)):
        assert target.write_small(Entry(name, Kind.FILE, 0o644, UID, group, mtime_ns=5), b"x") == []
    assert [(out / name).stat().st_gid for name in ("ours", "the folder's")] == [GID, 4321]


def test_an_aborted_file_leaves_nothing(out: Path) -> None:
    writer = files_target(out).create(entry(b"d/f", size=3))
    writer.write(memoryview(b"ne"), 0)
    writer.abort()
    assert os.listdir(out / "d") == []


def test_a_name_of_255_bytes_can_be_written(out: Path) -> None:
    name = b"n" * 255
    assert write(files_target(out), name, b"x") == []
    assert files_target(out).write_small(entry(name), b"y") == []
    assert (out / os.fsdecode(name)).read_bytes() == b"y"


def test_pieces_may_come_in_any_order_and_gaps_stay_holes(out: Path) -> None:
    writer = files_target(out).create(entry(b"f", size=1 << 20))
    writer.write(memoryview(b"end"), (1 << 20) - 3)
    writer.write(memoryview(b"start"), 0)
    assert writer.commit() == []
    data = (out / "f").read_bytes()
    assert data == b"start" + bytes((1 << 20) - 8) + b"end"
    assert (out / "f").stat().st_blocks * 512 < 1 << 19


def test_a_folder_is_private_until_it_is_finished(out: Path) -> None:
    target = files_target(out)
    folder = entry(b"d", Kind.DIRECTORY, mode=0o555)
    assert target.make(folder) == []
    assert stat.S_IMODE((out / "d").stat().st_mode) == 0o700
    assert target.write_small(entry(b"d/f"), b"x") == []
    assert target.finish(folder) == []
    status = (out / "d").stat()
    assert (stat.S_IMODE(status.st_mode), status.st_mtime_ns) == (0o555, 5)


def test_an_existing_folder_keeps_what_is_in_it(out: Path) -> None:
    (out / "d").mkdir()
    (out / "d/f").touch()
    assert files_target(out).make(entry(b"d", Kind.DIRECTORY)) == []
    assert (out / "d/f").exists()


def test_existing_tells_what_stands_there(out: Path) -> None:
    build({b"d": Node("folder"), b"d/l": Node("symlink", target=b"x"), b"f": Node("file"), b"p": Node("fifo")}, out)
    target = files_target(out)
    kinds = [target.existing(path) for path in (b"d", b"d/l", b"f", b"p", b"gone", b"gone/deeper")]
    assert kinds == [Kind.DIRECTORY, Kind.SYMLINK, Kind.FILE, Kind.FIFO, None, None]


@needs_root
def test_the_owner_is_found_by_name_first_and_by_number_else(out: Path) -> None:
    target = files_target(out)
    by_name = Entry(b"named", Kind.FILE, 0o644, 4321, 4321, "daemon", "daemon")
    by_number = Entry(b"numbered", Kind.FILE, 0o644, 4321, 4322, "no-such-user-here", "")
    assert target.write_small(by_name, b"") + target.write_small(by_number, b"") == []
    assert (out / "named").owner() == "daemon"
    assert ((out / "numbered").stat().st_uid, (out / "numbered").stat().st_gid) == (4321, 4322)


@needs_root
def test_without_its_owner_a_file_loses_its_set_id_bits_and_that_is_told(out: Path) -> None:
    foreign = Entry(b"f", Kind.FILE, 0o6755, 4321, 4321)
    assert reasons(files_target(out, restore_owner=False).write_small(foreign, b"x")) == [("attributes", False)]
    assert stat.S_IMODE((out / "f").stat().st_mode) == 0o755


@needs_root
def test_an_owner_that_is_demanded_but_not_allowed_is_told_and_one_that_is_not_demanded_is_not(out: Path) -> None:
    foreign = Entry(b"f", Kind.FILE, 0o644, 4321, 4321)
    out.chmod(0o777)
    for folder in above(out):
        folder.chmod(0o755)
    os.seteuid(65534)
    try:
        assert reasons(files_target(out, restore_owner=True).write_small(foreign, b"x")) == [("attributes", False)]
        assert files_target(out).write_small(foreign, b"x") == []
    finally:
        os.seteuid(0)
    assert (out / "f").stat().st_uid == 65534


def test_an_attribute_that_cannot_be_set_is_told_and_the_file_is_kept(out: Path) -> None:
    odd = entry(b"f")
    odd.xattrs = {b"nonsense.name": b"x"}
    assert reasons(files_target(out).write_small(odd, b"x")) == [("attributes", False)]
    assert (out / "f").read_bytes() == b"x"


def test_an_inherited_acl_does_not_widen_what_is_restored(out: Path) -> None:
    (out / "d").mkdir()
    try:
        os.setxattr(out / "d", "system.posix_acl_default", acl(7, 7))
    except OSError:
        pytest.skip("no ACLs on this file system")
    target = files_target(out)
    assert target.write_small(entry(b"d/short", mode=0o640), b"x") == []
    assert write(target, b"d/long", b"x") == []
    assert [os.listxattr(out / "d" / name) for name in ("short", "long")] == [[], []]
    assert stat.S_IMODE((out / "d/short").stat().st_mode) == 0o640


def test_a_folder_deleted_meanwhile_is_made_again(out: Path) -> None:
    target = files_target(out)
    assert target.write_small(entry(b"d/f"), b"x") == []
    (out / "d/f").unlink()
    (out / "d").rmdir()
    assert target.write_small(entry(b"d/f"), b"y") == []
    assert (out / "d/f").read_bytes() == b"y"


def test_a_file_too_large_for_the_disk_is_told_and_leaves_nothing(out: Path) -> None:
    with pytest.raises(OSError, match=r"File too large|Invalid argument"):
        files_target(out).create(entry(b"f", size=1 << 62))
    assert os.listdir(out) == []


def test_a_pickled_target_writes_to_the_same_place(out: Path) -> None:
    target = files_target(out, restore_owner=False)
    assert target.write_small(entry(b"f"), b"x") == []
    again = pickle.loads(pickle.dumps(target))
    assert again == target
    assert again.existing(b"f") == Kind.FILE


def test_many_folders_are_written_with_few_kept_open(out: Path) -> None:
    target = files_target(out)
    before = len(os.listdir("/proc/self/fd"))
    for number in range(300):
        assert target.write_small(entry(b"d%d/f" % number), b"x") == []
    assert len(os.listdir("/proc/self/fd")) < before + 80
    del target
    assert len(os.listdir("/proc/self/fd")) <= before


@needs_root
def test_a_full_disk_is_told_and_leaves_nothing_of_the_file(out: Path) -> None:
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", out], capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"mounting is not permitted here: {done.stderr.decode().strip()}")
    try:
        target = files_target(out)
        assert reasons(target.write_small(entry(b"short"), bytes(1 << 20))) == [("write-failed", True)]
        writer = target.create(entry(b"long", size=1 << 20))
        with pytest.raises(OSError, match="No space left"):
            writer.write(memoryview(bytes(1 << 20)), 0)
        writer.abort()
        assert os.listdir(out) == []
        assert target.write_small(entry(b"fits"), b"x") == []
        target.flush()
    finally:
        del target, writer
        subprocess.run(["umount", out], check=True)


def test_threads_share_one_target(out: Path) -> None:
    target = files_target(out)
    before = len(os.listdir("/proc/self/fd"))
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda number: target.write_small(entry(b"%d/f" % number), b"x"), range(200)))
    assert found == [[]] * 200
    assert len(list(out.glob("*/f"))) == 200
    assert len(os.listdir("/proc/self/fd")) <= before
