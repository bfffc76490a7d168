"""The files source: what it finds, what it leaves out and says so, and what it refuses."""

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.entries import Entry, Problem
from engine.errors import SourceError, SourceMissing, SourceUnavailable
from engine.patterns import BadPattern
from engine.sources.files import FilesSource, files_source
from engine.sources.mounts import Mount, is_network, mounts_inside, parse_mountinfo
from tests.support.trees import AS_ROOT, NAMES, Node, build

NOBODY = 65534
needs_root = pytest.mark.skipif(not AS_ROOT, reason="needs root")


def file(text: bytes = b"x", mode: int = 0o644) -> Node:
    return Node("file", mode, data=((0, text),), size=len(text))


def walked(source: FilesSource, folder: Path) -> list[str]:
    """Return the paths found, relative to `folder`; the folder itself is "." ."""
    start = os.fsencode(folder).strip(b"/")
    found = [entry.path for entry in source.walk() if isinstance(entry, Entry)]
    return [os.fsdecode(path[len(start) + 1 :] or b".") for path in found]


def problems(source: FilesSource) -> list[tuple[str, str, bool]]:
    found = [problem for problem in source.walk() if isinstance(problem, Problem)]
    return [(os.fsdecode(os.path.basename(problem.path)), problem.reason, problem.lost) for problem in found]


def find(source: FilesSource, name: str) -> Entry:
    return next(e for e in source.walk() if isinstance(e, Entry) and os.fsdecode(e.path).endswith("/" + name))


@pytest.fixture
def as_nobody(tmp_path: Path) -> Iterator[None]:
    """Run as a user who may not read everything, until the test ends. Needs root."""
    for folder in (tmp_path, *tmp_path.parents):
        if folder != Path("/") and folder.stat().st_uid == os.geteuid():
            folder.chmod(folder.stat().st_mode | 0o055)
    groups = os.getgroups()
    os.setgroups([])
    os.setegid(NOBODY)
    os.seteuid(NOBODY)
    yield
    os.seteuid(0)
    os.setegid(0)
    os.setgroups(groups)


@contextlib.contextmanager
def rights_of_root() -> Iterator[None]:
    """Inside `as_nobody`: make things that nobody may not read."""
    os.seteuid(0)
    yield
    os.seteuid(NOBODY)


@settings(max_examples=40, deadline=None)
@given(names=st.lists(st.tuples(NAMES, st.lists(NAMES, max_size=3)), max_size=6))
def test_the_walk_yields_every_name_in_the_order_of_the_listing(names: list[tuple[bytes, list[bytes]]]) -> None:
    with tempfile.TemporaryDirectory() as text:
        tree: dict[bytes, Node] = {}
        for name, inside in names:
            tree[name] = Node("folder", 0o755)
            tree.update({name + b"/" + below: file() for below in inside})
        build(tree, Path(text))
        found = [entry for entry in files_source([text], host="h").walk() if isinstance(entry, Entry)]
        start = text.encode().strip(b"/")
        assert [entry.path for entry in found] == sorted(
            [start, *(start + b"/" + path for path in tree)], key=lambda path: path.replace(b"/", b"\0")
        )


def test_the_root_of_everything_can_be_walked() -> None:
    source = files_source(["/"], host="h", one_file_system=True, exclude=["/*/*/"])
    found = [entry.path for entry in source.walk() if isinstance(entry, Entry)]
    assert b"etc" in found
    assert b"etc/passwd" in found


def test_roots_that_overlap_are_walked_once(tmp_path: Path) -> None:
    build({b"a": Node("folder", 0o755), b"a/b": file(), b"ab": file()}, tmp_path)
    source = files_source([tmp_path / "ab", tmp_path / "a", tmp_path / "a/b", f"{tmp_path}/a/"], host="h")
    assert walked(source, tmp_path) == ["a", "a/b", "ab"]


def test_a_root_below_a_linked_folder_is_walked_under_the_name_it_was_given(tmp_path: Path) -> None:
    build({b"real": Node("folder", 0o755), b"real/x": Node("folder", 0o755), b"real/x/f": file(b"yes")}, tmp_path)
    (tmp_path / "link").symlink_to("real")
    source = files_source([tmp_path / "link/x"], host="h")
    assert walked(source, tmp_path) == ["link/x", "link/x/f"]
    whole = source.read_small(find(source, "f"), 10)
    assert isinstance(whole, tuple)
    assert whole[1] == b"yes"


def test_links_are_never_followed(tmp_path: Path) -> None:
    build({b"in": Node("folder", 0o755), b"out": Node("folder", 0o755), b"out/f": file()}, tmp_path)
    (tmp_path / "in/link").symlink_to("../out")
    (tmp_path / "in/loop").symlink_to("loop")
    assert walked(files_source([tmp_path / "in"], host="h"), tmp_path) == ["in", "in/link", "in/loop"]


def test_a_missing_root_is_named_with_what_to_do(tmp_path: Path) -> None:
    source = files_source([tmp_path, tmp_path / "gone"], host="here")
    with pytest.raises(SourceMissing, match=r"gone' does not exist on here: correct the path"):
        source.check()
    with pytest.raises(SourceUnavailable, match="gone' went away while it was read"):
        list(files_source([tmp_path / "gone"], host="h").walk())


def test_a_root_below_a_file_is_missing(tmp_path: Path) -> None:
    build({b"f": file()}, tmp_path)
    with pytest.raises(SourceMissing, match="cannot be reached"):
        files_source([tmp_path / "f" / "g"], host="h").check()


def test_a_source_of_nothing_is_refused() -> None:
    with pytest.raises(SourceError, match="name at least one"):
        files_source([], host="h").check()


def test_a_root_hidden_behind_a_link_of_another_root_is_refused_with_its_real_place(tmp_path: Path) -> None:
    build({b"real": Node("folder", 0o755), b"real/f": file(), b"a": Node("folder", 0o755)}, tmp_path)
    (tmp_path / "a/link").symlink_to("../real")
    with pytest.raises(SourceError, match=r"name its real place instead, '.*/real/f'"):
        files_source([tmp_path / "a", tmp_path / "a/link/f"], host="h").check()


def test_a_bad_pattern_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(BadPattern):
        files_source([tmp_path], host="h", exclude=["/"]).check()


PICKED = {
    b"a": Node("folder", 0o755),
    b"a/deep": Node("folder", 0o755),
    b"a/deep/x.log": file(),
    b"a/y.txt": file(),
    b"b": Node("folder", 0o755),
    b"b/c": Node("folder", 0o755),
    b"b/c/z.txt": file(),
    b"talk.log": Node("socket"),
}


@pytest.mark.parametrize(
    ("include", "exclude", "expected"),
    [
        ([], ["*.log"], [".", "a", "a/deep", "a/y.txt", "b", "b/c", "b/c/z.txt"]),
        ([], ["deep/", "b"], [".", "a", "a/y.txt"]),
        (["*.log"], [], [".", "a", "a/deep", "a/deep/x.log"]),
        (["deep"], [], [".", "a", "a/deep", "a/deep/x.log"]),
        (["deep"], ["*.log"], [".", "a", "a/deep"]),
        (["{folder}/b/*/z.*"], [], [".", "b", "b/c", "b/c/z.txt"]),
        (["{folder}"], ["{folder}/b"], [".", "a", "a/deep", "a/deep/x.log", "a/y.txt"]),
        (["nothing"], [], []),
    ],
)
def test_patterns_pick_what_is_walked(
    tmp_path: Path, include: list[str], exclude: list[str], expected: list[str]
) -> None:
    build(PICKED, tmp_path)
    put = [[pattern.format(folder=tmp_path) for pattern in patterns] for patterns in (include, exclude)]
    assert walked(files_source([tmp_path], host="h", include=put[0], exclude=put[1]), tmp_path) == expected


def test_a_pattern_never_excludes_a_root_by_the_folders_above_it(tmp_path: Path) -> None:
    build({b"f": file()}, tmp_path)
    source = files_source([tmp_path], host="h", exclude=[tmp_path.name, tmp_path.parts[1]])
    assert walked(source, tmp_path) == [".", "f"]


@needs_root
def test_an_excluded_folder_is_not_even_opened(tmp_path: Path, as_nobody: None) -> None:
    with rights_of_root():
        build({b"closed": Node("folder", 0o700)}, tmp_path)
    assert problems(files_source([tmp_path], host="h")) == [("closed", "unreadable", True)]
    assert problems(files_source([tmp_path], host="h", exclude=["closed"])) == []


@needs_root
@pytest.mark.rule("C49")
@pytest.mark.parametrize("walkers", [1, 3])
def test_network_storage_is_left_out_and_told_and_other_mounts_are_not(
    tmp_path: Path, mount: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch, walkers: int
) -> None:
    for name in ("far", "near"):
        (tmp_path / name).mkdir()
        mount(tmp_path / name)
        (tmp_path / name / "file").write_text("here")
    far = bytes(tmp_path / "far")
    monkeypatch.setattr(
        "engine.sources.files.mounts_inside",
        lambda roots: [one._replace(fs_type="nfs4") if one.path == far else one for one in mounts_inside(roots)],
    )
    source = msgspec.structs.replace(files_source([tmp_path], host="h"), skip_network=True, walkers=walkers)
    found = list(source.walk())
    kept = {os.fsdecode(entry.path)[len(str(tmp_path)) :] for entry in found if isinstance(entry, Entry)}
    assert kept == {"", "far", "near", "near/file"}
    assert [(one.path, one.reason, one.lost) for one in found if isinstance(one, Problem)] == [
        (far[1:], "other-file-system", False)
    ]
    named = msgspec.structs.replace(files_source([tmp_path / "far"], host="h"), skip_network=True, walkers=walkers)
    assert len([entry for entry in named.walk() if isinstance(entry, Entry)]) == 2


@pytest.mark.rule("C49")
@pytest.mark.parametrize(
    ("fs_type", "is_far"),
    [
        ("nfs", True), ("nfs4", True), ("cifs", True), ("smb3", True), ("fuse.ossfs", True), ("fuse.glusterfs", True),
        ("glusterfs", True), ("fuse", True), ("ceph", True), ("lustre", True), ("fuse.sshfs", True),
        ("ext4", False), ("xfs", False), ("tmpfs", False), ("fuseblk", False), ("btrfs", False), ("overlay", False),
    ],
)  # fmt: skip
def test_which_file_systems_lie_elsewhere(fs_type: str, is_far: bool) -> None:
    assert is_network(fs_type) == is_far


@needs_root
def test_one_file_system_keeps_a_mount_point_as_an_empty_folder(tmp_path: Path, mount: Callable[[Path], None]) -> None:
    build({b"m": Node("folder", 0o755), b"z": file()}, tmp_path)
    mount(tmp_path / "m")
    build({b"inside": file()}, tmp_path / "m")
    assert walked(files_source([tmp_path], host="h"), tmp_path) == [".", "m", "m/inside", "z"]
    here = files_source([tmp_path], host="h", one_file_system=True)
    assert walked(here, tmp_path) == [".", "m", "z"]
    assert problems(here) == [("m", "other-file-system", False)]
    named = files_source([tmp_path, tmp_path / "m"], host="h", one_file_system=True)
    assert walked(named, tmp_path) == [".", "m", "m/inside", "z"]
    assert [e.device for e in named.walk() if isinstance(e, Entry)] == [0, 1, 1, 0]


@needs_root
@pytest.mark.rule("B28")
def test_other_file_systems_mounted_inside_a_root_are_listed(tmp_path: Path, mount: Callable[[Path], None]) -> None:
    odd = tmp_path / "a b\\c\n"
    odd.mkdir()
    assert mounts_inside([tmp_path]) == []
    mount(odd)
    assert mounts_inside([tmp_path]) == [Mount(os.fsencode(odd), "tmpfs", odd.stat().st_dev)]
    assert mounts_inside([odd]) == []
    assert Mount(os.fsencode(odd), "tmpfs", odd.stat().st_dev) in mounts_inside(["/"])


@pytest.mark.rule("B28")
def test_mountinfo_is_decoded_and_foreign_lines_are_passed_over() -> None:
    text = (
        b"36 35 98:0 /r /m\\040t\\134x rw,noatime master:1 - fuse.ossfs b rw\nnonsense\n36 35 0:5 / /q rw - ext4 d rw"
    )
    assert list(parse_mountinfo(text)) == [
        Mount(b"/m t\\x", "fuse.ossfs", os.makedev(98, 0), b"/r"),
        Mount(b"/q", "ext4", os.makedev(0, 5)),
    ]


@needs_root
def test_what_may_not_be_read_is_a_loss_by_name_and_the_rest_goes_on(tmp_path: Path, as_nobody: None) -> None:
    with rights_of_root():
        build({b"closed": Node("folder", 0o700), b"f": file(mode=0o600), b"g": file()}, tmp_path)
    source = files_source([tmp_path], host="h")
    assert walked(source, tmp_path) == [".", "closed", "f", "g"]
    assert problems(source) == [("closed", "unreadable", True)]
    for read in (source.open, lambda entry: source.read_small(entry, 99)):
        refused = read(find(source, "f"))
        assert isinstance(refused, Problem)
        assert (refused.reason, refused.lost) == ("unreadable", True)
    assert isinstance(source.read_small(find(source, "g"), 99), tuple)


def test_a_vanished_entry_is_told_and_is_no_loss(tmp_path: Path) -> None:
    build({b"f": file(), b"p": Node("fifo"), b"stays": file()}, tmp_path)
    source = files_source([tmp_path], host="h")
    f, p = find(source, "f"), find(source, "p")
    (tmp_path / "f").unlink()
    (tmp_path / "p").unlink()
    for found in (source.open(f), source.read_small(f, 9), source.fill(p)):
        assert isinstance(found, Problem)
        assert (found.reason, found.lost) == ("vanished", False)


@pytest.mark.parametrize("by", ["file", "link", "fifo", "folder"])
def test_what_replaced_a_file_since_the_walk_is_not_read(tmp_path: Path, by: str) -> None:
    build({b"f": file(), b"other": file(b"secret")}, tmp_path)
    source = files_source([tmp_path], host="h")
    entry = find(source, "f")
    (tmp_path / "f").rename(tmp_path / "kept")  # the inode must not be used again
    {
        "file": lambda: (tmp_path / "f").write_bytes(b"new"),
        "link": lambda: (tmp_path / "f").symlink_to("other"),
        "fifo": lambda: os.mkfifo(tmp_path / "f"),
        "folder": lambda: (tmp_path / "f").mkdir(),
    }[by]()
    for found in (source.open(entry), source.read_small(entry, 99)):
        assert isinstance(found, Problem)
        assert (found.reason, found.lost) == ("changed", True)


@pytest.mark.parametrize("warm", [False, True])
def test_a_folder_swapped_for_a_link_after_the_walk_is_not_read_through(tmp_path: Path, warm: bool) -> None:
    build({b"in": Node("folder", 0o755), b"in/d": Node("folder", 0o755), b"in/d/f": file()}, tmp_path)
    build({b"secret": Node("folder", 0o755)}, tmp_path)
    source = files_source([tmp_path / "in"], host="h")
    entry = find(source, "f")
    if warm:
        assert isinstance(source.read_small(entry, 9), tuple)
    # The same inode under the link's target: only the path can tell the difference.
    (tmp_path / "in/d/f").rename(tmp_path / "secret/f")
    (tmp_path / "in/d").rmdir()
    (tmp_path / "in/d").symlink_to("../secret")
    for found in (source.open(entry), source.read_small(entry, 99)):
        assert isinstance(found, Problem)
        assert found.reason == "changed"


def test_a_folder_made_anew_is_found_again_by_the_same_source(tmp_path: Path) -> None:
    source = files_source([tmp_path / "d"], host="h")
    for text in (b"one", b"two"):
        build({b"d": Node("folder", 0o755), b"d/f": file(text), b"d/p": Node("fifo")}, tmp_path)
        whole = source.read_small(find(source, "f"), 9)
        assert isinstance(whole, tuple)
        assert whole[1] == text
        assert isinstance(source.fill(find(source, "p")), Entry)
        (tmp_path / "d").rename(tmp_path / f"old-{text.decode()}")


def test_a_file_that_changes_while_it_is_read_is_noticed(tmp_path: Path) -> None:
    build({b"f": file()}, tmp_path)
    source = files_source([tmp_path], host="h")
    reader = source.open(find(source, "f"))
    assert not isinstance(reader, Problem)
    with reader:
        assert not reader.changed()
        (tmp_path / "f").write_bytes(b"longer")
        assert reader.changed()


def test_reading_leaves_the_access_time_alone(tmp_path: Path) -> None:
    build({b"f": file()}, tmp_path)
    os.utime(tmp_path / "f", ns=(1, 1))
    source = files_source([tmp_path], host="h")
    assert isinstance(source.read_small(find(source, "f"), 9), tuple)
    assert (tmp_path / "f").stat().st_atime_ns == 1


def test_a_walk_that_is_given_up_closes_what_it_opened(tmp_path: Path) -> None:
    build({b"a": Node("folder", 0o755), b"a/b": Node("folder", 0o755), b"a/b/c": file()}, tmp_path)
    before = len(os.listdir("/proc/self/fd"))
    walk = files_source([tmp_path], host="h").walk()
    for _ in range(3):
        next(walk)
    walk.close()
    assert len(os.listdir("/proc/self/fd")) == before
