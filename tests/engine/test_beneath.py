"""Opening below a folder: the same answers by one call and component by component, for paths of any length."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from engine.beneath import _by_component, open_beneath
from tests.support.trees import Node, build, build_deep

Opener = Callable[[int, bytes, int], int]


@pytest.fixture
def top(tmp_path: Path) -> Iterator[int]:
    tree = {
        b"a": Node("folder", 0o755),
        b"a/b": Node("folder", 0o755),
        b"a/b/f": Node("file", data=((0, b"x"),), size=1),
    }
    build(tree | {b"a/out": Node("symlink", target=b"/etc"), b"a/in": Node("symlink", target=b"b")}, tmp_path)
    fd = os.open(tmp_path, os.O_RDONLY)
    yield fd
    os.close(fd)


@pytest.mark.parametrize("opener", [open_beneath, _by_component])
def test_a_plain_path_is_opened(top: int, opener: Opener) -> None:
    fd = opener(top, b"a/b/f", os.O_RDONLY)
    assert os.read(fd, 9) == b"x"
    os.close(fd)


@pytest.mark.parametrize("opener", [open_beneath, _by_component])
@pytest.mark.parametrize("path", [b"a/out/passwd", b"a/in/f", b"a/out", b"a/in", b"a/b/f/x"])
def test_a_link_or_a_file_on_the_way_is_refused(top: int, opener: Opener, path: bytes) -> None:
    before = os.listdir("/proc/self/fd")
    with pytest.raises(OSError, match=r"symbolic links|Not a directory"):
        opener(top, path, os.O_RDONLY | os.O_NOFOLLOW)
    assert len(os.listdir("/proc/self/fd")) == len(before)


def test_a_path_beyond_path_max_is_opened_and_a_link_in_it_is_refused(tmp_path: Path) -> None:
    deepest = build_deep(tmp_path, levels=17, width=250)
    folder = os.open(tmp_path, os.O_RDONLY)
    fd = open_beneath(folder, deepest, os.O_RDONLY)
    assert os.read(fd, 9) == b"deep"
    os.close(fd)
    first, _, rest = deepest.partition(b"/")
    os.rename(tmp_path / os.fsdecode(first), tmp_path / "moved")
    os.symlink("moved", tmp_path / os.fsdecode(first))
    with pytest.raises(OSError, match=r"symbolic links|Not a directory"):
        open_beneath(folder, first + b"/" + rest, os.O_RDONLY)
    os.close(folder)


def test_an_empty_path_opens_the_folder_again(top: int) -> None:
    fd = open_beneath(top, b"")
    assert os.path.sameopenfile(fd, top)
    os.close(fd)
